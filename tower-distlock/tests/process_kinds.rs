//! Kinds of locks over several processes, which are really killed.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod common;

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::Write as _,
    time::Duration,
};

use common::{HANG, TTL, backend, fleet, locks, locks_on, on_both, options, path};
use futures_util::future::select_all;
use redis_conn::{
    Backend, Config, Layout,
    raw::{
        Call, Class, Engine,
        sql::{Connection, params},
        sql_error,
    },
};
use testkit::{
    process::{self, Child},
    until,
};
use tokio::{task::JoinSet, time::timeout};
use tower_distlock::{Election, ElectionEvent, LockError, LockOptions, Locks, Semaphore};

/// For those who live: so that no busy machine ends their leases.
const LONG: Duration = Duration::from_secs(60);
/// For what must not happen: a test that waits for less sees less, and fails no sooner.
const WHILE: Duration = Duration::from_millis(100);

/// What a child is to have for a lease.
fn ttl() -> Duration {
    Duration::from_secs(env::var("TEST_TTL").unwrap().parse().unwrap())
}

/// The backend of the children, in this process.
async fn backend_of(variables: &[(String, String)]) -> Backend {
    let [(name, value)] = variables else {
        panic!("one says where it is: {variables:?}");
    };
    match name.as_str() {
        "SQLITE_PATH" => Backend::sqlite(value).await.unwrap(),
        _ => Backend::redis(Config::from_url(value).unwrap()).unwrap(),
    }
}

/// How many stand in the line of a lock that is held. No handle tells, but the store does.
async fn in_line(backend: &Backend, name: &str) -> usize {
    let layout = Layout {
        letter: 'l',
        version: 1,
    };
    match backend.engine() {
        Engine::Redis(redis) => {
            let line =
                Call::new("ZRANGE", Class::Idempotent).key(backend.key(layout, name, "line"));
            let line = redis.call(line.arg("0").arg("-1"), HANG).await.unwrap();
            line.list().unwrap().len()
        }
        Engine::Sqlite(sqlite) => {
            let key = backend.key(layout, name, "held");
            let read = sqlite.read(HANG, move |tx| {
                let select = "SELECT value FROM tk_lock WHERE key = ?1";
                tx.query_row(select, params![key], |row| row.get(0))
                    .map_err(sql_error)
            });
            let value: Vec<u8> = read.await.unwrap();
            // Behind the number of holders: src/store/bytes.rs.
            let (_, count) = value.split_at(27);
            u32::from_le_bytes(*count.first_chunk().unwrap()) as usize
        }
        Engine::Memory(_) => panic!("processes share no memory"),
    }
}

async fn until_in_line(backend: &Backend, name: &str, count: usize) {
    let what = format!("{count} in line for {name}");
    let stand = async || in_line(backend, name).await == count;
    until(HANG, &what, stand).await.unwrap();
}

/// Whether no child says anything for a while.
async fn are_silent(children: &mut [Child]) -> bool {
    for child in children {
        if timeout(WHILE, child.next_result()).await.is_ok() {
            return false;
        }
    }
    true
}

const LINED_UP: usize = 16;

/// Has every second waiter, each when all before it stand in line.
#[tokio::test]
#[ignore = "the child of who_waits_in_order_is_served_in_order_of_arrival"]
async fn lining_up_child() {
    let (backend, path) = (backend().await, path());
    let (locks, mut waiters) = (locks_on(&backend), JoinSet::new());
    let first: usize = env::var("TESTKIT_CHILD").unwrap().parse().unwrap();
    for place in (first..LINED_UP).step_by(2) {
        until_in_line(&backend, "job", place).await;
        // As people come: the line has decided by now who is behind whom.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let (locks, path) = (locks.clone(), path.clone());
        waiters.spawn(async move {
            let guard = locks.acquire("job", options().fair()).await.unwrap();
            let mut served = File::options().append(true).open(path).unwrap();
            writeln!(served, "{place}").unwrap();
            guard.release().await.unwrap();
        });
    }
    waiters.join_all().await;
}

