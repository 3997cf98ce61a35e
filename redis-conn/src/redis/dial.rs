//! Making one connection: socket, TLS, handshake, name, and whether the server behind it serves.

use std::{future::Future, io, sync::Arc, time::Duration};

use ::redis::{
    AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{
    fault::{Failure, Fault},
    greeting::{Greeting, Mode, Version},
    heard::Heard,
    socket::{self, BoxSocket, Ending},
};
use crate::{
    Config, Error, ErrorKind,
    config::{Endpoint, Login},
    trace::event,
};

/// How many commands wait for the socket before the senders wait; the client's own default of 50 wakes too often.
const PIPELINE_BUFFER: usize = 1024;

/// Makes connections of one configuration.
#[derive(Debug)]
pub(super) struct Dialer {
    config: Config,
    client_name: String,
    mode: Mode,
}

/// A connection that answers, and the task that drives it: when the task ends, the connection is dead, and dropping the task
/// ends the connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    pub(super) driver: AbortOnDropHandle<()>,
    pub(super) greeting: Greeting,
    pub(super) heard: Heard,
}

/// What a connection is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Purpose {
    /// Commands of everybody.
    Lane,
    /// Reads from a replica of a cluster, which answers them only if told so.
    Reads,
    /// Exclusive use.
    Pool,
    /// Subscriptions.
    Bus,
    /// Asking where everything is.
    Survey,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Reads => "reads",
            Self::Pool => "pool",
            Self::Bus => "bus",
            Self::Survey => "survey",
        }
    }
}

pub(super) type Pushes = Option<Arc<dyn AsyncPushSender>>;

