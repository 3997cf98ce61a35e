//! Jobs that run once for each scheduled instant, over any number of processes.

mod record;
mod run;
mod schedule;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis_conn::{Clock, Error, ErrorKind};
use tokio::time::{Instant, sleep};

pub use self::{
    record::{CronOutcome, LastRun},
    schedule::CronJob,
};
use self::{
    record::{Ended, Recorded},
    run::Run,
};
use crate::{
    Held, LockError, LockGuard, LockOptions, Locks, OnLost, OwnerId, WithLockError,
    error::is_outage,
    metrics,
    name::Name,
    shared::PAUSE,
    store::notes::{Kind, Note, Notes as _},
    trace::event,
    with_lock::under,
};

/// For how long it is known of a slot that it was claimed.
const CLAIMED: Duration = Duration::from_secs(24 * 3_600);

/// A job that runs once for each scheduled instant, its *slot*, over any number of processes, whose clocks may differ.
///
/// All processes call [`run`](Self::run) for the same slot, each when its own clock says so, or have [`schedule`](Self::schedule) do it.
/// The first one claims the slot and runs it; whoever comes later skips it, also if the run has ended by then. The claim lives for 24 h,
/// and is not given back: a slot whose runner died is not run again. The lock is `cron:` and the name.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::{Duration, SystemTime};
/// use redis_conn::Backend;
/// use tower_distlock::{CronLock, CronRun, Locks};
///
/// let locks = Locks::new(&Backend::memory())?;
/// let report = CronLock::new(&locks, "report").at_most(Duration::from_secs(60));
/// let midnight = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400);
/// let run = async || report.run(midnight, async |_held| Ok::<_, std::io::Error>(42)).await;
/// assert_eq!(run().await?, CronRun::Ran(42));
/// assert_eq!(run().await?, CronRun::Skipped);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct CronLock {
    locks: Locks,
    name: Arc<str>,
    options: LockOptions,
    at_least: Duration,
    wait: Duration,
    grace: Duration,
}

/// What became of a slot in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CronRun<T> {
    /// It ran here, and this is its output.
    Ran(T),
    /// Another one runs it or has run it.
    Skipped,
    /// A later slot was run before. It may have been run in its time, or not at all.
    Missed,
    /// It was claimed here, but the run of an earlier slot went on for too long, or kept the lock by
    /// [`at_least`](CronLock::at_least): nobody runs it.
    Overlapped,
}

impl CronLock {
    /// A job of this name, fixed in code, with a lease of 30 s.
    pub fn new(locks: &Locks, name: &str) -> Self {
        metrics::cron_known(name);
        Self {
            locks: locks.clone(),
            name: name.into(),
            options: LockOptions::new(),
            at_least: Duration::ZERO,
            wait: Duration::from_secs(1),
            grace: Duration::from_secs(60),
        }
    }

    /// How long the lock lasts if the process that runs the job dies. While that lives the lock is renewed, up to
    /// [`max_hold`](Self::max_hold). From 10 ms to 365 days; 30 s if not set.
    pub fn at_most(mut self, at_most: Duration) -> Self {
        self.options = self.options.ttl(at_most);
        self
    }

    /// The lock stays taken for so long after the start of the job, also if that ends before: so often it runs at most, whatever slots
    /// there are. Not set: it is released when the job ends.
    pub fn at_least(mut self, at_least: Duration) -> Self {
        self.at_least = at_least;
        self
    }

