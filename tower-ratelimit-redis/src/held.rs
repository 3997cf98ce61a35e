//! One permit: where it is held, and that it is released.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use redis_conn::{Error, Subject};
use tokio::time::Instant;

use crate::{
    Policy,
    keeper::{Renewal, Word},
    shared::Shared,
    store::Permits,
};

/// A policy and a subject, by which permits are renewed and released together.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) policy: Policy,
    pub(crate) subject: Subject,
}

/// Where a permit is held, and that it is to be released. The limiter is there for as long as this is.
pub(crate) struct Held {
    limiter: Arc<Shared>,
    place: Place,
    name: u64,
    lease: Arc<Lease>,
    released: bool,
}

/// What is known of the lease of a permit.
#[derive(Default)]
pub(crate) struct Lease {
    /// The store has said that it has ended.
    lost: AtomicBool,
    /// Until when it lasts by what the store has said; none where nothing is held.
    until: Mutex<Option<Instant>>,
}

impl Held {
    /// Nothing is held yet, and what comes to be held is released when this is dropped.
    ///
    /// # Errors
    ///
    /// `Closed` if nobody could renew and release it.
    pub(crate) fn new(limiter: &Arc<Shared>, place: Place) -> Result<Self, Error> {
        limiter.keeper.run(limiter)?;
        Ok(Self {
            limiter: Arc::clone(limiter),
            place,
            name: crate::random::number(),
            lease: Arc::default(),
            released: false,
        })
    }

    pub(crate) fn name(&self) -> u64 {
        self.name
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.place.policy
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.place.subject
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lease.is_lost(Instant::now())
    }

    /// It is held since `asked_at` at the latest, and is renewed from now on.
    pub(crate) fn keep(&self, asked_at: Instant) {
        self.lease.lasts_from(asked_at, &self.place);
        let renewal = Renewal::new(&self.place, &self.lease, asked_at);
        self.limiter.keeper.keep(self.name, renewal);
    }

    /// Nothing is held.
    pub(crate) fn forget(&mut self) {
        self.released = true;
        self.limiter.keeper.forget(self.name);
    }

    /// Renews or releases it now. Tells whether it was held until now.
    pub(crate) async fn ask(&self, what: Permits) -> Result<bool, Error> {
        let (names, limiter) = ([self.name], &self.limiter);
        let held = limiter.permits(&self.place, what, &names, limiter.timeout);
        Ok(held.await?.first().copied().unwrap_or_default())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let keeper = &self.limiter.keeper;
        keeper.forget(self.name);
        let limiter = Arc::clone(&self.limiter);
        keeper.say(Word::Release(limiter, self.place.clone(), self.name));
    }
}

impl Lease {
    fn is_lost(&self, now: Instant) -> bool {
        let has_ended = |until: &Instant| *until <= now;
        self.lost.load(Ordering::Relaxed) || self.until().as_ref().is_some_and(has_ended)
    }

    /// The store has granted or renewed it, which was asked then.
    pub(crate) fn lasts_from(&self, asked_at: Instant, place: &Place) {
        *self.until() = Some(asked_at + place.policy.lease().unwrap_or_default());
    }

    /// The store has said that it has ended.
    pub(crate) fn ends(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
