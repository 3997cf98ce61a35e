//! What servers tell of themselves: lines of `name:value`.

use ::redis::Value;

/// From `INFO`. Without a policy the user may not ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) policy: Option<Box<str>>,
    pub(super) max_memory: u64,
    pub(super) run_id: Option<Box<str>>,
}

/// From `CLUSTER INFO`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClusterInfo {
    pub(super) state: Option<Box<str>>,
    pub(super) epoch: Option<u64>,
}

impl Facts {
    pub(super) fn read(text: &str) -> Self {
        Self {
            policy: word(text, "maxmemory_policy"),
            max_memory: number(text, "maxmemory").unwrap_or(0),
            run_id: word(text, "run_id"),
        }
    }
}

impl ClusterInfo {
    pub(super) fn read(text: &str) -> Self {
        Self {
            state: word(text, "cluster_state"),
            epoch: number(text, "cluster_current_epoch"),
        }
    }
}

pub(super) fn text(answer: &Value) -> Option<&str> {
    match answer {
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => Some(text),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// A value, unless it is something that does not belong into a log.
fn word(text: &str, name: &str) -> Option<Box<str>> {
    let is_word = |value: &&str| {
        !value.is_empty()
            && value.len() <= 64
            && value
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    field(text, name).filter(is_word).map(Into::into)
}

fn number(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    text.lines().find_map(value).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read() {
        let text = "# Server\r\nrun_id:4cf2\r\n# Memory\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n";
        let facts = Facts::read(text);
        assert_eq!(facts.policy.as_deref(), Some("allkeys-lru"));
        assert_eq!(
            (facts.max_memory, facts.run_id.as_deref()),
            (100, Some("4cf2"))
        );
        assert_eq!(
            Facts::read("maxmemory_policy:\x1b[31m\r\n"),
            Facts::default()
        );

        let cluster = ClusterInfo::read("cluster_state:ok\r\ncluster_current_epoch:6\r\n");
        assert_eq!(
            (cluster.state.as_deref(), cluster.epoch),
            (Some("ok"), Some(6))
        );
        assert_eq!(ClusterInfo::read("cluster_state"), ClusterInfo::default());
    }
}
