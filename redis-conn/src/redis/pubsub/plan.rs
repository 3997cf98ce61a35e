//! Where a channel lives.

use std::sync::Arc;

use ::redis::PushKind;

use crate::{
    Error,
    config::Endpoint,
    engine::closed,
    random,
    redis::{
        cluster::{Map, Sight, Trigger, slot},
        target::Target,
    },
};

/// How a channel is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// What is published on any node of a cluster is heard on all of them.
    Plain,
    /// It is heard on the nodes that have the slot of the channel.
    Sharded,
}

impl Kind {
    pub(super) fn subscribe(self) -> &'static str {
        match self {
            Self::Plain => "SUBSCRIBE",
            Self::Sharded => "SSUBSCRIBE",
        }
    }

    pub(super) fn unsubscribe(self) -> &'static str {
        match self {
            Self::Plain => "UNSUBSCRIBE",
            Self::Sharded => "SUNSUBSCRIBE",
        }
    }

    pub(super) fn subscribed(self) -> PushKind {
        match self {
            Self::Plain => PushKind::Subscribe,
            Self::Sharded => PushKind::SSubscribe,
        }
    }

    pub(super) fn unsubscribed(self) -> PushKind {
        match self {
            Self::Plain => PushKind::Unsubscribe,
            Self::Sharded => PushKind::SUnsubscribe,
        }
    }

    pub(super) fn message(self) -> PushKind {
        match self {
            Self::Plain => PushKind::Message,
            Self::Sharded => PushKind::SMessage,
        }
    }
}

/// A server, and how its channels are subscribed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Home {
    /// The node of a cluster; `None` if there is only one server.
    node: Option<Endpoint>,
    pub(super) kind: Kind,
}

/// A home, and what to connect to there.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) home: Home,
    pub(super) target: Target,
}

/// Tells the home of every channel.
#[derive(Debug)]
pub(super) enum Plan {
    One(Target),
    Cluster(Nodes),
}

/// What is known of a cluster.
#[derive(Debug)]
pub(super) struct Nodes {
    trigger: Arc<Trigger>,
    sight: Sight,
    /// The node that has all channels while some servers do not know channels that belong to a slot.
    common: Option<Endpoint>,
}

impl Plan {
    pub(super) fn one(target: Target) -> Self {
        Self::One(target)
    }

    pub(super) fn cluster(trigger: Arc<Trigger>) -> Self {
        Self::Cluster(Nodes {
            trigger,
            sight: Sight::Unknown,
            common: None,
        })
    }

    /// The home of a channel; `None` if it is not known yet.
    pub(super) fn spot(&self, channel: &str) -> Result<Option<Spot>, Error> {
        match self {
            Self::One(target) => Ok(Some(Spot {
                home: Home {
                    node: None,
                    kind: Kind::Plain,
                },
                target: target.clone(),
            })),
            Self::Cluster(nodes) => nodes.spot(channel),
        }
    }

    /// Has the nodes looked up if channels wait for that.
    pub(super) fn doubt(&self) {
        if let Self::Cluster(nodes) = self {
            nodes.trigger.pull();
        }
    }

    pub(super) fn adopt(&mut self, sight: Sight) {
        if let Self::Cluster(nodes) = self {
            nodes.adopt(sight);
        }
    }
}

impl Nodes {
    fn spot(&self, channel: &str) -> Result<Option<Spot>, Error> {
        let (node, kind) = match &self.sight {
            Sight::Unknown => (None, Kind::Sharded),
            Sight::Known(map) if map.is_sharded() => {
                (map.home(slot::of(channel.as_bytes())), Kind::Sharded)
            }
            Sight::Known(_) => (self.common.as_ref(), Kind::Plain),
            Sight::Away(failure) => return Err(failure.error.clone()),
            Sight::Closed => return Err(closed()),
        };
        Ok(node.map(|node| Spot {
            home: Home {
                node: Some(node.clone()),
                kind,
            },
            target: Target::Member(node.clone(), Arc::clone(&self.trigger)),
        }))
    }

    fn adopt(&mut self, sight: Sight) {
        if let Sight::Known(map) = &sight
            && !self.common.as_ref().is_some_and(|node| has(map, node))
        {
            self.common = any(map);
        }
        self.sight = sight;
    }
}

fn has(map: &Map, node: &Endpoint) -> bool {
    map.primaries().any(|primary| primary == node)
}

/// One of the primaries. Each process chooses its own, so that all of them share the work.
fn any(map: &Map) -> Option<Endpoint> {
    let count = map.primaries().count().max(1);
    let chosen = random::id() % count as u64;
    map.primaries().nth(chosen as usize).cloned()
}
