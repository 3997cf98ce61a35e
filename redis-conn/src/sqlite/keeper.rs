//! Housekeeping: one process at a time sweeps expired rows, trims the log of the bus and keeps the file small.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use super::{
    Tx,
    alarm::Alarm,
    condition::Condition,
    errors::sql_error,
    identity::Identity,
    layout::{Swept, keep_wall},
    queue::Queue,
    time::Time,
    worker::{call_blocking, snapshot},
};
use crate::{Error, ErrorKind, trace::event};

/// How often it looks whether there is anything to do.
const TICK: Duration = Duration::from_secs(1);
/// For how long one process is the housekeeper, by the time since boot.
const LEASE: Duration = Duration::from_secs(5);
/// How many rows one transaction deletes: other jobs wait for it, and theirs may have 100 ms.
const CHUNK: u32 = 1_000;
/// How many pages one transaction gives back to the file system.
const PAGES: u32 = 500;
/// Free pages below this number are left for the next rows.
const FREE_PAGES: i64 = 512;
/// How long messages stay: a process that does not poll for so long gets a gap.
const BUS_AGE: Duration = Duration::from_secs(10);
/// How many messages stay however young they are.
const BUS_ROWS: i64 = 100_000;
/// A WAL file of this size is truncated even while others write.
const WAL_LARGE: u64 = 16 << 20;

/// The thread that does the housekeeping. It looks on its own connection and changes rows through the writer.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) connection: Connection,
    pub(super) writer: Arc<Queue>,
    pub(super) time: Arc<Time>,
    pub(super) alarm: Arc<Alarm>,
    pub(super) closed: CancellationToken,
    pub(super) wal: PathBuf,
    pub(super) file: Identity,
    pub(super) condition: Arc<Condition>,
    /// Who it is in the lease.
    pub(super) id: i64,
}

/// What there is to do.
#[derive(Debug)]
struct Due {
    tables: Vec<Swept>,
    bus: bool,
    pages: bool,
    /// Changes with every commit of another connection.
    version: i64,
}

impl Keeper {
    pub(super) fn run(self) {
        let mut version = 0;
        while self.alarm.wait(0, Some(TICK)).is_some() && !self.closed.is_cancelled() {
            if self.file.is_lost() {
                event!(
                    error,
                    "the SQLite file was removed or replaced while it was open"
                );
                return self.condition.lose();
            }
            match self.look_after(version) {
                Ok(seen) => version = seen,
                // The writer has ended first; this round was the last.
                Err(error) if *error.kind() == ErrorKind::Closed => return,
                Err(error) => {
                    event!(warn, "the housekeeping of the SQLite file failed: {error}");
                }
            }
        }
    }

    /// One round. `before` and the returned number are the versions of the file that this and the last round found.
    fn look_after(&self, before: i64) -> Result<i64, Error> {
        let due = snapshot(&self.connection, &self.time, look)?;
        let wal = fs::metadata(&self.wal).map_or(0, |file| file.len());
        let checkpoint = wal > WAL_LARGE || (wal > 0 && due.version == before);
        // An idle file costs a look and no write.
        let work = due.bus || due.pages || !due.tables.is_empty();
        if !work && !checkpoint {
            return Ok(due.version);
        }
        let mine = self.write(|_| Ok(true));
        if checkpoint && mine.is_err() {
            // On a full disk nothing can be written until the WAL may begin again from its start.
            self.checkpoint()?;
        }
        if mine? {
            for table in due.tables {
                while self.write({
                    let table = table.clone();
                    move |tx| table.sweep(tx, CHUNK)
                })? {}
            }
            while self.write(trim)? {}
            while self.write(shrink)? {}
            if checkpoint {
                self.checkpoint()?;
            }
        }
        Ok(due.version)
    }

