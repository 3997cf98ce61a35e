//! Fences that most of the servers remember: over changing majorities, and after servers that forgot.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{error::Error as _, time::Duration};

use redis_conn::{Backend, Config, ErrorKind, raw::sql::Connection};
use testkit::RedisServer;
use tokio::time::timeout;
use tower_distlock::{FenceMode, LockError, LockGuard, LockOptions, Locks, Redlock, RedlockGuard};

/// Only a hang takes so long.
const HANG: Duration = Duration::from_secs(20);

/// Counted fences: by the clock each would be greater also without any memory.
fn options() -> LockOptions {
    let options = LockOptions::new().fence_mode(FenceMode::Counter);
    options.ttl(Duration::from_secs(30)).wait(HANG)
}

async fn backend(server: &RedisServer) -> Backend {
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(HANG).await.unwrap();
    backend
}

fn memory(count: usize) -> Vec<Backend> {
    (0..count).map(|_| Backend::memory()).collect()
}

/// A server that nobody reaches: nothing listens there.
fn away() -> Backend {
    Backend::redis(Config::from_url("redis://127.0.0.1:1").unwrap()).unwrap()
}

/// Those whose bits are set, of so many.
fn of(set: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).filter(move |place| set & (1 << place) != 0)
}

/// All majorities of so many.
fn majorities(count: usize) -> impl Iterator<Item = usize> {
    (0..1_usize << count).filter(move |set| of(*set, count).count() > count / 2)
}

/// As one sees the servers who reaches only some of them.
fn reaching(nodes: &[Backend], set: usize) -> Redlock {
    let reached = |place: usize| set & (1 << place) != 0;
    let nodes = nodes.iter().enumerate();
    let nodes: Vec<_> = nodes
        .map(
            |(place, node)| {
                if reached(place) { node.clone() } else { away() }
            },
        )
        .collect();
    let builder = Redlock::builder(&nodes).without_gate().quorum_fence();
    builder.build().unwrap()
}

async fn acquire(redlock: &Redlock, name: &str) -> RedlockGuard {
    let acquired = timeout(HANG, redlock.acquire(name, options())).await;
    acquired.expect("no hang").unwrap()
}

async fn fence(redlock: &Redlock, name: &str) -> u64 {
    let guard = acquire(redlock, name).await;
    let fence = guard.fence().unwrap();
    guard.release().await.unwrap();
    fence
}

/// The locks of one server, as others use them.
async fn hold(node: &Backend, name: &str) -> LockGuard {
    let locks = Locks::with_timeout(node, HANG).unwrap();
    locks.acquire(name, options()).await.unwrap()
}

