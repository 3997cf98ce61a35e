//! What all clones of a handle share.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use redis_conn::{Backend, Check, Drain, Error, ErrorKind, Part, Phase, Status, raw::Tasks};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    LockOptions, LostReason,
    error::is_outage,
    lease::Moment,
    line::{Heir, Lines, Waiter, Word},
    mail::Mail,
    metrics,
    name::Name,
    store::{Acquired, AnyStore, Next, Outcome, Store},
    terms::{Mode, Seats, Terms},
    trace::event,
    watchdog::{Watchdog, Watched},
};

/// The longest name of an instance that is stored.
const INSTANCE: usize = 64;
/// How long is waited before it is tried again to listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// How long is waited before something is tried again that failed.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) me: Weak<Self>,
    pub(crate) backend: Backend,
    pub(crate) store: AnyStore,
    /// How long one call of the store may take.
    pub(crate) timeout: Duration,
    pub(crate) tasks: Tasks,
    pub(crate) lines: Arc<Lines>,
    pub(crate) mail: Mail,
    pub(crate) watchdog: Watchdog,
    instance: Arc<str>,
    /// Whether it was tried to hear of what is done by force.
    hears: AtomicBool,
    /// Whether nothing is acquired any more.
    closed: AtomicBool,
}

impl Shared {
    pub(crate) fn new(backend: &Backend, timeout: Duration) -> Result<Arc<Self>, Error> {
        metrics::begin();
        let store = AnyStore::of(backend)?;
        let lines = backend.shared('l', "lines", Lines::default)?;
        let shared = Arc::new_cyclic(|me: &Weak<Self>| {
            let (forced, clock) = (me.clone(), Arc::clone(backend.clock()));
            let on_forced = move |owner| {
                if let Some(shared) = forced.upgrade() {
                    shared.watchdog.lose(owner, LostReason::Forced);
                }
            };
            Self {
                me: me.clone(),
                backend: backend.clone(),
                store,
                timeout,
                tasks: backend.tasks(),
                lines,
                mail: Mail::new(
                    backend.bus(),
                    backend.tasks(),
                    backend.kind() != "redis-cluster",
                    on_forced,
                    move || Moment::now(&clock),
                ),
                watchdog: Watchdog::default(),
                instance: shortened(backend.instance_id()).into(),
                hears: AtomicBool::new(false),
                closed: AtomicBool::new(false),
            }
        });
        let part: Arc<dyn Part> = Arc::clone(&shared) as _;
        backend.register(&part);
        Ok(shared)
    }

    /// Has this process hear of locks that are taken from it by force: from the first acquisition on, which waits for that. If it does
    /// not come about, it is tried again without anybody who waits; until then a holder hears of it when it renews.
    pub(crate) async fn hear_of_force(&self) {
        if self.hears.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(shared) = self.me.upgrade() else {
            return;
        };
        let (heard, hears) = oneshot::channel();
        let listening = async move {
            while let Err(error) = shared.mail.listen().await {
                event!(warn, "no word of locks taken by force: {error}");
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
            // Whoever waited may have given up.
            let _ = heard.send(());
        };
        self.tasks.follow(listening);
        let _ = tokio::time::timeout(self.timeout, hears).await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::now(self.backend.clock())
    }

    pub(crate) fn terms(&self, options: &LockOptions, mode: Mode, seats: Seats) -> Terms {
        Terms {
            owner: crate::OwnerId::new(),
            ttl: options.ttl,
            mode,
            seats,
            fence: options.fence,
            instance: Arc::clone(&self.instance),
        }
    }

    /// Lets go of a lock that somebody of this process held, or may have come to hold, and hands it on.
    pub(crate) async fn release(
        &self,
        name: &Name,
        terms: &Terms,
        held: bool,
        abandoned: bool,
    ) -> Result<Outcome, Error> {
        let heir = held.then(|| self.lines.let_go(name)).flatten();
        let Some(heir) = heir else {
            let next = Next::InLine;
            let released = self
                .store
                .release(name, terms, abandoned, next, self.timeout);
            return Ok(released.await?.0);
        };
        let mut passing = Passing { shared: self, heir };
        let Waiter {
            terms: its, wake, ..
        } = &passing.heir.waiter;
        let next = if passing.heir.yields {
            Next::Yield(its, wake)
        } else {
            Next::Pass(its, wake)
        };
        let sent = self.now();
        let released = self
            .store
            .release(name, terms, abandoned, next, self.timeout);
        let (outcome, acquired) = released.await?;
        let word = match acquired {
            Some(Acquired::Granted(grant)) => Word::Handed(grant, sent),
            Some(Acquired::Busy(busy)) => Word::InLine(sent, busy.at),
            Some(Acquired::Abandoned) | None => return Ok(outcome),
        };
        if !passing.heir.tell(word) {
            // It has given up, perhaps before the store heard of it.
            let asked = Leaving::Asked { unanswered: false };
            self.release_later(name, &passing.heir.waiter.terms, asked);
        }
        Ok(outcome)
    }

    /// The same, whoever waits for it or not.
    pub(crate) fn release_later(&self, name: &Name, terms: &Terms, leaving: Leaving) {
        let Some(shared) = self.me.upgrade() else {
            return;
        };
        let (owned, of) = (name.clone(), terms.clone());
        let task = async move { shared.release_at_last(&owned, &of, leaving).await };
        if self.tasks.spawn(task).is_none()
            && let AnyStore::Memory(store) = &self.store
        {
            // There is no runtime, and none is needed.
            if let Leaving::Held { .. } = leaving {
                self.lines.let_go(name);
            }
            store.release_now(name, terms);
        }
    }

    /// Tries again until the lease must have ended by itself.
    async fn release_at_last(&self, name: &Name, terms: &Terms, leaving: Leaving) {
        let end = Instant::now() + terms.ttl;
        let (held, was_seen, mut doubtful) = match leaving {
            Leaving::Held { doubtful } => (true, true, doubtful),
            Leaving::Released => (false, true, true),
            Leaving::Asked { unanswered } => (false, false, unanswered),
        };
        let mut released = self.release(name, terms, held, doubtful && !was_seen).await;
        while is_to_be_sent_again(&released, end) {
            sleep(PAUSE).await;
            // Who is next has asked by itself by now.
            released = self.release(name, terms, false, !was_seen).await;
            doubtful = true;
        }
        if !(was_seen && doubtful && released.is_ok()) {
            return;
        }
        // What may still come is refused. Not in one with the release, which would forget the fence if that was the first.
        while is_to_be_sent_again(&self.release(name, terms, false, true).await, end) {
            sleep(PAUSE).await;
        }
    }

    /// Lets a lock that somebody of this process held go on until then. It is tried until it is done, whoever waits for it or not.
    pub(crate) async fn leave(
        &self,
        name: &Name,
        terms: &Terms,
        until: Instant,
    ) -> Result<Outcome, Error> {
        // Nothing is handed over: whoever is next waits for the end of the lease, as those of other processes do.
        drop(self.lines.let_go(name));
        let closed = || {
            Error::new(
                ErrorKind::Closed,
                "there is no runtime to leave the lock on",
            )
        };
        let shared = self.me.upgrade().ok_or_else(closed)?;
        let (name, terms) = (name.clone(), terms.clone());
        let task = async move { shared.leave_at_last(&name, terms, until).await };
        let left = self.tasks.spawn(task).ok_or_else(closed)?;
        left.await.map_err(|_| closed())?
    }

    async fn leave_at_last(
        &self,
        name: &Name,
        terms: Terms,
        until: Instant,
    ) -> Result<Outcome, Error> {
        let end = Instant::now() + terms.ttl;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            let left = if rest.is_zero() {
                let next = Next::InLine;
                let released = self.store.release(name, &terms, false, next, self.timeout);
                released.await.map(|(outcome, _)| outcome)
            } else {
                let terms = Terms {
                    ttl: rest,
                    ..terms.clone()
                };
                self.store.extend(name, &terms, self.timeout).await
            };
            match left {
                Err(error) if is_outage(&error) && Instant::now() < end => sleep(PAUSE).await,
                left => return left,
            }
        }
    }

