//! Runs a job again and again, when a schedule says so.

use std::{
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use redis_conn::{Clock, Error, Phase};
use tokio::time::sleep;

use super::{CronLock, CronRun, now};
use crate::{
    Held, WithLockError,
    background::{Background, Stop},
    metrics,
    name::Name,
    trace::event,
};

/// The wall clock may be set, and stands for timers while the machine is suspended: it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// So many slots are looked at one by one, of those for which it is too late.
const COUNTED: u64 = 10_000;

/// A job that is run when its schedule says so, until this is dropped.
///
/// Dropping it drops a run under way too; [`stop`](Self::stop) waits for its end. Closing the backend stops it likewise.
#[must_use = "the job is stopped when this is dropped"]
pub struct CronJob {
    name: Arc<str>,
    background: Arc<Background>,
    counts: Arc<Counts>,
    detached: bool,
}

#[derive(Debug, Default)]
struct Counts {
    ran: AtomicU64,
    missed: AtomicU64,
}

impl CronJob {
    /// How many runs have ended in this process, well or not.
    #[must_use]
    pub fn ran(&self) -> u64 {
        self.counts.ran.load(Ordering::Relaxed)
    }

    /// How many slots this process came too late for: a run before took too long, or the process was stopped. Others may have run them.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.counts.missed.load(Ordering::Relaxed)
    }

    /// Whether it has ended: stopped, the backend closed, or no slot left.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.background.has_ended()
    }

    /// Waits until it has ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn finished(&self) {
        self.background.ended().await;
    }

    /// Starts no run any more, and waits for the one under way.
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the run under way.
    pub async fn stop(self) {
        self.background.stop();
        self.background.ended().await;
    }

    /// Has it go on until the backend is closed.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for CronJob {
    fn drop(&mut self) {
        if !self.detached {
            self.background.abort();
        }
    }
}

impl CronLock {
    /// Runs the job whenever the schedule says so, in the background, until the handle is dropped or the backend closed.
    ///
    /// `next` tells the first instant after the one that it is given, and none when there is no more: a closure around whatever knows
    /// cron expressions. It must tell the same instants in all processes. The job is given its slot and what it needs to know of its
    /// lock. Where several slots are due because this process is late, the last of them is run, if it is not later than the
    /// [grace](Self::grace); the others count as [missed](CronJob::missed). A run that fails or panics is logged, and the next one
    /// comes when it is due.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::{Duration, UNIX_EPOCH};
    /// # use redis_conn::Backend;
    /// # use tower_distlock::{CronLock, Locks};
    /// let locks = Locks::new(&Backend::memory())?;
    /// let job = CronLock::new(&locks, "tick").schedule(
    ///     // Each 10 ms.
    ///     |after| {
    ///         let since = after.duration_since(UNIX_EPOCH).ok()?.as_millis() as u64;
    ///         Some(UNIX_EPOCH + Duration::from_millis((since / 10 + 1) * 10))
    ///     },
    ///     |slot, held| async move {
    ///         println!("{slot:?} under {:?}", held.fence());
    ///         Ok::<_, std::io::Error>(())
    ///     },
    /// )?;
    /// # while job.ran() == 0 { tokio::time::sleep(Duration::from_millis(1)).await }
    /// job.stop().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// `Config` if the name or a time cannot be, `Closed` if the backend is closed or there is no runtime.
    pub fn schedule<N, J, R, E>(self, next: N, job: J) -> Result<CronJob, Error>
    where
        N: FnMut(SystemTime) -> Option<SystemTime> + Send + 'static,
        J: FnMut(SystemTime, Held) -> R + Send + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        Name::new(&self.lock())?;
        self.options.check()?;
        let (name, counts) = (Arc::clone(&self.name), Arc::new(Counts::default()));
        let locks = self.locks.clone();
        let agenda = Agenda {
            name: Arc::clone(&name),
            clock: Arc::clone(locks.shared.backend.clock()),
            after: self.now(),
            grace: self.grace,
            next,
            counts: Arc::clone(&counts),
        };
        let background = Background::start(&locks, "cron", Phase::Cron, |stop| {
            run_all(self, agenda, job, stop)
        })?;
        Ok(CronJob {
            name,
            background,
            counts,
            detached: false,
        })
    }
}

