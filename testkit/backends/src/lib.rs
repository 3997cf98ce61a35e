//! The three backends, Redis in each of its topologies, with a time that stands until it is set.
//!
//! It is apart from `testkit`, on which `redis-conn` itself is tested.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use redis_conn::{
    Backend, Clock as _, Config, ConfigBuilder, Endpoint, ManualClock,
    raw::sql::{Connection, params},
};
use tempfile::TempDir;
use testkit::{RedisClock, Servers, Topology, topology::Login};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// No calendar in it: only differences matter.
pub const START: u64 = 1_700_000_000_123_457;

/// What is stored outside of the process: keys and values.
pub type Stored = Vec<(String, Vec<u8>)>;

/// A backend whose time is set.
pub trait Fixture: Sync {
    /// The backend.
    fn backend(&self) -> &Backend;

    /// Puts the time that decides, in microseconds; backwards too.
    fn set(&self, micros: u64) -> impl Future<Output = ()> + Send;

    /// What is stored; `None` if that is inside of the process.
    fn stored(&self) -> impl Future<Output = Option<Stored>> + Send;

    /// Puts `value` in the place of all values that are stored.
    fn spoil(&self, value: &[u8]) -> impl Future<Output = ()> + Send;

    /// Whether all that is stored is kept for so many microseconds from now on; true if that is inside of the process.
    fn lasts(&self, _: u64) -> impl Future<Output = bool> + Send {
        async { true }
    }

    /// Keeps a store that would decide before anybody can wait for it from deciding until this is dropped.
    fn hold(&self) -> Option<Connection> {
        None
    }
}

/// The memory backend.
#[derive(Debug)]
pub struct Memory {
    clock: Arc<ManualClock>,
    backend: Backend,
}

impl Memory {
    /// A new one.
    pub async fn start() -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let backend = Backend::builder()
            .clock(Arc::clone(&clock) as _)
            .memory()
            .unwrap();
        Self { clock, backend }
    }
}

impl Fixture for Memory {
    fn backend(&self) -> &Backend {
        &self.backend
    }

    async fn set(&self, micros: u64) {
        self.clock.set(micros);
    }

    async fn stored(&self) -> Option<Stored> {
        None
    }

    async fn spoil(&self, _: &[u8]) {}
}

/// One SQLite file.
#[derive(Debug)]
pub struct Sqlite {
    clock: Arc<ManualClock>,
    backend: Backend,
    dir: TempDir,
}

