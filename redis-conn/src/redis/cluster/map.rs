//! Which node has which slot.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{slot::SLOTS, view::View};
use crate::{
    config::{Endpoint, ScaleReads},
    redis::{dial::Purpose, node::Node},
};

/// No shard: more than there can be.
const NOBODY: u16 = u16::MAX;

/// The slots and their nodes at one time.
pub(in crate::redis) struct Map {
    /// The place in `shards` of each slot's shard.
    owners: Box<[u16]>,
    shards: Vec<Shard>,
    is_sharded: bool,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Shard {
    endpoint: Endpoint,
    primary: Arc<Node>,
    /// Those that reads may go to.
    replicas: Vec<Arc<Node>>,
}

impl Map {
    /// Made of what the nodes say; `node` gives the connections to an address, if any are wanted.
    pub(super) fn new(
        view: &View,
        is_sharded: bool,
        node: impl Fn(&Endpoint, Purpose) -> Option<Arc<Node>>,
    ) -> Self {
        let mut owners = vec![NOBODY; usize::from(SLOTS)].into_boxed_slice();
        let mut shards: Vec<Shard> = Vec::new();
        for range in &view.ranges {
            let known = shards
                .iter()
                .position(|shard| shard.endpoint == range.primary);
            let index = match known {
                Some(index) => index,
                None => {
                    let Some(primary) = node(&range.primary, Purpose::Lane) else {
                        continue;
                    };
                    let replicas = range.replicas.iter();
                    shards.push(Shard {
                        endpoint: range.primary.clone(),
                        primary,
                        replicas: replicas.filter_map(|at| node(at, Purpose::Reads)).collect(),
                    });
                    shards.len() - 1
                }
            };
            let slots = usize::from(range.first)..=usize::from(range.last);
            // There are no more shards than slots.
            owners[slots].fill(index as u16);
        }
        Self {
            owners,
            shards,
            is_sharded,
            next: AtomicUsize::new(0),
        }
    }

    fn shard(&self, slot: u16) -> Option<&Shard> {
        self.shards.get(usize::from(self.owners[usize::from(slot)]))
    }

    pub(super) fn primary(&self, slot: u16) -> Option<&Arc<Node>> {
        self.shard(slot).map(|shard| &shard.primary)
    }

    /// The address of the node that has a slot.
    pub(in crate::redis) fn home(&self, slot: u16) -> Option<&Endpoint> {
        self.shard(slot).map(|shard| &shard.endpoint)
    }

    pub(in crate::redis) fn primary_nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.shards.iter().map(|shard| &shard.primary)
    }

    /// The node to read from. Replicas that are not connected are passed over; if none is left, the primary answers.
    pub(super) fn reader(&self, slot: u16, reads: ScaleReads) -> Option<Arc<Node>> {
        let shard = self.shard(slot)?;
        if reads == ScaleReads::Primary {
            return Some(Arc::clone(&shard.primary));
        }
        let mut candidates: Vec<&Arc<Node>> =
            shard.replicas.iter().filter(|node| node.is_up()).collect();
        if reads == ScaleReads::Any {
            candidates.push(&shard.primary);
        }
        let turn = self.turn();
        let chosen = candidates.get(turn % candidates.len().max(1)).copied();
        Some(Arc::clone(chosen.unwrap_or(&shard.primary)))
    }

    /// A primary for a command that has no key, one after the other. One that is connected, if there is one.
    pub(super) fn any(&self) -> Option<Arc<Node>> {
        let (turn, count) = (self.turn(), self.shards.len().max(1));
        let at = |step: usize| self.shards.get(turn.wrapping_add(step) % count);
        let up = (0..count)
            .filter_map(at)
            .find(|shard| shard.primary.is_up());
        up.or_else(|| at(0)).map(|shard| Arc::clone(&shard.primary))
    }

    fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a node has a place in this map.
    pub(super) fn contains(&self, node: &Arc<Node>) -> bool {
        let mut nodes = self
            .shards
            .iter()
            .flat_map(|shard| std::iter::once(&shard.primary).chain(&shard.replicas));
        nodes.any(|known| Arc::ptr_eq(known, node))
    }

    /// Whether all servers know channels that belong to a slot.
    pub(in crate::redis) fn is_sharded(&self) -> bool {
        self.is_sharded
    }

    /// The addresses of all primaries.
    pub(in crate::redis) fn primaries(&self) -> impl Iterator<Item = &Endpoint> {
        self.shards.iter().map(|shard| &shard.endpoint)
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map")
            .field("shards", &self.shards.len())
            .field("is_sharded", &self.is_sharded)
            .finish_non_exhaustive()
    }
}
