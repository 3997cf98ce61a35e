//! Every entry of the user `towerkeep-limits` in deploy/users.acl is needed by a service that has
//! rate limits only, on a server or on a cluster.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use redis_conn::{Audit, Backend, BackendBuilder, Config, ConfigBuilder, Endpoint, ManualClock};
use testkit::{RedisCluster, RedisServer, until};
use tower_ratelimit_redis::{
    Algorithm, Limiter, OnFailure, Policy, PolicyBuilder, RateLimitError, Revise, Source,
    WindowStart,
};

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
    /// It does all else that there is a script for.
    Scripts,
    /// It remembers a refusal until another service tells it that this is over.
    Told,
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
    /// It cannot run this command.
    MayNot(&'static str),
}

type Row = (&'static [&'static str], Use);

const SERVER: &[Row] = &[
    (
        &["on", ">change-me-towerkeep-limits", "~tk:r1:*", "+del"],
        Use::Limits,
    ),
    (
        &["+evalsha", "+eval", "+time", "+get", "+set"],
        Use::Scripts,
    ),
    (&["resetchannels", "&tk:b1:limits", "+@pubsub"], Use::Told),
    (&["+select"], Use::Database),
    (&["+client|setname"], Use::Named),
    (&["+info"], Use::Eviction),
    (&["+ping"], Use::NothingRefused),
    (&["-psubscribe"], Use::MayNot("PSUBSCRIBE tk:b1:limits")),
    (&["-punsubscribe"], Use::MayNot("PUNSUBSCRIBE")),
    (&["-pubsub"], Use::MayNot("PUBSUB CHANNELS")),
];

const CLUSTER: &[Row] = &[
    (&["+cluster|slots"], Use::Scripts),
    (&["&tk:b1:limits", "+@pubsub"], Use::Told),
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

/// Each use works, and without its entry it does not, because the servers refuse something. Denials are the other way round: without
/// them the servers allow what the use, which is an error then, has tried.
async fn each_is_needed(
    servers: &[RedisServer],
    table: &[Row],
    works: impl AsyncFn(Use, Duration) -> Result<(), String>,
) {
    for (needed, used) in table {
        for entry in *needed {
            if let Err(error) = grant(servers, Some(entry)).await {
                // What comes behind it makes no sense to a server that gives all channels at first.
                assert_eq!(*entry, "resetchannels", "{error}");
                continue;
            }
            let outcome = works(*used, SHORT).await;
            assert!(outcome.is_err(), "{used:?} works without {entry}");
            let denies = entry.starts_with('-');
            let refused = refusals(servers).await;
            assert!(
                denies || !refused.is_empty(),
                "without {entry}: {outcome:?}"
            );

            grant(servers, None).await.unwrap();
            assert_eq!(works(*used, LONG).await, Ok(()), "{used:?} with {entry}");
            let refused = refusals(servers).await;
            assert!(denies || refused.is_empty(), "with {entry}: {refused:?}");
        }
    }
}

async fn try_run<T: redis::FromRedisValue>(
    server: &RedisServer,
    words: &[&str],
) -> redis::RedisResult<T> {
    let mut command = redis::cmd(words[0]);
    let mut admin = server.connection().await;
    command.arg(&words[1..]).query_async(&mut admin).await
}

async fn run<T: redis::FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let answer = try_run(server, words).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// Gives the user what the file says but for one entry. Without `resetchannels` that is on top of all channels, which Redis 6.2 gives
/// at first.
async fn grant(servers: &[RedisServer], without: Option<&str>) -> redis::RedisResult<()> {
    let first = match without {
        Some("resetchannels") => "allchannels",
        _ => "resetchannels",
    };
    let mut words = vec!["ACL", "SETUSER", USER, "reset", first];
    words.extend(
        entries()
            .into_iter()
            .filter(|entry| Some(*entry) != without),
    );
    for server in servers {
        try_run::<()>(server, &words).await?;
        try_run::<()>(server, &["ACL", "LOG", "RESET"]).await?;
    }
    Ok(())
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
    ready_with(Backend::builder(), config, patience).await
}

async fn ready_with(
    builder: BackendBuilder,
    config: ConfigBuilder,
    patience: Duration,
) -> Result<Backend, String> {
    let config = config.username(USER).password(PASSWORD).build().unwrap();
    let backend = builder.redis(config).unwrap();
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
        Use::Scripts => {
            let _: () = run(server, &["SCRIPT", "FLUSH"]).await;
            let limiter = limiter(&ready(config, patience).await?, patience);
            scripts(servers, &limiter, patience).await
        }
        Use::Told => told(config, patience).await,
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
        Use::MayNot(command) => may_not(server, command).await,
    }
}

