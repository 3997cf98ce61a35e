//! Describing a server before it starts.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::Mutex,
};

use super::{Launch, RedisServer};

/// How many free ports may be lost to somebody quicker before giving up.
const PORT_ATTEMPTS: usize = 10;

/// What a [`RedisServer`] is started with.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RedisServerBuilder {
    password: Option<String>,
    lines: Vec<String>,
    append_only: bool,
    unix_socket: bool,
    dir: Option<PathBuf>,
}

impl RedisServerBuilder {
    /// Requires `password` of the default user.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Adds a line of `redis.conf`, such as `("maxmemory", "10mb")`. A later one wins.
    pub fn arg(mut self, directive: &str, value: &str) -> Self {
        self.lines.push(format!("{directive} {value}"));
        self
    }

    /// Keeps an append-only file, so that data survives [`RedisServer::restart`].
    pub fn append_only(mut self, yes: bool) -> Self {
        self.append_only = yes;
        self
    }

    /// Listens on a unix socket as well, see [`RedisServer::unix_socket`].
    pub fn unix_socket(mut self, yes: bool) -> Self {
        self.unix_socket = yes;
        self
    }

    /// Works in `dir`, which must exist and is left alone afterwards, instead of in a temporary
    /// directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    ///
    /// If there is no server binary, or if the server does not answer within ten seconds.
    pub async fn start(self) -> RedisServer {
        for _ in 0..PORT_ATTEMPTS {
            let server = self.prepare(free_port());
            match server.launch().await {
                Ok(()) => return server,
                Err(Launch::PortTaken) => {}
                Err(Launch::Failed(log)) => panic!("the server ended at once, its log:\n{log}"),
            }
        }
        panic!("lost {PORT_ATTEMPTS} free ports in a row to other processes");
    }

    fn prepare(&self, port: u16) -> RedisServer {
        let scratch = self.dir.is_none().then(|| {
            let dir = tempfile::Builder::new().prefix("testkit-redis-").tempdir();
            dir.expect("the temporary directory is writable")
        });
        let dir = match (&self.dir, &scratch) {
            (Some(dir), _) => dir.clone(),
            (None, scratch) => scratch.as_ref().expect("made above").path().to_owned(),
        };
        let append_only = if self.append_only { "yes" } else { "no" };
        let mut lines = vec!["save \"\"".to_owned(), format!("appendonly {append_only}")];
        lines.extend(self.lines.iter().cloned());
        RedisServer {
            port,
            unix_socket: self.unix_socket.then(|| dir.join("redis.sock")),
            dir,
            lines,
            password: Mutex::new(self.password.clone()),
            guard: Mutex::new(None),
            scratch,
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback has a port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}