impl Dialer {
    /// For servers that run in this mode.
    pub(super) fn new(config: Config, client_name: &str, mode: Mode) -> Self {
        // The server refuses a name with spaces or control characters.
        let visible = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        let name = config.connection_name().unwrap_or(client_name);
        Self {
            client_name: name.chars().map(visible).collect(),
            config,
            mode,
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// One attempt, bounded by the dial timeout. A login that is refused is read anew, because it may have been changed meanwhile.
    pub(super) async fn dial(
        &self,
        endpoint: &Endpoint,
        purpose: Purpose,
        pushes: Pushes,
    ) -> Result<Connection, Failure> {
        let limit = Limit::new(self.config.dial_timeout());
        let login = self.login(&limit).await?;
        let dialled = self.connect(endpoint, purpose, pushes.clone(), login.as_ref(), &limit);
        let refused = match dialled.await {
            Err(failure) if is_refused_login(&failure) => failure,
            dialled => return dialled,
        };
        let changed = self.login(&limit).await?;
        if changed == login {
            return Err(refused);
        }
        self.connect(endpoint, purpose, pushes, changed.as_ref(), &limit)
            .await
    }

    async fn login(&self, limit: &Limit) -> Result<Option<Login>, Failure> {
        let refused = |error| Failure::new(Fault::Credentials, error);
        let login = async {
            let login = match self.mode {
                Mode::Sentinel => self.config.sentinel_login().await,
                Mode::Standalone | Mode::Cluster => self.config.login().await,
            };
            login.map_err(refused)
        };
        // A source of credentials that is silent is asked again as seldom as one that has none.
        let login = limit.bound("no credentials", login).await;
        login.map_err(|failure| refused(failure.error))
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        purpose: Purpose,
        pushes: Pushes,
        login: Option<&Login>,
        limit: &Limit,
    ) -> Result<Connection, Failure> {
        let opened = async {
            socket::open(endpoint, &self.config)
                .await
                .map_err(unreachable)
        };
        let socket = limit.bound("no connection", opened).await?;
        let ending = Ending::default();
        let secured = self.secure(endpoint, socket, &ending);
        let silent = "no TLS handshake: the server is silent, or does not speak TLS on this port,";
        let socket = limit.bound(silent, secured).await?;
        let greeted = self.greet(socket, purpose, pushes, login);
        let greeted = limit.bound("no answer to the greeting", greeted).await;
        greeted.map_err(|failure| ending.get().cloned().unwrap_or(failure))
    }

    async fn greet(
        &self,
        socket: BoxSocket,
        purpose: Purpose,
        pushes: Pushes,
        login: Option<&Login>,
    ) -> Result<Connection, Failure> {
        // Deadlines belong to the caller of a command, not to the connection.
        let mut settings = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_BUFFER);
        if let Some(pushes) = pushes {
            settings = settings.set_push_sender(pushes);
        }
        let heard = Heard::default();
        let socket = heard.listening(socket);
        let (commands, driver) =
            MultiplexedConnection::new_with_config(&self.info(login), socket, settings)
                .await
                .map_err(Failure::of_dial)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let connection = (commands, driver, heard);
        self.introduce(connection, purpose).await
    }

    #[cfg(feature = "tls")]
    async fn secure(
        &self,
        endpoint: &Endpoint,
        socket: BoxSocket,
        ending: &Ending,
    ) -> Result<BoxSocket, Failure> {
        match self.config.tls() {
            Some(tls) => super::tls::secure(tls, endpoint, socket, ending).await,
            None => Ok(socket),
        }
    }

    /// A configuration that asks for TLS is refused when it is built.
    #[cfg(not(feature = "tls"))]
    async fn secure(
        &self,
        _: &Endpoint,
        socket: BoxSocket,
        _: &Ending,
    ) -> Result<BoxSocket, Failure> {
        Ok(socket)
    }

    fn info(&self, login: Option<&Login>) -> RedisConnectionInfo {
        let db = match self.mode {
            Mode::Standalone => i64::from(self.config.db()),
            // They have one database.
            Mode::Cluster | Mode::Sentinel => 0,
        };
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(db)
            .set_skip_set_lib_name();
        if let Some(login) = login {
            if let Some(username) = login.username() {
                info = info.set_username(username);
            }
            info = info.set_password(login.password());
        }
        info
    }

    /// Asks who is there and whether it serves (one that still loads its data accepts connections too), and gives the connection a
    /// name.
    async fn introduce(
        &self,
        connection: (MultiplexedConnection, AbortOnDropHandle<()>, Heard),
        purpose: Purpose,
    ) -> Result<Connection, Failure> {
        let (mut commands, driver, heard) = connection;
        let mut asked = ::redis::pipe();
        asked
            .cmd("HELLO")
            .arg(3)
            .cmd("CLIENT")
            .arg("SETNAME")
            .arg(format!("{}:{}", self.client_name, purpose.as_str()));
        // A sentinel has no data to load.
        if self.mode != Mode::Sentinel {
            asked.cmd("PING");
        }
        if purpose == Purpose::Reads {
            asked.cmd("READONLY");
        }
        let count = asked.cmd_iter().count();
        let answers = commands.send_packed_commands(&asked, 0, count).await;
        let answers = answers.map_err(Failure::of_dial)?;
        let [hello, named, serving @ ..] = answers.as_slice() else {
            return Err(Failure::away(
                "the server did not answer all that it was asked",
            ));
        };
        if let Value::ServerError(refusal) = hello {
            return Err(Failure::of_greeting(refusal));
        }
        let greeting = Greeting::read(hello)?;
        greeting.check(self.mode)?;
        if let Some(Value::ServerError(refusal)) = serving.first() {
            let failure = Failure::of_greeting(refusal);
            let waits = failure.fault == Fault::Loading && !self.config.ready_check();
            // A user without the right to ask is none without the right to work.
            if refusal.code() != "NOPERM" && !waits {
                return Err(failure);
            }
        }
        // Without it every read would be sent on to the primary, and nobody would know.
        if let [_, Value::ServerError(refusal)] = serving {
            return Err(Failure::of_greeting(refusal));
        }
        // The name is for people who look at the server: one that refuses it is used all the same.
        if let Value::ServerError(refusal) = named {
            event!(
                warn,
                "the server refused CLIENT SETNAME: {}",
                refusal.code()
            );
        }
        Ok(Connection {
            commands,
            driver,
            greeting,
            heard,
        })
    }
}

impl Connection {
    pub(super) fn version(&self) -> Version {
        self.greeting.version
    }
}

fn unreachable(error: io::Error) -> Failure {
    let error =
        Error::new(ErrorKind::Unavailable, "the server cannot be reached").with_source(error);
    Failure::new(Fault::Away, error)
}

/// The server itself refused, rather than what lies below or what was found there.
fn is_refused_login(failure: &Failure) -> bool {
    failure.fault == Fault::Credentials && matches!(failure.error.kind(), ErrorKind::Server(_))
}

/// The time that all steps of one attempt have together.
struct Limit {
    time: Duration,
    end: Instant,
}

impl Limit {
    fn new(time: Duration) -> Self {
        let end = Instant::now() + time;
        Self { time, end }
    }

    /// Takes one step; `missing` is what there is not if it does not end in time.
    async fn bound<T>(
        &self,
        missing: &str,
        step: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match timeout_at(self.end, step).await {
            Ok(taken) => taken,
            Err(_) => Err(Failure::away(format!("{missing} within {:?}", self.time))),
        }
    }
}
