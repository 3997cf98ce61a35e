//! A fixed number of sequential `GET`s, for an instruction counter: `instructions PEER COUNT`, with the servers in the environment
//! as `cargo xtask redis up` prints it.
//!
//! The difference between two counts is the price of the operations alone, without start and connection.

use std::{env, time::Duration};

use bench::{KEYS, backend, bare_with_value, cluster_client};
use redis::aio::ConnectionLike;
use redis_conn::raw::{Call, Class, Engine};

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let [_, peer, count] = arguments.as_slice() else {
        panic!("usage: instructions bare|cluster-client|redis-conn COUNT");
    };
    let count: u32 = count.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let servers = servers();
        let bare = bare_with_value(&servers, KEYS[0]).await;
        match peer.as_str() {
            "bare" => client(bare, count).await,
            "cluster-client" => client(cluster_client(&servers).await, count).await,
            "redis-conn" => ours(&servers, count).await,
            other => panic!("unknown peer {other}"),
        }
    });
}

/// The URLs of the server, or of the nodes of the cluster.
fn servers() -> Vec<String> {
    if let Ok(url) = env::var("REDIS_URL") {
        return vec![url];
    }
    let variable = |name| env::var(name).unwrap_or_else(|_| panic!("no {name}, and no REDIS_URL"));
    let user = variable("REDIS_USERNAME");
    let password = variable("REDIS_PASSWORD");
    let nodes = variable("REDIS_NODES");
    let url = |node| format!("redis://{user}:{password}@{node}");
    nodes.split(',').map(url).collect()
}

async fn client(mut connection: impl ConnectionLike, count: u32) {
    for _ in 0..count {
        let value: Option<Vec<u8>> = redis::cmd("GET")
            .arg(KEYS[0])
            .query_async(&mut connection)
            .await
            .expect("GET");
        assert!(value.is_some_and(|value| value.len() == 32));
    }
}

async fn ours(servers: &[String], count: u32) {
    let backend = backend(servers).await;
    let Engine::Redis(redis) = backend.engine() else {
        panic!("not redis")
    };
    for _ in 0..count {
        let call = Call::new("GET", Class::Idempotent).key(KEYS[0]);
        let value = redis
            .call(call, Duration::from_millis(500))
            .await
            .and_then(|reply| reply.bytes())
            .expect("GET");
        assert!(value.is_some_and(|value| value.len() == 32));
    }
}
