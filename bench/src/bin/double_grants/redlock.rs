//! Of three servers one starts empty.

use std::time::Duration;

use redis_conn::{Backend, Config};
use testkit::RedisServer;
use tower_distlock::{LockOptions, Locks, Redlock};

use crate::{Tally, connected};

const NAME: &str = "job";
/// Servers vote when they have been up for so long.
const TTL: Duration = Duration::from_secs(5);

/// Two servers vote for the first, one of which forgets it; the third is free by then.
pub async fn round(gated: bool) -> Tally {
    let (mut servers, mut tally) = (Vec::new(), Tally::default());
    for _ in 0..3 {
        servers.push(RedisServer::start().await);
    }
    let first = Process::start(&servers, gated).await;
    let second = Process::start(&servers, gated).await;
    let third = Locks::new(&second.backends[2]).expect("locks");
    let third = third.acquire(NAME, LockOptions::new()).await;
    let third = third.expect("a lock");
    // Those that were started just now have no vote yet.
    let waits = || LockOptions::new().ttl(TTL).wait(2 * TTL);
    let guard = match first.redlock.acquire(NAME, waits()).await {
        Ok(guard) => guard,
        Err(error) => {
            tally.refuse(&error);
            return tally;
        }
    };
    assert_eq!(guard.votes(), 2, "the third is somebody else's");
    tally.held += 1;
    third.release().await.expect("a release");
    servers[1].restart().await;
    // For longer than the server has no vote.
    let asked = second.redlock.acquire(NAME, waits()).await;
    tally.second(&asked, !guard.valid_for().is_zero());
    tally
}

/// One that locks, with connections of its own.
struct Process {
    redlock: Redlock,
    backends: Vec<Backend>,
}

impl Process {
    async fn start(servers: &[RedisServer], gated: bool) -> Self {
        let mut backends = Vec::new();
        for server in servers {
            let config = Config::from_url(&server.url()).expect("a URL");
            backends.push(connected(config).await);
        }
        let builder = Redlock::builder(&backends);
        let builder = if gated {
            builder
        } else {
            builder.without_gate()
        };
        Self {
            redlock: builder.build().expect("servers"),
            backends,
        }
    }
}
