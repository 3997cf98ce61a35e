//! Opening the file: one process at a time, and only a file that is ours.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use super::{
    boot,
    connection::{Role, connect, nap, peek},
    errors::sql_error,
    identity::Identity,
    layout,
};
use crate::{Error, ErrorKind};

/// How long other processes may keep the lock of the first open.
const PATIENCE: Duration = Duration::from_secs(10);
/// The length of the smallest database that SQLite makes, in bytes.
const SMALLEST: u64 = 512;

/// The opened file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
    pub(super) writer: Connection,
    /// The sidecar, unlocked.
    pub(super) sidecar: File,
}

/// Opens the file and makes it if there is none. Blocks.
///
/// Switching a new file to WAL fails at once when another connection is about to do the same, whatever the busy timeout. Therefore
/// everything before the first transaction happens under the lock of a sidecar file, which the kernel releases if the process dies.
pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let path = resolve(path)?;
    let sidecar = sidecar(&path)?;
    lock(&sidecar, &path)?;
    let prepared = inspect(&path).and_then(|()| {
        let writer = prepare(&path)?;
        let identity = Identity::of(&path).map_err(|error| unusable(&path, error))?;
        Ok((writer, identity))
    });
    let unlocked = sidecar.unlock().map_err(|error| unusable(&path, error));
    let (writer, identity) = prepared?;
    unlocked?;
    Ok(Opened {
        path,
        identity,
        writer,
        sidecar,
    })
}

/// The path without symbolic links, so that all processes agree on the name of the sidecar.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let name = path.as_os_str().as_encoded_bytes();
    if name.is_empty() || name == b":memory:" || name.starts_with(b"file:") {
        let text = format!(
            "{path:?} is no path of a file; a backend that lives in this process only is `Backend::memory`"
        );
        return Err(Error::new(ErrorKind::Config, text));
    }
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let absolute = std::path::absolute(path).map_err(|error| unusable(path, error))?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => Ok(parent.join(name)),
            Err(error) => Err(unusable(path, error)),
        },
        _ => Err(unusable(path, io::ErrorKind::IsADirectory.into())),
    }
}

fn unusable(path: &Path, error: io::Error) -> Error {
    let text = format!("the SQLite file {path:?} cannot be used");
    Error::new(ErrorKind::Config, text).with_source(error)
}

fn sidecar(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    options.open(name).map_err(|error| unusable(path, error))
}

fn lock(sidecar: &File, path: &Path) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        match sidecar.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(unusable(path, error)),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => nap(),
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process was still opening {path:?} after {PATIENCE:?}");
                return Err(Error::new(ErrorKind::Timeout, text));
            }
        }
    }
}

/// Refuses what is not ours before anything can recover or checkpoint it.
fn inspect(path: &Path) -> Result<(), Error> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(path, error)),
    };
    if !metadata.is_file() {
        return Err(unusable(path, io::Error::other("it is not a regular file")));
    }
    if metadata.len() == 0 {
        return Ok(());
    }
    let garbage = || {
        foreign(
            path,
            &format!("{} bytes that are no SQLite database", metadata.len()),
        )
    };
    if metadata.len() < SMALLEST {
        return Err(garbage());
    }
    let header = peek(path).and_then(|file| {
        let number = |name| file.pragma_query_value(None, name, |row| row.get(0));
        Ok((number("application_id")?, number("user_version")?))
    });
    match header {
        Ok((layout::APPLICATION_ID, layout)) => known(path, layout),
        Ok((application, _)) => {
            let found =
                format!("the database of another program (application id {application:#x})");
            Err(foreign(path, &found))
        }
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Err(garbage().with_source(error))
            }
            _ => Err(setup_error(path, error)),
        },
    }
}

fn foreign(path: &Path, found: &str) -> Error {
    let expected = layout::APPLICATION_ID;
    let text = format!(
        "{path:?} holds {found}; expected no file, an empty one or one with application id {expected:#x}. It was left as it is"
    );
    Error::new(ErrorKind::Corrupt, text)
}

fn known(path: &Path, found: i32) -> Result<(), Error> {
    if found <= layout::LAYOUT {
        return Ok(());
    }
    let known = layout::LAYOUT;
    let text = format!(
        "{path:?} has layout {found}, this version knows up to {known}. It was left as it is"
    );
    Err(Error::new(ErrorKind::Corrupt, text))
}

fn prepare(path: &Path) -> Result<Connection, Error> {
    let setup = |error| setup_error(path, error);
    let mut writer = connect(path, Role::Writer).map_err(setup)?;
    if writer.is_readonly("main").map_err(setup)? {
        return Err(unusable(path, io::ErrorKind::PermissionDenied.into()));
    }
    // The header may be older than what the WAL holds.
    let version = writer.pragma_query_value(None, "user_version", |row| row.get(0));
    known(path, version.map_err(setup)?)?;
    let tables: rusqlite::Result<i64> =
        writer.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0));
    if tables.map_err(setup)? == 0 {
        layout::create(&writer).map_err(setup)?;
    }
    let mode = writer.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0));
    let mode: String = mode.map_err(setup)?;
    if mode != "wal" {
        let text = format!("its file system supports journal mode {mode} only, expected wal");
        return Err(unusable(path, io::Error::other(text)));
    }
    let boot = boot::id().map_err(|error| {
        Error::new(
            ErrorKind::Config,
            "the boot id of this machine cannot be read",
        )
        .with_source(error)
    })?;
    layout::enter_boot(&mut writer, &boot).map_err(setup)?;
    Ok(writer)
}

/// While opening, a file that cannot be read or written is a matter of configuration.
fn setup_error(path: &Path, error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            unusable(path, io::Error::other(error))
        }
        _ => sql_error(error),
    }
}
