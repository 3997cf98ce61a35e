//! Units that are held at the same time.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis_conn::Subject;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    Decision, Limiter, Policy, RateLimitError, Source,
    counter::Charge,
    counters::Ask,
    shared::Shared,
    store::{Asked, Permits, Store},
};

/// What [`Limiter::acquire`] came to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Acquired {
    /// All limits admit it, and the units of the concurrency limit are held.
    Held(Permit),
    /// A limit does not.
    Refused(Decision),
}

impl Acquired {
    /// The decision, whichever it is.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        match self {
            Self::Held(permit) => permit.decision(),
            Self::Refused(decision) => decision,
        }
    }

    /// The permit, if there is one.
    #[must_use]
    pub fn permit(self) -> Option<Permit> {
        match self {
            Self::Held(permit) => Some(permit),
            Self::Refused(_) => None,
        }
    }
}

/// Units of a concurrency limit that are held. Dropping it releases them.
///
/// While it lives, its lease is renewed every third of its length. One whose lease has ended all the same, because the store
/// was away for so long, [is lost](Self::is_lost): its units may be held by others.
#[must_use = "the units are released when the permit is dropped"]
pub struct Permit {
    held: Held,
    decision: Decision,
}

/// Where it is held, and that it is to be released.
struct Held {
    keeper: Arc<Keeper>,
    place: Place,
    name: u64,
    lost: Arc<AtomicBool>,
    released: bool,
}

/// A policy and a subject, by which permits are renewed and released together.
#[derive(Clone)]
struct Place {
    policy: Policy,
    subject: Subject,
}

impl Permit {
    pub(crate) async fn acquire(
        limiter: &Limiter,
        policy: &Policy,
        subject: Subject,
        units: u32,
    ) -> Result<Acquired, RateLimitError> {
        let place = Place {
            policy: policy.clone(),
            subject,
        };
        // Before anything is sent: what is given up on the way is released all the same.
        let held = limiter.keeper().hold(place);
        let charge = Charge {
            permit: held.name,
            ..Charge::of(units)
        };
        let asked = Asked::new(Ask::All, charge);
        let decision = limiter.decide(policy, &held.place.subject, asked).await?;
        if decision.is_allowed() {
            return Ok(Acquired::Held(Self { held, decision }));
        }
        if decision.source() == Source::Store {
            held.forget();
        }
        // Else the store may have granted it all the same, and hears that it is released.
        Ok(Acquired::Refused(decision))
    }

