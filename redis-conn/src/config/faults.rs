//! What is wrong with a [`Config`] that was put together in code or in a file.

use std::{path::Path, time::Duration};

use super::{
    Config, ConfigError, Endpoint, Topology, check, credentials::Account, error::shown,
    secret::Secret,
};

pub(super) fn of(config: &Config) -> Vec<ConfigError> {
    let mut faults = Faults::default();
    faults.of_topology(config);
    faults.of_account(&config.account, &SERVER);
    faults.of_account(&config.sentinel_account, &SENTINEL);
    faults.of_tls(config);
    faults.of_times(config);
    faults.of_counts(config);
    faults.0
}

impl Config {
    /// What is not wrong, but worth a word when it is used.
    #[cfg(feature = "redis")]
    pub(crate) fn warnings(&self) -> Vec<String> {
        const ENOUGH: usize = 3;
        let named = self.topology.seeds().len();
        let kind = match &self.topology {
            Topology::Single(_) => None,
            Topology::Cluster { .. } => Some("nodes of the cluster"),
            Topology::Sentinel { .. } => Some("sentinels"),
        };
        let few = kind.filter(|_| named < ENOUGH).map(|kind| {
            format!("{kind} that are named: {named}. With fewer than {ENOUGH}, a process may not start while one of them is away")
        });
        let open = self
            .tls
            .as_ref()
            .is_some_and(|tls| !tls.rejects_unauthorized());
        let open = open.then(|| {
            "TLS accepts any certificate: whoever stands in between can read and change everything".to_owned()
        });
        few.into_iter().chain(open).collect()
    }
}

/// The fields of an account.
struct Fields {
    username: &'static str,
    password: &'static str,
    file: &'static str,
    provider: &'static str,
}

const SERVER: Fields = Fields {
    username: "username",
    password: "password",
    file: "password_file",
    provider: "credentials",
};

const SENTINEL: Fields = Fields {
    username: "sentinel_username",
    password: "sentinel_password",
    file: "sentinel_password_file",
    provider: "sentinel_credentials",
};

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

    fn of_topology(&mut self, config: &Config) {
        match &config.topology {
            Topology::Single(Endpoint::Unix(path)) => {
                let valid = check::is_socket(path);
                self.require(valid, "socket", path.display(), check::SOCKET);
            }
            Topology::Single(endpoint) => self.of_endpoint("host", endpoint),
            Topology::Cluster { nodes } => {
                self.of_endpoints("nodes", nodes);
                let db = config.db;
                self.require(db == 0, "db", db, "0: a cluster has no other database");
            }
            Topology::Sentinel { sentinels, master } => {
                self.of_endpoints("sentinels", sentinels);
                let valid = check::is_name_of_master(master);
                self.require(valid, "master_name", master, check::MASTER);
            }
        }
        if let Some(name) = &config.connection_name {
            let valid = check::is_instance(name);
            self.require(valid, "connection_name", name, check::INSTANCE);
        }
    }

    fn of_endpoints(&mut self, field: &'static str, endpoints: &[Endpoint]) {
        self.require(!endpoints.is_empty(), field, "", check::ENDPOINTS);
        for endpoint in endpoints {
            self.of_endpoint(field, endpoint);
        }
    }

    fn of_endpoint(&mut self, field: &'static str, endpoint: &Endpoint) {
        match endpoint {
            Endpoint::Tcp { host, port } => {
                self.require(check::is_host(host), field, host, check::HOST);
                let field = if field == "host" { "port" } else { field };
                self.require(*port != 0, field, port, check::PORT);
            }
            Endpoint::Unix(_) => self.require(false, field, endpoint, check::ENDPOINTS),
        }
    }

    fn of_account(&mut self, account: &Account, fields: &Fields) {
        if let Some(name) = &account.username {
            let valid = !name.is_empty() && account.has_password();
            self.require(valid, fields.username, name, check::USERNAME);
        }
        let password = account.password.as_ref();
        let valid = password.is_none_or(|password| !password.reveal().is_empty());
        self.require(valid, fields.password, Secret::MASK, check::PASSWORD);
        if let Some(file) = &account.file {
            self.of_file(fields.file, file.path());
        }
        let user = account.username.as_ref().map(|_| fields.username);
        let password = account.password.as_ref().map(|_| fields.password);
        let file = account.file.as_ref().map(|_| fields.file);
        let provider = account.provider.as_ref().map(|_| fields.provider);
        for (one, other) in [
            (password, file),
            (password, provider),
            (file, provider),
            (user, provider),
        ] {
            if let (Some(one), Some(other)) = (one, other) {
                self.0.push(ConfigError::conflict(one, other));
            }
        }
    }

    fn of_file(&mut self, field: &'static str, path: &Path) {
        self.require(check::is_path(path), field, path.display(), check::PATH);
    }

    fn of_tls(&mut self, config: &Config) {
        let Some(tls) = &config.tls else { return };
        if !cfg!(feature = "tls") {
            self.0.push(ConfigError::about(["tls"], check::TLS_FEATURE));
        }
        if let Topology::Single(Endpoint::Unix(_)) = config.topology {
            self.0
                .push(ConfigError::about(["tls", "socket"], check::TLS_OVER_TCP));
        }
        if let Some(name) = tls.expected_name() {
            let valid = check::is_host(name);
            self.require(valid, "tls.server_name", name, check::HOST);
        }
        for (field, path) in tls.files() {
            self.of_file(field, path);
        }
    }

    fn of_times(&mut self, config: &Config) {
        type Limits = (&'static str, fn(Duration) -> bool);
        const TIMEOUT: Limits = (check::TIMEOUT, check::is_timeout);
        const DELAY: Limits = (check::DELAY, check::is_delay);
        const IDLE: Limits = (check::KEEP_ALIVE, check::is_keep_alive);
        for (field, time, (expected, is_valid)) in [
            ("connect_timeout", Some(config.connect_timeout), TIMEOUT),
            ("dial_timeout", Some(config.dial_timeout), TIMEOUT),
            ("command_timeout", Some(config.command_timeout), TIMEOUT),
            (
                "max_loading_timeout",
                Some(config.max_loading_timeout),
                TIMEOUT,
            ),
            (
                "retry_delay_on_failover",
                Some(config.retry_delay_on_failover),
                DELAY,
            ),
            (
                "retry_delay_on_cluster_down",
                Some(config.retry_delay_on_cluster_down),
                DELAY,
            ),
            ("keep_alive", config.keep_alive, IDLE),
        ] {
            if let Some(time) = time {
                self.require(is_valid(time), field, format!("{time:?}"), expected);
            }
        }
    }

    fn of_counts(&mut self, config: &Config) {
        let commands = config.max_in_flight;
        let valid = check::is_max_in_flight(commands);
        self.require(valid, "max_in_flight", commands, check::MAX_IN_FLIGHT);
        let connections = config.pool_size;
        let valid = check::is_pool_size(connections);
        self.require(valid, "pool_size", connections, check::POOL_SIZE);
        if let Some(lanes) = config.lanes {
            self.require(check::is_lanes(lanes), "lanes", lanes, check::LANES);
        }
        let redirections = config.max_redirections;
        let valid = check::is_redirections(redirections);
        self.require(valid, "max_redirections", redirections, check::REDIRECTIONS);
        let retries = config.max_retries;
        let valid = check::is_retries(retries);
        self.require(valid, "max_retries", retries, check::RETRIES);
    }
}
