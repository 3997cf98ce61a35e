//! Which backend the environment names.

mod names;
mod options;
mod remarks;
mod servers;
mod topology;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
};

use self::topology::{Choice, Kind};
use super::{
    Config, ConfigError, ConfigErrors, check,
    credentials::Account,
    error::shown,
    secret::Secret,
    url,
    variables::{
        INSTANCE_ID, NAMESPACE, NO_PARTITIONS, REDIS_HOST, REDIS_PARTITIONS, REDIS_REQUIRED,
        REDIS_URL, SQLITE_PATH, Secrecy, Variable,
    },
};

const PREFIX: &str = "1 to 32 characters of `[A-Z0-9_]` that end with `_`";

/// What the environment says.
#[derive(Debug)]
pub(crate) struct Settings {
    prefix: String,
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
        Self::read("", vars)
    }

    /// The same variables, where each name begins with the prefix.
    pub(crate) fn from_vars_prefixed(
        prefix: &str,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        let valid = prefix.len() <= 32 && prefix.ends_with('_') && prefix.bytes().all(allowed);
        if !valid {
            return Err(ConfigError::new("prefix", &shown(prefix), PREFIX).into());
        }
        Self::read(prefix, vars)
    }

    fn read(
        prefix: &str,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let mut env = Environment::collect(prefix, vars);
        let namespace = env.read(NAMESPACE, check::namespace);
        let instance_id = env.read(INSTANCE_ID, check::instance);
        let choice = env.choose();
        let config = env.config(&choice);
        env.check_backend(&choice, &config);
        let selected = match env.text(SQLITE_PATH) {
            _ if choice.kind != Kind::None => Selected::Redis(Box::new(config)),
            Some(path) => Selected::Sqlite(path.into()),
            None => Selected::Memory,
        };
        let settings = Self {
            prefix: prefix.to_owned(),
            namespace,
            instance_id,
            notes: env.notes(),
            warnings: env.warnings(&choice, &selected),
            selected,
        };
        ConfigErrors::unless_empty(env.errors, settings)
    }

    /// The variable as it was written.
    pub(crate) fn name(&self, variable: Variable) -> String {
        format!("{}{}", self.prefix, variable.name)
    }
}

/// The variables that concern us, by their names without the prefix, and what is wrong with them.
#[derive(Default)]
struct Environment {
    prefix: String,
    texts: BTreeMap<String, String>,
    unknown: BTreeSet<String>,
    injected: BTreeSet<String>,
    errors: Vec<ConfigError>,
}

impl Environment {
    /// An empty value counts as not set: that is what compose files and CI systems make of a variable that they do not know.
    fn collect(prefix: &str, vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut env = Self {
            prefix: prefix.to_owned(),
            ..Self::default()
        };
        for (name, value) in vars {
            let name = name.to_str().and_then(|name| name.strip_prefix(prefix));
            let Some(name) = name.filter(|_| !value.is_empty()) else {
                continue;
            };
            if names::is_injected(name, &value.to_string_lossy()) {
                env.injected.insert(env.prefixed(name));
            } else if names::is_known(name) {
                match value.into_string() {
                    Ok(text) => drop(env.texts.insert(name.to_owned(), text)),
                    Err(_) => env.fault([name], "a value in UTF-8"),
                }
            } else if name.starts_with("REDIS_") {
                env.unknown.insert(name.to_owned());
            }
        }
        env
    }

    fn prefixed(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn text(&self, variable: Variable) -> Option<&str> {
        self.texts.get(variable.name).map(String::as_str)
    }

    fn is_set(&self, variable: Variable) -> bool {
        self.texts.contains_key(variable.name)
    }

    fn read<T>(&mut self, variable: Variable, parse: fn(&str) -> Option<T>) -> Option<T> {
        self.read_as(variable.name, variable, parse)
    }

    /// Reads one of those that there may be several of.
    fn read_as<T>(
        &mut self,
        name: &str,
        variable: Variable,
        parse: fn(&str) -> Option<T>,
    ) -> Option<T> {
        let value = parse(self.texts.get(name)?);
        if value.is_none() {
            self.wrong(name, variable, &reason(variable));
        }
        value
    }

    fn wrong(&mut self, name: &str, variable: Variable, expected: &str) {
        let text = self.texts.get(name).map_or("", String::as_str);
        let error = ConfigError::new(self.prefixed(name), &display(variable, text), expected);
        self.errors.push(error);
    }

    fn fault<'a>(&mut self, names: impl IntoIterator<Item = &'a str>, expected: &str) {
        let names: Vec<String> = names.into_iter().map(|name| self.prefixed(name)).collect();
        self.errors.push(ConfigError::about(names, expected));
    }

    fn conflict(&mut self, one: &str, other: &str) {
        let conflict = ConfigError::conflict(self.prefixed(one), self.prefixed(other));
        self.errors.push(conflict);
    }

    /// All of it is read whether or not a server is named: a value that cannot be read is a mistake in any case.
    fn config(&mut self, choice: &Choice) -> Config {
        let mut config = self.server();
        config.topology = self.topology(choice, config.topology);
        self.check_db(choice, &config);
        if choice.kind != Kind::Sentinel {
            config.sentinel_account = Account::default();
        }
        self.tls(&mut config);
        self.options(choice.kind, &mut config);
        config
    }

    fn check_backend(&mut self, choice: &Choice, config: &Config) {
        if let Some(text) = self.texts.get(REDIS_PARTITIONS) {
            let name = self.prefixed(REDIS_PARTITIONS);
            let error = ConfigError::new(name, &shown(text), NO_PARTITIONS);
            self.errors.push(error);
        }
        if self.is_set(SQLITE_PATH) {
            for name in &choice.named_by {
                self.conflict(name, SQLITE_PATH.name);
            }
            if !cfg!(feature = "sqlite") {
                let expected = "a build with the feature `sqlite` of redis-conn";
                self.fault([SQLITE_PATH.name], expected);
            }
        }
        let names = || choice.named_by.iter().map(String::as_str);
        if !choice.named_by.is_empty() && !cfg!(feature = "redis") {
            self.fault(names(), "a build with the feature `redis` of redis-conn");
        }
        if config.required && choice.named_by.is_empty() {
            self.missing_server();
        }
    }

    fn missing_server(&mut self) {
        let required = self.prefixed(REDIS_REQUIRED.name);
        if self.is_set(SQLITE_PATH) {
            let expected =
                format!("only one of them: {required}=true forbids the embedded backends");
            self.fault([REDIS_REQUIRED.name, SQLITE_PATH.name], &expected);
        } else {
            let expected = format!("the required server to be named by {}", self.examples());
            self.fault([REDIS_REQUIRED.name], &expected);
        }
    }

    /// The variables that name a server most often.
    fn examples(&self) -> String {
        let (url, host) = (
            self.prefixed(REDIS_URL.name),
            self.prefixed(REDIS_HOST.name),
        );
        format!("{url} or {host}")
    }
}

/// What is expected, and what holds without the variable.
fn reason(variable: Variable) -> String {
    match variable.default() {
        None => variable.expected.to_owned(),
        Some(default) => format!("{} (default: {default})", variable.expected),
    }
}

fn display(variable: Variable, text: &str) -> String {
    match variable.secrecy {
        Secrecy::Open => shown(text).into_owned(),
        Secrecy::Url => url::masked(text),
        Secrecy::Secret => Secret::MASK.to_owned(),
    }
}

#[cfg(test)]
#[cfg_attr(
    not(feature = "redis"),
    allow(
        dead_code,
        unused_imports,
        reason = "most tests need a server to configure"
    )
)]
mod tests;
