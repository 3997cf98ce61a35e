//! Redis in each of the ways that it is run.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use redis::AsyncCommands as _;
use testkit::{RedisServer, Servers, Topology};

/// The names of the variables that reach it.
fn names(servers: &Servers) -> Vec<String> {
    let mut names: Vec<_> = servers.env().into_iter().map(|(name, _)| name).collect();
    names.retain(|name| !name.ends_with("_USERNAME") && !name.ends_with("_PASSWORD"));
    names
}

async fn scripts(server: &RedisServer) -> u64 {
    let scripts = &server.info("memory").await["number_of_cached_scripts"];
    scripts.parse().unwrap()
}

/// Every primary forgets what it has; the replicas have nothing that it has not.
async fn forgets(servers: &Servers, primaries: usize) {
    let found = servers.primaries().await;
    assert_eq!(found.len(), primaries);
    for (index, primary) in found.iter().enumerate() {
        let mut connection = primary.connection().await;
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg("return 1");
        load.exec_async(&mut connection).await.unwrap();
        // Some of these are in the slots of this node.
        for n in 0..20 {
            let _: redis::RedisResult<()> = connection.set(format!("{index}:{n}"), 1).await;
        }
        assert!(!primary.keys().await.is_empty());
        assert_eq!(scripts(primary).await, 1);
    }
    servers.clear().await;
    for primary in found {
        assert!(primary.keys().await.is_empty());
        assert_eq!(scripts(primary).await, 0);
    }
}

#[tokio::test]
async fn one_server() {
    let servers = Topology::Single.start().await;
    assert_eq!(names(&servers), ["REDIS_URL"]);
    forgets(&servers, 1).await;
}

#[tokio::test]
async fn a_cluster() {
    let servers = Topology::Cluster.start().await;
    assert_eq!(names(&servers), ["REDIS_CLUSTER", "REDIS_NODES"]);
    let Servers::Cluster(cluster) = &servers else {
        panic!("{servers:?}");
    };
    assert_eq!(cluster.nodes().len(), 6);
    forgets(&servers, 3).await;
}

#[tokio::test]
async fn sentinels() {
    let servers = Topology::Sentinel.start().await;
    let mut expected = vec!["REDIS_SENTINEL".to_owned(), "REDIS_MASTER_NAME".to_owned()];
    for number in 1..=3 {
        expected.extend(["HOST", "PORT"].map(|part| format!("REDIS_SENTINEL{number}_{part}")));
    }
    assert_eq!(names(&servers), expected);
    forgets(&servers, 1).await;
}
