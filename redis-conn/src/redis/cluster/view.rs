//! What one node says about who has which slots: the answer to `CLUSTER SLOTS`.

use ::redis::Value;

use super::slot::SLOTS;
use crate::{config::Endpoint, redis::fault::Failure};

/// Who has which slots, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// By their first slot.
    pub(super) ranges: Vec<Range>,
}

/// Slots in a row with the same servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) primary: Endpoint,
    pub(super) replicas: Vec<Endpoint>,
}

impl View {
    /// Reads the answer of the node at `asked`.
    pub(super) fn read(answer: &Value, asked: &Endpoint) -> Result<Self, Failure> {
        let Value::Array(ranges) = answer else {
            return Err(unreadable());
        };
        let ranges = ranges.iter().map(|range| Range::read(range, asked));
        let mut ranges: Vec<Range> = ranges.collect::<Option<_>>().ok_or_else(unreadable)?;
        ranges.sort_by_key(|range| range.first);
        Ok(Self { ranges })
    }

    /// Whether every slot has a server.
    pub(super) fn is_complete(&self) -> bool {
        let mut next = 0;
        for range in &self.ranges {
            if range.first > next {
                return false;
            }
            next = next.max(range.last + 1);
        }
        next == SLOTS
    }

    /// Whether both name the same primary for every slot.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        let primaries = |view: &Self| -> Vec<(u16, u16, Endpoint)> {
            let ranges = view.ranges.iter();
            ranges
                .map(|range| (range.first, range.last, range.primary.clone()))
                .collect()
        };
        primaries(self) == primaries(other)
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        let ranges = self.ranges.iter();
        ranges.flat_map(|range| std::iter::once(&range.primary).chain(&range.replicas))
    }
}

impl Range {
    fn read(range: &Value, asked: &Endpoint) -> Option<Self> {
        let Value::Array(parts) = range else {
            return None;
        };
        let [Value::Int(first), Value::Int(last), primary, replicas @ ..] = parts.as_slice() else {
            return None;
        };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        if first > last || last >= SLOTS {
            return None;
        }
        let mut replicas: Vec<_> = replicas
            .iter()
            .filter_map(|replica| endpoint(replica, asked))
            .collect();
        replicas.sort_by_key(Endpoint::to_string);
        Some(Self {
            first,
            last,
            primary: endpoint(primary, asked)?,
            replicas,
        })
    }
}

/// A node as `[host, port, ..]`. No host means that of the node that was asked.
fn endpoint(node: &Value, asked: &Endpoint) -> Option<Endpoint> {
    let Value::Array(parts) = node else {
        return None;
    };
    let [host, Value::Int(port), ..] = parts.as_slice() else {
        return None;
    };
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    match (host, asked) {
        ("" | "?", Endpoint::Tcp { host, .. }) => Some(Endpoint::tcp(host, port)),
        ("" | "?", Endpoint::Unix(_)) => None,
        (host, _) => Some(Endpoint::tcp(host, port)),
    }
}

fn unreadable() -> Failure {
    Failure::away("a node answered CLUSTER SLOTS with something else than slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: i64) -> Value {
        Value::Array(vec![Value::BulkString(host.into()), Value::Int(port)])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        let mut parts = vec![Value::Int(first), Value::Int(last)];
        parts.extend(nodes);
        Value::Array(parts)
    }

    fn read(ranges: Vec<Value>) -> Result<View, Failure> {
        View::read(&Value::Array(ranges), &Endpoint::tcp("asked", 7000))
    }

    #[test]
    fn a_node_without_a_host_is_at_the_host_that_was_asked() {
        let nodes = vec![
            Value::Array(vec![Value::Nil, Value::Int(7001)]),
            node("", 7002),
            node("other", 7003),
        ];
        let view = read(vec![range(0, 16_383, nodes)]).unwrap();
        assert_eq!(view.ranges[0].primary, Endpoint::tcp("asked", 7001));
        let replicas = [Endpoint::tcp("asked", 7002), Endpoint::tcp("other", 7003)];
        assert_eq!(view.ranges[0].replicas, replicas);
    }

    #[test]
    fn coverage_and_agreement() {
        let low = range(0, 99, vec![node("a", 1)]);
        let high = range(100, 16_383, vec![node("b", 1), node("c", 1)]);
        let whole = read(vec![high.clone(), low.clone()]).unwrap();
        assert!(whole.is_complete());
        assert!(!read(vec![high.clone()]).unwrap().is_complete());
        assert!(!read(vec![low.clone()]).unwrap().is_complete());
        assert!(!read(Vec::new()).unwrap().is_complete());

        let without_replica = range(100, 16_383, vec![node("b", 1)]);
        assert!(whole.agrees(&read(vec![low.clone(), without_replica]).unwrap()));
        let taken_over = range(100, 16_383, vec![node("c", 1)]);
        assert!(!whole.agrees(&read(vec![low, taken_over]).unwrap()));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for wrong in [
            Value::Okay,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(5, 4, vec![node("a", 1)])]),
            Value::Array(vec![range(0, 16_384, vec![node("a", 1)])]),
            Value::Array(vec![range(0, 1, vec![node("a", 0)])]),
            Value::Array(vec![range(0, 1, vec![])]),
        ] {
            assert!(
                View::read(&wrong, &Endpoint::tcp("asked", 1)).is_err(),
                "{wrong:?}"
            );
        }
    }
}
