//! What one node of a cluster thinks of the others.

use std::{collections::BTreeMap, ops::RangeInclusive};

use redis::RedisResult;

use crate::RedisServer;

/// What one node says.
#[derive(Debug)]
pub(super) struct View {
    /// Whether it serves requests.
    pub(super) ok: bool,
    /// Whether it is a primary, or its link to its primary is up.
    pub(super) in_step: bool,
    pub(super) members: BTreeMap<String, Member>,
}

/// What it says about one node, itself included.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) part: Part,
    /// Whether it is known by more than hearsay and not thought to be down.
    pub(super) well: bool,
}

/// The part of a node in the cluster; all nodes must agree on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Nobody for a primary.
    pub(super) primary: Option<String>,
    slots: Vec<RangeInclusive<u16>>,
}

impl Part {
    pub(super) fn owns(&self, slot: u16) -> bool {
        self.slots.iter().any(|range| range.contains(&slot))
    }

    pub(super) fn slot_count(&self) -> usize {
        self.slots.iter().map(ExactSizeIterator::len).sum()
    }
}

impl View {
    pub(super) async fn of(node: &RedisServer) -> RedisResult<Self> {
        let mut connection = node.try_connection().await?;
        let mut asked = redis::pipe();
        asked.cmd("CLUSTER").arg("INFO");
        asked.cmd("CLUSTER").arg("NODES");
        asked.cmd("INFO").arg("replication");
        let (info, nodes, replication): (String, String, String) =
            asked.query_async(&mut connection).await?;
        Ok(Self {
            ok: info.contains("cluster_state:ok"),
            in_step: !replication.contains("master_link_status:down")
                && !replication.contains("master_sync_in_progress:1"),
            members: nodes.lines().filter_map(member).collect(),
        })
    }

    /// The id of the primary that serves `slot`.
    pub(super) fn owner(&self, slot: u16) -> Option<&str> {
        let found = self.members.iter().find(|(_, node)| node.part.owns(slot));
        found.map(|(id, _)| id.as_str())
    }
}

/// Reads `id address flags primary ping pong epoch link slot slot-slot [slot->-id] ...`.
fn member(line: &str) -> Option<(String, Member)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (fields, slots) = words.split_at_checked(8)?;
    let [id, _, flags, primary, .., link] = *fields else {
        return None;
    };
    let down = ["fail", "fail?", "handshake", "noaddr"];
    let reachable = link == "connected" || flags.contains("myself");
    let part = Part {
        primary: (primary != "-").then(|| primary.to_owned()),
        slots: slots.iter().filter_map(|word| range(word)).collect(),
    };
    let well = reachable && !flags.split(',').any(|flag| down.contains(&flag));
    Some((id.to_owned(), Member { part, well }))
}

fn range(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

    use super::*;

    #[test]
    fn reads_the_slots_of_a_node_and_not_those_on_the_move() {
        let line = "aa 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-2 7 [93-<-bb]";
        let (id, node) = member(line).unwrap();
        assert_eq!(id, "aa");
        assert!(node.well && node.part.primary.is_none());
        assert_eq!(node.part.slot_count(), 4);
        assert!(node.part.owns(2) && node.part.owns(7) && !node.part.owns(93));
    }

    #[test]
    fn a_node_that_may_be_down_is_not_well() {
        for (flags, link) in [
            ("slave,fail?", "connected"),
            ("master,fail", "connected"),
            ("handshake", "connected"),
            ("slave", "disconnected"),
        ] {
            let line = format!("aa 127.0.0.1:7000@17000 {flags} bb 0 0 1 {link}");
            assert!(!member(&line).unwrap().1.well, "{line}");
        }
    }
}
