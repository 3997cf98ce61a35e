//! Servers that are too old are refused by name, when they are met.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::error::Error as _;

use redis_conn::{
    Backend, Config, ErrorKind, State,
    raw::{Call, Class, Engine},
};
use support::LONG;
use testkit::{Answer, RespMock};
use tokio::time::timeout;

async fn claiming(brand: &'static str, version: &'static str) -> RespMock {
    RespMock::start(move |request| {
        if !request.is("HELLO") {
            return Answer::Default;
        }
        let fields = [
            ("server", brand),
            ("version", version),
            ("mode", "standalone"),
            ("role", "master"),
        ];
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let fields = fields.map(|(name, value)| bulk(name) + &bulk(value));
        Answer::Raw(format!("%{}\r\n{}", fields.len(), fields.concat()).into_bytes())
    })
    .await
}

fn backend(mock: &RespMock) -> Backend {
    Backend::redis(Config::from_url(&mock.url()).unwrap()).unwrap()
}

#[tokio::test]
async fn an_older_server_is_an_error_that_names_it_and_what_was_expected() {
    for (brand, version, named) in [
        ("redis", "6.0.16", "the server is Redis 6.0,"),
        ("redis", "5.9.9", "the server is Redis 5.9,"),
        ("valkey", "7.0.0", "the server is Valkey 7.0,"),
    ] {
        let mock = claiming(brand, version).await;
        let backend = backend(&mock);
        let mut states = backend.watch_state();
        let refused = timeout(LONG, states.wait_for(State::Error)).await;
        assert!(refused.unwrap_or(false), "the state is {}", states.get());

        let Engine::Redis(redis) = backend.engine() else {
            panic!("expected redis");
        };
        let error = redis.call(Call::new("PING", Class::Idempotent), LONG).await;
        let error = error.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unavailable);
        let cause = error.source().expect("a cause").to_string();
        assert!(cause.contains(named), "{cause}");
        let expected = "expected Redis 6.2 or newer, or Valkey 7.2";
        assert!(cause.contains(expected), "{cause}");
    }
}

#[tokio::test]
async fn the_oldest_servers_that_are_supported_are_used() {
    for (brand, version) in [("redis", "6.2.0"), ("valkey", "7.2.0"), ("valkey", "9.0.1")] {
        let mock = claiming(brand, version).await;
        backend(&mock).ready(LONG).await.unwrap();
    }
}
