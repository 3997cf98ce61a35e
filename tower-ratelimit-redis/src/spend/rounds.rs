//! One task of this process that comes by when something is due.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis_conn::Clock;
use tokio::{sync::Notify, time::Instant};

/// Two rounds are no closer than that: what is due at about the same time is done by one.
const PAUSE: Duration = Duration::from_millis(1);

/// Whether there is such a task, and when it comes by.
#[derive(Debug)]
pub(super) struct Rounds {
    clock: Arc<dyn Clock>,
    /// In microseconds since boot; none while there is no task.
    next: Mutex<Option<u64>>,
    sooner: Notify,
}

impl Rounds {
    pub(super) fn new(clock: &Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(clock),
            next: Mutex::default(),
            sooner: Notify::new(),
        })
    }

    /// Has somebody come by at this time. Tells whether a task must [begin](Self::run) for that.
    pub(super) fn at(&self, due: u64) -> bool {
        let mut next = self.next();
        let sooner = next.is_none_or(|at| due < at);
        let begins = next.is_none();
        if sooner {
            *next = Some(due);
            self.sooner.notify_one();
        }
        begins
    }

    /// Comes by until a round tells no further time.
    pub(super) fn run<F>(
        self: Arc<Self>,
        round: impl Fn() -> F + Send + 'static,
    ) -> impl Future<Output = ()> + Send
    where
        F: Future<Output = Option<u64>> + Send,
    {
        // A runtime that ends takes the task with it, also before its first step, and another may begin one.
        let task = Task {
            rounds: self,
            has_ended: false,
        };
        async move {
            let mut task = task;
            let rounds = &task.rounds;
            let mut pause = PAUSE;
            while let Some(next) = rounds.when() {
                let wait = Duration::from_micros(next.saturating_sub(rounds.clock.boot_micros()));
                tokio::select! {
                    () = tokio::time::sleep(wait.max(pause)) => {}
                    () = rounds.sooner.notified() => continue,
                }
                // What is said from here on may be too late for this round.
                *rounds.next() = Some(u64::MAX);
                let begun = Instant::now();
                let further = round().await.unwrap_or(u64::MAX);
                // Where there is very much to do, others have their turn too.
                pause = begun.elapsed().max(PAUSE);
                let mut next = rounds.next();
                *next = next
                    .map(|said| said.min(further))
                    .filter(|at| *at < u64::MAX);
            }
            // Since it said so, another may have begun.
            task.has_ended = true;
        }
    }

    fn when(&self) -> Option<u64> {
        *self.next()
    }

    fn next(&self) -> MutexGuard<'_, Option<u64>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Task {
    rounds: Arc<Rounds>,
    has_ended: bool,
}

impl Drop for Task {
    fn drop(&mut self) {
        if !self.has_ended {
            *self.rounds.next() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use redis_conn::ManualClock;

    use super::*;

    fn rounds() -> Arc<Rounds> {
        Rounds::new(&(Arc::new(ManualClock::new(0)) as _))
    }

    #[tokio::test(start_paused = true)]
    async fn one_task_comes_by_for_whoever_is_first_and_ends_when_nobody_is_left() {
        let (rounds, came) = (rounds(), Arc::new(AtomicU64::new(0)));
        assert!(rounds.at(3_600_000_000));
        let begun = Instant::now();
        let count = Arc::clone(&came);
        let round = move || {
            let again = (count.fetch_add(1, Ordering::Relaxed) == 0).then_some(0);
            async move { again }
        };
        let task = tokio::spawn(Arc::clone(&rounds).run(round));
        tokio::task::yield_now().await;
        assert!(!rounds.at(20_000), "there is a task already");
        task.await.unwrap();
        assert_eq!(came.load(Ordering::Relaxed), 2);
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "and it came sooner"
        );
        assert!(rounds.at(0), "the next has to begin another");
    }

    #[test]
    fn a_task_that_ended_with_its_runtime_is_followed_by_another() {
        let rounds = rounds();
        assert!(rounds.at(3_600_000_000));
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        runtime.spawn(Arc::clone(&rounds).run(|| async { None }));
        runtime.block_on(tokio::task::yield_now());
        assert!(!rounds.at(3_600_000_000));
        drop(runtime);
        assert!(rounds.at(3_600_000_000));
    }
}
