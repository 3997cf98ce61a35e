//! One limit over several processes.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::time::Duration;

use redis_conn::Backend;
use testkit::{Fleet, Topology, process};
use tower_ratelimit_redis::{Limiter, OnFailure, Policy, Source};

const PROCESSES: usize = 4;
const CHECKS: usize = 500;
const LIMIT: u64 = 100;

/// Keeps the variables of the children from those of whoever runs the tests.
const PREFIX: &str = "TEST_";

/// Checks from several tasks at once and reports how many were admitted.
#[tokio::test]
#[ignore = "the child of the tests below"]
async fn child() {
    let backend = Backend::from_env_prefixed(PREFIX).await.unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .on_failure(OnFailure::Closed)
        // Each call is to reach the store.
        .denied_capacity(0)
        .timeout(Duration::from_secs(2))
        .build()
        .unwrap();
    let policy = Policy::new("shared").limit(LIMIT, Duration::from_secs(3_600));
    let policy = policy.build().unwrap();

    process::report("ready");
    let begin = std::env::var("TEST_BEGIN").unwrap();
    // The parent creates it when all are ready.
    while !std::path::Path::new(&begin).exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
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

/// Lets all children begin at once and adds up what they were admitted.
async fn admitted(fleet: Fleet) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let begin = dir.path().join("begin");
    let mut children = fleet
        .env("TEST_BEGIN", begin.display())
        .spawn(PROCESSES)
        .await;
    for child in &mut children {
        assert_eq!(child.next_result().await.as_deref(), Some("ready"));
    }
    std::fs::write(&begin, []).unwrap();
    let mut admitted = 0;
    for child in children {
        let results = child.finish().await;
        let [_, count] = &results[..] else {
            panic!("ready and a count: {results:?}");
        };
        admitted += count.parse::<u64>().unwrap();
    }
    admitted
}

async fn admitted_on(topology: Topology) -> u64 {
    let servers = topology.start().await;
    let variables = servers.env().into_iter();
    let fleet = variables.fold(Fleet::new("child"), |fleet, (name, value)| {
        fleet.env(format!("{PREFIX}{name}"), value)
    });
    admitted(fleet).await
}

#[tokio::test]
async fn processes_on_redis_share_one_limit() {
    assert_eq!(admitted_on(Topology::Single).await, LIMIT);
}

#[tokio::test]
async fn processes_on_a_redis_cluster_share_one_limit() {
    assert_eq!(admitted_on(Topology::Cluster).await, LIMIT);
}

#[tokio::test]
async fn processes_on_redis_behind_sentinels_share_one_limit() {
    assert_eq!(admitted_on(Topology::Sentinel).await, LIMIT);
}

#[tokio::test]
async fn processes_on_one_file_share_one_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.db");
    let fleet = Fleet::new("child").env("TEST_SQLITE_PATH", path.display());
    assert_eq!(admitted(fleet).await, LIMIT);
}
