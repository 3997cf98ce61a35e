//! What locks promise, on all three backends and on every topology of Redis with the same assertions.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use backends::{Fixture, START};
use redis_conn::{Audit, ErrorKind};
use tokio::sync::oneshot;
use tower_distlock::{
    FenceMode, LockError, LockGuard, LockOptions, Locks, LostReason, OnLost, Owner, Released,
    WithLockError,
};

/// Long enough that no key of a frozen clock expires by the server's own.
const TTL: Duration = Duration::from_secs(600);
const HOUR: u64 = 3_600_000_000;

fn locks(fixture: &impl Fixture) -> Locks {
    Locks::with_timeout(fixture.backend(), Duration::from_secs(10)).unwrap()
}

fn options() -> LockOptions {
    LockOptions::new().ttl(TTL)
}

async fn hold(locks: &Locks, name: &str) -> LockGuard {
    locks.try_acquire(name, options()).await.unwrap()
}

async fn is_busy(locks: &Locks, name: &str) -> bool {
    let tried = locks.try_acquire(name, options()).await;
    matches!(tried, Err(LockError::NotAcquired { .. }))
}

/// The lock is free, or will be before long: a drop only enqueues.
async fn is_free(locks: &Locks, name: &str) {
    until("the lock is free", async || {
        !locks.is_locked(name).await.unwrap()
    })
    .await;
}

async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    let bound = Duration::from_secs(20);
    testkit::until(bound, what, is_so).await.unwrap();
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

mod cases {
    use super::*;

    pub(super) async fn one_holds_it_at_a_time(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let guard = hold(&one, "a").await;
        assert!(is_busy(&two, "a").await && is_busy(&one, "a").await);
        let fence = guard.fence();
        assert_eq!(guard.release().await.unwrap(), Released::Released);
        let guard = hold(&two, "a").await;
        assert!(guard.fence() > fence, "also while the clock stands");
        assert!(is_busy(&one, "a").await);
        drop(hold(&one, "b").await);
    }

    pub(super) async fn who_is_refused_is_told_who_holds_it(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let _guard = hold(&locks, "a").await;
        let Err(LockError::NotAcquired { owner, remaining }) =
            locks.try_acquire("a", options()).await
        else {
            panic!("it is held");
        };
        assert_eq!(owner, fixture.backend().instance_id());
        assert_eq!(remaining, TTL);
    }

    pub(super) async fn a_dropped_guard_releases(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let guard = hold(&locks, "a").await;
        drop(guard);
        is_free(&locks, "a").await;
        drop(hold(&locks, "a").await);
    }

    pub(super) async fn names_of_any_kind_are_apart(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let long = |end: &str| "x".repeat(4_000) + end;
        let names = [
            "a",
            "A",
            "a:held",
            "{a}",
            "}{",
            "*",
            "a b",
            "%41",
            "é",
            "\u{0}",
            &long("1"),
            &long("2"),
        ];
        let mut guards = Vec::new();
        for name in names {
            guards.push(hold(&locks, name).await);
            assert!(is_busy(&locks, name).await);
        }
        let held: BTreeSet<_> = locks.held().into_iter().map(|held| held.name).collect();
        assert_eq!(held, names.map(str::to_owned).into());
        for wrong in ["", &"x".repeat(4_097)] {
            let Err(LockError::Backend(error)) = locks.try_acquire(wrong, options()).await else {
                panic!("no name");
            };
            assert_eq!(*error.kind(), ErrorKind::Config);
        }
    }

    pub(super) async fn a_lease_that_ended_is_anybodys(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let guard = hold(&one, "a").await;
        fixture.set(START + micros(TTL) - 1).await;
        assert!(is_busy(&two, "a").await);
        fixture.set(START + micros(TTL)).await;
        assert!(!two.is_locked("a").await.unwrap());
        let other = hold(&two, "a").await;
        assert!(other.fence() > guard.fence());
        assert_eq!(guard.release().await.unwrap(), Released::Stolen);
        assert_eq!(other.release().await.unwrap(), Released::Released);
    }