impl Sqlite {
    /// A new one.
    pub async fn start() -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let dir = tempfile::tempdir().unwrap();
        let builder = Backend::builder().clock(Arc::clone(&clock) as _);
        let backend = builder.sqlite(dir.path().join("test.db")).await.unwrap();
        Self {
            clock,
            backend,
            dir,
        }
    }

    /// The tables of the crate under test, made at their first use: of all tables here only those of the crates have rows that expire.
    fn tables(&self) -> Vec<String> {
        let select = "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c ON c.name = 'expires'";
        let connection = self.connection();
        let mut select = connection.prepare(select).unwrap();
        let tables = select.query_map([], |row| row.get(0)).unwrap();
        tables.map(Result::unwrap).collect()
    }

    fn connection(&self) -> Connection {
        let connection = Connection::open(self.dir.path().join("test.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }
}

impl Fixture for Sqlite {
    fn backend(&self) -> &Backend {
        &self.backend
    }

    async fn set(&self, micros: u64) {
        self.clock.set(micros);
    }

    async fn stored(&self) -> Option<Stored> {
        let connection = self.connection();
        let mut stored = Stored::new();
        for table in self.tables() {
            let select = format!("SELECT key, value FROM {table}");
            let mut select = connection.prepare(&select).unwrap();
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            stored.extend(rows.unwrap().map(Result::unwrap));
        }
        stored.sort();
        Some(stored)
    }

    async fn spoil(&self, value: &[u8]) {
        for table in self.tables() {
            let update = format!("UPDATE {table} SET value = ?1");
            self.connection().execute(&update, params![value]).unwrap();
        }
    }

    async fn lasts(&self, micros: u64) -> bool {
        let until = self.clock.boot_micros() + micros;
        self.tables().iter().all(|table| {
            let select = format!("SELECT min(expires) FROM {table}");
            let least: Option<i64> = self
                .connection()
                .query_row(&select, [], |row| row.get(0))
                .unwrap();
            least.is_none_or(|least| least.cast_unsigned() >= until)
        })
    }

    fn hold(&self) -> Option<Connection> {
        let connection = self.connection();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Some(connection)
    }
}

/// The servers of one topology, started by the first test that wants them and used by one at a time.
#[derive(Debug)]
pub struct Shared {
    topology: Topology,
    servers: OnceCell<Mutex<Servers>>,
}

/// One server.
pub static SINGLE: Shared = Shared::new(Topology::Single);
/// A cluster.
pub static CLUSTER: Shared = Shared::new(Topology::Cluster);
/// Servers that sentinels watch.
pub static SENTINEL: Shared = Shared::new(Topology::Sentinel);

impl Shared {
    const fn new(topology: Topology) -> Self {
        Self {
            topology,
            servers: OnceCell::const_new(),
        }
    }

    /// Empty servers, as long as the guard lives.
    pub async fn take(&'static self) -> MutexGuard<'static, Servers> {
        let start =
            || async { Mutex::new(self.topology.start_allowing("~other:* &other:*").await) };
        let servers = self.servers.get_or_init(start).await.lock().await;
        servers.clear().await;
        servers
    }
}

/// Redis in one of its topologies.
#[derive(Debug)]
pub struct Redis {
    clock: RedisClock,
    backend: Backend,
    servers: MutexGuard<'static, Servers>,
}

impl Redis {
    /// On empty servers.
    pub async fn start(shared: &'static Shared) -> Self {
        let servers = shared.take().await;
        let clock = RedisClock::new();
        clock.set_micros(START);
        let backend = Backend::builder()
            .rewrite_scripts(clock.rewriter())
            .redis(config(&servers))
            .unwrap();
        backend.ready(Duration::from_secs(20)).await.unwrap();
        let kind = match shared.topology {
            Topology::Single => "redis-single",
            Topology::Cluster => "redis-cluster",
            Topology::Sentinel => "redis-sentinel",
        };
        assert_eq!(backend.kind(), kind);
        Self {
            clock,
            backend,
            servers,
        }
    }

    /// How many keys each primary has.
    pub async fn spread(&self) -> Vec<usize> {
        let mut spread = Vec::new();
        for primary in self.servers.primaries().await {
            spread.push(primary.keys().await.len());
        }
        spread
    }
}

impl Fixture for Redis {
    fn backend(&self) -> &Backend {
        &self.backend
    }

    async fn set(&self, micros: u64) {
        self.clock.set_micros(micros);
    }

    async fn stored(&self) -> Option<Stored> {
        let mut stored = Stored::new();
        for primary in self.servers.primaries().await {
            let mut connection = primary.connection().await;
            for key in primary.keys().await {
                let get = redis::cmd("GET").arg(&key).to_owned();
                // What is no string has nothing to be compared.
                let value = get.query_async(&mut connection).await;
                stored.push((key, value.unwrap_or_default()));
            }
        }
        stored.sort();
        Some(stored)
    }

    /// The server's own clock goes on, so but for a minute.
    async fn lasts(&self, micros: u64) -> bool {
        let mut lasts = true;
        for primary in self.servers.primaries().await {
            let mut connection = primary.connection().await;
            for key in primary.keys().await {
                let ttl = redis::cmd("TTL").arg(&key).to_owned();
                let left: i64 = ttl.query_async(&mut connection).await.unwrap();
                lasts &= u64::try_from(left + 60).is_ok_and(|left| left * 1_000_000 >= micros);
            }
        }
        lasts
    }

    async fn spoil(&self, value: &[u8]) {
        for primary in self.servers.primaries().await {
            let mut connection = primary.connection().await;
            for key in primary.keys().await {
                let mut set = redis::cmd("SET");
                let set = set.arg(&key).arg(value).arg("KEEPTTL");
                set.exec_async(&mut connection).await.unwrap();
            }
        }
    }
}

/// How a service reaches the servers.
pub fn config(servers: &Servers) -> Config {
    let endpoint = |addr: SocketAddr| Endpoint::tcp(addr.ip().to_string(), addr.port());
    let all = |addrs: Vec<SocketAddr>| addrs.into_iter().map(endpoint);
    let mut config = match servers {
        Servers::Single(server) => Config::builder(endpoint(server.addr())),
        Servers::Cluster(cluster) => Config::cluster(all(cluster.addrs())),
        Servers::Sentinel(group) => {
            Config::sentinel(all(group.sentinel_addrs()), group.master_name())
        }
    };
    if let Some(Login { user, password }) = servers.login() {
        config = config.password(password);
        config = user.into_iter().fold(config, ConfigBuilder::username);
    }
    if let Some(Login { user, password }) = servers.sentinel_login() {
        config = config.sentinel_password(password);
        config = user
            .into_iter()
            .fold(config, ConfigBuilder::sentinel_username);
    }
    config.build().unwrap()
}

/// Makes tests of these functions in the module `cases`, one for each backend and topology.
#[macro_export]
macro_rules! on_each_backend {
    ($($case:ident)+) => {
        $crate::on_each_backend!(@ memory Memory::start(), $($case)+);
        $crate::on_each_backend!(@ sqlite Sqlite::start(), $($case)+);
        $crate::on_each_backend!(@ redis Redis::start(&SINGLE), $($case)+);
        $crate::on_each_backend!(@ redis_cluster Redis::start(&CLUSTER), $($case)+);
        $crate::on_each_backend!(@ redis_sentinel Redis::start(&SENTINEL), $($case)+);
    };
    (@ $module:ident $start:expr, $($case:ident)+) => {
        mod $module {
            use $crate::*;
            $(
                #[tokio::test]
                async fn $case() {
                    super::cases::$case(&$start.await).await;
                }
            )+
        }
    };
}
