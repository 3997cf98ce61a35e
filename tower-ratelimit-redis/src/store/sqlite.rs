//! The store of the SQLite backend: one transaction for each decision.

use std::time::Duration;

use redis_conn::{
    Backend, Error, ErrorKind, Subject,
    raw::{Expiry, Schema, Sqlite, Tx, sql, sql_error},
};
use tokio::{sync::OnceCell, time::Instant};

use super::Store;
use crate::{
    Decision, Policy,
    rings::{Rings, corrupt},
};

static SCHEMA: Schema = Schema {
    table: "tk_limit",
    create: "CREATE TABLE IF NOT EXISTS tk_limit (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        expires INTEGER NOT NULL
    ) WITHOUT ROWID",
    expiry: Expiry::Boot("expires"),
};

/// Counts in one row for each policy and subject, under the key and with the bytes that Redis would have. The time since boot
/// decides, which is one for all processes of the host.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    backend: Backend,
    sqlite: Sqlite,
    created: OnceCell<()>,
}

impl SqliteStore {
    pub(crate) fn new(backend: &Backend, sqlite: &Sqlite) -> Self {
        Self {
            backend: backend.clone(),
            sqlite: sqlite.clone(),
            created: OnceCell::new(),
        }
    }

    /// Creates the table at the first use, so that making a limiter needs no waiting. Tells what is left of the deadline, which is
    /// one for this and what follows.
    async fn created(&self, deadline: Duration) -> Result<Duration, Error> {
        if self.created.initialized() {
            return Ok(deadline);
        }
        let begun = Instant::now();
        let create = self.created.get_or_try_init(|| self.sqlite.ensure(&SCHEMA));
        match tokio::time::timeout(deadline, create).await {
            Ok(Ok(_)) => Ok(deadline.saturating_sub(begun.elapsed())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "creating the table of the limits",
            )),
        }
    }

    /// Looks at what is stored and decides about a call of this cost by `fits`; it writes nothing.
    async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let deadline = self.created(deadline).await?;
        let key = super::key(&self.backend, policy, subject);
        let policy = policy.clone();
        let read = self.sqlite.read(deadline, move |tx| {
            let now = tx.boot_micros();
            let mut rings = load(tx, &key, now)?;
            rings.advance(&policy, now);
            let allowed = rings.fit(&policy, cost);
            Ok(Decision::new(&policy, &rings, now, cost, allowed))
        });
        read.await
    }
}

impl Store for SqliteStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        if cost == 0 {
            return self.look(policy, subject, 0, deadline).await;
        }
        let deadline = self.created(deadline).await?;
        let key = super::key(&self.backend, policy, subject);
        let policy = policy.clone();
        let write = self.sqlite.write(deadline, move |tx| {
            let now = tx.boot_micros();
            let mut rings = load(tx, &key, now)?;
            let back = rings.advance(&policy, now);
            let allowed = rings.admit(&policy, cost);
            if allowed || back {
                rings.bound(&policy);
                save(tx, &key, &rings, now + rings.lifetime())?;
            }
            Ok(Decision::new(&policy, &rings, now, cost, allowed))
        });
        write.await
    }

    async fn peek(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        self.look(policy, subject, 1, deadline).await
    }

    async fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<(), Error> {
        let deadline = self.created(deadline).await?;
        let key = super::key(&self.backend, policy, subject);
        let write = self.sqlite.write(deadline, move |tx| {
            let mut delete = tx
                .prepare_cached("DELETE FROM tk_limit WHERE key = ?1")
                .map_err(sql_error)?;
            delete.execute([&key]).map_err(sql_error).map(drop)
        });
        write.await
    }
}

/// What is stored and has not expired.
fn load(tx: &Tx<'_>, key: &str, now: u64) -> Result<Rings, Error> {
    let mut select = tx
        .prepare_cached("SELECT value FROM tk_limit WHERE key = ?1 AND expires > ?2")
        .map_err(sql_error)?;
    let mut rows = select.query((key, signed(now))).map_err(sql_error)?;
    let Some(row) = rows.next().map_err(sql_error)? else {
        return Rings::decode(&[]);
    };
    match row.get_ref(0).map_err(sql_error)? {
        // No value of ours is empty.
        sql::types::ValueRef::Blob(bytes) if !bytes.is_empty() => Rings::decode(bytes),
        _ => Err(corrupt()),
    }
}

fn save(tx: &Tx<'_>, key: &str, rings: &Rings, expires: u64) -> Result<(), Error> {
    let mut upsert = tx
        .prepare_cached(
            "INSERT INTO tk_limit (key, value, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
        )
        .map_err(sql_error)?;
    let row = (key, rings.encode(), signed(expires));
    upsert.execute(row).map_err(sql_error).map(drop)
}

/// SQLite's integers are signed; microseconds since boot stay far below.
fn signed(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}
