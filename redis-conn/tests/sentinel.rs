//! The Redis backend behind real sentinels, while the primary moves.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use redis_conn::{
    Backend, Config, ConfigBuilder, Error, ErrorKind, Event, State, Subscription,
    raw::{Call, Class, Redis, Script},
};
use support::{LONG, chain, endpoints, incr, redis, sentinel_config, until};
use testkit::{Fault, RedisSentinel, RedisServer};
use tokio::{sync::watch, time::timeout};

/// The deadline of calls that may meet a server that says nothing.
const SHORT: Duration = Duration::from_millis(500);

const ASK_AGAIN: Duration = Duration::from_millis(10);

fn config(group: &RedisSentinel) -> ConfigBuilder {
    sentinel_config(group.sentinel_addrs(), group.master_name())
}

async fn connected(config: ConfigBuilder) -> Backend {
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

async fn stored(group: &RedisSentinel, server: usize, key: &str) -> Option<u64> {
    let mut connection = group.connection(server).await;
    redis::cmd("GET")
        .arg(key)
        .query_async(&mut connection)
        .await
        .unwrap()
}

/// Writes until a write is on the server `index`.
async fn writes_reach(redis: &Redis, group: &RedisSentinel, index: usize) {
    let key = format!("tk:reached:{index}");
    until("a write on the new primary", async || {
        let written = redis.call(incr(&key), SHORT).await;
        written.is_ok() && stored(group, index, &key).await.is_some()
    })
    .await;
}

static ADD: Script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");

#[tokio::test]
async fn the_primary_is_found_and_runs_commands_and_scripts() {
    let group = RedisSentinel::builder()
        .allow("+incr +incrby")
        .master_name("other")
        .start()
        .await;
    let primary = group.failover().await;
    let backend = connected(config(&group)).await;
    assert_eq!(backend.kind(), "redis-sentinel");
    let redis = redis(&backend);

    assert_eq!(
        redis.call(incr("tk:n"), LONG).await.unwrap().int().unwrap(),
        1
    );
    for expected in [3, 5] {
        let sum = redis
            .script(&ADD, Class::AtMostOnce, &["tk:n"])
            .int(2)
            .run(LONG)
            .await;
        assert_eq!(sum.unwrap().int().unwrap(), expected);
    }
    assert_eq!(stored(&group, primary, "tk:n").await, Some(5));
    backend.close(LONG).await.unwrap();
    for sentinel in group.sentinels() {
        until("the connections to end", async || {
            followers(sentinel).await == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_sentinel_that_is_away_does_not_matter() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    group.kill_sentinel(0);
    let backend = connected(config(&group)).await;
    group.kill(0);
    let new = group.wait_for_new_master(0).await;
    writes_reach(&redis(&backend), &group, new).await;

    group.restart_sentinel(0).await;
    until("the sentinel to be followed again", async || {
        followers(&group.sentinels()[0]).await > 0
    })
    .await;
}

/// How many connections a server has whose names contain `name`.
async fn connections(server: &RedisServer, name: &str) -> usize {
    let list: redis::RedisResult<String> = redis::cmd("CLIENT")
        .arg("LIST")
        .query_async(&mut server.connection().await)
        .await;
    list.unwrap().matches(name).count()
}

/// How many connections to a sentinel there are.
async fn followers(sentinel: &RedisServer) -> usize {
    connections(sentinel, ":survey ").await
}

#[tokio::test]
async fn sentinels_that_are_not_configured_are_learned() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    let one = group.sentinel_addrs().into_iter().take(1);
    let backend = connected(sentinel_config(one, group.master_name())).await;
    for sentinel in group.sentinels() {
        until("each sentinel to be followed", async || {
            followers(sentinel).await > 0
        })
        .await;
    }

    group.kill_sentinel(0);
    group.kill(0);
    let new = group.wait_for_new_master(0).await;
    writes_reach(&redis(&backend), &group, new).await;
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_is_a_named_error() {
    let group = RedisSentinel::start().await;
    let addrs = group.sentinel_addrs();
    let wrong = sentinel_config(addrs.clone(), "nobody");
    let backend = Backend::redis(wrong.build().unwrap()).unwrap();

    assert!(
        timeout(LONG, backend.watch_state().wait_for(State::Error))
            .await
            .unwrap()
    );
    let error = backend.ready(SHORT).await.unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("REDIS_MASTER_NAME") && text.contains("nobody"),
        "{text}"
    );
    assert!(text.contains(&addrs[0].ip().to_string()), "{text}");
}

#[tokio::test]
async fn sentinels_have_a_password_of_their_own() {
    let group = RedisSentinel::builder()
        .password("of servers")
        .sentinel_password("of sentinels")
        .start()
        .await;
    // As the default user.
    let of_servers = || {
        let sentinels = endpoints(group.sentinel_addrs());
        Config::sentinel(sentinels, group.master_name()).password("of servers")
    };
    let backend = connected(of_servers().sentinel_password("of sentinels")).await;
    let redis = redis(&backend);
    redis.call(incr("tk:n"), LONG).await.unwrap();
    let new = group.failover().await;
    writes_reach(&redis, &group, new).await;

    for wrong in [of_servers(), of_servers().sentinel_password("of servers")] {
        let backend = Backend::redis(wrong.build().unwrap()).unwrap();
        assert!(
            timeout(LONG, backend.watch_state().wait_for(State::Error))
                .await
                .unwrap()
        );
        let text = chain(&backend.ready(SHORT).await.unwrap_err());
        assert!(text.contains("the sentinel at 127.0.0.1:"), "{text}");
        assert!(!text.contains("of servers"), "{text}");
    }
}

#[tokio::test]
async fn nobody_is_asked_before_a_lazy_backend_is_used() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    let lazy = config(&group).lazy_connect(true).connection_name("lazy");
    let lazy = Backend::redis(lazy.build().unwrap()).unwrap();
    let sentinel = &group.sentinels()[0];
    // Whatever the first one had done at once has been done when the second one has.
    let _eager = connected(config(&group)).await;
    until("the sentinel to be followed", async || {
        followers(sentinel).await > 0
    })
    .await;
    assert_eq!(connections(sentinel, "=lazy").await, 0);

    redis(&lazy).call(incr("tk:n"), LONG).await.unwrap();
    assert_eq!(stored(&group, 0, "tk:n").await, Some(1));
    until("the sentinel to be followed", async || {
        connections(sentinel, "=lazy").await > 0
    })
    .await;
}

#[tokio::test]
async fn a_primary_that_dies_is_left() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    let backend = connected(config(&group)).await;
    redis(&backend).call(incr("tk:n"), LONG).await.unwrap();
    group.kill(0);
    let new = group.wait_for_new_master(0).await;
    writes_reach(&redis(&backend), &group, new).await;
    assert!(
        timeout(LONG, backend.watch_state().wait_for(State::Connected))
            .await
            .unwrap()
    );
}

/// Without a call that could find it out.
async fn is_left_for(backend: &Backend, group: &RedisSentinel, new: usize) {
    let server = group.server(new);
    until("lanes to the new primary", async || {
        connections(server, ":lane ").await > 0
    })
    .await;
    redis(backend).call(incr("tk:m"), LONG).await.unwrap();
    assert_eq!(stored(group, new, "tk:m").await, Some(1));
}

/// Its sockets stay open: no connection tells that it is gone.
#[tokio::test]
async fn a_primary_that_freezes_is_left() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    let backend = connected(config(&group)).await;
    redis(&backend).call(incr("tk:n"), LONG).await.unwrap();
    group.freeze(0);
    let new = group.wait_for_new_master(0).await;
    // Nobody calls meanwhile, so only the sentinels can have told.
    is_left_for(&backend, &group, new).await;
}