async fn run_all<N, J, R, E>(cron: CronLock, mut agenda: Agenda<N>, mut job: J, mut stop: Stop)
where
    N: FnMut(SystemTime) -> Option<SystemTime>,
    J: FnMut(SystemTime, Held) -> R,
    R: Future<Output = Result<(), E>> + Send,
    E: fmt::Display,
{
    while let Some(slot) = agenda.due() {
        tokio::select! {
            biased;
            () = stop.told() => return,
            () = until(&agenda.clock, slot) => {}
        }
        let run = cron.run(slot, |held| job(slot, held));
        let ran = AssertUnwindSafe(run).catch_unwind().await;
        let name = &cron.name;
        let has_run = match ran {
            Ok(Ok(CronRun::Ran(()))) => true,
            Ok(Ok(CronRun::Missed)) => {
                agenda.missed(1);
                false
            }
            Ok(Ok(CronRun::Skipped | CronRun::Overlapped)) => false,
            Ok(Err(WithLockError::Inner(error))) => {
                event!(error, "job {name} has failed: {error}");
                true
            }
            Ok(Err(WithLockError::Lost { reason, .. })) => {
                event!(error, "job {name} has lost its lock: {reason}");
                true
            }
            Ok(Err(WithLockError::NotAcquired(error))) => {
                event!(error, "job {name} did not run: {}", error.with_cause());
                false
            }
            Err(_) => {
                event!(error, "job {name} has panicked");
                true
            }
        };
        agenda
            .counts
            .ran
            .fetch_add(has_run.into(), Ordering::Relaxed);
    }
}

/// Waits until the wall clock says so.
async fn until(clock: &Arc<dyn Clock>, slot: SystemTime) {
    while let Ok(left) = slot.duration_since(now(clock))
        && !left.is_zero()
    {
        sleep(left.min(LOOK)).await;
    }
}

/// Which slot is next.
struct Agenda<N> {
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    /// The last slot that was looked at.
    after: SystemTime,
    grace: Duration,
    next: N,
    counts: Arc<Counts>,
}

impl<N: FnMut(SystemTime) -> Option<SystemTime>> Agenda<N> {
    /// The next slot, or the last one of those that are due.
    fn due(&mut self) -> Option<SystemTime> {
        let now = now(&self.clock);
        let mut slot = self.first_after(self.after)?;
        let mut counted = 0;
        while slot <= now {
            let late = now.duration_since(slot).unwrap_or_default();
            let later = self.first_after(slot);
            if late <= self.grace && later.is_none_or(|later| later > now) {
                break;
            }
            self.missed(1);
            metrics::cron_missed(&self.name);
            counted += 1;
            slot = match now.checked_sub(self.grace) {
                Some(earliest) if counted >= COUNTED && later? < earliest => {
                    event!(
                        warn,
                        "more than {COUNTED} slots were missed: not all are counted"
                    );
                    self.first_after(earliest)?
                }
                _ => later?,
            };
        }
        self.after = slot;
        Some(slot)
    }

    /// A schedule that does not go on would have a job run without end.
    fn first_after(&mut self, after: SystemTime) -> Option<SystemTime> {
        let next = (self.next)(after)?;
        if next <= after {
            event!(
                error,
                "a schedule has told {next:?} after {after:?}: it is not followed any more"
            );
            return None;
        }
        Some(next)
    }

    fn missed(&self, slots: u64) {
        self.counts.missed.fetch_add(slots, Ordering::Relaxed);
    }
}

impl fmt::Debug for CronJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CronJob")
            .field("name", &self.name)
            .field("ran", &self.ran())
            .field("missed", &self.missed())
            .field("is_finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}
