//! Which backend the environment names.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
};

use super::{
    Config, ConfigError, ConfigErrors, Endpoint, check,
    error::shown,
    secret::Secret,
    url,
    variables::{
        self, INSTANCE_ID, NAMESPACE, REDIS_COMMAND_TIMEOUT, REDIS_CONNECT_TIMEOUT, REDIS_DB,
        REDIS_HOST, REDIS_KEEP_ALIVE, REDIS_PASSWORD, REDIS_PORT, REDIS_REQUIRED, REDIS_URL,
        REDIS_USERNAME, REFUSED, Refused, SQLITE_PATH, Secrecy, VARIABLES, Variable,
    },
};

/// What the environment says.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) namespace: Option<String>,
    pub(crate) instance_id: Option<String>,
    pub(crate) selected: Selected,
    pub(crate) notes: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum Selected {
    Memory,
    Sqlite(PathBuf),
    Redis(Box<Config>),
}

impl Settings {
    pub(crate) fn from_vars(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let mut env = Environment::collect(vars);
        let namespace = env.read(NAMESPACE, check::namespace);
        let instance_id = env.read(INSTANCE_ID, check::instance);
        let servers = env.servers();
        let config = env.config();
        env.check_together(&servers, &config);
        let selected = match env.texts.get(SQLITE_PATH.name) {
            _ if !servers.is_empty() => Selected::Redis(Box::new(config)),
            Some(path) => Selected::Sqlite(path.into()),
            None => Selected::Memory,
        };
        let settings = Self {
            namespace,
            instance_id,
            selected,
            notes: env.notes(),
            warnings: env.warnings(&servers),
        };
        ConfigErrors::unless_empty(env.errors, settings)
    }
}

/// The variables that concern us, and what is wrong with them.
#[derive(Default)]
struct Environment {
    texts: BTreeMap<&'static str, String>,
    unknown: BTreeSet<String>,
    injected: BTreeSet<String>,
    errors: Vec<ConfigError>,
}

impl Environment {
    /// An empty value counts as not set: that is what compose files and CI systems make of a variable that they do not know.
    fn collect(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut env = Self::default();
        for (name, value) in vars {
            let Some(name) = name.to_str().filter(|_| !value.is_empty()) else {
                continue;
            };
            if variables::is_injected(name, &value.to_string_lossy()) {
                env.injected.insert(name.to_owned());
            } else if let Some(name) = variables::known(name) {
                match value.into_string() {
                    Ok(text) => drop(env.texts.insert(name, text)),
                    Err(_) => env
                        .errors
                        .push(ConfigError::about([name], "a value in UTF-8")),
                }
            } else if name.starts_with("REDIS_") {
                env.unknown.insert(name.to_owned());
            }
        }
        env
    }

    fn is_set(&self, variable: Variable) -> bool {
        self.texts.contains_key(variable.name)
    }

    fn read<T>(&mut self, variable: Variable, parse: fn(&str) -> Option<T>) -> Option<T> {
        let value = parse(self.texts.get(variable.name)?);
        if value.is_none() {
            self.wrong(variable, &reason(variable));
        }
        value
    }

    fn wrong(&mut self, variable: Variable, expected: &str) {
        let text = self.texts.get(variable.name).map_or("", String::as_str);
        let error = ConfigError::new(variable.name, &display(variable, text), expected);
        self.errors.push(error);
    }

