//! A lane: one shared connection that is always being kept up.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::redis::{Cmd, Value};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use super::{
    Class,
    fault::{Failure, Fault},
    greeting::Version,
    link::Link,
};
use crate::{Config, Error, ErrorKind};

/// Commands of all callers share the connection of a lane; the supervisor replaces it when it fails.
pub(super) struct Lane {
    phase: watch::Sender<Phase>,
    in_flight: AtomicUsize,
    max_in_flight: usize,
    /// Whether callers wait while there is no connection, instead of failing at once.
    queues: bool,
    /// Somebody waits for `idle`; before that nobody need be told.
    closing: AtomicBool,
    idle: Notify,
    /// A connection was asked for.
    wanted: Notify,
}

/// Where the lane is between two connections.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// The first attempt since the last connection, or since the beginning, is under way: callers wait for it.
    Dialing,
    /// The connection that serves.
    Up(Arc<Link>),
    /// The last attempt failed: callers fail at once until an attempt succeeds.
    Down(Failure),
    /// Nothing will be connected any more.
    Closed,
}

/// One attempt of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub(super) command: &'a Cmd,
    pub(super) class: Class,
    /// The slot of the key is on its way to this node.
    pub(super) asking: bool,
    /// All commands that keep an order take one lane, in a cluster those of its slot.
    pub(super) order: Option<&'a [u8]>,
    pub(super) limits: Limits,
}

/// How long an attempt may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) deadline: Instant,
    /// How long to wait for the reply, where another attempt can follow.
    pub(super) patience: Option<Duration>,
}

impl Limits {
    /// One attempt has all the time.
    pub(super) fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            patience: None,
        }
    }
}

impl Lane {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Dialing),
            in_flight: AtomicUsize::new(0),
            max_in_flight: config.max_in_flight(),
            queues: config.offline_queue(),
            closing: AtomicBool::new(false),
            idle: Notify::new(),
            wanted: Notify::new(),
        }
    }

    /// Has a lane that waits for its first caller connect.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Ends when a connection was asked for.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether a command can be sent at once.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Up(link) if link.is_usable())
    }

    /// The connection that serves, if there is one.
    pub(super) fn link_if_up(&self) -> Option<Arc<Link>> {
        match &*self.phase.borrow() {
            Phase::Up(link) if link.is_usable() => Some(Arc::clone(link)),
            _ => None,
        }
    }

    /// Whether nothing will be connected any more.
    pub(super) fn is_closed(&self) -> bool {
        matches!(&*self.phase.borrow(), Phase::Closed)
    }

    /// The version of the server, once it is connected.
    pub(super) fn version(&self) -> Option<Version> {
        match &*self.phase.borrow() {
            Phase::Up(link) => Some(link.version()),
            _ => None,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Sends one command once and returns its reply.
    pub(super) async fn exchange(&self, attempt: Attempt<'_>) -> Result<Value, Failure> {
        let _slot = self.admit()?;
        let Limits { deadline, patience } = attempt.limits;
        let link = self.link(deadline).await?;
        let sent = Instant::now();
        if sent >= deadline {
            return Err(unsent());
        }
        // In its place, because it is large: as a value it would be copied into the timeout, and again.
        let sending = pin!(link.send(attempt.command, attempt.asking));
        let until = patience.map_or(deadline, |patience| deadline.min(sent + patience));
        let failure = match timeout_at(until, sending).await {
            Ok(Ok(Value::ServerError(answer))) => Failure::of_answer(&answer),
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => Failure::lost(attempt.class, error),
            Err(_) => Failure::late(attempt.class),
        };
        link.failed(&failure, sent);
        Err(failure)
    }

    /// The connection that serves, or the first one that will.
    async fn link(&self, deadline: Instant) -> Result<Arc<Link>, Failure> {
        if let Phase::Up(link) = &*self.phase.borrow()
            && link.is_usable()
        {
            return Ok(Arc::clone(link));
        }
        self.want();
        let mut phases = self.phase.subscribe();
        loop {
            match &*phases.borrow_and_update() {
                Phase::Up(link) if link.is_usable() => return Ok(Arc::clone(link)),
                Phase::Down(cause) if !self.queues => return Err(down(cause)),
                Phase::Up(_) | Phase::Dialing | Phase::Down(_) => {}
                Phase::Closed => return Err(Failure::closed()),
            }
            match timeout_at(deadline, phases.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Failure::closed()),
                Err(_) => return Err(unsent()),
            }
        }
    }

    fn admit(&self) -> Result<Slot<'_>, Failure> {
        let slot = Slot(self);
        if self.in_flight.fetch_add(1, Ordering::Relaxed) < self.max_in_flight {
            return Ok(slot);
        }
        Err(Failure::saturated(self.max_in_flight))
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

fn down(cause: &Failure) -> Failure {
    let error =
        Error::new(ErrorKind::Unavailable, "not connected").with_source(cause.error.clone());
    Failure::new(Fault::Away, error)
}

/// The deadline passed before there was a connection, or anything was sent on it.
fn unsent() -> Failure {
    let text = "no connection before the deadline";
    Failure::new(Fault::Away, Error::new(ErrorKind::Timeout, text))
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
