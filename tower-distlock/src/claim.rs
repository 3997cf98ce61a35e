//! One acquisition: from before the store is asked until the lock is let go of. Whatever happens in between, dropping it leaves
//! nothing behind.

use std::{sync::Arc, time::Duration};

use redis_conn::{Error, ErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    Durability, LockError, LockOptions,
    lease::{Lease, Moment},
    line::{Place, Waiter, Word},
    mail::Addressee,
    name::Name,
    options::Wait,
    owner::random,
    shared::{PAUSE, Shared},
    store::{Acquired, Busy, CLAIM, Grant, Outcome, Store},
    terms::{Mode, Seats, Terms},
    watchdog::{Watched, third},
};

/// Who waits asks the store this often, in case that no word came: a lease that ends tells nobody.
const FALLBACK: Duration = Duration::from_secs(1);

pub(crate) struct Claim {
    shared: Arc<Shared>,
    name: Name,
    terms: Terms,
    state: State,
}

enum State {
    /// The store knows nothing of it.
    Nothing,
    /// It may be granted, or stand in line. Whether an answer is still to come.
    Asked {
        unanswered: bool,
    },
    Held(Lease, u64),
}

impl Claim {
    /// Acquires a lock, and has as many know of it as must.
    pub(crate) async fn acquire(
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
            let store = &shared.store;
            let known = store.replicated(&claim.name, (n, timeout), shared.timeout);
            let acked = known.await?;
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
            return Err(Error::new(
                ErrorKind::Closed,
                "the locks were closed with their backend",
            )
            .into());
        }
        let mut claim = Self {
            shared: Arc::clone(shared),
            terms: shared.terms(options, mode, seats),
            name,
            state: State::Nothing,
        };
        let begun = Instant::now();
        let waits = options.wait != Wait::Once;
        let alone = mode == Mode::Alone && !options.fair;
        // Whoever of this process came before has its turn first, and who waits in order of arrival begins at once.
        let lines_up = waits && (options.fair || alone && shared.lines.has_waiters(&claim.name));
        let mut met = Met::default();
        if !lines_up {
            match claim.ask(None, options).await {
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
        let until = match options.wait {
            Wait::For(wait) => begun.checked_add(wait),
            Wait::Once | Wait::Forever => None,
        };
        let waiting = Waiting {
            claim: &mut claim,
            options,
            until,
            asked: None,
            met,
        };
        match waiting.run(alone).await? {
            Ok(()) => Ok(claim),
            Err(met) => Err(met.failure.unwrap_or(LockError::TimedOut {
                waited: begun.elapsed(),
                owner: met.owner,
            })),
        }
    }

    /// Asks the store once. `None` if it is granted.
    async fn ask(
        &mut self,
        wake: Option<&str>,
        options: &LockOptions,
    ) -> Result<Option<Busy>, LockError> {
        let shared = Arc::clone(&self.shared);
        let sent = shared.now();
        self.state = State::Asked { unanswered: true };
        let asking = shared
            .store
            .acquire(&self.name, &self.terms, wake, shared.timeout);
        let hearing = async {
            shared.hear_of_force().await;
            Ok(())
        };
        let (acquired, ()) = tokio::try_join!(asking, hearing)?;
        self.state = match (&acquired, wake) {
            (Acquired::Busy(_), None) => State::Nothing,
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
    fn granted(
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
        self.state = State::Held(lease, grant.fence);
        Ok(())
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
            State::Nothing | State::Asked { .. } => None,
        }
    }

    /// Prolongs it now.
    pub(crate) async fn extend(&self, ttl: Duration) -> Result<Outcome, Error> {
        let (shared, sent) = (&self.shared, self.shared.now());
        let terms = Terms {
            ttl,
            ..self.terms.clone()
        };
        let lease = [(self.name.clone(), terms)];
        let renewed = shared.store.renew(&lease, shared.timeout).await?;
        let outcome = renewed.first().copied().unwrap_or(Outcome::Absent);
        if outcome == Outcome::Held {
            shared.watchdog.extend(self.terms.owner, ttl, sent);
        }
        Ok(outcome)
    }

    /// Lets go of it.
    pub(crate) async fn release(mut self) -> Result<Outcome, Error> {
        self.shared.watchdog.forget(self.terms.owner);
        let released = self
            .shared
            .release(&self.name, &self.terms, true, false)
            .await;
        if released.is_ok() {
            self.state = State::Nothing;
        } else {
            // The line was told already.
            self.state = State::Asked { unanswered: true };
        }
        released
    }

    /// Lets it go on for so long, without anybody who renews it.
    pub(crate) async fn leave(mut self, rest: Duration) -> Result<Outcome, Error> {
        self.shared.watchdog.forget(self.terms.owner);
        self.state = State::Nothing;
        let until = Instant::now() + rest;
        self.shared.leave(&self.name, &self.terms, until).await
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (held, abandoned) = match self.state {
            State::Nothing => return,
            State::Asked { unanswered } => (false, unanswered),
            State::Held(..) => (true, false),
        };
        self.shared.watchdog.forget(self.terms.owner);
        self.shared
            .release_later(&self.name, &self.terms, held, abandoned);
    }
}

/// What somebody met who waits.
#[derive(Default)]
struct Met {
    /// Who held it last.
    owner: String,
    /// Why the store could not be asked the last time.
    failure: Option<LockError>,
}

/// Somebody who waits for a lock.
struct Waiting<'a> {
    claim: &'a mut Claim,
    options: &'a LockOptions,
    until: Option<Instant>,
    asked: Option<Asked>,
    met: Met,
}

/// When the store was asked for a place in line first, by both clocks.
#[derive(Clone, Copy)]
struct Asked {
    sent: Moment,
    at: u64,
}

/// What came of asking for a place in line.
enum Asking {
    Granted,
    /// It is asked again after so long, if nothing comes before.
    Again(Duration),
    Late,
}

impl Waiting<'_> {
    /// Waits until it is granted, or too late.
    async fn run(mut self, alone: bool) -> Result<Result<(), Met>, LockError> {
        let shared = Arc::clone(&self.claim.shared);
        let name = self.claim.name.clone();
        let (words, mut heard) = mpsc::unbounded_channel();
        let mail = shared
            .mail
            .expect(&name, self.claim.terms.owner, words.clone());
        let waiter = Waiter {
            terms: self.claim.terms.clone(),
            wake: Arc::clone(mail.channel()),
            words,
        };
        let place = alone.then(|| shared.lines.join(&name, waiter));
        // From here on somebody of this process may hand it over.
        if matches!(self.claim.state, State::Nothing) {
            self.claim.state = State::Asked { unanswered: false };
        }
        let mut is_due = false;
        loop {
            let is_next = place.as_ref().is_none_or(Place::is_first);
            let pause = if !is_next {
                None
            } else if alone && !is_due && shared.lines.is_held(&name) {
                // Whoever of this process holds it hands it over, or has it stand in line. Then a grant may be sent.
                self.met.failure = mail.listen().await.err().map(LockError::from);
                Some(FALLBACK)
            } else {
                match self.ask(&mail).await? {
                    Asking::Granted => return Ok(Ok(())),
                    Asking::Again(pause) => Some(pause),
                    Asking::Late => return Ok(Err(self.met)),
                }
            };
            is_due = false;
            tokio::select! {
                biased;
                word = heard.recv() => match word {
                    Some(Word::Handed(grant, sent)) => return self.handed(grant, sent).map(Ok),
                    Some(Word::InLine(sent, at)) => {
                        self.asked.get_or_insert(Asked { sent, at });
                    }
                    Some(Word::Sent(grant, received)) => match self.asked {
                        Some(asked) => return self.sent(grant, received, asked).map(Ok),
                        // Its time is not known: asking again tells.
                        None => is_due = true,
                    },
                    Some(Word::Ask) | None => {}
                },
                () = optional(self.until) => return Ok(Err(self.met)),
                () = after(pause) => is_due = true,
            }
        }
    }

