//! A cluster: which node has which slot, and one set of lanes per node.
//!
//! The client library's own cluster connection executes a command again whose reply is late, and looks up all slots at every
//! `MOVED`. Here a command goes where the map says, follows what the nodes answer to it, and has the map looked up again by
//! [`survey`], at most every 250 ms.

mod map;
mod redirect;
pub(super) mod slot;
mod survey;
mod trigger;
mod view;
mod waiting;

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
    lane::Attempt,
    node::Node,
    target::Target,
};
use crate::config::{Endpoint, ScaleReads};

/// The nodes of a cluster, and the way to the one that has a key.
pub(super) struct Cluster {
    sight: watch::Sender<Sight>,
    members: Mutex<HashMap<(Endpoint, Purpose), Arc<Node>>>,
    trigger: Arc<Trigger>,
    waiting: Waiting,
    context: Arc<Context>,
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
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let asking = redirect.as_ref().is_some_and(|redirect| redirect.asking);
        let node = match redirect {
            Some(redirect) => self.member(redirect.endpoint(), Purpose::Lane),
            None => match self.known_route(call) {
                Some(node) => node,
                None => self.route(call, deadline).await?,
            },
        };
        let attempt = Attempt {
            asking,
            ..call.attempt(deadline)
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
            Fault::Closed if !matches!(*self.sight.borrow(), Sight::Closed) => {
                self.trigger.pull();
                return Failure::away("the node is not part of the cluster any more");
            }
            fault if fault.row().connection != super::fault::Verdict::Keep => self.trigger.pull(),
            Fault::Moved | Fault::ClusterDown | Fault::MasterDown => self.trigger.pull(),
            _ => {}
        }
        failure
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
    async fn map(&self, deadline: Instant) -> Result<Arc<Map>, Failure> {
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

    /// Whether messages are published in the slot of their channel.
    pub(super) fn is_sharded(&self) -> bool {
        matches!(&*self.sight.borrow(), Sight::Known(map) if map.is_sharded())
    }

    /// Has a cluster that waits for its first caller looked up.
    pub(super) fn want(&self) {
        self.trigger.pull();
    }

    pub(super) fn close_pools(&self) {
        self.members().values().for_each(|node| node.close_pool());
    }

    fn members(&self) -> MutexGuard<'_, HashMap<(Endpoint, Purpose), Arc<Node>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node at an address. It is being connected to if it is a new one.
    fn member(&self, endpoint: Endpoint, purpose: Purpose) -> Arc<Node> {
        let target = || Target::Member(endpoint.clone(), Arc::clone(&self.trigger));
        let mut members = self.members();
        let member = members.entry((endpoint.clone(), purpose));
        Arc::clone(member.or_insert_with(|| Node::start(target(), purpose, &self.context)))
    }

    /// All nodes that are connected to.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.members().values().map(Arc::clone).collect()
    }

    /// The nodes that answer at once, in no order.
    fn live(&self) -> Vec<(Endpoint, Arc<Node>)> {
        let members = self.members();
        let live = members
            .iter()
            .filter(|((_, purpose), node)| *purpose == Purpose::Lane && node.is_up());
        live.map(|((endpoint, _), node)| (endpoint.clone(), Arc::clone(node)))
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
        self.members().retain(|_, node| {
            let stays = map.contains(node);
            if !stays {
                gone.push(Arc::clone(node));
            }
            stays
        });
        self.sight.send_replace(Sight::Known(Arc::new(map)));
        gone.iter().for_each(|node| node.retire());
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
