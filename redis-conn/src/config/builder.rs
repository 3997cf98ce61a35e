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
        let errors = faults(&config);
        ConfigErrors::unless_empty(errors, config)
    }
}

fn faults(config: &Config) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut require = |valid: bool, field: &'static str, value: &dyn ToString, expected| {
        if !valid {
            errors.push(ConfigError::new(
                field,
                &shown(&value.to_string()),
                expected,
            ));
        }
    };
    match &config.endpoint {
        Endpoint::Tcp { host, port } => {
            require(check::is_host(host), "host", host, check::HOST);
            require(*port != 0, "port", port, check::PORT);
        }
        Endpoint::Unix(path) => {
            let shown = path.display();
            require(check::is_socket(path), "socket", &shown, check::SOCKET);
        }
    }
    let (username, password) = (config.username(), config.password.as_ref());
    let usable = username.is_none_or(|name| !name.is_empty() && password.is_some());
    require(
        usable,
        "username",
        &username.unwrap_or_default(),
        check::USERNAME,
    );
    let usable = password.is_none_or(|password| !password.reveal().is_empty());
    require(usable, "password", &"", check::PASSWORD);
    for (field, timeout) in [
        ("connect_timeout", config.connect_timeout),
        ("dial_timeout", config.dial_timeout),
        ("command_timeout", config.command_timeout),
    ] {
        let shown = format!("{timeout:?}");
        require(check::is_timeout(timeout), field, &shown, check::TIMEOUT);
    }
    if let Some(idle) = config.keep_alive {
        let shown = format!("{idle:?}");
        require(
            check::is_keep_alive(idle),
            "keep_alive",
            &shown,
            check::KEEP_ALIVE,
        );
    }
    let in_flight = config.max_in_flight;
    require(
        check::is_max_in_flight(in_flight),
        "max_in_flight",
        &in_flight,
        check::MAX_IN_FLIGHT,
    );
    let pool = config.pool_size;
    require(
        check::is_pool_size(pool),
        "pool_size",
        &pool,
        check::POOL_SIZE,
    );
    if let Some(lanes) = config.lanes {
        require(check::is_lanes(lanes), "lanes", &lanes, check::LANES);
    }
    errors
}