    /// Asks for a place in line, or is heard of there again.
    async fn ask(&mut self, mail: &Addressee<'_>) -> Result<Asking, LockError> {
        let (claim, options) = (&mut *self.claim, self.options);
        let asking = async {
            mail.listen().await?;
            let sent = claim.shared.now();
            let busy = claim.ask(Some(mail.channel()), options).await?;
            Ok((sent, busy))
        };
        let asked = match self.until {
            Some(until) => match timeout_at(until, asking).await {
                Ok(asked) => asked,
                Err(_) => return Ok(Asking::Late),
            },
            None => asking.await,
        };
        match asked {
            Ok((_, None)) => Ok(Asking::Granted),
            Ok((sent, Some(busy))) => {
                self.asked.get_or_insert(Asked { sent, at: busy.at });
                let pause = (busy.remaining + jitter(20)).min(FALLBACK + jitter(250));
                self.met = Met {
                    owner: busy.instance,
                    failure: None,
                };
                Ok(Asking::Again(pause))
            }
            Err(error) if LockError::is_outage(&error) => {
                self.met.failure = Some(error);
                Ok(Asking::Again(PAUSE + jitter(20)))
            }
            Err(error) => Err(error),
        }
    }

    fn handed(self, grant: Grant, sent: Moment) -> Result<(), LockError> {
        let until = sent.end_of(self.claim.terms.ttl);
        self.claim.granted(grant, sent, until, self.options)
    }

    /// A grant came by a message. It was made no later than it came, and so long after the first question as the store's clock says.
    fn sent(self, grant: Grant, received: Moment, asked: Asked) -> Result<(), LockError> {
        let since = Duration::from_micros(grant.at.saturating_sub(asked.at));
        let granted = asked.sent.plus(since).earlier(received);
        let until = granted.end_of(self.claim.terms.ttl.min(CLAIM));
        self.claim.granted(grant, granted, until, self.options)
    }
}

/// Up to so many milliseconds, so that not all ask at the same time.
fn jitter(millis: u64) -> Duration {
    Duration::from_micros(random() % (millis * 1_000))
}

async fn optional(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}
