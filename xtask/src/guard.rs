//! Processes that end with the command that started them, however that one ends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;

use crate::sh::Result;

/// A shell between us and the process. It is the only parent, so the process id stays reserved until
/// the shell has reaped it: the KILL can never reach a stranger.
///
/// A line on standard input is an orderly stop. End of file without one means that we are gone (a
/// signal that nobody catches, or one that nobody can): nobody else is left to remove the folder.
///
/// Descriptor 3 keeps the pipe away from the process; the shell lets go of standard output so that
/// its end of file means that the process has ended.
const SCRIPT: &str = r#"
trap '' HUP
exec 3<&0
/bin/sh -c 'echo $$; exec "$@"' sh "$@" 3<&- </dev/null &
exec >/dev/null
if read -r _ <&3; then orderly=1; fi
kill -KILL $! 2>/dev/null
wait $! 2>/dev/null
if [ -z "$orderly" ] && [ -n "$TOWERKEEP_SCRATCH" ]; then
    rm -rf "$TOWERKEEP_SCRATCH"
    rmdir "${TOWERKEEP_SCRATCH%/*}" 2>/dev/null
fi
"#;

/// A guarded process; dropping this kills and reaps it.
pub(crate) struct Guard {
    shell: Child,
    pipe: Option<ChildStdin>,
    pid: u32,
    ended: Receiver<()>,
}

impl Guard {
    /// Starts `command` (its program, arguments and folder). If we cannot do it any more, `scratch` is
    /// removed after its end, and then the folder above it if that is empty.
    pub(crate) fn spawn(name: &str, command: &Command, scratch: Option<&Path>) -> Result<Self> {
        let mut guard = Command::new("/bin/sh");
        guard
            .args(["-c", SCRIPT, "guard"])
            .arg(command.get_program())
            .args(command.get_args())
            .env("TOWERKEEP_SCRATCH", scratch.unwrap_or(Path::new("")))
            // An interrupt from the terminal is for us, and our end for the guard.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(dir) = command.get_current_dir() {
            guard.current_dir(dir);
        }
        let mut shell = guard
            .spawn()
            .map_err(|error| format!("{name} did not start: {error}"))?;
        let pipe = shell.stdin.take();
        let mut output = BufReader::new(shell.stdout.take().ok_or("stdout is piped")?);
        let mut first = String::new();
        output.read_line(&mut first)?;
        let pid = first
            .trim()
            .parse()
            .map_err(|_| format!("{name}: no process id in {first:?}"))?;
        let (alive, ended) = mpsc::channel();
        thread::spawn(move || {
            // Also keeps the pipe from filling up.
            let _ = std::io::copy(&mut output, &mut std::io::sink());
            drop(alive);
        });
        Ok(Self {
            shell,
            pipe,
            pid,
            ended,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // A guard that is gone has nothing left to stop.
            let _ = pipe.write_all(b"stop\n");
        }
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::TempDir;
    use crate::sh;
    use std::fs;
    use std::time::{Duration, Instant};

    fn sleeper(scratch: &Path) -> Guard {
        fs::create_dir(scratch).unwrap();
        Guard::spawn("sleeper", Command::new("sleep").arg("30"), Some(scratch)).unwrap()
    }

    /// Far less than the sleep, which would end by itself.
    const HANG: Duration = Duration::from_secs(20);

    fn runs(pid: u32) -> bool {
        let pid = pid.to_string();
        sh::succeeds(Command::new("sh").args(["-c", "kill -0 \"$1\"", "sh", &pid]))
    }

    #[test]
    fn a_dropped_guard_ends_its_process_and_leaves_the_folder_to_us() {
        let dir = TempDir::new("guard-drop").unwrap();
        let scratch = dir.path().join("scratch");
        let guard = sleeper(&scratch);
        let pid = guard.pid();
        assert!(runs(pid));
        assert!(!guard.has_ended());
        let start = Instant::now();
        drop(guard);
        assert!(start.elapsed() < HANG);
        assert!(!runs(pid));
        assert!(scratch.exists());
    }

    #[test]
    fn without_us_the_guard_ends_its_process_and_removes_the_folder() {
        let dir = TempDir::new("guard-orphan").unwrap();
        let scratch = dir.path().join("scratch");
        let mut guard = sleeper(&scratch);
        let start = Instant::now();
        // What the end of our process does.
        drop(guard.pipe.take());
        guard.shell.wait().unwrap();
        assert!(start.elapsed() < HANG);
        assert!(!runs(guard.pid()));
        assert!(!scratch.exists());
        // The guard removed the folder above as well.
        assert!(!dir.path().exists());
        fs::create_dir(dir.path()).unwrap();
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let guard = Guard::spawn("true", &Command::new("true"), None).unwrap();
        let deadline = Instant::now() + HANG;
        while !guard.has_ended() {
            assert!(Instant::now() < deadline, "the end was not seen");
            std::thread::yield_now();
        }
    }
}
