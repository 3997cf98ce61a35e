//! Which file a path leads to.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The file that a path led to when it was opened. While it is open, no other file gets its numbers.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    numbers: (u64, u64),
}

impl Identity {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            numbers: numbers(path)?,
        })
    }

    /// Whether the path leads to another file now, or to none.
    pub(super) fn is_lost(&self) -> bool {
        match numbers(&self.path) {
            Ok(numbers) => numbers != self.numbers,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ),
        }
    }
}

/// Asks without opening the file: closing it would end all locks that this process holds on it.
fn numbers(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
