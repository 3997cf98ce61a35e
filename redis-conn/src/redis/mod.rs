//! The Redis and Valkey backend: a single server, a cluster, or a primary that sentinels name.

mod backoff;
mod board;
mod call;
mod cluster;
mod dial;
mod fault;
mod gather;
mod greeting;
mod heard;
mod lane;
mod link;
mod node;
mod pool;
mod probe;
mod publish;
mod pubsub;
mod retry;
mod script;
mod sentinel;
mod socket;
mod supervisor;
mod target;
mod telemetry;
#[cfg(feature = "tls")]
mod tls;

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::probe::Probes;
pub(crate) use self::script::Rewrite;
use self::{
    board::Board,
    cluster::{Cluster, Redirect},
    dial::{Dialer, Purpose},
    fault::Failure,
    greeting::Mode,
    lane::Limits,
    node::Node,
    probe::Probe,
    pubsub::PubSub,
    retry::{Next, Retries},
    sentinel::Sentinels,
    target::Target,
    telemetry::Telemetry,
};
pub use self::{
    call::{Call, Class, Reply},
    gather::{Courier, Gather, Waiting},
    pool::Dedicated,
    script::{Script, ScriptCall},
};
use crate::{Config, Error, ErrorKind, State, bus::Hub, config, deadline, engine::closed};

/// How long tasks that were told to end may take.
const LAST_TURN: Duration = Duration::from_secs(1);

/// The slot of a key, or of what has this hash tag, in a cluster.
#[must_use]
pub fn slot(key: &[u8]) -> u16 {
    cluster::slot::of(key)
}

/// The connections to one server, or to the servers of one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    topology: Topology,
    pubsub: PubSub,
    probes: Probes,
    context: Arc<Context>,
    rewrite: Option<Rewrite>,
}

/// What everything that connects has in common.
#[derive(Debug)]
struct Context {
    dialer: Dialer,
    board: Board,
    telemetry: Telemetry,
    runtime: Handle,
    tasks: TaskTracker,
    /// No new commands come; those in flight are finished.
    closed: CancellationToken,
    /// Nothing is waited for any more.
    aborted: CancellationToken,
}

/// Where commands go.
#[derive(Clone)]
enum Topology {
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
}

/// What does not come from the configuration of the server.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) client_name: String,
    pub(crate) rewrite: Option<Rewrite>,
}