/// The fences of each server alone grow at their own pace.
async fn set_apart(nodes: &[Backend], name: &str) {
    for (place, node) in nodes.iter().enumerate() {
        for _ in 0..2 * place {
            hold(node, name).await.release().await.unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Others {
    Away,
    Held,
}

/// Each two grants that follow each other, by any two majorities that know of nothing but each other.
async fn each_pair(nodes: &[Backend], others: Others) {
    let (count, all) = (nodes.len(), (1 << nodes.len()) - 1);
    let reach = |set| match others {
        Others::Away => reaching(nodes, set),
        Others::Held => reaching(nodes, all),
    };
    let handles: Vec<_> = majorities(count).map(|set| (set, reach(set))).collect();
    for (one, first) in &handles {
        for (two, second) in &handles {
            let name = format!("{others:?}:{one}:{two}");
            set_apart(nodes, &name).await;
            let mut before = 0;
            for (set, redlock) in [(one, first), (two, second), (one, first)] {
                let mut held = Vec::new();
                for place in of(all & !set, count).filter(|_| others == Others::Held) {
                    held.push(hold(&nodes[place], &name).await);
                }
                let fence = fence(redlock, &name).await;
                assert!(fence > before, "{fence} after {before}, {name}");
                before = fence;
            }
        }
    }
}

#[tokio::test]
async fn fences_grow_whoever_grants() {
    for others in [Others::Away, Others::Held] {
        for count in [1, 3, 5] {
            each_pair(&memory(count), others).await;
        }
    }
}

#[tokio::test]
async fn fences_grow_on_servers_of_any_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (RedisServer::start().await, RedisServer::start().await);
    let file = Backend::sqlite(dir.path().join("locks.db")).await.unwrap();
    let nodes = [backend(&one).await, file, backend(&two).await];
    for others in [Others::Away, Others::Held] {
        each_pair(&nodes, others).await;
    }
}

/// A backend in process that nobody has used is like a server that has lost all.
#[tokio::test]
async fn what_some_have_forgotten_the_others_remember() {
    for (count, most) in [(3, 1), (5, 2)] {
        let all = (1 << count) - 1;
        for emptied in (1..=all).filter(|set| of(*set, count).count() <= most) {
            for then in majorities(count) {
                let mut nodes = memory(count);
                set_apart(&nodes, "a").await;
                let before = fence(&reaching(&nodes, all), "a").await;
                for place in of(emptied, count) {
                    nodes[place] = Backend::memory();
                }
                let after = fence(&reaching(&nodes, then), "a").await;
                assert!(after > before, "{emptied} were emptied, {then} grant");
            }
        }
    }
}

#[tokio::test]
async fn who_has_forgotten_hears_of_it_by_the_next_grant() {
    let mut nodes = memory(3);
    set_apart(&nodes, "a").await;
    fence(&reaching(&nodes, 0b101), "a").await;
    nodes[0] = Backend::memory();
    let before = fence(&reaching(&nodes, 0b101), "a").await;
    let after = fence(&reaching(&nodes, 0b011), "a").await;
    assert!(after > before, "{after} after {before}");
}

struct Servers {
    servers: Vec<RedisServer>,
    backends: Vec<Backend>,
}

impl Servers {
    async fn start(count: usize) -> Self {
        let (mut servers, mut backends) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let server = RedisServer::start().await;
            backends.push(backend(&server).await);
            servers.push(server);
        }
        Self { servers, backends }
    }

    async fn restart(&mut self, place: usize) {
        self.servers[place].restart().await;
        self.backends[place] = backend(&self.servers[place]).await;
    }

    async fn until_free(&self, name: &str) {
        for backend in &self.backends {
            let locks = Locks::with_timeout(backend, HANG).unwrap();
            let is_free = async || !locks.is_locked(name).await.unwrap();
            testkit::until(HANG, "nothing is left", is_free)
                .await
                .unwrap();
        }
    }

    /// Has a server remember something else.
    async fn forge(&self, place: usize, note: &str) {
        let mut connection = self.servers[place].connection().await;
        let mut set = redis::cmd("SET");
        let set = set.arg("tk:l1:{a}:quorum").arg(note);
        set.exec_async(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn fences_grow_after_a_server_was_restarted() {
    let mut servers = Servers::start(3).await;
    for place in 0..3 {
        for then in majorities(3) {
            set_apart(&servers.backends, "a").await;
            let before = fence(&reaching(&servers.backends, 0b111), "a").await;
            servers.until_free("a").await;
            servers.restart(place).await;
            let after = fence(&reaching(&servers.backends, then), "a").await;
            assert!(after > before, "{after} after {before}");
            servers.until_free("a").await;
        }
    }
}

#[tokio::test]
async fn a_holder_reminds_a_server_that_has_forgotten() {
    let mut servers = Servers::start(3).await;
    set_apart(&servers.backends, "a").await;
    let redlock = reaching(&servers.backends, 0b111);
    let ttl = Duration::from_secs(2);
    let guard = redlock.acquire("a", options().ttl(ttl)).await.unwrap();
    let before = guard.fence().unwrap();
    servers.restart(0).await;
    let locks = Locks::with_timeout(&servers.backends[0], HANG).unwrap();
    // Where it is held again it was known to be lost.
    let has_voted = async || locks.is_locked("a").await.unwrap() && guard.votes() == 3;
    testkit::until(HANG, "all votes", has_voted).await.unwrap();
    guard.release().await.unwrap();
    servers.until_free("a").await;
    servers.restart(1).await;
    let after = fence(&reaching(&servers.backends, 0b011), "a").await;
    assert!(after > before, "{after} after {before}");
}

#[tokio::test]
async fn a_fence_that_too_few_take_is_an_error_and_leaves_nothing() {
    let servers = Servers::start(3).await;
    let redlock = reaching(&servers.backends, 0b111);
    let later = "9 of a later version";
    servers.forge(0, later).await;
    let guard = acquire(&redlock, "a").await;
    assert!(guard.fence().is_some(), "two are enough");
    drop(guard);
    servers.until_free("a").await;

    servers.forge(2, later).await;
    let refused = redlock.acquire("a", options().try_once()).await;
    let error = refused.unwrap_err();
    assert!(error.source().is_some() && !error.is_busy(), "{error}");
    let LockError::FenceNotStored {
        stored,
        required,
        cause,
    } = error
    else {
        panic!("{error}");
    };
    assert!(stored < required, "{stored} of {required}");
    assert_eq!(required, 2);
    assert_eq!(*cause.kind(), ErrorKind::Corrupt);
    servers.until_free("a").await;
}

/// What it remembers may be less than what it has forgotten.
#[tokio::test]
async fn a_server_that_was_started_lately_is_not_counted_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locks.db");
    let young = RedisServer::start().await;
    let file = Backend::sqlite(&path).await.unwrap();
    let nodes = [Backend::memory(), file, backend(&young).await];
    fence(&reaching(&nodes, 0b111), "a").await;
    // Two vote for it, of which one cannot take the fence.
    let connection = Connection::open(&path).unwrap();
    let forged = "UPDATE tk_lock_note SET value = x'39'";
    assert_eq!(connection.execute(forged, []).unwrap(), 1);
    let careful = Redlock::builder(&nodes).quorum_fence().build().unwrap();
    let refused = careful.acquire("a", options().try_once()).await;
    let Err(LockError::FenceNotStored { required: 2, .. }) = refused else {
        panic!("one has stored it: {refused:?}");
    };
    let careless = reaching(&nodes, 0b111);
    assert!(acquire(&careless, "a").await.fence().is_some());
}

#[tokio::test]
async fn a_fence_above_which_there_is_none_is_an_error_and_leaves_nothing() {
    let servers = Servers::start(3).await;
    for place in 0..3 {
        servers.forge(place, &format!("1{}", u64::MAX)).await;
    }
    let redlock = reaching(&servers.backends, 0b111);
    let Err(LockError::Backend(error)) = redlock.acquire("a", options()).await else {
        panic!("there is none");
    };
    assert_eq!(*error.kind(), ErrorKind::Corrupt);
    servers.until_free("a").await;
}

/// What clients send to a server: scripts, and the question since when it has been up.
async fn sent(server: &RedisServer) -> u64 {
    let calls = server.command_calls().await;
    let calls = ["evalsha", "eval", "info"].map(|name| calls.get(name).map_or(0, |it| it.calls));
    calls.into_iter().sum()
}

#[tokio::test]
async fn only_a_fence_costs_commands() {
    let servers = Servers::start(1).await;
    let builder = || Redlock::builder(&servers.backends).without_gate();
    let without = builder().build().unwrap();
    let with = builder().quorum_fence().build().unwrap();
    // From here on the scripts are known, and who the server is.
    for redlock in [&without, &with] {
        acquire(redlock, "a").await.release().await.unwrap();
    }
    // The lock and since when the server is up, and the release.
    for (redlock, fences, commands) in [(&without, false, 3), (&with, true, 5)] {
        let before = sent(&servers.servers[0]).await;
        let guard = acquire(redlock, "a").await;
        assert_eq!(guard.fence().is_some(), fences);
        guard.release().await.unwrap();
        let after = sent(&servers.servers[0]).await;
        // The question itself is an INFO.
        assert_eq!(after - before, commands + 1, "with a fence: {fences}");
    }
}
