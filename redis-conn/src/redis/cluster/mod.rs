//! A cluster: which node has which slot, and one set of lanes per node.
//!
//! The client library's own cluster connection executes a command again whose reply is late, and looks up all slots at every
//! `MOVED`. Here a command goes where the map says, follows what the nodes answer to it, and has the map looked up again by
//! [`survey`], at most every 250 ms.

mod election;
mod map;
mod redirect;
pub(super) mod slot;
mod survey;
mod trigger;
mod view;
mod waiting;
mod witness;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ::redis::Value;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

pub(super) use self::{map::Map, redirect::Redirect, trigger::Trigger};
use self::{survey::Surveyor, view::View, waiting::Waiting};
use super::{
    Call, Context,
    dial::Purpose,
    fault::{Failure, Fault},
    lane::{Attempt, Limits},
    node::Node,
    target::Target,
};
use crate::config::{Endpoint, ScaleReads};

/// The nodes of a cluster, and the way to the one that has a key.
pub(super) struct Cluster {
    sight: watch::Sender<Sight>,
    members: Mutex<Members>,
    trigger: Arc<Trigger>,
    waiting: Waiting,
    context: Arc<Context>,
}

type Members = HashMap<(Endpoint, Purpose), Member>;

/// A node that is connected to.
struct Member {
    node: Arc<Node>,
    /// When another node last sent somebody there.
    named: Option<Instant>,
}

/// What is known of the cluster.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    /// Nothing yet: callers wait.
    Unknown,
    Known(Arc<Map>),
    /// No node has answered so far.
    Away(Failure),
    /// Nothing will be looked up any more.
    Closed,
}

impl Cluster {
    /// Begins to look for the nodes, starting with these.
    pub(super) fn start(seeds: &[Endpoint], context: &Arc<Context>) -> Arc<Self> {
        let cluster = Arc::new(Self {
            sight: watch::Sender::new(Sight::Unknown),
            members: Mutex::default(),
            trigger: Arc::default(),
            waiting: Waiting::new(context.dialer.config()),
            context: Arc::clone(context),
        });
        let surveyor = Surveyor::new(&cluster, seeds);
        context.tasks.spawn_on(surveyor.run(), &context.runtime);
        cluster
    }

    /// Sends one command once, to the node that has its key or to the one that another node named.
    pub(super) async fn exchange(
        &self,
        call: &Call,
        redirect: Option<Box<Redirect>>,
        limits: Limits,
    ) -> Result<Value, Failure> {
        let asking = redirect.as_ref().is_some_and(|redirect| redirect.asking);
        let node = match redirect {
            Some(redirect) => self.named(redirect.endpoint()),
            None => match self.known_route(call) {
                Some(node) => node,
                None => self.route(call, limits.deadline).await?,
            },
        };
        let attempt = Attempt {
            asking,
            ..call.attempt(limits)
        };
        let answered = node.exchange(attempt).await;
        answered.map_err(|failure| self.learn(failure, &node))
    }

    /// What a failure says about the map.
    fn learn(&self, mut failure: Failure, node: &Node) -> Failure {
        if let (Some(redirect), Target::Member(endpoint, _)) =
            (&mut failure.redirect, node.target())
        {
            redirect.complete(endpoint);
        }
        match failure.fault {
            // A slot on its way stays where it is until it has arrived.
            Fault::Ask | Fault::TryAgain | Fault::Saturated => {}
            Fault::Closed => return self.gone(),
            fault if fault.row().connection != super::fault::Verdict::Keep => self.trigger.pull(),
            Fault::Moved | Fault::ClusterDown | Fault::MasterDown => self.trigger.pull(),
            _ => {}
        }
        failure
    }

    /// Why a node takes no commands any more.
    pub(super) fn gone(&self) -> Failure {
        if matches!(*self.sight.borrow(), Sight::Closed) {
            return Failure::closed();
        }
        self.trigger.pull();
        Failure::away("the node is not part of the cluster any more")
    }

    /// The node for a call if the map has one, which is nearly always so.
    fn known_route(&self, call: &Call) -> Option<Arc<Node>> {
        match &*self.sight.borrow() {
            Sight::Known(map) => self.place(map, call),
            _ => None,
        }
    }

    #[cold]
    async fn route(&self, call: &Call, deadline: Instant) -> Result<Arc<Node>, Failure> {
        let map = self.map(deadline).await?;
        self.place(&map, call).ok_or_else(|| {
            self.trigger.pull();
            no_server()
        })
    }

    fn place(&self, map: &Map, call: &Call) -> Option<Arc<Node>> {
        let Some(key) = call.first_key() else {
            return map.any();
        };
        let reads = match call.is_for_replicas() {
            true => self.context.dialer.config().scale_reads(),
            false => ScaleReads::Primary,
        };
        map.reader(slot::of(key), reads)
    }

    /// The node that has `key`.
    pub(super) async fn node_of(&self, key: &str, deadline: Instant) -> Result<Arc<Node>, Failure> {
        let map = self.map(deadline).await?;
        let slot = slot::of(key.as_bytes());
        map.primary(slot).cloned().ok_or_else(no_server)
    }