    /// For how long the job may run; then the lock is lost. The greater of 10 minutes and 10 times [`at_most`](Self::at_most) if not
    /// set.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.options = self.options.max_hold(max_hold);
        self
    }

    /// What becomes of the job when the lock is lost while it runs; it is dropped if not set.
    pub fn on_lost(mut self, on_lost: OnLost) -> Self {
        self.options = self.options.on_lost(on_lost);
        self
    }

    /// For how long the one that has claimed a slot waits for an earlier run to end, and for a store that does not answer; 1 s if not
    /// set. Nobody else waits.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How late a [scheduled](Self::schedule) slot is run still: after a long run before, or a stop of the process. What is later is
    /// missed. 60 s if not set.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The name of the job.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs the job for a slot, unless somebody else has claimed that or a later one. The slot is the instant that the schedule names,
    /// the same in all processes, and not the time at which one of them woke up.
    ///
    /// The job runs under a lock, as by [`with_lock`](Locks::with_lock), so the runs of two slots do not overlap either.
    ///
    /// # Errors
    ///
    /// [`WithLockError::NotAcquired`] if the store did not answer or refused: the job did not run, and if the slot was claimed, nobody
    /// else runs it. [`WithLockError::Lost`] if the lock was lost while the job ran, and [`WithLockError::Inner`] is its own error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the job and releases the lock. The slot is not run again.
    pub async fn run<T, E, F>(
        &self,
        slot: SystemTime,
        job: F,
    ) -> Result<CronRun<T>, WithLockError<E, T>>
    where
        F: AsyncFnOnce(Held) -> Result<T, E>,
    {
        let begun = Instant::now();
        let ran = self.run_at(slot, begun, job).await;
        self.note_outcome(slot, begun, &ran);
        ran
    }

    /// What came of a slot, and when: the one place for figures about it.
    fn note_outcome<T, E>(
        &self,
        slot: SystemTime,
        begun: Instant,
        ran: &Result<CronRun<T>, WithLockError<E, T>>,
    ) {
        let outcome = match ran {
            Ok(CronRun::Ran(_)) => "ran",
            Ok(CronRun::Skipped) => "skipped",
            Ok(CronRun::Missed) => "missed",
            Ok(CronRun::Overlapped) => "overlapped",
            Err(WithLockError::NotAcquired(_)) => "refused",
            Err(WithLockError::Lost { .. }) => "lost",
            Err(WithLockError::Inner(_)) => "failed",
        };
        let (name, took) = (&self.name, begun.elapsed());
        let lag = self.now().duration_since(slot).unwrap_or_default();
        let lag = lag.saturating_sub(took);
        event!(
            debug,
            "job {name}: {outcome} after {took:?}, {lag:?} behind its slot"
        );
        metrics::cron_ended(name, outcome, took, lag);
    }

    async fn run_at<T, E, F>(
        &self,
        slot: SystemTime,
        begun: Instant,
        job: F,
    ) -> Result<CronRun<T>, WithLockError<E, T>>
    where
        F: AsyncFnOnce(Held) -> Result<T, E>,
    {
        let refused = |error: Error| WithLockError::NotAcquired(error.into());
        self.options.check().map_err(refused)?;
        let lock = self.lock();
        let name = Name::new(&lock).map_err(refused)?;
        let slot = number_of(slot).map_err(refused)?;
        let last = self.claim(&name, slot, begun).await.map_err(refused)?;
        match last {
            Some(last) if last == slot => return Ok(CronRun::Skipped),
            Some(_) => return Ok(CronRun::Missed),
            None => {}
        }
        let left = self.wait.saturating_sub(begun.elapsed());
        let options = match left.is_zero() {
            true => self.options.clone().try_once(),
            false => self.options.clone().wait(left),
        };
        let guard = match self.locks.acquire(&lock, options).await {
            Ok(guard) => guard,
            Err(error) if error.is_busy() => return Ok(CronRun::Overlapped),
            Err(error) => return Err(WithLockError::NotAcquired(error)),
        };
        let run = Run {
            cron: self,
            name: &name,
            slot,
            fence: guard.fence(),
            started: self.locks.shared.backend.clock().wall_micros(),
            since: Instant::now(),
        };
        if run.begins().await {
            // A later slot has got ahead while this one waited.
            self.released(guard.release().await);
            return Ok(CronRun::Missed);
        }
        let at_least = run.since.checked_add(self.at_least);
        let (held, on_lost) = (Held::of(&guard), self.options.on_lost);
        let recorded = async |held| run.recorded(job(held)).await;
        let ran = under(guard, held, on_lost, recorded, async |guard: LockGuard| {
            let rest = at_least.map(|until| until.saturating_duration_since(Instant::now()));
            guard.release_after(rest.unwrap_or_default()).await
        });
        let ran = ran.await;
        if matches!(ran, Err(WithLockError::Lost { .. })) {
            run.ends(Ended::Lost).await;
        }
        ran.map(CronRun::Ran)
    }

    fn released<T>(&self, released: Result<T, LockError>) {
        if let Err(error) = released {
            event!(
                warn,
                "job {}: its lock was not released: {error}",
                self.name
            );
        }
    }

    /// Claims a slot. If it is not ours, tells the slot that is claimed in its place.
    async fn claim(&self, name: &Name, slot: u64, begun: Instant) -> Result<Option<u64>, Error> {
        let shared = &self.locks.shared;
        // By this it is told that the claim is ours, if the answer to it was lost.
        let value = OwnerId::new().to_string().into_bytes();
        let note = Note { slot, value };
        loop {
            let claim = shared
                .store
                .advance(name, Kind::Claim, &note, CLAIMED, shared.timeout);
            match claim.await {
                Ok(stored) => {
                    return Ok(stored
                        .filter(|stored| *stored != note)
                        .map(|stored| stored.slot));
                }
                Err(error) if is_outage(&error) && begun.elapsed() + PAUSE < self.wait => {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What is known of the last run, by whichever process. It is told for 35 days.
    ///
    /// # Errors
    ///
    /// [`LockError::Backend`] if the store does not answer, with `Corrupt` if a later version has written it.
    pub async fn last_run(&self) -> Result<Option<LastRun>, LockError> {
        let shared = &self.locks.shared;
        let name = Name::new(&self.lock())?;
        let read = async || {
            let note = shared.store.note(&name, Kind::Run, shared.timeout).await?;
            note.map(|note| Recorded::read(&note)).transpose()
        };
        let Some(mut last) = read().await? else {
            return Ok(None);
        };
        let mut is_held = true;
        if last.1.is_running() {
            let holders = self.locks.holders(&self.lock()).await?;
            is_held = holders.iter().any(|holder| holder.fence == last.1.fence);
            if !is_held && let Some(again) = read().await? {
                // It is written before the lock is released.
                last = again;
            }
        }
        Ok(Some(last.1.told(last.0, is_held)))
    }

    fn lock(&self) -> String {
        format!("cron:{}", self.name)
    }

    fn now(&self) -> SystemTime {
        now(self.locks.shared.backend.clock())
    }
}

/// The number of a slot: microseconds since the epoch.
fn number_of(slot: SystemTime) -> Result<u64, Error> {
    let since = slot.duration_since(UNIX_EPOCH).ok();
    let number = since.and_then(|since| u64::try_from(since.as_micros()).ok());
    number.ok_or_else(|| Error::new(ErrorKind::Config, "a slot: expected a time after 1970"))
}

fn now(clock: &Arc<dyn Clock>) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(clock.wall_micros())
}

impl fmt::Debug for CronLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CronLock")
            .field("name", &self.name)
            .field("options", &self.options)
            .field("at_least", &self.at_least)
            .finish_non_exhaustive()
    }
}
