//! Making a [`Config`] in code.

use std::time::Duration;

use super::{Config, ConfigError, ConfigErrors, Endpoint, Secret, check, error::shown};

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
        self.config.username = Some(name.into());
        self
    }

    /// The password; none if not set.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.config.password = Some(Secret::new(password));
        self
    }

    /// The number of the database; 0 if not set.
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

    /// The deadline of operations that have no tighter one of their own; 5 s if not set.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.config.command_timeout = timeout;
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
    /// Every value that is out of its range.
    pub fn build(self) -> Result<Config, ConfigErrors> {
        let config = self.config;
        let mut faults = Faults::default();
        faults.of_server(&config);
        faults.of_credentials(&config);
        faults.of_times(&config);
        faults.of_sizes(&config);
        ConfigErrors::unless_empty(faults.0, config)
    }
}

#[derive(Default)]
struct Faults(Vec<ConfigError>);

impl Faults {
    fn require(&mut self, valid: bool, field: &'static str, value: impl ToString, expected: &str) {
        if !valid {
            let value = value.to_string();
            let error = ConfigError::new(field, &shown(&value), expected);
            self.0.push(error);
        }
    }

    fn of_server(&mut self, config: &Config) {
        match &config.endpoint {
            Endpoint::Tcp { host, port } => {
                self.require(check::is_host(host), "host", host, check::HOST);
                self.require(*port != 0, "port", port, check::PORT);
            }
            Endpoint::Unix(path) => {
                let valid = check::is_socket(path);
                self.require(valid, "socket", path.display(), check::SOCKET);
            }
        }
    }

    fn of_credentials(&mut self, config: &Config) {
        let password = config.password.as_ref();
        if let Some(name) = config.username() {
            let valid = !name.is_empty() && password.is_some();
            self.require(valid, "username", name, check::USERNAME);
        }
        let valid = password.is_none_or(|password| !password.reveal().is_empty());
        self.require(valid, "password", Secret::MASK, check::PASSWORD);
    }

    fn of_times(&mut self, config: &Config) {
        for (field, timeout) in [
            ("connect_timeout", config.connect_timeout),
            ("dial_timeout", config.dial_timeout),
            ("command_timeout", config.command_timeout),
        ] {
            let valid = check::is_timeout(timeout);
            self.require(valid, field, format!("{timeout:?}"), check::TIMEOUT);
        }
        if let Some(idle) = config.keep_alive {
            let valid = check::is_keep_alive(idle);
            self.require(valid, "keep_alive", format!("{idle:?}"), check::KEEP_ALIVE);
        }
    }

    fn of_sizes(&mut self, config: &Config) {
        let commands = config.max_in_flight;
        let valid = check::is_max_in_flight(commands);
        self.require(valid, "max_in_flight", commands, check::MAX_IN_FLIGHT);
        let connections = config.pool_size;
        let valid = check::is_pool_size(connections);
        self.require(valid, "pool_size", connections, check::POOL_SIZE);
        if let Some(lanes) = config.lanes {
            self.require(check::is_lanes(lanes), "lanes", lanes, check::LANES);
        }
    }
}
