//! A Redis server of one's own.

mod access;
mod admin;
mod binary;
mod builder;
mod conf;
mod ports;
mod tls;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::process::Signal;
use tempfile::TempDir;

pub(crate) use self::{
    access::{Access, Login},
    builder::start_all,
    conf::{Mode, quote, sentinel_line},
    ports::BUS_OFFSET,
};
pub use self::{
    access::{PASSWORD, USER},
    admin::CommandStat,
    builder::RedisServerBuilder,
};
use crate::{
    bound::{ASK_AGAIN, within},
    guard::{Guard, Output},
};

/// A `redis-server` (or `valkey-server`) on a free port of 127.0.0.1, in a directory of its own.
///
/// It is configured as `deploy/redis.conf` and `deploy/users.acl` say, but persists nothing unless
/// asked to: its URL leads to the user of services, [`USER`], with no rights but those of production.
/// [`connection`](Self::connection) may do everything. Dropping this kills it; so does the end of the
/// test process, however it ends.
///
/// All methods take `&self`, so that a test can share one server between its tasks.
#[derive(Debug)]
pub struct RedisServer {
    mode: Mode,
    port: u16,
    dir: PathBuf,
    lines: Vec<String>,
    unix_socket: Option<PathBuf>,
    tls: Option<tls::Tls>,
    access: Mutex<Access>,
    /// Whether a restart goes on with the file as the server has rewritten it.
    keeps_conf: bool,
    frozen: AtomicBool,
    guard: Mutex<Option<Guard>>,
    // Last: removed once the server that writes into it is gone.
    scratch: Option<TempDir>,
}

/// Why a server did not come up.
enum Launch {
    PortTaken,
    Failed(String),
}

impl RedisServer {
    /// Starts a server with the defaults and waits until it answers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts describing a server that differs from the defaults.
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The TCP address.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL to connect to, with [`USER`] and its password in it, or with the present password of
    /// the default user if that is all there is.
    pub fn url(&self) -> String {
        self.url_at(self.addr())
    }

    /// The [URL](Self::url) with `addr` in place of the server's own address.
    pub(crate) fn url_at(&self, addr: SocketAddr) -> String {
        format!("redis://{}{addr}", self.userinfo())
    }

    /// The path of the unix socket, if [`RedisServerBuilder::unix_socket`] asked for one.
    pub fn unix_socket(&self) -> Option<&Path> {
        self.unix_socket.as_deref()
    }

    /// The working directory, with `redis.conf`, `redis.log` and what the server persists.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// If the server has been killed.
    pub fn pid(&self) -> i32 {
        self.with_guard(|guard| guard.pid().as_raw_pid())
    }

    /// The present password of the default user.
    pub fn password(&self) -> Option<String> {
        match &*lock(&self.access) {
            Access::Open { password } => password.clone(),
            Access::Production { .. } | Access::Users(_) => None,
        }
    }

    /// Stops the process as SIGSTOP does: sockets stay open, the kernel still accepts connections,
    /// nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        self.frozen.store(true, Ordering::Relaxed);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Whether the process runs and is not frozen.
    pub fn is_live(&self) -> bool {
        lock(&self.guard).is_some() && !self.frozen.load(Ordering::Relaxed)
    }

    /// Kills the process; its port refuses connections once this returns.
    ///
    /// A frozen server dies as well. One that is already dead stays so.
    pub fn kill(&self) {
        drop(lock(&self.guard).take());
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Kills the server if it still runs, starts it on the same port and directory, and waits until
    /// it answers with its data. What it had not persisted is lost.
    pub async fn restart(&self) {
        self.kill();
        if !self.keeps_conf {
            self.write_conf();
        }
        within("the server's own port", async {
            loop {
                match self.launch().await {
                    Ok(()) => return,
                    // Somebody's outgoing connection was given the port while it was free.
                    Err(Launch::PortTaken) => tokio::time::sleep(ASK_AGAIN).await,
                    Err(Launch::Failed(log)) => panic!("the server did not come back:\n{log}"),
                }
            }
        })
        .await;
    }

    fn signal(&self, signal: Signal) {
        self.with_guard(|guard| {
            guard
                .signal(signal)
                .expect("an unreaped process takes signals")
        });
    }

    fn with_guard<T>(&self, act: impl FnOnce(&Guard) -> T) -> T {
        act(lock(&self.guard)
            .as_ref()
            .expect("the server has been killed"))
    }

    async fn launch(&self) -> Result<(), Launch> {
        let log = self.log_file();
        // A server that does not understand its configuration says so on standard error.
        let stderr = std::fs::File::create(&log).expect("the server's directory is writable");

        let mut command = Command::new(binary::find());
        // The log is searched for the system's messages.
        command.arg(self.conf_file()).env("LC_ALL", "C");
        if matches!(self.mode, Mode::Sentinel(_)) {
            command.arg("--sentinel");
        }
        let scratch = self.scratch.as_ref().map(TempDir::path);
        let (guard, mut output) = Guard::spawn(&command, scratch, stderr)
            .await
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let pid = guard.pid().as_raw_pid();
        let up = within("the server's first answer", async {
            tokio::select! {
                () = ended(&mut output) => false,
                () = self.answers_as(pid) => true,
            }
        })
        .await;
        if !up {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(if log.contains("ddress already in use") {
                Launch::PortTaken
            } else {
                Launch::Failed(log)
            });
        }
        *lock(&self.guard) = Some(guard);
        Ok(())
    }

    /// Waits until the process `pid`, and not a stranger on the same port, answers and has its data.
    async fn answers_as(&self, pid: i32) {
        let pid = pid.to_string();
        loop {
            if let Ok(info) = self.try_info("default").await
                && info.get("process_id") == Some(&pid)
                // Absent on a sentinel, which loads nothing.
                && info.get("loading").is_none_or(|loading| loading == "0")
            {
                return;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// What comes before the host in a URL.
    pub(crate) fn userinfo(&self) -> String {
        let login = lock(&self.access).service();
        login.map(|login| login.userinfo()).unwrap_or_default()
    }

    fn conf_file(&self) -> PathBuf {
        self.dir.join("redis.conf")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("redis.log")
    }
}

/// Waits until nobody holds the other end of `output`.
async fn ended(output: &mut Output) {
    while let Ok(Some(_)) = output.next_line().await {}
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
