//! One server: the lanes that lead to it, and its pool.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use ::redis::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    cluster::slot,
    dial::Purpose,
    fault::{Blame, Failure},
    greeting::Version,
    lane::{Attempt, Lane},
    pool::Pool,
    supervisor::Supervisor,
    target::Target,
};
use crate::{PoolDetails, State};

/// Up to so many cores one lane saturates the server; beyond, two share the work of its driver.
const CORES_OF_ONE_LANE: usize = 4;

/// The connections to one server.
#[derive(Debug)]
pub(super) struct Node {
    target: Target,
    purpose: Purpose,
    lanes: Box<[Arc<Lane>]>,
    next: AtomicUsize,
    /// Failures that say something about the server. A breaker would count them here.
    failures: AtomicU64,
    pool: Mutex<Option<Pool>>,
    context: Arc<Context>,
    retired: CancellationToken,
}

impl Node {
    /// Begins to connect.
    pub(super) fn start(target: Target, purpose: Purpose, context: &Arc<Context>) -> Arc<Self> {
        let config = context.dialer.config();
        let count = match purpose {
            Purpose::Lane => config.lanes().unwrap_or_else(default_lanes),
            _ => 1,
        };
        let lane = || Arc::new(Lane::new(config));
        let lanes: Box<[_]> = (0..count).map(|_| lane()).collect();
        let retired = CancellationToken::new();
        for lane in &lanes {
            let supervisor = Supervisor {
                lane: Arc::clone(lane),
                target: target.clone(),
                purpose,
                context: Arc::clone(context),
                light: context.board.add(State::Connecting),
                retired: retired.clone(),
            };
            context.tasks.spawn_on(supervisor.run(), &context.runtime);
        }
        Arc::new(Self {
            target,
            purpose,
            lanes,
            next: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
            pool: Mutex::default(),
            context: Arc::clone(context),
            retired,
        })
    }

    /// Sends one command once.
    pub(super) async fn exchange(&self, attempt: Attempt<'_>) -> Result<Value, Failure> {
        self.context.telemetry.sent_to(&self.target);
        let answered = self.lane(attempt.order).exchange(attempt).await;
        if let Err(failure) = &answered {
            self.observe(failure);
        }
        answered
    }

    fn observe(&self, failure: &Failure) {
        self.context.telemetry.failed(failure);
        if failure.fault.row().blame != Blame::None {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lane(&self, order: Option<&[u8]>) -> &Lane {
        let lanes = &self.lanes;
        match &**lanes {
            [only] => only,
            _ => {
                let first = match order {
                    Some(key) if matches!(self.target, Target::Member(..)) => {
                        usize::from(slot::of(key))
                    }
                    // One command may have keys of all slots.
                    Some(_) => 0,
                    None => self.next.fetch_add(1, Ordering::Relaxed),
                };
                let at = |turn: usize| &lanes[first.wrapping_add(turn) % lanes.len()];
                // One that is being connected must not cost the calls that the others can take.
                let up = (0..lanes.len()).map(at).find(|lane| lane.is_up());
                up.unwrap_or_else(|| {
                    // The first caller has all of them connect: later ones find this one and want no other.
                    self.want();
                    at(0)
                })
            }
        }
    }

    /// Whether a command can be sent at once.
    pub(super) fn is_up(&self) -> bool {
        self.lanes.iter().any(|lane| lane.is_up())
    }

    /// Whether nothing will be connected any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lanes.iter().any(|lane| lane.is_closed())
    }

    /// The version of the server, once it is connected.
    pub(super) fn version(&self) -> Option<Version> {
        self.lanes.iter().find_map(|lane| lane.version())
    }

    pub(super) fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// How many exclusive connections there are, and what they do.
    pub(super) fn pool_details(&self) -> PoolDetails {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.as_ref().map(Pool::details).unwrap_or_default()
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Has lanes that wait for their first caller connect.
    pub(super) fn want(&self) {
        self.lanes.iter().for_each(|lane| lane.want());
    }

    /// The connections for exclusive use.
    pub(super) fn pool(&self) -> Pool {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let made = pool.get_or_insert_with(|| {
            let _runtime = self.context.runtime.enter();
            Pool::new(self.target.clone(), Arc::clone(&self.context))
        });
        made.clone()
    }

    /// Takes no new commands; what is in flight has a bounded time to end.
    pub(super) fn retire(&self) {
        self.retired.cancel();
        self.close_pool();
    }

    pub(super) fn close_pool(&self) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.take();
    }
}

fn default_lanes() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores <= CORES_OF_ONE_LANE { 1 } else { 2 }
}
