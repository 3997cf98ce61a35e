//! Looking up who has which slots: when there is a reason, at least from time to time, and never too often.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Cluster, Sight,
    election::{Testimony, elect},
    view::View,
    witness::{Witness, greet},
};
use crate::{
    State,
    config::{Endpoint, ScaleReads},
    random,
    redis::{Context, board::LightId, fault::Failure, greeting::Version},
    trace::event,
};

/// The shortest time between two look-ups.
const FLOOR: Duration = Duration::from_millis(250);

/// The longest pause before the next look-up while slots have no server or the nodes disagree, unless somebody asks for it: a part
/// of a cluster may be left without a server for long, and on purpose.
const CEILING: Duration = Duration::from_secs(2);

/// The same while no node answers: nobody has lanes then whose failures would ask.
const CEILING_IN_THE_DARK: Duration = Duration::from_secs(1);

/// The longest time between two look-ups: a new replica, or a node without keys in use, gives no other sign.
pub(super) const PERIOD: Duration = Duration::from_secs(30);

/// The same for those who read from replicas: a node does not name a replica until it has copied something, and nothing tells when.
const PERIOD_OF_READERS: Duration = Duration::from_secs(5);

/// How many nodes are asked at the same time. One alone may be cut off from the others and not know it.
const WITNESSES: usize = 3;

/// A silent node does not keep the next one from being asked.
const HEDGE: Duration = Duration::from_millis(150);

/// How long the other witnesses are waited for once one has answered.
const GRACE: Duration = Duration::from_millis(150);

/// How long one look-up may take in all.
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// So many addresses are remembered beside those of the configuration.
const MEMORY: usize = 256;

/// The first version whose channels belong to slots.
const SHARDED: Version = Version(7, 0);

/// Looks up the slots for as long as the cluster is used.
pub(super) struct Surveyor {
    cluster: Weak<Cluster>,
    context: Arc<Context>,
    light: LightId,
    configured: Vec<Endpoint>,
    /// Every node ever seen: when all of the present ones are gone, one of them may lead to the new ones.
    seen: Vec<Endpoint>,
    /// What is believed at present.
    present: Option<View>,
    /// Nobody who answered the last time belongs to the cluster.
    lost: bool,
}

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Settled,
    /// There is reason to look again soon: a slot has no server, the nodes disagree, or something about them is not known yet.
    Open {
        moved: bool,
    },
    /// Nobody answered.
    Dark,
}

impl Surveyor {
    pub(super) fn new(cluster: &Arc<Cluster>, seeds: &[Endpoint]) -> Self {
        let context = Arc::clone(&cluster.context);
        Self {
            cluster: Arc::downgrade(cluster),
            light: context.board.add(State::Connecting),
            context,
            configured: seeds.to_vec(),
            seen: Vec::new(),
            present: None,
            lost: false,
        }
    }

    pub(super) async fn run(mut self) {
        let ends = Closing(self.cluster.clone());
        let closed = self.context.closed.clone();
        closed.run_until_cancelled(self.keep_up_to_date()).await;
        drop(ends);
        self.context.board.remove(self.light);
    }

    async fn keep_up_to_date(&mut self) {
        let Some(trigger) = self
            .cluster
            .upgrade()
            .map(|cluster| Arc::clone(cluster.trigger()))
        else {
            return;
        };
        if self.context.dialer.config().lazy_connect() {
            trigger.pulled().await;
        }
        let period = match self.context.dialer.config().scale_reads() {
            ScaleReads::Primary => PERIOD,
            ScaleReads::Replica | ScaleReads::Any => PERIOD_OF_READERS,
        };
        let mut pause = FLOOR;
        loop {
            let began = Instant::now();
            let outcome = self.survey().await;
            self.context.telemetry.refreshed(began.elapsed());
            sleep_until(began + FLOOR).await;
            let end = match outcome {
                Outcome::Settled => {
                    pause = FLOOR;
                    Instant::now() + period
                }
                Outcome::Open { moved: true } => {
                    pause = FLOOR;
                    continue;
                }
                Outcome::Open { moved: false } | Outcome::Dark => {
                    let ceiling = match outcome {
                        Outcome::Dark => CEILING_IN_THE_DARK,
                        _ => CEILING,
                    };
                    let end = began + pause.min(ceiling);
                    pause = (pause * 2).min(ceiling);
                    end
                }
            };
            let _ = timeout_at(end, trigger.pulled()).await;
        }
    }

    /// One look-up.
    async fn survey(&mut self) -> Outcome {
        let Some(cluster) = self.cluster.upgrade() else {
            return Outcome::Settled;
        };
        let testimonies = match self.ask(&cluster).await {
            Ok(testimonies) => testimonies,
            Err(failure) => {
                self.is_blind(&cluster, failure);
                return Outcome::Dark;
            }
        };
        let elected = elect(&testimonies, self.present.as_ref());
        self.lost = elected.is_none();
        let Some((elected, unanimous)) = elected else {
            let text = "the nodes that answer have no slots, or belong to another cluster";
            self.is_blind(&cluster, Failure::away(text));
            return Outcome::Dark;
        };
        self.remember(elected);
        let is_sharded = self.is_sharded(&cluster, elected).await;
        cluster.adopt(elected, is_sharded.unwrap_or_else(|guess| guess));
        let complete = elected.is_complete();
        let board = &self.context.board;
        if complete {
            board.pass(self.light);
        } else {
            let failure = Failure::away("some slots of the cluster have no server");
            board.fail(self.light, &failure);
        }
        let moved = !self
            .present
            .as_ref()
            .is_some_and(|view| view.agrees(elected));
        self.present = Some(elected.clone());
        if complete && unanimous && is_sharded.is_ok() {
            return Outcome::Settled;
        }
        Outcome::Open { moved }
    }

