//! The store of the SQLite backend: one transaction for each step.

mod notes;

use std::time::Duration;

use redis_conn::{
    Backend, Bus, Error, ErrorKind, Layout,
    raw::{Expiry, Schema, Sqlite, Tx, sql, sql_error},
};
use tokio::{sync::OnceCell, time::Instant};

use super::{
    Acquired, Grant, Next, Outcome, Seen, Store, bytes,
    record::{Now, Record, Sent},
};
use crate::{
    OwnerId, mail,
    name::{Name, escape, unescape},
    terms::Terms,
};

static SCHEMA: Schema = Schema {
    table: "tk_lock",
    create: "CREATE TABLE IF NOT EXISTS tk_lock (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        expires INTEGER NOT NULL
    ) WITHOUT ROWID",
    expiry: Expiry::Boot("expires"),
};

/// Locks in one row each. The time since boot decides, which is one for all processes of the host.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    backend: Backend,
    bus: Bus,
    sqlite: Sqlite,
    created: OnceCell<()>,
    /// The same for the table of the notes.
    noted: OnceCell<()>,
}

impl SqliteStore {
    pub(crate) fn new(backend: &Backend, sqlite: &Sqlite) -> Self {
        Self {
            backend: backend.clone(),
            bus: backend.bus(),
            sqlite: sqlite.clone(),
            created: OnceCell::new(),
            noted: OnceCell::new(),
        }
    }

    fn key(&self, tag: &str) -> String {
        const LAYOUT: Layout = Layout {
            letter: 'l',
            version: bytes::VERSION,
        };
        self.backend.key(LAYOUT, tag, "held")
    }

    /// Creates the table at the first use, so that making a handle needs no waiting. Tells what is left of the deadline.
    async fn created(&self, deadline: Duration) -> Result<Duration, Error> {
        self.ensured(&self.created, &SCHEMA, deadline).await
    }

    async fn ensured(
        &self,
        created: &OnceCell<()>,
        schema: &'static Schema,
        deadline: Duration,
    ) -> Result<Duration, Error> {
        if created.initialized() {
            return Ok(deadline);
        }
        let begun = Instant::now();
        let create = created.get_or_try_init(|| self.sqlite.ensure(schema));
        match tokio::time::timeout(deadline, create).await {
            Ok(Ok(_)) => Ok(deadline.saturating_sub(begun.elapsed())),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "creating the table of the locks",
            )),
        }
    }

    /// The keys of these.
    fn keyed(&self, locks: &[(Name, Terms)]) -> Vec<(String, Terms)> {
        let keyed = locks
            .iter()
            .map(|(name, terms)| (self.key(name.tag()), terms.clone()));
        keyed.collect()
    }

    /// Changes what is known of a lock in one transaction, and sends what is to be sent.
    async fn change<T: Send + 'static>(
        &self,
        name: &Name,
        deadline: Duration,
        change: impl FnOnce(&mut Record, Now, &mut Vec<Sent>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = self.created(deadline).await?;
        let key = self.key(name.tag());
        let write = self.sqlite.write(deadline, move |tx| {
            let (now, mut sent) = (moment(tx), Vec::new());
            let before = load(tx, &key)?;
            let mut record = before.clone();
            let changed = change(&mut record, now, &mut sent)?;
            if record != before {
                save(tx, &key, &record, now)?;
            }
            Ok((changed, sent))
        });
        let (changed, sent) = write.await?;
        mail::send(&self.bus, sent).await;
        Ok(changed)
    }
}

impl Store for SqliteStore {
    async fn acquire(
        &self,
        name: &Name,
        terms: &Terms,
        wake: Option<&str>,
        deadline: Duration,
    ) -> Result<Acquired, Error> {
        let (terms, wake) = (terms.clone(), wake.map(str::to_owned));
        self.change(name, deadline, move |record, now, sent| {
            record.acquire(now, &terms, wake.as_deref(), sent)
        })
        .await
    }

    async fn acquire_all(
        &self,
        asked: &[(Name, Terms)],
        deadline: Duration,
    ) -> Result<Option<Vec<Grant>>, Error> {
        let deadline = self.created(deadline).await?;
        let asked = self.keyed(asked);
        let write = self.sqlite.write(deadline, move |tx| {
            let now = moment(tx);
            let (mut after, mut grants) = (Vec::new(), Vec::new());
            for (key, terms) in &asked {
                let mut record = load(tx, key)?;
                let Some(grant) = record.grant_if_free(now, terms)? else {
                    return Ok(None);
                };
                after.push((key, record));
                grants.push(grant);
            }
            for (key, record) in after {
                save(tx, key, &record, now)?;
            }
            Ok(Some(grants))
        });
        write.await
    }

    async fn release(
        &self,
        name: &Name,
        terms: &Terms,
        abandoned: bool,
        next: Next<'_>,
        deadline: Duration,
    ) -> Result<(Outcome, Option<Acquired>), Error> {
        let (terms, next) = (terms.clone(), OwnedNext::of(next));
        self.change(name, deadline, move |record, now, sent| {
            record.release(now, &terms, abandoned, next.borrow(), sent)
        })
        .await
    }

