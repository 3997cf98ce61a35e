//! What runs once for a key, on all backends with the same assertions.
#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use backends::{Fixture, START};
use redis_conn::ErrorKind;
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, task::JoinSet};
use tower_distlock::{LockError, LockOptions, Locks, OnLost, OnceError};

const HOUR: Duration = Duration::from_secs(3_600);

fn locks(fixture: &impl Fixture) -> Locks {
    Locks::with_timeout(fixture.backend(), Duration::from_secs(10)).unwrap()
}

/// With a lease that no real clock ends.
fn options() -> LockOptions {
    LockOptions::new().ttl(HOUR).wait(HOUR)
}

async fn output(locks: &Locks, number: u32) -> u32 {
    let once = locks.once_with("a", HOUR, options(), async |_| Ok::<_, Infallible>(number));
    once.await.unwrap()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    order: u64,
    text: String,
}

mod cases {
    use super::*;

    pub(super) async fn many_come_and_one_runs(fixture: &impl Fixture) {
        const CALLERS: u64 = 50;
        let runs = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for order in 0..CALLERS {
            // Each as if of another process.
            let (locks, runs) = (locks(fixture), Arc::clone(&runs));
            callers.spawn(async move {
                let ran = locks.once_with("{a}", HOUR, options(), async |_| {
                    runs.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    let text = "é\n".to_owned();
                    Ok::<_, Infallible>(Receipt { order, text })
                });
                ran.await.unwrap()
            });
        }
        let receipts = callers.join_all().await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(receipts, vec![receipts[0].clone(); CALLERS as usize]);
        let locks = locks(fixture);
        let later = locks.once("{a}", HOUR, async { panic!("it has run") });
        let later: Result<_, OnceError<Infallible, Receipt>> = later.await;
        assert_eq!(later.unwrap(), receipts[0]);
        assert!(fixture.lasts(HOUR.as_micros() as u64).await);
    }

    pub(super) async fn each_key_is_of_its_own(fixture: &impl Fixture) {
        let locks = locks(fixture);
        for key in ["a", "b", "A", "a b"] {
            let once = locks.once(key, HOUR, async { Ok::<_, Infallible>(key.to_owned()) });
            assert_eq!(once.await.unwrap(), key);
        }
    }

    pub(super) async fn a_failure_is_not_stored(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let failed = locks.once("a", HOUR, async { Err::<u32, _>("no") }).await;
        assert!(matches!(failed, Err(OnceError::Inner("no"))), "{failed:?}");
        assert_eq!(output(&locks, 2).await, 2);
        assert_eq!(output(&locks, 3).await, 2);
    }

    pub(super) async fn who_does_not_wait_is_told_that_it_runs(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let ran = one.once("a", HOUR, async {
            let busy = two
                .once_with("a", HOUR, options().try_once(), async |_| Ok::<_, ()>(2))
                .await;
            assert!(busy.unwrap_err().is_busy());
            Ok::<_, Infallible>(1)
        });
        assert_eq!(ran.await.unwrap(), 1);
        assert_eq!(output(&two, 2).await, 1);
    }

    pub(super) async fn after_a_death_another_one_runs_it(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let (begun, has_begun) = oneshot::channel();
        let (go, gone) = oneshot::channel();
        let dead = tokio::spawn(async move {
            // It goes on at last, as a process that was stopped.
            let options = options().on_lost(OnLost::Notify);
            let ran = one.once_with("a", HOUR, options, async move |_| {
                begun.send(()).unwrap();
                gone.await.unwrap();
                Ok::<u32, Infallible>(1)
            });
            ran.await
        });
        has_begun.await.unwrap();
        fixture.set(START + 3_600_000_000).await;
        assert_eq!(output(&two, 2).await, 2);
        go.send(()).unwrap();
        let lost = dead.await.unwrap();
        let Err(OnceError::Lost {
            output: Some(1), ..
        }) = lost
        else {
            panic!("it was run without the lock: {lost:?}");
        };
        assert_eq!(output(&two, 3).await, 2, "the later one counts");
    }

    pub(super) async fn a_dropped_call_leaves_it_to_the_next(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let (begun, has_begun) = oneshot::channel();
        let dropped = tokio::spawn({
            let locks = locks.clone();
            async move {
                let hangs = locks.once("a", HOUR, async move {
                    begun.send(()).unwrap();
                    std::future::pending::<Result<u32, Infallible>>().await
                });
                hangs.await
            }
        });
        has_begun.await.unwrap();
        let waiting = tokio::spawn(async move { output(&locks, 2).await });
        tokio::task::yield_now().await;
        dropped.abort();
        assert_eq!(waiting.await.unwrap(), 2);
    }

    pub(super) async fn it_is_kept_for_its_time(fixture: &impl Fixture) {
        let locks = locks(fixture);
        assert_eq!(output(&locks, 1).await, 1);
        // A key of Redis ends by its own clock, which cannot be set.
        if !fixture.backend().kind().starts_with("redis") {
            fixture.set(START + 3_600_000_000 - 1).await;
            assert_eq!(output(&locks, 2).await, 1);
            fixture.set(START + 3_600_000_000).await;
            assert_eq!(output(&locks, 2).await, 2);
        }
    }

    pub(super) async fn what_cannot_be_read_or_written_is_an_error(fixture: &impl Fixture) {
        let locks = locks(fixture);
        assert_eq!(output(&locks, 1).await, 1);
        let other = locks.once("a", HOUR, async { Ok::<_, Infallible>(String::new()) });
        let Err(OnceError::Unreadable(error)) = other.await else {
            panic!("it is a number");
        };
        assert_eq!(*error.kind(), ErrorKind::Corrupt);
        let never = locks.once("b", Duration::ZERO, async { Ok::<_, Infallible>(1) });
        let Err(OnceError::NotAcquired(LockError::Backend(error))) = never.await else {
            panic!("no ttl");
        };
        assert_eq!(*error.kind(), ErrorKind::Config);
        let unwritten = locks.once("c", HOUR, async {
            let map = std::collections::HashMap::from([((1, 2), 3)]);
            Ok::<_, Infallible>(map)
        });
        let Err(OnceError::NotStored { output, error }) = unwritten.await else {
            panic!("a key of JSON is a text");
        };
        assert_eq!(output[&(1, 2)], 3);
        assert_eq!(*error.kind(), ErrorKind::Config);
        assert!(!locks.is_locked("once:c").await.unwrap());
    }

    pub(super) async fn what_a_later_version_wrote_is_left_alone(fixture: &impl Fixture) {
        let locks = locks(fixture);
        assert_eq!(output(&locks, 1).await, 1);
        fixture.spoil(b"200000000000000000001later").await;
        let Some(before) = fixture.stored().await else {
            return;
        };
        let refused = locks
            .once("a", HOUR, async { Ok::<_, Infallible>(2) })
            .await;
        let Err(OnceError::Unreadable(error)) = refused else {
            panic!("it must not run: {refused:?}");
        };
        assert_eq!(*error.kind(), ErrorKind::Corrupt);
        assert_eq!(fixture.stored().await.unwrap(), before);
    }
}

backends::on_each_backend! {
    many_come_and_one_runs
    each_key_is_of_its_own
    a_failure_is_not_stored
    who_does_not_wait_is_told_that_it_runs
    after_a_death_another_one_runs_it
    a_dropped_call_leaves_it_to_the_next
    it_is_kept_for_its_time
    what_cannot_be_read_or_written_is_an_error
    what_a_later_version_wrote_is_left_alone
}
