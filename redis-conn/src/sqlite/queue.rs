//! What waits for a worker thread.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::sync::oneshot;

use super::Tx;
use crate::{Error, ErrorKind, engine::closed};

/// How many jobs may wait; one more is refused at once.
const CAPACITY: usize = 4_096;

/// A bounded queue with one consumer, which takes all that waits in one go.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Default)]
struct Waiting {
    tasks: VecDeque<Box<dyn Task>>,
    closed: bool,
    abandoned: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("tasks", &self.tasks.len())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, task: Box<dyn Task>) -> Result<(), Error> {
        let mut state = self.state();
        if state.closed {
            return Err(closed());
        }
        if state.tasks.len() >= CAPACITY {
            let text = format!("{CAPACITY} jobs wait for the file already");
            return Err(Error::new(ErrorKind::Saturated, text));
        }
        state.tasks.push_back(task);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for work and takes at most `max`; `None` once the queue is closed and empty.
    pub(super) fn take(&self, max: usize) -> Option<VecDeque<Box<dyn Task>>> {
        let mut state = self.state();
        while state.tasks.is_empty() {
            if state.closed {
                return None;
            }
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let count = state.tasks.len().min(max);
        Some(state.tasks.drain(..count).collect())
    }

    /// Refuses what comes from now on; what waits is still done.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
    }

    /// Refuses what comes and drops what waits: its callers get `Closed`.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.closed = true;
        state.abandoned = true;
        let dropped = std::mem::take(&mut state.tasks);
        drop(state);
        drop(dropped);
        self.filled.notify_one();
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.state().abandoned
    }
}

/// A job with its caller, the types of both erased.
pub(super) trait Task: Send {
    /// Whether the caller still waits for a job that has not begun.
    fn is_wanted(&self) -> bool;

    /// Begins the job; `false` if the caller has gone.
    fn claim(&self) -> bool;

    /// Runs the job and keeps its result; `false` if its changes are to be rolled back.
    fn run(&mut self, tx: &Tx<'_>) -> bool;

    /// Why the job failed, if it ran and did.
    fn failure(&self) -> Option<&Error>;

    /// Answers the caller: with the result of the job or, if its transaction failed, with that error.
    fn answer(self: Box<Self>, transaction: Result<(), Error>);
}

/// Decides between a caller that gives up and a worker that begins: exactly one of them wins.
#[derive(Debug, Default)]
pub(super) struct Claim(AtomicU8);

impl Claim {
    const WAITING: u8 = 0;
    const RUNNING: u8 = 1;
    const CANCELLED: u8 = 2;

    fn leave_waiting(&self, next: u8) -> bool {
        let order = Ordering::AcqRel;
        self.0
            .compare_exchange(Self::WAITING, next, order, Ordering::Acquire)
            .is_ok()
    }

    /// `true` if the job had not begun: now it never will.
    pub(super) fn cancel(&self) -> bool {
        self.leave_waiting(Self::CANCELLED) || self.0.load(Ordering::Acquire) == Self::CANCELLED
    }
}

/// The one [`Task`] there is.
pub(super) struct Call<F, T> {
    pub(super) claim: Arc<Claim>,
    pub(super) job: Option<F>,
    pub(super) result: Option<Result<T, Error>>,
    pub(super) reply: oneshot::Sender<Result<T, Error>>,
}

impl<F, T> Task for Call<F, T>
where
    F: FnOnce(&Tx<'_>) -> Result<T, Error> + Send,
    T: Send,
{
    fn is_wanted(&self) -> bool {
        self.claim.0.load(Ordering::Acquire) == Claim::WAITING
    }

    fn claim(&self) -> bool {
        self.claim.leave_waiting(Claim::RUNNING)
    }

    fn run(&mut self, tx: &Tx<'_>) -> bool {
        let Some(job) = self.job.take() else {
            return false;
        };
        // What the job changed is rolled back, and it owned the rest: nothing half-done is seen by anybody.
        let result = catch_unwind(AssertUnwindSafe(|| job(tx)));
        let result = result.unwrap_or_else(|panic| Err(panicked(&*panic)));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn failure(&self) -> Option<&Error> {
        self.result.as_ref()?.as_ref().err()
    }

    fn answer(self: Box<Self>, transaction: Result<(), Error>) {
        let result = match (transaction, self.result) {
            // A job's own error says more than the failure of the transaction in which it had been rolled back.
            (_, Some(Err(error))) | (Err(error), _) => Err(error),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(closed()),
        };
        // The caller may have gone.
        let _ = self.reply.send(result);
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    Error::new(
        ErrorKind::Server("PANIC".into()),
        format!("the job panicked and was rolled back: {text}"),
    )
}
