//! Renews the locks of this process, all of them in one task.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    LostReason, OwnerId,
    lease::{Lease, Moment},
    metrics,
    name::Name,
    owner::random,
    shared::Shared,
    store::{Outcome, Store},
    terms::Terms,
    trace::event,
};

/// So many are renewed by one call at most.
const BATCH: usize = 256;

/// The locks that this process holds.
#[derive(Default)]
pub(crate) struct Watchdog {
    registry: Mutex<Registry>,
    /// Something is due before the task meant to look.
    sooner: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Registry {
    watched: HashMap<OwnerId, (Due, Watched)>,
    /// The same, by when they are to be renewed.
    renewals: BTreeSet<(Instant, OwnerId)>,
    /// The same, by when they end or are to be reported.
    looks: BTreeSet<(Instant, OwnerId)>,
    /// When the task means to look.
    alarm: Option<Instant>,
}

/// When there is something to do about a lock.
#[derive(Clone, Copy)]
struct Due {
    renewal: Option<Instant>,
    look: Option<Instant>,
}

/// A lock that is held.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) name: Name,
    pub(crate) terms: Terms,
    pub(crate) lease: Lease,
    pub(crate) fence: u64,
    pub(crate) since: Instant,
    /// Whether it is renewed again and again.
    pub(crate) renews: bool,
    /// When it is renewed the next time; none where it is only watched.
    pub(crate) renew_at: Option<Instant>,
    /// When it has been held for too long.
    pub(crate) most: Option<Instant>,
    /// When it is to be reported, if that was not done yet.
    pub(crate) warn_at: Option<Instant>,
}

impl Watchdog {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches over a lock.
    pub(crate) fn watch(&self, shared: &Arc<Shared>, watched: Watched) {
        self.insert(&mut self.registry(), watched);
        self.run(shared);
    }

    /// The task is woken only if it means to look too late: not by each lock that is the only one.
    fn insert(&self, registry: &mut Registry, watched: Watched) {
        registry.insert(watched);
        let next = registry.next();
        if registry
            .alarm
            .is_none_or(|alarm| next.is_some_and(|next| next < alarm))
        {
            registry.alarm = next;
            self.sooner.notify_one();
        }
    }

    /// Begins the task, unless there is one: it ends when the backend closes, and with its runtime.
    fn run(&self, shared: &Arc<Shared>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            let running = run(Arc::downgrade(shared), Arc::clone(&self.sooner));
            *task = shared.tasks.follow(running);
        }
    }

    /// It is not held any more.
    pub(crate) fn forget(&self, owner: OwnerId) -> Option<Watched> {
        self.registry().remove(owner)
    }

    /// All that is held.
    pub(crate) fn held(&self) -> Vec<Watched> {
        let registry = self.registry();
        let watched = registry.watched.values().map(|(_, watched)| watched);
        watched.cloned().collect()
    }

    /// Whoever holds it hears that it is lost.
    pub(crate) fn lose(&self, owner: OwnerId, reason: LostReason) {
        if let Some(watched) = self.forget(owner) {
            watched.lose(reason);
        }
    }

    /// The store has confirmed it, which was asked then. What was let go of meanwhile is not there any more.
    fn lasts(&self, terms: &Terms, sent: Moment) {
        let registry = self.registry();
        // Where it has got another ttl meanwhile, the answer to that tells for how long it lasts.
        if let Some((_, watched)) = registry.watched.get(&terms.owner)
            && watched.terms.ttl == terms.ttl
        {
            watched.lease.lasts(sent.end_of(terms.ttl));
        }
    }

    /// Another ttl is asked for. If it is shorter, it counts from now on.
    pub(crate) fn shorten(&self, owner: OwnerId, ttl: Duration, sent: Moment) {
        let mut registry = self.registry();
        let is_shorter = |watched: &Watched| ttl < watched.terms.ttl;
        if registry
            .watched
            .get(&owner)
            .is_some_and(|(_, watched)| is_shorter(watched))
            && let Some(mut watched) = registry.remove(owner)
        {
            watched.terms.ttl = ttl;
            watched.lease.lasts_no_longer(sent.end_of(ttl));
            watched.renewed();
            self.insert(&mut registry, watched);
        }
    }

    /// The store has confirmed it with another ttl, which was asked then.
    pub(crate) fn extend(&self, owner: OwnerId, ttl: Duration, sent: Moment) {
        let mut registry = self.registry();
        if let Some(mut watched) = registry.remove(owner) {
            watched.terms.ttl = ttl;
            watched.lease.lasts(sent.end_of(ttl));
            watched.renewed();
            self.insert(&mut registry, watched);
        }
    }

    /// Tries again before long.
    fn retry(&self, owner: OwnerId) {
        let mut registry = self.registry();
        if let Some(mut watched) = registry.remove(owner) {
            let pause = (watched.terms.ttl / 20).min(Duration::from_millis(100));
            watched.renew_at = Some(Instant::now() + pause);
            registry.insert(watched);
        }
    }
}

impl Registry {
    fn insert(&mut self, watched: Watched) {
        let (due, owner) = (watched.due(), watched.terms.owner);
        self.remove(owner);
        self.renewals.extend(due.renewal.map(|at| (at, owner)));
        self.looks.extend(due.look.map(|at| (at, owner)));
        self.watched.insert(owner, (due, watched));
    }

    fn remove(&mut self, owner: OwnerId) -> Option<Watched> {
        let (due, watched) = self.watched.remove(&owner)?;
        if let Some(at) = due.renewal {
            self.renewals.remove(&(at, owner));
        }
        if let Some(at) = due.look {
            self.looks.remove(&(at, owner));
        }
        Some(watched)
    }

