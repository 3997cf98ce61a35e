//! Keeps one lane connected for as long as its node lives.

use std::{
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    backoff::Backoff,
    board::LightId,
    dial::{Connection, Purpose},
    fault::{Failure, Fault},
    greeting::Role,
    lane::{Lane, Phase},
    link::Link,
    target::{Found, Target},
};
use crate::{random::jitter, trace::event};

/// A connection that lived so long was a good one: the next attempt needs no pause. Where connections are cut again and again, callers
/// are served most of the time; a server that ends each at once is not asked more than a few times a second.
const STABLE: Duration = Duration::from_millis(100);

/// A pause that callers wait out.
const SHORT: Duration = Duration::from_millis(50);

/// How long what is in flight may go on over a connection that leads to the wrong server.
const LINGER: Duration = Duration::from_secs(1);

/// How often another server is looked for while the one that was found refuses writes.
const REDISCOVER: Duration = Duration::from_millis(250);

/// Who has a hold of a connection although nothing is in flight on it: its supervisor and its lane.
const KEEPERS: usize = 2;

/// No reply for so long, while some are due, is a reason to ask others about the server.
const SILENCE: Duration = Duration::from_millis(500);

/// So many times as long is a reason to ask the server itself, on another connection.
const LONG_SILENCE: u32 = 6;

/// Everything that the supervisor of one lane needs.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) lane: Arc<Lane>,
    pub(super) target: Target,
    pub(super) purpose: Purpose,
    pub(super) context: Arc<Context>,
    pub(super) light: LightId,
    /// The node is not part of the topology any more.
    pub(super) retired: CancellationToken,
}

/// How a connection ended.
enum End {
    Lost(Duration),
    /// Another one takes its place.
    Replaced(Box<Found>),
    /// Another server takes its place.
    Left,
}

impl Supervisor {
    pub(super) fn run(self) -> impl Future<Output = ()> {
        // Also when the runtime ends and drops this task, even before its first step: later calls must not wait for a connection
        // that nobody makes.
        let supervisor = Closing(self);
        async move {
            tokio::select! {
                () = supervisor.0.keep_connected() => {}
                () = supervisor.0.ended() => {}
            }
        }
    }

    /// After the close what is in flight may end; after the retirement it has a bounded time to.
    async fn ended(&self) {
        let context = &self.context;
        tokio::select! {
            () = context.closed.cancelled() => {
                tokio::select! {
                    () = context.aborted.cancelled() => {}
                    () = self.lane.idle() => {}
                }
            }
            () = self.retired.cancelled() => {
                // First, so that no call comes while the last one ends.
                self.lane.enter(Phase::Closed);
                tokio::select! {
                    () = context.aborted.cancelled() => {}
                    () = self.lane.idle() => {}
                    () = sleep(LINGER) => {}
                }
            }
        }
    }

    async fn keep_connected(&self) {
        // The nodes of a cluster are found by the first caller: then there is nothing more to wait for.
        let waits = !matches!(self.target, Target::Member(..));
        if waits && self.context.dialer.config().lazy_connect() {
            self.lane.wanted().await;
        }
        let mut backoff = Backoff::new();
        let mut loading = None;
        let mut successor = None;
        let mut served = false;
        loop {
            let dialled = match successor.take() {
                Some(found) => Ok(found),
                None => self.dial().await,
            };
            let found = match dialled {
                Ok(found) => found,
                Err(failure) => {
                    event!(warn, "not connected: {}", failure.error);
                    self.context.telemetry.failed(&failure);
                    let pause = backoff.after(failure.fault);
                    if self.gives_up(&failure, &mut loading) {
                        self.enter(Phase::Down(failure));
                    }
                    sleep(pause).await;
                    continue;
                }
            };
            loading = None;
            if std::mem::replace(&mut served, true) {
                self.context.telemetry.reconnected();
            }
            match self.serve(found).await {
                End::Replaced(found) => successor = Some(*found),
                End::Left => self.target.doubt(),
                End::Lost(lived) => {
                    event!(warn, "a connection was lost");
                    self.target.doubt();
                    if lived >= STABLE {
                        backoff.reset();
                        continue;
                    }
                    let pause = backoff.pause();
                    if pause > SHORT {
                        let text = "the last connection ended soon after it was made";
                        self.enter(Phase::Down(Failure::away(text)));
                    }
                    sleep(pause).await;
                }
            }
        }
    }

    async fn dial(&self) -> Result<Found, Failure> {
        let dialer = &self.context.dialer;
        self.target.dial(dialer, self.purpose, None).await
    }

