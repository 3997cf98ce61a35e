//! One server process in a folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::files::{self, REPLICA};
use super::resp::Client;
use super::{Home, wait_until};
use crate::guard::Guard;
use crate::sh::Result;

const LOG: &str = "server.log";

pub(super) struct Server {
    name: String,
    port: u16,
    guard: Guard,
    log: PathBuf,
}

/// What one server is started with.
pub(super) struct Plan {
    /// A file in deploy/.
    pub(super) conf: &'static str,
    /// Its text, perhaps changed.
    pub(super) text: String,
    pub(super) args: &'static [&'static str],
}

impl Plan {
    pub(super) fn new(conf: &'static str) -> Result<Self> {
        Ok(Self {
            conf,
            text: files::read(conf)?,
            args: &[],
        })
    }

    /// A server that a replica can follow and that can become a replica.
    pub(super) fn replicated(conf: &'static str) -> Result<Self> {
        let mut plan = Self::new(conf)?;
        plan.add(&format!("masteruser {REPLICA}"));
        plan.add(&format!("masterauth {}", files::password(REPLICA)?));
        Ok(plan)
    }

    /// Adds a line; of two for the same directive the last one holds.
    pub(super) fn add(&mut self, line: &str) {
        self.text += line;
        self.text.push('\n');
    }
}

impl Server {
    /// Starts a server; it need not answer yet.
    pub(super) fn start(home: &Home, name: String, port: u16, mut plan: Plan) -> Result<Self> {
        let dir = home.dir().join(&name);
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        plan.add(&format!("port {port}"));
        plan.add("bind 127.0.0.1");
        plan.add(&format!("dir \"{}\"", dir.display()));
        plan.add(&format!("logfile {LOG}"));
        plan.add("daemonize no");
        files::install(&dir, plan.conf, &plan.text)?;

        let mut command = Command::new(home.binary());
        command
            .arg(files::base(plan.conf))
            .args(plan.args)
            .current_dir(&dir);
        let scratch = home.is_temporary().then_some(dir.as_path());
        Ok(Self {
            guard: Guard::spawn(&name, &command, scratch)?,
            log: dir.join(LOG),
            name,
            port,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What a person sees of it.
    pub(super) fn line(&self) -> String {
        format!(
            "{:<11} {}  pid {}",
            self.name,
            self.address(),
            self.guard.pid()
        )
    }

    pub(super) fn client(&self) -> Result<Client> {
        Client::connect(self.port)
    }

    /// Waits until `ready`, and fails at once when the process has ended.
    pub(super) fn wait(&self, what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result {
        let mut ended = false;
        wait_until(&format!("{what} of {}", self.name), || {
            ended = self.guard.has_ended();
            if ended { Ok(true) } else { ready() }
        })?;
        if ended {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            return Err(format!("{} ended at once, its log:\n{log}", self.name).into());
        }
        Ok(())
    }

    /// Waits until it answers the operator.
    pub(super) fn wait_for_answer(&self) -> Result {
        self.wait("the first answer", || {
            self.client()?.call(&["PING"]).map(|_| true)
        })
    }
}