impl Redis {
    pub(crate) fn start(
        config: Config,
        options: Options,
        hub: Arc<Hub>,
        closed: CancellationToken,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|error| {
            let text = "a Redis backend must be built inside of a Tokio runtime";
            Error::new(ErrorKind::Config, text).with_source(error)
        })?;
        let mode = match config.topology() {
            config::Topology::Cluster { .. } => Mode::Cluster,
            config::Topology::Single(_) | config::Topology::Sentinel { .. } => Mode::Standalone,
        };
        let context = Arc::new(Context {
            dialer: Dialer::new(config.clone(), &options.client_name, mode),
            board: Board::new(),
            telemetry: Telemetry::new(),
            runtime,
            tasks: TaskTracker::new(),
            closed,
            aborted: CancellationToken::new(),
        });
        let topology = match config.topology() {
            config::Topology::Single(endpoint) => {
                let target = Target::Single(endpoint.clone());
                Topology::One(Node::start(target, Purpose::Lane, &context))
            }
            config::Topology::Sentinel { sentinels, master } => {
                let dialer = Dialer::new(config.clone(), &options.client_name, Mode::Sentinel);
                let sentinels = Sentinels::start(sentinels, master, dialer, &context);
                Topology::One(Node::start(
                    Target::Primary(sentinels),
                    Purpose::Lane,
                    &context,
                ))
            }
            config::Topology::Cluster { nodes } => {
                Topology::Cluster(Cluster::start(nodes, &context))
            }
        };
        let pubsub = match &topology {
            Topology::One(node) => PubSub::on_one(node.target().clone(), hub, &context),
            Topology::Cluster(cluster) => PubSub::on_cluster(cluster, hub, &context),
        };
        let inner = Inner {
            probes: Probe::start(&topology, &context),
            topology,
            pubsub,
            context,
            rewrite: options.rewrite,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Sends one command on a shared connection.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Saturated` and `Closed` if it was not sent; `Timeout` if it was not sent or is idempotent; `Ambiguous` if it
    /// is at-most-once and may have been executed; `Server` if the server refused it.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been executed. No reply ever reaches another caller.
    pub async fn call(&self, call: Call, deadline: Duration) -> Result<Reply, Error> {
        let calling = pin!(self.answer(&call, deadline::after(deadline)));
        self.inner.context.telemetry.observe(&call, calling).await
    }

    /// The same, measured by nobody.
    async fn answer(&self, call: &Call, deadline: Instant) -> Result<Reply, Error> {
        if self.inner.context.closed.is_cancelled() {
            return Err(closed());
        }
        let is_last = self.inner.context.dialer.config().max_retries() == 0;
        let limits = self.limits(call, deadline, is_last);
        match self.attempt(call, None, limits).await {
            Ok(reply) => Ok(reply),
            // In a box, so that a call which succeeds does not carry the room for all that.
            Err(failure) => Box::pin(self.retry(call, failure, deadline)).await,
        }
    }

    /// Goes on after a first failure, for as long as the table of failures and the deadline allow.
    #[cold]
    async fn retry(&self, call: &Call, first: Failure, deadline: Instant) -> Result<Reply, Error> {
        let config = self.inner.context.dialer.config();
        let elsewhere = !matches!(config.topology(), config::Topology::Single(_));
        let mut retries = Retries::new(config, call.class, deadline, elsewhere);
        let mut failure = first;
        loop {
            let (redirect, pause) = match retries.after(&failure) {
                Next::Fail => return Err(failure.error),
                Next::Follow(redirect, pause) => (Some(redirect), pause),
                Next::After(pause) => (None, pause),
            };
            if !pause.is_zero() {
                sleep(pause).await;
                if Instant::now() >= deadline {
                    return Err(failure.error);
                }
            }
            let limits = self.limits(call, deadline, retries.are_used_up());
            failure = match self.attempt(call, redirect, limits).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
        }
    }

    /// Only what may be sent once more gives up before the deadline.
    fn limits(&self, call: &Call, deadline: Instant, is_last: bool) -> Limits {
        let patience = match call.class {
            Class::Idempotent if !is_last => Some(self.command_timeout()),
            _ => None,
        };
        Limits { deadline, patience }
    }

    async fn attempt(
        &self,
        call: &Call,
        redirect: Option<Box<Redirect>>,
        limits: Limits,
    ) -> Result<Reply, Failure> {
        match &self.inner.topology {
            // Wherever it says that the key is: there is no other node to ask.
            Topology::One(node) => {
                let answered = node.exchange(call.attempt(limits)).await;
                answered.map_err(Failure::without_redirect)
            }
            Topology::Cluster(cluster) => cluster.exchange(call, redirect, limits).await,
        }
        .map(Reply)
    }

    /// Runs a task on the runtime that drives the connections. It is waited for when the backend closes.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Context { tasks, runtime, .. } = &*self.inner.context;
        tasks.spawn_on(task, runtime);
    }

    /// Takes a connection that nobody else uses, to the server that has `key`.
    ///
    /// # Errors
    ///
    /// `Saturated` if none was free before the deadline, `Unavailable` if none could be made, `Closed`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn dedicated(&self, key: &str, deadline: Duration) -> Result<Dedicated, Error> {
        let deadline = deadline::after(deadline);
        let node = match &self.inner.topology {
            Topology::One(node) => Arc::clone(node),
            Topology::Cluster(cluster) => {
                cluster.node_of(key, deadline).await.map_err(|f| f.error)?
            }
        };
        self.check_out(&node, deadline).await
    }

    /// Takes a connection that nobody else uses to each server that has keys.
    ///
    /// # Errors
    ///
    /// Those of [`dedicated`](Self::dedicated), if one of the servers has none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn dedicated_to_each(&self, deadline: Duration) -> Result<Vec<Dedicated>, Error> {
        let deadline = deadline::after(deadline);
        let nodes = match &self.inner.topology {
            Topology::One(node) => vec![Arc::clone(node)],
            Topology::Cluster(cluster) => {
                let map = cluster.map(deadline).await.map_err(|f| f.error)?;
                map.primary_nodes().cloned().collect()
            }
        };
        let mut connections = Vec::with_capacity(nodes.len());
        for node in &nodes {
            connections.push(self.check_out(node, deadline).await?);
        }
        Ok(connections)
    }

    async fn check_out(&self, node: &Node, deadline: Instant) -> Result<Dedicated, Error> {
        if self.inner.context.closed.is_cancelled() {
            return Err(closed());
        }
        // The lanes end with the runtime that drives them, and with the node's place in the cluster.
        if node.is_closed() {
            return Err(match &self.inner.topology {
                Topology::One(_) => closed(),
                Topology::Cluster(cluster) => cluster.gone().error,
            });
        }
        Dedicated::check_out(&node.pool(), deadline, &self.inner.context).await
    }

    /// The deadline of operations that have none of their own.
    pub fn command_timeout(&self) -> Duration {
        self.inner.context.dialer.config().command_timeout()
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.inner.context.dialer.config().topology().kind()
    }

    pub(crate) fn states(&self) -> watch::Receiver<State> {
        self.inner.context.board.states()
    }

    pub(crate) fn last_error(&self) -> Option<Error> {
        self.inner.context.board.last_error()
    }

    /// Why there is no connection for subscriptions although somebody listens.
    pub(crate) fn bus_error(&self) -> Option<Error> {
        self.inner.pubsub.error()
    }

    /// Has what waits for its first caller connect.
    pub(crate) fn warm_up(&self) {
        match &self.inner.topology {
            Topology::One(node) => node.want(),
            Topology::Cluster(cluster) => cluster.want(),
        }
    }

    /// Lets what is in flight finish until `end`, then ends all connections. The token given to `start` is cancelled already.
    pub(crate) async fn closed(&self, end: Instant) {
        let Context { tasks, aborted, .. } = &*self.inner.context;
        tasks.close();
        match &self.inner.topology {
            Topology::One(node) => node.close_pool(),
            Topology::Cluster(cluster) => cluster.close_pools(),
        }
        if timeout_at(end, tasks.wait()).await.is_err() {
            aborted.cancel();
            // They end at once, unless nobody drives the runtime that they are on.
            let _ = timeout(LAST_TURN, tasks.wait()).await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.context.aborted.cancel();
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}