#[tokio::test]
async fn who_waits_in_order_is_served_in_order_of_arrival() {
    on_both(async |variables| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("served");
        fs::write(&path, "").unwrap();
        let backend = backend_of(variables).await;
        let locks = locks_on(&backend);
        let guard = locks.acquire("job", options().ttl(LONG)).await.unwrap();
        let children = fleet("lining_up_child", variables, &path).spawn(2).await;
        until_in_line(&backend, "job", LINED_UP).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "it is held");
        guard.release().await.unwrap();
        for child in children {
            child.finish().await;
        }
        let served = fs::read_to_string(&path).unwrap();
        let served: Vec<usize> = served.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(served, (0..LINED_UP).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
#[ignore = "the child of reader_and_writer"]
async fn reading_child() {
    let lock = locks().await.rw_lock("doc");
    let _guard = lock.read(options()).await.unwrap();
    process::report("reads");
    std::future::pending::<()>().await;
}

#[tokio::test]
#[ignore = "the child of reader_and_writer"]
async fn rewriting_child() {
    let lock = locks().await.rw_lock("doc");
    let _guard = lock.write(options().ttl(LONG)).await.unwrap();
    process::report("writes");
    std::future::pending::<()>().await;
}

/// One that reads, and one that stands in line to write.
async fn reader_and_writer(
    variables: &[(String, String)],
    backend: &Backend,
) -> (Child, [Child; 1]) {
    let dir = tempfile::tempdir().unwrap();
    let children = async |child| fleet(child, variables, dir.path()).spawn(1).await.remove(0);
    let mut reader = children("reading_child").await;
    assert_eq!(reader.next_result().await.unwrap(), "reads");
    let mut writer = [children("rewriting_child").await];
    until_in_line(backend, "doc", 1).await;
    assert!(are_silent(&mut writer).await, "one reads");
    (reader, writer)
}

async fn until_it_writes(writer: &mut [Child; 1]) {
    let writes = timeout(HANG, writer[0].next_result()).await;
    assert_eq!(writes.expect("its turn").unwrap(), "writes");
}

#[tokio::test]
async fn a_killed_reader_holds_up_a_writer_no_longer_than_its_lease() {
    on_both(async |variables| {
        let backend = backend_of(variables).await;
        let (reader, mut writer) = reader_and_writer(variables, &backend).await;
        reader.kill();
        // Nobody lets go of anything: the end of the lease is all that there is.
        until_it_writes(&mut writer).await;
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_lives_holds_up_a_writer_beside_a_killed_one() {
    on_both(async |variables| {
        let backend = backend_of(variables).await;
        let locks = locks_on(&backend);
        let lock = locks.rw_lock("doc");
        let alive = lock.read(options().ttl(LONG)).await.unwrap();
        let (reader, mut writer) = reader_and_writer(variables, &backend).await;
        assert_eq!(locks.holders("doc").await.unwrap().len(), 2);
        reader.kill();
        until(HANG, "the end of its lease", async || {
            locks.holders("doc").await.unwrap().len() == 1
        })
        .await
        .unwrap();
        // It asks again once a second.
        let asked_again = timeout(TTL, writer[0].next_result());
        assert!(asked_again.await.is_err(), "one reads still");
        let holders = locks.holders("doc").await.unwrap();
        assert_eq!(holders[0].owner, alive.owner());
        alive.release().await.unwrap();
        until_it_writes(&mut writer).await;
    })
    .await;
}

const PERMITS: u8 = 3;

fn permits(locks: &Locks) -> Semaphore {
    locks.semaphore("pool", PERMITS.into()).unwrap()
}

/// Takes a permit, tells its fence, and keeps it.
#[tokio::test]
#[ignore = "the child of permits_of_killed_processes_come_back"]
async fn permit_child() {
    let permits = permits(&locks().await);
    let permit = permits.acquire(options().ttl(ttl())).await.unwrap();
    process::report(permit.fence());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn permits_of_killed_processes_come_back() {
    on_both(async |variables| {
        let dir = tempfile::tempdir().unwrap();
        let fleet = |ttl: Duration| {
            fleet("permit_child", variables, dir.path()).env("TEST_TTL", ttl.as_secs())
        };
        let backend = backend_of(variables).await;
        let locks = locks_on(&backend);
        let mut holders = fleet(TTL).spawn(PERMITS.into()).await;
        for holder in &mut holders {
            holder.next_result().await.unwrap();
        }
        let mut waiters = fleet(LONG).spawn(usize::from(PERMITS) + 2).await;
        until_in_line(&backend, "pool", waiters.len()).await;
        assert!(are_silent(&mut waiters).await, "all permits are out");
        holders.into_iter().for_each(Child::kill);

        let mut fences = BTreeSet::new();
        // As long as a child is here, it holds its permit.
        let mut followers = Vec::new();
        for _ in 0..PERMITS {
            let each = waiters
                .iter_mut()
                .map(|waiter| Box::pin(waiter.next_result()));
            let next = timeout(HANG, select_all(each)).await;
            let (fence, place, _) = next.expect("a permit comes back");
            fences.insert(fence.unwrap().parse().unwrap());
            followers.push(waiters.remove(place));
        }
        assert!(are_silent(&mut waiters).await, "more than there are");
        let out = locks.holders("pool").await.unwrap();
        let out: BTreeSet<u64> = out.iter().map(|holder| holder.fence).collect();
        assert_eq!(out, fences);
        assert_eq!(out.len(), usize::from(PERMITS), "each has its own");
        let one_more = permits(&locks).acquire(LockOptions::new().try_once()).await;
        assert!(matches!(one_more, Err(LockError::NotAcquired { .. })));
    })
    .await;
}

/// Tells when it leads, and when it leads no more.
#[tokio::test]
#[ignore = "the child of a_killed_leader_is_followed_by_one_with_a_greater_fence"]
async fn campaigning_child() {
    let election = Election::new(&locks().await, "reports")
        .lease(TTL)
        .renew_deadline(TTL * 2 / 3)
        .retry(TTL / 10);
    let candidate = election.campaign().unwrap();
    let mut events = candidate.events();
    while let Some(event) = events.next().await {
        match event {
            ElectionEvent::Started(held) => process::report(held.fence().unwrap()),
            ElectionEvent::Stopped(_) => process::report("stopped"),
            _ => {}
        }
    }
}

/// Candidates in processes of their own, and under which fence each leads by what it has said.
#[derive(Default)]
struct Candidates {
    all: Vec<(Child, Option<u64>)>,
    fences: BTreeSet<u64>,
}

impl Candidates {
    fn join(&mut self, children: Vec<Child>) {
        let join = children.into_iter().map(|child| (child, None));
        self.all.extend(join);
    }

    /// Hears what one of them says next.
    async fn hear(&mut self) {
        let each = self.all.iter_mut();
        let each = each.map(|(child, _)| Box::pin(child.next_result()));
        let next = timeout(HANG, select_all(each)).await;
        let (said, place, _) = next.expect("something happens");
        let (said, leads) = (said.unwrap(), &mut self.all[place].1);
        if said == "stopped" {
            assert!(leads.take().is_some(), "it stops what it did not start");
        } else {
            let fence = said.parse().unwrap();
            assert_eq!(*leads, None, "it starts before it has stopped");
            assert!(self.fences.insert(fence), "two have led under {fence}");
            *leads = Some(fence);
        }
    }

    /// Waits until one leads under a greater fence than this, and tells which and the fence.
    async fn leader_after(&mut self, fence: u64) -> (usize, u64) {
        loop {
            let mut leads = self.all.iter().map(|(_, leads)| leads.unwrap_or(0));
            if let Some(place) = leads.position(|leads| leads > fence) {
                return (place, self.all[place].1.unwrap());
            }
            self.hear().await;
        }
    }

    fn kill(&mut self, place: usize) {
        self.all.remove(place).0.kill();
    }
}

/// Stops it, but not while it has the SQLite file, which nobody could write to then.
async fn freeze(child: &Child, variables: &[(String, String)]) {
    let path = variables.iter().find(|(name, _)| name == "SQLITE_PATH");
    let file = path.map(|(_, path)| Connection::open(path).unwrap());
    if let Some(file) = &file {
        file.busy_timeout(HANG).unwrap();
        file.execute_batch("BEGIN IMMEDIATE").unwrap();
    }
    child.freeze().await;
}

#[tokio::test]
async fn a_killed_leader_is_followed_by_one_with_a_greater_fence() {
    on_both(async |variables| {
        let dir = tempfile::tempdir().unwrap();
        let fleet = fleet("campaigning_child", variables, dir.path());
        let mut candidates = Candidates::default();
        candidates.join(fleet.spawn(1).await);
        let (killed, fence) = candidates.leader_after(0).await;
        candidates.join(fleet.spawn(2).await);
        candidates.kill(killed);
        let (stopped, fence) = candidates.leader_after(fence).await;

        // One that was stopped, and has to hear that it leads no more before it does again.
        freeze(&candidates.all[stopped].0, variables).await;
        let (other, greater) = candidates.leader_after(fence).await;
        assert_ne!(other, stopped);
        candidates.all[stopped].0.thaw();
        while candidates.all[stopped].1 == Some(fence) {
            candidates.hear().await;
        }
        candidates.kill(other);
        candidates.leader_after(greater).await;
    })
    .await;
}
