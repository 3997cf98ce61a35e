//! A process that outlives the test process just long enough to kill what it started.

use std::{
    fmt,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::unix::pipe,
};

/// The guard is the only parent of the guarded process, so the process id stays reserved until the
/// guard has reaped it: the KILL below can never reach a stranger.
///
/// A line on standard input is an orderly stop. End of file without one means that the test process
/// is gone; nobody else is left to remove its scratch directory then.
///
/// The end of the test process orphans the guard's process group. If the guarded process is stopped
/// at that moment, the kernel sends the group a hang-up, which must not end the guard.
///
/// Descriptor 3 keeps the pipe away from the guarded process; the guard lets go of standard output
/// so that its end of file means that the guarded process has ended.
const SCRIPT: &str = r#"
trap '' HUP
exec 3<&0
/bin/sh -c 'echo $$; exec "$@"' sh "$@" 3<&- </dev/null &
exec >/dev/null
if read -r _ <&3; then orderly=1; fi
kill -KILL $! 2>/dev/null
wait $! 2>/dev/null
status=$?
if [ -z "$orderly" ] && [ -n "$TESTKIT_SCRATCH" ]; then rm -rf "$TESTKIT_SCRATCH"; fi
exit $status
"#;

/// Standard output of a guarded process, line by line.
pub(crate) type Output = Lines<BufReader<pipe::Receiver>>;

/// A guarded process; dropping this kills and reaps it.
pub(crate) struct Guard {
    shell: Child,
    pipe: Option<ChildStdin>,
    pid: Pid,
}

impl Guard {
    /// Starts the program, arguments and environment of `command` under a guard. Standard error of
    /// both goes to `stderr`; `scratch` is removed if the test process cannot do it any more.
    pub(crate) async fn spawn(
        command: &Command,
        scratch: Option<&Path>,
        stderr: impl Into<Stdio>,
    ) -> io::Result<(Self, Output)> {
        let envs = command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        let mut guard = Command::new("/bin/sh");
        guard
            .args(["-c", SCRIPT, "guard"])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(envs)
            .env("TESTKIT_SCRATCH", scratch.unwrap_or(Path::new("")))
            // An interrupt from the terminal must reach the test process, not its guards.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let mut shell = guard.spawn()?;
        let pipe = shell.stdin.take();
        let stdout = shell.stdout.take().expect("stdout is piped");
        let receiver = pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?;
        let mut output = BufReader::new(receiver).lines();
        let first = output.next_line().await?.unwrap_or_default();
        let pid = first.parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other(format!("no process id in {first:?}")))?;
        Ok((Self { shell, pipe, pid }, output))
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(rustix::process::kill_process(self.pid, signal)?)
    }

    /// Kills the process unless it has ended, reaps it, and returns the status it ended with.
    pub(crate) fn stop(&mut self) -> io::Result<ExitStatus> {
        if let Some(mut pipe) = self.pipe.take() {
            // A guard that is gone has nothing left to stop.
            let _ = pipe.write_all(b"stop\n");
        }
        self.shell.wait()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The status of a process that nobody asked about is of no interest.
        let _ = self.stop();
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}