    async fn renew(
        &self,
        leases: &[(Name, Terms)],
        deadline: Duration,
    ) -> Result<Vec<Outcome>, Error> {
        let deadline = self.created(deadline).await?;
        let keyed = self.keyed(leases);
        let write = self.sqlite.write(deadline, move |tx| {
            let now = moment(tx);
            let renew = |(key, terms): &(String, Terms)| {
                let mut record = load(tx, key)?;
                let outcome = record.renew(now, terms);
                save(tx, key, &record, now)?;
                Ok(outcome)
            };
            keyed.iter().map(renew).collect()
        });
        write.await
    }

    async fn extend(
        &self,
        name: &Name,
        terms: &Terms,
        deadline: Duration,
    ) -> Result<Outcome, Error> {
        let terms = terms.clone();
        self.change(name, deadline, move |record, now, _| {
            Ok(record.extend(now, &terms))
        })
        .await
    }

    async fn look(&self, name: &Name, deadline: Duration) -> Result<Seen, Error> {
        let deadline = self.created(deadline).await?;
        let key = self.key(name.tag());
        let read = self.sqlite.read(deadline, move |tx| {
            load(tx, &key).map(|record| record.look(moment(tx)))
        });
        read.await
    }

    async fn force(&self, name: &Name, deadline: Duration) -> Result<Vec<OwnerId>, Error> {
        self.change(name, deadline, |record, now, sent| {
            Ok(record.force(now, sent))
        })
        .await
    }

    async fn list(&self, prefix: &str, deadline: Duration) -> Result<Vec<String>, Error> {
        let deadline = self.created(deadline).await?;
        let whole = self.key(&escape(prefix.as_bytes()));
        // Up to the brace that ends the tag, so that what begins with the prefix is in between.
        let first = whole.trim_end_matches("}:held").to_owned();
        let read = self.sqlite.read(deadline, move |tx| {
            let now = moment(tx);
            let mut select = tx
                .prepare_cached("SELECT key, value FROM tk_lock WHERE key >= ?1 AND key < ?2")
                .map_err(sql_error)?;
            // Nothing in a key is greater than a tilde but the brace itself.
            let mut rows = select
                .query((&first, format!("{first}\u{7f}")))
                .map_err(sql_error)?;
            let mut names = Vec::new();
            while let Some(row) = rows.next().map_err(sql_error)? {
                let (key, value): (String, Vec<u8>) = (
                    row.get(0).map_err(sql_error)?,
                    row.get(1).map_err(sql_error)?,
                );
                if bytes::decode(&value)?.look(now).holders.is_empty() {
                    continue;
                }
                let tag = key
                    .split_once('{')
                    .and_then(|(_, rest)| rest.rsplit_once('}'));
                names.extend(tag.map(|(tag, _)| unescape(tag)));
            }
            Ok(names)
        });
        read.await
    }
}

/// [`Next`], to be taken to the thread that writes.
enum OwnedNext {
    InLine,
    Pass(Terms, String),
    Yield(Terms, String),
}

impl OwnedNext {
    fn of(next: Next<'_>) -> Self {
        match next {
            Next::InLine => Self::InLine,
            Next::Pass(terms, wake) => Self::Pass(terms.clone(), wake.to_owned()),
            Next::Yield(terms, wake) => Self::Yield(terms.clone(), wake.to_owned()),
        }
    }

    fn borrow(&self) -> Next<'_> {
        match self {
            Self::InLine => Next::InLine,
            Self::Pass(terms, wake) => Next::Pass(terms, wake),
            Self::Yield(terms, wake) => Next::Yield(terms, wake),
        }
    }
}

fn moment(tx: &Tx<'_>) -> Now {
    Now {
        at: tx.boot_micros(),
        wall: tx.wall_micros(),
    }
}

fn load(tx: &Tx<'_>, key: &str) -> Result<Record, Error> {
    let mut select = tx
        .prepare_cached("SELECT value FROM tk_lock WHERE key = ?1")
        .map_err(sql_error)?;
    let mut rows = select.query([key]).map_err(sql_error)?;
    let Some(row) = rows.next().map_err(sql_error)? else {
        return Ok(Record::default());
    };
    match row.get_ref(0).map_err(sql_error)? {
        sql::types::ValueRef::Blob(value) => bytes::decode(value),
        _ => Err(bytes::corrupt()),
    }
}

/// Stores it for as long as it means anything.
fn save(tx: &Tx<'_>, key: &str, record: &Record, now: Now) -> Result<(), Error> {
    if record.is_over(now.at) {
        let mut delete = tx
            .prepare_cached("DELETE FROM tk_lock WHERE key = ?1")
            .map_err(sql_error)?;
        return delete.execute([key]).map_err(sql_error).map(drop);
    }
    let mut upsert = tx
        .prepare_cached(
            "INSERT INTO tk_lock (key, value, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
        )
        .map_err(sql_error)?;
    // SQLite's integers are signed; microseconds since boot stay far below.
    let expires = i64::try_from(record.kept()).unwrap_or(i64::MAX);
    let row = (key, bytes::encode(record), expires);
    upsert.execute(row).map_err(sql_error).map(drop)
}
