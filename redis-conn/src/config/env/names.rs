//! Which names are ours.

use crate::config::variables::{REDIS_PARTITIONS, VARIABLES};

/// Where the number is in the name of a variable that there is one of for each.
const NUMBER: &str = "{n}";

/// Whether this version reads it.
pub(super) fn is_known(name: &str) -> bool {
    let is_this = |known: &str| known == name || number(known, name).is_some();
    names().any(is_this)
}

fn names() -> impl Iterator<Item = &'static str> {
    let read = VARIABLES.iter().map(|variable| variable.name);
    read.chain([REDIS_PARTITIONS])
}

/// The name with this number.
pub(super) fn numbered(pattern: &str, number: u32) -> String {
    pattern.replace(NUMBER, &number.to_string())
}

/// The number in the name, if it follows the pattern.
pub(super) fn number(pattern: &str, name: &str) -> Option<u32> {
    let (before, after) = pattern.split_once(NUMBER)?;
    let digits = name.strip_prefix(before)?.strip_suffix(after)?;
    let is_number = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then_some(digits)?.parse().ok()
}

/// The variable that was probably meant by an unknown name.
pub(super) fn nearest(name: &str) -> Option<String> {
    const TYPOS: usize = 2;
    let distance = |known: &str| match known.starts_with(name) {
        true => 0,
        false => distance(name, known),
    };
    let known = names().map(|known| numbered(known, 1));
    let (distance, known) = known.map(|known| (distance(&known), known)).min()?;
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
            ("REDIS_NODE0_HOST", Some("REDIS_NODE1_HOST")),
            ("REDIS_SENTINEL1_PROT", Some("REDIS_SENTINEL1_PORT")),
            ("REDIS_CONNECTION_TIMEOUT", None),
            ("REDIS_CONNECT_TIMEOUTS", Some("REDIS_CONNECT_TIMEOUT")),
            ("REDIS_EVERYTHING", None),
        ] {
            assert_eq!(nearest(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_number_has_one_form() {
        for (name, expected) in [
            ("REDIS_NODE1_HOST", Some(1)),
            ("REDIS_NODE120_HOST", Some(120)),
            ("REDIS_NODE0_HOST", None),
            ("REDIS_NODE01_HOST", None),
            ("REDIS_NODE+1_HOST", None),
            ("REDIS_NODE_HOST", None),
            ("REDIS_NODE4294967296_HOST", None),
            ("REDIS_NODE1_PORT", None),
        ] {
            assert_eq!(number("REDIS_NODE{n}_HOST", name), expected, "{name}");
            assert_eq!(
                is_known(name),
                expected.is_some() || name.ends_with("1_PORT"),
                "{name}"
            );
        }
    }

    #[test]
    fn what_kubernetes_injects() {
        for (name, value, expected) in [
            ("REDIS_PORT", "tcp://10.0.0.1:6379", true),
            ("REDIS_PORT", "6379", false),
            ("REDIS_NODE1_PORT", "6379", false),
            ("REDIS_NODE1_PORT", "tcp://10.0.0.1:6379", true),
            ("REDIS_SENTINEL1_PORT", "26379", false),
            (
                "REDIS_SENTINEL_PORT_26379_TCP",
                "tcp://10.0.0.1:26379",
                true,
            ),
            ("REDIS_NODE_SERVICE_HOST", "10.0.0.1", true),
            ("REDIS_NODE_1_SERVICE_PORT_REDIS", "6379", true),
            ("OTHER_SERVICE_HOST", "10.0.0.1", false),
        ] {
            assert_eq!(is_injected(name, value), expected, "{name}={value}");
        }
    }
}
