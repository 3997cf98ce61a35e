//! Describing a group of sentinels and servers before it starts.

use std::time::Duration;

use super::{RedisSentinel, hurry};
use crate::{
    Certificate, RedisServer,
    server::{Mode, RedisServerBuilder, quote, sentinel_line, start_all},
};

/// The user of production that sentinels log in as, to servers and to each other.
const SENTINEL: &str = "sentinel";

/// What a [`RedisSentinel`] is started with.
#[derive(Debug, Clone)]
#[must_use]
pub struct RedisSentinelBuilder {
    master_name: String,
    replicas: usize,
    sentinels: usize,
    down_after: Duration,
    failover_timeout: Duration,
    proxied_sentinels: bool,
    tls: bool,
    server: RedisServerBuilder,
    sentinel: RedisServerBuilder,
}

impl Default for RedisSentinelBuilder {
    fn default() -> Self {
        let server = RedisServer::builder()
            .keeps_conf()
            // Not to wait for more replicas that want the same copy.
            .arg("repl-diskless-sync-delay", "0");
        Self {
            master_name: "main".to_owned(),
            replicas: 2,
            sentinels: 3,
            down_after: Duration::from_millis(500),
            failover_timeout: Duration::from_secs(2),
            proxied_sentinels: false,
            tls: false,
            server,
            sentinel: RedisServer::builder().keeps_conf(),
        }
    }
}

impl RedisSentinelBuilder {
    /// The name that the sentinels know the master by; `main` unless set.
    pub fn master_name(mut self, name: impl Into<String>) -> Self {
        self.master_name = name.into();
        self
    }

    /// How many replicas the master has; 2 unless set.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// How many sentinels there are, of which more than half must agree; 3 unless set.
    pub fn sentinels(mut self, sentinels: usize) -> Self {
        self.sentinels = sentinels;
        self
    }

    /// How long a server is silent before a sentinel thinks that it is down; 500 ms unless set.
    /// On Redis 6.2 it is 2 s whatever is set.
    pub fn down_after(mut self, down_after: Duration) -> Self {
        self.down_after = down_after;
        self
    }

    /// How long a failover may take, and half of how long the next attempt waits; 2 s unless set.
    pub fn failover_timeout(mut self, timeout: Duration) -> Self {
        self.failover_timeout = timeout;
        self
    }

    /// Lets the servers and the sentinels talk to each other and to their clients with TLS, and show
    /// `certificate`, which is one for [peers](crate::Authority::peer). The fixture itself needs none.
    ///
    /// # Panics
    ///
    /// At the start if the sentinels are [proxied](Self::proxied_sentinels) as well.
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = true;
        self.server = self.server.group_tls(certificate);
        self.sentinel = self.sentinel.group_tls(certificate);
        self
    }

    /// Adds a line of `redis.conf` to every server, not to the sentinels. A later one wins.
    pub fn arg(mut self, directive: &str, value: &str) -> Self {
        self.server = self.server.arg(directive, value);
        self
    }

    /// Keeps an append-only file on every server.
    pub fn append_only(mut self, yes: bool) -> Self {
        self.server = self.server.append_only(yes);
        self
    }

    /// Requires `password` of the default user on every server, not on the sentinels. These cannot
    /// read a blank or a quote in it again that they have written themselves.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.server = self.server.password(password);
        self
    }

    /// Has no users but the default one on the servers and on the sentinels, see
    /// [`RedisServerBuilder::open`].
    pub fn open(mut self) -> Self {
        self.server = self.server.open();
        self.sentinel = self.sentinel.open();
        self
    }

    /// Lets the user of services do more on every server, not on the sentinels, see
    /// [`RedisServerBuilder::allow`].
    ///
    /// # Panics
    ///
    /// If the servers were given other users than those of production.
    pub fn allow(mut self, words: &str) -> Self {
        self.server = self.server.allow(words);
        self
    }

    /// Takes the users of every server from `text`, see [`RedisServerBuilder::users`].
    pub fn users(mut self, text: impl Into<String>) -> Self {
        self.server = self.server.users(text);
        self
    }

    /// Requires `password` of the default user on the sentinels.
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.sentinel = self.sentinel.password(password);
        self
    }

    /// Takes the users of every sentinel from `text`, lines of a `sentinel.acl`, see
    /// [`RedisServerBuilder::users`].
    pub fn sentinel_users(mut self, text: impl Into<String>) -> Self {
        self.sentinel = self.sentinel.users(text);
        self
    }

    /// Puts each sentinel behind a [`FaultProxy`](crate::FaultProxy) of its own and lets it announce
    /// the proxy's address.
    ///
    /// The sentinels vote through each other's proxies as well; [`Fault::drop_pushes`] leaves that
    /// alone. They watch the servers directly. The fixture itself talks to all of them directly.
    ///
    /// [`Fault::drop_pushes`]: crate::Fault::drop_pushes
    pub fn proxied_sentinels(mut self) -> Self {
        self.proxied_sentinels = true;
        self
    }

    /// Starts all of them and waits until every sentinel knows all the others.
    ///
    /// # Panics
    ///
    /// If there is no server binary, or if that takes too long.
    pub async fn start(self) -> RedisSentinel {
        assert!(
            !(self.tls && self.proxied_sentinels),
            "the proxies lead to the ports without TLS"
        );
        let server = self.server.clone().replicating();
        let master = server.clone().start().await;
        let replica = server.arg("replicaof", &format!("127.0.0.1 {}", master.group_port()));
        let (replicas, _) = start_all(vec![replica; self.replicas], false).await;
        let mut servers = vec![master];
        servers.extend(replicas);

        let sentinel = self.sentinel(servers[0].group_port());
        let (sentinels, proxies) =
            start_all(vec![sentinel; self.sentinels], self.proxied_sentinels).await;
        for sentinel in &sentinels {
            hurry(sentinel, &self.master_name).await;
        }
        let group = RedisSentinel {
            proxies,
            master_name: self.master_name,
            failover_timeout: self.failover_timeout,
            sentinels,
            servers,
        };
        group.wait_ok().await;
        group
    }

    fn sentinel(&self, master: u16) -> RedisServerBuilder {
        let name = &self.master_name;
        let monitor = format!("127.0.0.1 {master} {}", self.sentinels / 2 + 1);
        let millis = |time: Duration| time.as_millis().to_string();
        let mut lines = vec![
            sentinel_line("monitor", name, &monitor),
            sentinel_line("down-after-milliseconds", name, &millis(self.down_after)),
            sentinel_line("failover-timeout", name, &millis(self.failover_timeout)),
        ];
        if let Some(login) = self.server.access().peer(SENTINEL) {
            let user = login.user;
            lines.extend(user.map(|user| format!("sentinel auth-user {name} {user}")));
            let password = quote(&login.password);
            lines.push(format!("sentinel auth-pass {name} {password}"));
        }
        if let Some(login) = self.sentinel.access().peer(SENTINEL) {
            let user = login.user;
            lines.extend(user.map(|user| format!("sentinel sentinel-user {user}")));
            let password = quote(&login.password);
            lines.push(format!("sentinel sentinel-pass {password}"));
        }
        self.sentinel.clone().mode(Mode::Sentinel(lines))
    }
}
