//! Every entry of the user `towerkeep-limits` in deploy/users.acl is needed by a service that has
//! rate limits only, on a server or on a cluster.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis_conn::{Audit, Backend, Config, ConfigBuilder, Endpoint};
use testkit::{RedisCluster, RedisServer, until};
use tower_ratelimit_redis::{Limiter, OnFailure, Policy, RateLimitError};

const USERS: &str = include_str!("../../deploy/users.acl");
const USER: &str = "towerkeep-limits";
const PASSWORD: &str = "change-me-towerkeep-limits";

/// Whose slot moves.
const MOVING: &str = "moving";

/// Longer than anything that works takes, so that it decides no test.
const LONG: Duration = Duration::from_secs(30);

/// So long something is given that cannot work. That it was refused is seen otherwise.
const SHORT: Duration = Duration::from_millis(1_500);

/// What the service does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Use {
    /// It limits, and takes a limit back.
    Limits,
    /// It limits in a database of its own.
    Database,
    /// Its connections have its name.
    Named,
    /// It sees that the server removes keys when it is full.
    Eviction,
    /// It sees what a cluster says of itself.
    Health,
    /// It limits somebody whose slot moves to another node just now.
    MovingSlot,
    /// It does not fill the log of refusals, which people read.
    NothingRefused,
}

type Row = (&'static [&'static str], Use);

const SERVER: &[Row] = &[
    (
        &[
            "on",
            ">change-me-towerkeep-limits",
            "~tk:r1:*",
            "+evalsha",
            "+eval",
            "+time",
            "+get",
            "+set",
            "+del",
        ],
        Use::Limits,
    ),
    (&["+select"], Use::Database),
    (&["+client|setname"], Use::Named),
    (&["+info"], Use::Eviction),
    (&["+ping"], Use::NothingRefused),
];

const CLUSTER: &[Row] = &[
    (&["+cluster|slots"], Use::Limits),
    (&["+cluster|info"], Use::Health),
    (&["+asking"], Use::MovingSlot),
];

#[tokio::test]
async fn each_entry_is_needed_on_a_server() {
    let servers = [RedisServer::start().await];
    each_is_needed(&servers, SERVER, async |used, patience| {
        let endpoint = Endpoint::tcp("127.0.0.1", servers[0].port());
        works(&servers, Config::builder(endpoint), used, patience).await
    })
    .await;
}

#[tokio::test]
async fn each_entry_is_needed_on_a_cluster() {
    let cluster = RedisCluster::start().await;
    begin_to_move(&cluster, MOVING).await;
    each_is_needed(cluster.nodes(), CLUSTER, async |used, patience| {
        let addrs = cluster.addrs().into_iter();
        let nodes = addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
        works(cluster.nodes(), Config::cluster(nodes), used, patience).await
    })
    .await;
}

#[test]
fn there_is_a_test_of_every_entry_and_of_no_other() {
    let tables = SERVER.iter().chain(CLUSTER);
    let tested: BTreeSet<_> = tables
        .flat_map(|(entries, _)| entries.iter().copied())
        .collect();
    assert_eq!(tested, entries().into_iter().collect());
}

/// What the file says of the user.
fn entries() -> Vec<&'static str> {
    let line = USERS.lines().find_map(|line| {
        let (user, entries) = line.strip_prefix("user ")?.split_once(' ')?;
        (user == USER).then_some(entries)
    });
    line.unwrap().split_whitespace().collect()
}

/// Each use works, and without its entry it does not, because the servers refuse something.
async fn each_is_needed(
    servers: &[RedisServer],
    table: &[Row],
    works: impl AsyncFn(Use, Duration) -> Result<(), String>,
) {
    for (needed, used) in table {
        for entry in *needed {
            grant(servers, Some(entry)).await;
            let outcome = works(*used, SHORT).await;
            assert!(outcome.is_err(), "{used:?} works without {entry}");
            let refused = refusals(servers).await;
            assert!(!refused.is_empty(), "without {entry}: {outcome:?}");

            grant(servers, None).await;
            assert_eq!(works(*used, LONG).await, Ok(()), "{used:?} with {entry}");
            assert_eq!(refusals(servers).await, [""; 0]);
        }
    }
}

async fn run<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    let mut admin = server.connection().await;
    let answer = command.arg(&words[1..]).query_async(&mut admin).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

