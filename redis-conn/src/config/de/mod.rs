//! Reading a [`Config`] from a configuration file.

mod scalar;
mod servers;

use std::path::PathBuf;

use serde::Deserialize;

pub(super) use self::scalar::Scalar;
use self::scalar::{Addresses, Delay, Reads, Timeout};
use super::{
    Config, ConfigError, ConfigErrors, Secret, Tls, check,
    check::KeepAlive,
    credentials::{Account, PasswordFile},
};

/// The fields as they are written. Turning it into a [`Config`] checks them together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    url: Option<Secret>,
    host: Option<String>,
    port: Option<u16>,
    socket: Option<PathBuf>,
    nodes: Option<Vec<String>>,
    sentinels: Option<Vec<String>>,
    master_name: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
    password_file: Option<PathBuf>,
    sentinel_username: Option<String>,
    sentinel_password: Option<Secret>,
    sentinel_password_file: Option<PathBuf>,
    db: Option<u32>,
    tls: Option<RawTls>,
    connection_name: Option<String>,
    connect_timeout: Option<Timeout>,
    dial_timeout: Option<Timeout>,
    command_timeout: Option<Timeout>,
    max_loading_timeout: Option<Timeout>,
    retry_delay_on_failover: Option<Delay>,
    retry_delay_on_cluster_down: Option<Delay>,
    max_redirections: Option<u32>,
    max_retries: Option<u32>,
    scale_reads: Option<Reads>,
    offline_queue: Option<bool>,
    ready_check: Option<bool>,
    lazy_connect: Option<bool>,
    family: Option<Addresses>,
    no_delay: Option<bool>,
    keep_alive: Option<KeepAlive>,
    max_in_flight: Option<usize>,
    pool_size: Option<u32>,
    lanes: Option<usize>,
    required: Option<bool>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected `true`, `false`, or a table of `server_name`, `reject_unauthorized`, `ca_file`, `cert_file`, `key_file`"
)]
enum RawTls {
    Switch(bool),
    Options(TlsOptions),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsOptions {
    server_name: Option<String>,
    reject_unauthorized: Option<bool>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

impl TryFrom<Raw> for Config {
    type Error = ConfigErrors;

    fn try_from(mut raw: Raw) -> Result<Self, ConfigErrors> {
        let mut config = raw.server()?;
        config.sentinel_account = raw.sentinel_account();
        raw.encrypt(&mut config)?;
        raw.set_times(&mut config);
        raw.set_options(&mut config);
        config.into_builder().build()
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

impl Raw {
    fn account(&mut self) -> Account {
        let file = self.password_file.take();
        Account {
            username: self.username.take(),
            password: self.password.take(),
            file: file.map(|path| PasswordFile::new("password_file", path)),
            provider: None,
        }
    }

    fn sentinel_account(&mut self) -> Account {
        let file = self.sentinel_password_file.take();
        Account {
            username: self.sentinel_username.take(),
            password: self.sentinel_password.take(),
            file: file.map(|path| PasswordFile::new("sentinel_password_file", path)),
            provider: None,
        }
    }

    /// A URL may have asked for it already.
    fn encrypt(&mut self, config: &mut Config) -> Result<(), ConfigError> {
        match self.tls.take() {
            None => {}
            Some(RawTls::Switch(false)) if config.tls.is_some() => {
                return Err(ConfigError::conflict("url", "tls"));
            }
            Some(RawTls::Switch(on)) => config.tls = on.then(Tls::new),
            Some(RawTls::Options(options)) => config.tls = Some(options.try_into()?),
        }
        Ok(())
    }

    fn set_times(&mut self, config: &mut Config) {
        for (field, time) in [
            (&mut config.connect_timeout, &mut self.connect_timeout),
            (&mut config.dial_timeout, &mut self.dial_timeout),
            (&mut config.command_timeout, &mut self.command_timeout),
            (
                &mut config.max_loading_timeout,
                &mut self.max_loading_timeout,
            ),
        ] {
            set(field, time.take().map(|Timeout(time)| time));
        }
        for (field, delay) in [
            (
                &mut config.retry_delay_on_failover,
                &mut self.retry_delay_on_failover,
            ),
            (
                &mut config.retry_delay_on_cluster_down,
                &mut self.retry_delay_on_cluster_down,
            ),
        ] {
            set(field, delay.take().map(|Delay(delay)| delay));
        }
        set(&mut config.keep_alive, self.keep_alive.map(Into::into));
    }

    fn set_options(&mut self, config: &mut Config) {
        for (field, on) in [
            (&mut config.offline_queue, self.offline_queue),
            (&mut config.ready_check, self.ready_check),
            (&mut config.lazy_connect, self.lazy_connect),
            (&mut config.no_delay, self.no_delay),
            (&mut config.required, self.required),
        ] {
            set(field, on);
        }
        config.connection_name = self.connection_name.take();
        config.lanes = self.lanes;
        set(&mut config.max_redirections, self.max_redirections);
        set(&mut config.max_retries, self.max_retries);
        set(&mut config.max_in_flight, self.max_in_flight);
        set(&mut config.pool_size, self.pool_size);
        let reads = self.scale_reads.take();
        set(&mut config.scale_reads, reads.map(|Reads(reads)| reads));
        let family = self.family.take();
        set(&mut config.family, family.map(|Addresses(family)| family));
    }
}

impl TryFrom<TlsOptions> for Tls {
    type Error = ConfigError;

    fn try_from(options: TlsOptions) -> Result<Self, ConfigError> {
        let mut tls = Self::new();
        if let Some(name) = options.server_name {
            tls = tls.server_name(name);
        }
        if let Some(reject) = options.reject_unauthorized {
            tls = tls.reject_unauthorized(reject);
        }
        if let Some(path) = options.ca_file {
            tls = tls.ca_file(path);
        }
        match (options.cert_file, options.key_file) {
            (Some(cert), Some(key)) => Ok(tls.client_certificate(cert, key)),
            (None, None) => Ok(tls),
            _ => {
                let fields = ["tls.cert_file", "tls.key_file"];
                Err(ConfigError::about(fields, check::CERT_AND_KEY))
            }
        }
    }
}
