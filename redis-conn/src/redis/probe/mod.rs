//! Asking the servers how they are: one task in the background, so that those who ask for the health cause no command.

mod ask;
mod info;
mod report;
mod verdict;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use self::{
    ask::{Round, ask_all, ask_cluster, ask_facts},
    info::{ClusterInfo, Facts},
    verdict::{Hysteresis, judge},
};
use super::{Context, Redis, Topology, link::Link, node::Node};
#[cfg(feature = "metrics")]
use crate::metrics::Levels;
use crate::{PoolDetails, State, Status, random::jitter, trace::event};

/// How often the servers are asked while all is well.
const PERIOD: Duration = Duration::from_secs(5);

/// How often they are asked while something is wrong.
const WORRIED: Duration = Duration::from_secs(1);

/// At most so often one connection is asked while all is well: many nodes are asked less often, not with more commands.
const EACH: Duration = Duration::from_millis(500);

/// How often the settings of a server are read, beside each time that it is connected to.
const SETTINGS: Duration = Duration::from_secs(60);

/// The only policy under which a server that is full keeps limits, sessions and locks.
const NO_EVICTION: &str = "noeviction";

/// Tells of each round of questions.
pub(crate) type Probes = watch::Receiver<Arc<Snapshot>>;

/// What was learned last.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Nothing before the first round.
    probed: Option<Probed>,
    /// Of the nodes of the round.
    names: Vec<String>,
    round: Round,
    cluster: ClusterInfo,
    /// Of the one server that takes writes, where there is only one.
    run_id: Option<Box<str>>,
    /// Of a server that removes keys when it is full.
    evicts: Option<Box<str>>,
}

#[derive(Debug)]
struct Probed {
    at: SystemTime,
    ended: Instant,
    /// How long until the next round.
    pause: Duration,
    status: Status,
}

/// The task.
pub(super) struct Probe {
    topology: Topology,
    context: Arc<Context>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    number: u64,
    hysteresis: Hysteresis,
    /// By the name of the node.
    known: HashMap<String, Known>,
    #[cfg(feature = "metrics")]
    levels: Levels,
}

/// What a server said of its settings, and on which connection.
#[derive(Debug)]
struct Known {
    facts: Facts,
    link: Weak<Link>,
    read: Instant,
}

impl Probe {
    /// Begins to ask.
    pub(super) fn start(topology: &Topology, context: &Arc<Context>) -> Probes {
        let (snapshots, probes) = watch::channel(Arc::new(Snapshot {
            probed: None,
            names: Vec::new(),
            round: Round::default(),
            cluster: ClusterInfo::default(),
            run_id: None,
            evicts: None,
        }));
        let probe = Self {
            topology: topology.clone(),
            context: Arc::clone(context),
            snapshots,
            number: 0,
            hysteresis: Hysteresis::default(),
            known: HashMap::new(),
            #[cfg(feature = "metrics")]
            levels: Levels::new(),
        };
        let closed = context.closed.clone();
        let running = async move { closed.run_until_cancelled(probe.run()).await };
        context.tasks.spawn_on(running, &context.runtime);
        probes
    }

    async fn run(mut self) {
        let mut states = self.context.board.states();
        // Nothing is wrong before the first attempt to connect has ended, and nobody may have asked for one.
        if states
            .wait_for(|state| *state != State::Connecting)
            .await
            .is_err()
        {
            return;
        }
        loop {
            states.mark_unchanged();
            let (pause, worried) = self.round().await;
            if worried {
                sleep(pause).await;
            } else {
                let _ = timeout(pause, states.changed()).await;
            }
        }
    }

