//! Calls that are made while there is no connection: who waits for one, for how long, and that nothing is sent twice.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{net::SocketAddr, time::Duration};

use redis_conn::{
    Backend, Config, ConfigBuilder, Error, ErrorKind, State,
    raw::{Call, Class, Redis, Script},
};
use support::{cluster_config, redis};
use testkit::{Fault, FaultProxy, RedisCluster, RedisServer};
use tokio::{
    task::{JoinHandle, yield_now},
    time::timeout,
};

/// Longer than anything that works takes, also where there is much of it, so that it decides no test.
const LONG: Duration = Duration::from_secs(60);

const SHORT: Duration = Duration::from_millis(100);

fn single(url: &str) -> ConfigBuilder {
    Config::from_url(url).unwrap().into_builder().lanes(1)
}

fn cluster(addrs: impl IntoIterator<Item = SocketAddr>) -> ConfigBuilder {
    cluster_config(addrs).lanes(1)
}

fn start(config: ConfigBuilder) -> (Backend, Redis) {
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    let redis = redis(&backend);
    (backend, redis)
}

static COUNT: Script = Script::new(
    "local n = (redis.call('GET', KEYS[1]) or 0) + 1 redis.call('SET', KEYS[1], n) return n",
);

/// Executing it twice would be seen in the number.
async fn count(redis: &Redis, key: &str, deadline: Duration) -> Result<i64, Error> {
    let counted = redis.script(&COUNT, Class::AtMostOnce, &[key]);
    counted.run(deadline).await?.int()
}

async fn get(redis: &Redis, key: &str, deadline: Duration) -> Result<(), Error> {
    let get = Call::new("GET", Class::Idempotent).key(key);
    redis.call(get, deadline).await.map(drop)
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind().clone()
}

/// A server whose way is cut, and a backend that has tried it.
async fn cut_off(queue: bool, more: fn(ConfigBuilder) -> ConfigBuilder) -> CutOff {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    proxy.set(Fault::Refuse);
    let (backend, redis) = start(more(single(&proxy.url()).offline_queue(queue)));
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    CutOff {
        server,
        proxy,
        backend,
        redis,
    }
}

struct CutOff {
    server: RedisServer,
    proxy: FaultProxy,
    backend: Backend,
    redis: Redis,
}

impl CutOff {
    /// Begins so many calls, each of which waits.
    async fn waiting(&self, calls: usize) -> Vec<JoinHandle<Result<i64, Error>>> {
        let wait = |_| {
            let redis = self.redis.clone();
            tokio::spawn(async move { count(&redis, "tk:n", LONG).await })
        };
        let waiting: Vec<_> = (0..calls).map(wait).collect();
        // The lane is dialled a few times meanwhile, always in vain.
        let attempts = self.proxy.stats().refused + 3;
        self.proxy.wait_for(|stats| stats.refused >= attempts).await;
        assert!(waiting.iter().all(|call| !call.is_finished()));
        waiting
    }
}

/// All were executed, each of them once.
async fn check(redis: &Redis, waiting: Vec<JoinHandle<Result<i64, Error>>>) {
    let calls = i64::try_from(waiting.len()).unwrap();
    let mut numbers = Vec::new();
    for call in waiting {
        numbers.push(call.await.unwrap().unwrap());
    }
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=calls));
    assert_eq!(count(redis, "tk:n", LONG).await.unwrap(), calls + 1);
}

#[tokio::test]
async fn calls_that_queue_wait_for_the_server_and_are_sent_once() {
    let away = cut_off(true, |config| config).await;
    let waiting = away.waiting(100).await;
    assert!(!away.server.command_calls().await.contains_key("evalsha"));
    away.proxy.set(Fault::Pass);
    check(&away.redis, waiting).await;

    // The same where there was a connection before.
    away.proxy.set(Fault::Refuse);
    away.proxy.reset_live();
    assert!(
        away.backend
            .watch_state()
            .wait_for(State::Reconnecting)
            .await
    );
    let redis = away.redis.clone();
    let waiting = tokio::spawn(async move { count(&redis, "tk:m", LONG).await });
    let attempts = away.proxy.stats().refused + 3;
    away.proxy.wait_for(|stats| stats.refused >= attempts).await;
    assert!(!waiting.is_finished());
    away.proxy.set(Fault::Pass);
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    assert_eq!(count(&away.redis, "tk:m", LONG).await.unwrap(), 2);
}

