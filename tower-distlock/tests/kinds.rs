//! Locks of other kinds than one holder at a time, on all three backends and on every topology of Redis.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{collections::BTreeSet, time::Duration};

use backends::{Fixture, START};
use futures_util::FutureExt as _;
use redis_conn::ErrorKind;
use tower_distlock::{LockError, LockOptions, Locks, Released};

/// Long enough that no key of a frozen clock expires by the server's own.
const TTL: Duration = Duration::from_secs(600);

fn locks(fixture: &impl Fixture) -> Locks {
    Locks::with_timeout(fixture.backend(), Duration::from_secs(10)).unwrap()
}

/// Asks once.
fn once() -> LockOptions {
    LockOptions::new().ttl(TTL).try_once()
}

fn waiting() -> LockOptions {
    LockOptions::new().ttl(TTL).wait(TTL)
}

fn is_busy<T: std::fmt::Debug>(tried: Result<T, LockError>) -> bool {
    matches!(tried, Err(LockError::NotAcquired { .. }))
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

    pub(super) async fn a_semaphore_has_so_many_permits(fixture: &impl Fixture) {
        let semaphore = locks(fixture).semaphore("a", 3).unwrap();
        let mut permits = Vec::new();
        for _ in 0..3 {
            permits.push(semaphore.acquire(once()).await.unwrap());
        }
        let fences: BTreeSet<_> = permits.iter().map(|permit| permit.fence()).collect();
        assert_eq!(fences.len(), 3, "each has its own");
        assert!(is_busy(semaphore.acquire(once()).await));
        let first = permits.remove(0);
        assert_eq!(first.release().await.unwrap(), Released::Released);
        drop(semaphore.acquire(once()).await.unwrap());
        for wrong in [0, 1_025] {
            let error = locks(fixture).semaphore("a", wrong).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config);
        }
    }

    pub(super) async fn permits_of_the_dead_come_back_one_by_one(fixture: &impl Fixture) {
        let semaphore = locks(fixture).semaphore("a", 2).unwrap();
        let _dead = semaphore.acquire(once()).await.unwrap();
        fixture.set(START + micros(TTL / 2)).await;
        let _later = semaphore.acquire(once()).await.unwrap();
        assert!(is_busy(semaphore.acquire(once()).await));
        fixture.set(START + micros(TTL)).await;
        let _third = semaphore.acquire(once()).await.unwrap();
        assert!(
            is_busy(semaphore.acquire(once()).await),
            "one is held still"
        );
    }

    pub(super) async fn who_waits_for_a_permit_gets_the_next(fixture: &impl Fixture) {
        let semaphore = locks(fixture).semaphore("a", 2).unwrap();
        let held = [
            semaphore.acquire(once()).await.unwrap(),
            semaphore.acquire(once()).await.unwrap(),
        ];
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let semaphore = semaphore.clone();
                tokio::spawn(async move {
                    let permit = semaphore.acquire(waiting()).await.unwrap();
                    permit.release().await.unwrap()
                })
            })
            .collect();
        drop(held);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Released::Released);
        }
    }

    pub(super) async fn kinds_of_one_name_must_agree(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let permit = locks.semaphore("a", 3).unwrap();
        let permit = permit.acquire(once()).await.unwrap();
        let others = [
            locks.semaphore("a", 4).unwrap().acquire(once()).await,
            locks.try_acquire("a", once()).await,
            locks.rw_lock("a").read(once()).await,
        ];
        for other in others {
            let Err(LockError::Backend(error)) = other else {
                panic!("it is a semaphore of 3");
            };
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("semaphore of 3"), "{error}");
        }
        permit.release().await.unwrap();
        drop(locks.try_acquire("a", once()).await.unwrap());
    }

    pub(super) async fn many_read_or_one_writes(fixture: &impl Fixture) {
        let lock = locks(fixture).rw_lock("a");
        let readers = [
            lock.read(once()).await.unwrap(),
            lock.read(once()).await.unwrap(),
        ];
        assert!(is_busy(lock.write(once()).await));
        for reader in readers {
            assert_eq!(reader.release().await.unwrap(), Released::Released);
        }
        let writer = lock.write(once()).await.unwrap();
        assert!(is_busy(lock.read(once()).await));
        assert!(is_busy(lock.write(once()).await));
        assert_eq!(writer.release().await.unwrap(), Released::Released);
        drop(lock.read(once()).await.unwrap());
    }

    pub(super) async fn a_writer_that_waits_is_not_overtaken_by_readers(fixture: &impl Fixture) {
        let (lock, others) = (locks(fixture).rw_lock("a"), locks(fixture).rw_lock("a"));
        let reader = lock.read(once()).await.unwrap();
        let writing = tokio::spawn({
            let lock = lock.clone();
            async move { lock.write(waiting()).await.unwrap() }
        });
        until("the writer stands in line", async || {
            is_busy(others.read(once()).await)
        })
        .await;
        let reading = tokio::spawn(async move { others.read(waiting()).await.unwrap() });
        reader.release().await.unwrap();
        let writer = writing.await.unwrap();
        assert!(!reading.is_finished());
        let fence = writer.fence();
        writer.release().await.unwrap();
        assert!(reading.await.unwrap().fence() > fence);
    }

    pub(super) async fn a_dead_reader_holds_up_a_writer_no_longer_than_its_lease(
        fixture: &impl Fixture,
    ) {
        let lock = locks(fixture).rw_lock("a");
        let _dead = lock.read(once()).await.unwrap();
        fixture.set(START + micros(TTL / 2)).await;
        let alive = lock.read(once()).await.unwrap();
        fixture.set(START + micros(TTL)).await;
        assert!(is_busy(lock.write(once()).await));
        alive.release().await.unwrap();
        drop(lock.write(once()).await.unwrap());
    }

    pub(super) async fn several_are_held_together_or_none(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let names = ["b", "a", "c", "a"];
        let guard = locks.acquire_all(names, once()).await.unwrap();
        assert_eq!(locks.list("").await.unwrap(), ["a", "b", "c"]);
        assert!(guard.fence("a").is_some() && guard.fence("d").is_none());
        assert!(guard.valid_for() > TTL / 2);
        let released = guard.release().await.unwrap();
        assert_eq!(released.len(), 3);
        assert!(
            released
                .iter()
                .all(|(_, released)| *released == Released::Released)
        );

        let _held = locks.try_acquire("c", once()).await.unwrap();
        assert!(is_busy(locks.acquire_all(names, once()).await));
        until("the others are free", async || {
            locks.list("").await.unwrap() == ["c"]
        })
        .await;
    }

    pub(super) async fn several_that_are_dropped_leave_nothing(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let names = ["a", "b", "c"];
        // The first time more is under way than that.
        for _ in 0..3 {
            drop(locks.acquire_all(names, once()).now_or_never());
            // What was asked for before is decided before.
            for name in names {
                let bound = Duration::from_secs(20);
                let guard = locks.acquire(name, once().wait(bound)).await.unwrap();
                guard.release().await.unwrap();
            }
            assert!(locks.list("").await.unwrap().is_empty());
        }
    }

    pub(super) async fn two_who_want_the_same_locks_do_not_wait_for_each_other(
        fixture: &impl Fixture,
    ) {
        let tasks: Vec<_> = [["a", "b"], ["b", "a"]]
            .map(|names| {
                let locks = locks(fixture);
                tokio::spawn(async move {
                    for _ in 0..20 {
                        let guard = locks.acquire_all(names, waiting()).await.unwrap();
                        guard.release().await.unwrap();
                    }
                })
            })
            .into();
        for task in tasks {
            task.await.unwrap();
        }
    }
}

backends::on_each_backend! {
    a_semaphore_has_so_many_permits
    permits_of_the_dead_come_back_one_by_one
    who_waits_for_a_permit_gets_the_next
    kinds_of_one_name_must_agree
    many_read_or_one_writes
    a_writer_that_waits_is_not_overtaken_by_readers
    a_dead_reader_holds_up_a_writer_no_longer_than_its_lease
    several_are_held_together_or_none
    several_that_are_dropped_leave_nothing
    two_who_want_the_same_locks_do_not_wait_for_each_other
}