#[tokio::test]
async fn a_switch_that_is_not_announced_is_found_by_asking() {
    let group = RedisSentinel::builder()
        .allow("+incr")
        .proxied_sentinels()
        .start()
        .await;
    let backend = connected(config(&group)).await;
    let proxies = || (0..group.sentinels().len()).map(|index| group.sentinel_proxy(index));
    for proxy in proxies() {
        proxy.set(Fault::drop_pushes("+switch-master"));
    }
    group.freeze(0);
    let new = group.wait_for_new_master(0).await;
    for proxy in proxies() {
        proxy.wait_for(|stats| stats.dropped_pushes > 0).await;
    }
    // Nobody calls meanwhile: a call that is not answered would be a reason to ask.
    is_left_for(&backend, &group, new).await;
}

#[tokio::test]
async fn a_failover_is_followed_after_all_sentinels_were_away() {
    let group = RedisSentinel::builder()
        .allow("+incr")
        .proxied_sentinels()
        .start()
        .await;
    let backend = connected(config(&group)).await;
    let proxies = || (0..group.sentinels().len()).map(|index| group.sentinel_proxy(index));
    proxies().for_each(|proxy| {
        proxy.set(Fault::Refuse);
        proxy.reset_live();
    });
    // The present connections go on meanwhile.
    redis(&backend).call(incr("tk:n"), LONG).await.unwrap();
    assert_eq!(stored(&group, 0, "tk:n").await, Some(1));

    proxies().for_each(|proxy| proxy.set(Fault::Pass));
    group.wait_ok().await;
    let new = group.failover().await;
    writes_reach(&redis(&backend), &group, new).await;
}

