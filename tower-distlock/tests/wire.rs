//! How many commands locks cost.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::time::Duration;

use redis_conn::{Backend, Config};
use testkit::RedisServer;
use tokio::time::{Instant, timeout};
use tower_distlock::{LockOptions, Locks, Released};

async fn locks(server: &RedisServer) -> Locks {
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    let locks = Locks::with_timeout(&backend, Duration::from_secs(10)).unwrap();
    // The scripts are known from here on, and the process listens to its channel.
    let guard = locks.acquire("warm", options()).await.unwrap();
    let waiting = locks.acquire("warm", options().wait(Duration::from_millis(50)));
    assert!(waiting.await.is_err());
    guard.extend(Duration::from_secs(30)).await.unwrap();
    guard.release().await.unwrap();
    locks
}

fn options() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(30))
}

/// What clients send: scripts, and what subscribes. What scripts call is not.
async fn sent(server: &RedisServer) -> u64 {
    let calls = server.command_calls().await;
    ["evalsha", "eval", "subscribe", "unsubscribe"]
        .iter()
        .filter_map(|name| calls.get(*name))
        .map(|stat| stat.calls)
        .sum()
}

#[tokio::test]
async fn a_lock_and_its_release_are_two_commands() {
    const TIMES: u64 = 100;
    let server = RedisServer::start().await;
    let locks = locks(&server).await;
    let before = sent(&server).await;
    for turn in 0..TIMES {
        let guard = locks
            .acquire(&format!("job:{turn}"), options())
            .await
            .unwrap();
        guard.release().await.unwrap();
    }
    assert_eq!(sent(&server).await - before, 2 * TIMES);
}

#[tokio::test]
async fn several_at_once_are_one_command() {
    const LOCKS: usize = 10;
    let server = RedisServer::start().await;
    let locks = locks(&server).await;
    let names = || (0..LOCKS).map(|n| format!("job:{n}"));
    for is_new in [true, false] {
        let before = sent(&server).await;
        let guard = locks.acquire_all(names(), options()).await.unwrap();
        // The server has to be told the script once.
        assert_eq!(sent(&server).await - before, 1 + u64::from(is_new));
        assert_eq!(guard.guards().len(), LOCKS);
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn many_at_a_time_are_few_commands() {
    const TASKS: u64 = 64;
    let server = RedisServer::start().await;
    let locks = locks(&server).await;
    let before = sent(&server).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|n| {
            let locks = locks.clone();
            tokio::spawn(async move {
                let guard = locks.acquire(&format!("job:{n}"), options()).await;
                guard.unwrap().release().await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Released::Released);
    }
    let cost = sent(&server).await - before;
    assert!(cost < TASKS / 2, "{cost} commands for {TASKS} locks");
}

#[tokio::test]
async fn who_waits_costs_a_command_a_second_at_most() {
    const SECONDS: u64 = 4;
    const WAITERS: u64 = 32;
    let server = RedisServer::start().await;
    let holder = locks(&server).await;
    for fair in [false, true] {
        let waiting = locks(&server).await;
        let _guard = holder.acquire("job", options()).await.unwrap();
        let before = sent(&server).await;
        let begun = Instant::now();
        let tasks: Vec<_> = (0..WAITERS)
            .map(|_| {
                let waiting = waiting.clone();
                let options = options().wait(Duration::from_secs(60));
                let options = if fair { options.fair() } else { options };
                tokio::spawn(async move {
                    let acquiring = waiting.acquire("job", options);
                    timeout(Duration::from_secs(SECONDS), acquiring)
                        .await
                        .is_err()
                })
            })
            .collect();
        for task in tasks {
            assert!(task.await.unwrap(), "somebody else holds it");
        }
        let cost = sent(&server).await - before;
        // 350 in 10 s; and each that gives up says so.
        let most = begun.elapsed().as_secs() * 35 + 35 + WAITERS + 2;
        assert!(cost <= most, "{cost} commands, expected {most}");
    }
}

#[tokio::test]
async fn many_locks_are_renewed_together() {
    // As many a second as of 10,000 locks with a ttl of 30 s.
    const LOCKS: u32 = 1_000;
    const TTL: Duration = Duration::from_secs(3);
    let server = RedisServer::start().await;
    let locks = locks(&server).await;
    let mut guards = Vec::new();
    for n in 0..LOCKS {
        let name = format!("job:{n}");
        // Each is looked at by itself, when it is reported.
        let warned = TTL + Duration::from_millis(n.into());
        let options = options().ttl(TTL).warn_after(warned);
        guards.push(locks.acquire(&name, options).await.unwrap());
    }
    let (before, begun) = (sent(&server).await, Instant::now());
    // Two leases: none would be left without renewals.
    let lost = timeout(2 * TTL, guards[0].lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    let cost = sent(&server).await - before;
    let most = begun.elapsed().as_secs() * 10 + 10;
    assert!(cost <= most, "{cost} commands, expected {most}");
    assert_eq!(locks.list("job:").await.unwrap().len(), LOCKS as usize);
}
