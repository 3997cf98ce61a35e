//! The configuration of a Redis backend, and the environment variables that choose a backend.

mod builder;
mod check;
mod de;
mod env;
mod error;
mod secret;
mod url;
mod variables;

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

pub use self::{
    builder::ConfigBuilder,
    error::{ConfigError, ConfigErrors, FromEnvError},
};
pub(crate) use self::{
    check::{INSTANCE, is_instance},
    env::{Selected, Settings},
    variables::SQLITE_PATH,
};
use self::{secret::Secret, url::Target};

/// How to reach a Redis or Valkey server, and how patient to be with it.
///
/// A value of this type is always valid: it comes from [`Config::builder`], from [`Config::from_url`], or from a configuration
/// file through serde, and each of them reports everything that is wrong at once. No output of it contains the password.
///
/// ```
/// use std::time::Duration;
/// use redis_conn::{Config, Endpoint};
///
/// # fn main() -> Result<(), redis_conn::ConfigErrors> {
/// let config = Config::builder(Endpoint::tcp("10.0.0.7", 6379))
///     .password("hunter2-and-more")
///     .command_timeout(Duration::from_secs(2))
///     .build()?;
/// assert_eq!(config.endpoint().to_string(), "10.0.0.7:6379");
/// assert!(!format!("{config:?}").contains("hunter2"));
/// # Ok(()) }
/// ```
///
/// # With serde
///
/// The fields are those of [`ConfigBuilder`]. The server is `url`, or `host` with an optional `port`, or `socket`. A duration is a
/// number of milliseconds or a text such as `"250ms"`, `"5s"`, `"2m"`; `keep_alive` may be `false` too. Unknown fields are errors.
///
/// ```
/// use redis_conn::Config;
///
/// # fn main() -> Result<(), serde_json::Error> {
/// let config: Config = serde_json::from_str(r#"{ "host": "10.0.0.7", "db": 2, "command_timeout": "2s" }"#)?;
/// assert_eq!(config.command_timeout().as_millis(), 2_000);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "de::Raw")]
pub struct Config {
    endpoint: Endpoint,
    username: Option<String>,
    password: Option<Secret>,
    db: u32,
    connect_timeout: Duration,
    dial_timeout: Duration,
    command_timeout: Duration,
    keep_alive: Option<Duration>,
    max_in_flight: usize,
    pool_size: u32,
    lanes: Option<usize>,
    required: bool,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// A host name or an address; an IPv6 address is written without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// The port on which servers listen unless told otherwise.
    pub const DEFAULT_PORT: u16 = 6379;

    /// A TCP port.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        Self::Tcp { host, port }
    }

    /// A Unix domain socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::Unix(path.into())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Config {
    pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
    pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
    pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
    pub(crate) const MAX_IN_FLIGHT: usize = 4_096;
    pub(crate) const POOL_SIZE: u32 = 8;

    /// Starts from this server and the defaults.
    pub fn builder(endpoint: Endpoint) -> ConfigBuilder {
        ConfigBuilder::new(Self::unchecked(endpoint))
    }

    /// Starts from this value, to change some of it.
    pub fn into_builder(self) -> ConfigBuilder {
        ConfigBuilder::new(self)
    }

    /// Reads a URL.
    ///
    /// `redis://[[user]:password@]host[:port][/db]` and `unix://[[user]:password@]/path/to/socket[?db=N]`. `valkey://` means the
    /// same as `redis://`, and `redis+unix://` the same as `unix://`. The query may contain `db=N`, where the path does not, and
    /// `protocol=3`, which is what is spoken in any case. Reserved characters of user, password and path are percent-encoded.
    ///
    /// ```
    /// use redis_conn::{Config, Endpoint};
    ///
    /// # fn main() -> Result<(), redis_conn::ConfigErrors> {
    /// let config = Config::from_url("redis://app:p%40ss@cache.internal/2")?;
    /// assert_eq!(config.endpoint(), &Endpoint::tcp("cache.internal", 6379));
    /// assert_eq!((config.username(), config.db()), (Some("app"), 2));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// What is wrong with the URL. `rediss://` is refused, because TLS is not available yet. The text never contains the password.
    pub fn from_url(url: &str) -> Result<Self, ConfigErrors> {
        let wrong = |expected| ConfigError::new("url", &url::masked(url), expected);
        let target = url::parse(url).map_err(wrong)?;
        Ok(Self::at(target))
    }

    fn unchecked(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            username: None,
            password: None,
            db: 0,
            connect_timeout: Self::CONNECT_TIMEOUT,
            dial_timeout: Self::DIAL_TIMEOUT,
            command_timeout: Self::COMMAND_TIMEOUT,
            keep_alive: Some(Self::KEEP_ALIVE),
            max_in_flight: Self::MAX_IN_FLIGHT,
            pool_size: Self::POOL_SIZE,
            lanes: None,
            required: false,
        }
    }

    fn at(target: Target) -> Self {
        Self {
            username: target.username,
            password: target.password,
            db: target.db,
            ..Self::unchecked(target.endpoint)
        }
    }

    /// Where the server listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The ACL user; `None` is the server's default user.
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// Whether a password is set. The password itself cannot be read back.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    #[cfg(feature = "redis")]
    pub(crate) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(Secret::reveal)
    }

    /// The number of the database.
    pub fn db(&self) -> u32 {
        self.db
    }

    /// How long a start that needs the server waits until it first answers.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How long one attempt to connect may take, handshake included.
    pub fn dial_timeout(&self) -> Duration {
        self.dial_timeout
    }

    /// The deadline of operations that have no tighter one of their own.
    pub fn command_timeout(&self) -> Duration {
        self.command_timeout
    }

    /// After which silence TCP asks whether the peer is still there; `None` is never.
    pub fn keep_alive(&self) -> Option<Duration> {
        self.keep_alive
    }

    /// How many commands may wait for a reply on one lane; further ones fail at once.
    pub fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    /// How many connections for exclusive use there may be.
    pub fn pool_size(&self) -> u32 {
        self.pool_size
    }

    /// How many connections all commands share; `None` lets the number of cores decide.
    pub fn lanes(&self) -> Option<usize> {
        self.lanes
    }

    /// Whether [`Backend::from_env`](crate::Backend::from_env) fails if the server does not answer within the connect timeout.
    pub fn is_required(&self) -> bool {
        self.required
    }
}