    /// Takes all locks from those of this process who hold them still.
    async fn end(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.lines.ask_all();
        self.mail.ask_all();
        let held = self.watchdog.held();
        let releases = stream::iter(held).map(|watched| self.take_away(watched));
        releases.buffer_unordered(256).collect::<()>().await;
    }

    async fn take_away(&self, watched: Watched) {
        let Watched { name, terms, .. } = &watched;
        self.watchdog.lose(terms.owner, LostReason::Closed);
        let released = self
            .store
            .release(name, terms, false, Next::InLine, self.timeout);
        // Without an answer the lease ends by itself.
        let _ = released.await;
    }
}

fn is_to_be_sent_again(released: &Result<Outcome, Error>, end: Instant) -> bool {
    matches!(released, Err(error) if is_outage(error)) && Instant::now() < end
}

/// How far somebody has come who lets go of a lock.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leaving {
    /// It is held, and its fence was seen. Doubtful if a question for it may come to the store still.
    Held { doubtful: bool },
    /// The same, but a release was begun: the line of the process has heard of it, the store perhaps.
    Released,
    /// It is not known whether it is held. Unanswered if the question for it may come to the store still.
    Asked { unanswered: bool },
}

/// A lock on its way from one of this process to the next.
struct Passing<'a> {
    shared: &'a Shared,
    heir: Heir<'a>,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if !self.heir.is_told() && !self.heir.tell(Word::Ask) {
            // It has left the line, and may be granted the lock still.
            let Waiter { terms, .. } = &self.heir.waiter;
            self.shared
                .release_later(self.heir.name(), terms, Leaving::Asked { unanswered: true });
        }
    }
}

impl Part for Shared {
    fn name(&self) -> &str {
        "locks"
    }

    fn phase(&self) -> Phase {
        Phase::Locks
    }

    fn check(&self) -> Check {
        let held = self.watchdog.held().len();
        Check::new("locks", Status::Healthy, format!("{held} held"))
    }

    /// Ends what was let go of, and takes what is held still.
    fn drain(&self, _: Duration) -> Drain {
        let shared = self.me.upgrade();
        Box::pin(async move {
            if let Some(shared) = shared {
                shared.end().await;
                shared.tasks.finished().await;
            }
            Ok(())
        })
    }
}

fn shortened(instance: &str) -> &str {
    let end = (0..=INSTANCE.min(instance.len()))
        .rev()
        .find(|end| instance.is_char_boundary(*end));
    instance.get(..end.unwrap_or(0)).unwrap_or_default()
}
