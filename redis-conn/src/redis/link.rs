//! One connection of a lane, and what is known of how well it works.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use ::redis::{Cmd, Pipeline, RedisResult, Value, aio::MultiplexedConnection};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

use super::{
    dial::Connection,
    fault::{Failure, Verdict},
    greeting::Version,
    heard::Heard,
};

/// So many timeouts without a word from the server between them condemn a connection: nothing else tells that a peer is gone without a word.
const SILENT_TIMEOUTS: u32 = 3;

/// The part of its wait by which a command may have been sent before a timeout was counted, and still be a sign of its own.
const GRACE: u64 = 8;

/// A connection that all callers of a lane share.
pub(super) struct Link {
    commands: MultiplexedConnection,
    driver: AbortHandle,
    version: Version,
    born: Instant,
    timeouts: AtomicU32,
    /// When a timeout was counted last, in microseconds since `born`.
    counted: AtomicU64,
    heard: Heard,
    /// How often something had come when a timeout was counted last.
    heard_then: AtomicU64,
    /// How often something had come when somebody asked last.
    heard_before: AtomicU64,
    broken: AtomicBool,
    condemned: Notify,
    misplaced: Notify,
}

impl Link {
    pub(super) fn new(connection: &Connection) -> Self {
        Self {
            commands: connection.commands.clone(),
            driver: connection.driver.abort_handle(),
            version: connection.version(),
            born: Instant::now(),
            timeouts: AtomicU32::new(0),
            counted: AtomicU64::new(0),
            heard: connection.heard.clone(),
            heard_then: AtomicU64::new(0),
            heard_before: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            condemned: Notify::new(),
            misplaced: Notify::new(),
        }
    }

    /// Sends a command. After `ASKING`, without anything between the two, if the slot of its key is on its way to this node.
    pub(super) async fn send(&self, command: &Cmd, asking: bool) -> RedisResult<Value> {
        let mut commands = self.commands.clone();
        match asking {
            false => commands.send_packed_command(command).await,
            // In a box, so that the others do not carry the room for it.
            true => Box::pin(send_asking(commands, command)).await,
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

    /// Ends when a server refused a write because it is not the one that takes them.
    pub(super) async fn misplaced(&self) {
        self.misplaced.notified().await;
    }

    /// Also asks the driver itself: it may have ended before the supervisor could say so, and what is sent then is not ambiguous.
    pub(super) fn is_usable(&self) -> bool {
        !self.broken.load(Ordering::Acquire) && !self.driver.is_finished()
    }

    /// The version of the server.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Whether anything came since this was asked last.
    pub(super) fn take_heard(&self) -> bool {
        let heard = self.heard.times();
        self.heard_before.swap(heard, Ordering::Relaxed) != heard
    }

    /// Does to the connection what the table says of this failure of a command that was sent at `sent`.
    pub(super) fn failed(&self, failure: &Failure, sent: Instant) {
        match failure.fault.row().connection {
            Verdict::Keep => {}
            Verdict::Suspect => self.timed_out(sent),
            Verdict::Replace => self.condemn(),
            Verdict::Misplaced => self.misplaced.notify_one(),
        }
    }

    /// Counts the timeout of a command that was sent at `sent`, unless most of its wait was over when the last one was counted: many
    /// that wait out one short stall together are one sign of silence, not many.
    fn timed_out(&self, sent: Instant) {
        let micros = |at: Instant| {
            let since = at.saturating_duration_since(self.born).as_micros();
            u64::try_from(since).unwrap_or(u64::MAX)
        };
        let (sent, now) = (micros(sent), micros(Instant::now()));
        let last = self.counted.load(Ordering::Relaxed);
        // Calls seldom begin at the very moment when another one times out: with no grace three would take longer than three timeouts.
        if sent + now.saturating_sub(sent) / GRACE < last {
            return;
        }
        let counts = self
            .counted
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
        if counts.is_err() {
            return;
        }
        let heard = self.heard.times();
        if self.heard_then.swap(heard, Ordering::Relaxed) != heard {
            self.timeouts.store(0, Ordering::Relaxed);
        }
        if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_TIMEOUTS {
            self.condemn();
        }
    }
}

async fn send_asking(mut commands: MultiplexedConnection, command: &Cmd) -> RedisResult<Value> {
    let mut pair = Pipeline::with_capacity(2);
    pair.cmd("ASKING").add_command(command.clone());
    let mut answers = commands.send_packed_commands(&pair, 1, 1).await?;
    Ok(answers.pop().unwrap_or(Value::Nil))
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("broken", &self.broken)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}