    /// The variables that name a Redis server.
    fn servers(&mut self) -> Vec<&'static str> {
        let mut servers: Vec<_> = [REDIS_URL, REDIS_HOST]
            .into_iter()
            .filter(|variable| self.is_set(*variable))
            .map(|variable| variable.name)
            .collect();
        for refused in REFUSED {
            if self.refuse(*refused) && refused.asks_for.is_topology() {
                servers.push(refused.name);
            }
        }
        servers
    }

    /// Whether it was asked for.
    fn refuse(&mut self, refused: Refused) -> bool {
        let Some(text) = self.texts.get(refused.name) else {
            return false;
        };
        let expected = match check::flag(text) {
            Some(false) if refused.is_flag => return false,
            None if refused.is_flag => check::BOOL.to_owned(),
            _ => refused.asks_for.instead(),
        };
        let error = ConfigError::new(refused.name, &shown(text), expected);
        self.errors.push(error);
        true
    }

    /// All of it is read whether or not a server is named: a value that cannot be read is a mistake in any case.
    fn config(&mut self) -> Config {
        let mut config = self.server();
        if let Some(timeout) = self.read(REDIS_CONNECT_TIMEOUT, check::timeout) {
            config.connect_timeout = timeout;
        }
        if let Some(timeout) = self.read(REDIS_COMMAND_TIMEOUT, check::timeout) {
            config.command_timeout = timeout;
        }
        if let Some(keep_alive) = self.read(REDIS_KEEP_ALIVE, check::keep_alive) {
            config.keep_alive = keep_alive.into();
        }
        if let Some(required) = self.read(REDIS_REQUIRED, check::flag) {
            config.required = required;
        }
        config
    }

    fn server(&mut self) -> Config {
        let host = self.read(REDIS_HOST, check::host).unwrap_or_default();
        let port = self.read(REDIS_PORT, check::port);
        let endpoint = Endpoint::tcp(host, port.unwrap_or(Endpoint::DEFAULT_PORT));
        let in_parts = Config {
            username: self.read(REDIS_USERNAME, check::text),
            password: self.read(REDIS_PASSWORD, check::secret),
            db: self.read(REDIS_DB, check::db).unwrap_or_default(),
            ..Config::unchecked(endpoint)
        };
        match self.texts.get(REDIS_URL.name).map(|url| url::parse(url)) {
            Some(Ok(target)) => Config::at(target),
            Some(Err(expected)) => {
                self.wrong(REDIS_URL, expected);
                in_parts
            }
            None => in_parts,
        }
    }

    fn check_together(&mut self, servers: &[&'static str], config: &Config) {
        self.check_parts();
        if self.is_set(SQLITE_PATH) {
            let conflict = |server: &&'static str| ConfigError::conflict(server, SQLITE_PATH.name);
            self.errors.extend(servers.iter().map(conflict));
            if !cfg!(feature = "sqlite") {
                let expected = "a build with the feature `sqlite` of redis-conn";
                self.fault([SQLITE_PATH.name], expected);
            }
        }
        if !servers.is_empty() && !cfg!(feature = "redis") {
            self.fault(servers, "a build with the feature `redis` of redis-conn");
        }
        if config.required && servers.is_empty() {
            self.missing_server();
        }
    }

    fn check_parts(&mut self) {
        if self.is_set(REDIS_URL) {
            let parts = [
                REDIS_HOST,
                REDIS_PORT,
                REDIS_USERNAME,
                REDIS_PASSWORD,
                REDIS_DB,
            ];
            for part in parts {
                if self.is_set(part) {
                    let conflict = ConfigError::conflict(REDIS_URL.name, part.name);
                    self.errors.push(conflict);
                }
            }
        }
        if self.is_set(REDIS_USERNAME) && !self.is_set(REDIS_PASSWORD) {
            let expected = "both or none of them: a user needs a password";
            self.fault([REDIS_USERNAME.name, REDIS_PASSWORD.name], expected);
        }
    }

    fn missing_server(&mut self) {
        if self.is_set(SQLITE_PATH) {
            let expected = "only one of them: REDIS_REQUIRED=true forbids the embedded backends";
            self.fault([REDIS_REQUIRED.name, SQLITE_PATH.name], expected);
        } else {
            let expected = "the required server to be named by REDIS_URL or REDIS_HOST";
            self.fault([REDIS_REQUIRED.name], expected);
        }
    }

    fn fault(&mut self, variables: impl Into<Vec<&'static str>>, expected: &str) {
        self.errors.push(ConfigError::about(variables, expected));
    }

    fn notes(&self) -> Vec<String> {
        if self.injected.is_empty() {
            return Vec::new();
        }
        let names = list(&self.injected);
        vec![format!(
            "ignored, because Kubernetes sets them for a Service: {names}"
        )]
    }

    fn warnings(&self, servers: &[&'static str]) -> Vec<String> {
        let mut warnings = Vec::new();
        let idle = VARIABLES.iter().filter(|variable| {
            let is_option =
                variable.name.starts_with("REDIS_") && variable.name != REDIS_REQUIRED.name;
            is_option && self.is_set(**variable)
        });
        let idle: BTreeSet<_> = idle.map(|variable| variable.name).collect();
        if servers.is_empty() && !idle.is_empty() {
            let names = list(&idle);
            warnings.push(format!(
                "no server is named by REDIS_URL or REDIS_HOST, so these have no effect: {names}"
            ));
        }
        warnings.extend(self.unknown.iter().map(|name| unknown(name)));
        warnings
    }
}

/// What is expected, and what holds without the variable.
fn reason(variable: Variable) -> String {
    match variable.default {
        "" => variable.expected.to_owned(),
        default => format!("{} (default: {default})", variable.expected),
    }
}

fn display(variable: Variable, text: &str) -> String {
    match variable.secrecy {
        Secrecy::Open => shown(text).into_owned(),
        Secrecy::Url => url::masked(text),
        Secrecy::Secret => Secret::MASK.to_owned(),
    }
}

fn unknown(name: &str) -> String {
    let shown = shown(name).escape_debug().to_string();
    match variables::nearest(name) {
        Some(meant) => format!("{shown} is unknown and has no effect: did you mean {meant}?"),
        None => format!("{shown} is unknown and has no effect"),
    }
}

fn list(names: &BTreeSet<impl AsRef<str>>) -> String {
    let names: Vec<String> = names
        .iter()
        .map(|name| name.as_ref().escape_debug().to_string())
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
