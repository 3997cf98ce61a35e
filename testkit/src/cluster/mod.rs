//! A Redis cluster of one's own.

mod agree;
mod builder;
mod migrate;
mod slot;
mod view;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use redis::aio::MultiplexedConnection;

pub(crate) use self::slot::SLOTS;
pub use self::{builder::RedisClusterBuilder, migrate::Migration};
use crate::{CommandStat, FaultProxy, RedisServer};

/// Several servers of one's own that share the slots of a cluster: three primaries, which are the
/// first nodes, and then as many replicas, unless asked otherwise.
///
/// They are configured as `deploy/cluster.conf` and `deploy/users.acl` say, but find out sooner that a
/// node is down. Nodes are called by their number, which stays the same whatever their part in the cluster becomes.
/// Dropping this kills them all.
#[derive(Debug)]
pub struct RedisCluster {
    proxies: Vec<FaultProxy>,
    ids: Vec<String>,
    node_timeout: Duration,
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts a cluster with the defaults and waits until it serves.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts describing a cluster that differs from the defaults.
    pub fn builder() -> RedisClusterBuilder {
        RedisClusterBuilder::default()
    }

    /// The slot of `key`.
    pub fn slot_of(key: impl AsRef<[u8]>) -> u16 {
        slot::slot_of(key.as_ref())
    }

    /// All nodes, dead ones included.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The node `index`.
    pub fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index]
    }

    /// The id of node `index` in the cluster.
    pub fn node_id(&self, index: usize) -> &str {
        &self.ids[index]
    }

    /// The address that clients reach node `index` at, if the cluster has TLS with that.
    pub fn addr(&self, index: usize) -> SocketAddr {
        let proxy = self.proxies.get(index).map(FaultProxy::addr);
        proxy.unwrap_or_else(|| self.nodes[index].group_addr())
    }

    /// The addresses that clients reach the nodes at.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        (0..self.nodes.len())
            .map(|index| self.addr(index))
            .collect()
    }

    /// The URLs of all nodes, for clients without TLS, with a user or a password in them as [`RedisServer::url`] has.
    pub fn seed_urls(&self) -> Vec<String> {
        let url = |(index, node): (usize, &RedisServer)| node.url_at(self.addr(index));
        self.nodes.iter().enumerate().map(url).collect()
    }

    /// The proxy in front of node `index`.
    ///
    /// # Panics
    ///
    /// Unless the cluster is [`proxied`](RedisClusterBuilder::proxied).
    pub fn proxy(&self, index: usize) -> &FaultProxy {
        self.proxies
            .get(index)
            .expect("only a cluster that was built with proxied() has proxies")
    }

    /// A new connection to node `index` for commands of the test itself, past its proxy. It does
    /// not follow redirections.
    pub async fn connection(&self, index: usize) -> MultiplexedConnection {
        self.nodes[index].connection().await
    }

    /// Kills node `index`, see [`RedisServer::kill`].
    pub fn kill(&self, index: usize) {
        self.nodes[index].kill();
    }

    /// Freezes node `index`, see [`RedisServer::freeze`].
    pub fn freeze(&self, index: usize) {
        self.nodes[index].freeze();
    }

    /// Lets node `index` go on, see [`RedisServer::thaw`].
    pub fn thaw(&self, index: usize) {
        self.nodes[index].thaw();
    }

    /// Restarts node `index` where it was. It knows the cluster still, and has no data but what it
    /// copies from a primary or [persisted](RedisClusterBuilder::append_only).
    pub async fn restart(&self, index: usize) {
        self.nodes[index].restart().await;
    }

    /// How often each command ran on the live nodes together, see [`RedisServer::command_calls`].
    pub async fn command_calls(&self) -> BTreeMap<String, CommandStat> {
        let mut sum = BTreeMap::<String, CommandStat>::new();
        for (_, node) in self.live() {
            for (name, stat) in node.command_calls().await {
                sum.entry(name).or_default().add(stat);
            }
        }
        sum
    }

    /// Sets the command statistics of the live nodes to zero.
    pub async fn reset_stats(&self) {
        for (_, node) in self.live() {
            node.reset_stats().await;
        }
    }

    fn live(&self) -> impl Iterator<Item = (usize, &RedisServer)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter(|(_, node)| node.is_live())
    }
}
