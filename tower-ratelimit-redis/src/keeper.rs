//! Renews the permits of this process, and releases those that are dropped, in one task.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use redis_conn::{Error, ErrorKind, Subject};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    Policy,
    held::{Lease, Place},
    shared::Shared,
    store::{Permits, Store},
};

/// What the keeper is told.
pub(crate) enum Word {
    /// With the limiter, which goes on until this is heard: the permit may have been the last that had it.
    Release(Arc<Shared>, Place, u64),
    /// Somebody waits until all that was said before is done.
    Done(oneshot::Sender<()>),
}

/// The permits that are held by this process.
pub(crate) struct Keeper {
    registry: Mutex<Registry>,
    /// To the task, if there is one.
    words: Mutex<mpsc::UnboundedSender<Word>>,
    /// Something is due before the task meant to come by.
    sooner: Arc<Notify>,
}

/// A permit that is held, and when it is to be renewed.
pub(crate) struct Renewal {
    place: Place,
    due: Instant,
    lease: Arc<Lease>,
}

impl Renewal {
    /// Of what was granted to who asked then.
    pub(crate) fn new(place: &Place, lease: &Arc<Lease>, asked_at: Instant) -> Self {
        Self {
            due: asked_at + pause(&place.policy),
            place: place.clone(),
            lease: Arc::clone(lease),
        }
    }
}

#[derive(Default)]
struct Registry {
    held: HashMap<u64, Renewal>,
    /// The same, by when they are due.
    queue: BTreeSet<(Instant, u64)>,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        // As if its task had ended: the first permit begins one.
        let (words, _) = mpsc::unbounded_channel();
        Self {
            registry: Mutex::default(),
            words: Mutex::new(words),
            sooner: Arc::default(),
        }
    }

    /// Begins a task, unless there is one: it ends with the limiter, when the backend closes, and with its runtime.
    pub(crate) fn run(&self, limiter: &Arc<Shared>) -> Result<(), Error> {
        let mut words = lock(&self.words);
        if words.is_closed() {
            let (sender, heard) = mpsc::unbounded_channel();
            let running = run(Arc::downgrade(limiter), Arc::clone(&self.sooner), heard);
            let begun = limiter.tasks.follow(running);
            begun.ok_or_else(|| Error::new(ErrorKind::Closed, "no runtime to renew permits on"))?;
            *words = sender;
        }
        Ok(())
    }

    pub(crate) fn say(&self, word: Word) {
        let said = lock(&self.words).send(word);
        if let Err(mpsc::error::SendError(Word::Release(limiter, place, name))) = said
            && self.run(&limiter).is_ok()
        {
            let again = Word::Release(Arc::clone(&limiter), place, name);
            // Nobody hears it where that runtime has ended too; then the lease ends by itself.
            let _ = lock(&self.words).send(again);
        }
    }

    /// Waits until all is released that was dropped before.
    pub(crate) async fn released(&self) {
        let (done, is_done) = oneshot::channel();
        self.say(Word::Done(done));
        // Nobody answers where nothing was ever held.
        let _ = is_done.await;
    }

    pub(crate) fn keep(&self, name: u64, renewal: Renewal) {
        let mut registry = self.registry();
        let is_first = registry.next().is_none_or(|next| renewal.due < next);
        registry.insert(name, renewal);
        if is_first {
            self.sooner.notify_one();
        }
    }

    /// It is not held any more.
    pub(crate) fn forget(&self, name: u64) {
        self.registry().remove(name);
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }
}

impl Registry {
    fn insert(&mut self, name: u64, renewal: Renewal) {
        self.queue.insert((renewal.due, name));
        self.held.insert(name, renewal);
    }

    fn remove(&mut self, name: u64) {
        if let Some(renewal) = self.held.remove(&name) {
            self.queue.remove(&(renewal.due, name));
        }
    }