    /// The map, or the first one there will be.
    pub(super) async fn map(&self, deadline: Instant) -> Result<Arc<Map>, Failure> {
        if let Sight::Known(map) = &*self.sight.borrow() {
            return Ok(Arc::clone(map));
        }
        let _place = self.waiting.enter()?;
        self.trigger.pull();
        let mut sight = self.sight.subscribe();
        loop {
            match &*sight.borrow_and_update() {
                Sight::Known(map) => return Ok(Arc::clone(map)),
                Sight::Away(failure) if !self.waiting.is_patient() => return Err(failure.clone()),
                Sight::Closed => return Err(Failure::closed()),
                Sight::Unknown | Sight::Away(_) => {}
            }
            match timeout_at(deadline, sight.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Failure::closed()),
                Err(_) => return Err(Failure::away("no node of the cluster has answered yet")),
            }
        }
    }

    /// What is known now, and everything that will be.
    pub(super) fn watch(&self) -> watch::Receiver<Sight> {
        self.sight.subscribe()
    }

    /// Has the slots looked up again soon.
    pub(super) fn trigger(&self) -> &Arc<Trigger> {
        &self.trigger
    }

    /// Whether messages are published in the slot of their channel, if that is known.
    fn known_to_be_sharded(&self) -> Option<bool> {
        match &*self.sight.borrow() {
            Sight::Known(map) => Some(map.is_sharded()),
            _ => None,
        }
    }

    /// Has a cluster that waits for its first caller looked up.
    pub(super) fn want(&self) {
        self.trigger.pull();
    }

    pub(super) fn close_pools(&self) {
        self.members()
            .values()
            .for_each(|member| member.node.close_pool());
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node at an address. It is being connected to if it is a new one.
    fn member(&self, endpoint: Endpoint, purpose: Purpose) -> Arc<Node> {
        let mut members = self.members();
        Arc::clone(&self.enter(&mut members, endpoint, purpose).node)
    }

    /// The node that another one names.
    fn named(&self, endpoint: Endpoint) -> Arc<Node> {
        let mut members = self.members();
        let member = self.enter(&mut members, endpoint, Purpose::Lane);
        member.named = Some(Instant::now());
        Arc::clone(&member.node)
    }

    fn enter<'a>(
        &self,
        members: &'a mut Members,
        endpoint: Endpoint,
        purpose: Purpose,
    ) -> &'a mut Member {
        let target = || Target::Member(endpoint.clone(), Arc::clone(&self.trigger));
        let member = members.entry((endpoint.clone(), purpose));
        member.or_insert_with(|| Member {
            node: Node::start(target(), purpose, &self.context),
            named: None,
        })
    }

    /// The nodes that have slots. They are being connected to if they are new ones.
    fn primaries(&self, view: &View) -> Vec<Arc<Node>> {
        let mut endpoints: Vec<_> = view.ranges.iter().map(|range| &range.primary).collect();
        endpoints.sort_by_key(|endpoint| endpoint.to_string());
        endpoints.dedup();
        let member = |endpoint: &Endpoint| self.member(endpoint.clone(), Purpose::Lane);
        endpoints.into_iter().map(member).collect()
    }

    /// All nodes that are connected to.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let members = self.members();
        members
            .values()
            .map(|member| Arc::clone(&member.node))
            .collect()
    }

    /// The nodes that answer at once, in no order.
    fn live(&self) -> Vec<(Endpoint, Arc<Node>)> {
        let members = self.members();
        let live = members
            .iter()
            .filter(|((_, purpose), member)| *purpose == Purpose::Lane && member.node.is_up());
        live.map(|((endpoint, _), member)| (endpoint.clone(), Arc::clone(&member.node)))
            .collect()
    }

    /// Takes over what the nodes say, and parts with those that have no slot any more.
    fn adopt(&self, view: &View, is_sharded: bool) {
        let reads = self.context.dialer.config().scale_reads() != ScaleReads::Primary;
        let map = Map::new(view, is_sharded, |endpoint, purpose| match purpose {
            Purpose::Reads if !reads => None,
            purpose => Some(self.member(endpoint.clone(), purpose)),
        });
        let mut gone = Vec::new();
        self.members().retain(|_, member| {
            let stays = map.contains(&member.node) || member.is_in_use();
            if !stays {
                gone.push(Arc::clone(&member.node));
            }
            stays
        });
        self.sight.send_replace(Sight::Known(Arc::new(map)));
        gone.iter().for_each(|node| node.retire());
    }
}

impl Member {
    /// Whether a slot may be on its way to a node that has none yet. One that does not answer is given up sooner.
    fn is_in_use(&self) -> bool {
        let patience = match self.node.is_up() {
            true => survey::PERIOD,
            false => survey::LIMIT,
        };
        self.named.is_some_and(|named| named.elapsed() < patience)
    }
}

fn no_server() -> Failure {
    let failure = Failure::away("no node of the cluster has the slot of the key");
    Failure {
        fault: Fault::ClusterDown,
        ..failure
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("sight", &*self.sight.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{
        Config, ErrorKind,
        redis::{board::Board, dial::Dialer, greeting::Mode, telemetry::Telemetry},
    };

    #[tokio::test]
    async fn a_node_that_has_left_is_no_end_of_the_backend() {
        let config = Config::cluster([Endpoint::tcp("127.0.0.1", 1)]);
        let config = config.build().unwrap();
        let cluster = Cluster {
            sight: watch::Sender::new(Sight::Unknown),
            members: Mutex::default(),
            trigger: Arc::default(),
            waiting: Waiting::new(&config),
            context: Arc::new(Context {
                dialer: Dialer::new(config, "test", Mode::Cluster),
                board: Board::new(),
                telemetry: Telemetry::new(),
                runtime: Handle::current(),
                tasks: TaskTracker::new(),
                closed: CancellationToken::new(),
                aborted: CancellationToken::new(),
            }),
        };
        assert_eq!(*cluster.gone().error.kind(), ErrorKind::Unavailable);
        cluster.sight.send_replace(Sight::Closed);
        assert_eq!(*cluster.gone().error.kind(), ErrorKind::Closed);
    }
}
