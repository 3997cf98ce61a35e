//! The configuration of a Redis backend, and the environment variables that choose a backend.

mod builder;
mod check;
mod credentials;
mod de;
mod env;
mod error;
mod faults;
#[cfg(feature = "redis")]
mod login;
mod secret;
mod tls;
mod topology;
mod url;
mod variables;

use std::time::Duration;

use serde::Deserialize;

pub use self::{
    builder::ConfigBuilder,
    credentials::{Credentials, Login},
    error::{ConfigError, ConfigErrors, FromEnvError},
    tls::Tls,
    topology::{Endpoint, Family, ScaleReads, Topology},
};
pub(crate) use self::{
    check::{INSTANCE, is_instance},
    env::{Selected, Settings},
    variables::SQLITE_PATH,
};
use self::{credentials::Account, secret::Secret, url::Target};
#[cfg(feature = "redis")]
use crate::Error;

/// How to reach a Redis or Valkey server, and how patient to be with it.
///
/// A value of this type is always valid: it comes from [`Config::builder`], from [`Config::from_url`], or from a configuration
/// file through serde, and each of them reports everything that is wrong at once. No output of it contains the password.
///
/// ```
/// use std::time::Duration;
/// use redis_conn::{Config, Endpoint, Topology};
///
/// # fn main() -> Result<(), redis_conn::ConfigErrors> {
/// let config = Config::builder(Endpoint::tcp("10.0.0.7", 6379))
///     .password("hunter2-and-more")
///     .command_timeout(Duration::from_secs(2))
///     .build()?;
/// assert_eq!(config.topology(), &Topology::Single(Endpoint::tcp("10.0.0.7", 6379)));
/// assert!(!format!("{config:?}").contains("hunter2"));
/// # Ok(()) }
/// ```
///
/// # With serde
///
/// The fields are those of [`ConfigBuilder`]. The server is `url`, or `host` with an optional `port`, or `socket`; a cluster is a
/// list of `nodes`; sentinels are a list of `sentinels` and a `master_name`. A duration is a number of milliseconds or a text such as
/// `"250ms"`, `"5s"`, `"2m"`; `keep_alive` may be `false` too. `scale_reads` and `family` are written as the environment has them.
/// `tls` is `true`, `false`, or a table of `server_name`, `reject_unauthorized`, `ca_file`, `cert_file` and `key_file`. Unknown fields
/// are errors.
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
    topology: Topology,
    account: Account,
    sentinel_account: Account,
    db: u32,
    tls: Option<Tls>,
    connection_name: Option<String>,
    connect_timeout: Duration,
    dial_timeout: Duration,
    command_timeout: Duration,
    max_loading_timeout: Duration,
    retry_delay_on_failover: Duration,
    retry_delay_on_cluster_down: Duration,
    max_redirections: u32,
    max_retries: u32,
    scale_reads: ScaleReads,
    offline_queue: bool,
    ready_check: bool,
    lazy_connect: bool,
    family: Family,
    no_delay: bool,
    keep_alive: Option<Duration>,
    max_in_flight: usize,
    pool_size: u32,
    lanes: Option<usize>,
    required: bool,
}

