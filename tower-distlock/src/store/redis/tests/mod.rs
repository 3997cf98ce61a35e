//! The scripts on a real server.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod acl;
mod all;
mod cluster;
mod differential;
mod layout;
mod many;
mod operations;

use std::{sync::Arc, time::Duration};

use redis_conn::{
    Backend, Config,
    raw::{Engine, Redis},
};
use testkit::{RedisClock, RedisServer};

use super::RedisStore;
use crate::{
    FenceMode, OwnerId,
    name::Name,
    terms::{Mode, Seats, Terms},
};

/// Longer than anything that works takes, so that it decides no test.
const LONG: Duration = Duration::from_secs(20);

fn redis(backend: &Backend) -> Redis {
    match backend.engine() {
        Engine::Redis(redis) => redis.clone(),
        other => panic!("expected redis, found {other:?}"),
    }
}

/// A server whose time is the test's.
struct Fixture {
    server: RedisServer,
    admin: ::redis::aio::MultiplexedConnection,
    clock: RedisClock,
    backend: Backend,
    store: RedisStore,
}

impl Fixture {
    async fn start() -> Self {
        let (server, clock) = (RedisServer::start().await, RedisClock::new());
        let backend = Backend::builder()
            .rewrite_scripts(clock.rewriter())
            .redis(Config::from_url(&server.url()).unwrap())
            .unwrap();
        backend.ready(LONG).await.unwrap();
        let store = RedisStore::new(&backend, &redis(&backend));
        Self {
            admin: server.connection().await,
            server,
            clock,
            backend,
            store,
        }
    }

    async fn run<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]);
        let answer = command.query_async(&mut self.admin.clone()).await;
        answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn mutex() -> Terms {
    Terms {
        owner: OwnerId::new(),
        ttl: Duration::from_secs(30),
        mode: Mode::Alone,
        seats: Seats::Some(1),
        fence: FenceMode::Clock,
        instance: Arc::from("here:1"),
    }
}

fn semaphore(seats: u32) -> Terms {
    Terms {
        mode: Mode::Together,
        seats: Seats::Some(seats),
        ..mutex()
    }
}
