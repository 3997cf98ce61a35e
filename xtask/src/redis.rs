//! A Redis server of our own on a free port, for `demo --redis`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Process, TempDir};
use crate::sh::Result;

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(20);

/// A server that keeps nothing on disk and ends with this value.
pub(crate) struct Redis {
    // Declared before the folder, so that the server is gone when its folder goes.
    _process: Process,
    _dir: TempDir,
    port: u16,
}

impl Redis {
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        let dir = TempDir::new("redis")?;
        let port = free_port()?;
        let mut process =
            Process::spawn("the Redis server", &mut command(binary, port, dir.path()))?;
        let deadline = Instant::now() + START;
        while !answers(port) {
            if let Some(status) = process.child().try_wait()? {
                return Err(format!("the Redis server on port {port} ended with {status}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("the Redis server on port {port} does not answer").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self {
            _process: process,
            _dir: dir,
            port,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

fn command(binary: &Path, port: u16, dir: &Path) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .args(["--maxmemory-policy", "noeviction", "--loglevel", "warning"])
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn answers(port: u16) -> bool {
    let ping = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply)?;
        Ok(reply)
    };
    ping().is_ok_and(|reply| reply == "+PONG\r\n")
}
