//! The Redis and Valkey backend: a single server.

mod backoff;
mod board;
mod call;
mod classify;
mod dial;
mod lane;
mod pool;
mod pubsub;
mod script;
mod supervisor;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    board::Board, dial::Dialer, lane::Lane, pool::Pool, pubsub::PubSub, supervisor::Supervisor,
};
pub use self::{
    call::{Call, Class, Reply},
    pool::Dedicated,
    script::{Script, ScriptCall},
};
use crate::{Config, Error, ErrorKind, State, bus::Hub, deadline, engine::closed};

/// Up to so many cores one lane saturates the server; beyond, two share the work of its driver.
const CORES_OF_ONE_LANE: usize = 4;

/// The connections to one server. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Box<[Arc<Lane>]>,
    next: AtomicUsize,
    board: Arc<Board>,
    dialer: Arc<Dialer>,
    pool: Mutex<Option<Pool>>,
    pubsub: PubSub,
    rewrite: Option<fn(&str) -> String>,
    runtime: Handle,
    tasks: TaskTracker,
    closed: CancellationToken,
    aborted: CancellationToken,
}

/// What does not come from the configuration of the server.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) client_name: String,
    pub(crate) rewrite: Option<fn(&str) -> String>,
}

impl Redis {
    pub(crate) fn start(
        config: Config,
        options: Options,
        hub: Arc<Hub>,
        closed: CancellationToken,
    ) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(
                ErrorKind::Config,
                "a Redis backend must be built inside of a Tokio runtime",
            )
            .with_source(error)
        })?;
        let count = config.lanes().unwrap_or_else(default_lanes);
        let lanes: Box<[_]> = (0..count)
            .map(|_| Arc::new(Lane::new(config.max_in_flight())))
            .collect();
        let board = Arc::new(Board::new(count));
        let dialer = Arc::new(Dialer::new(config, &options.client_name));
        let (tasks, aborted) = (TaskTracker::new(), CancellationToken::new());
        for (index, lane) in lanes.iter().enumerate() {
            let supervisor = Supervisor {
                lane: Arc::clone(lane),
                index,
                dialer: Arc::clone(&dialer),
                board: Arc::clone(&board),
                closed: closed.clone(),
                aborted: aborted.clone(),
            };
            tasks.spawn_on(supervisor.run(), &runtime);
        }
        let pubsub = PubSub::start(Arc::clone(&dialer), hub, closed.clone(), &tasks, &runtime);
        let inner = Inner {
            lanes,
            next: AtomicUsize::new(0),
            board,
            dialer,
            pool: Mutex::default(),
            pubsub,
            rewrite: options.rewrite,
            runtime,
            tasks,
            closed,
            aborted,
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
        self.call_at(&call, deadline::after(deadline)).await
    }

    async fn call_at(&self, call: &Call, deadline: Instant) -> Result<Reply, Error> {
        if self.inner.closed.is_cancelled() {
            return Err(closed());
        }
        self.lane()
            .exchange(&call.command, call.class, deadline)
            .await
            .map(Reply)
    }

    fn lane(&self) -> &Lane {
        let lanes = &self.inner.lanes;
        match &**lanes {
            [only] => only,
            _ => {
                let first = self.inner.next.fetch_add(1, Ordering::Relaxed);
                let at = |turn: usize| &lanes[first.wrapping_add(turn) % lanes.len()];
                // One that is being connected must not cost the calls that the others can take.
                let up = (0..lanes.len()).map(at).find(|lane| lane.is_up());
                up.unwrap_or_else(|| at(0))
            }
        }
    }

    /// Takes a connection that nobody else uses.
    ///
    /// # Errors
    ///
    /// `Saturated` if none was free before the deadline, `Unavailable` if none could be made, `Closed`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn dedicated(&self, deadline: Duration) -> Result<Dedicated, Error> {
        self.open()?;
        let closed = self.inner.closed.clone();
        Dedicated::check_out(&self.pool(), deadline::after(deadline), closed).await
    }

    /// The lanes end with the runtime that drives them.
    fn open(&self) -> Result<(), Error> {
        if self.inner.closed.is_cancelled() || self.inner.lanes.iter().any(|lane| lane.is_closed())
        {
            return Err(closed());
        }
        Ok(())
    }

    fn pool(&self) -> Pool {
        let mut pool = self
            .inner
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let made = pool.get_or_insert_with(|| {
            let _runtime = self.inner.runtime.enter();
            Pool::new(Arc::clone(&self.inner.dialer), self.inner.runtime.clone())
        });
        made.clone()
    }

    /// The deadline of operations that have none of their own.
    pub fn command_timeout(&self) -> Duration {
        self.inner.dialer.config().command_timeout()
    }

    pub(crate) fn states(&self) -> watch::Receiver<State> {
        self.inner.board.states()
    }

    pub(crate) fn last_error(&self) -> Option<Error> {
        self.inner.board.last_error()
    }

    /// Why there is no connection for subscriptions although somebody listens.
    pub(crate) fn bus_error(&self) -> Option<Error> {
        self.inner.pubsub.error()
    }

    pub(crate) async fn publish(&self, channel: &str, frame: &[u8]) -> Result<(), Error> {
        let call = Call::new("PUBLISH", Class::AtMostOnce)
            .arg(channel)
            .arg(frame);
        self.call(call, self.command_timeout()).await.map(drop)
    }

    pub(crate) async fn listen(&self, channel: &Arc<str>) -> Result<(), Error> {
        self.inner
            .pubsub
            .listen(channel, self.command_timeout())
            .await
    }

    pub(crate) fn unlisten(&self, channel: &Arc<str>) {
        self.inner.pubsub.unlisten(channel);
    }

    /// Lets what is in flight finish until `end`, then ends all connections. The token given to `start` is cancelled already.
    pub(crate) async fn closed(&self, end: Instant) {
        self.inner.tasks.close();
        self.inner
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if timeout_at(end, self.inner.tasks.wait()).await.is_err() {
            self.inner.aborted.cancel();
            self.inner.tasks.wait().await;
        }
    }
}

fn default_lanes() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores <= CORES_OF_ONE_LANE { 1 } else { 2 }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.aborted.cancel();
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("lanes", &self.inner.lanes)
            .finish_non_exhaustive()
    }
}
