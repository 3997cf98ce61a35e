//! One acquisition: from before the store is asked until the lock is let go of. Whatever happens in between, dropping it leaves
//! nothing behind.

use std::{pin::pin, sync::Arc, time::Duration};

use redis_conn::{Error, ErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    Durability, LockError, LockOptions,
    lease::{Lease, Moment},
    line::Word,
    metrics::{self, Holding},
    name::Name,
    options::Wait,
    shared::{Leaving, Shared},
    store::{Acquired, Busy, Grant, Outcome, Store, record::disagreement},
    terms::{Mode, Seats, Terms},
    waiting::{Met, Waiting, closed},
    watchdog::{Watched, third},
};

mod together;

/// No answer of a healthy store takes so long: what does may have been sent on two connections.
const SLOW: Duration = Duration::from_millis(100);

pub(crate) struct Claim {
    shared: Arc<Shared>,
    name: Name,
    terms: Terms,
    state: State,
    /// Where it heard that it has the lock, if it waited. While this is there, nobody who passes the lock on takes it for given up: it may
    /// have been granted by the answer to a question of its own, and held, before word of the same came.
    heard: Option<mpsc::UnboundedReceiver<Word>>,
    /// A question may be on its way still that has no answer, or has one to a copy of it: what is let go of then says so for good.
    doubtful: bool,
    holding: Holding,
}

enum State {
    /// The store knows nothing of it.
    Nothing,
    /// It may be granted, or stand in line. Whether an answer is still to come.
    Asked {
        unanswered: bool,
    },
    Held(Lease, u64),
    /// Its release was begun, and has no answer.
    Released,
}

impl Claim {
    /// Acquires a lock, and has as many know of it as must.
    pub(crate) async fn acquire(
        shared: &Arc<Shared>,
        name: Name,
        kind: (Mode, Seats),
        options: &LockOptions,
    ) -> Result<Self, LockError> {
        let acquiring = metrics::Acquiring::begin();
        let acquired = Self::acquire_known(shared, name, kind, options).await;
        acquiring.end(acquired.as_ref().err());
        acquired
    }

    async fn acquire_known(
        shared: &Arc<Shared>,
        name: Name,
        kind: (Mode, Seats),
        options: &LockOptions,
    ) -> Result<Self, LockError> {
        if options.durability != Durability::Primary {
            shared.store.has_replicas()?;
        }
        let claim = Self::acquire_here(shared, name, kind, options).await?;
        if let Durability::Replicas { n, timeout } = options.durability {
            let (store, owner) = (&shared.store, claim.terms.owner);
            let known = store.replicated(&claim.name, owner, (n, timeout), shared.timeout);
            // In a box, as all that few locks come to: every future that acquires has the room for it.
            let acked = Box::pin(known).await?;
            if acked < n {
                let required = n;
                return Err(LockError::NotReplicated { acked, required });
            }
        }
        Ok(claim)
    }