    /// Nobody tells anything that could be used. What was known before still holds.
    fn is_blind(&self, cluster: &Cluster, failure: Failure) {
        event!(
            warn,
            "no node of the cluster tells who has the slots: {}",
            failure.error
        );
        self.context.board.fail(self.light, &failure);
        cluster.sight.send_if_modified(|sight| {
            let blind = matches!(sight, Sight::Unknown | Sight::Away(_));
            if blind {
                *sight = Sight::Away(failure);
            }
            blind
        });
    }

    /// Whether channels belong to slots: not as long as one primary is older than that.
    ///
    /// If one has not been reached nobody can tell, and the answer stays what it was: those who publish and those who listen must
    /// not part because a node is away for a moment. Before the first answer the nodes are waited for, but not for long.
    async fn is_sharded(&self, cluster: &Arc<Cluster>, view: &View) -> Result<bool, bool> {
        let primaries = cluster.primaries(view);
        let known = cluster.known_to_be_sharded();
        if primaries.is_empty() {
            return Err(known.unwrap_or(true));
        }
        if known.is_none() {
            greet(&primaries, Instant::now() + GRACE).await;
        }
        let versions = primaries.iter().map(|node| node.version());
        if versions.clone().flatten().any(|version| version < SHARDED) {
            return Ok(false);
        }
        if versions.into_iter().any(|version| version.is_none()) {
            return Err(known.unwrap_or(true));
        }
        Ok(true)
    }

    /// Asks some of the nodes, all at once, and others in the place of those that fail or say nothing.
    async fn ask(&self, cluster: &Arc<Cluster>) -> Result<Vec<Testimony>, Failure> {
        let mut candidates = self.candidates(cluster).into_iter();
        let mut asked = JoinSet::new();
        for witness in candidates.by_ref().take(WITNESSES) {
            asked.spawn(witness.ask(Arc::clone(&self.context)));
        }
        let mut end = Instant::now() + LIMIT;
        let mut testimonies: Vec<Testimony> = Vec::new();
        let mut failure = None;
        loop {
            let patience = end.min(Instant::now() + HEDGE);
            let replaced = match timeout_at(patience, asked.join_next()).await {
                Ok(None) => break,
                Ok(Some(Ok(Ok(testimony)))) => {
                    if testimonies.is_empty() {
                        end = end.min(Instant::now() + GRACE);
                    }
                    // A name and an address may be those of one node, which has one vote.
                    let is_known = |other: &Testimony| other.is_of_the_same_node(&testimony);
                    let known = testimonies.iter().any(is_known);
                    if !known {
                        testimonies.push(testimony);
                    }
                    known
                }
                Ok(Some(Ok(Err(failed)))) => {
                    failure = Some(failed);
                    true
                }
                Ok(Some(Err(_))) => true,
                Err(_) if Instant::now() >= end => break,
                Err(_) => testimonies.is_empty(),
            };
            if testimonies.len() == WITNESSES {
                break;
            }
            if replaced && let Some(witness) = candidates.next() {
                asked.spawn(witness.ask(Arc::clone(&self.context)));
            }
        }
        if testimonies.is_empty() {
            return Err(
                failure.unwrap_or_else(|| Failure::away("no node of the cluster answered in time"))
            );
        }
        Ok(testimonies)
    }

    /// Those that are connected come first, in a random order; then every address that was ever known. If that has led nowhere,
    /// those of the configuration come first.
    fn candidates(&self, cluster: &Cluster) -> Vec<Witness> {
        let live = cluster.live();
        let known = self.configured.iter().chain(&self.seen);
        let mut others: Vec<&Endpoint> = Vec::new();
        for endpoint in known {
            if !others.contains(&endpoint) && live.iter().all(|(at, _)| at != endpoint) {
                others.push(endpoint);
            }
        }
        let mut others: Vec<_> = others.into_iter().cloned().map(|at| (at, None)).collect();
        let mut witnesses: Vec<_> = live
            .into_iter()
            .map(|(at, node)| (at, Some(node)))
            .collect();
        shuffle(&mut witnesses);
        shuffle(&mut others);
        witnesses.extend(others);
        let is_configured = |endpoint: &Endpoint| self.configured.contains(endpoint);
        if self.lost {
            witnesses.sort_by_key(|(endpoint, _)| !is_configured(endpoint));
        }
        let witness = |(endpoint, node)| Witness {
            is_configured: is_configured(&endpoint),
            endpoint,
            node,
        };
        witnesses.into_iter().map(witness).collect()
    }

    fn remember(&mut self, view: &View) {
        for endpoint in view.endpoints() {
            if !self.seen.contains(endpoint) {
                self.seen.push(endpoint.clone());
            }
        }
        let surplus = self.seen.len().saturating_sub(MEMORY);
        self.seen.drain(..surplus);
    }
}

fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let chosen = random::id() % (last as u64 + 1);
        items.swap(last, chosen as usize);
    }
}

/// Tells callers however the look-ups end.
struct Closing(Weak<Cluster>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(cluster) = self.0.upgrade() {
            cluster.sight.send_replace(Sight::Closed);
        }
    }
}
