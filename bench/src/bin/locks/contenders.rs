//! Our locks, and what they are compared with.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bench::{backend, bare};
use redis::{IntoConnectionInfo as _, aio::MultiplexedConnection, io::tcp::TcpSettings};
use rslock::LockManager;
use testkit::RedisServer;
use tower_distlock::{LockGuard, LockOptions, Locks, Released};

use crate::TTL;

/// What everybody unlocks by who has no script of its own.
const UNLOCK: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Somebody's locks.
pub trait Contender: Clone + Send + Sync + 'static {
    type Guard: Send;

    /// Locks, and waits for it as long as it takes.
    fn lock(&self, name: &str) -> impl Future<Output = Self::Guard> + Send;

    fn unlock(&self, guard: Self::Guard) -> impl Future<Output = ()> + Send;
}

/// `SET NX PX` and a script that compares and deletes, on one connection of the client library. It does not wait.
#[derive(Clone)]
pub struct Bare {
    connection: MultiplexedConnection,
    digest: Arc<str>,
    next: Arc<AtomicU64>,
}

impl Bare {
    pub async fn new(server: &RedisServer) -> Self {
        let mut connection = bare(&server.url()).await;
        let mut load = redis::cmd("SCRIPT");
        let load = load.arg("LOAD").arg(UNLOCK);
        let digest: String = load.query_async(&mut connection).await.expect("a script");
        Self {
            connection,
            digest: digest.into(),
            next: Arc::default(),
        }
    }
}

impl Contender for Bare {
    type Guard = (String, String);

    async fn lock(&self, name: &str) -> Self::Guard {
        let mut connection = self.connection.clone();
        let name = format!("tk:bench:{{{name}}}");
        let token = format!("{:032x}", self.next.fetch_add(1, Ordering::Relaxed));
        let set: bool = redis::cmd("SET")
            .arg(&name)
            .arg(&token)
            .arg("NX")
            .arg("PX")
            .arg(TTL.as_millis() as u64)
            .query_async(&mut connection)
            .await
            .expect("SET");
        assert!(set, "nobody else asks for it");
        (name, token)
    }

    async fn unlock(&self, (name, token): Self::Guard) {
        let mut connection = self.connection.clone();
        let deleted: u32 = redis::cmd("EVALSHA")
            .arg(&*self.digest)
            .arg(1)
            .arg(name)
            .arg(token)
            .query_async(&mut connection)
            .await
            .expect("EVALSHA");
        assert_eq!(deleted, 1);
    }
}

/// This crate's.
#[derive(Clone)]
pub struct Ours(pub Locks);

impl Ours {
    pub async fn new(urls: &[String]) -> Self {
        let backend = backend(urls).await;
        Self(Locks::with_timeout(&backend, Duration::from_secs(5)).expect("locks"))
    }
}

impl Contender for Ours {
    type Guard = LockGuard;

    async fn lock(&self, name: &str) -> LockGuard {
        let options = LockOptions::new().ttl(TTL).wait_forever();
        self.0.acquire(name, options).await.expect("a lock")
    }

    async fn unlock(&self, guard: LockGuard) {
        let released = guard.release().await.expect("a release");
        assert_eq!(released, Released::Released);
    }
}

/// rslock with its defaults, asked again each time that it has given up.
#[derive(Clone)]
pub struct Rslock(LockManager);

impl Rslock {
    pub fn new(server: &RedisServer) -> Self {
        let info = server.url().into_connection_info().expect("a URL");
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = redis::Client::open(info).expect("a client");
        Self(LockManager::from_clients(vec![client]))
    }
}

impl Contender for Rslock {
    type Guard = rslock::Lock;

    async fn lock(&self, name: &str) -> rslock::Lock {
        let name = format!("tk:bench:{{{name}}}");
        loop {
            if let Ok(lock) = self.0.lock(name.as_str(), TTL).await {
                return lock;
            }
        }
    }

    async fn unlock(&self, lock: rslock::Lock) {
        self.0.unlock(&lock).await;
    }
}
