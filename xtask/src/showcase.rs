//! The showcase as a child process: built, started, asked and stopped from outside.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::http::Client;
use crate::process::Process;
use crate::sh::{self, Result};

/// How long it may take until it listens, on a machine that is busy with other things.
const START: Duration = Duration::from_secs(60);
/// What the showcase promises between SIGTERM and its end.
const STOP: Duration = Duration::from_secs(10);

/// Builds the showcase and returns its binary.
pub(crate) fn build() -> Result<PathBuf> {
    let messages = sh::output(&mut sh::cargo(&[
        "build",
        "--package",
        "showcase",
        "--message-format",
        "json-render-diagnostics",
    ]))?;
    messages
        .lines()
        .filter_map(|message| message.split_once("\"executable\":\"")?.1.split_once('"'))
        .map(|(path, _)| PathBuf::from(path))
        .next_back()
        .ok_or_else(|| "cargo built the showcase, but named no executable".into())
}

/// One running instance, stopped on drop.
pub(crate) struct Showcase {
    process: Process,
    /// Where it listens, as `127.0.0.1:PORT`.
    pub(crate) address: String,
    /// The backend it says it uses.
    pub(crate) backend: String,
}

impl Showcase {
    /// Starts `binary` on a free port; it sees `settings` and nothing else of our environment.
    pub(crate) fn start(binary: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(binary);
        command
            .env_clear()
            .envs([("PORT", "0"), ("RUST_LOG", "warn")])
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::spawn("the showcase", &mut command)?;
        let stdout = process.child().stdout.take();
        let (sender, first_line) = mpsc::channel();
        // Reads on until the end, so that the child never meets a closed or a full pipe.
        thread::spawn(move || {
            for line in stdout
                .into_iter()
                .flat_map(|out| BufReader::new(out).lines())
            {
                let _ = sender.send(line);
            }
        });
        let line = first_line
            .recv_timeout(START)
            .map_err(|_| "the showcase did not say that it listens")??;
        let (address, backend) =
            start_line(&line).ok_or_else(|| format!("not the start line: {line:?}"))?;
        Ok(Self {
            process,
            address: address.to_owned(),
            backend: backend.to_owned(),
        })
    }

    /// Fails unless GET `path` answers 200.
    pub(crate) fn expect_ok(&self, path: &str) -> Result {
        let answer = Client::connect(&self.address)?.get(path, &[])?;
        match answer.status {
            200 => Ok(()),
            status => Err(format!("GET {path} answered {status}: {}", answer.body).into()),
        }
    }

    /// Stops it as an operator would, and fails unless it ends well and in time.
    pub(crate) fn stop(self) -> Result {
        let status = self.process.terminate(STOP)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the showcase ended with {status} after SIGTERM").into())
        }
    }
}

/// `listening on http://ADDRESS backend=BACKEND`, taken apart.
fn start_line(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("listening on http://")?
        .split_once(" backend=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_line_names_address_and_backend() {
        assert_eq!(
            start_line("listening on http://127.0.0.1:4000 backend=redis-single"),
            Some(("127.0.0.1:4000", "redis-single"))
        );
        assert_eq!(start_line("listening on 127.0.0.1:4000"), None);
    }

    #[test]
    fn a_process_that_says_something_else_is_refused() {
        let error = Showcase::start(Path::new("/bin/ls"), &[]).err().unwrap();
        assert!(error.to_string().contains("start line"), "{error}");
    }
}