/// The old primary was frozen through the failover and nobody has told it since: it would take writes.
#[tokio::test]
async fn an_old_primary_that_thaws_is_not_written_to() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    let backend = connected(config(&group)).await;
    let redis = redis(&backend);
    let mut pooled = redis.dedicated("tk:n", LONG).await.unwrap();
    pooled.call(incr("tk:pooled"), LONG).await.unwrap();
    pooled.release();

    group.freeze(0);
    let new = group.wait_for_new_master(0).await;
    writes_reach(&redis, &group, new).await;
    (0..group.sentinels().len()).for_each(|index| group.kill_sentinel(index));
    group.thaw(0);
    let role: Vec<redis::Value> = redis::cmd("ROLE")
        .query_async(&mut group.connection(0).await)
        .await
        .unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));

    for n in 1..=50 {
        assert_eq!(
            redis
                .call(incr("tk:after"), LONG)
                .await
                .unwrap()
                .int()
                .unwrap(),
            n
        );
    }
    assert_eq!(stored(&group, new, "tk:after").await, Some(50));
    assert_eq!(stored(&group, 0, "tk:after").await, None);

    // Where all sentinels are gone nobody can say where a new connection should lead.
    let pooled = async {
        let mut pooled = redis.dedicated("tk:n", LONG).await?;
        pooled.call(incr("tk:pooled"), LONG).await
    };
    let refused = pooled.await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Unavailable);
    assert_eq!(stored(&group, 0, "tk:pooled").await, Some(1));

    group.restart_sentinel(1).await;
    group.restart_sentinel(2).await;
    until("an exclusive connection", async || {
        match redis.dedicated("tk:n", LONG).await {
            Ok(mut pooled) => pooled.call(incr("tk:pooled:after"), LONG).await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
    assert_eq!(stored(&group, new, "tk:pooled:after").await, Some(1));
}

/// Neither the end of the connection nor the switch is told twice, and what is published afterwards arrives.
async fn has_one_gap(subscription: &mut Subscription, backend: &Backend) {
    let next = async |subscription: &mut Subscription| {
        let event = timeout(LONG, subscription.recv()).await;
        event
            .expect("nothing came")
            .expect("the subscription ended")
    };
    assert_eq!(next(subscription).await, Event::Gap);
    for n in 0..10_u8 {
        until("a message to be published", async || {
            backend.bus().publish("news", &[n]).await.is_ok()
        })
        .await;
        match next(subscription).await {
            Event::Message(message) => assert_eq!(message.payload(), [n]),
            other => panic!("expected message {n}, found {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_failover_is_one_gap_for_each_subscriber() {
    let group = RedisSentinel::start().await;
    let backend = connected(config(&group)).await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    group.freeze(0);
    group.wait_for_new_master(0).await;
    has_one_gap(&mut news, &backend).await;

    // The old primary is alive this time.
    group.thaw(0);
    group.wait_ok().await;
    group.failover().await;
    has_one_gap(&mut news, &backend).await;
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Executed, and both replicas have it.
    Safe,
    /// Executed; a failover may lose it.
    Executed,
    Unknown,
    Refused,
}

type Fates = BTreeMap<String, Fate>;

fn fate(error: &Error) -> Fate {
    if error.is_ambiguous() {
        Fate::Unknown
    } else {
        Fate::Refused
    }
}

/// One write over the lanes.
async fn write_shared(redis: &Redis, key: &str) -> Fate {
    match redis.call(incr(key), SHORT).await {
        Ok(_) => Fate::Executed,
        Err(error) => fate(&error),
    }
}

/// One write over a connection of its own, which waits for the replicas.
async fn write_safely(redis: &Redis, key: &str) -> Fate {
    let Ok(mut connection) = redis.dedicated(key, SHORT).await else {
        return Fate::Refused;
    };
    if let Err(error) = connection.call(incr(key), SHORT).await {
        return fate(&error);
    }
    let wait = Call::new("WAIT", Class::Idempotent).int(2).int(200);
    let replicas = connection
        .call(wait, SHORT)
        .await
        .and_then(|reply| reply.int());
    connection.release();
    if matches!(replicas, Ok(2)) {
        Fate::Safe
    } else {
        Fate::Executed
    }
}

/// Writes one key after the other, until twenty were written after the switch.
async fn writer(id: usize, redis: Redis, switched: watch::Receiver<bool>) -> Fates {
    let mut fates = Fates::new();
    let mut after = 0;
    while after < 20 {
        let key = format!("tk:{id}:{}", fates.len());
        let is_after = *switched.borrow();
        let fate = match id % 2 {
            0 => write_shared(&redis, &key).await,
            _ => write_safely(&redis, &key).await,
        };
        match fate {
            Fate::Safe | Fate::Executed => after += u32::from(is_after),
            Fate::Unknown | Fate::Refused => tokio::time::sleep(ASK_AGAIN).await,
        }
        fates.insert(key, fate);
    }
    fates
}

async fn check(group: &RedisSentinel, primary: usize, fates: &Fates) {
    let keys: Vec<&String> = fates.keys().collect();
    let mut connection = group.connection(primary).await;
    let found: Vec<Option<u64>> = redis::cmd("MGET")
        .arg(keys)
        .query_async(&mut connection)
        .await
        .unwrap();
    for ((key, fate), found) in fates.iter().zip(found) {
        let is_right = match fate {
            Fate::Safe => found == Some(1),
            Fate::Executed | Fate::Unknown => found.is_none_or(|count| count == 1),
            Fate::Refused => found.is_none(),
        };
        assert!(is_right, "{key} is {fate:?} and stored as {found:?}");
    }
}

async fn nothing_is_doubled_and_nothing_safe_is_lost(
    fail: impl AsyncFnOnce(&RedisSentinel) -> usize,
) {
    let group = RedisSentinel::builder().allow("+incr +wait").start().await;
    let backend = connected(config(&group)).await;
    let switched = watch::Sender::new(false);
    let writers: Vec<_> = (0..8)
        .map(|id| tokio::spawn(writer(id, redis(&backend), switched.subscribe())))
        .collect();
    until("writes that the replicas have", async || {
        stored(&group, 1, "tk:7:5").await.is_some()
    })
    .await;

    let new = fail(&group).await;
    switched.send_replace(true);
    let mut fates = Fates::new();
    for writer in writers {
        fates.extend(
            timeout(LONG, writer)
                .await
                .expect("writes do not resume")
                .unwrap(),
        );
    }
    assert!(fates.values().any(|fate| *fate == Fate::Safe));
    check(&group, new, &fates).await;
}

#[tokio::test]
async fn a_failover_on_demand_doubles_no_write_and_loses_no_safe_one() {
    nothing_is_doubled_and_nothing_safe_is_lost(async |group| group.failover().await).await;
}

#[tokio::test]
async fn the_death_of_the_primary_doubles_no_write_and_loses_no_safe_one() {
    nothing_is_doubled_and_nothing_safe_is_lost(async |group| {
        group.kill(0);
        group.wait_for_new_master(0).await
    })
    .await;
}

#[tokio::test]
async fn a_frozen_primary_doubles_no_write_and_loses_no_safe_one() {
    nothing_is_doubled_and_nothing_safe_is_lost(async |group| {
        group.freeze(0);
        group.wait_for_new_master(0).await
    })
    .await;
}