fn policy() -> Policy {
    let policy = Policy::new("api").limit(1_000, Duration::from_secs(60));
    policy.build().unwrap()
}

fn audit() -> Audit {
    Audit::new("test", "to begin anew")
}

/// Somebody of whom nothing was counted yet.
fn somebody() -> String {
    static KNOWN: AtomicU32 = AtomicU32::new(0);
    format!("somebody-{}", KNOWN.fetch_add(1, Ordering::Relaxed))
}

/// Nobody but the store decides.
fn limiter(backend: &Backend, patience: Duration) -> Limiter {
    let limiter = Limiter::builder(backend).timeout(patience);
    limiter.on_failure(OnFailure::Closed).build().unwrap()
}

/// Counts, looks and takes back.
async fn limits(backend: &Backend, subject: &str, patience: Duration) -> Result<(), String> {
    let limiter = limiter(backend, patience);
    let policy = policy();
    let decided = async {
        limiter.check(&policy, subject, 1).await?;
        limiter.peek(&policy, subject).await?;
        limiter.reset(&policy, subject, &audit()).await
    };
    let decided: Result<(), RateLimitError> = decided.await;
    decided.map_err(|error| error.to_string())
}

/// Where all scripts are.
const STORE: &str = include_str!("../src/store/redis/scripts.rs");

/// Runs each script; those servers that had none know all then.
async fn scripts(
    servers: &[RedisServer],
    limiter: &Limiter,
    patience: Duration,
) -> Result<(), String> {
    let decided = async {
        by_each_algorithm(limiter).await?;
        settled_and_blocked(limiter).await?;
        revised(limiter).await
    };
    let decided: Result<(), RateLimitError> = decided.await;
    decided.map_err(|error| error.to_string())?;
    held(servers, limiter, patience).await?;
    // On a cluster each subject has its node.
    if let [server] = servers {
        let known = &server.info("memory").await["number_of_cached_scripts"];
        let all = STORE.matches(": Script =").count().to_string();
        assert_eq!(*known, all, "some script was not run");
    }
    Ok(())
}

async fn by_each_algorithm(limiter: &Limiter) -> Result<(), RateLimitError> {
    let minute = Duration::from_secs(60);
    let begin = || Policy::new("api");
    let one = |algorithm| begin().limit_by(algorithm, 100, minute);
    let several = |policy: PolicyBuilder| policy.limit(100, minute * 60);
    for policy in [
        one(Algorithm::StrictWindow),
        one(Algorithm::SlidingCounter),
        one(Algorithm::Gcra { burst: 10 }),
        one(Algorithm::SlidingLog),
        one(Algorithm::FixedWindow(WindowStart::Calendar)),
        one(Algorithm::FixedWindow(WindowStart::FirstCall)),
        several(one(Algorithm::SlidingLog)),
    ] {
        let policy = policy.build().unwrap();
        let decision = limiter.check(&policy, somebody(), 1).await?;
        assert!(decision.is_allowed(), "{policy:?}");
    }
    Ok(())
}

async fn settled_and_blocked(limiter: &Limiter) -> Result<(), RateLimitError> {
    let (policy, subject) = (policy(), somebody());
    let left = async || {
        let seen = limiter.peek(&policy, &*subject).await?;
        Ok::<_, RateLimitError>(seen.limits()[0].remaining)
    };
    let decision = limiter.check_at_most(&policy, &*subject, 2_000).await?;
    assert_eq!(decision.granted(), 1_000);
    limiter.refund(&policy, &*subject, &decision, 1).await?;
    assert_eq!(left().await?, 1);
    limiter.settle(&policy, &*subject, &decision, 901).await?;
    assert_eq!(left().await?, 100);
    limiter.settle(&policy, &*subject, &decision, 1_050).await?;
    assert_eq!(left().await?, 50);

    let minute = Duration::from_secs(60);
    for (time, blocked) in [(minute, true), (Duration::ZERO, false)] {
        limiter.block(&policy, &*subject, time, &audit()).await?;
        let decision = limiter.check(&policy, &*subject, 1).await?;
        assert_eq!(decision.is_blocked(), blocked);
    }
    Ok(())
}