impl Config {
    pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
    pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
    pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);
    pub(crate) const MAX_IN_FLIGHT: usize = 4_096;
    pub(crate) const POOL_SIZE: u32 = 8;
    pub(crate) const MAX_LOADING_TIMEOUT: Duration = Duration::from_secs(10);
    pub(crate) const RETRY_DELAY_ON_FAILOVER: Duration = Duration::from_millis(100);
    pub(crate) const RETRY_DELAY_ON_CLUSTER_DOWN: Duration = Duration::from_millis(300);
    pub(crate) const MAX_REDIRECTIONS: u32 = 16;
    pub(crate) const MAX_RETRIES: u32 = 3;

    /// Starts from this one server and the defaults.
    pub fn builder(endpoint: Endpoint) -> ConfigBuilder {
        ConfigBuilder::new(Self::unchecked(Topology::Single(endpoint)))
    }

    /// Starts from these nodes of a cluster and the defaults. The cluster is asked for the other nodes.
    pub fn cluster(nodes: impl IntoIterator<Item = Endpoint>) -> ConfigBuilder {
        let nodes = nodes.into_iter().collect();
        ConfigBuilder::new(Self::unchecked(Topology::Cluster { nodes }))
    }

    /// Starts from these sentinels, the name under which they know the master, and the defaults.
    pub fn sentinel(
        sentinels: impl IntoIterator<Item = Endpoint>,
        master: impl Into<String>,
    ) -> ConfigBuilder {
        let (sentinels, master) = (sentinels.into_iter().collect(), master.into());
        ConfigBuilder::new(Self::unchecked(Topology::Sentinel { sentinels, master }))
    }

    /// Starts from this value, to change some of it.
    pub fn into_builder(self) -> ConfigBuilder {
        ConfigBuilder::new(self)
    }

    /// Reads a URL.
    ///
    /// `redis://[[user]:password@]host[:port][/db]` and `unix://[[user]:password@]/path/to/socket[?db=N]`. `rediss://` is
    /// `redis://` through TLS. `valkey://` means the same as `redis://`, `valkeys://` as `rediss://`, `redis+unix://` as `unix://`. The query may contain `db=N`, where the path does not, and
    /// `protocol=3`, which is what is spoken in any case. Reserved characters of user, password and path are percent-encoded.
    ///
    /// ```
    /// use redis_conn::{Config, Endpoint, Topology};
    ///
    /// # fn main() -> Result<(), redis_conn::ConfigErrors> {
    /// let config = Config::from_url("redis://app:p%40ss@cache.internal/2")?;
    /// assert_eq!(config.topology(), &Topology::Single(Endpoint::tcp("cache.internal", 6379)));
    /// assert_eq!((config.username(), config.db()), (Some("app"), 2));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// What is wrong with the URL, or that the feature `tls` is off and it starts with `rediss://`. The text never contains the password.
    pub fn from_url(url: &str) -> Result<Self, ConfigErrors> {
        let wrong = |expected| ConfigError::new("url", &url::masked(url), expected);
        let target = url::parse(url).map_err(wrong)?;
        Self::at(target).into_builder().build()
    }

    fn unchecked(topology: Topology) -> Self {
        Self {
            topology,
            account: Account::default(),
            sentinel_account: Account::default(),
            db: 0,
            tls: None,
            connection_name: None,
            connect_timeout: Self::CONNECT_TIMEOUT,
            dial_timeout: Self::DIAL_TIMEOUT,
            command_timeout: Self::COMMAND_TIMEOUT,
            max_loading_timeout: Self::MAX_LOADING_TIMEOUT,
            retry_delay_on_failover: Self::RETRY_DELAY_ON_FAILOVER,
            retry_delay_on_cluster_down: Self::RETRY_DELAY_ON_CLUSTER_DOWN,
            max_redirections: Self::MAX_REDIRECTIONS,
            max_retries: Self::MAX_RETRIES,
            scale_reads: ScaleReads::Primary,
            offline_queue: false,
            ready_check: true,
            lazy_connect: false,
            family: Family::Any,
            no_delay: true,
            keep_alive: Some(Self::KEEP_ALIVE),
            max_in_flight: Self::MAX_IN_FLIGHT,
            pool_size: Self::POOL_SIZE,
            lanes: None,
            required: false,
        }
    }

    fn at(target: Target) -> Self {
        Self {
            account: Account {
                username: target.username,
                password: target.password,
                ..Account::default()
            },
            db: target.db,
            tls: target.tls.then(Tls::new),
            ..Self::unchecked(Topology::Single(target.endpoint))
        }
    }

    /// The servers, and how they form one backend.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The ACL user; `None` is the server's default user, or the one that a provider of credentials names.
    pub fn username(&self) -> Option<&str> {
        self.account.username.as_deref()
    }

    /// Whether there is a password, a file with one, or a provider of credentials. The password itself cannot be read back.
    pub fn has_password(&self) -> bool {
        self.account.has_password()
    }

    /// What to log in with at a server, read now; `None` is no login.
    ///
    /// # Errors
    ///
    /// `Config` if the password file cannot be used, or what a provider of credentials made of it.
    #[cfg(feature = "redis")]
    pub(crate) async fn login(&self) -> Result<Option<Login>, Error> {
        self.account.login().await
    }

    /// The same for the sentinels, who have users of their own.
    #[cfg(feature = "redis")]
    pub(crate) async fn sentinel_login(&self) -> Result<Option<Login>, Error> {
        self.sentinel_account.login().await
    }

    /// How connections are encrypted, those to sentinels included; `None` is not at all.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The name of the connections for people who look at the server; `None` is that of the instance.
    pub fn connection_name(&self) -> Option<&str> {
        self.connection_name.as_deref()
    }

    /// How long a server may load its data before that becomes an error.
    pub fn max_loading_timeout(&self) -> Duration {
        self.max_loading_timeout
    }

    /// How long to wait before a call is sent again after its server failed or was demoted.
    pub fn retry_delay_on_failover(&self) -> Duration {
        self.retry_delay_on_failover
    }

    /// How long to wait before a call is sent again after the cluster or the master was said to be down.
    pub fn retry_delay_on_cluster_down(&self) -> Duration {
        self.retry_delay_on_cluster_down
    }

    /// How many times a call follows the cluster to another node.
    pub fn max_redirections(&self) -> u32 {
        self.max_redirections
    }

    /// How many times an idempotent call is sent again.
    pub fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// Which servers answer the reads that a replica may answer.
    pub fn scale_reads(&self) -> ScaleReads {
        self.scale_reads
    }

    /// Whether calls wait, inside their deadline, while there is no connection.
    pub fn offline_queue(&self) -> bool {
        self.offline_queue
    }

    /// Whether a connection is used only once its server has loaded its data.
    pub fn ready_check(&self) -> bool {
        self.ready_check
    }

    /// Whether the first call makes the connection, rather than the start.
    pub fn lazy_connect(&self) -> bool {
        self.lazy_connect
    }

    /// Which addresses of a host name are used.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether small packets are sent at once.
    pub fn no_delay(&self) -> bool {
        self.no_delay
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

    /// The deadline of operations that have no tighter one of their own, and how long an idempotent one waits before it is sent again.
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
