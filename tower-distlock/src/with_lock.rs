//! Futures that run under a lock.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, resume_unwind},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use crate::{
    LockError, LockGuard, LockOptions, Locks, LostReason, OnLost, RedlockGuard, Released,
    WithLockError, lease::LockToken, metrics, options::OnBackendDown, trace::event,
};
use futures_util::FutureExt as _;
use tokio::time::Instant;

/// What a future that runs under a lock knows of it. Clones may be given to what it spawns.
#[derive(Clone, Debug)]
pub struct Held {
    fence: Option<u64>,
    token: LockToken,
}

impl Held {
    pub(crate) fn of(guard: &LockGuard) -> Self {
        Self {
            fence: Some(guard.fence()),
            token: guard.token(),
        }
    }

    /// Of a lock on several servers.
    pub(crate) fn of_most(guard: &RedlockGuard) -> Self {
        Self {
            fence: guard.fence(),
            token: guard.token(),
        }
    }

    /// The [fence](LockGuard::fence) of the grant; none where the future runs [unprotected](OnBackendDown::RunUnprotected), and under
    /// a [`Redlock`](crate::Redlock) without a [quorum fence](crate::RedlockBuilder::quorum_fence).
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// For how long the lock is held without another renewal.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        self.token.valid_for()
    }

    /// Waits until the lock is lost.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn lost(&self) -> LostReason {
        self.token.lost().await
    }

    /// Tells whether the lock is lost.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.token.clone()
    }
}

impl Locks {
    /// Runs a future under a lock, and releases the lock before this returns.
    ///
    /// If the lock is lost while the future runs, the future is dropped at once, or as [`OnLost`] says; by the clock of this process,
    /// so also while the store does not answer, and after a stop of the process the future is not polled again. A panic of the future
    /// releases the lock and goes on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use redis_conn::Backend;
    /// use tower_distlock::{LockOptions, Locks};
    ///
    /// let locks = Locks::new(&Backend::memory())?;
    /// let options = LockOptions::new().try_once();
    /// let done = locks
    ///     .with_lock("cron:overdue-tasks", options, async |held| {
    ///         Ok::<_, std::io::Error>(held.fence().is_some())
    ///     })
    ///     .await?;
    /// assert!(done);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`WithLockError::NotAcquired`]: the future did not run. [`WithLockError::Lost`], with its output if it had one: somebody else
    /// may have run at the same time. [`WithLockError::Inner`]: its own error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the future and releases the lock.
    pub async fn with_lock<T, E, F>(
        &self,
        name: &str,
        options: LockOptions,
        body: F,
    ) -> Result<T, WithLockError<E, T>>
    where
        F: AsyncFnOnce(Held) -> Result<T, E>,
    {
        let guard = match self.acquire(name, options.clone()).await {
            Ok(guard) => guard,
            Err(error) => return without(error, &options, body).await,
        };
        let held = Held::of(&guard);
        under(guard, held, options.on_lost, body, LockGuard::release).await
    }
}

/// Runs a future without its lock, if that is what the options say of this error.
pub(crate) async fn without<T, E, F>(
    error: LockError,
    options: &LockOptions,
    body: F,
) -> Result<T, WithLockError<E, T>>
where
    F: AsyncFnOnce(Held) -> Result<T, E>,
{
    if options.on_backend_down != OnBackendDown::RunUnprotected || !error.is_outage() {
        return Err(WithLockError::NotAcquired(error));
    }
    event!(warn, "a job runs without its lock: {}", error.with_cause());
    metrics::unprotected();
    let held = Held {
        fence: None,
        token: LockToken::unprotected(),
    };
    body(held).await.map_err(WithLockError::Inner)
}

