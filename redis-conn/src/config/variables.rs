//! The environment variables, in one table: what is read, what errors say, and what `variables.md` documents.

use super::check;

/// A variable that this version reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    /// What holds while it is not set, written as a value; empty if nothing does.
    pub(super) default: &'static str,
    pub(super) secrecy: Secrecy,
}

/// How much of a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    Open,
    Url,
    Secret,
}

const fn open(name: &'static str, expected: &'static str, default: &'static str) -> Variable {
    let secrecy = Secrecy::Open;
    Variable {
        name,
        expected,
        default,
        secrecy,
    }
}

const URL: &str = "`redis://[[user]:password@]host[:port][/db]` or `unix:///path/to/socket`";
const FILE: &str = "the path of a file, which is created if absent";

pub(super) const REDIS_URL: Variable = Variable {
    secrecy: Secrecy::Url,
    ..open("REDIS_URL", URL, "")
};
pub(super) const REDIS_HOST: Variable = open("REDIS_HOST", check::HOST, "");
pub(super) const REDIS_PORT: Variable = open("REDIS_PORT", check::PORT, "6379");
pub(super) const REDIS_USERNAME: Variable = open("REDIS_USERNAME", check::USERNAME, "");
pub(super) const REDIS_PASSWORD: Variable = Variable {
    secrecy: Secrecy::Secret,
    ..open("REDIS_PASSWORD", check::PASSWORD, "")
};
pub(super) const REDIS_DB: Variable = open("REDIS_DB", check::DB, "0");
pub(super) const REDIS_REQUIRED: Variable = open("REDIS_REQUIRED", check::BOOL, "false");
pub(super) const REDIS_CONNECT_TIMEOUT: Variable =
    open("REDIS_CONNECT_TIMEOUT", check::TIMEOUT, "10s");
pub(super) const REDIS_COMMAND_TIMEOUT: Variable =
    open("REDIS_COMMAND_TIMEOUT", check::TIMEOUT, "5s");
pub(super) const REDIS_KEEP_ALIVE: Variable = open("REDIS_KEEP_ALIVE", check::KEEP_ALIVE, "15s");
pub(crate) const SQLITE_PATH: Variable = open("SQLITE_PATH", FILE, "");
pub(super) const NAMESPACE: Variable = open("NAMESPACE", check::NAMESPACE, "tk");
pub(super) const INSTANCE_ID: Variable = open("INSTANCE_ID", check::INSTANCE, "");

pub(super) const VARIABLES: &[Variable] = &[
    REDIS_URL,
    REDIS_HOST,
    REDIS_PORT,
    REDIS_USERNAME,
    REDIS_PASSWORD,
    REDIS_DB,
    REDIS_REQUIRED,
    REDIS_CONNECT_TIMEOUT,
    REDIS_COMMAND_TIMEOUT,
    REDIS_KEEP_ALIVE,
    SQLITE_PATH,
    NAMESPACE,
    INSTANCE_ID,
];

/// A variable that asks for what this version cannot do: it is refused, because to ignore it would be to do something else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    pub(super) name: &'static str,
    /// It asks only where it says `true`.
    pub(super) is_flag: bool,
    pub(super) asks_for: Wish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Cluster,
    Sentinel,
    Partitions,
    Tls,
    PasswordFile,
}

impl Wish {
    /// Whether asking for it names a Redis server.
    pub(super) fn is_topology(self) -> bool {
        matches!(self, Self::Cluster | Self::Sentinel | Self::Partitions)
    }

    /// What can be had instead, and why.
    pub(super) fn instead(self) -> String {
        let (instead, wish) = match self {
            Self::Cluster => (SINGLE, "topology \"cluster\""),
            Self::Sentinel => (SINGLE, "topology \"sentinel\""),
            Self::Partitions => (SINGLE, "topology \"partitioned\""),
            Self::Tls => ("a connection without TLS", "TLS"),
            Self::PasswordFile => ("the password in REDIS_PASSWORD", "a password file"),
        };
        format!("{instead}: {wish} is not available yet in this version")
    }
}

