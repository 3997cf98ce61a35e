//! Connections for exclusive use that went bad while they lay idle or were held.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::time::Duration;

use redis_conn::{
    Backend, Config, ConfigBuilder, ErrorKind,
    raw::{Dedicated, Redis},
};
use support::{LONG, incr, redis, sentinel_config};
use testkit::{Answer, FaultProxy, RedisSentinel, RedisServer, RespMock};
use tokio::{runtime::Runtime, task::yield_now, time::timeout};

const SHORT: Duration = Duration::from_millis(100);

/// An idle connection is not taken at its word for so long.
const IDLE: Duration = Duration::from_secs(60);

/// No connections but those of the pool.
fn pool_only(url: &str) -> ConfigBuilder {
    let config = Config::from_url(url).unwrap().into_builder();
    config.lazy_connect(true).pool_size(1)
}

fn start(config: ConfigBuilder) -> (Backend, Redis) {
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    let redis = redis(&backend);
    (backend, redis)
}

/// Lets a connection lie idle.
async fn time_passes(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn an_idle_connection_that_fell_silent_is_asked_once_only() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = start(pool_only(&proxy.url()));
    redis.dedicated("k", LONG).await.unwrap().release();
    proxy.blackhole_live();
    time_passes(IDLE).await;

    // The caller gives up before the server can be known to be silent.
    redis.dedicated("k", SHORT).await.unwrap_err();
    proxy.wait_for(|stats| stats.live == 0).await;
    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    exclusive.call(incr("tk:n"), LONG).await.unwrap();
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn an_idle_connection_that_fell_silent_is_replaced_for_a_patient_caller() {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = start(pool_only(&proxy.url()));
    redis.dedicated("k", LONG).await.unwrap().release();
    proxy.blackhole_live();
    time_passes(IDLE).await;

    let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
    exclusive.call(incr("tk:n"), LONG).await.unwrap();
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn a_server_that_refuses_to_be_asked_is_there() {
    let mock = RespMock::start(|request| match request.is("PING") {
        true => Answer::error("NOPERM this user has no permissions to run the 'ping' command"),
        false => Answer::Default,
    });
    let mock = mock.await;
    let (_backend, redis) = start(pool_only(&mock.url()));
    redis.dedicated("k", LONG).await.unwrap().release();
    let asked = mock.count("PING");
    for _ in 0..3 {
        time_passes(IDLE).await;
        redis.dedicated("k", LONG).await.unwrap().release();
    }
    assert_eq!(mock.count("PING"), asked + 3);
    assert_eq!(mock.accepted(), 1);
}

#[test]
fn a_place_in_the_pool_outlives_the_runtime_of_who_wanted_it() {
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let (server, _backend, redis) = first.block_on(async {
        let server = RedisServer::builder().allow("+incr").start().await;
        let (backend, redis) = start(pool_only(&server.url()));
        (server, backend, redis)
    });
    server.freeze();
    let wanted = second.block_on(redis.dedicated("k", SHORT));
    assert_eq!(*wanted.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(second);
    server.thaw();
    first.block_on(async {
        let mut exclusive = redis.dedicated("k", LONG).await.unwrap();
        exclusive.call(incr("tk:n"), LONG).await.unwrap();
    });
}

#[tokio::test]
async fn who_waits_for_a_connection_gets_the_next_one_that_is_released() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = start(pool_only(&proxy.url()));
    let held = redis.dedicated("k", LONG).await.unwrap();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let redis = redis.clone();
            tokio::spawn(async move { redis.dedicated("k", LONG).await.map(Dedicated::release) })
        })
        .collect();
    for _ in 0..100 {
        yield_now().await;
    }
    held.release();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_connection_writes_nothing_to_the_server_that_was_the_primary() {
    let group = RedisSentinel::builder().allow("+incr").start().await;
    let (backend, redis) = start(sentinel_config(group.sentinel_addrs(), group.master_name()));
    backend.ready(LONG).await.unwrap();
    let mut held = redis.dedicated("tk:n", LONG).await.unwrap();
    held.call(incr("tk:held"), LONG).await.unwrap();

    group.freeze(0);
    group.wait_for_new_master(0).await;
    let written = timeout(LONG, async {
        while redis.call(incr("tk:n"), SHORT).await.is_err() {
            yield_now().await;
        }
    });
    written.await.expect("no write on the new primary");
    // Nobody is left to tell the old one that it is none any more.
    (0..group.sentinels().len()).for_each(|index| group.kill_sentinel(index));
    group.thaw(0);
    let refused = held.call(incr("tk:held"), LONG).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Unavailable);
    let old: Option<u64> = redis::cmd("GET")
        .arg("tk:held")
        .query_async(&mut group.connection(0).await)
        .await
        .unwrap();
    assert_eq!(old, Some(1));
}
