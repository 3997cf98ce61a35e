//! A lane: one shared connection that is always being kept up.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::redis::{Cmd, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{Class, classify, dial::Connection};
use crate::{Error, ErrorKind, engine::closed};

/// So many timeouts without a reply between them condemn a connection: nothing else tells that a peer is gone without a word.
const SILENT_TIMEOUTS: u32 = 3;

/// How often a lane looks for another server while the one it found refuses writes. Longer than a connection must live to count as a
/// good one, or looking for another server would be taken for connections that do not last.
const REDISCOVER: Duration = Duration::from_secs(2);

/// Commands of all callers share the connection of a lane; the supervisor replaces it when it fails.
pub(super) struct Lane {
    phase: watch::Sender<Phase>,
    in_flight: AtomicUsize,
    max_in_flight: usize,
    rediscovered: Mutex<Option<Instant>>,
    /// Somebody waits for `idle`; before that nobody need be told.
    closing: AtomicBool,
    idle: Notify,
}

/// Where the lane is between two connections.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// The first attempt since the last connection, or since the beginning, is under way: callers wait for it.
    Dialing,
    /// The connection that serves.
    Up(Arc<Link>),
    /// The last attempt failed: callers fail at once until an attempt succeeds.
    Down(Error),
    /// Nothing will be connected any more.
    Closed,
}

/// One connection of a lane.
pub(super) struct Link {
    commands: MultiplexedConnection,
    driver: AbortHandle,
    born: Instant,
    timeouts: AtomicU32,
    /// When a timeout was counted last, in microseconds since `born`.
    counted: AtomicU64,
    broken: AtomicBool,
    condemned: Notify,
}

impl Link {
    pub(super) fn new(connection: &Connection) -> Self {
        Self {
            commands: connection.commands.clone(),
            driver: connection.driver.abort_handle(),
            born: Instant::now(),
            timeouts: AtomicU32::new(0),
            counted: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            condemned: Notify::new(),
        }
    }

    /// Has the connection replaced; its other callers fail when it is dropped.
    pub(super) fn condemn(&self) {
        self.broken.store(true, Ordering::Release);
        self.condemned.notify_one();
    }

    /// Ends when the connection was condemned.
    pub(super) async fn condemned(&self) {
        self.condemned.notified().await;
    }

    /// Also asks the driver itself: it may have ended before the supervisor could say so, and what is sent then is not ambiguous.
    fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Acquire) && !self.driver.is_finished()
    }

    fn replied(&self) {
        // Read first: the common case must not write to a line that all callers share.
        if self.timeouts.load(Ordering::Relaxed) != 0 {
            self.timeouts.store(0, Ordering::Relaxed);
        }
    }

    /// Counts the timeout of a command that was sent at `sent`, unless it was in flight already when the last one was counted:
    /// many that wait out one short stall together are one sign of silence, not many.
    fn timed_out(&self, sent: Instant) {
        let micros = |at: Instant| {
            let since = at.saturating_duration_since(self.born).as_micros();
            u64::try_from(since).unwrap_or(u64::MAX)
        };
        let last = self.counted.load(Ordering::Relaxed);
        if micros(sent) < last {
            return;
        }
        let counts = self.counted.compare_exchange(
            last,
            micros(Instant::now()),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if counts.is_ok() && self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_TIMEOUTS {
            self.condemn();
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("broken", &self.broken)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl Lane {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Dialing),
            in_flight: AtomicUsize::new(0),
            max_in_flight,
            rediscovered: Mutex::new(None),
            closing: AtomicBool::new(false),
            idle: Notify::new(),
        }
    }

    /// Whether a command can be sent at once.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Up(link) if link.is_usable())
    }

    /// Whether nothing will be connected any more.
    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Closed)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Sends one command and returns its reply.
    ///
    /// An idempotent command that was in flight on a lost connection is sent again on the next one; any other is never sent twice.
    pub(super) async fn exchange(
        &self,
        command: &Cmd,
        class: Class,
        deadline: Instant,
    ) -> Result<Value, Error> {
        let _slot = self.admit()?;
        loop {
            let link = self.link(deadline).await?;
            let mut commands = link.commands.clone();
            let sent = Instant::now();
            let lost = match timeout_at(deadline, commands.send_packed_command(command)).await {
                Ok(Ok(Value::ServerError(answer))) => {
                    link.replied();
                    let refusal = classify::refusal(&answer);
                    if refusal.misplaced {
                        self.rediscover(&link);
                    }
                    return Err(refusal.error);
                }
                Ok(Ok(reply)) => {
                    link.replied();
                    return Ok(reply);
                }
                Ok(Err(error)) => classify::lost(error),
                Err(_) => {
                    link.timed_out(sent);
                    return Err(late(class));
                }
            };
            link.condemn();
            if class == Class::AtMostOnce {
                let text = "the connection was lost while the command was in flight";
                return Err(Error::new(ErrorKind::Ambiguous, text).with_source(lost));
            }
        }
    }

    /// The connection that serves, or the first one that will.
    async fn link(&self, deadline: Instant) -> Result<Arc<Link>, Error> {
        if let Phase::Up(link) = &*self.phase.borrow()
            && link.is_usable()
        {
            return Ok(Arc::clone(link));
        }
        let mut phases = self.phase.subscribe();
        loop {
            match &*phases.borrow_and_update() {
                Phase::Up(link) if link.is_usable() => return Ok(Arc::clone(link)),
                Phase::Up(_) | Phase::Dialing => {}
                Phase::Down(cause) => {
                    return Err(Error::new(ErrorKind::Unavailable, "not connected")
                        .with_source(cause.clone()));
                }
                Phase::Closed => return Err(closed()),
            }
            match timeout_at(deadline, phases.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(closed()),
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "no connection before the deadline; nothing was sent",
                    ));
                }
            }
        }
    }

    /// The server refuses writes: another one may have its place. If the next connection leads to the same server, making one more
    /// at once would only take the place from those who read.
    fn rediscover(&self, link: &Link) {
        let mut last = self
            .rediscovered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= REDISCOVER) {
            *last = Some(Instant::now());
            link.condemn();
        }
    }

    fn admit(&self) -> Result<Slot<'_>, Error> {
        let slot = Slot(self);
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < self.max_in_flight {
            return Ok(slot);
        }
        Err(Error::new(
            ErrorKind::Saturated,
            format!("{} commands are in flight already", self.max_in_flight),
        ))
    }

    /// Waits until no command is in flight.
    pub(super) async fn idle(&self) {
        self.closing.store(true, Ordering::SeqCst);
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

fn late(class: Class) -> Error {
    match class {
        Class::Idempotent => Error::new(ErrorKind::Timeout, "no reply before the deadline"),
        Class::AtMostOnce => Error::new(
            ErrorKind::Ambiguous,
            "no reply before the deadline; the command may have been executed",
        ),
    }
}

/// One command in flight.
struct Slot<'a>(&'a Lane);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // In one order with `idle`: either it sees the zero, or this sees that it waits.
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1
            && self.0.closing.load(Ordering::SeqCst)
        {
            self.0.idle.notify_waiters();
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("phase", &*self.phase.borrow())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
