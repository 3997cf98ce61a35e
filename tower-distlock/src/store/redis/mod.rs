//! The store of the Redis backend: one script call for each operation, or for many of one moment.

mod list;
mod many;
mod notes;
mod scripts;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use redis_conn::{
    Backend, Error, ErrorKind, Layout,
    raw::{Call, Class, Courier as _, Redis, Reply, ScriptCall},
};
use tokio::time::Instant;

use self::{
    many::{Done, MOST, Request, Server, What},
    scripts::{FORCE, LOOK, RENEW},
    wire::{Answer, asking, corrupt, outcome},
};
use super::{Acquired, Birth, Grant, Next, Outcome, Seen, Store};
use crate::{FenceMode, OwnerId, name::Name, terms::Terms};

const LAYOUT: Layout = Layout {
    letter: 'l',
    version: 1,
};
/// How many leases one call prolongs.
const BATCH: usize = 256;
/// How many calls are under way for one operation.
const CONCURRENT: usize = 64;

/// Locks under the keys of a hash tag for each name. The server's clock decides.
#[derive(Debug)]
pub(crate) struct RedisStore {
    backend: Backend,
    server: Server,
    /// Whether one server has all locks.
    gathers: bool,
}

/// By what leases are prolonged.
#[derive(Clone, Copy)]
enum Prolong {
    /// The ttl that they have.
    Keep,
    /// That of the terms, which they have from then on.
    Take,
}

/// The keys of a lock.
struct Keys {
    /// All but the end.
    stem: String,
    held: String,
    line: String,
    who: String,
}

impl Keys {
    fn new(backend: &Backend, tag: &str) -> Self {
        let stem = backend.key(LAYOUT, tag, "");
        let key = |rest: &str| [stem.as_str(), rest].concat();
        Self {
            held: key("held"),
            line: key("line"),
            who: key("who"),
            stem,
        }
    }

    /// Where it is noted that this owner wants it no more.
    fn mark(&self, owner: OwnerId) -> String {
        let digits = owner.digits();
        let digits = std::str::from_utf8(&digits).unwrap_or_default();
        [self.stem.as_str(), "x:", digits].concat()
    }
}

impl RedisStore {
    pub(crate) fn new(backend: &Backend, redis: &Redis) -> Self {
        Self {
            backend: backend.clone(),
            server: Server::new(redis),
            gathers: matches!(backend.kind(), "redis-single" | "redis-sentinel"),
        }
    }

    fn keys(&self, name: &Name) -> Keys {
        Keys::new(&self.backend, name.tag())
    }

    /// Asks together with others, if that can be, and tells what came of it if that is known by then.
    async fn together(
        &self,
        what: What,
        name: &Name,
        terms: &Terms,
        until: Instant,
    ) -> Result<Done, Error> {
        if !self.gathers {
            return Ok(Done::Open);
        }
        let request = Request {
            what,
            keys: self.keys(name),
            terms: terms.clone(),
            until,
        };
        self.server.clone().call(request).await
    }

