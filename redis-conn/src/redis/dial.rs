//! Making one connection: socket, handshake, name.

use std::{future::Future, io, sync::Arc, time::Duration};

use ::redis::{
    AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;

use super::classify;
use crate::{Config, Error, ErrorKind, config::Endpoint, trace::event};

/// How many commands wait for the socket before the senders wait; the client's own default of 50 wakes too often.
const PIPELINE_BUFFER: usize = 1024;

/// Makes connections to the one server.
#[derive(Debug)]
pub(super) struct Dialer {
    config: Config,
    client_name: String,
}

/// A connection that answers, and the task that drives it: when the task ends, the connection is dead, and dropping the task
/// ends the connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: AbortOnDropHandle<()>,
}

type Pushes = Option<Arc<dyn AsyncPushSender>>;

impl Dialer {
    pub(super) fn new(config: Config, client_name: &str) -> Self {
        // The server refuses a name with spaces or control characters.
        let visible = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        Self {
            config,
            client_name: client_name.chars().map(visible).collect(),
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// One attempt, bounded by the dial timeout.
    pub(super) async fn dial(&self, pushes: Pushes) -> Result<Connection, Error> {
        let limit = self.config.dial_timeout();
        match tokio::time::timeout(limit, self.connect(pushes)).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("no connection within {limit:?}"),
            )),
        }
    }

    async fn connect(&self, pushes: Pushes) -> Result<Connection, Error> {
        let connection = match self.config.endpoint() {
            Endpoint::Tcp { host, port } => {
                let socket = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(unreachable)?;
                self.tune(&socket).map_err(unreachable)?;
                self.handshake(socket, pushes).await?
            }
            #[cfg(unix)]
            Endpoint::Unix(path) => {
                let socket = tokio::net::UnixStream::connect(path)
                    .await
                    .map_err(unreachable)?;
                self.handshake(socket, pushes).await?
            }
            #[cfg(not(unix))]
            Endpoint::Unix(_) => {
                return Err(Error::new(
                    ErrorKind::Config,
                    "this system has no unix sockets",
                ));
            }
        };
        self.introduce(connection).await
    }

    /// Without these a peer that vanished is noticed after minutes: keepalive covers an idle socket, the user timeout one with
    /// unacknowledged data.
    fn tune(&self, socket: &TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let socket = SockRef::from(socket);
        if let Some(idle) = self.config.keep_alive() {
            let probes = TcpKeepalive::new()
                .with_time(idle)
                .with_interval(Duration::from_secs(5));
            #[cfg(not(any(target_os = "openbsd", target_os = "windows")))]
            let probes = probes.with_retries(3);
            socket.set_tcp_keepalive(&probes)?;
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket.set_tcp_user_timeout(Some(self.user_timeout()))?;
        Ok(())
    }

    /// Long enough for a few retransmissions, however impatient the callers are.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn user_timeout(&self) -> Duration {
        (self.config.command_timeout() * 2).max(Duration::from_secs(5))
    }

    async fn handshake<S>(&self, socket: S, pushes: Pushes) -> Result<Connection, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Deadlines belong to the caller of a command, not to the connection.
        let mut settings = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        if let Some(pushes) = pushes {
            settings = settings.set_push_sender(pushes);
        }
        let (commands, driver) =
            MultiplexedConnection::new_with_config(&self.credentials(), socket, settings)
                .await
                .map_err(classify::dial)?;
        Ok(Connection {
            commands,
            driver: spawn(driver),
        })
    }

    fn credentials(&self) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(i64::from(self.config.db()))
            .set_skip_set_lib_name();
        if let Some(username) = self.config.username() {
            info = info.set_username(username);
        }
        if let Some(password) = self.config.password() {
            info = info.set_password(password);
        }
        info
    }

    /// Gives the connection a name and asks whether the server serves: one that still loads its data accepts connections too.
    async fn introduce(&self, mut connection: Connection) -> Result<Connection, Error> {
        let mut name = ::redis::cmd("CLIENT");
        name.arg("SETNAME").arg(&self.client_name);
        let ping = ::redis::cmd("PING");
        let mut namer = connection.commands.clone();
        let (named, alive) = tokio::join!(
            namer.send_packed_command(&name),
            connection.commands.send_packed_command(&ping)
        );
        // The name is for people who look at the server: one that refuses it is used all the same.
        if let Value::ServerError(refusal) = named.map_err(classify::dial)? {
            event!(
                warn,
                "the server refused CLIENT SETNAME: {}",
                refusal.code()
            );
        }
        match alive.map_err(classify::dial)? {
            Value::ServerError(refusal) if refusal.code() != "NOPERM" => {
                Err(classify::refusal(&refusal).error)
            }
            _ => Ok(connection),
        }
    }
}

fn spawn(driver: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(driver))
}

fn unreachable(error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "the server cannot be reached").with_source(error)
}
