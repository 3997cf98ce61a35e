//! A fixed number of sequential `GET`s, for an instruction counter: `instructions bare|redis-conn URL COUNT`.
//!
//! The difference between two counts is the price of the operations alone, without start and connection.

use std::time::Duration;

use redis_conn::raw::{Call, Class, Engine};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, which, url, count] = arguments.as_slice() else {
        panic!("usage: instructions bare|redis-conn URL COUNT");
    };
    let count: u32 = count.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(store(url));
    match which.as_str() {
        "bare" => runtime.block_on(bare(url, count)),
        "redis-conn" => runtime.block_on(ours(url, count)),
        other => panic!("unknown peer {other}"),
    }
}

/// The value that is read; an absent one would cost less.
async fn store(url: &str) {
    let mut connection = bench::bare(url).await;
    let mut set = redis::cmd("SET");
    let _: () = set
        .arg("bench:value")
        .arg("x".repeat(32))
        .query_async(&mut connection)
        .await
        .expect("SET");
}

async fn bare(url: &str, count: u32) {
    let connection = bench::bare(url).await;
    for _ in 0..count {
        let mut connection = connection.clone();
        let value: Option<Vec<u8>> = redis::cmd("GET")
            .arg("bench:value")
            .query_async(&mut connection)
            .await
            .expect("GET");
        assert!(value.is_some_and(|value| value.len() == 32));
    }
}

async fn ours(url: &str, count: u32) {
    let backend = bench::backend(url).await;
    let Engine::Redis(redis) = backend.engine() else {
        panic!("not redis")
    };
    for _ in 0..count {
        let call = Call::new("GET", Class::Idempotent).arg("bench:value");
        let value = redis
            .call(call, Duration::from_millis(500))
            .await
            .and_then(|reply| reply.bytes())
            .expect("GET");
        assert!(value.is_some_and(|value| value.len() == 32));
    }
}
