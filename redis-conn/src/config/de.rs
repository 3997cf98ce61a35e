//! Reading a [`Config`] from a configuration file.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    Config, ConfigBuilder, ConfigError, ConfigErrors, Endpoint, Secret, check, check::KeepAlive,
};

/// The fields as they are written. Turning it into a [`Config`] checks them together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    url: Option<Secret>,
    host: Option<String>,
    port: Option<u16>,
    socket: Option<PathBuf>,
    username: Option<String>,
    password: Option<Secret>,
    db: Option<u32>,
    connect_timeout: Option<Timeout>,
    dial_timeout: Option<Timeout>,
    command_timeout: Option<Timeout>,
    keep_alive: Option<KeepAlive>,
    max_in_flight: Option<usize>,
    pool_size: Option<u32>,
    lanes: Option<usize>,
    #[serde(default)]
    required: bool,
}

impl TryFrom<Raw> for Config {
    type Error = ConfigErrors;

    fn try_from(raw: Raw) -> Result<Self, ConfigErrors> {
        let mut builder = raw.server()?.required(raw.required).lanes(raw.lanes);
        if let Some(Timeout(timeout)) = raw.connect_timeout {
            builder = builder.connect_timeout(timeout);
        }
        if let Some(Timeout(timeout)) = raw.dial_timeout {
            builder = builder.dial_timeout(timeout);
        }
        if let Some(Timeout(timeout)) = raw.command_timeout {
            builder = builder.command_timeout(timeout);
        }
        if let Some(keep_alive) = raw.keep_alive {
            builder = builder.keep_alive(keep_alive);
        }
        if let Some(commands) = raw.max_in_flight {
            builder = builder.max_in_flight(commands);
        }
        if let Some(connections) = raw.pool_size {
            builder = builder.pool_size(connections);
        }
        builder.build()
    }
}

impl Raw {
    /// Which server, and who we are to it.
    fn server(&self) -> Result<ConfigBuilder, ConfigErrors> {
        let Some(url) = &self.url else {
            let config = Config::unchecked(self.endpoint()?);
            return Ok(ConfigBuilder::new(Config {
                username: self.username.clone(),
                password: self.password.clone(),
                db: self.db.unwrap_or_default(),
                ..config
            }));
        };
        let parts = [
            ("host", self.host.is_some()),
            ("port", self.port.is_some()),
            ("socket", self.socket.is_some()),
            ("username", self.username.is_some()),
            ("password", self.password.is_some()),
            ("db", self.db.is_some()),
        ];
        let conflicts = parts.iter().filter(|(_, set)| *set);
        let conflicts = conflicts.map(|(part, _)| ConfigError::conflict("url", part));
        ConfigErrors::unless_empty(conflicts.collect(), ())?;
        Config::from_url(url.reveal()).map(Config::into_builder)
    }

    fn endpoint(&self) -> Result<Endpoint, ConfigError> {
        match (&self.host, &self.socket, self.port) {
            (Some(host), None, port) => {
                Ok(Endpoint::tcp(host, port.unwrap_or(Endpoint::DEFAULT_PORT)))
            }
            (None, Some(socket), None) => Ok(Endpoint::unix(socket)),
            (Some(_), Some(_), _) => Err(ConfigError::conflict("host", "socket")),
            (None, Some(_), Some(_)) => Err(ConfigError::conflict("port", "socket")),
            (None, None, _) => Err(ConfigError::about(["host"], "`host`, `socket` or `url`")),
        }
    }
}

/// What is written as a text, a number or a boolean. It becomes a text, which is read as that of a variable is.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a boolean or a number that is not negative"
)]
pub(super) enum Scalar {
    Bool(bool),
    Number(u64),
    Text(String),
}

impl Scalar {
    fn read<T>(self, expected: &str, parse: fn(&str) -> Option<T>) -> Result<T, String> {
        let text = match self {
            Self::Bool(on) => on.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        };
        parse(&text).ok_or_else(|| format!("expected {expected}"))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Scalar")]
struct Timeout(Duration);

impl TryFrom<Scalar> for Timeout {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::TIMEOUT, check::timeout).map(Self)
    }
}

impl TryFrom<Scalar> for KeepAlive {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::KEEP_ALIVE, check::keep_alive)
    }
}

/// Serde's own message for a number in place of a text would contain the number.
impl TryFrom<Scalar> for Secret {
    type Error = &'static str;

    fn try_from(scalar: Scalar) -> Result<Self, &'static str> {
        match scalar {
            Scalar::Text(text) => Ok(Self::new(text)),
            Scalar::Bool(_) | Scalar::Number(_) => Err("expected a text, in quotes"),
        }
    }
}
