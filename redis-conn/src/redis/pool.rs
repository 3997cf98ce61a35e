//! Connections for exclusive use: transactions with `WATCH`, blocking commands, a write with its `WAIT`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    Call, Class, Context, Reply, backoff,
    dial::Purpose,
    fault::{Failure, Fault, Verdict},
    target::{Found, Target},
};
use crate::{Error, ErrorKind, PoolDetails, deadline, engine::closed};
use ::redis::Value;
use bb8_redis::bb8::{self, ManageConnection, PooledConnection, RunError};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// A connection that answered so lately is taken to be alive; asking it would double the round trips of a check-out.
const FRESH: Duration = Duration::from_secs(15);
/// The deadline is the caller's.
const UNLIMITED: Duration = Duration::from_secs(24 * 60 * 60);
const PROBE: Duration = Duration::from_millis(500);

/// Makes and judges the connections of the pool.
#[derive(Clone, Debug)]
pub(super) struct Manager {
    target: Target,
    context: Arc<Context>,
    failed: watch::Sender<Option<Failed>>,
}

/// An attempt to connect that failed.
#[derive(Clone, Debug)]
struct Failed {
    failure: Failure,
    at: Instant,
}

/// The pool, and what is known of its failures.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    connections: bb8::Pool<Manager>,
    size: u32,
    failures: watch::Receiver<Option<Failed>>,
    waiting: Arc<AtomicUsize>,
}

/// A pooled connection.
#[derive(Debug)]
pub(super) struct Exclusive {
    found: Found,
    last_reply: Instant,
    /// Handed out and not given back in order: it may hold a `WATCH`, a transaction, or a reply that nobody took.
    used: bool,
    /// The server has refused a write, or the connection has no rights any more.
    poisoned: bool,
}

impl Exclusive {
    fn is_alive(&self) -> bool {
        !self.poisoned && !self.found.connection.driver.is_finished()
    }
}

impl Pool {
    pub(super) fn new(target: Target, context: Arc<Context>) -> Self {
        let failed = watch::Sender::new(None);
        let failures = failed.subscribe();
        let size = context.dialer.config().pool_size();
        let connections = bb8::Pool::builder()
            .max_size(size)
            .retry_connection(false)
            .connection_timeout(UNLIMITED)
            .queue_strategy(bb8::QueueStrategy::Lifo)
            .build_unchecked(Manager {
                target,
                context,
                failed,
            });
        Self {
            connections,
            size,
            failures,
            waiting: Arc::default(),
        }
    }