    /// Whether callers need not wait for the next attempt. They do wait while a server loads its data, up to a limit.
    fn gives_up(&self, failure: &Failure, loading: &mut Option<Instant>) -> bool {
        if failure.fault != Fault::Loading {
            *loading = None;
            self.target.doubt();
            return true;
        }
        let config = self.context.dialer.config();
        let since = *loading.get_or_insert_with(Instant::now);
        self.context.board.fail(self.light, failure);
        since.elapsed() >= config.max_loading_timeout()
    }

    /// Serves until the connection ends, is condemned, or leads to the wrong server.
    async fn serve(&self, found: Found) -> End {
        let Found {
            mut connection,
            endpoint,
        } = found;
        let link = Arc::new(Link::new(&connection));
        event!(info, "connected");
        self.enter(Phase::Up(Arc::clone(&link)));
        let end = tokio::select! {
            _ = &mut connection.driver => {
                link.condemn();
                End::Lost(link.age())
            }
            () = link.condemned() => End::Lost(link.age()),
            () = self.target.left(&endpoint) => End::Left,
            successor = self.successor(&link) => End::Replaced(Box::new(successor)),
            successor = self.watch_silence(&link) => End::Replaced(Box::new(successor)),
        };
        match end {
            End::Lost(_) => self.enter(Phase::Dialing),
            End::Left => {
                self.enter(Phase::Dialing);
                self.linger(connection, Some(LINGER));
            }
            // Whoever waits there may go on: the server is well, and everybody has a deadline.
            End::Replaced(_) => self.linger(connection, None),
        }
        end
    }

    /// A connection to a server that takes writes, once this one has refused a write. The one in use goes on meanwhile: those who
    /// read are not disturbed by those who write.
    async fn successor(&self, link: &Link) -> Found {
        loop {
            link.misplaced().await;
            // A server that says it takes writes and refuses them is found again and again.
            sleep(REDISCOVER.saturating_sub(link.age())).await;
            self.target.doubt();
            if !self.target.may_lead_elsewhere() {
                continue;
            }
            match self.dial().await {
                Ok(found) if found.connection.greeting.role == Role::Primary => return found,
                Ok(_) => event!(
                    warn,
                    "the server refuses writes, and no other has its place yet"
                ),
                Err(failure) => event!(warn, "no other server in its place: {}", failure.error),
            }
            sleep(REDISCOVER / 2 + jitter(REDISCOVER / 2)).await;
        }
    }

    /// Tells of a server that owes replies and says nothing. Ends with another connection, if the silence lasts and the server
    /// answers on that: one that is busy or stopped answers on none, and what waits for it goes on waiting.
    async fn watch_silence(&self, link: &Arc<Link>) -> Found {
        let mut ticks = interval_at(Instant::now() + SILENCE, SILENCE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = 0_u32;
        loop {
            ticks.tick().await;
            let heard = link.take_heard();
            // Not those of the lane: some may still wait on the connection before.
            let waits = Arc::strong_count(link) > KEEPERS;
            silent = if waits && !heard { silent + 1 } else { 0 };
            if silent > 1 {
                self.target.doubt();
            }
            if silent > 0
                && silent.is_multiple_of(LONG_SILENCE)
                && let Ok(found) = self.dial().await
            {
                if !link.take_heard() {
                    event!(warn, "a connection is silent, and another one is not");
                    return found;
                }
                silent = 0;
            }
        }
    }

    /// Lets what is in flight end over a connection that nobody else uses any more.
    fn linger(&self, connection: Connection, limit: Option<Duration>) {
        let aborted = self.context.aborted.clone();
        let Connection { mut driver, .. } = connection;
        let limit = async move {
            match limit {
                Some(limit) => sleep(limit).await,
                None => pending().await,
            }
        };
        let lingering = async move {
            tokio::select! {
                _ = &mut driver => {}
                () = aborted.cancelled() => {}
                () = limit => {}
            }
        };
        let context = &self.context;
        context.tasks.spawn_on(lingering, &context.runtime);
    }

    fn enter(&self, phase: Phase) {
        // In this order: whoever waits for the light finds the lane as it says.
        self.lane.enter(phase.clone());
        self.context.board.show(self.light, &phase);
    }
}

/// Enters the last phase however the supervisor ends.
struct Closing(Supervisor);

impl Drop for Closing {
    fn drop(&mut self) {
        let supervisor = &self.0;
        if supervisor.retired.is_cancelled() {
            // Nobody need see that it is out: it is not missed.
            supervisor.lane.enter(Phase::Closed);
            supervisor.context.board.remove(supervisor.light);
        } else {
            supervisor.enter(Phase::Closed);
        }
    }
}
