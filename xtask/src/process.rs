//! Child processes that never outlive the command that started them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::sh::{self, Result};

/// A child that is killed by its pid and reaped on drop.
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let child = command
            .spawn()
            .map_err(|error| format!("{name} did not start: {error}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
        })
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends SIGTERM and waits for the end, at most `limit`.
    pub(crate) fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        // `kill` is a builtin of every shell, but not a program on every machine.
        let pid = self.child.id().to_string();
        sh::succeeds(Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &pid]));
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{} was still running {limit:?} after SIGTERM", self.name).into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the child has been reaped, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder of this process in the system's temporary folder, removed on drop.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("towerkeep-{name}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("warning: {} stays: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Process {
        Process::spawn("sleeper", Command::new("sleep").arg("600")).unwrap()
    }

    fn runs(pid: u32) -> bool {
        let pid = pid.to_string();
        sh::succeeds(Command::new("sh").args(["-c", "kill -0 \"$1\"", "sh", &pid]))
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let mut process = sleeper();
        let pid = process.child().id();
        assert!(runs(pid));
        drop(process);
        assert!(!runs(pid));
    }

    #[test]
    fn terminate_ends_a_child() {
        let status = sleeper().terminate(Duration::from_secs(20)).unwrap();
        assert!(!status.success(), "{status}");
    }

    #[test]
    fn a_child_that_ignores_the_signal_is_killed() {
        let mut process = Process::spawn(
            "deaf",
            Command::new("sh")
                .args(["-c", "trap '' TERM; echo deaf; exec sleep 600"])
                .stdout(std::process::Stdio::piped()),
        )
        .unwrap();
        let mut line = [0; 5];
        let mut stdout = process.child().stdout.take().unwrap();
        std::io::Read::read_exact(&mut stdout, &mut line).unwrap();
        let pid = process.child().id();
        let error = process.terminate(Duration::from_millis(50)).unwrap_err();
        assert!(
            error.to_string().contains("deaf was still running"),
            "{error}"
        );
        assert!(!runs(pid));
    }

    #[test]
    fn a_temporary_folder_is_removed() {
        let dir = TempDir::new("unit").unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
    }
}