    /// How many connections there are, and who wants one.
    pub(super) fn details(&self) -> PoolDetails {
        let state = self.connections.state();
        PoolDetails {
            size: state.connections as usize,
            idle: state.idle_connections as usize,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// What it means that nothing came before the deadline.
    fn late(&self) -> Error {
        let state = self.connections.state();
        let taken = state.connections - state.idle_connections;
        if taken >= self.size {
            let text = "all exclusive connections were taken until the deadline";
            return Error::new(ErrorKind::Saturated, text);
        }
        Error::new(
            ErrorKind::Unavailable,
            "no exclusive connection could be made before the deadline",
        )
    }

    /// Ends with the next failure to connect. The pool itself tells nobody of it: those who wait would wait for their deadline.
    async fn next_failure(&self) -> Error {
        let mut failures = self.failures.clone();
        failures.mark_unchanged();
        let failed = match failures.changed().await {
            Ok(()) => failures.borrow_and_update().clone(),
            Err(_) => None,
        };
        failed.map_or_else(closed, |failed| failed.failure.error)
    }
}

/// A caller who waits for a connection.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(pool: &'a Pool) -> Self {
        pool.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&pool.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Manager {
    async fn dial(&self) -> Result<Found, Failure> {
        let (target, context) = (self.target.clone(), Arc::clone(&self.context));
        // Connections outlive the caller who needed them first, so they are not of the caller's runtime.
        let dialling = self.context.runtime.spawn(async move {
            let dialler = &context.dialer;
            target.dial(dialler, Purpose::Pool, None).await
        });
        dialling.await.unwrap_or_else(|_| Err(Failure::closed()))
    }

    /// Why the last attempt was refused, if that was so lately that another one could lock the account.
    fn refused_lately(&self) -> Option<Failed> {
        let failed = self.failed.borrow();
        let refused = |failed: &&Failed| {
            failed.failure.fault == Fault::Credentials && failed.at.elapsed() < backoff::REFUSED
        };
        failed.as_ref().filter(refused).cloned()
    }
}

impl ManageConnection for Manager {
    type Connection = Exclusive;
    type Error = Error;

    async fn connect(&self) -> Result<Exclusive, Error> {
        let dialled = match self.refused_lately() {
            Some(failed) => Err(failed),
            None => self.dial().await.map_err(|failure| Failed {
                failure,
                at: Instant::now(),
            }),
        };
        let found = dialled.map_err(|failed| {
            let error = failed.failure.error.clone();
            self.failed.send_replace(Some(failed));
            error
        })?;
        Ok(Exclusive {
            found,
            last_reply: Instant::now(),
            used: false,
            poisoned: false,
        })
    }

    async fn is_valid(&self, connection: &mut Exclusive) -> Result<(), Error> {
        if !connection.is_alive() || !self.target.is_at(&connection.found.endpoint) {
            let text = "the connection has ended or leads to the wrong server";
            return Err(Error::new(ErrorKind::Unavailable, text));
        }
        if connection.last_reply.elapsed() < FRESH {
            return Ok(());
        }
        let ping = Call::new("PING", Class::Idempotent);
        let answered = exchange(connection, &ping, Instant::now() + PROBE).await;
        answered.map(drop).map_err(|failure| failure.error)
    }

    fn has_broken(&self, connection: &mut Exclusive) -> bool {
        connection.used || !connection.is_alive()
    }
}

async fn exchange(
    connection: &mut Exclusive,
    call: &Call,
    deadline: Instant,
) -> Result<Reply, Failure> {
    if !connection.is_alive() {
        let text = "the exclusive connection has ended; nothing was sent";
        return Err(Failure::away(text));
    }
    let sent = connection
        .found
        .connection
        .commands
        .send_packed_command(&call.command);
    match timeout_at(deadline, sent).await {
        Ok(Ok(reply)) => {
            connection.last_reply = Instant::now();
            let Value::ServerError(answer) = reply else {
                return Ok(Reply(reply));
            };
            let failure = Failure::of_answer(&answer);
            let verdict = failure.fault.row().connection;
            connection.poisoned |= matches!(verdict, Verdict::Misplaced | Verdict::Replace);
            Err(failure)
        }
        Ok(Err(error)) => Err(Failure::lost(call.class, error)),
        Err(_) => Err(Failure::late(call.class)),
    }
}

/// A connection that nobody else uses until it is released.
///
/// Dropping it without [`release`](Self::release) closes it, because nothing tells what state it is in.
#[derive(Debug)]
pub struct Dedicated {
    connection: PooledConnection<'static, Manager>,
    context: Arc<Context>,
    /// A command was sent and its reply not taken: what it has left behind is known to nobody.
    spoilt: bool,
}

impl Dedicated {
    pub(super) async fn check_out(
        pool: &Pool,
        deadline: Instant,
        context: &Arc<Context>,
    ) -> Result<Self, Error> {
        let _waiting = Waiting::begin(pool);
        let taken = async {
            tokio::select! {
                // First, so that it is listening before the pool begins to connect.
                biased;
                error = pool.next_failure() => Err(RunError::User(error)),
                taken = pool.connections.get_owned() => taken,
            }
        };
        let mut connection = match timeout_at(deadline, taken).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(RunError::User(error))) => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "no exclusive connection")
                        .with_source(error),
                );
            }
            Ok(Err(RunError::TimedOut)) | Err(_) => return Err(pool.late()),
        };
        connection.used = true;
        Ok(Self {
            connection,
            context: Arc::clone(context),
            spoilt: false,
        })
    }

    /// Sends one command on this connection.
    ///
    /// # Errors
    ///
    /// Those of a command of this class. After an error of the connection it is not used again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been executed; the connection is then closed instead of being released.
    pub async fn call(&mut self, call: Call, deadline: Duration) -> Result<Reply, Error> {
        let Context {
            closed: token,
            telemetry,
            ..
        } = &*self.context;
        if token.is_cancelled() {
            return Err(closed());
        }
        // One that was dropped or failed before stays so, whatever comes of this one.
        let spoilt = std::mem::replace(&mut self.spoilt, true);
        let calling = async {
            let exchanging = exchange(&mut self.connection, &call, deadline::after(deadline));
            exchanging.await.map_err(|failure| {
                telemetry.failed(&failure);
                failure.error
            })
        };
        let answered = telemetry.observe(&call, calling).await;
        let refused = |error: &Error| matches!(error.kind(), ErrorKind::Server(_));
        self.spoilt = spoilt || answered.as_ref().is_err_and(|error| !refused(error));
        answered
    }

    /// Gives the connection back for others to use: no transaction is open on it and nothing is watched.
    pub fn release(mut self) {
        self.connection.used = self.spoilt;
    }
}
