//! The bus: a log table that every process polls.

use std::{sync::Arc, time::Duration};

use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Tx, alarm::Alarm, condition::Condition, errors::sql_error, time::Time, worker::snapshot,
};
use crate::{Error, bus::Hub, trace::event};

/// How far behind the messages of other processes are, at most. Those of this process ring the alarm.
pub(super) const POLL: Duration = Duration::from_millis(16);
/// How many messages are read in one go.
const CHUNK: u32 = 1_024;

/// Appends a message to the log.
pub(super) fn append(tx: &Tx<'_>, channel: &str, frame: &[u8]) -> Result<(), Error> {
    tx.prepare_cached("INSERT INTO tk_bus (channel, frame, at) VALUES (?1, ?2, ?3)")
        .and_then(|mut insert| insert.execute((channel, frame, tx.boot_micros().cast_signed())))
        .map_err(sql_error)?;
    Ok(())
}

/// The thread that hands the log to the hub. It sleeps while nobody listens.
#[derive(Debug)]
pub(super) struct Poller {
    pub(super) connection: Connection,
    pub(super) hub: Arc<Hub>,
    pub(super) time: Arc<Time>,
    pub(super) alarm: Arc<Alarm>,
    pub(super) closed: CancellationToken,
    pub(super) condition: Arc<Condition>,
    /// The latest ring after which the log was read, or nobody listened.
    pub(super) heard: watch::Sender<u64>,
}

/// How far the log was read.
#[derive(Clone, Copy, Debug)]
struct Position {
    /// The last message that was delivered or skipped.
    last: i64,
    /// SQLite's number of the change after which it was read; only other connections' changes count.
    version: i64,
}

impl Poller {
    pub(super) fn run(self) {
        let (mut rings, mut position) = (0, None);
        loop {
            // Whoever adds a mailbox after this look rings the alarm.
            let pause = (!self.hub.is_empty()).then_some(POLL);
            match self.alarm.wait(rings, pause) {
                Some(latest) if !self.closed.is_cancelled() => rings = latest,
                _ => return,
            }
            if self.condition.lost().is_some() {
                // Others publish to another file now.
                self.hub.gap();
                return self.hub.close();
            }
            if self.hub.is_empty() {
                position = None;
            } else if let Err(error) = self.poll(&mut position) {
                event!(warn, "the log of the bus cannot be read: {error}");
                // What is published from now on will be seen, unless it is not even known where to go on.
                if position.is_none() {
                    continue;
                }
            }
            self.heard
                .send_if_modified(|heard| std::mem::replace(heard, rings) != rings);
        }
    }

    fn poll(&self, position: &mut Option<Position>) -> Result<(), Error> {
        let version = self
            .connection
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut pragma| pragma.query_row([], |row| row.get(0)))
            .map_err(sql_error)?;
        let Some(reached) = position else {
            let last = snapshot(&self.connection, &self.time, |tx| last(tx))?;
            *position = Some(Position { last, version });
            return Ok(());
        };
        if version == reached.version {
            return Ok(());
        }
        while self.deliver(&mut reached.last)? {}
        reached.version = version;
        Ok(())
    }

    /// Delivers one chunk; `true` if there may be more.
    fn deliver(&self, last: &mut i64) -> Result<bool, Error> {
        snapshot(&self.connection, &self.time, |tx| {
            let mut select = tx.prepare_cached(
                "SELECT seq, channel, frame FROM tk_bus WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )?;
            let mut rows = select.query((*last, CHUNK))?;
            let mut count = 0;
            while let Some(row) = rows.next()? {
                let seq = row.get(0)?;
                self.advance(last, seq - 1);
                *last = seq;
                count += 1;
                self.hub
                    .deliver(row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_blob()?);
            }
            if count < CHUNK {
                self.advance(last, self::last(tx)?);
            }
            Ok(count == CHUNK)
        })
    }

    /// Goes on to `next`. The sequence has no holes, so messages between were trimmed before this process could read them.
    fn advance(&self, last: &mut i64, next: i64) {
        if next != *last {
            *last = next;
            self.hub.gap();
        }
    }
}

/// The number of the last message that was published, trimmed or not.
fn last(connection: &Connection) -> rusqlite::Result<i64> {
    let last = connection
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'tk_bus'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(last.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_looked_for_often_enough() {
        let promised = Duration::from_millis(20);
        assert!(POLL <= promised, "{POLL:?}");
    }
}
