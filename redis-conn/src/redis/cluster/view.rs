//! What one node says about who has which slots: the answer to `CLUSTER SLOTS`.

use std::net::SocketAddr;

use ::redis::Value;

use super::slot::SLOTS;
use crate::{config::Endpoint, redis::fault::Failure};

/// Who has which slots, as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// By their first slot.
    pub(super) ranges: Vec<Range>,
    /// What the nodes that it names call themselves; nobody else in the world has the same name.
    ids: Vec<(Endpoint, String)>,
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
        let ids = ranges.iter().flat_map(|range| ids(range, asked)).collect();
        let ranges = ranges.iter().map(|range| Range::read(range, asked));
        let mut ranges: Vec<Range> = ranges.collect::<Option<_>>().ok_or_else(unreadable)?;
        ranges.sort_by_key(|range| range.first);
        Ok(Self { ranges, ids })
    }

    /// Whether it names no node: it is that of a node that belongs to no cluster yet, or not any more.
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether both can be of one cluster: they have a node in common, or do not tell.
    pub(super) fn is_kin(&self, other: &Self) -> bool {
        let knows = |id: &str| other.ids.iter().any(|(_, known)| known == id);
        self.ids.is_empty() || other.ids.is_empty() || self.ids.iter().any(|(_, id)| knows(id))
    }

    /// What the node at an address calls itself.
    pub(super) fn id_at(&self, endpoint: &Endpoint) -> Option<&str> {
        let mut ids = self.ids.iter();
        ids.find(|(at, _)| at == endpoint).map(|(_, id)| &**id)
    }

    /// The same for one that is known here by its number.
    pub(super) fn id_at_addr(&self, addr: SocketAddr) -> Option<&str> {
        self.id_at(&Endpoint::tcp(addr.ip().to_string(), addr.port()))
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

/// The names of the nodes of a range as `[host, port, id, ..]`.
fn ids(range: &Value, asked: &Endpoint) -> Vec<(Endpoint, String)> {
    let Value::Array(parts) = range else {
        return Vec::new();
    };
    let named = |node: &Value| {
        let Value::Array(parts) = node else {
            return None;
        };
        let id = match parts.get(2)? {
            Value::BulkString(id) => std::str::from_utf8(id).ok()?,
            Value::SimpleString(id) => id,
            _ => return None,
        };
        Some((endpoint(node, asked)?, id.to_owned()))
    };
    parts.iter().skip(2).filter_map(named).collect()
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

    fn named(host: &str, port: i64, id: &str) -> Value {
        let id = Value::BulkString(id.into());
        Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), id])
    }

    #[test]
    fn clusters_are_told_from_each_other_by_the_names_of_their_nodes() {
        let view = |nodes| read(vec![range(0, 16_383, nodes)]).unwrap();
        let before = view(vec![named("a", 1, "one"), named("b", 1, "two")]);
        let after = view(vec![named("c", 1, "two"), named("d", 1, "three")]);
        let foreign = view(vec![named("a", 1, "four"), named("b", 1, "five")]);
        let silent = view(vec![node("a", 1)]);
        assert!(before.is_kin(&after) && after.is_kin(&before));
        assert!(!before.is_kin(&foreign) && !foreign.is_kin(&before));
        assert!(before.is_kin(&silent) && silent.is_kin(&before));
        assert_eq!(after.id_at(&Endpoint::tcp("c", 1)), Some("two"));
        assert_eq!(after.id_at(&Endpoint::tcp("a", 1)), None);
        let by_number = view(vec![named("127.0.0.1", 7000, "one")]);
        let addr = "127.0.0.1:7000".parse().unwrap();
        assert_eq!(by_number.id_at_addr(addr), Some("one"));
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
