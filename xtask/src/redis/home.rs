//! Where servers run: the binary, and the folder that holds a folder for each.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::TempDir;
use crate::sh::Result;

pub(crate) struct Home {
    binary: PathBuf,
    dir: Dir,
}

enum Dir {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Home {
    /// In a folder that is removed at the end.
    pub(crate) fn temporary(binary: &Path) -> Result<Self> {
        Ok(Self {
            binary: binary.to_owned(),
            dir: Dir::Temporary(TempDir::new("redis")?),
        })
    }

    /// In `dir`, which stays. It must hold nothing: the addresses in the files of an earlier run are no
    /// longer true.
    pub(crate) fn kept(binary: &Path, dir: &Path) -> Result<Self> {
        let named = |error| format!("{}: {error}", dir.display());
        fs::create_dir_all(dir).map_err(named)?;
        if fs::read_dir(dir).map_err(named)?.next().is_some() {
            return Err(format!("{}: expected an empty or absent folder", dir.display()).into());
        }
        Ok(Self {
            binary: binary.to_owned(),
            dir: Dir::Kept(fs::canonicalize(dir)?),
        })
    }

    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(super) fn dir(&self) -> &Path {
        match &self.dir {
            Dir::Temporary(dir) => dir.path(),
            Dir::Kept(dir) => dir,
        }
    }

    /// Whether the folder goes when the servers go.
    pub(super) fn is_temporary(&self) -> bool {
        matches!(self.dir, Dir::Temporary(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_kept_must_be_empty() {
        let dir = TempDir::new("home").unwrap();
        let kept = dir.path().join("kept");
        drop(Home::kept(Path::new("x"), &kept).unwrap());
        drop(Home::kept(Path::new("x"), &kept).unwrap());
        fs::write(kept.join("file"), "").unwrap();
        let error = Home::kept(Path::new("x"), &kept).err().unwrap().to_string();
        assert!(error.contains("kept: expected an empty"), "{error}");
        assert!(kept.exists());
    }
}
