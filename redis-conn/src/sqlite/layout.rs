//! The tables of this crate: what the file is, which tables are swept, and the log of the bus.

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{Expiry, Schema, Tx, errors::sql_error};
use crate::{Error, ErrorKind};

/// In the header of the file, where `file` and others look for it: "Twkp".
pub(super) const APPLICATION_ID: i32 = 0x5477_6b70;
/// The layout of the tables below.
pub(super) const LAYOUT: i32 = 1;

const CREATE: &str = "
    CREATE TABLE tk_meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
    CREATE TABLE tk_table (name TEXT PRIMARY KEY, expiry TEXT NOT NULL, clock TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tk_bus (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, frame BLOB NOT NULL, at INTEGER NOT NULL
    );
    INSERT INTO tk_meta VALUES ('boot', ''), ('wall', 0), ('keeper', 0), ('keeper_until', 0);";

/// Makes an empty database ours, in one transaction: no process ever finds it half made.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    // Later it could only be changed by rewriting the file.
    connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {LAYOUT};
         {CREATE}
         COMMIT;"
    ))
}

/// The greatest wall time that a housekeeper stored.
pub(super) fn wall(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT value FROM tk_meta WHERE name = 'wall'")?
        .query_row([], |row| row.get(0))
        .map(i64::cast_unsigned)
}

/// Stores the wall time below which no later transaction goes.
pub(super) fn keep_wall(tx: &Tx<'_>) -> Result<(), Error> {
    tx.prepare_cached("UPDATE tk_meta SET value = ?1 WHERE name = 'wall' AND value < ?1")
        .and_then(|mut update| update.execute([tx.wall_micros().cast_signed()]))
        .map_err(sql_error)?;
    Ok(())
}

/// Voids what goes by the time since boot if the machine was booted since it was written.
pub(super) fn enter_boot(connection: &mut Connection, boot: &str) -> rusqlite::Result<()> {
    let stored = |connection: &Connection| {
        connection.query_row("SELECT value FROM tk_meta WHERE name = 'boot'", [], |row| {
            row.get::<_, String>(0)
        })
    };
    if stored(connection)? == boot {
        return Ok(());
    }
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for table in Swept::all(&tx)?.iter().filter(|table| table.by_boot) {
        tx.execute(&format!("DELETE FROM \"{}\"", table.name), [])?;
    }
    tx.execute("DELETE FROM tk_bus", [])?;
    tx.execute(
        "UPDATE tk_meta SET value = 0 WHERE name IN ('keeper', 'keeper_until')",
        [],
    )?;
    tx.execute("UPDATE tk_meta SET value = ?1 WHERE name = 'boot'", [boot])?;
    tx.commit()
}

/// A table that some process registered, as the housekeeping sees it.
#[derive(Clone, Debug)]
pub(super) struct Swept {
    pub(super) name: String,
    pub(super) expiry: String,
    pub(super) by_boot: bool,
}

impl Swept {
    /// All tables that still exist. The names went through [`register`], but the file may have been in other hands since.
    pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let read = |row: &Row<'_>| {
            Ok(Self {
                name: row.get(0)?,
                expiry: row.get(1)?,
                by_boot: row.get::<_, String>(2)? == "boot",
            })
        };
        let mut select = connection.prepare_cached(
            "SELECT name, expiry, clock FROM tk_table JOIN sqlite_schema USING (name)
             WHERE type = 'table' AND clock IN ('boot', 'wall')",
        )?;
        let rows = select.query_map([], read)?;
        rows.filter(|row| row.as_ref().map_or(true, Self::is_sound))
            .collect()
    }

    fn is_sound(&self) -> bool {
        is_identifier(&self.name) && is_identifier(&self.expiry)
    }

    /// The time from which on a row counts as expired.
    pub(super) fn now(&self, tx: &Tx<'_>) -> i64 {
        let now = if self.by_boot {
            tx.boot_micros()
        } else {
            tx.wall_micros()
        };
        now.cast_signed()
    }

    /// Whether any row has expired.
    pub(super) fn is_due(&self, tx: &Tx<'_>) -> rusqlite::Result<bool> {
        let Self { name, expiry, .. } = self;
        let sql = format!("SELECT 1 FROM \"{name}\" WHERE \"{expiry}\" <= ?1 LIMIT 1");
        tx.prepare_cached(&sql)?.exists([self.now(tx)])
    }

    /// Deletes about `max` expired rows, more only where rows expire in the same microsecond; `true` if more may be left.
    pub(super) fn sweep(&self, tx: &Tx<'_>, max: u32) -> rusqlite::Result<bool> {
        let Self { name, expiry, .. } = self;
        let last = format!(
            "SELECT \"{expiry}\" FROM \"{name}\" WHERE \"{expiry}\" <= ?1 ORDER BY 1 LIMIT 1 OFFSET ?2"
        );
        let now = self.now(tx);
        let cut: Option<i64> = tx
            .prepare_cached(&last)?
            .query_row((now, max.saturating_sub(1)), |row| row.get(0))
            .optional()?;
        let delete = format!("DELETE FROM \"{name}\" WHERE \"{expiry}\" <= ?1");
        tx.prepare_cached(&delete)?.execute([cut.unwrap_or(now)])?;
        Ok(cut.is_some())
    }
}

/// Creates a crate's table, with an index that makes sweeping it cost what there is to sweep.
///
/// Measured with 200,000 upserts of 150 bytes: the index costs 3 to 10 µs a write (10 to 50 %). Without it, every look for expired
/// rows reads the whole table, every second and also when nothing has expired, such as a million sessions of an idle night.
pub(super) fn register(tx: &Tx<'_>, schema: &Schema) -> Result<(), Error> {
    let Schema {
        table,
        create,
        expiry,
    } = schema;
    let (column, clock) = match expiry {
        Expiry::Boot(column) => (column, "boot"),
        Expiry::Wall(column) => (column, "wall"),
    };
    for name in [table, column] {
        if !is_identifier(name) {
            let text = format!(
                "name {name:?}: expected 1 to 48 characters of [a-z0-9_], the first a letter"
            );
            return Err(Error::new(ErrorKind::Config, text));
        }
    }
    tx.execute_batch(create)
        .and_then(|()| {
            tx.execute_batch(&format!(
                "CREATE INDEX IF NOT EXISTS \"{table}_by_{column}\" ON \"{table}\" (\"{column}\")"
            ))
        })
        .and_then(|()| {
            tx.execute(
                "INSERT INTO tk_table (name, expiry, clock) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET expiry = excluded.expiry, clock = excluded.clock",
                (table, column, clock),
            )
        })
        .map_err(sql_error)?;
    Ok(())
}

fn is_identifier(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.len() <= 48
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(allowed)
}