const SINGLE: &str = "a single server, named by REDIS_URL or REDIS_HOST";

const fn refused(name: &'static str, is_flag: bool, asks_for: Wish) -> Refused {
    Refused {
        name,
        is_flag,
        asks_for,
    }
}

pub(super) const REFUSED: &[Refused] = &[
    refused("REDIS_CLUSTER", true, Wish::Cluster),
    refused("REDIS_NODES", false, Wish::Cluster),
    refused("REDIS_NODE1_HOST", false, Wish::Cluster),
    refused("REDIS_SENTINEL", true, Wish::Sentinel),
    refused("REDIS_SENTINEL1_HOST", false, Wish::Sentinel),
    refused("REDIS_PARTITIONS", false, Wish::Partitions),
    refused("REDIS_TLS", true, Wish::Tls),
    refused("REDIS_PASSWORD_FILE", false, Wish::PasswordFile),
];

fn names() -> impl Iterator<Item = &'static str> {
    let read = VARIABLES.iter().map(|variable| variable.name);
    read.chain(REFUSED.iter().map(|refused| refused.name))
}

pub(super) fn known(name: &str) -> Option<&'static str> {
    names().find(|known| *known == name)
}

/// The variable that was probably meant by an unknown name.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    const TYPOS: usize = 2;
    let distance = |known: &str| match known.starts_with(name) {
        true => 0,
        false => distance(name, known),
    };
    let (distance, known) = names().map(|known| (distance(known), known)).min()?;
    (distance <= TYPOS).then_some(known)
}

/// How many characters must be inserted, deleted or replaced.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, here) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, there) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(here != *there);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// Whether Kubernetes sets this for a Service that is called redis, or redis-something.
pub(super) fn is_injected(name: &str, value: &str) -> bool {
    if !name.starts_with("REDIS_") {
        return false;
    }
    let is_address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    if name.ends_with("_PORT") && is_address {
        return true;
    }
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name
            .split_once("_PORT_")
            .is_some_and(|(_, rest)| is_port_and_protocol(rest))
}

/// `6379_TCP`, `6379_TCP_ADDR`.
fn is_port_and_protocol(text: &str) -> bool {
    let mut parts = text.split('_');
    let port = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
    port && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_the_table() {
        let documented: Vec<Vec<&str>> = include_str!("variables.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|row| row.split(" | ").collect())
            .collect();
        assert_eq!(documented.len(), VARIABLES.len());
        for (row, variable) in documented.iter().zip(VARIABLES) {
            let [name, meaning, expected, default] = row[..] else {
                panic!("{row:?} has not four columns");
            };
            assert_eq!(name.trim_end_matches('`'), variable.name);
            assert!(!meaning.is_empty());
            assert_eq!(expected, variable.expected, "{name}");
            if variable.default.is_empty() {
                assert!(!default.contains('`'), "{name} has no default value");
            } else {
                assert_eq!(default, format!("`{}`", variable.default), "{name}");
            }
        }
    }

    #[test]
    fn the_documentation_names_what_is_refused() {
        for refused in REFUSED {
            assert!(
                include_str!("variables.md").contains(&format!("`{}", refused.name)),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn distances() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("abc", "abc", 0),
            ("abc", "axc", 1),
            ("kitten", "sitting", 3),
            ("hsot", "host", 2),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn a_hint_is_near_or_absent() {
        for (name, expected) in [
            ("REDIS_HSOT", Some("REDIS_HOST")),
            ("REDIS_PASWORD", Some("REDIS_PASSWORD")),
            ("REDIS_PASS", Some("REDIS_PASSWORD")),
            ("REDIS_CONNECTION_TIMEOUT", None),
            ("REDIS_CONNECT_TIMEOUTS", Some("REDIS_CONNECT_TIMEOUT")),
            ("REDIS_EVERYTHING", None),
        ] {
            assert_eq!(nearest(name), expected, "{name}");
        }
    }
}