#[tokio::test]
async fn calls_that_queue_wait_until_their_deadline_and_nothing_is_sent_later() {
    let away = cut_off(true, |config| config).await;
    assert_eq!(
        kind(count(&away.redis, "tk:n", SHORT).await),
        ErrorKind::Timeout
    );
    assert_eq!(
        kind(get(&away.redis, "tk:n", SHORT).await),
        ErrorKind::Timeout
    );
    // Given up without a deadline.
    assert!(
        timeout(SHORT, count(&away.redis, "tk:n", LONG))
            .await
            .is_err()
    );
    away.proxy.set(Fault::Pass);
    away.backend.ready(LONG).await.unwrap();
    assert_eq!(count(&away.redis, "tk:n", LONG).await.unwrap(), 1);
    let calls = away.server.command_calls().await;
    let [sent, executed] = ["evalsha", "eval"].map(|name| calls[name].calls);
    assert_eq!((sent, executed), (1, 1), "only the last one ever left");
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let away = cut_off(true, |config| config.max_in_flight(5)).await;
    let waiting = away.waiting(5).await;
    assert_eq!(
        kind(count(&away.redis, "tk:n", LONG).await),
        ErrorKind::Saturated
    );
    assert_eq!(
        kind(get(&away.redis, "tk:n", LONG).await),
        ErrorKind::Saturated
    );
    away.proxy.set(Fault::Pass);
    check(&away.redis, waiting).await;
}

#[tokio::test]
async fn those_who_queue_hear_that_the_backend_is_closed() {
    let away = cut_off(true, |config| config).await;
    let waiting = away.waiting(2).await;
    timeout(LONG, away.backend.close(SHORT))
        .await
        .unwrap()
        .unwrap();
    for call in waiting {
        assert_eq!(kind(call.await.unwrap()), ErrorKind::Closed);
    }
}

#[tokio::test]
async fn without_a_queue_calls_fail_at_once() {
    let away = cut_off(false, |config| config).await;
    // Their deadline is far off: whoever waited for it would hang.
    let failed = async {
        (
            count(&away.redis, "tk:n", LONG * 10).await,
            get(&away.redis, "tk:n", LONG * 10).await,
        )
    };
    let (counted, got) = timeout(LONG, failed).await.unwrap();
    assert_eq!(kind(counted), ErrorKind::Unavailable);
    assert_eq!(kind(got), ErrorKind::Unavailable);
    away.proxy.set(Fault::Pass);
    away.backend.ready(LONG).await.unwrap();
    assert_eq!(count(&away.redis, "tk:n", LONG).await.unwrap(), 1);
}

#[tokio::test]
async fn calls_to_a_cluster_that_queue_wait_for_their_shard_and_are_sent_once() {
    let cluster_of_one = RedisCluster::builder().primaries(1).replicas_per_primary(0);
    let servers = cluster_of_one.proxied().start().await;
    let proxy = servers.proxy(0);
    // Nothing was known of the cluster.
    proxy.set(Fault::Refuse);
    let (backend, redis) = start(cluster(servers.addrs()).offline_queue(true));
    for round in 0..2 {
        assert!(backend.watch_state().wait_for(State::Reconnecting).await);
        let caller = redis.clone();
        let key = format!("tk:{round}");
        let waiting = tokio::spawn(async move { count(&caller, &key, LONG).await });
        let attempts = proxy.stats().refused + 3;
        proxy.wait_for(|stats| stats.refused >= attempts).await;
        assert!(!waiting.is_finished());
        proxy.set(Fault::Pass);
        assert_eq!(waiting.await.unwrap().unwrap(), 1);
        assert_eq!(
            count(&redis, &format!("tk:{round}"), LONG).await.unwrap(),
            2
        );
        // Known, and away again.
        proxy.set(Fault::Refuse);
        proxy.reset_live();
    }
}

