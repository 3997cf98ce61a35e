//! Which server a configuration file names.

use super::Raw;
use crate::config::{
    Config, ConfigError, ConfigErrors, Endpoint, Topology, check, error::shown, url,
};

impl Raw {
    /// Which server, and who we are to it.
    pub(super) fn server(&mut self) -> Result<Config, ConfigErrors> {
        if let Some(url) = self.url.take() {
            return self.server_at(url.reveal());
        }
        let config = Config::unchecked(self.topology()?);
        Ok(Config {
            account: self.account(),
            db: self.db.unwrap_or_default(),
            ..config
        })
    }

    /// A URL says all of it, except that a password may be in a file.
    fn server_at(&mut self, url: &str) -> Result<Config, ConfigErrors> {
        let wrong = |expected| ConfigError::new("url", &url::masked(url), expected);
        let config = Config::at(url::parse(url).map_err(wrong)?);
        let needs_us = self.password_file.is_some() && !config.has_password();
        let parts = [
            ("host", self.host.is_some()),
            ("port", self.port.is_some()),
            ("socket", self.socket.is_some()),
            ("nodes", self.nodes.is_some()),
            ("sentinels", self.sentinels.is_some()),
            ("master_name", self.master_name.is_some()),
            ("username", self.username.is_some() && !needs_us),
            ("password", self.password.is_some()),
            ("password_file", self.password_file.is_some() && !needs_us),
            ("db", self.db.is_some()),
        ];
        let conflicts = parts.iter().filter(|(_, set)| *set);
        let conflicts = conflicts.map(|(part, _)| ConfigError::conflict("url", *part));
        ConfigErrors::unless_empty(conflicts.collect(), ())?;
        if !needs_us {
            return Ok(config);
        }
        Ok(Config {
            account: self.account(),
            ..config
        })
    }

    fn topology(&self) -> Result<Topology, ConfigError> {
        let ways = [
            ("host", self.host.is_some()),
            ("socket", self.socket.is_some()),
            ("nodes", self.nodes.is_some()),
            ("sentinels", self.sentinels.is_some()),
        ];
        let mut ways = ways.iter().filter(|(_, set)| *set).map(|(way, _)| *way);
        let Some(way) = ways.next() else {
            let expected = "`host`, `socket`, `nodes`, `sentinels` or `url`";
            return Err(ConfigError::about(["host"], expected));
        };
        if let Some(other) = ways.next() {
            return Err(ConfigError::conflict(way, other));
        }
        if self.port.is_some() && self.host.is_none() {
            return Err(ConfigError::conflict("port", way));
        }
        if self.master_name.is_some() != self.sentinels.is_some() {
            let fields = ["sentinels", "master_name"];
            return Err(ConfigError::about(fields, "both or none of them"));
        }
        self.topology_of_one_way()
    }

    fn topology_of_one_way(&self) -> Result<Topology, ConfigError> {
        if let Some(nodes) = &self.nodes {
            let nodes = endpoints("nodes", nodes, Endpoint::DEFAULT_PORT)?;
            return Ok(Topology::Cluster { nodes });
        }
        if let (Some(sentinels), Some(master)) = (&self.sentinels, &self.master_name) {
            let port = Endpoint::DEFAULT_SENTINEL_PORT;
            return Ok(Topology::Sentinel {
                sentinels: endpoints("sentinels", sentinels, port)?,
                master: master.clone(),
            });
        }
        let port = self.port.unwrap_or(Endpoint::DEFAULT_PORT);
        let endpoint = match &self.socket {
            Some(socket) => Endpoint::unix(socket),
            None => Endpoint::tcp(self.host.as_deref().unwrap_or_default(), port),
        };
        Ok(Topology::Single(endpoint))
    }
}

fn endpoints(
    field: &str,
    texts: &[String],
    default_port: u16,
) -> Result<Vec<Endpoint>, ConfigError> {
    let endpoint = |text: &String| {
        let wrong = |_| ConfigError::new(field, &shown(text), check::ENDPOINT);
        url::host_and_port(text, default_port).map_err(wrong)
    };
    texts.iter().map(endpoint).collect()
}