/// Runs a future under a lock that is held, and releases it: on one server, or on several.
pub(crate) async fn under<G, T, E, F>(
    guard: G,
    held: Held,
    on_lost: OnLost,
    body: F,
    release: impl AsyncFnOnce(G) -> Result<Released, LockError>,
) -> Result<T, WithLockError<E, T>>
where
    F: AsyncFnOnce(Held) -> Result<T, E>,
{
    let token = held.token();
    let ran = {
        let running = pin!(AssertUnwindSafe(body(held)).catch_unwind());
        guarded(running, &token, on_lost).await
        // Here it is dropped, before the lock is released.
    };
    let was_lost = token.reason();
    let released = release(guard).await;
    let output = match ran {
        Some(Err(panic)) => resume_unwind(panic),
        Some(Ok(output)) => Some(output),
        None => None,
    };
    let reason = was_lost.or(match released {
        Ok(Released::AlreadyExpired) => Some(LostReason::Vanished),
        Ok(Released::Stolen) => Some(LostReason::Stolen),
        Ok(Released::Released | Released::HeldStill) => None,
        Err(error) => {
            // By the clock it was held until the future had ended.
            event!(
                warn,
                "a lock was not released: {}; its lease ends it",
                error.with_cause()
            );
            None
        }
    });
    match (reason, output) {
        (Some(reason), output) => Err(WithLockError::Lost { reason, output }),
        (None, Some(Ok(output))) => Ok(output),
        (None, Some(Err(error))) => Err(WithLockError::Inner(error)),
        // It is dropped only where the lock is lost.
        (None, None) => Err(WithLockError::Lost {
            reason: LostReason::Expired,
            output: None,
        }),
    }
}

/// Polls a future as long as it may run. None if it was not let to its end.
async fn guarded<F: Future>(
    mut running: Pin<&mut F>,
    token: &LockToken,
    on_lost: OnLost,
) -> Option<F::Output> {
    let grace = match on_lost {
        OnLost::Cancel => Duration::ZERO,
        OnLost::Grace(grace) => grace,
        OnLost::Notify => return Some(running.await),
    };
    // Wakes this when it is time.
    let mut over = pin!(async {
        token.lost().await;
        tokio::time::sleep(grace).await;
    });
    let mut end = None;
    poll_fn(|context| {
        // First of all, and by the clock itself: timers of a process that was stopped may fire only after the next step, which must not
        // be taken.
        if end.is_none() && token.is_lost() {
            end = Instant::now().checked_add(grace);
        }
        if end.is_some_and(|end| end <= Instant::now()) || over.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        running.as_mut().poll(context).map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redis_conn::{Backend, ManualClock};

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn locks() -> (Arc<ManualClock>, Locks) {
        let clock = Arc::new(ManualClock::new(1));
        let builder = Backend::builder().clock(Arc::clone(&clock) as _);
        let locks = Locks::new(&builder.memory().unwrap()).unwrap();
        (clock, locks)
    }

    /// How often a future is polled that finds, while it is polled, that time has gone on without it.
    async fn polls(on_lost: OnLost) -> u32 {
        let (clock, locks) = locks();
        let mut polls = 0;
        let options = LockOptions::new().ttl(TTL).on_lost(on_lost);
        let lost = locks
            .with_lock("a", options, async |_| {
                clock.advance(TTL);
                for _ in 0..3 {
                    polls += 1;
                    // It is polled again at once: no timer has fired by then.
                    tokio::task::yield_now().await;
                }
                Ok::<_, ()>(())
            })
            .await;
        assert!(matches!(lost, Err(WithLockError::Lost { .. })), "{lost:?}");
        polls
    }

    #[tokio::test]
    async fn after_a_stop_no_step_is_taken() {
        assert_eq!(polls(OnLost::Cancel).await, 1);
        assert_eq!(polls(OnLost::Grace(Duration::ZERO)).await, 1);
    }

    #[tokio::test]
    async fn who_has_some_time_left_uses_it() {
        assert_eq!(polls(OnLost::Grace(TTL)).await, 3);
        assert_eq!(polls(OnLost::Notify).await, 3);
    }
}