#[tokio::test]
async fn the_queue_of_an_unknown_cluster_is_bounded() {
    let server = FaultProxy::start(std::net::SocketAddr::from(([127, 0, 0, 1], 1))).await;
    server.set(Fault::Refuse);
    let config = cluster([server.addr()]).max_in_flight(2);
    let (backend, redis) = start(config.offline_queue(true));
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    let wait = |_| {
        let redis = redis.clone();
        tokio::spawn(async move { count(&redis, "tk:n", LONG).await })
    };
    let waiting: Vec<_> = (0..2).map(wait).collect();
    let attempts = server.stats().refused + 2;
    server.wait_for(|stats| stats.refused >= attempts).await;
    assert_eq!(
        kind(count(&redis, "tk:n", LONG).await),
        ErrorKind::Saturated
    );
    // Without a queue the same cluster is away at once.
    let (_hasty, redis) = start(cluster([server.addr()]));
    let away = timeout(LONG, count(&redis, "tk:n", LONG * 10)).await;
    assert_eq!(kind(away.unwrap()), ErrorKind::Unavailable);

    backend.close(SHORT).await.unwrap();
    for call in waiting {
        assert_eq!(kind(call.await.unwrap()), ErrorKind::Closed);
    }
}

/// Nothing is dialled before the first call, and then what it needs.
async fn is_lazy(lazy: ConfigBuilder, eager: ConfigBuilder, proxy: &FaultProxy) {
    let (backend, redis) = start(lazy.lazy_connect(true));
    // Whatever the first had done at once has been done when the second, built later, has done the same.
    let (eager, _) = start(eager);
    eager.ready(LONG).await.unwrap();
    for _ in 0..100 {
        yield_now().await;
    }
    assert_eq!(proxy.accepted(), 0);
    assert_eq!(backend.state(), State::Connecting);
    let _ = backend.health();
    assert_eq!(proxy.accepted(), 0, "asking for the health is no call");

    assert_eq!(count(&redis, "tk:n", LONG).await.unwrap(), 1);
    assert!(proxy.accepted() > 0);
    let mut states = backend.watch_state();
    let connected = timeout(LONG, states.wait_for(State::Connected)).await;
    assert!(connected.unwrap_or(false), "it stays {}", backend.state());
}

#[tokio::test]
async fn a_lazy_backend_dials_nothing_before_its_first_call() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    is_lazy(single(&proxy.url()), single(&server.url()), &proxy).await;
    assert_eq!(proxy.accepted(), 1, "one lane");
}

#[tokio::test]
async fn the_first_call_has_all_lanes_of_a_lazy_backend_connect() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let lazy = single(&proxy.url()).lanes(2);
    is_lazy(lazy, single(&server.url()), &proxy).await;
    assert_eq!(proxy.accepted(), 2);
}

#[tokio::test]
async fn a_lazy_cluster_dials_nothing_before_its_first_call() {
    let servers = RedisCluster::builder().primaries(1).replicas_per_primary(0);
    let servers = servers.start().await;
    let proxy = FaultProxy::start(servers.addr(0)).await;
    is_lazy(cluster([proxy.addr()]), cluster(servers.addrs()), &proxy).await;
}

#[tokio::test]
async fn the_first_call_of_a_lazy_backend_waits_for_its_own_connection() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    proxy.set(Fault::Refuse);
    let (_backend, redis) = start(single(&proxy.url()).lazy_connect(true));
    assert_eq!(
        kind(
            timeout(LONG, count(&redis, "tk:n", LONG * 10))
                .await
                .unwrap()
        ),
        ErrorKind::Unavailable,
        "nobody is there, and it does not queue"
    );
    proxy.set(Fault::Pass);
    let (backend, redis) = start(single(&proxy.url()).lazy_connect(true));
    let calls = (0..10).map(|_| count(&redis, "tk:n", LONG));
    for call in calls {
        call.await.unwrap();
    }
    backend.ready(LONG).await.unwrap();
    assert_eq!(count(&redis, "tk:n", LONG).await.unwrap(), 11);
}
