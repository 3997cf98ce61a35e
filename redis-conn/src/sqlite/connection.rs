//! The connections to the file.

use std::{fmt::Write as _, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Writer,
    Reader,
    Keeper,
}

/// How long the WAL file may stay after it was reset, in bytes.
const WAL_KEPT: u32 = 4 << 20;
const STATEMENTS: usize = 64;

impl Role {
    fn flags(self) -> OpenFlags {
        let access = match self {
            Self::Writer => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
            Self::Keeper => OpenFlags::SQLITE_OPEN_READ_WRITE,
            Self::Reader => OpenFlags::SQLITE_OPEN_READ_ONLY,
        };
        // A connection never leaves its thread, so SQLite needs no mutex of its own.
        access | OpenFlags::SQLITE_OPEN_NO_MUTEX
    }

    /// How often a locked file is tried again, a [`nap`] apart.
    fn attempts(self) -> i32 {
        match self {
            // The worker tries again itself, as long as somebody waits.
            Self::Writer => 16,
            // While a checkpoint waits for readers, writers wait for the checkpoint.
            Self::Keeper => 32,
            Self::Reader => 2_048,
        }
    }

    /// In KiB; memory is taken only as pages are read.
    fn cache(self) -> u32 {
        match self {
            Self::Writer => 8_192,
            Self::Reader | Self::Keeper => 2_048,
        }
    }
}

/// Opens the file; nothing is read or written yet.
pub(super) fn connect(path: &Path, role: Role) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_with_flags(path, role.flags())?;
    // SQLite's own timeout sleeps up to 100 ms between two attempts, which is the whole deadline of a limit.
    connection.busy_handler(Some(move |attempt| {
        nap();
        attempt < role.attempts()
    }))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Checkpoints wait for the disk, so the housekeeper makes them, and no caller waits in a commit that happens to be the
    // thousandth page.
    connection.execute_batch(&format!(
        "PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = -{};
         PRAGMA journal_size_limit = {WAL_KEPT};
         PRAGMA trusted_schema = OFF;",
        role.cache()
    ))?;
    Ok(connection)
}

/// Opens the file to look at its header as it is on the disk, without the locks, the recovery and the checkpoint of a
/// [`connect`]ion: nothing is changed or created, whoever's database it is.
///
/// The header must not be read past SQLite. When a process closes any descriptor of a file, it loses all of its POSIX locks on that
/// file, also those of its other connections; SQLite knows of them and keeps such a descriptor open.
pub(super) fn peek(path: &Path) -> rusqlite::Result<Connection> {
    let access = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(immutable(path), access | OpenFlags::SQLITE_OPEN_URI)?;
    // A checkpoint that was cut short leaves a file that is shorter than its header says; the WAL holds the rest.
    connection.execute_batch("PRAGMA writable_schema = ON")?;
    Ok(connection)
}

/// The URI of an absolute path, as that of a file that does not change.
fn immutable(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            _ => drop(write!(uri, "%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// The pause between two attempts at a lock; random, so that those who wait do not march in step.
pub(super) fn nap() {
    let ceiling = Duration::from_micros(900);
    std::thread::sleep(Duration::from_micros(100) + crate::random::jitter(ceiling));
}
