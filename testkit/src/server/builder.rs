//! Describing a server before it starts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Mutex, atomic::AtomicBool},
};

use tokio::task::JoinSet;

use super::{Access, Launch, Mode, RedisServer, conf::quote, ports, tls::Tls};
use crate::{FaultProxy, certs::Certificate};

/// How many free ports may be lost to somebody quicker before giving up.
const PORT_ATTEMPTS: usize = 10;

/// What a [`RedisServer`] is started with.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RedisServerBuilder {
    mode: Mode,
    keeps_conf: bool,
    access: Access,
    lines: Vec<String>,
    append_only: bool,
    unix_socket: bool,
    tls: Option<Certificate>,
    tls_client_auth: bool,
    dir: Option<PathBuf>,
}

impl RedisServerBuilder {
    /// Lets [`USER`](super::USER) do what `words` of an ACL say as well, such as
    /// `"~shop:* &shop:b1:* +incr"`: what the code under test needs in production is in
    /// `deploy/users.acl`, and this is for the test's own commands.
    ///
    /// # Panics
    ///
    /// If the server was given other users than those of production.
    pub fn allow(mut self, words: &str) -> Self {
        self.access.allow(words);
        self
    }

    /// Has no users but the default one, who may do everything.
    pub fn open(mut self) -> Self {
        self.access = Access::Open { password: None };
        self
    }

    /// Requires `password` of the default user, who is the only one and may do everything.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.access = Access::Open {
            password: Some(password.into()),
        };
        self
    }

    /// Adds a line of `redis.conf`, such as `("maxmemory", "10mb")`. A later one wins.
    pub fn arg(mut self, directive: &str, value: &str) -> Self {
        self.lines.push(format!("{directive} {value}"));
        self
    }

    /// Takes the users from `text`, lines of a `users.acl`, in place of those of production. No URL
    /// has one of them in it.
    ///
    /// [`RedisServer::connection`] and everything that the fixture does itself use a user of its own,
    /// which is added to them, so that the text may turn the default user off.
    pub fn users(mut self, text: impl Into<String>) -> Self {
        self.access = Access::Users(text.into());
        self
    }

    /// Takes the users from the file `path` as it is now, see [`users`](Self::users).
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn acl_file(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        self.users(text)
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

    /// Listens with TLS as well, on a port of its own, and shows `certificate` there.
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self.tls = Some(certificate.clone());
        self
    }

    /// Wants a certificate of the same authority from each TLS client.
    pub fn tls_client_auth(mut self, yes: bool) -> Self {
        self.tls_client_auth = yes;
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
        self.start_behind(false).await.0
    }

    /// Starts the server, if `proxied` behind a proxy whose address it announces.
    async fn start_behind(self, proxied: bool) -> (RedisServer, Option<FaultProxy>) {
        for _ in 0..PORT_ATTEMPTS {
            let port = self.free_port();
            let proxy = if proxied {
                Some(FaultProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await)
            } else {
                None
            };
            let announced = proxy.as_ref().map(|proxy| proxy.addr().port());
            let server = self.prepare(port, announced);
            server.write_conf();
            match server.launch().await {
                Ok(()) => return (server, proxy),
                Err(Launch::PortTaken) => {}
                Err(Launch::Failed(log)) => panic!("the server ended at once, its log:\n{log}"),
            }
        }
        panic!("lost {PORT_ATTEMPTS} free ports in a row to other processes");
    }

    fn free_port(&self) -> u16 {
        match self.mode {
            Mode::Single if !self.keeps_conf => ports::free(),
            _ => ports::free_with_bus(),
        }
    }

    fn prepare(&self, port: u16, announced: Option<u16>) -> RedisServer {
        let scratch = self.dir.is_none().then(|| {
            let dir = tempfile::Builder::new().prefix("testkit-redis-").tempdir();
            dir.expect("the temporary directory is writable")
        });
        let dir = match (&self.dir, &scratch) {
            (Some(dir), _) => dir.clone(),
            (None, scratch) => scratch.as_ref().expect("made above").path().to_owned(),
        };
        let mut lines = self.fixture_lines(&dir);
        lines.extend(announced.map(|announced| self.mode.announcing(port, announced)));
        let tls = self.tls.clone().map(|certificate| Tls {
            port: self.free_port(),
            certificate,
        });
        lines.extend(tls.iter().map(|tls| tls.conf(self.tls_client_auth)));
        lines.extend(self.lines.iter().cloned());
        RedisServer {
            mode: self.mode.clone(),
            port,
            unix_socket: self.unix_socket.then(|| dir.join("redis.sock")),
            dir,
            lines,
            tls,
            access: Mutex::new(self.access.clone()),
            keeps_conf: self.keeps_conf,
            frozen: AtomicBool::new(false),
            guard: Mutex::new(None),
            scratch,
        }
    }

    /// What differs from production before the test has its say.
    fn fixture_lines(&self, dir: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        if !matches!(self.mode, Mode::Sentinel(_)) {
            let append_only = if self.append_only { "yes" } else { "no" };
            lines.push("save \"\"".to_owned());
            lines.push(format!("appendonly {append_only}"));
        }
        if let Some(users) = self.access.file(&self.mode) {
            let file = dir.join("users.acl");
            std::fs::write(&file, users).expect("the server's directory is writable");
            lines.push(format!("aclfile \"{}\"", file.display()));
        }
        lines
    }

    /// Starts a server of another kind.
    pub(crate) fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Where the users come from.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// Lets the server log in to its primary if it becomes a replica.
    pub(crate) fn replicating(mut self) -> Self {
        let Some(login) = self.access.peer("replica") else {
            return self;
        };
        if let Some(user) = login.user {
            self = self.arg("masteruser", user);
        }
        self.arg("masterauth", &quote(&login.password))
    }

    /// Lets the server, the other ones of its group and their clients talk to each other with TLS only.
    pub(crate) fn group_tls(self, certificate: &Certificate) -> Self {
        self.tls(certificate).arg("tls-replication", "yes")
    }

    /// Lets a restart go on with the configuration file as the server has rewritten it.
    pub(crate) fn keeps_conf(mut self) -> Self {
        self.keeps_conf = true;
        self
    }
}

/// Starts several servers at the same time, if `proxied` each behind a proxy whose address it
/// announces.
pub(crate) async fn start_all(
    builders: Vec<RedisServerBuilder>,
    proxied: bool,
) -> (Vec<RedisServer>, Vec<FaultProxy>) {
    let mut starting = JoinSet::new();
    for (index, builder) in builders.into_iter().enumerate() {
        starting.spawn(async move { (index, builder.start_behind(proxied).await) });
    }
    let mut started = starting.join_all().await;
    started.sort_by_key(|(index, _)| *index);
    let (servers, proxies): (Vec<_>, Vec<_>) = started.into_iter().map(|(_, one)| one).unzip();
    (servers, proxies.into_iter().flatten().collect())
}