    async fn acquire_here(
        shared: &Arc<Shared>,
        name: Name,
        (mode, seats): (Mode, Seats),
        options: &LockOptions,
    ) -> Result<Self, LockError> {
        options.check()?;
        if shared.is_closed() {
            return Err(closed());
        }
        let mut claim = Self::new(shared, name, shared.terms(options, mode, seats));
        let begun = Instant::now();
        let waits = options.wait != Wait::Once;
        // A mutex that its process may hand on. Who writes must stand in the line of the store, where readers see it.
        let alone = mode == Mode::Alone && seats == Seats::Some(1) && !options.fair;
        // Whoever of this process came before has its turn first, and who waits in order of arrival begins at once.
        let lines_up = waits && (options.fair || alone && shared.lines.has_waiters(&claim.name));
        let until = match options.wait {
            Wait::For(wait) => begun.checked_add(wait),
            Wait::Once | Wait::Forever => None,
        };
        let mut met = Met::default();
        if !lines_up {
            match claim.ask_until(until, options).await {
                Ok(None) => return Ok(claim),
                Ok(Some(busy)) if waits => met.owner = busy.instance,
                Ok(Some(busy)) => {
                    return Err(LockError::NotAcquired {
                        owner: busy.instance,
                        remaining: busy.remaining,
                    });
                }
                Err(error) if error.is_outage() && waits => met.failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        let waiting = Waiting {
            claim: &mut claim,
            options,
            until,
            asked: None,
            met,
        };
        match Box::pin(waiting.run(alone)).await? {
            Ok(()) => Ok(claim),
            Err(met) => Err(met.failure.unwrap_or(LockError::TimedOut {
                waited: begun.elapsed(),
                owner: met.owner,
            })),
        }
    }

    fn new(shared: &Arc<Shared>, name: Name, terms: Terms) -> Self {
        Self {
            shared: Arc::clone(shared),
            name,
            terms,
            state: State::Nothing,
            heard: None,
            doubtful: false,
            holding: Holding::none(),
        }
    }

    async fn ask_until(
        &mut self,
        until: Option<Instant>,
        options: &LockOptions,
    ) -> Result<Option<Busy>, LockError> {
        let asking = pin!(self.ask(None, options));
        match until {
            Some(until) => timeout_at(until, asking).await.map_err(|_| late())?,
            None => asking.await,
        }
    }

    /// Asks the store once. `None` if it is granted.
    pub(crate) async fn ask(
        &mut self,
        wake: Option<&str>,
        options: &LockOptions,
    ) -> Result<Option<Busy>, LockError> {
        let shared = Arc::clone(&self.shared);
        let sent = shared.now();
        self.doubtful |= matches!(self.state, State::Asked { unanswered: true });
        self.state = State::Asked { unanswered: true };
        let asking = shared
            .store
            .acquire(&self.name, &self.terms, wake, shared.timeout);
        let hearing = async {
            shared.hear_of_force().await;
            Ok(())
        };
        let (acquired, ()) = tokio::try_join!(asking, hearing)?;
        // It may have been sent twice.
        self.doubtful |= sent.at.elapsed() >= SLOW;
        self.state = match (&acquired, wake) {
            (Acquired::Busy(_), None) if !self.doubtful => State::Nothing,
            _ => State::Asked { unanswered: false },
        };
        match acquired {
            Acquired::Granted(grant) => {
                self.granted(grant, sent, sent.end_of(self.terms.ttl), options)?;
                Ok(None)
            }
            Acquired::Busy(busy) => Ok(Some(busy)),
            // Nobody else has this owner, and it is not let go of before this is dropped.
            Acquired::Abandoned => {
                let text = "the store takes this acquisition for abandoned";
                Err(Error::new(ErrorKind::Corrupt, text).into())
            }
        }
    }

    /// It is held until then at least.
    pub(crate) fn granted(
        &mut self,
        grant: Grant,
        since: Moment,
        until: Moment,
        options: &LockOptions,
    ) -> Result<(), LockError> {
        let lease = Lease::new(until, self.shared.backend.clock());
        if lease.why_lost().is_some() {
            return Err(LockError::TtlTooShort {
                ttl: self.terms.ttl,
                took: since.at.elapsed(),
            });
        }
        // A grant that was sent lasts for a moment only, and is confirmed by a renewal.
        let is_claim = until != since.end_of(self.terms.ttl);
        let renewal = if is_claim {
            Instant::now()
        } else {
            Instant::now() + third(self.terms.ttl)
        };
        let watched = Watched {
            name: self.name.clone(),
            terms: self.terms.clone(),
            lease: lease.clone(),
            fence: grant.fence,
            since: since.at,
            renews: options.renew,
            renew_at: (options.renew || is_claim).then_some(renewal),
            most: options
                .longest()
                .and_then(|most| since.at.checked_add(most)),
            warn_at: since.at.checked_add(options.warn_after),
        };
        self.shared.lines.hold(&self.name);
        self.shared.watchdog.watch(&self.shared, watched);
        self.holding = Holding::of(&lease);
        self.state = State::Held(lease, grant.fence);
        // Whoever closes takes what is watched by then. What comes later is let go of at once.
        if self.shared.is_closed() {
            return Err(closed());
        }
        Ok(())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// It was granted to who waited, who heard of it there.
    pub(crate) fn heard(&mut self, words: mpsc::UnboundedReceiver<Word>) {
        self.heard = Some(words);
    }

    /// From now on somebody of this process may hand it over.
    pub(crate) fn may_be_handed_over(&mut self) {
        if matches!(self.state, State::Nothing) {
            self.state = State::Asked { unanswered: false };
        }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The lease and the fence.
    pub(crate) fn held(&self) -> Option<(&Lease, u64)> {
        match &self.state {
            State::Held(lease, fence) => Some((lease, *fence)),
            State::Nothing | State::Asked { .. } | State::Released => None,
        }
    }

    /// Whether who holds this may have what is asked for besides.
    ///
    /// # Errors
    ///
    /// `Config` if that is more, or another kind of lock: who reads does not come to write.
    pub(crate) fn covers(&self, (mode, seats): (Mode, Seats)) -> Result<(), Error> {
        if self.terms.seats != seats {
            return Err(disagreement(self.terms.seats, seats));
        }
        if self.terms.mode == Mode::Together && mode == Mode::Alone {
            let text = "the owner reads under this lock: expected to release that before it writes";
            return Err(Error::new(ErrorKind::Config, text));
        }
        Ok(())
    }

    /// Prolongs it now.
    pub(crate) async fn extend(&self, ttl: Duration) -> Result<Outcome, Error> {
        let (shared, sent) = (&self.shared, self.shared.now());
        let terms = Terms {
            ttl,
            ..self.terms.clone()
        };
        // A shorter one may be in force as soon as it is asked for, also if no answer comes.
        shared.watchdog.shorten(self.terms.owner, ttl, sent);
        let extending = shared.store.extend(&self.name, &terms, shared.timeout);
        let outcome = extending.await?;
        if outcome == Outcome::Held {
            shared.watchdog.extend(self.terms.owner, ttl, sent);
        }
        Ok(outcome)
    }

    /// It is not watched over any more.
    fn end(&mut self) {
        if let Some(watched) = self.shared.watchdog.forget(self.terms.owner) {
            // It may have been extended.
            self.terms.ttl = self.terms.ttl.max(watched.terms.ttl);
        }
        if let State::Held(lease, _) = &self.state {
            lease.end();
        }
    }

    /// Lets go of it.
    pub(crate) async fn release(mut self) -> Result<Outcome, Error> {
        self.end();
        self.state = State::Released;
        let released = self
            .shared
            .release(&self.name, &self.terms, true, false)
            .await;
        if released.is_ok() && !self.doubtful {
            self.state = State::Nothing;
        }
        released
    }

    /// Lets it go on for so long, without anybody who renews it.
    pub(crate) async fn leave(mut self, rest: Duration) -> Result<Outcome, Error> {
        self.end();
        self.state = State::Nothing;
        let until = Instant::now() + rest;
        self.shared.leave(&self.name, &self.terms, until).await
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let doubtful = self.doubtful;
        let leaving = match self.state {
            State::Nothing => return,
            State::Asked { unanswered } => Leaving::Asked {
                unanswered: unanswered || doubtful,
            },
            State::Held(..) => Leaving::Held { doubtful },
            State::Released => Leaving::Released,
        };
        self.end();
        self.shared.release_later(&self.name, &self.terms, leaving);
    }
}

fn late() -> LockError {
    let text = "the store had no answer for as long as was waited";
    Error::new(ErrorKind::Timeout, text).into()
}
