//! The store of the SQLite backend: one transaction for each decision.

use std::time::Duration;

use redis_conn::{
    Backend, Error, ErrorKind, Subject,
    raw::{Expiry, Schema, Sqlite, Tx, sql, sql_error},
};
use tokio::{sync::OnceCell, time::Instant};

use super::{Asked, Permits, Store};
use crate::{
    Decision, Policy,
    counter::{Charged, Now},
    counters::{Counters, corrupt},
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

    /// Changes what is stored of a subject in one transaction; it is written if `change` says so.
    async fn change<T: Send + 'static>(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
        change: impl FnOnce(&mut Counters, &Policy, Now) -> (T, bool) + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = self.created(deadline).await?;
        let key = super::key(&self.backend, policy, subject);
        let policy = policy.clone();
        let write = self.sqlite.write(deadline, move |tx| {
            let now = moment(tx);
            let mut counters = load(tx, &key, &policy, now)?;
            let (outcome, changed) = change(&mut counters, &policy, now);
            if changed {
                save(tx, &key, &counters, counters.expires(now))?;
            }
            Ok(outcome)
        });
        write.await
    }
}

impl Store for SqliteStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let Asked { ask, charge } = asked;
        if charge.units == 0 {
            return self.look(policy, subject, 0, deadline).await;
        }
        let decide = move |counters: &mut Counters, policy: &Policy, now| {
            let aged = counters.advance(policy, now);
            // What is too much to be stored stands behind the policy's own counters now.
            counters.bound(policy);
            let granted = counters.decide(policy, ask, charge, now);
            let decision = Decision::new(policy, counters, now, asked.least(), granted);
            (decision, aged || granted > 0)
        };
        self.change(policy, subject, deadline, decide).await
    }

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
            let now = moment(tx);
            let mut counters = load(tx, &key, &policy, now)?;
            counters.advance(&policy, now);
            Ok(Decision::look(&policy, &counters, now, cost))
        });
        read.await
    }

    async fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
        deadline: Duration,
    ) -> Result<(), Error> {
        let refund = move |counters: &mut Counters, _: &Policy, now| {
            counters.age(now);
            (counters.refund(units, charged, now), !counters.is_new())
        };
        self.change(policy, subject, deadline, refund).await
    }

    async fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
        deadline: Duration,
    ) -> Result<(), Error> {
        let block =
            move |counters: &mut Counters, _: &Policy, now| (counters.block(time, now), true);
        self.change(policy, subject, deadline, block).await
    }

    async fn permits(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
        deadline: Duration,
    ) -> Result<Vec<bool>, Error> {
        let names = names.to_vec();
        let hold = move |counters: &mut Counters, policy: &Policy, now| {
            counters.age(now);
            let held = names
                .iter()
                .map(|name| counters.hold(policy, what, *name, now));
            (held.collect(), !counters.is_new())
        };
        self.change(policy, subject, deadline, hold).await
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

fn moment(tx: &Tx<'_>) -> Now {
    Now {
        at: tx.boot_micros(),
        wall: tx.wall_micros(),
    }
}

/// What is stored and has not expired.
fn load(tx: &Tx<'_>, key: &str, policy: &Policy, now: Now) -> Result<Counters, Error> {
    let mut select = tx
        .prepare_cached("SELECT value FROM tk_limit WHERE key = ?1 AND expires > ?2")
        .map_err(sql_error)?;
    let mut rows = select.query((key, signed(now.at))).map_err(sql_error)?;
    let Some(row) = rows.next().map_err(sql_error)? else {
        return Counters::decode(&[], policy);
    };
    match row.get_ref(0).map_err(sql_error)? {
        // No value of ours is empty.
        sql::types::ValueRef::Blob(bytes) if !bytes.is_empty() => Counters::decode(bytes, policy),
        _ => Err(corrupt()),
    }
}

fn save(tx: &Tx<'_>, key: &str, counters: &Counters, expires: u64) -> Result<(), Error> {
    let mut upsert = tx
        .prepare_cached(
            "INSERT INTO tk_limit (key, value, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
        )
        .map_err(sql_error)?;
    let row = (key, counters.encode(), signed(expires));
    upsert.execute(row).map_err(sql_error).map(drop)
}

/// SQLite's integers are signed; microseconds since boot stay far below.
fn signed(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}
