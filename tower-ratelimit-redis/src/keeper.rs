//! Renews the permits of this process, and releases those that are dropped, in one task.

use std::{
    collections::HashMap,
    fmt,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis_conn::{Error, Subject};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    Policy,
    shared::Shared,
    store::{Permits, Store},
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
    lost: Arc<AtomicBool>,
    released: bool,
}

impl Held {
    /// Nothing is held yet, and what comes to be held is released when this is dropped.
    pub(crate) fn new(limiter: &Arc<Shared>, place: Place) -> Self {
        // It is there before the first permit can be dropped.
        Keeper::of(limiter);
        Self {
            limiter: Arc::clone(limiter),
            place,
            name: crate::random::number(),
            lost: Arc::new(AtomicBool::new(false)),
            released: false,
        }
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
        self.lost.load(Ordering::Relaxed)
    }

    /// It is held since `asked_at` at the latest, and is renewed from now on.
    pub(crate) fn keep(&self, asked_at: Instant) {
        let renewal = Renewal {
            due: asked_at + pause(&self.place.policy),
            place: self.place.clone(),
            lost: Arc::clone(&self.lost),
        };
        self.keeper().keep(self.name, renewal);
    }

    /// It is not held any more.
    pub(crate) fn forget(mut self) {
        self.released = true;
        self.keeper().registry().held.remove(&self.name);
    }

    /// Renews or releases it now. Tells whether it was held until now.
    pub(crate) async fn ask(&self, what: Permits) -> Result<bool, Error> {
        let names = [self.name];
        let held = self.limiter.permits(&self.place, what, &names).await?;
        Ok(held.first().copied().unwrap_or_default())
    }

    fn keeper(&self) -> &Arc<Keeper> {
        Keeper::of(&self.limiter)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let keeper = self.keeper();
        keeper.registry().held.remove(&self.name);
        // Nobody receives where the runtime has ended; then the lease ends by itself.
        let limiter = Arc::clone(&self.limiter);
        let release = Word::Release(limiter, self.place.clone(), self.name);
        let _ = keeper.words.send(release);
    }
}

/// What the keeper is told.
enum Word {
    /// With the limiter, which goes on until this is heard: the permit may have been the last that had it.
    Release(Arc<Shared>, Place, u64),
    /// Somebody waits until all that was said before is done.
    Done(oneshot::Sender<()>),
}

/// The permits that are held by this process.
pub(crate) struct Keeper {
    limiter: Weak<Shared>,
    registry: Mutex<Registry>,
    words: mpsc::UnboundedSender<Word>,
    /// Something is due before the task meant to come by.
    sooner: Arc<Notify>,
}

#[derive(Default)]
struct Registry {
    held: HashMap<u64, Renewal>,
    /// Nothing is due before that.
    next: Option<Instant>,
}

/// A permit that is held, and when it is to be renewed.
struct Renewal {
    place: Place,
    due: Instant,
    lost: Arc<AtomicBool>,
}

impl Keeper {
    /// That of a limiter. The first call begins its task, which ends with the limiter or when the backend closes.
    fn of(limiter: &Arc<Shared>) -> &Arc<Self> {
        limiter.keeper.get_or_init(|| {
            let (words, heard) = mpsc::unbounded_channel();
            let sooner = Arc::new(Notify::new());
            let keeper = Arc::new(Self {
                limiter: Arc::downgrade(limiter),
                registry: Mutex::default(),
                words,
                sooner: Arc::clone(&sooner),
            });
            let running = run(Arc::downgrade(&keeper), sooner, heard);
            limiter.tasks.follow(running);
            keeper
        })
    }

    /// Waits until all is released that was dropped before.
    pub(crate) async fn released(&self) {
        let (done, is_done) = oneshot::channel();
        if self.words.send(Word::Done(done)).is_ok() {
            // Nobody answers where the runtime has ended.
            let _ = is_done.await;
        }
    }

    fn keep(&self, name: u64, renewal: Renewal) {
        let mut registry = self.registry();
        if registry.next.is_none_or(|next| renewal.due < next) {
            registry.next = Some(renewal.due);
            self.sooner.notify_one();
        }
        registry.held.insert(name, renewal);
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews what is due and does what it was told, all at once: one place that has no answer holds up no other. Tells when
    /// something is due again.
    async fn turn(self: Arc<Self>, words: impl Iterator<Item = Word>) -> Option<Instant> {
        let limiter = self.limiter.upgrade()?;
        let mut asking = JoinSet::new();
        for (place, names) in self.registry().due(Instant::now()).places() {
            let (keeper, limiter) = (Arc::clone(&self), Arc::clone(&limiter));
            asking.spawn(async move { keeper.renew(&limiter, &place, &names).await });
        }
        let (mut released, mut waiting) = (Gathered::default(), Vec::new());
        for word in words {
            match word {
                Word::Release(its, place, name) => {
                    // From here on there is the one above.
                    drop(its);
                    released.add(&place, name);
                }
                Word::Done(done) => waiting.push(done),
            }
        }
        for (place, names) in released.places() {
            let limiter = Arc::clone(&limiter);
            asking.spawn(async move {
                // Without an answer the lease ends by itself.
                let _ = limiter.permits(&place, Permits::Release, &names).await;
            });
        }
        asking.join_all().await;
        for done in waiting {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
        self.registry().next
    }

    async fn renew(&self, limiter: &Shared, place: &Place, names: &[u64]) {
        // Without an answer they may be held still; that is tried again.
        let Ok(renewed) = limiter.permits(place, Permits::Renew, names).await else {
            return;
        };
        let registry = self.registry();
        for (name, renewed) in names.iter().zip(renewed) {
            if let Some(renewal) = registry.held.get(name).filter(|_| !renewed) {
                renewal.lost.store(true, Ordering::Relaxed);
            }
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
    ) -> Result<Vec<bool>, Error> {
        let Place { policy, subject } = place;
        self.fallback.permits(policy, subject, what, names);
        self.away.may_ask(subject)?;
        let held = self
            .store
            .permits(policy, subject, what, names, self.timeout);
        self.heard(policy, subject, held.await)
    }
}

impl Registry {
    /// Those that are to be renewed by now, by the place where they are.
    fn due(&mut self, now: Instant) -> Gathered {
        let mut due = Gathered::default();
        // Most often somebody has only released something.
        if self.next.is_none_or(|next| now < next) {
            return due;
        }
        for (name, renewal) in &mut self.held {
            if renewal.due <= now {
                renewal.due = now + pause(&renewal.place.policy);
                due.add(&renewal.place, *name);
            }
        }
        self.next = self.held.values().map(|renewal| renewal.due).min();
        due
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("held", &self.registry().held.len())
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

/// It holds the keeper only while there is something to do.
async fn run(keeper: Weak<Keeper>, sooner: Arc<Notify>, mut words: mpsc::UnboundedReceiver<Word>) {
    /// So many are heard at once at most.
    const MANY: usize = 256;
    let mut heard = Vec::new();
    while let Some(present) = keeper.upgrade() {
        let next = present.turn(heard.drain(..)).await;
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => pending().await,
            }
        };
        tokio::select! {
            received = words.recv_many(&mut heard, MANY) => if received == 0 { return },
            () = sooner.notified() => {}
            () = due => {}
        }
    }
}
