//! A cluster: what a service needs there besides, and the people and the health check that come to it.

use std::time::Duration;

use redis_conn::{
    Backend, Config, Endpoint, ScaleReads,
    raw::{Call, Class},
};
use testkit::{PASSWORD, RedisCluster, USER, until};

use crate::{
    files::{USERS, login},
    needed::{Row, each_is_needed},
    raw::ask,
    server::{bus, ready},
    support::redis,
};

/// What is done on a cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Use {
    /// The service stores values on all nodes.
    Everywhere,
    /// The service hears what it publishes, on sharded channels.
    Bus,
    /// The service sees what the cluster says of itself.
    Health,
    /// The service stores a new value in a slot that moves.
    MovingSlot,
    /// The service reads from replicas.
    Replicas,
    /// A command of the user is allowed.
    Asks(&'static str, &'static str),
}

pub(crate) const TABLE: &[Row<Use>] = &[
    ("towerkeep", &["+cluster|slots"], Use::Everywhere),
    ("towerkeep", &["&tk:b1:*", "+@pubsub"], Use::Bus),
    ("towerkeep", &["+cluster|info"], Use::Health),
    ("towerkeep", &["+asking"], Use::MovingSlot),
    ("towerkeep", &["+readonly"], Use::Replicas),
    (
        "health",
        &["+cluster|info"],
        Use::Asks("health", "CLUSTER INFO"),
    ),
    (
        "operator",
        &["+cluster"],
        Use::Asks("operator", "CLUSTER INFO"),
    ),
];

#[tokio::test]
async fn each_entry_is_needed_on_a_cluster() {
    let cluster = RedisCluster::start().await;
    let moving = RedisCluster::slot_of("{moving}");
    let from = cluster.primary_of(moving).await;
    let _moving = cluster.begin_migration(moving, from, (from + 1) % 3).await;
    each_is_needed(cluster.nodes(), USERS, TABLE, async |used, patience| {
        works(&cluster, used, patience).await
    })
    .await;
}

async fn works(cluster: &RedisCluster, used: Use, patience: Duration) -> Result<(), String> {
    if let Use::Asks(user, command) = used {
        let answer = ask(cluster.node(0).addr(), &login(USERS, user), command).await;
        return answer.map(drop);
    }
    let backend = connected(cluster, patience).await?;
    match used {
        Use::Everywhere => everywhere(&backend, patience).await,
        Use::Bus => bus(&backend, patience).await,
        Use::Health => {
            until(patience, "the state of the cluster", async || {
                let health = backend.health_detailed();
                let details = health.checks[0].details.as_ref();
                details.is_some_and(|details| details.cluster_state.as_deref() == Some("ok"))
            })
            .await
        }
        Use::MovingSlot => set(&backend, "tk:{moving}:new", patience).await,
        Use::Replicas => replicas(cluster, &backend, patience).await,
        Use::Asks(..) => Ok(()),
    }
}

async fn connected(cluster: &RedisCluster, patience: Duration) -> Result<Backend, String> {
    let addrs = cluster.addrs().into_iter();
    let nodes = addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let config = Config::cluster(nodes).username(USER).password(PASSWORD);
    let config = config.scale_reads(ScaleReads::Replica).build().unwrap();
    ready(config, patience).await
}

async fn set(backend: &Backend, key: &str, patience: Duration) -> Result<(), String> {
    let set = Call::new("SET", Class::Idempotent).key(key).arg("1");
    let answer = redis(backend).call(set, patience).await;
    answer.map(drop).map_err(|error| error.to_string())
}

async fn everywhere(backend: &Backend, patience: Duration) -> Result<(), String> {
    for n in 0..20 {
        set(backend, &format!("tk:{n}"), patience).await?;
    }
    Ok(())
}

async fn replicas(
    cluster: &RedisCluster,
    backend: &Backend,
    patience: Duration,
) -> Result<(), String> {
    let owner = cluster.primary_of(RedisCluster::slot_of("tk:read")).await;
    let replica = cluster.replicas_of(owner).await[0];
    let answered = async || {
        let calls = cluster.node(replica).command_calls().await;
        calls.get("get").map_or(0, |stat| stat.calls)
    };
    let before = answered().await;
    let redis = redis(backend);
    until(patience, "an answer of a replica", async || {
        let get = Call::new("GET", Class::Idempotent).key("tk:read");
        let _ = redis.call(get.from_replica(), patience).await;
        answered().await > before
    })
    .await
}