    /// Asks once; returns how long to wait for the next time, and whether something is wrong.
    async fn round(&mut self) -> (Duration, bool) {
        let nodes = self.topology.nodes();
        self.context.telemetry.has_nodes(nodes.len());
        self.number += 1;
        let round = ask_all(&nodes, self.number).await;
        let names: Vec<_> = nodes.iter().map(|node| name(node, &self.context)).collect();
        self.read_settings(&nodes, &names).await;
        let cluster = match &self.topology {
            Topology::One(_) => ClusterInfo::default(),
            Topology::Cluster(_) => ask_cluster(&nodes).await,
        };
        let state = *self.context.board.states().borrow();
        let verdict = judge(&round, &cluster, state);
        let status = self.hysteresis.settle(verdict);
        let worried = verdict != Status::Healthy || status != Status::Healthy;
        let pause = if worried {
            WORRIED
        } else {
            let connections: usize = round.nodes.iter().map(|node| node.lanes).sum();
            let period = PERIOD.max(EACH * u32::try_from(connections).unwrap_or(u32::MAX));
            period - period / 10 + jitter(period / 5)
        };
        #[cfg(feature = "metrics")]
        self.levels.show(in_flight(&nodes), pools(&nodes));
        let settings = self.known.values().map(|known| &known.facts);
        let evicts = settings.clone().find_map(|facts| {
            facts
                .policy
                .clone()
                .filter(|policy| **policy != *NO_EVICTION)
        });
        self.snapshots.send_replace(Arc::new(Snapshot {
            probed: Some(Probed {
                at: SystemTime::now(),
                ended: Instant::now(),
                pause,
                status,
            }),
            names,
            round,
            cluster,
            run_id: match &self.topology {
                Topology::One(_) => settings.last().and_then(|facts| facts.run_id.clone()),
                Topology::Cluster(_) => None,
            },
            evicts,
        }));
        (pause, worried)
    }

    /// Reads the settings of the servers that were connected to since, or whose settings are old.
    async fn read_settings(&mut self, nodes: &[Arc<Node>], names: &[String]) {
        self.known.retain(|name, _| names.contains(name));
        for (node, name) in nodes.iter().zip(names) {
            let Some(link) = node.lanes().iter().find_map(|lane| lane.link_if_up()) else {
                continue;
            };
            let is_fresh = self.known.get(name).is_some_and(|known| {
                known.link.ptr_eq(&Arc::downgrade(&link)) && known.read.elapsed() < SETTINGS
            });
            if is_fresh {
                continue;
            }
            let Some(facts) = ask_facts(&link).await else {
                continue;
            };
            let before = self.known.get(name).map(|known| &known.facts);
            warn_once(&facts, before);
            let known = Known {
                facts,
                link: Arc::downgrade(&link),
                read: Instant::now(),
            };
            self.known.insert(name.clone(), known);
        }
    }
}

/// Warns of settings that differ from those of before, and only of those that matter.
fn warn_once(facts: &Facts, before: Option<&Facts>) {
    if before.is_some_and(|before| before.policy == facts.policy) {
        return;
    }
    match facts.policy.as_deref() {
        Some(NO_EVICTION) => {}
        Some(policy) => event!(
            warn,
            "the server has maxmemory-policy {policy}, expected {NO_EVICTION}: it removes limits, sessions and locks when it is full (maxmemory {})",
            facts.max_memory
        ),
        None => event!(
            info,
            "the server does not tell its maxmemory-policy: this user may not ask INFO"
        ),
    }
}

impl Topology {
    fn nodes(&self) -> Vec<Arc<Node>> {
        match self {
            Self::One(node) => vec![Arc::clone(node)],
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }
}

impl Redis {
    /// What tells of each round of questions.
    pub(crate) fn probes(&self) -> Probes {
        self.inner.probes.clone()
    }
}

fn in_flight(nodes: &[Arc<Node>]) -> usize {
    let lanes = nodes.iter().flat_map(|node| node.lanes());
    lanes.map(|lane| lane.in_flight()).sum()
}

fn pools(nodes: &[Arc<Node>]) -> PoolDetails {
    nodes.iter().fold(PoolDetails::default(), |sum, node| {
        let pool = node.pool_details();
        PoolDetails {
            size: sum.size + pool.size,
            idle: sum.idle + pool.idle,
            waiting: sum.waiting + pool.waiting,
        }
    })
}

/// What a node is called: its address, or the name under which the sentinels know it.
fn name(node: &Node, context: &Context) -> String {
    use super::target::Target;
    use crate::config::Topology::Sentinel;

    match (node.target(), context.dialer.config().topology()) {
        (Target::Single(endpoint) | Target::Member(endpoint, _), _) => endpoint.to_string(),
        (Target::Primary(_), Sentinel { master, .. }) => master.clone(),
        (Target::Primary(_), _) => "primary".to_owned(),
    }
}