    /// Runs a step on the writer, as long as this process holds the lease; `true` if the step should be repeated.
    fn write(
        &self,
        step: impl FnOnce(&Tx<'_>) -> rusqlite::Result<bool> + Send + 'static,
    ) -> Result<bool, Error> {
        let id = self.id;
        let more = call_blocking(&self.writer, move |tx| {
            if !hold_lease(tx, id).map_err(sql_error)? {
                return Ok(false);
            }
            keep_wall(tx)?;
            step(tx).map_err(sql_error)
        })?;
        Ok(more && !self.closed.is_cancelled())
    }

    /// Moves the WAL into the file and empties it. Most of the work is in the first step, which blocks nobody.
    fn checkpoint(&self) -> Result<(), Error> {
        for mode in ["PASSIVE", "TRUNCATE"] {
            let pragma = format!("PRAGMA wal_checkpoint({mode})");
            // A checkpoint that others keep from finishing is tried again in the next round.
            self.connection
                .query_row(&pragma, [], |_| Ok(()))
                .map_err(sql_error)?;
        }
        Ok(())
    }
}

/// Takes the lease or keeps it; `false` if another process holds it.
fn hold_lease(tx: &Tx<'_>, id: i64) -> rusqlite::Result<bool> {
    let (now, length) = (tx.boot_micros().cast_signed(), micros(LEASE));
    let value = |name: &str| -> rusqlite::Result<i64> {
        tx.prepare_cached("SELECT value FROM tk_meta WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
    };
    let (holder, left) = (value("keeper")?, value("keeper_until")?.saturating_sub(now));
    // A lease that ends too far away was taken before the clock went back.
    if holder != id && (1..=length).contains(&left) {
        return Ok(false);
    }
    if holder != id || left < length / 2 || left > length {
        let mut set = tx.prepare_cached("UPDATE tk_meta SET value = ?2 WHERE name = ?1")?;
        set.execute(("keeper", id))?;
        set.execute(("keeper_until", now.saturating_add(length)))?;
    }
    Ok(true)
}

fn look(tx: &Tx<'_>) -> rusqlite::Result<Due> {
    let mut tables = Swept::all(tx)?;
    let mut failure = None;
    tables.retain(|table| {
        table.is_due(tx).unwrap_or_else(|error| {
            failure = Some(error);
            false
        })
    });
    if let Some(error) = failure {
        // One table that cannot be swept does not keep the others from it.
        event!(warn, "an expired row cannot be looked for: {error}");
    }
    let number = |pragma: &str| -> rusqlite::Result<i64> {
        tx.prepare_cached(pragma)?.query_row([], |row| row.get(0))
    };
    Ok(Due {
        tables,
        bus: tx.prepare_cached(OUTDATED)?.exists(outdated(tx))?,
        pages: is_loose(tx)?,
        version: number("PRAGMA data_version")?,
    })
}

const OUTDATED: &str = "
    SELECT seq FROM (SELECT seq, at FROM tk_bus ORDER BY seq LIMIT ?3)
    WHERE at <= ?1 OR seq <= (SELECT max(seq) FROM tk_bus) - ?2";

fn outdated(tx: &Tx<'_>) -> (i64, i64, u32) {
    let born = tx.boot_micros().cast_signed() - micros(BUS_AGE);
    (born, BUS_ROWS, CHUNK)
}

/// Deletes a chunk of old messages; `true` if more may be left.
fn trim(tx: &Tx<'_>) -> rusqlite::Result<bool> {
    let sql = format!("DELETE FROM tk_bus WHERE seq IN ({OUTDATED})");
    let trimmed = tx.prepare_cached(&sql)?.execute(outdated(tx))?;
    Ok(u32::try_from(trimmed).is_ok_and(|trimmed| trimmed >= CHUNK))
}

/// Whether so much of the file is free that it is worth giving back: what is written again soon is not.
fn is_loose(tx: &Tx<'_>) -> rusqlite::Result<bool> {
    let number = |pragma: &str| -> rusqlite::Result<i64> {
        tx.prepare_cached(pragma)?.query_row([], |row| row.get(0))
    };
    let free = number("PRAGMA freelist_count")?;
    Ok(free > FREE_PAGES.max(number("PRAGMA page_count")? / 4))
}

/// Gives a chunk of free pages back; `true` if more are left.
fn shrink(tx: &Tx<'_>) -> rusqlite::Result<bool> {
    if !is_loose(tx)? {
        return Ok(false);
    }
    // Every step of this statement frees one page.
    let mut vacuum = tx.prepare_cached(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ManualClock,
        sqlite::{layout, time::Now, turn::Turnstile, worker::Writer},
    };

    #[test]
    fn the_lease_is_held_by_one_and_taken_over_when_it_lapses() {
        let connection = Connection::open_in_memory().unwrap();
        layout::create(&connection).unwrap();
        let asks = |id, seconds: u64| {
            let boot = seconds * 1_000_000;
            hold_lease(&Tx::new(&connection, Now { boot, wall: 0 }), id).unwrap()
        };
        assert!(asks(1, 100), "free");
        assert!(!asks(2, 104), "held");
        assert!(asks(1, 104), "renewed");
        assert!(!asks(2, 108), "held since it was renewed");
        assert!(asks(2, 109), "lapsed");
        assert!(!asks(1, 109), "held by the other");
        assert!(asks(1, 50), "the clock went back");
    }

    #[test]
    fn a_step_runs_only_while_the_lease_is_held() {
        let connection = Connection::open_in_memory().unwrap();
        layout::create(&connection).unwrap();
        let hour: i64 = 3_600_000_000;
        let lease = "UPDATE tk_meta SET value = CASE name WHEN 'keeper' THEN 2 ELSE ?1 END WHERE name LIKE 'keeper%'";
        connection.execute(lease, [hour + 1]).unwrap();
        let clock = Arc::new(ManualClock::new(hour.cast_unsigned()));
        let time = Arc::new(Time::new(Arc::clone(&clock) as Arc<dyn crate::Clock>));
        let file = tempfile::NamedTempFile::new().unwrap();
        let (queue, condition) = (Arc::<Queue>::default(), Arc::<Condition>::default());
        let writer = Writer {
            connection,
            queue: Arc::clone(&queue),
            time: Arc::clone(&time),
            turnstile: Turnstile(file.reopen().unwrap()),
            condition: Arc::clone(&condition),
            others: std::sync::mpsc::channel().1,
        };
        let writer = std::thread::spawn(|| writer.run());
        let keeper = Keeper {
            connection: Connection::open_in_memory().unwrap(),
            writer: Arc::clone(&queue),
            time,
            alarm: Arc::default(),
            closed: CancellationToken::new(),
            wal: PathBuf::new(),
            file: Identity::of(file.path()).unwrap(),
            condition,
            id: 1,
        };
        let step = |_: &Tx<'_>| -> rusqlite::Result<bool> { panic!("another process keeps house") };
        assert!(!keeper.write(step).unwrap());
        clock.set(hour.cast_unsigned() + 1);
        assert!(keeper.write(|_| Ok(true)).unwrap(), "it has lapsed");
        queue.close();
        writer.join().unwrap();
    }

    #[test]
    fn the_log_has_a_greatest_length() {
        let connection = Connection::open_in_memory().unwrap();
        layout::create(&connection).unwrap();
        let fill =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 101500)
                    INSERT INTO tk_bus (channel, frame, at) SELECT 'c', x'01', 0 FROM n";
        connection.execute(fill, []).unwrap();
        let tx = Tx::new(&connection, Now { boot: 0, wall: 0 });
        assert!(look(&tx).unwrap().bus);
        assert!(trim(&tx).unwrap(), "a full chunk");
        assert!(!trim(&tx).unwrap(), "the rest of it");
        assert!(!look(&tx).unwrap().bus);
        let range = "SELECT count(*), min(seq) FROM tk_bus";
        let left = connection.query_row(range, [], |row| Ok((row.get(0)?, row.get(1)?)));
        assert_eq!(left.unwrap(), (100_000, 1_501));
    }
}
