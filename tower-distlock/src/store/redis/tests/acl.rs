//! Every entry of the user `towerkeep-locks` in deploy/users.acl is needed by a service that has locks only, on a server or on a
//! cluster, and the user `towerkeep` has what that one has.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use redis_conn::{Backend, Config, ConfigBuilder, Endpoint, Event};
use testkit::{RedisCluster, RedisServer, until};

use super::{LONG, RedisStore, mutex, name, redis};
use crate::{
    name::Name,
    store::{Acquired, Next, Outcome, Store as _},
};

const USERS: &str = include_str!("../../../../../deploy/users.acl");
const USER: &str = "towerkeep-locks";
const PASSWORD: &str = "change-me-towerkeep-locks";
const MOVING: &str = "moving";
/// So long something is given that cannot work. That it was refused is seen otherwise.
const SHORT: Duration = Duration::from_millis(1_500);

/// What the service does.
#[derive(Debug, Clone, Copy)]
enum Use {
    /// Whatever there is a script for, and the list of what is held.
    Locks,
    /// Who waits is told of its grant.
    Told,
    Database,
    /// Its connections have its name.
    Named,
    /// It sees that the server removes keys when it is full.
    Eviction,
    /// It sees what a cluster says of itself.
    Health,
    /// A lock whose slot moves to another node just now.
    MovingSlot,
    /// It does not fill the log of refusals, which people read.
    NothingRefused,
    /// It cannot run this command.
    MayNot(&'static str),
}

const SERVER: &[(&str, Use)] = &[
    (
        "on >change-me-towerkeep-locks ~tk:l1:* +evalsha +eval +time",
        Use::Locks,
    ),
    ("+mget +get +set +del +pttl +pexpire", Use::Locks),
    (
        "+zadd +zrange +zrem +hset +hget +hdel +hvals +scan +wait",
        Use::Locks,
    ),
    ("resetchannels &tk:b1:locks* +@pubsub", Use::Told),
    ("+select", Use::Database),
    ("+client|setname", Use::Named),
    ("+info", Use::Eviction),
    ("+ping", Use::NothingRefused),
    ("-psubscribe", Use::MayNot("PSUBSCRIBE tk:b1:locks*")),
    ("-punsubscribe", Use::MayNot("PUNSUBSCRIBE")),
    ("-pubsub", Use::MayNot("PUBSUB CHANNELS")),
];

const CLUSTER: &[(&str, Use)] = &[
    ("+cluster|slots", Use::Locks),
    ("&tk:b1:locks* +@pubsub", Use::Told),
    ("+cluster|info", Use::Health),
    ("+asking", Use::MovingSlot),
];

fn entries(user: &str) -> Vec<&'static str> {
    let line = USERS.lines().find_map(|line| {
        let (found, entries) = line.strip_prefix("user ")?.split_once(' ')?;
        (found == user).then_some(entries)
    });
    line.unwrap().split(' ').collect()
}

#[test]
fn there_is_a_test_of_every_entry_and_of_no_other() {
    let tables = SERVER.iter().chain(CLUSTER);
    let tested: BTreeSet<_> = tables.flat_map(|(entries, _)| entries.split(' ')).collect();
    assert_eq!(tested, entries(USER).into_iter().collect());
}

#[test]
fn a_service_that_has_all_may_do_what_one_with_locks_may() {
    let all = entries("towerkeep");
    for entry in entries(USER).iter().filter(|entry| entry.contains('+')) {
        assert!(all.contains(entry), "{entry}");
    }
}

#[tokio::test]
async fn each_entry_is_needed_on_a_server() {
    let servers = [RedisServer::start().await];
    let config = || Config::builder(Endpoint::tcp("127.0.0.1", servers[0].port()));
    each_is_needed(&servers, SERVER, config).await;
}

