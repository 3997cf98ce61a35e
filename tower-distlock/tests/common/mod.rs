//! Processes that share a backend: what the tests of locks over several of them begin with.

use std::{env, path::Path, time::Duration};

use redis_conn::Backend;
use testkit::{Fleet, Topology};
use tower_distlock::{LockOptions, Locks};

/// Keeps the variables of the children from those of whoever runs the tests.
const PREFIX: &str = "TEST_";
pub(crate) const TTL: Duration = Duration::from_secs(2);
/// Ten times what it should take.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// What a child is told to use.
pub(crate) async fn backend() -> Backend {
    let backend = Backend::from_env_prefixed(PREFIX).await.unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    backend
}

pub(crate) fn locks_on(backend: &Backend) -> Locks {
    Locks::with_timeout(backend, Duration::from_secs(2)).unwrap()
}

pub(crate) async fn locks() -> Locks {
    locks_on(&backend().await)
}

pub(crate) fn options() -> LockOptions {
    LockOptions::new().ttl(TTL).wait(Duration::from_secs(60))
}

/// Where children and parents meet.
pub(crate) fn path() -> String {
    env::var("TEST_PATH").unwrap()
}

/// Children on a backend, told of a path.
pub(crate) fn fleet(child: &str, backend: &[(String, String)], path: &Path) -> Fleet {
    let fleet = Fleet::new(child).env("TEST_PATH", path.display());
    let mut variables = backend.iter();
    variables.by_ref().fold(fleet, |fleet, (name, value)| {
        fleet.env(format!("{PREFIX}{name}"), value)
    })
}

/// On one SQLite file, and on one Redis server.
pub(crate) async fn on_both(test: impl AsyncFn(&[(String, String)])) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("locks.db").display().to_string();
    test(&[("SQLITE_PATH".to_owned(), file)]).await;
    let servers = Topology::Single.start().await;
    test(&servers.env().into_iter().collect::<Vec<_>>()).await;
}