    /// When the next is due.
    fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// Those that are to be renewed by now, by the place where they are.
    fn due(&mut self, now: Instant) -> Gathered {
        let mut due = Gathered::default();
        while let Some((at, name)) = self.queue.pop_first() {
            if at > now {
                self.queue.insert((at, name));
                break;
            }
            if let Some(renewal) = self.held.get_mut(&name) {
                // No earlier than the clock can tell, or this would not end.
                renewal.due = now + pause(&renewal.place.policy).max(Duration::from_millis(1));
                self.queue.insert((renewal.due, name));
                due.add(&renewal.place, name);
            }
        }
        due
    }
}

/// What is under way. One place that has no answer holds up no other.
#[derive(Default)]
struct Asking {
    renewals: JoinSet<()>,
    releases: JoinSet<()>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Asking {
    /// Renews what is due and does what was said.
    fn begin(&mut self, limiter: &Arc<Shared>, words: impl Iterator<Item = Word>) {
        let due = limiter.keeper.registry().due(Instant::now());
        for (place, names) in due.places() {
            let limiter = Arc::clone(limiter);
            self.renewals
                .spawn(async move { renew(&limiter, &place, &names).await });
        }
        let mut released = Gathered::default();
        for word in words {
            match word {
                Word::Release(its, place, name) => {
                    // From here on there is the one above.
                    drop(its);
                    released.add(&place, name);
                }
                Word::Done(done) => self.waiting.push(done),
            }
        }
        for (place, names) in released.places() {
            let limiter = Arc::clone(limiter);
            self.releases.spawn(async move {
                let release = Permits::Release;
                // Without an answer the lease ends by itself.
                let _ = limiter
                    .permits(&place, release, &names, limiter.timeout)
                    .await;
            });
        }
        if self.releases.is_empty() {
            for done in self.waiting.drain(..) {
                // Whoever waited may have given up.
                let _ = done.send(());
            }
        }
    }
}

async fn renew(limiter: &Shared, place: &Place, names: &[u64]) {
    let asked_at = Instant::now();
    // By then the next renewal is due.
    let deadline = limiter.timeout.min(pause(&place.policy));
    let renewed = limiter.permits(place, Permits::Renew, names, deadline);
    // Without an answer they may be held still; that is tried again.
    let Ok(renewed) = renewed.await else {
        return;
    };
    let registry = limiter.keeper.registry();
    for (name, renewed) in names.iter().zip(renewed) {
        if let Some(Renewal { lease, .. }) = registry.held.get(name) {
            if renewed {
                lease.lasts_from(asked_at, place);
            } else {
                lease.ends();
            }
        }
    }
}

/// The task. It holds the limiter only while there is something to do.
async fn run(limiter: Weak<Shared>, sooner: Arc<Notify>, mut words: mpsc::UnboundedReceiver<Word>) {
    /// So many are heard at once at most.
    const MANY: usize = 256;
    let (mut asking, mut heard) = (Asking::default(), Vec::new());
    loop {
        let next = {
            let Some(limiter) = limiter.upgrade() else {
                return;
            };
            asking.begin(&limiter, heard.drain(..));
            limiter.keeper.registry().next()
        };
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => pending().await,
            }
        };
        tokio::select! {
            received = words.recv_many(&mut heard, MANY) => if received == 0 { return },
            Some(_) = asking.renewals.join_next() => {}
            Some(_) = asking.releases.join_next() => {}
            () = sooner.notified() => {}
            () = due => {}
        }
    }
}

impl Shared {
    /// In the store, and in the fallback, which holds them too.
    pub(crate) async fn permits(
        &self,
        place: &Place,
        what: Permits,
        names: &[u64],
        deadline: Duration,
    ) -> Result<Vec<bool>, Error> {
        let Place { policy, subject } = place;
        self.fallback.permits(policy, subject, what, names);
        self.away.may_ask(subject)?;
        let held = self.store.permits(policy, subject, what, names, deadline);
        self.heard(policy, subject, held.await)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