async fn grant(servers: &[RedisServer], without: Option<&str>) {
    let mut words = vec!["ACL", "SETUSER", USER, "reset"];
    words.extend(
        entries()
            .into_iter()
            .filter(|entry| Some(*entry) != without),
    );
    for server in servers {
        let _: () = run(server, &words).await;
        let _: () = run(server, &["ACL", "LOG", "RESET"]).await;
    }
}

/// What the servers refused to the user.
async fn refusals(servers: &[RedisServer]) -> Vec<String> {
    let mut all = Vec::new();
    for server in servers {
        let log: Vec<BTreeMap<String, String>> = run(server, &["ACL", "LOG"]).await;
        let own = log.iter().filter(|entry| entry["username"] == USER);
        all.extend(own.map(|entry| format!("{} {}", entry["reason"], entry["object"])));
    }
    all
}

async fn ready(config: ConfigBuilder, patience: Duration) -> Result<Backend, String> {
    let config = config.username(USER).password(PASSWORD).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    let ready = backend.ready(patience).await;
    ready.map_err(|error| error.to_string())?;
    Ok(backend)
}

async fn works(
    servers: &[RedisServer],
    config: ConfigBuilder,
    used: Use,
    patience: Duration,
) -> Result<(), String> {
    let server = &servers[0];
    match used {
        Use::Limits => {
            let _: () = run(server, &["SCRIPT", "FLUSH"]).await;
            limits(&ready(config, patience).await?, "a", patience).await
        }
        Use::Database => limits(&ready(config.db(3), patience).await?, "a", patience).await,
        Use::Named => {
            let _backend = ready(config, patience).await?;
            until(patience, "the name", async || {
                let clients: String = run(server, &["CLIENT", "LIST"]).await;
                clients.contains(":lane ")
            })
            .await
        }
        Use::Eviction => eviction(server, config, patience).await,
        Use::Health => {
            let backend = ready(config, patience).await?;
            until(patience, "the state of the cluster", async || {
                let health = backend.health_detailed();
                let details = health.checks[0].details.as_ref();
                details.is_some_and(|details| details.cluster_state.as_deref() == Some("ok"))
            })
            .await
        }
        Use::MovingSlot => limits(&ready(config, patience).await?, MOVING, patience).await,
        Use::NothingRefused => {
            limits(&ready(config, patience).await?, "a", patience).await?;
            match refusals(servers).await.as_slice() {
                [] => Ok(()),
                refused => Err(refused.join(", ")),
            }
        }
    }
}

fn policy() -> Policy {
    let policy = Policy::new("api").limit(1_000, Duration::from_secs(60));
    policy.build().unwrap()
}

/// Counts, looks and takes back, and nobody but the store decides.
async fn limits(backend: &Backend, subject: &str, patience: Duration) -> Result<(), String> {
    let limiter = Limiter::builder(backend).timeout(patience);
    let limiter = limiter.on_failure(OnFailure::Closed).build().unwrap();
    let policy = policy();
    let decided = async {
        limiter.check(&policy, subject, 1).await?;
        limiter.peek(&policy, subject).await?;
        let audit = Audit::new("test", "to begin anew");
        limiter.reset(&policy, subject, &audit).await
    };
    let decided: Result<(), RateLimitError> = decided.await;
    decided.map_err(|error| error.to_string())
}

async fn eviction(
    server: &RedisServer,
    config: ConfigBuilder,
    patience: Duration,
) -> Result<(), String> {
    let _: () = run(
        server,
        &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
    )
    .await;
    let backend = ready(config, patience).await?;
    let seen = until(patience, "the policy in the health", async || {
        let health = backend.health();
        health.checks[0].message.contains("allkeys-lru")
    })
    .await;
    let _: () = run(server, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    seen
}

/// The slot of a subject that has no value yet leaves its node.
async fn begin_to_move(cluster: &RedisCluster, subject: &str) {
    let addrs = cluster.addrs().into_iter();
    let nodes = addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let backend = ready(Config::cluster(nodes), LONG).await.unwrap();
    let limiter = Limiter::builder(&backend).timeout(LONG).build().unwrap();
    let policy = policy();
    limiter.check(&policy, subject, 1).await.unwrap();
    let mut keys = Vec::new();
    for node in &cluster.nodes()[..3] {
        keys.extend(node.keys().await);
    }
    let slot = RedisCluster::slot_of(&keys[0]);
    let audit = Audit::new("test", "to begin anew");
    limiter.reset(&policy, subject, &audit).await.unwrap();
    let from = cluster.primary_of(slot).await;
    let _ = cluster.begin_migration(slot, from, (from + 1) % 3).await;
}
