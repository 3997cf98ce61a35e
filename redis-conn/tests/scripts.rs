//! Scripts that meet a fault: a lost reply, a server that takes no writes any more, a full one. Each with a script that the server
//! knows, which is sent by its digest, and with one that it does not know, which is then sent by its text.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::time::Duration;

use redis_conn::{
    Backend, Config, Error, ErrorKind,
    raw::{Call, Class, Redis, Script},
};
use support::{LONG, cluster_config, redis};
use testkit::{AfterDrop, Fault, FaultProxy, Matching, RedisCluster, RedisServer};
use tokio::time::timeout;

/// Long enough for a command that is answered, and all of it passes where none is.
const BRIEF: Duration = Duration::from_secs(2);

const KEY: &str = "tk:{scripts}:n";

const TEXT: &str =
    "local n = (redis.call('GET', KEYS[1]) or 0) + 1 redis.call('SET', KEYS[1], n) return n";

static COUNT: Script = Script::new(TEXT);

/// Executing it twice would be seen in the number.
async fn count(redis: &Redis, class: Class, deadline: Duration) -> Result<i64, Error> {
    let counted = redis.script(&COUNT, class, &[KEY]).run(deadline);
    // No caller waits for long beyond its deadline.
    let counted = timeout(deadline + BRIEF, counted).await;
    counted.expect("it waits beyond its deadline")?.int()
}

async fn connected(config: Config) -> (Backend, Redis) {
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    (backend, redis)
}

async fn on(url: &str) -> (Backend, Redis) {
    connected(Config::from_url(url).unwrap()).await
}

/// Whether the server has the script when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digest {
    Known,
    Unknown,
}

impl Digest {
    const BOTH: [Self; 2] = [Self::Known, Self::Unknown];

    async fn prepare(self, server: &RedisServer) {
        let mut script = redis::cmd("SCRIPT");
        let script = match self {
            Self::Known => script.arg("LOAD").arg(TEXT),
            Self::Unknown => script.arg("FLUSH"),
        };
        let mut admin = server.connection().await;
        script.exec_async(&mut admin).await.unwrap();
    }

    /// The command that runs the script.
    fn command(self) -> &'static str {
        match self {
            Self::Known => "EVALSHA",
            Self::Unknown => "EVAL",
        }
    }
}

async fn stored(server: &RedisServer) -> Option<i64> {
    let mut get = redis::cmd("GET");
    let mut admin = server.connection().await;
    get.arg(KEY).query_async(&mut admin).await.unwrap()
}

/// How often the script was sent: by its digest, and by its text.
async fn sent(server: &RedisServer) -> [u64; 2] {
    let calls = server.command_calls().await;
    ["evalsha", "eval"].map(|name| calls.get(name).map_or(0, |stat| stat.calls))
}

async fn a_lost_reply_is_ambiguous(proxy: &FaultProxy, server: &RedisServer, redis: &Redis) {
    let mut executed = 0;
    for digest in Digest::BOTH {
        for (after, deadline) in [(AfterDrop::Close, LONG), (AfterDrop::Stall, BRIEF)] {
            let context = format!("{digest:?} {after:?}");
            digest.prepare(server).await;
            server.reset_stats().await;
            let dropped = proxy.dropped_replies();
            proxy.set(Fault::DropReply {
                matching: Matching::Command(digest.command().to_owned()),
                after,
            });
            let lost = count(redis, Class::AtMostOnce, deadline).await;
            let lost = lost.expect_err(&context);
            assert!(lost.is_ambiguous(), "{context}: {lost}");
            assert_eq!(proxy.dropped_replies(), dropped + 1, "{context}");

            proxy.set(Fault::Reset);
            let serves = async {
                let get = || Call::new("GET", Class::Idempotent).key(KEY);
                while redis.call(get(), LONG).await.is_err() {}
            };
            timeout(LONG, serves).await.unwrap();
            executed += 1;
            assert_eq!(stored(server).await, Some(executed), "{context}");
            let by_text = u64::from(digest == Digest::Unknown);
            assert_eq!(sent(server).await, [1, by_text], "{context}");
        }
    }
}

#[tokio::test]
async fn a_lost_reply_of_an_at_most_once_script_is_ambiguous_and_it_ran_once() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = on(&proxy.url()).await;
    a_lost_reply_is_ambiguous(&proxy, &server, &redis).await;
}

#[tokio::test]
async fn a_lost_reply_of_an_at_most_once_script_on_a_cluster_is_ambiguous_and_it_ran_once() {
    let cluster = RedisCluster::builder().replicas_per_primary(0).proxied();
    let cluster = cluster.start().await;
    let config = cluster_config(cluster.addrs()).build().unwrap();
    let (_backend, redis) = connected(config).await;
    let owner = cluster.primary_of(RedisCluster::slot_of(KEY)).await;
    a_lost_reply_is_ambiguous(cluster.proxy(owner), cluster.node(owner), &redis).await;
}

#[tokio::test]
async fn a_script_that_meets_a_demoted_server_is_sent_again_to_its_successor() {
    for class in [Class::Idempotent, Class::AtMostOnce] {
        for digest in Digest::BOTH {
            let (old, new) = tokio::join!(RedisServer::start(), RedisServer::start());
            let proxy = FaultProxy::start(&old).await;
            let (_backend, redis) = on(&proxy.url()).await;
            digest.prepare(&old).await;
            // Of a primary that need not be there.
            let mut replicaof = redis::cmd("REPLICAOF");
            let replicaof = replicaof.arg("127.0.0.1").arg(1);
            let mut admin = old.connection().await;
            replicaof.exec_async(&mut admin).await.unwrap();
            proxy.lead_to(new.addr());
            old.reset_stats().await;

            let context = format!("{class:?} {digest:?}");
            let counted = count(&redis, class, LONG).await;
            assert_eq!(counted.expect(&context), 1, "{context}");
            let [by_digest, _] = sent(&old).await;
            assert!(by_digest >= 1, "{context}: it never met the old one");
            assert_eq!(stored(&old).await, None, "{context}");
            assert_eq!(stored(&new).await, Some(1), "{context}");
        }
    }
}

#[tokio::test]
async fn a_script_that_meets_a_full_server_is_refused_and_not_sent_again() {
    let server = RedisServer::start().await;
    let (_backend, redis) = on(&server.url()).await;
    let memory = async |bytes: u64| {
        let mut set = redis::cmd("CONFIG");
        let set = set.arg("SET").arg("maxmemory").arg(bytes);
        set.exec_async(&mut server.connection().await)
            .await
            .unwrap();
    };
    let mut executed = 0;
    for class in [Class::Idempotent, Class::AtMostOnce] {
        for digest in Digest::BOTH {
            let context = format!("{class:?} {digest:?}");
            digest.prepare(&server).await;
            server.reset_stats().await;
            memory(1).await;
            let refused = count(&redis, class, LONG).await.expect_err(&context);
            assert_eq!(
                *refused.kind(),
                ErrorKind::Server("OOM".into()),
                "{context}: {refused}"
            );
            let by_text = u64::from(digest == Digest::Unknown);
            assert_eq!(sent(&server).await, [1, by_text], "{context}");

            memory(0).await;
            executed += 1;
            let counted = count(&redis, class, LONG).await;
            assert_eq!(counted.expect(&context), executed, "{context}");
        }
    }
}