    /// When there is something to do the next time.
    fn next(&self) -> Option<Instant> {
        let firsts = [self.renewals.first(), self.looks.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Those that have ended by now, or are to be reported.
    fn take_looks(&mut self, now: Instant) -> Vec<Watched> {
        let mut due = Vec::new();
        while let Some((at, owner)) = self.looks.first().copied()
            && at <= now
        {
            due.extend(self.remove(owner));
        }
        due
    }

    /// Those that are to be renewed by now, and with them those that are to be renewed soon: together it costs less.
    fn take_renewals(&mut self, now: Instant) -> Vec<Watched> {
        let mut due = Vec::new();
        while let Some((at, owner)) = self.renewals.first().copied()
            && let Some((_, watched)) = self.watched.get(&owner)
            && (at <= now || !due.is_empty() && at <= now + watched.terms.ttl / 12)
        {
            due.extend(self.remove(owner));
        }
        due
    }
}

impl Watched {
    fn due(&self) -> Due {
        let renewal = self.renew_at;
        // What is renewed is looked at then.
        let end = renewal.is_none().then(|| self.lease.until());
        let looks = [end, self.most, self.warn_at];
        Due {
            renewal,
            look: looks.into_iter().flatten().min(),
        }
    }

    /// It is renewed the next time after a third of its ttl.
    pub(crate) fn renewed(&mut self) {
        self.renew_at = self.renews.then(|| Instant::now() + third(self.terms.ttl));
    }

    fn lose(&self, reason: LostReason) {
        self.lease.lose(reason);
        event!(
            warn,
            "a lock was lost: {reason}; it was held for {:?}, lock {}",
            self.since.elapsed(),
            self.name.digest()
        );
    }

    /// Whether it is lost by the time. Reports what is held for long.
    fn look(&mut self, now: Instant) -> bool {
        if let Some(reason) = self.lease.why_lost() {
            self.lose(reason);
            return true;
        }
        if self.most.is_some_and(|most| most <= now) {
            self.lose(LostReason::HeldTooLong);
            return true;
        }
        if self.warn_at.take_if(|at| *at <= now).is_some() {
            event!(
                warn,
                "a lock is held for {:?} by now, lock {}",
                self.since.elapsed(),
                self.name.digest()
            );
        }
        false
    }
}

/// The task. It holds what is shared only while there is something to do.
async fn run(shared: Weak<Shared>, sooner: Arc<Notify>) {
    let mut renewals = JoinSet::new();
    loop {
        let next = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            begin(&shared, &mut renewals);
            let mut registry = shared.watchdog.registry();
            registry.alarm = registry.next();
            registry.alarm
        };
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some(_) = renewals.join_next() => {}
            () = sooner.notified() => {}
            () = due => {}
        }
    }
}

/// Looks at what is due, and renews it.
fn begin(shared: &Arc<Shared>, renewals: &mut JoinSet<()>) {
    let (now, mut leases) = (Instant::now(), Vec::new());
    {
        // All in one step: what is let go of meanwhile must not come back.
        let mut registry = shared.watchdog.registry();
        for mut watched in registry.take_looks(now) {
            if !watched.look(now) {
                registry.insert(watched);
            }
        }
        for mut watched in registry.take_renewals(now) {
            if !watched.look(now) {
                leases.push((watched.name.clone(), watched.terms.clone()));
                watched.renewed();
                registry.insert(watched);
            }
        }
    }
    // On a cluster each is where it is, and one that has no answer holds up no other.
    let size = if shared.backend.kind() == "redis-cluster" {
        1
    } else {
        BATCH
    };
    for batch in leases.chunks(size) {
        renewals.spawn(renew(Arc::clone(shared), batch.to_vec()));
    }
}

async fn renew(shared: Arc<Shared>, leases: Vec<(Name, Terms)>) {
    let sent = shared.now();
    // By then the next renewal is due.
    let shortest = leases.iter().map(|(_, terms)| terms.ttl / 3).min();
    let deadline = shared.timeout.min(shortest.unwrap_or(shared.timeout));
    let renewed = shared.store.renew(&leases, deadline).await;
    metrics::renewed(leases.len(), &renewed);
    let Ok(outcomes) = renewed else {
        for (_, terms) in leases {
            shared.watchdog.retry(terms.owner);
        }
        return;
    };
    for ((_, terms), outcome) in leases.iter().zip(outcomes) {
        match outcome {
            Outcome::Held => shared.watchdog.lasts(terms, sent),
            Outcome::Absent => shared.watchdog.lose(terms.owner, LostReason::Vanished),
            Outcome::Other => shared.watchdog.lose(terms.owner, LostReason::Stolen),
        }
    }
}

/// A third of the ttl: two renewals may fail. Not all at the same time.
pub(crate) fn third(ttl: Duration) -> Duration {
    let percent = 90 + u32::try_from(random() % 21).unwrap_or_default();
    ttl * percent / 300
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("watched", &self.registry().watched.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LockOptions, Locks};

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_made_shorter_is_renewed_in_time() {
        let locks = Locks::new(&redis_conn::Backend::memory()).unwrap();
        let guard = locks.acquire("a", LockOptions::new()).await.unwrap();
        // The task looks for the first time, and then not before ten seconds or so.
        sleep_until(Instant::now() + Duration::from_secs(1)).await;
        guard.extend(Duration::from_secs(1)).await.unwrap();
        sleep_until(Instant::now() + Duration::from_secs(3)).await;
        assert!(!guard.token().is_lost());
    }
}
