//! Connections for exclusive use: transactions with `WATCH`, blocking commands, a write with its `WAIT`.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use ::redis::Value;
use bb8_redis::bb8::{self, ManageConnection, PooledConnection, RunError};
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Call, Class, Context, Reply, backoff,
    dial::Purpose,
    fault::{Failure, Fault, Verdict},
    target::{Found, Target},
};
use crate::{Error, ErrorKind, PoolDetails, deadline, engine::closed};

type Pooled = PooledConnection<'static, Manager>;

/// A connection that answered so lately is taken to be alive; asking it would double the round trips of a check-out.
const FRESH: Duration = Duration::from_secs(15);
/// The deadline is the caller's.
const UNLIMITED: Duration = Duration::from_secs(24 * 60 * 60);
const PROBE: Duration = Duration::from_millis(500);

/// Makes the connections of the pool.
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
    runtime: Handle,
    size: u32,
    failures: watch::Receiver<Option<Failed>>,
    waiting: Arc<AtomicUsize>,
}

/// A pooled connection.
#[derive(Debug)]
pub(super) struct Exclusive {
    found: Found,
    target: Target,
    last_reply: Instant,
    /// Handed out and not given back in order: it may hold a `WATCH`, a transaction, or a reply that nobody took.
    used: bool,
    /// The server has refused a write or is not the one to ask any more, or the connection has no rights any more.
    poisoned: bool,
}

impl Exclusive {
    fn is_alive(&self) -> bool {
        !self.poisoned
            && !self.found.connection.driver.is_finished()
            && self.target.is_at(&self.found.endpoint)
    }

    /// Whether the server still answers on it, be it with a refusal.
    async fn answers(&mut self) -> bool {
        if self.is_alive() && self.last_reply.elapsed() >= FRESH {
            let asked = Instant::now();
            let ping = Call::new("PING", Class::Idempotent);
            let answered = exchange(self, &ping, asked + PROBE).await;
            if answered.is_err() && self.last_reply < asked {
                return false;
            }
        }
        self.is_alive()
    }
}

impl Pool {
    pub(super) fn new(target: Target, context: Arc<Context>) -> Self {
        let failed = watch::Sender::new(None);
        let failures = failed.subscribe();
        let size = context.dialer.config().pool_size();
        let runtime = context.runtime.clone();
        let connections = bb8::Pool::builder()
            .max_size(size)
            .retry_connection(false)
            .connection_timeout(UNLIMITED)
            .queue_strategy(bb8::QueueStrategy::Lifo)
            // Whoever takes one marks it as used before he asks: if he gives up meanwhile, it is closed.
            .test_on_check_out(false)
            .build_unchecked(Manager {
                target,
                context,
                failed,
            });
        Self {
            connections,
            runtime,
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

    /// Takes a connection on which the server answers, marked as used.
    async fn take(&self) -> Result<Pooled, RunError<Error>> {
        loop {
            let mut connection = match self.take_idle().await {
                Some(taken) => taken?,
                None => self.wait().await?,
            };
            connection.used = true;
            if connection.answers().await {
                return Ok(connection);
            }
        }
    }

    /// Takes a connection if there is one, else has one made.
    async fn take_idle(&self) -> Option<Result<Pooled, RunError<Error>>> {
        let mut taking = pin!(self.connections.get_owned());
        let polled = poll_fn(|task| {
            // The pool connects on the runtime that it finds, and loses the place for ever if that one ends meanwhile.
            let _runtime = self.runtime.enter();
            Poll::Ready(taking.as_mut().poll(task))
        });
        match polled.await {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    /// Waits for a connection, on the same runtime for the same reason.
    async fn wait(&self) -> Result<Pooled, RunError<Error>> {
        let connections = self.connections.clone();
        let waiting = async move { connections.get_owned().await };
        let waiting = AbortOnDropHandle::new(self.runtime.spawn(waiting));
        waiting
            .await
            .unwrap_or_else(|_| Err(RunError::User(closed())))
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
        // A task of its own: whatever it comes to, the pool must hear of it.
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
            target: self.target.clone(),
            last_reply: Instant::now(),
            used: false,
            poisoned: false,
        })
    }

    /// Never asked, see [`Exclusive::answers`].
    async fn is_valid(&self, _: &mut Exclusive) -> Result<(), Error> {
        Ok(())
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
        // For good, also if the server becomes the right one again: others may have written there meanwhile.
        connection.poisoned = true;
        let text =
            "the exclusive connection has ended or leads to the wrong server; nothing was sent";
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
    connection: Pooled,
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
                taken = pool.take() => taken,
            }
        };
        let connection = match timeout_at(deadline, taken).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(RunError::User(error))) => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "no exclusive connection")
                        .with_source(error),
                );
            }
            Ok(Err(RunError::TimedOut)) | Err(_) => return Err(pool.late()),
        };
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
