//! One SQLite file, shared by the processes of a host.
#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

mod bus;
mod jobs;
mod keeper;
mod open;

use std::{path::PathBuf, time::Duration};

use redis_conn::{
    Backend,
    raw::{Engine, Expiry, Schema, Sqlite, Tx, sql, sql_error},
};
use tempfile::TempDir;

/// Long enough for any healthy machine.
const LONG: Duration = Duration::from_secs(20);

static BY_BOOT: Schema = Schema {
    table: "test_boot",
    create: "CREATE TABLE IF NOT EXISTS test_boot (key TEXT PRIMARY KEY, value INTEGER NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID",
    expiry: Expiry::Boot("expires"),
};
static BY_WALL: Schema = Schema {
    table: "test_wall",
    create: "CREATE TABLE IF NOT EXISTS test_wall (key TEXT PRIMARY KEY, value INTEGER NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID",
    expiry: Expiry::Wall("expires"),
};

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shared.db");
    (directory, path)
}

fn engine(backend: &Backend) -> &Sqlite {
    let Engine::Sqlite(sqlite) = backend.engine() else {
        panic!("expected SQLite, found {backend:?}");
    };
    sqlite
}

/// Opens the file with both tables.
async fn open(path: &PathBuf) -> Backend {
    with_tables(Backend::sqlite(path).await.unwrap()).await
}

async fn with_tables(backend: Backend) -> Backend {
    engine(&backend).ensure(&BY_BOOT).await.unwrap();
    engine(&backend).ensure(&BY_WALL).await.unwrap();
    backend
}

/// Adds one to a row that never expires.
fn increment(tx: &Tx<'_>, key: &str) -> Result<i64, redis_conn::Error> {
    let sql = "INSERT INTO test_boot VALUES (?1, 1, ?2) ON CONFLICT (key) DO UPDATE SET value = value + 1 RETURNING value";
    tx.prepare_cached(sql)
        .and_then(|mut upsert| upsert.query_row((key, i64::MAX), |row| row.get(0)))
        .map_err(sql_error)
}

async fn number(backend: &Backend, query: &'static str) -> i64 {
    let query = move |tx: &Tx<'_>| tx.query_row(query, [], |row| row.get(0)).map_err(sql_error);
    engine(backend).read(LONG, query).await.unwrap()
}

/// A connection past the crate.
fn bypass(path: &PathBuf) -> sql::Connection {
    sql::Connection::open(path).unwrap()
}