async fn revised(limiter: &Limiter) -> Result<(), RateLimitError> {
    let subject = somebody();
    for revision in [1, 2] {
        let policy = Policy::new("api").limit(1, Duration::from_secs(3_600));
        let policy = policy.revision(revision, Revise::Reset).build().unwrap();
        let decision = limiter.check(&policy, &*subject, 1).await?;
        assert!(decision.is_allowed(), "what was counted is forgotten");
    }
    Ok(())
}

/// Holds a permit until it is renewed.
async fn held(
    servers: &[RedisServer],
    limiter: &Limiter,
    patience: Duration,
) -> Result<(), String> {
    let lease = Duration::from_secs(1);
    let policy = Policy::new("jobs").concurrency(1, lease).build().unwrap();
    let acquired = limiter.acquire(&policy, somebody(), 1).await;
    let acquired = acquired.map_err(|error| error.to_string())?;
    let permit = acquired.permit().ok_or("the permit is held by another")?;
    let before = evaluated(servers).await;
    // Nothing else is going on.
    until(patience, "its renewal", async || {
        evaluated(servers).await > before
    })
    .await?;
    // On a busy machine it may be lost by now.
    let released = permit.release().await;
    released.map(drop).map_err(|error| error.to_string())
}

async fn evaluated(servers: &[RedisServer]) -> u64 {
    let mut all = 0;
    for server in servers {
        let calls = server.command_calls().await;
        all += calls.get("evalsha").map_or(0, |stat| stat.calls);
    }
    all
}

async fn told(config: ConfigBuilder, patience: Duration) -> Result<(), String> {
    let clock = Arc::new(ManualClock::new(1));
    let own = Backend::builder().clock(Arc::clone(&clock) as _);
    let here = ready_with(own, config.clone(), patience).await?;
    let there = ready(config, patience).await?;
    let (here, there) = (limiter(&here, patience), limiter(&there, patience));
    let policy = Policy::new("api").limit(1, Duration::from_secs(3_600));
    let (policy, subject) = (policy.build().unwrap(), somebody());
    let check = async || here.check(&policy, &*subject, 1).await;
    check().await.map_err(|error| error.to_string())?;
    until(patience, "a refusal that is remembered", async || {
        // Who hears nothing asks again after a second.
        clock.advance(Duration::from_secs(2));
        check()
            .await
            .is_ok_and(|again| again.source() == Source::Cached)
    })
    .await?;
    let reset = there.reset(&policy, &*subject, &audit()).await;
    reset.map_err(|error| error.to_string())?;
    until(patience, "what the other one tells", async || {
        check().await.is_ok_and(|decision| decision.is_allowed())
    })
    .await
}

async fn may_not(server: &RedisServer, command: &str) -> Result<(), String> {
    let url = format!("redis://{USER}:{PASSWORD}@{}", server.addr());
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    let mut asked = redis::cmd(words[0]);
    let asked = asked.arg(&words[1..]);
    match asked.query_async::<redis::Value>(&mut connection).await {
        Err(error) if error.code() == Some("NOPERM") => Ok(()),
        answer => Err(format!("{command} is allowed: {answer:?}")),
    }
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
    let limiter = limiter(&backend, LONG);
    let policy = policy();
    limiter.check(&policy, subject, 1).await.unwrap();
    let mut keys = Vec::new();
    for node in &cluster.nodes()[..3] {
        keys.extend(node.keys().await);
    }
    let slot = RedisCluster::slot_of(&keys[0]);
    limiter.reset(&policy, subject, &audit()).await.unwrap();
    let from = cluster.primary_of(slot).await;
    let _ = cluster.begin_migration(slot, from, (from + 1) % 3).await;
}