    /// Where who asks is told of a grant.
    async fn waiting<'a>(
        &self,
        call: ScriptCall<'a>,
        wake: &str,
        until: Instant,
    ) -> Result<ScriptCall<'a>, Error> {
        let command = self.server.redis.publish_command(left(until)).await?;
        Ok(call.arg(command).arg(self.backend.channel(wake)))
    }

    /// Which run of the server this is, and for how long it has been up.
    pub(crate) async fn birth(&self, deadline: Duration) -> Result<Birth, Error> {
        let call = Call::new("INFO", Class::Idempotent).arg("server");
        let info = self.server.redis.call(call, deadline).await?.bytes()?;
        let info = String::from_utf8_lossy(&info.unwrap_or_default()).into_owned();
        let field = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value)
        };
        let up = field("uptime_in_seconds").and_then(|up| up.parse().ok());
        let birth = field("run_id").zip(up).map(|(run, up)| Birth {
            run: run.to_owned(),
            up: Duration::from_secs(up),
        });
        let text = "INFO does not tell the run_id and the uptime_in_seconds of the server";
        birth.ok_or_else(|| Error::new(ErrorKind::Corrupt, text))
    }

    /// Waits for replicas. They acknowledge what was written by the connection that asks, and all that the server wrote before: so one
    /// that nobody else uses writes something that nobody reads. It may lead to another server by now than to the one that granted the
    /// lock, whose replicas know nothing of it: so it looks for the owner first.
    pub(crate) async fn replicated(
        &self,
        name: &Name,
        owner: OwnerId,
        (replicas, patience): (u32, Duration),
        deadline: Duration,
    ) -> Result<u32, Error> {
        let held = self.keys(name).held;
        let mut own = self.server.redis.dedicated(&held, deadline).await?;
        let look = Call::new("GET", Class::Idempotent).key(held);
        let value = own.call(look, deadline).await?.bytes()?;
        if !value.is_some_and(|value| wire::is_held_by(&value, owner)) {
            own.release();
            return Ok(0);
        }
        let touch = Call::new("SET", Class::Idempotent);
        let touch = touch.key(format!("{}wait", self.keys(name).stem));
        own.call(touch.arg("1").arg("PX").int(1_000), deadline)
            .await?;
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let wait = Call::new("WAIT", Class::Idempotent).int(replicas.into());
        // Nought would be for ever.
        let wait = wait.int(millis.max(1));
        let acked = own.call(wait, patience + deadline).await?.int()?;
        own.release();
        u32::try_from(acked).map_err(|_| corrupt())
    }

    async fn release_in_line(
        &self,
        name: &Name,
        terms: &Terms,
        abandoned: bool,
        until: Instant,
    ) -> Result<Outcome, Error> {
        // What is abandoned leaves a mark.
        if !abandoned {
            let asked = self.together(What::Release, name, terms, until).await?;
            if let Done::Released(outcome) = asked {
                return Ok(outcome);
            }
        }
        let call = self
            .server
            .releasing(&self.keys(name), terms, abandoned, None);
        outcome(run(call, left(until)).await?.int()?)
    }

    async fn renew_some(
        &self,
        leases: &[(Name, Terms)],
        how: Prolong,
        deadline: Duration,
    ) -> Result<Vec<Outcome>, Error> {
        let held = |(name, _): &(Name, Terms)| self.keys(name).held;
        let keys: Vec<String> = leases.iter().map(held).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut call = self.server.script(&RENEW, &keys).arg(match how {
            Prolong::Keep => "k",
            Prolong::Take => "t",
        });
        for (_, terms) in leases {
            call = call.arg(wire::packed(terms));
        }
        let outcomes = run(call, deadline).await?.list()?;
        if outcomes.len() != leases.len() {
            return Err(corrupt());
        }
        let told = |reply: Reply| match reply.int()? {
            // A later version has it. The others are not to be lost for that.
            -1 => Ok(Outcome::Other),
            number => outcome(number),
        };
        outcomes.into_iter().map(told).collect()
    }

    async fn look_at(&self, keys: &Keys, deadline: Duration) -> Result<Seen, Error> {
        let call = self
            .server
            .script(&LOOK, &[&keys.held, &keys.line, &keys.who]);
        Answer::of(run(call, deadline).await?)?.seen()
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

async fn run(call: ScriptCall<'_>, deadline: Duration) -> Result<Reply, Error> {
    call.run(deadline).await.map_err(|error| {
        // Something that is no lock is stored under one of the keys.
        let foreign = matches!(error.kind(), ErrorKind::Server(prefix) if &**prefix == "WRONGTYPE");
        match foreign {
            true => corrupt().with_source(error),
            false => error,
        }
    })
}

impl Store for RedisStore {
    async fn acquire(
        &self,
        name: &Name,
        terms: &Terms,
        wake: Option<&str>,
        deadline: Duration,
    ) -> Result<Acquired, Error> {
        let until = Instant::now() + deadline;
        // Who would stand in line knows that somebody else has it.
        if wake.is_none() && terms.fence == FenceMode::Clock {
            let asked = self.together(What::Acquire, name, terms, until).await?;
            if let Done::Acquired(acquired) = asked {
                return Ok(acquired);
            }
        }
        let call = self.server.acquiring(&self.keys(name), terms);
        let call = match wake {
            Some(wake) => self.waiting(call, wake, until).await?,
            None => call,
        };
        Answer::acquired(run(call, left(until)).await?, terms)
    }

    async fn acquire_all(
        &self,
        asked: &[(Name, Terms)],
        deadline: Duration,
    ) -> Result<Option<Vec<Grant>>, Error> {
        let Some((_, first)) = asked.first() else {
            return Ok(Some(Vec::new()));
        };
        let memory = wire::memory(first);
        let alike =
            |terms: &Terms| terms.fence == FenceMode::Clock && wire::memory(terms) == memory;
        // On a cluster each is in a slot of its own.
        if !self.gathers || asked.len() > MOST || !asked.iter().all(|(_, terms)| alike(terms)) {
            return Ok(None);
        }
        let keyed = asked.iter().map(|(name, terms)| (self.keys(name), terms));
        let keyed: Vec<_> = keyed.collect();
        let reply = run(self.server.acquiring_all(&keyed, memory), deadline).await?;
        let grant = wire::granted(reply)?;
        Ok(grant.map(|grant| vec![grant; asked.len()]))
    }

    async fn release(
        &self,
        name: &Name,
        terms: &Terms,
        abandoned: bool,
        next: Next<'_>,
        deadline: Duration,
    ) -> Result<(Outcome, Option<Acquired>), Error> {
        let until = Instant::now() + deadline;
        let (how, heir, wake) = match next {
            Next::InLine => {
                return Ok((
                    self.release_in_line(name, terms, abandoned, until).await?,
                    None,
                ));
            }
            Next::Pass(heir, wake) => ("p", heir, wake),
            Next::Yield(heir, wake) => ("y", heir, wake),
        };
        let keys = self.keys(name);
        let call = self
            .server
            .releasing(&keys, terms, abandoned, Some(heir.owner));
        let call = asking(call.arg(how), heir);
        let call = self.waiting(call, wake, until).await?;
        let (outcome, acquired) = Answer::of(run(call, left(until)).await?)?.released(heir)?;
        Ok((outcome, Some(acquired)))
    }

    async fn renew(
        &self,
        leases: &[(Name, Terms)],
        deadline: Duration,
    ) -> Result<Vec<Outcome>, Error> {
        // On a cluster one call has keys of one slot.
        let size = match self.backend.kind() {
            "redis-cluster" => 1,
            _ => BATCH,
        };
        let renewals = leases.chunks(size);
        let renewals: Vec<_> = renewals
            .map(|some| self.renew_some(some, Prolong::Keep, deadline))
            .collect();
        // All are sent, whatever comes of one.
        let renewals = stream::iter(renewals).buffered(CONCURRENT);
        let renewed: Vec<_> = renewals.collect().await;
        let renewed: Result<Vec<_>, _> = renewed.into_iter().collect();
        Ok(renewed?.concat())
    }

    async fn extend(
        &self,
        name: &Name,
        terms: &Terms,
        deadline: Duration,
    ) -> Result<Outcome, Error> {
        let lease = [(name.clone(), terms.clone())];
        let extended = self.renew_some(&lease, Prolong::Take, deadline).await?;
        extended.first().copied().ok_or_else(corrupt)
    }

    async fn look(&self, name: &Name, deadline: Duration) -> Result<Seen, Error> {
        self.look_at(&self.keys(name), deadline).await
    }

    async fn force(&self, name: &Name, deadline: Duration) -> Result<Vec<OwnerId>, Error> {
        let Keys {
            held, line, who, ..
        } = &self.keys(name);
        let call = self.server.script(&FORCE, &[held, line, who]);
        Answer::of(run(call, deadline).await?)?.owners()
    }

    async fn list(&self, prefix: &str, deadline: Duration) -> Result<Vec<String>, Error> {
        self.held_with(prefix, Instant::now() + deadline).await
    }
}
