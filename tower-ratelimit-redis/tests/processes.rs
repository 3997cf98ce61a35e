//! One limit over several processes.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::time::Duration;

use redis_conn::{Backend, Config};
use testkit::{Fleet, RedisServer, process};
use tower_ratelimit_redis::{Limiter, OnFailure, Policy, Source};

const PROCESSES: usize = 4;
const CHECKS: usize = 500;
const LIMIT: u64 = 100;

/// Checks from several tasks at once and reports how many were admitted.
#[tokio::test]
#[ignore = "the child of the tests below"]
async fn child() {
    let backend = match std::env::var("TEST_SQLITE") {
        Ok(path) => Backend::sqlite(path).await.unwrap(),
        Err(_) => {
            let url = std::env::var("TEST_REDIS").unwrap();
            Backend::redis(Config::from_url(&url).unwrap()).unwrap()
        }
    };
    backend.ready(Duration::from_secs(10)).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .on_failure(OnFailure::Closed)
        .timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let policy = Policy::new("shared").limit(LIMIT, Duration::from_secs(3_600));
    let policy = policy.build().unwrap();

    let mut checks = tokio::task::JoinSet::new();
    for _ in 0..CHECKS {
        let (limiter, policy) = (limiter.clone(), policy.clone());
        checks.spawn(async move { limiter.check(&policy, "everybody", 1).await.unwrap() });
    }
    let decisions = checks.join_all().await;
    assert!(
        decisions
            .iter()
            .all(|decision| decision.source() == Source::Store)
    );
    let admitted = decisions.iter().filter(|decision| decision.is_allowed());
    process::report(admitted.count());
}

async fn admitted(fleet: Fleet) -> u64 {
    let results = fleet.run(PROCESSES).await;
    results
        .iter()
        .flatten()
        .map(|count| count.parse::<u64>().unwrap())
        .sum()
}

#[tokio::test]
async fn processes_on_redis_share_one_limit() {
    let server = RedisServer::start().await;
    let fleet = Fleet::new("child").env("TEST_REDIS", server.url());
    assert_eq!(admitted(fleet).await, LIMIT);
}

#[tokio::test]
async fn processes_on_one_file_share_one_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.db");
    let fleet = Fleet::new("child").env("TEST_SQLITE", path.display());
    assert_eq!(admitted(fleet).await, LIMIT);
}
