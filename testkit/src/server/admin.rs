//! Looking into a running server.

use std::{collections::BTreeMap, str::FromStr};

use redis::{
    AsyncConnectionConfig, Client, FromRedisValue, RedisResult, aio::MultiplexedConnection,
};

use super::{Access, Login, RedisServer, lock};
use crate::bound::HANG;

/// One line of `INFO commandstats`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct CommandStat {
    /// How often the command ran, from clients and from scripts.
    pub calls: u64,
    /// Server time spent in it, in microseconds.
    pub usec: u64,
    /// Mean server time of one call, in microseconds.
    pub usec_per_call: f64,
}

/// Every method opens a connection of its own, so each works after a restart; its commands
/// (`INFO`, `CONFIG`, `AUTH`, ...) appear in the command statistics like any other.
impl RedisServer {
    /// A new connection for commands of the test itself, which may be any.
    pub async fn connection(&self) -> MultiplexedConnection {
        self.try_connection()
            .await
            .expect("a server that runs accepts connections")
    }

    /// A [`connection`](Self::connection) that waits for answers however long they take.
    pub async fn patient_connection(&self) -> MultiplexedConnection {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        self.connection_with(&config)
            .await
            .expect("a server that runs accepts connections")
    }

    /// How often each command ran since the start or [`reset_stats`](Self::reset_stats), by
    /// lower-case name; a subcommand is named like `config|set`.
    pub async fn command_calls(&self) -> BTreeMap<String, CommandStat> {
        let info = self.info("commandstats").await;
        let stat = |(key, value): (String, String)| {
            Some((
                key.strip_prefix("cmdstat_")?.to_owned(),
                CommandStat::parse(&value),
            ))
        };
        info.into_iter().filter_map(stat).collect()
    }

    /// Sets the command statistics to zero.
    pub async fn reset_stats(&self) {
        self.run_config(&["RESETSTAT"]).await;
    }

    /// The fields of one section of `INFO`.
    pub async fn info(&self, section: &str) -> BTreeMap<String, String> {
        self.try_info(section)
            .await
            .expect("a server that runs answers INFO")
    }

    /// Requires `password` of the default user from now on, also after a restart.
    ///
    /// Connections that are already authenticated stay so.
    ///
    /// # Panics
    ///
    /// If there are other users.
    pub async fn set_password(&self, password: &str) {
        let open = matches!(*lock(&self.access), Access::Open { .. });
        assert!(open, "the default user of a server with users stays off");
        self.run_config(&["SET", "requirepass", password]).await;
        *lock(&self.access) = Access::Open {
            password: Some(password.to_owned()),
        };
        if self.keeps_conf {
            self.run_config(&["REWRITE"]).await;
        }
    }

    /// All keys, sorted.
    pub async fn keys(&self) -> Vec<String> {
        let mut connection = self.connection().await;
        let keys = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut connection)
            .await;
        let mut keys: Vec<String> = keys.expect("a server that runs answers KEYS");
        keys.sort();
        keys
    }

    pub(crate) async fn try_info(&self, section: &str) -> RedisResult<BTreeMap<String, String>> {
        let mut connection = self.try_connection().await?;
        let text: String = redis::cmd("INFO")
            .arg(section)
            .query_async(&mut connection)
            .await?;
        let field = |line: &str| {
            let (key, value) = line.split_once(':')?;
            Some((key.to_owned(), value.to_owned()))
        };
        Ok(text.lines().filter_map(field).collect())
    }

    pub(crate) async fn try_connection(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(HANG))
            .set_response_timeout(Some(HANG));
        self.connection_with(&config).await
    }

    async fn connection_with(
        &self,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let userinfo = self.admin().map(|login| login.userinfo());
        let url = format!("redis://{}{}", userinfo.unwrap_or_default(), self.addr());
        Client::open(url)?
            .get_multiplexed_async_connection_with_config(config)
            .await
    }

    /// What the fixture logs in with.
    pub(crate) fn admin(&self) -> Option<Login> {
        lock(&self.access).admin()
    }

    /// Runs one command on a connection of its own.
    pub(crate) async fn command<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let mut connection = self.try_connection().await?;
        redis::cmd(words[0])
            .arg(&words[1..])
            .query_async(&mut connection)
            .await
    }

    pub(crate) async fn run_config(&self, args: &[&str]) {
        let words = [&["CONFIG"], args].concat();
        let done: RedisResult<()> = self.command(&words).await;
        done.expect("a server that runs takes CONFIG");
    }
}

impl CommandStat {
    /// Counts what `other` counts as well.
    pub(crate) fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.usec += other.usec;
        self.usec_per_call = self.usec as f64 / self.calls.max(1) as f64;
    }

    /// Reads `calls=1,usec=2,usec_per_call=2.00,...`.
    fn parse(text: &str) -> Self {
        Self {
            calls: field(text, "calls"),
            usec: field(text, "usec"),
            usec_per_call: field(text, "usec_per_call"),
        }
    }
}

fn field<T: FromStr>(text: &str, name: &str) -> T {
    text.split(',')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in the command statistics {text:?}"))
}
