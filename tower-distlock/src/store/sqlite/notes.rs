//! Notes in a table of their own. They go by the time of the day, since they are to outlive a reboot.

use std::time::Duration;

use redis_conn::{
    Error, Layout,
    raw::{Expiry, Schema, Tx, sql, sql_error},
};

use super::SqliteStore;
use crate::{
    name::Name,
    store::notes::{Kind, Note, Notes, bytes},
    terms::micros,
};

static SCHEMA: Schema = Schema {
    table: "tk_lock_note",
    create: "CREATE TABLE IF NOT EXISTS tk_lock_note (
        key TEXT PRIMARY KEY NOT NULL,
        value BLOB NOT NULL,
        expires INTEGER NOT NULL
    ) WITHOUT ROWID",
    expiry: Expiry::Wall("expires"),
};

impl SqliteStore {
    fn note_key(&self, name: &Name, kind: Kind) -> String {
        const LAYOUT: Layout = Layout {
            letter: 'l',
            version: 1,
        };
        self.backend.key(LAYOUT, name.tag(), kind.rest())
    }

    /// Stores a note if that is right beside what is stored, and tells what was.
    async fn put(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        (keep, deadline): (Duration, Duration),
        is_right: fn(Option<&Note>, &Note) -> bool,
    ) -> Result<(bool, Option<Note>), Error> {
        let deadline = self.ensured(&self.noted, &SCHEMA, deadline).await?;
        let (key, note) = (self.note_key(name, kind), note.clone());
        let write = self.sqlite.write(deadline, move |tx| {
            let stored = load(tx, &key)?;
            let right = is_right(stored.as_ref(), &note);
            if right {
                save(tx, &key, &note, keep)?;
            }
            Ok((right, stored))
        });
        write.await
    }
}

impl Notes for SqliteStore {
    async fn advance(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> Result<Option<Note>, Error> {
        let later =
            |stored: Option<&Note>, new: &Note| stored.is_none_or(|old| old.slot < new.slot);
        let put = self.put(name, kind, note, (keep, deadline), later);
        let (stored, before) = put.await?;
        Ok(before.filter(|_| !stored))
    }

    async fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> Result<bool, Error> {
        let same =
            |stored: Option<&Note>, new: &Note| stored.is_some_and(|old| old.slot == new.slot);
        let put = self.put(name, kind, note, (keep, deadline), same);
        Ok(put.await?.0)
    }

    async fn note(
        &self,
        name: &Name,
        kind: Kind,
        deadline: Duration,
    ) -> Result<Option<Note>, Error> {
        let deadline = self.ensured(&self.noted, &SCHEMA, deadline).await?;
        let key = self.note_key(name, kind);
        self.sqlite.read(deadline, move |tx| load(tx, &key)).await
    }
}

fn load(tx: &Tx<'_>, key: &str) -> Result<Option<Note>, Error> {
    let mut select = tx
        .prepare_cached("SELECT value FROM tk_lock_note WHERE key = ?1 AND expires > ?2")
        .map_err(sql_error)?;
    let now = i64::try_from(tx.wall_micros()).unwrap_or(i64::MAX);
    let mut rows = select.query((key, now)).map_err(sql_error)?;
    let Some(row) = rows.next().map_err(sql_error)? else {
        return Ok(None);
    };
    match row.get_ref(0).map_err(sql_error)? {
        sql::types::ValueRef::Blob(value) => bytes::decode(value).map(Some),
        _ => Err(bytes::corrupt()),
    }
}

fn save(tx: &Tx<'_>, key: &str, note: &Note, keep: Duration) -> Result<(), Error> {
    let mut upsert = tx
        .prepare_cached(
            "INSERT INTO tk_lock_note (key, value, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires = excluded.expires",
        )
        .map_err(sql_error)?;
    // SQLite's integers are signed.
    let expires = tx.wall_micros().saturating_add(micros(keep));
    let expires = i64::try_from(expires).unwrap_or(i64::MAX);
    let row = (key, bytes::encode(note), expires);
    upsert.execute(row).map_err(sql_error).map(drop)
}
