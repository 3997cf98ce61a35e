//! The configuration that a server starts with: that of production first, then what a test needs
//! otherwise. Of two equal directives the later one wins.

use std::fmt::Write as _;

use super::{RedisServer, ports::BUS_OFFSET};

const REDIS: &str = include_str!("../../../deploy/redis.conf");
const CLUSTER: &str = include_str!("../../../deploy/cluster.conf");
const SENTINEL: &str = include_str!("../../../deploy/sentinel.conf");

/// What kind of server it is.
#[derive(Debug, Clone, Default)]
pub(crate) enum Mode {
    #[default]
    Single,
    Cluster,
    /// A sentinel with the `sentinel ...` lines of its master.
    Sentinel(Vec<String>),
}

impl Mode {
    /// The directives of production for this mode, without those that a test cannot take over.
    pub(super) fn production(&self) -> Vec<String> {
        match self {
            Self::Single => directives(REDIS),
            Self::Cluster => [directives(REDIS), directives(CLUSTER)].concat(),
            Self::Sentinel(lines) => {
                let mut all = directives(SENTINEL);
                // A second line that monitors would be refused, not win.
                all.retain(|line| !line.starts_with("sentinel "));
                all.extend(lines.iter().cloned());
                all
            }
        }
    }

    /// The lines that tell others `announced` in place of `port`.
    pub(super) fn announcing(&self, port: u16, announced: u16) -> String {
        match self {
            Self::Single => {
                format!("replica-announce-ip 127.0.0.1\nreplica-announce-port {announced}")
            }
            Self::Cluster => format!(
                "cluster-announce-ip 127.0.0.1\ncluster-announce-port {announced}\n\
                 cluster-announce-bus-port {}",
                port + BUS_OFFSET
            ),
            Self::Sentinel(_) => {
                format!("sentinel announce-ip 127.0.0.1\nsentinel announce-port {announced}")
            }
        }
    }
}

/// The production line `sentinel <option> main ...`, about the master `name` and with `value`.
///
/// # Panics
///
/// If production does not set that option: the fixture would test something else.
pub(crate) fn sentinel_line(option: &str, name: &str, value: &str) -> String {
    let production = format!("sentinel {option} main ");
    assert!(
        directives(SENTINEL)
            .iter()
            .any(|line| line.starts_with(&production)),
        "deploy/sentinel.conf has no line `{production}...`"
    );
    format!("sentinel {option} {name} {value}")
}

fn directives(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|line| !matches!(line.split(' ').next(), Some("include" | "aclfile")))
        .map(str::to_owned)
        .collect()
}

impl RedisServer {
    /// Writes the configuration file as the fixture was asked for it.
    pub(super) fn write_conf(&self) {
        let written = std::fs::write(self.conf_file(), self.conf());
        written.expect("the server's directory is writable");
    }

    fn conf(&self) -> String {
        let mut text = self.mode.production().join("\n");
        let _ = write!(
            text,
            "\nport {}\nbind 127.0.0.1\ndir \"{}\"\nlogfile \"{}\"\n",
            self.port,
            self.dir.display(),
            self.log_file().display()
        );
        if let Some(path) = &self.unix_socket {
            let _ = writeln!(text, "unixsocket \"{}\"", path.display());
        }
        if let Some(password) = self.password() {
            let _ = writeln!(text, "requirepass {}", quote(&password));
        }
        for line in &self.lines {
            text += line;
            text.push('\n');
        }
        text
    }
}

pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