    /// The decision by which it was admitted.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Whether its lease has ended although it was to be renewed, as far as this process knows.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.held.lost.load(Ordering::Relaxed)
    }

    /// Releases it, and tells whether it was held until now.
    ///
    /// # Errors
    ///
    /// [`RateLimitError::Store`] if the store did not answer; then its lease ends by itself.
    ///
    /// # Cancel safety
    ///
    /// A dropped call is a permit that was dropped.
    pub async fn release(mut self) -> Result<bool, RateLimitError> {
        let Held {
            keeper,
            place,
            name,
            ..
        } = &self.held;
        let (keeper, place, name) = (Arc::clone(keeper), place.clone(), *name);
        let Some(inner) = keeper.limiter.upgrade() else {
            return Ok(false);
        };
        let held = inner.permits(&place, Permits::Release, &[name]).await?;
        self.held.released = true;
        keeper.registry().remove(&name);
        Ok(held.first().copied().unwrap_or_default())
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("policy", &self.held.place.policy.name())
            .field("lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}

impl Held {
    /// Nothing was acquired.
    fn forget(mut self) {
        self.released = true;
        self.keeper.registry().remove(&self.name);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        self.keeper.registry().remove(&self.name);
        // Nobody receives where the runtime has ended; then the lease ends by itself.
        let _ = self.keeper.releases.send((self.place.clone(), self.name));
    }
}

/// Renews the permits of this process, and releases those that are dropped.
pub(crate) struct Keeper {
    limiter: Weak<Shared>,
    held: Mutex<HashMap<u64, Renewal>>,
    releases: mpsc::UnboundedSender<(Place, u64)>,
}

/// A permit that is held, and when it is to be renewed.
struct Renewal {
    place: Place,
    due: Instant,
    lost: Arc<AtomicBool>,
}

impl Keeper {
    /// Begins a task on the runtime of the caller, which ends with the keeper.
    pub(crate) fn start(limiter: &Arc<Shared>) -> Arc<Self> {
        let (releases, dropped) = mpsc::unbounded_channel();
        let keeper = Arc::new(Self {
            limiter: Arc::downgrade(limiter),
            held: Mutex::default(),
            releases,
        });
        tokio::spawn(keep(Arc::downgrade(&keeper), dropped));
        keeper
    }

    fn hold(self: Arc<Self>, place: Place) -> Held {
        let lost = Arc::new(AtomicBool::new(false));
        let renewal = Renewal {
            due: Instant::now() + pause(&place.policy),
            place: place.clone(),
            lost: Arc::clone(&lost),
        };
        let name = crate::random::number();
        self.registry().insert(name, renewal);
        Held {
            keeper: self,
            place,
            name,
            lost,
            released: false,
        }
    }

    fn registry(&self) -> MutexGuard<'_, HashMap<u64, Renewal>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that are to be renewed by now, by the place where they are; and when the next is due.
    fn due(&self, now: Instant) -> (Gathered, Option<Instant>) {
        let mut due = Gathered::default();
        let mut held = self.registry();
        for (name, renewal) in held.iter_mut().filter(|(_, renewal)| renewal.due <= now) {
            renewal.due = now + pause(&renewal.place.policy);
            due.add(&renewal.place, *name);
        }
        let next = held.values().map(|renewal| renewal.due).min();
        (due, next)
    }

    async fn renew(&self, limiter: &Shared, place: &Place, names: &[u64]) {
        // Without an answer they may be held still; that is tried again.
        let Ok(renewed) = limiter.permits(place, Permits::Renew, names).await else {
            return;
        };
        let held = self.registry();
        for (name, renewed) in names.iter().zip(renewed) {
            if let Some(renewal) = held.get(name).filter(|_| !renewed) {
                renewal.lost.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("held", &self.registry().len())
            .finish_non_exhaustive()
    }
}

/// Names by their place, which is told apart by the name of the policy and the subject.
#[derive(Default)]
struct Gathered(HashMap<(Arc<str>, Subject), (Place, Vec<u64>)>);

impl Gathered {
    fn add(&mut self, place: &Place, name: u64) {
        let key = (
            Arc::clone(place.policy.shared_name()),
            place.subject.clone(),
        );
        let entry = self.0.entry(key);
        let (_, names) = entry.or_insert_with(|| (place.clone(), Vec::new()));
        names.push(name);
    }

    fn places(self) -> impl Iterator<Item = (Place, Vec<u64>)> {
        self.0.into_values()
    }
}

/// A third of the lease: two renewals may fail.
fn pause(policy: &Policy) -> Duration {
    policy.lease().unwrap_or_default() / 3
}

async fn keep(keeper: Weak<Keeper>, mut dropped: mpsc::UnboundedReceiver<(Place, u64)>) {
    /// Where nothing is held.
    const IDLE: Duration = Duration::from_secs(1);
    /// So many releases are gathered at most.
    const MANY: usize = 256;
    let mut released = Vec::new();
    loop {
        let Some(limiter) = keeper.upgrade().and_then(|keeper| keeper.limiter.upgrade()) else {
            return;
        };
        let mut next = None;
        // All at once: one place that has no answer holds up no other.
        let mut asking = JoinSet::new();
        if let Some(keeper) = keeper.upgrade() {
            let (due, then) = keeper.due(Instant::now());
            for (place, names) in due.places() {
                let (keeper, limiter) = (Arc::clone(&keeper), Arc::clone(&limiter));
                asking.spawn(async move { keeper.renew(&limiter, &place, &names).await });
            }
            next = then;
        }
        let mut gathered = Gathered::default();
        for (place, name) in released.drain(..) {
            gathered.add(&place, name);
        }
        for (place, names) in gathered.places() {
            let limiter = Arc::clone(&limiter);
            asking.spawn(async move {
                // Without an answer the lease ends by itself.
                let _ = limiter.permits(&place, Permits::Release, &names).await;
            });
        }
        drop(limiter);
        asking.join_all().await;
        let next = next.unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            received = dropped.recv_many(&mut released, MANY) => if received == 0 { return },
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

impl Shared {
    /// In the store, and in the fallback, which holds them too.
    async fn permits(
        &self,
        place: &Place,
        what: Permits,
        names: &[u64],
    ) -> Result<Vec<bool>, RateLimitError> {
        let Place { policy, subject } = place;
        self.fallback.permits(policy, subject, what, names);
        self.away.may_ask(subject)?;
        let held = self
            .store
            .permits(policy, subject, what, names, self.timeout);
        Ok(self.heard(policy, subject, held.await)?)
    }
}