    pub(super) async fn a_lease_that_ended_is_no_error_of_who_releases_it(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let guard = hold(&locks, "a").await;
        fixture.set(START + micros(TTL)).await;
        assert_eq!(guard.release().await.unwrap(), Released::AlreadyExpired);
        drop(hold(&locks, "a").await);
    }

    pub(super) async fn it_is_prolonged_from_now_on(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let guard = hold(&locks, "a").await;
        // What is near its end is not relied upon: clocks drift.
        fixture.set(START + micros(TTL - TTL / 50)).await;
        guard.extend(2 * TTL).await.unwrap();
        assert_eq!(locks.ttl("a").await.unwrap(), Some(2 * TTL));
        assert!(guard.valid_for() > TTL);
        let Err(LockError::Backend(error)) = guard.extend(Duration::ZERO).await else {
            panic!("no ttl");
        };
        assert_eq!(*error.kind(), ErrorKind::Config);
        fixture.set(START + 3 * micros(TTL)).await;
        let other = hold(&locks, "a").await;
        let Err(LockError::Lost(reason)) = guard.extend(TTL).await else {
            panic!("somebody else holds it");
        };
        assert!(matches!(reason, LostReason::Stolen | LostReason::Expired));
        assert_eq!(guard.lost().await, reason);
        assert_eq!(other.release().await.unwrap(), Released::Released);
    }

    pub(super) async fn a_clock_that_goes_back_prolongs_no_lease(fixture: &impl Fixture) {
        let locks = locks(fixture);
        fixture.set(START + HOUR).await;
        let guard = hold(&locks, "a").await;
        fixture.set(START).await;
        assert!(is_busy(&locks, "a").await);
        fixture.set(START + micros(TTL)).await;
        let other = hold(&locks, "a").await;
        assert!(other.fence() > guard.fence(), "fences do not go back");
    }

    pub(super) async fn a_fence_may_be_a_counter(fixture: &impl Fixture) {
        let locks = locks(fixture);
        for expected in 1..=3 {
            let options = options().fence_mode(FenceMode::Counter);
            let guard = locks.try_acquire("a", options).await.unwrap();
            assert_eq!(guard.fence(), expected);
            guard.release().await.unwrap();
        }
    }

