//! Two services on one server, and on one file, never meet.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod fixture;

use std::time::Duration;

use redis_conn::{Backend, Event, raw::sql::Connection};
use testkit::Topology;
use tower_ratelimit_redis::{Limiter, OnFailure, Policy, Source};

const LONG: Duration = Duration::from_secs(20);
const USER: &str = "user:42";

struct Service {
    backend: Backend,
    limiter: Limiter,
}

impl Service {
    fn new(backend: &Backend, namespace: &str) -> Self {
        let backend = backend.namespace(namespace).unwrap();
        let limiter = Limiter::builder(&backend)
            .timeout(LONG)
            .on_failure(OnFailure::Closed)
            // What is wiped behind its back is told to nobody.
            .denied_capacity(0)
            .build()
            .unwrap();
        Self { backend, limiter }
    }

    async fn admits(&self) -> bool {
        let hour = Duration::from_secs(3600);
        let policy = Policy::new("api").limit(1, hour).build().unwrap();
        let decision = self.limiter.check(&policy, USER, 1).await.unwrap();
        assert_eq!(decision.source(), Source::Store);
        decision.is_allowed()
    }
}

/// `wipe` removes all that the first namespace has stored.
async fn never_meet(backend: Backend, wipe: impl AsyncFnOnce(&str)) {
    let (shop, blog) = (
        Service::new(&backend, "shop"),
        Service::new(&backend, "blog"),
    );
    let mut heard = shop.backend.bus().subscribe("news").await.unwrap();
    blog.backend.bus().publish("news", b"blog").await.unwrap();
    shop.backend.bus().publish("news", b"shop").await.unwrap();
    let event = tokio::time::timeout(LONG, heard.recv()).await.unwrap();
    let Some(Event::Message(message)) = event else {
        panic!("expected a message, found {event:?}");
    };
    assert_eq!(message.payload(), b"shop");

    assert!(shop.admits().await);
    assert!(
        blog.admits().await,
        "the same policy and user, but not the same limit"
    );
    assert!(!shop.admits().await && !blog.admits().await);

    wipe("shop").await;
    assert!(shop.admits().await, "it was wiped");
    assert!(!blog.admits().await, "it was not");
}

async fn never_meet_on(topology: Topology) {
    let own = "~shop:* ~blog:* &shop:b1:* &blog:b1:*";
    let servers = topology.start_allowing(own).await;
    let backend = Backend::redis(fixture::config(&servers)).unwrap();
    backend.ready(LONG).await.unwrap();
    never_meet(backend, async |namespace| {
        let prefix = format!("{namespace}:");
        let (mut all, mut own) = (0, 0);
        for primary in servers.primaries().await {
            let mut connection = primary.connection().await;
            for key in primary.keys().await {
                all += 1;
                if key.starts_with(&prefix) {
                    let delete = redis::cmd("DEL").arg(&key).to_owned();
                    own += delete.query_async::<u64>(&mut connection).await.unwrap();
                }
            }
        }
        assert_eq!((own, all), (1, 2));
    })
    .await;
}

#[tokio::test]
async fn on_one_server() {
    never_meet_on(Topology::Single).await;
}

#[tokio::test]
async fn on_one_cluster() {
    never_meet_on(Topology::Cluster).await;
}

#[tokio::test]
async fn behind_the_same_sentinels() {
    never_meet_on(Topology::Sentinel).await;
}

#[tokio::test]
async fn on_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.db");
    let backend = Backend::sqlite(&path).await.unwrap();
    never_meet(backend, async |namespace| {
        let file = Connection::open(&path).unwrap();
        let delete = "DELETE FROM tk_limit WHERE key GLOB ?1 || ':*'";
        assert_eq!(file.execute(delete, [namespace]).unwrap(), 1);
    })
    .await;
}
