//! Making a [`Config`] in code.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    Config, ConfigErrors, Credentials, Family, ScaleReads, Secret, Tls,
    credentials::{PasswordFile, Provider},
    faults,
};

/// Makes a [`Config`]; see [`Config::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ConfigBuilder {
    config: Config,
}

impl ConfigBuilder {
    pub(super) fn new(config: Config) -> Self {
        Self { config }
    }

    /// The ACL user; the server's default user if not set. It needs a password.
    pub fn username(mut self, name: impl Into<String>) -> Self {
        self.config.account.username = Some(name.into());
        self
    }

    /// The password; none if not set.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.config.account.password = Some(Secret::new(password));
        self
    }

    /// The file that holds the password, followed by at most one line end. It is read whenever a connection is made.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.account.file = Some(PasswordFile::new("password_file", path));
        self
    }

    /// Who is asked for user and password whenever a connection is made.
    pub fn credentials(mut self, provider: Arc<dyn Credentials>) -> Self {
        self.config.account.provider = Some(Provider(provider));
        self
    }

    /// The ACL user at the sentinels, who do not share those of the servers; their default user if not set. It needs a password.
    pub fn sentinel_username(mut self, name: impl Into<String>) -> Self {
        self.config.sentinel_account.username = Some(name.into());
        self
    }

    /// The password at the sentinels; none if not set.
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.config.sentinel_account.password = Some(Secret::new(password));
        self
    }

    /// The file that holds the password at the sentinels; see [`password_file`](Self::password_file).
    pub fn sentinel_password_file(mut self, path: impl Into<PathBuf>) -> Self {
        let file = PasswordFile::new("sentinel_password_file", path);
        self.config.sentinel_account.file = Some(file);
        self
    }

    /// Who is asked for user and password at the sentinels; see [`credentials`](Self::credentials).
    pub fn sentinel_credentials(mut self, provider: Arc<dyn Credentials>) -> Self {
        self.config.sentinel_account.provider = Some(Provider(provider));
        self
    }

    /// How connections are encrypted, those to sentinels included; not at all if not set. It needs the feature `tls`.
    pub fn tls(mut self, tls: impl Into<Option<Tls>>) -> Self {
        self.config.tls = tls.into();
        self
    }

    /// The name of the connections for people who look at the server: 1 to 128 visible ASCII characters without spaces; that of
    /// the instance if not set.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.config.connection_name = Some(name.into());
        self
    }

    /// The number of the database; 0 if not set, and always on a cluster.
    pub fn db(mut self, db: u32) -> Self {
        self.config.db = db;
        self
    }

    /// How long a start that needs the server waits until it first answers; 10 s if not set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// How long one attempt to connect may take, handshake included; 1 s if not set.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.config.dial_timeout = timeout;
        self
    }

    /// The deadline of operations that have no tighter one of their own, and how long an idempotent one waits for a reply before it
    /// is sent again, if its deadline allows; 5 s if not set.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.config.command_timeout = timeout;
        self
    }

    /// How long a server may load its data before that becomes an error; 10 s if not set.
    pub fn max_loading_timeout(mut self, timeout: Duration) -> Self {
        self.config.max_loading_timeout = timeout;
        self
    }

    /// How long to wait before a call is sent again after its server failed or was demoted, up to 1 minute; 100 ms if not set.
    pub fn retry_delay_on_failover(mut self, delay: Duration) -> Self {
        self.config.retry_delay_on_failover = delay;
        self
    }

    /// How long to wait before a call is sent again after the cluster or the master was said to be down, up to 1 minute; 300 ms if
    /// not set.
    pub fn retry_delay_on_cluster_down(mut self, delay: Duration) -> Self {
        self.config.retry_delay_on_cluster_down = delay;
        self
    }

    /// How many times a call follows the cluster to another node, from 1 to 100; 16 if not set.
    pub fn max_redirections(mut self, redirections: u32) -> Self {
        self.config.max_redirections = redirections;
        self
    }

    /// How many times an idempotent call is sent again, up to 100; 3 if not set.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.config.max_retries = retries;
        self
    }

    /// Which servers answer the reads that a replica may answer; the primary if not set.
    pub fn scale_reads(mut self, reads: ScaleReads) -> Self {
        self.config.scale_reads = reads;
        self
    }

    /// Whether calls wait, inside their deadline, while there is no connection; `false` if not set, and they fail at once.
    pub fn offline_queue(mut self, queue: bool) -> Self {
        self.config.offline_queue = queue;
        self
    }

    /// Whether a connection is used only once its server has loaded its data; `true` if not set.
    pub fn ready_check(mut self, check: bool) -> Self {
        self.config.ready_check = check;
        self
    }

    /// Whether the first call makes the connection, rather than the start; `false` if not set.
    pub fn lazy_connect(mut self, lazy: bool) -> Self {
        self.config.lazy_connect = lazy;
        self
    }

    /// Which addresses of a host name are used; all of them if not set.
    pub fn family(mut self, family: Family) -> Self {
        self.config.family = family;
        self
    }

    /// Whether small packets are sent at once; `true` if not set.
    pub fn no_delay(mut self, no_delay: bool) -> Self {
        self.config.no_delay = no_delay;
        self
    }

    /// After which silence TCP asks whether the peer is still there, from 1 s to 9 h, or never; 15 s if not set.
    pub fn keep_alive(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.config.keep_alive = idle.into();
        self
    }

    /// How many commands may wait for a reply on one lane, up to 1,048,576; 4,096 if not set. Further ones fail at once with
    /// [`Saturated`](crate::ErrorKind::Saturated).
    pub fn max_in_flight(mut self, commands: usize) -> Self {
        self.config.max_in_flight = commands;
        self
    }

    /// How many connections for exclusive use there may be, up to 1,024; 8 if not set. They are made when needed.
    pub fn pool_size(mut self, connections: u32) -> Self {
        self.config.pool_size = connections;
        self
    }

    /// How many connections all commands share, up to 64; 1 on up to four cores and 2 on more if not set.
    pub fn lanes(mut self, lanes: impl Into<Option<usize>>) -> Self {
        self.config.lanes = lanes.into();
        self
    }

    /// Whether [`Backend::from_env`](crate::Backend::from_env) fails if the server does not answer within the connect timeout.
    pub fn required(mut self, required: bool) -> Self {
        self.config.required = required;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    ///
    /// Every value that is out of its range, and all that contradict each other.
    pub fn build(self) -> Result<Config, ConfigErrors> {
        ConfigErrors::unless_empty(faults::of(&self.config), self.config)
    }
}
