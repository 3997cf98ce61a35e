//! Opening the file: one process at a time, and only a file that is ours.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};

use super::{
    boot,
    connection::{Role, connect, nap},
    errors::sql_error,
    layout,
};
use crate::{Error, ErrorKind};

/// How long other processes may keep the lock of the first open.
const PATIENCE: Duration = Duration::from_secs(10);
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The opened file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
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
    let writer = inspect(&path).and_then(|()| prepare(&path));
    let unlocked = sidecar.unlock().map_err(|error| unusable(&path, error));
    let writer = writer?;
    unlocked?;
    Ok(Opened {
        path,
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
    let text = format!("the SQLite file {path:?} cannot be used: {error}");
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

/// Reads the header without SQLite, which would already recover and checkpoint a database of somebody else.
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
    let mut header = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Err(unusable(path, error));
        }
        Ok(()) if header.starts_with(MAGIC) => {}
        _ => {
            let found = format!("{} bytes that are no SQLite database", metadata.len());
            return Err(foreign(path, &found));
        }
    }
    let application = field(&header, 68);
    if application != layout::APPLICATION_ID {
        let found = format!("the database of another program (application id {application:#x})");
        return Err(foreign(path, &found));
    }
    known(path, field(&header, 60))
}

fn field(header: &[u8; 100], at: usize) -> i32 {
    let bytes = header[at..].first_chunk().copied().unwrap_or_default();
    i32::from_be_bytes(bytes)
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