#[tokio::test]
async fn each_entry_is_needed_on_a_cluster() {
    let cluster = RedisCluster::start().await;
    let slot = RedisCluster::slot_of(format!("{{{MOVING}}}"));
    let from = cluster.primary_of(slot).await;
    let _moving = cluster.begin_migration(slot, from, (from + 1) % 3).await;
    let config = || {
        let addrs = cluster.addrs().into_iter();
        Config::cluster(addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port())))
    };
    each_is_needed(cluster.nodes(), CLUSTER, config).await;
}

/// Each use works, and without its entry it does not, because the servers refuse something. Denials are the other way round.
async fn each_is_needed(
    servers: &[RedisServer],
    table: &[(&'static str, Use)],
    config: impl Fn() -> ConfigBuilder,
) {
    for (needed, used) in table {
        for entry in needed.split(' ') {
            if let Err(error) = grant(servers, Some(entry)).await {
                // What comes behind it makes no sense to a server that gives all channels at first.
                assert_eq!(entry, "resetchannels", "{error}");
                continue;
            }
            let outcome = works(servers, config(), *used, SHORT).await;
            assert!(outcome.is_err(), "{used:?} works without {entry}");
            let denies = entry.starts_with('-');
            let refused = refusals(servers).await;
            assert!(
                denies || !refused.is_empty(),
                "without {entry}: {outcome:?}"
            );

            grant(servers, None).await.unwrap();
            let outcome = works(servers, config(), *used, LONG).await;
            assert_eq!(outcome, Ok(()), "{used:?} with {entry}");
            let refused = refusals(servers).await;
            assert!(denies || refused.is_empty(), "with {entry}: {refused:?}");
        }
    }
}

async fn run<T: ::redis::FromRedisValue>(
    server: &RedisServer,
    words: &[&str],
) -> ::redis::RedisResult<T> {
    let mut command = ::redis::cmd(words[0]);
    let mut admin = server.connection().await;
    command.arg(&words[1..]).query_async(&mut admin).await
}

/// Gives the user what the file says but for one entry. Without `resetchannels` that is on top of all channels, which Redis 6.2 gives
/// at first.
async fn grant(servers: &[RedisServer], without: Option<&str>) -> ::redis::RedisResult<()> {
    let first = match without {
        Some("resetchannels") => "allchannels",
        _ => "resetchannels",
    };
    let mut words = vec!["ACL", "SETUSER", USER, "reset", first];
    words.extend(
        entries(USER)
            .into_iter()
            .filter(|entry| Some(*entry) != without),
    );
    for server in servers {
        run::<()>(server, &words).await?;
        run::<()>(server, &["ACL", "LOG", "RESET"]).await?;
    }
    Ok(())
}

async fn refusals(servers: &[RedisServer]) -> Vec<String> {
    let mut all = Vec::new();
    for server in servers {
        let log: Vec<BTreeMap<String, String>> = run(server, &["ACL", "LOG"]).await.unwrap();
        let own = log.iter().filter(|entry| entry["username"] == USER);
        all.extend(own.map(|entry| format!("{} {}", entry["reason"], entry["object"])));
    }
    all
}

async fn works(
    servers: &[RedisServer],
    config: ConfigBuilder,
    used: Use,
    patience: Duration,
) -> Result<(), String> {
    let server = &servers[0];
    let _: () = run(server, &["SCRIPT", "FLUSH"]).await.unwrap();
    if let Use::MayNot(command) = used {
        return may_not(server, command).await;
    }
    if let Use::Eviction = used {
        evict(server, "allkeys-lru").await;
    }
    let config = match used {
        Use::Database => config.db(3),
        _ => config,
    };
    let config = config.username(USER).password(PASSWORD).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    let ready = backend.ready(patience).await;
    ready.map_err(|error| error.to_string())?;
    let store = RedisStore::new(&backend, &redis(&backend));
    let done = match used {
        Use::Locks | Use::Database => locks(&store, patience).await,
        Use::MovingSlot => {
            // Only a command of one key is executed on a slot that moves.
            let leases = [(name(MOVING), mutex())];
            store.renew(&leases, patience).await.map(drop)
        }
        Use::Told => return told(&backend, &store, patience).await,
        Use::Named => {
            return until(patience, "the name", async || {
                let clients: String = run(server, &["CLIENT", "LIST"]).await.unwrap();
                clients.contains(":lane ")
            })
            .await;
        }
        Use::Eviction => {
            let seen = until(patience, "the policy in the health", async || {
                backend.health().checks[0].message.contains("allkeys-lru")
            })
            .await;
            evict(server, "noeviction").await;
            return seen;
        }
        Use::Health => {
            return until(patience, "the state of the cluster", async || {
                let health = backend.health_detailed();
                let details = health.checks[0].details.as_ref();
                details.is_some_and(|details| details.cluster_state.as_deref() == Some("ok"))
            })
            .await;
        }
        Use::NothingRefused => match refusals(servers).await.as_slice() {
            [] => Ok(()),
            refused => return Err(refused.join(", ")),
        },
        Use::MayNot(_) => Ok(()),
    };
    done.map_err(|error| error.to_string())
}

async fn evict(server: &RedisServer, policy: &str) {
    let _: () = run(server, &["CONFIG", "SET", "maxmemory-policy", policy])
        .await
        .unwrap();
}

async fn one(store: &RedisStore, named: &str, patience: Duration) -> Result<(), redis_conn::Error> {
    let (name, terms) = (name(named), mutex());
    store.acquire(&name, &terms, None, patience).await?;
    store
        .release(&name, &terms, true, Next::InLine, patience)
        .await
        .map(drop)
}

/// What failed half way may have left another one as it was.
fn unused() -> Name {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    name(&format!("a:{}:", COUNT.fetch_add(1, Ordering::Relaxed)))
}

async fn locks(store: &RedisStore, patience: Duration) -> Result<(), redis_conn::Error> {
    for n in 0..20 {
        one(store, &format!("{n}"), patience).await?;
    }
    let (name, first, second, third) = (unused(), mutex(), mutex(), mutex());
    let ask = async |terms| store.acquire(&name, terms, Some("locks"), patience).await;
    ask(&first).await?;
    ask(&second).await?;
    store
        .release(&name, &first, false, Next::InLine, patience)
        .await?;
    let renewed = store
        .renew(&[(name.clone(), second.clone())], patience)
        .await?;
    assert_eq!(renewed, [Outcome::Held]);
    ask(&third).await?;
    assert_eq!(store.look(&name, patience).await?.waiting, 1);
    let listed = store.list(name.as_str(), patience).await?;
    assert_eq!(listed, [name.as_str()]);
    // There are none, and none is needed.
    let none = (0, patience);
    store
        .replicated(&name, second.owner, none, patience)
        .await?;
    store.force(&name, patience).await?;
    store.force(&name, patience).await.map(drop)
}

async fn told(backend: &Backend, store: &RedisStore, patience: Duration) -> Result<(), String> {
    let told = async {
        let (name, first, second) = (unused(), mutex(), mutex());
        let wake = &format!("locks:{{{}}}:here", name.tag());
        let mut mail = backend.bus().subscribe(wake).await?;
        store.acquire(&name, &first, None, patience).await?;
        let asked = store.acquire(&name, &second, Some(wake), patience).await?;
        assert!(matches!(asked, Acquired::Busy(_)));
        store
            .release(&name, &first, false, Next::InLine, patience)
            .await?;
        Ok::<_, redis_conn::Error>(mail.recv().await)
    };
    let told = tokio::time::timeout(patience, told).await;
    let told = told.map_err(|_| "nothing was heard".to_owned())?;
    match told.map_err(|error| error.to_string())? {
        Some(Event::Message(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

async fn may_not(server: &RedisServer, command: &str) -> Result<(), String> {
    let url = format!("redis://{USER}:{PASSWORD}@{}", server.addr());
    let client = ::redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    let mut asked = ::redis::cmd(words[0]);
    let asked = asked.arg(&words[1..]);
    match asked.query_async::<::redis::Value>(&mut connection).await {
        Err(error) if error.code() == Some("NOPERM") => Ok(()),
        answer => Err(format!("{command} is allowed: {answer:?}")),
    }
}
