//! Redis behind sentinels of one's own.

mod agree;
mod builder;

use std::{net::SocketAddr, time::Duration};

use redis::{RedisResult, aio::MultiplexedConnection};

pub use self::builder::RedisSentinelBuilder;
use crate::{FaultProxy, RedisServer};

/// A master, its replicas and the sentinels that watch them: one, two and three unless asked
/// otherwise. Server 0 is the master at first.
///
/// They are configured as `deploy/redis.conf` and `deploy/sentinel.conf` say, with the users of
/// `deploy/users.acl` and `deploy/sentinel.acl`, but find out sooner that a server is down. Servers and sentinels are called by their numbers, which stay the same
/// whatever their part becomes. Dropping this kills them all.
#[derive(Debug)]
pub struct RedisSentinel {
    proxies: Vec<FaultProxy>,
    master_name: String,
    failover_timeout: Duration,
    sentinels: Vec<RedisServer>,
    servers: Vec<RedisServer>,
}

impl RedisSentinel {
    /// Starts a group with the defaults and waits until it is complete.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts describing a group that differs from the defaults.
    pub fn builder() -> RedisSentinelBuilder {
        RedisSentinelBuilder::default()
    }

    /// The name that the sentinels know the master by.
    pub fn master_name(&self) -> &str {
        &self.master_name
    }

    /// The master and the replicas, dead ones included.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// The server `index`.
    pub fn server(&self, index: usize) -> &RedisServer {
        &self.servers[index]
    }

    /// The sentinels, dead ones included. They know no `CONFIG`.
    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The addresses that clients reach the sentinels at, if the group has TLS with that.
    pub fn sentinel_addrs(&self) -> Vec<SocketAddr> {
        if self.proxies.is_empty() {
            self.sentinels.iter().map(RedisServer::group_addr).collect()
        } else {
            self.proxies.iter().map(FaultProxy::addr).collect()
        }
    }

    /// The proxy in front of sentinel `index`.
    ///
    /// # Panics
    ///
    /// Unless the sentinels are [proxied](RedisSentinelBuilder::proxied_sentinels).
    pub fn sentinel_proxy(&self, index: usize) -> &FaultProxy {
        self.proxies
            .get(index)
            .expect("only sentinels that were built with proxied_sentinels() have proxies")
    }

    /// A new connection to server `index` for commands of the test itself.
    pub async fn connection(&self, index: usize) -> MultiplexedConnection {
        self.servers[index].connection().await
    }

    /// Kills server `index`, see [`RedisServer::kill`].
    pub fn kill(&self, index: usize) {
        self.servers[index].kill();
    }

    /// Freezes server `index`, see [`RedisServer::freeze`].
    pub fn freeze(&self, index: usize) {
        self.servers[index].freeze();
    }

    /// Lets server `index` go on, see [`RedisServer::thaw`].
    pub fn thaw(&self, index: usize) {
        self.servers[index].thaw();
    }

    /// Restarts server `index` with the configuration that the sentinels last gave it.
    pub async fn restart(&self, index: usize) {
        self.servers[index].restart().await;
    }

    /// Kills sentinel `index`.
    pub fn kill_sentinel(&self, index: usize) {
        self.sentinels[index].kill();
    }

    /// Restarts sentinel `index` with what it knew.
    pub async fn restart_sentinel(&self, index: usize) {
        self.sentinels[index].restart().await;
        hurry(&self.sentinels[index], &self.master_name).await;
    }
}

/// Lets a sentinel tell and ask others more often than every 2 s and 10 s: finding each other and
/// turning an old master into a replica would take most of a test's time.
///
/// It must ping more often too: it asks a server that it has just come to know only after one period,
/// and takes a whole `down-after` without an answer for a death.
async fn hurry(sentinel: &RedisServer, master_name: &str) {
    let periods = [
        ["publish-period", "200"],
        ["info-period", "500"],
        ["ping-period", "100"],
    ];
    let words = [["SENTINEL", "DEBUG"].as_slice(), periods.as_flattened()].concat();
    let hurried: RedisResult<()> = sentinel.command(&words).await;
    if hurried.is_err() {
        // Redis 6.2 cannot: it needs longer to tell a death.
        let set = [
            "SENTINEL",
            "SET",
            master_name,
            "down-after-milliseconds",
            "2000",
        ];
        let slowed: RedisResult<()> = sentinel.command(&set).await;
        slowed.expect("a sentinel that runs takes SENTINEL SET");
    }
}