    pub(super) async fn who_waits_gets_it_when_it_is_released(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let guard = hold(&one, "a").await;
        let fence = guard.fence();
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.acquire("a", options().wait(TTL)).await.unwrap() }
        });
        tokio::task::yield_now().await;
        guard.release().await.unwrap();
        let other = waiting.await.unwrap();
        assert!(other.fence() > fence);
        assert!(is_busy(&one, "a").await);
    }

    pub(super) async fn many_wait_and_each_gets_it_once(fixture: &impl Fixture) {
        const TASKS: usize = 16;
        let guard = hold(&locks(fixture), "a").await;
        let (inside, mut fences) = (Arc::new(tokio::sync::Mutex::new(())), BTreeSet::new());
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                // Some are of another handle, as if of another process.
                let (locks, inside) = (locks(fixture), Arc::clone(&inside));
                tokio::spawn(async move {
                    let options = options().wait(TTL);
                    let options = if task % 2 == 0 {
                        options.fair()
                    } else {
                        options
                    };
                    let guard = locks.acquire("a", options).await.unwrap();
                    let alone = inside.try_lock().expect("two hold it");
                    tokio::task::yield_now().await;
                    drop(alone);
                    let fence = guard.fence();
                    assert_eq!(guard.release().await.unwrap(), Released::Released);
                    fence
                })
            })
            .collect();
        guard.release().await.unwrap();
        for task in tasks {
            fences.insert(task.await.unwrap());
        }
        assert_eq!(fences.len(), TASKS);
        is_free(&locks(fixture), "a").await;
    }

    pub(super) async fn who_gives_up_leaves_nothing_behind(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let guard = hold(&locks, "a").await;
        for options in [options(), options().fair()] {
            let wait = Duration::from_millis(20);
            let Err(LockError::TimedOut { waited, owner }) =
                locks.acquire("a", options.clone().wait(wait)).await
            else {
                panic!("it is held");
            };
            assert!(waited >= wait);
            assert_eq!(owner, fixture.backend().instance_id());
            let dropped = locks.acquire("a", options.wait(TTL));
            assert!(tokio::time::timeout(wait, dropped).await.is_err());
        }
        guard.release().await.unwrap();
        is_free(&locks, "a").await;
        drop(hold(&locks, "a").await);
    }

    pub(super) async fn a_lock_taken_by_force_is_lost_at_once(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let audit = Audit::new("test", "it hangs");
        assert!(!two.force_release("a", &audit).await.unwrap());
        let guard = hold(&one, "a").await;
        // Until then it is not certain that this process hears of it.
        until("the word is heard", async || {
            let probe = hold(&one, "probe").await;
            two.force_release("probe", &audit).await.unwrap();
            let lost = tokio::time::timeout(Duration::from_millis(100), probe.lost());
            lost.await.is_ok()
        })
        .await;
        assert!(two.force_release("a", &audit).await.unwrap());
        assert_eq!(guard.lost().await, LostReason::Forced);
        let other = hold(&two, "a").await;
        assert!(other.fence() > guard.fence());
        assert_eq!(guard.release().await.unwrap(), Released::Stolen);
    }

    pub(super) async fn who_waits_is_next_after_force(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let _guard = hold(&one, "a").await;
        let waiting = tokio::spawn({
            let two = two.clone();
            async move { two.acquire("a", options().wait(TTL).fair()).await.unwrap() }
        });
        let audit = Audit::new("test", "it hangs");
        until("it is taken", async || {
            two.force_release("a", &audit).await.unwrap();
            waiting.is_finished()
        })
        .await;
        drop(waiting.await.unwrap());
    }

    pub(super) async fn what_is_held_can_be_seen(fixture: &impl Fixture) {
        let locks = locks(fixture);
        assert_eq!(locks.owner("job:a").await.unwrap(), None);
        assert_eq!(locks.ttl("job:a").await.unwrap(), None);
        let guard = hold(&locks, "job:a").await;
        let other = [hold(&locks, "job:{b}").await, hold(&locks, "other").await];
        let [holder] = &locks.holders("job:a").await.unwrap()[..] else {
            panic!("one holds it");
        };
        assert_eq!((holder.owner, holder.fence), (guard.owner(), guard.fence()));
        assert_eq!(holder.remaining, TTL);
        assert_eq!(
            locks.owner("job:a").await.unwrap(),
            Some(holder.instance.clone())
        );
        assert_eq!(locks.list("job:").await.unwrap(), ["job:a", "job:{b}"]);
        assert_eq!(locks.list("job:{").await.unwrap(), ["job:{b}"]);
        assert_eq!(locks.list("").await.unwrap().len(), 3);
        drop((guard, other));
        is_free(&locks, "job:a").await;
        until("nothing is held", async || {
            locks.list("").await.unwrap().is_empty()
        })
        .await;
        assert!(locks.held().is_empty());
    }

    pub(super) async fn an_owner_may_take_it_again(fixture: &impl Fixture) {
        let (locks, owner) = (locks(fixture), Owner::new());
        let mine = || options().owner(&owner);
        let first = locks.try_acquire("a", mine()).await.unwrap();
        let second = locks.try_acquire("a", mine()).await.unwrap();
        assert_eq!(first.fence(), second.fence());
        let other = options().owner(&Owner::new());
        assert!(locks.try_acquire("a", other).await.unwrap_err().is_busy());
        assert_eq!(first.release().await.unwrap(), Released::HeldStill);
        assert!(is_busy(&locks, "a").await);
        assert_eq!(second.release().await.unwrap(), Released::Released);
        drop(locks.try_acquire("a", mine()).await.unwrap());
    }

    pub(super) async fn a_future_runs_under_its_lock(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let mut ran = 0;
        let output = locks
            .with_lock("a", options(), async |held| {
                ran += 1;
                assert!(held.fence().is_some() && held.valid_for() > TTL / 2);
                assert!(is_busy(&locks, "a").await);
                Ok::<_, std::io::Error>(7)
            })
            .await;
        assert_eq!((output.unwrap(), ran), (7, 1));
        assert!(!locks.is_locked("a").await.unwrap(), "before it returned");
        let failed = locks
            .with_lock("a", options(), async |_| Err::<(), _>("no"))
            .await;
        assert!(matches!(failed, Err(WithLockError::Inner("no"))));
        let _guard = hold(&locks, "a").await;
        let refused = locks
            .with_lock("a", options().try_once(), async |_| Ok::<_, ()>(()))
            .await;
        assert!(refused.unwrap_err().is_busy());
    }

    pub(super) async fn a_future_that_lost_its_lock_is_dropped(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        let (begun, has_begun) = oneshot::channel();
        let (alive, dropped) = oneshot::channel::<()>();
        let running = tokio::spawn({
            let one = one.clone();
            async move {
                one.with_lock("a", options(), async move |_| {
                    let _alive = alive;
                    begun.send(()).unwrap();
                    std::future::pending::<Result<(), ()>>().await
                })
                .await
            }
        });
        has_begun.await.unwrap();
        let audit = Audit::new("test", "it hangs");
        until("it is dropped", async || {
            two.force_release("a", &audit).await.unwrap();
            running.is_finished()
        })
        .await;
        assert!(dropped.await.is_err());
        let lost = running.await.unwrap();
        assert!(
            matches!(lost, Err(WithLockError::Lost { output: None, .. })),
            "{lost:?}"
        );
    }

    pub(super) async fn the_output_of_what_ran_without_its_lock_is_told(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let audit = Audit::new("test", "it hangs");
        for on_lost in [OnLost::Notify, OnLost::Grace(TTL)] {
            let lost = locks
                .with_lock("a", options().on_lost(on_lost), async |held| {
                    assert!(locks.force_release("a", &audit).await.unwrap());
                    // Whether this was heard or not.
                    let _ = held.token().reason();
                    Ok::<_, ()>(7)
                })
                .await;
            assert!(
                matches!(
                    lost,
                    Err(WithLockError::Lost {
                        output: Some(Ok(7)),
                        ..
                    })
                ),
                "{lost:?}"
            );
        }
    }

    pub(super) async fn a_panic_releases_and_goes_on(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let running = tokio::spawn({
            let locks = locks.clone();
            async move {
                locks
                    .with_lock("a", options(), async |_| -> Result<(), ()> {
                        panic!("in the body")
                    })
                    .await
            }
        });
        assert!(running.await.unwrap_err().is_panic());
        assert!(!locks.is_locked("a").await.unwrap());
    }

    pub(super) async fn closing_takes_what_is_held(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let guards = [hold(&locks, "a").await, hold(&locks, "b").await];
        let before = fixture.stored().await;
        fixture
            .backend()
            .close(Duration::from_secs(10))
            .await
            .unwrap();
        for guard in guards {
            assert_eq!(guard.lost().await, LostReason::Closed);
        }
        if before.is_some() {
            assert_ne!(
                fixture.stored().await,
                before,
                "somebody else may have them"
            );
        }
        assert!(locks.try_acquire("c", options()).await.is_err());
    }
}

backends::on_each_backend! {
    one_holds_it_at_a_time
    who_is_refused_is_told_who_holds_it
    a_dropped_guard_releases
    names_of_any_kind_are_apart
    a_lease_that_ended_is_anybodys
    a_lease_that_ended_is_no_error_of_who_releases_it
    it_is_prolonged_from_now_on
    a_clock_that_goes_back_prolongs_no_lease
    a_fence_may_be_a_counter
    who_waits_gets_it_when_it_is_released
    many_wait_and_each_gets_it_once
    who_gives_up_leaves_nothing_behind
    a_lock_taken_by_force_is_lost_at_once
    who_waits_is_next_after_force
    what_is_held_can_be_seen
    an_owner_may_take_it_again
    a_future_runs_under_its_lock
    a_future_that_lost_its_lock_is_dropped
    the_output_of_what_ran_without_its_lock_is_told
    a_panic_releases_and_goes_on
    closing_takes_what_is_held
}
