//! What most of these tests need: the raw commands of a backend, the plainest of them, and waiting.

#![allow(dead_code, reason = "each test file needs a part of it")]

use std::{error::Error as StdError, iter, net::SocketAddr, time::Duration};

use redis_conn::{
    Backend, Config, ConfigBuilder, Endpoint, Error,
    raw::{Call, Class, Engine, Redis},
};
use testkit::{PASSWORD, USER};

/// Longer than anything that works takes, so that it decides no test.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) fn redis(backend: &Backend) -> Redis {
    let Engine::Redis(redis) = backend.engine() else {
        panic!("expected redis, found {}", backend.kind());
    };
    redis.clone()
}

pub(crate) fn get(key: &str) -> Call {
    Call::new("GET", Class::Idempotent).key(key)
}

pub(crate) fn set(key: &str, value: impl AsRef<[u8]>) -> Call {
    Call::new("SET", Class::Idempotent).key(key).arg(value)
}

/// Sent twice, it is seen in the value.
pub(crate) fn incr(key: &str) -> Call {
    Call::new("INCR", Class::AtMostOnce).key(key)
}

pub(crate) fn endpoints(addrs: impl IntoIterator<Item = SocketAddr>) -> Vec<Endpoint> {
    let addrs = addrs.into_iter();
    addrs
        .map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()))
        .collect()
}

/// As a service logs in to a cluster.
pub(crate) fn cluster_config(addrs: impl IntoIterator<Item = SocketAddr>) -> ConfigBuilder {
    Config::cluster(endpoints(addrs))
        .username(USER)
        .password(PASSWORD)
}

/// As a service logs in to sentinels and the servers behind them.
pub(crate) fn sentinel_config(
    sentinels: impl IntoIterator<Item = SocketAddr>,
    master_name: &str,
) -> ConfigBuilder {
    Config::sentinel(endpoints(sentinels), master_name)
        .username(USER)
        .password(PASSWORD)
        .sentinel_username(USER)
        .sentinel_password(PASSWORD)
}

/// Waits for what no event tells.
pub(crate) async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    if let Err(in_vain) = testkit::until(LONG, what, is_so).await {
        panic!("{in_vain}");
    }
}

/// The error and its causes, as a log shows them.
pub(crate) fn chain(error: &Error) -> String {
    let causes = iter::successors(Some(error as &dyn StdError), |&error| error.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}
