//! Looking up who has which slots: when there is a reason, at least from time to time, and never too often.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{Cluster, Sight, view::View};
use crate::{
    State,
    config::{Endpoint, ScaleReads},
    random,
    redis::{
        Call, Class, Context, board::LightId, dial::Purpose, fault::Failure, greeting::Version,
        node::Node,
    },
    trace::event,
};

/// The shortest time between two look-ups.
const FLOOR: Duration = Duration::from_millis(250);

/// The longest time between two look-ups: a new replica, or a node without keys in use, gives no other sign.
const PERIOD: Duration = Duration::from_secs(30);

/// The same for those who read from replicas: a node does not name a replica until it has copied something, and nothing tells when.
const PERIOD_OF_READERS: Duration = Duration::from_secs(5);

/// How many nodes are asked at the same time. One alone may be cut off from the others and not know it.
const WITNESSES: usize = 3;

/// A silent node does not keep the next one from being asked.
const HEDGE: Duration = Duration::from_millis(150);

/// How long the other witnesses are waited for once one has answered.
const GRACE: Duration = Duration::from_millis(150);

/// How long one look-up may take in all.
const LIMIT: Duration = Duration::from_secs(1);

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
}

/// One answer.
struct Testimony {
    view: View,
    version: Version,
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
        loop {
            let began = Instant::now();
            let settled = self.survey().await;
            self.context.telemetry.refreshed(began.elapsed());
            sleep_until(began + FLOOR).await;
            if settled {
                let _ = timeout(period, trigger.pulled()).await;
            }
        }
    }

    /// One look-up. `false` if there is reason to look again soon: nobody answered, a slot has no server, or the nodes disagree.
    async fn survey(&mut self) -> bool {
        let Some(cluster) = self.cluster.upgrade() else {
            return true;
        };
        let context = Arc::clone(&self.context);
        let board = &context.board;
        let testimonies = match self.ask(&cluster).await {
            Ok(testimonies) => testimonies,
            Err(failure) => {
                event!(
                    warn,
                    "no node of the cluster tells who has the slots: {}",
                    failure.error
                );
                board.fail(self.light, &failure);
                cluster.sight.send_if_modified(|sight| {
                    let blind = matches!(sight, Sight::Unknown | Sight::Away(_));
                    if blind {
                        *sight = Sight::Away(failure);
                    }
                    blind
                });
                return false;
            }
        };
        let (elected, unanimous) = elect(&testimonies);
        self.remember(elected);
        let versions = testimonies.iter().map(|testimony| testimony.version);
        let is_sharded = versions.min().is_some_and(|oldest| oldest >= SHARDED);
        cluster.adopt(elected, is_sharded);
        let complete = elected.is_complete();
        if complete {
            board.pass(self.light);
        } else {
            board.fail(
                self.light,
                &Failure::away("some slots of the cluster have no server"),
            );
        }
        complete && unanimous
    }

    /// Asks some of the nodes, all at once, and others in the place of those that fail or say nothing.
    async fn ask(&self, cluster: &Arc<Cluster>) -> Result<Vec<Testimony>, Failure> {
        let mut candidates = self.candidates(cluster).into_iter();
        let mut asked = JoinSet::new();
        for witness in candidates.by_ref().take(WITNESSES) {
            asked.spawn(witness.ask(Arc::clone(&self.context)));
        }
        let mut end = Instant::now() + LIMIT;
        let mut testimonies = Vec::new();
        let mut failure = None;
        loop {
            let patience = end.min(Instant::now() + HEDGE);
            let replaced = match timeout_at(patience, asked.join_next()).await {
                Ok(None) => break,
                Ok(Some(Ok(Ok(testimony)))) => {
                    if testimonies.is_empty() {
                        end = end.min(Instant::now() + GRACE);
                    }
                    testimonies.push(testimony);
                    false
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

    /// Those that are connected come first, in a random order; then every address that was ever known.
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
        let witness = |(endpoint, node)| Witness { endpoint, node };
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

/// A node that is asked; over its lanes if it has any.
struct Witness {
    endpoint: Endpoint,
    node: Option<Arc<Node>>,
}

impl Witness {
    async fn ask(self, context: Arc<Context>) -> Result<Testimony, Failure> {
        let call = Call::new("CLUSTER", Class::Idempotent).arg("SLOTS");
        let deadline = Instant::now() + LIMIT;
        let (answer, version) = match self.node {
            Some(node) => {
                let answer = node.exchange(call.attempt(deadline)).await?;
                (answer, node.version().unwrap_or(SHARDED))
            }
            None => {
                let dialled = context.dialer.dial(&self.endpoint, Purpose::Survey, None);
                let mut connection = dialled.await?;
                let sent = connection.commands.send_packed_command(call.command());
                let answer = timeout_at(deadline, sent).await;
                let answer = answer.map_err(|_| Failure::late(Class::Idempotent))?;
                let answer = answer.map_err(|error| Failure::lost(Class::Idempotent, error))?;
                if let ::redis::Value::ServerError(refusal) = &answer {
                    return Err(Failure::of_greeting(refusal));
                }
                (answer, connection.version())
            }
        };
        let view = View::read(&answer, &self.endpoint)?;
        Ok(Testimony { view, version })
    }
}

/// What most of the witnesses say, and whether all of them say it.
fn elect(testimonies: &[Testimony]) -> (&View, bool) {
    let votes = |view: &View| {
        testimonies
            .iter()
            .filter(|other| other.view.agrees(view))
            .count()
    };
    let mut elected = &testimonies[0].view;
    for testimony in &testimonies[1..] {
        if votes(&testimony.view) > votes(elected) {
            elected = &testimony.view;
        }
    }
    (elected, votes(elected) == testimonies.len())
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
