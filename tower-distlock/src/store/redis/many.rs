//! What is asked of the server for a lock: by itself, or with what others ask where one server has all locks.

use std::sync::Arc;

use redis_conn::{
    Error,
    raw::{Class, Courier, Gather, Redis, Script, ScriptCall},
};
use tokio::time::Instant;

use super::{
    Keys, left, run,
    scripts::{ACQUIRE, ALL, MANY, RELEASE},
    wire::{self, Answer, done, outcome},
};
use crate::{
    OwnerId,
    store::{Acquired, Grant, Outcome},
    terms::Terms,
};

/// So many calls are under way at most before others wait: one is decided while the other is on its way.
const FLIGHTS: usize = 2;
/// So many go together at most.
pub(super) const MOST: usize = 128;

/// What the scripts are called on, and where calls gather.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) redis: Redis,
    gather: Arc<Gather<Request, Done>>,
}

/// What can be asked together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is asked for by the clock, without a place in line.
    Acquire,
    /// What is held is let go of, whoever is next.
    Release,
}

/// One of those, by somebody.
pub(super) struct Request {
    pub(super) what: What,
    pub(super) keys: Keys,
    pub(super) terms: Terms,
    pub(super) until: Instant,
}

/// What came of it.
pub(super) enum Done {
    Acquired(Acquired),
    Released(Outcome),
    /// Nothing yet: it is to be asked by itself.
    Open,
}

type Waiting = redis_conn::raw::Waiting<Request, Done>;

impl Server {
    pub(super) fn new(redis: &Redis) -> Self {
        Self {
            redis: redis.clone(),
            gather: Arc::new(Gather::new(Class::Idempotent, FLIGHTS, MOST)),
        }
    }

    /// All about locks goes one way: what lets go of one must not come before what asked for it.
    pub(super) fn script(&self, script: &'static Script, keys: &[&str]) -> ScriptCall<'_> {
        self.redis
            .script(script, Class::Idempotent, keys)
            .in_order()
    }

    pub(super) fn acquiring(&self, keys: &Keys, terms: &Terms) -> ScriptCall<'_> {
        let Keys {
            held, line, who, ..
        } = keys;
        let mark = keys.mark(terms.owner);
        wire::asking(self.script(&ACQUIRE, &[held, line, who, &mark]), terms)
    }

    /// With the mark of who has it next.
    pub(super) fn releasing(
        &self,
        keys: &Keys,
        terms: &Terms,
        abandoned: bool,
        heir: Option<OwnerId>,
    ) -> ScriptCall<'_> {
        let Keys {
            held, line, who, ..
        } = keys;
        let (mark, heir) = (keys.mark(terms.owner), heir.map(|heir| keys.mark(heir)));
        let all = [held, line, who, &mark, heir.as_deref().unwrap_or_default()];
        let count = if heir.is_some() { 5 } else { 4 };
        self.script(&RELEASE, &all[..count])
            .arg(wire::packed(terms))
            .int(wire::memory(terms))
            .arg(if abandoned { "a" } else { "r" })
            .int(wire::ttl_millis(terms))
    }

    /// These or none, of the same memory.
    pub(super) fn acquiring_all(&self, asked: &[(Keys, &Terms)], memory: u64) -> ScriptCall<'_> {
        let marks = asked.iter().map(|(keys, terms)| keys.mark(terms.owner));
        let marks: Vec<_> = marks.collect();
        let held = asked.iter().map(|(keys, _)| keys.held.as_str());
        let keys = held.zip(&marks).flat_map(|(held, mark)| [held, mark]);
        let keys: Vec<_> = keys.collect();
        let call = self.script(&ALL, &keys).int(memory);
        asked
            .iter()
            .fold(call, |call, (_, terms)| call.arg(wire::packed(terms)))
    }

    fn all(&self, batch: &[Waiting]) -> ScriptCall<'_> {
        let marks: Vec<_> = batch.iter().map(|waiting| waiting.request.mark()).collect();
        let (mut keys, mut letters) = (Vec::with_capacity(2 * batch.len()), String::new());
        for (waiting, mark) in batch.iter().zip(&marks) {
            let Request {
                what, keys: its, ..
            } = &waiting.request;
            keys.push(its.held.as_str());
            keys.extend(mark.as_deref());
            letters.push(match what {
                What::Acquire => 'a',
                What::Release => 'r',
            });
        }
        let call = self.script(&MANY, &keys).arg(letters);
        batch.iter().fold(call, |call, waiting| {
            call.arg(wire::packed(&waiting.request.terms))
        })
    }
}

impl Request {
    fn mark(&self) -> Option<String> {
        let asks = self.what == What::Acquire;
        asks.then(|| self.keys.mark(self.terms.owner))
    }

    fn done(&self, at: u64) -> Done {
        match self.what {
            What::Acquire => Done::Acquired(Acquired::Granted(Grant { fence: at, at })),
            What::Release => Done::Released(Outcome::Held),
        }
    }
}

impl Courier for Server {
    type Request = Request;
    type Answer = Done;

    fn gather(&self) -> &Gather<Request, Done> {
        &self.gather
    }

    fn redis(&self) -> &Redis {
        &self.redis
    }

    fn until(request: &Request) -> Instant {
        request.until
    }

    async fn one(&self, request: &Request) -> Result<Done, Error> {
        let Request {
            keys, terms, until, ..
        } = request;
        match request.what {
            What::Acquire => {
                let reply = run(self.acquiring(keys, terms), left(*until)).await?;
                Answer::acquired(reply, terms).map(Done::Acquired)
            }
            What::Release => {
                let call = self.releasing(keys, terms, false, None);
                let met = run(call, left(*until)).await?.int()?;
                outcome(met).map(Done::Released)
            }
        }
    }

    async fn many(&self, batch: Vec<Waiting>) {
        let reply = run(self.all(&batch), Waiting::time_left(&batch)).await;
        match reply.and_then(|reply| done(reply, batch.len())) {
            Ok((at, all)) => {
                for (waiting, is_done) in batch.into_iter().zip(all) {
                    let done = match is_done {
                        true => waiting.request.done(at),
                        false => Done::Open,
                    };
                    waiting.answer(Ok(done));
                }
            }
            Err(error) => {
                for waiting in batch {
                    waiting.answer(Err(error.clone()));
                }
            }
        }
    }
}
