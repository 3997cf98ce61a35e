//! Locks over several processes, which are really killed and really stopped.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod common;

use std::{fs, time::Duration};

use common::{HANG, TTL, fleet, locks, on_both, options, path};
use redis_conn::raw::sql::{Connection, params};
use testkit::process;
use tokio::time::{Instant, timeout};
use tower_distlock::WithLockError;

const PROCESSES: usize = 10;
const TURNS: usize = 100;

/// Counts in a file that nothing else protects.
#[tokio::test]
#[ignore = "the child of a_counter_is_exact_over_processes"]
async fn counting_child() {
    let (locks, path) = (locks().await, path());
    let mut grants = 0;
    for _ in 0..TURNS {
        let guard = locks.acquire("counter", options()).await.unwrap();
        let count: usize = fs::read_to_string(&path).unwrap().parse().unwrap();
        // Everybody else has time to do the same.
        tokio::time::sleep(Duration::from_micros(200)).await;
        fs::write(&path, (count + 1).to_string()).unwrap();
        guard.release().await.unwrap();
        grants += 1;
    }
    process::report(grants);
}

#[tokio::test]
async fn a_counter_is_exact_over_processes() {
    on_both(async |backend| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counter");
        fs::write(&path, "0").unwrap();
        let grants = fleet("counting_child", backend, &path).run(PROCESSES).await;
        assert_eq!(grants, vec![vec![TURNS.to_string()]; PROCESSES]);
        let count = fs::read_to_string(&path).unwrap();
        assert_eq!(count, (PROCESSES * TURNS).to_string());
    })
    .await;
}

/// Takes the lock, tells its fence, and keeps it.
#[tokio::test]
#[ignore = "the child of a_killed_holder_is_followed_by_one"]
async fn holding_child() {
    let locks = locks().await;
    process::report("waiting");
    let guard = locks.acquire("job", options()).await.unwrap();
    process::report(guard.fence());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_holder_is_followed_by_one() {
    on_both(async |backend| {
        let dir = tempfile::tempdir().unwrap();
        let fleet = fleet("holding_child", backend, dir.path());
        let mut children = fleet.spawn(1).await;
        let mut holder = children.remove(0);
        assert_eq!(holder.next_result().await.unwrap(), "waiting");
        let mut fence: u64 = holder.next_result().await.unwrap().parse().unwrap();
        let mut waiting = fleet.spawn(5).await;
        for waiter in &mut waiting {
            assert_eq!(waiter.next_result().await.unwrap(), "waiting");
        }
        // The first, and the one that came after it.
        for _ in 0..2 {
            let killed = Instant::now();
            holder.kill();
            let (next, greater) = timeout(HANG, async {
                let each = waiting.iter_mut().enumerate();
                let each = each.map(|(place, waiter)| {
                    Box::pin(async move { (place, waiter.next_result().await.unwrap()) })
                });
                futures_util::future::select_all(each).await.0
            })
            .await
            .expect("somebody follows");
            let greater: u64 = greater.parse().unwrap();
            assert!(greater > fence, "{greater} after {fence}");
            fence = greater;
            // No sooner than the lease can have ended that was renewed last.
            assert!(killed.elapsed() > TTL / 2, "{:?}", killed.elapsed());
            holder = waiting.remove(next);
            for waiter in &mut waiting {
                let second = timeout(Duration::from_millis(100), waiter.next_result());
                assert!(second.await.is_err(), "two hold it");
            }
        }
    })
    .await;
}

/// What is written to under the lock: it refuses a fence that is less than one that it has seen.
struct Resource(Connection);

impl Resource {
    fn open(path: &str) -> Self {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        Self(connection)
    }

    fn create(path: &str) -> Self {
        let resource = Self::open(path);
        let tables = "CREATE TABLE resource (id INTEGER PRIMARY KEY, fence INTEGER NOT NULL);
            CREATE TABLE accepted (seq INTEGER PRIMARY KEY AUTOINCREMENT, fence INTEGER NOT NULL);
            CREATE TABLE tried (seq INTEGER PRIMARY KEY AUTOINCREMENT, fence INTEGER NOT NULL);
            INSERT INTO resource VALUES (1, 0);";
        resource.0.execute_batch(tables).unwrap();
        resource
    }

    /// Whether it was accepted.
    fn write(&mut self, fence: u64) -> bool {
        let fence = fence.cast_signed();
        let tx = self.0.transaction().unwrap();
        tx.execute("INSERT INTO tried (fence) VALUES (?1)", params![fence])
            .unwrap();
        let update = "UPDATE resource SET fence = ?1 WHERE id = 1 AND fence <= ?1";
        let accepted = tx.execute(update, params![fence]).unwrap() == 1;
        if accepted {
            tx.execute("INSERT INTO accepted (fence) VALUES (?1)", params![fence])
                .unwrap();
        }
        tx.commit().unwrap();
        accepted
    }

    fn fences(&self, table: &str) -> Vec<i64> {
        let select = format!("SELECT fence FROM {table} ORDER BY seq");
        let mut select = self.0.prepare(&select).unwrap();
        let rows = select.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

/// Writes under the lock for as long as it may.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of a_stopped_holder_does_no_harm"]
async fn writing_child() {
    let (locks, path) = (locks().await, path());
    let wrote = locks
        .with_lock("resource", options(), async |held| {
            let fence = held.fence().unwrap();
            let mut resource = Resource::open(&path);
            process::report(fence);
            loop {
                resource.write(fence);
                // Work that blocks, and is polled again at once: no timer tells it anything.
                std::thread::sleep(Duration::from_millis(5));
                tokio::task::yield_now().await;
            }
            #[allow(unreachable_code, reason = "names the type of the output")]
            Ok::<(), ()>(())
        })
        .await;
    assert!(
        matches!(wrote, Err(WithLockError::Lost { output: None, .. })),
        "{wrote:?}"
    );
    process::report("lost");
}

#[tokio::test]
async fn a_stopped_holder_does_no_harm() {
    on_both(async |backend| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resource.db");
        let resource = Resource::create(path.to_str().unwrap());
        let fleet = fleet("writing_child", backend, &path);
        let mut first = fleet.spawn(1).await.remove(0);
        let old: i64 = first.next_result().await.unwrap().parse().unwrap();
        testkit::until(HANG, "the first writes", async || {
            resource.fences("accepted").len() > 10
        })
        .await
        .unwrap();

        // Not while it has the file, which nobody could write to then.
        resource.0.execute_batch("BEGIN IMMEDIATE").unwrap();
        first.freeze().await;
        resource.0.execute_batch("COMMIT").unwrap();
        let mut second = fleet.spawn(1).await.remove(0);
        let taken = timeout(HANG, second.next_result()).await.expect("its turn");
        let new: i64 = taken.unwrap().parse().unwrap();
        assert!(new > old);
        testkit::until(HANG, "the second writes", async || {
            resource.fences("accepted").last() == Some(&new)
        })
        .await
        .unwrap();
        let tried = resource.fences("tried").len();
        first.thaw();
        let said = timeout(HANG, first.next_result()).await.expect("a word");
        assert_eq!(said.unwrap(), "lost");

        let accepted = resource.fences("accepted");
        assert!(
            accepted.is_sorted(),
            "no write with a fence that was passed"
        );
        // At most the step in which it was stopped came to its end.
        let late = resource.fences("tried").split_off(tried);
        let late = late.iter().filter(|fence| **fence == old).count();
        assert!(late <= 1, "it was polled {late} times");
    })
    .await;
}
