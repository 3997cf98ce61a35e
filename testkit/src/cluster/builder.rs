//! Describing a cluster before it starts, and putting it together.

use std::time::Duration;

use redis::RedisResult;

use super::{RedisCluster, slot::SLOTS};
use crate::{
    Certificate, RedisServer,
    server::{BUS_OFFSET, Mode, RedisServerBuilder, start_all},
};

/// What a [`RedisCluster`] is started with.
#[derive(Debug, Clone)]
#[must_use]
pub struct RedisClusterBuilder {
    primaries: usize,
    replicas_per_primary: usize,
    node_timeout: Duration,
    proxied: bool,
    tls: bool,
    node: RedisServerBuilder,
}

impl Default for RedisClusterBuilder {
    fn default() -> Self {
        let node = RedisServer::builder()
            .mode(Mode::Cluster)
            .keeps_conf()
            // Nobody else will come for the same copy.
            .arg("repl-diskless-sync-delay", "0");
        Self {
            primaries: 3,
            replicas_per_primary: 1,
            node_timeout: Duration::from_secs(1),
            proxied: false,
            tls: false,
            node,
        }
    }
}

impl RedisClusterBuilder {
    /// How many primaries share the slots; 3 unless set. With fewer no replica is ever elected.
    pub fn primaries(mut self, primaries: usize) -> Self {
        self.primaries = primaries;
        self
    }

    /// How many replicas each primary has; 1 unless set.
    pub fn replicas_per_primary(mut self, replicas: usize) -> Self {
        self.replicas_per_primary = replicas;
        self
    }

    /// How long a node is silent before the others think that it is down; 1 s unless set.
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.node_timeout = timeout;
        self
    }

    /// Puts each node behind a [`FaultProxy`](crate::FaultProxy) of its own and lets it announce the proxy's address, so
    /// that clients reach it through the proxy only.
    ///
    /// The bus of the nodes does not pass there: they see each other whatever the proxies do. But
    /// each replica copies from the announced address of its primary, as one of the proxy's
    /// connections. The fixture itself talks to the nodes directly.
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Lets the nodes talk to each other and to their clients with TLS, and show `certificate`, which is one for
    /// [peers](crate::Authority::peer). The fixture itself needs none.
    ///
    /// # Panics
    ///
    /// At the start if the cluster is [`proxied`](Self::proxied) as well.
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = true;
        self.node = self.node.group_tls(certificate).arg("tls-cluster", "yes");
        self
    }

    /// Adds a line of `redis.conf` to every node. A later one wins.
    pub fn arg(mut self, directive: &str, value: &str) -> Self {
        self.node = self.node.arg(directive, value);
        self
    }

    /// Keeps an append-only file on every node.
    pub fn append_only(mut self, yes: bool) -> Self {
        self.node = self.node.append_only(yes);
        self
    }

    /// Requires `password` of the default user on every node.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.node = self.node.password(password);
        self
    }

    /// Has no users but the default one on every node, see [`RedisServerBuilder::open`].
    pub fn open(mut self) -> Self {
        self.node = self.node.open();
        self
    }

    /// Lets the user of services do more on every node, see [`RedisServerBuilder::allow`].
    ///
    /// # Panics
    ///
    /// If the nodes were given other users than those of production.
    pub fn allow(mut self, words: &str) -> Self {
        self.node = self.node.allow(words);
        self
    }

    /// Takes the users of every node from `text`, see [`RedisServerBuilder::users`].
    pub fn users(mut self, text: impl Into<String>) -> Self {
        self.node = self.node.users(text);
        self
    }

    /// Starts the nodes, joins them, and waits as [`RedisCluster::wait_ok`] does.
    ///
    /// # Panics
    ///
    /// If there is no server binary, or if the nodes do not agree in time.
    pub async fn start(self) -> RedisCluster {
        assert!(
            !(self.tls && self.proxied),
            "the nodes announce the port of a proxy to clients without TLS only"
        );
        let timeout = self.node_timeout.as_millis().to_string();
        let node = self.node.clone().replicating();
        let node = node.arg("cluster-node-timeout", &timeout);
        let count = self.primaries * (1 + self.replicas_per_primary);
        let (nodes, proxies) = start_all(vec![node; count], self.proxied).await;
        let mut ids = Vec::new();
        for node in &nodes {
            ids.push(answered(node.command::<String>(&["CLUSTER", "MYID"]).await));
        }
        let cluster = RedisCluster {
            proxies,
            ids,
            node_timeout: self.node_timeout,
            nodes,
        };
        form(&cluster, self.primaries).await;
        cluster
    }
}

fn bus_port(node: &RedisServer) -> u16 {
    node.group_port() + BUS_OFFSET
}

async fn form(cluster: &RedisCluster, primaries: usize) {
    share_slots(&cluster.nodes[..primaries]).await;
    introduce(cluster).await;
    cluster.wait_until_acquainted().await;
    for (index, replica) in cluster.nodes.iter().enumerate().skip(primaries) {
        let primary = &cluster.ids[index % primaries];
        answered::<()>(replica.command(&["CLUSTER", "REPLICATE", primary]).await);
    }
    cluster.wait_ok().await;
    for index in primaries..cluster.nodes.len() {
        cluster.wait_for_replica(index, index % primaries).await;
    }
}

/// Gives each primary an equal share, and an epoch of its own, or they would have to settle whose
/// word counts first.
async fn share_slots(primaries: &[RedisServer]) {
    for (index, primary) in primaries.iter().enumerate() {
        let epoch = (index + 1).to_string();
        let set = ["CLUSTER", "SET-CONFIG-EPOCH", &epoch];
        answered::<()>(primary.command(&set).await);
        let bound = |index: usize| index * usize::from(SLOTS) / primaries.len();
        let slots: Vec<String> = (bound(index)..bound(index + 1))
            .map(|slot| slot.to_string())
            .collect();
        let mut words = vec!["CLUSTER", "ADDSLOTS"];
        words.extend(slots.iter().map(String::as_str));
        answered::<()>(primary.command(&words).await);
    }
}

/// Lets every node meet every other one: quicker than waiting for gossip.
async fn introduce(cluster: &RedisCluster) {
    for (index, node) in cluster.nodes.iter().enumerate() {
        for other in index + 1..cluster.nodes.len() {
            let port = cluster.addr(other).port().to_string();
            let bus = bus_port(&cluster.nodes[other]).to_string();
            let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus];
            answered::<()>(node.command(&meet).await);
        }
    }
}

fn answered<T>(answer: RedisResult<T>) -> T {
    answer.expect("a new node takes commands")
}
