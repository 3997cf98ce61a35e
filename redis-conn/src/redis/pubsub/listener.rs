//! Keeps the subscriptions of one server as the switchboard wants them.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};

use super::{plan::Home, session::Session, switchboard::Switchboard};
use crate::{
    Error, ErrorKind,
    redis::{
        backoff::Backoff,
        fault::{Again, Failure, Fault, Verdict},
        target::Target,
    },
    trace::event,
};

/// A connection that said nothing for so long is asked; a silent one would lose messages without a trace.
const QUIET: Duration = Duration::from_secs(2);

/// A connection that lived so long was a good one: the next attempt needs no pause.
const STABLE: Duration = Duration::from_secs(1);

/// How many commands are sent in one round trip.
const CHUNK: usize = 1_000;

/// Owns the connection to one server.
#[derive(Debug)]
pub(super) struct Listener {
    switchboard: Arc<Switchboard>,
    home: Home,
    target: Target,
    changed: Arc<Notify>,
}

/// How a session ended.
enum End {
    Lost(Error),
    /// No channel has its home here any more.
    Unused,
}

/// Channels that the server did not take, to be asked for again.
struct Strays {
    channels: HashSet<Arc<str>>,
    backoff: Backoff,
    due: Instant,
}

impl Listener {
    /// Connects at once. `changed` tells that there is something to do.
    pub(super) fn start(
        switchboard: &Arc<Switchboard>,
        home: Home,
        target: Target,
        changed: Arc<Notify>,
    ) {
        let context = Arc::clone(&switchboard.context);
        let listener = Self {
            switchboard: Arc::clone(switchboard),
            home,
            target,
            changed,
        };
        let closed = context.closed.clone();
        context.tasks.spawn_on(
            async move { closed.run_until_cancelled(listener.run()).await },
            &context.runtime,
        );
    }

    async fn run(self) {
        let (switchboard, home) = (&self.switchboard, &self.home);
        let mut backoff = Backoff::new();
        loop {
            if !switchboard.is_used(home) {
                switchboard.fine(home);
                let _ = timeout(QUIET, self.changed.notified()).await;
                if switchboard.retire(home) {
                    return;
                }
                continue;
            }
            let number = switchboard.begin(home);
            let mut strays = Strays::new();
            match self.connect(number, &mut strays).await {
                Ok(session) => {
                    let began = Instant::now();
                    switchboard.fine(home);
                    let End::Lost(error) = self.serve(session, number, strays).await else {
                        return;
                    };
                    event!(warn, "the subscriptions lost their connection: {error}");
                    switchboard.lost(home, &error);
                    self.target.doubt();
                    if began.elapsed() >= STABLE {
                        backoff.reset();
                    } else {
                        sleep(backoff.pause()).await;
                    }
                }
                Err(failure) => {
                    event!(
                        warn,
                        "the subscriptions are not connected: {}",
                        failure.error
                    );
                    let pause = backoff.after(failure.fault);
                    switchboard.away(home, &failure);
                    self.target.doubt();
                    sleep(pause).await;
                }
            }
        }
    }

    /// Connects and has every channel confirmed that lives here.
    async fn connect(&self, number: u64, strays: &mut Strays) -> Result<Session, Failure> {
        let dialer = &self.switchboard.context.dialer;
        let (switchboard, home) = (&self.switchboard, &self.home);
        let mut session = Session::open(&self.target, dialer, switchboard, home, number).await?;
        self.catch_up(&mut session, number, strays).await?;
        Ok(session)
    }

    /// Serves until the connection ends, stops answering, leads to the wrong server or is of no use.
    async fn serve(&self, mut session: Session, number: u64, mut strays: Strays) -> End {
        let mut probes = interval_at(Instant::now() + QUIET, QUIET);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let endpoint = session.found.endpoint.clone();
        let broken = session.broken();
        let mut unused = false;
        loop {
            tokio::select! {
                _ = &mut session.found.connection.driver => return lost(),
                () = broken.cancelled() => return lost(),
                () = self.target.left(&endpoint) => return lost(),
                () = self.changed.notified() => {}
                () = sleep_until(strays.due), if !strays.channels.is_empty() => {
                    self.switchboard.again(&self.home, strays.channels.drain());
                }
                _ = probes.tick() => {
                    // Who comes back soon finds the connection still there.
                    let was_unused = std::mem::replace(&mut unused, !self.switchboard.is_used(&self.home));
                    if unused && was_unused && self.switchboard.retire(&self.home) {
                        return End::Unused;
                    }
                    if !session.is_alive().await {
                        return lost();
                    }
                }
            }
            if let Err(failure) = self.catch_up(&mut session, number, &mut strays).await {
                return End::Lost(failure.error);
            }
        }
    }

    /// Does what is to be done.
    async fn catch_up(
        &self,
        session: &mut Session,
        number: u64,
        strays: &mut Strays,
    ) -> Result<(), Failure> {
        let work = self
            .switchboard
            .work(&self.home, number, &session.subscribed);
        for leave in work.leave.chunks(CHUNK) {
            session.exchange(leave, &[]).await?;
        }
        for join in work.join.chunks(CHUNK) {
            for (channel, refusal) in session.exchange(&[], join).await? {
                self.refused(channel, refusal, strays)?;
            }
        }
        strays.schedule();
        Ok(())
    }

    fn refused(
        &self,
        channel: Arc<str>,
        refusal: Failure,
        strays: &mut Strays,
    ) -> Result<(), Failure> {
        let (switchboard, home, error) = (&self.switchboard, &self.home, &refusal.error);
        let row = refusal.fault.row();
        if row.connection == Verdict::Replace {
            return Err(refusal);
        }
        if is_forbidden(error) {
            switchboard.forbid(home, &channel, error);
            return Ok(());
        }
        event!(warn, "the server does not take a subscription: {error}");
        match row.idempotent {
            Again::Never => switchboard.refuse(home, &channel, error),
            Again::Now | Again::Follow | Again::After(_) => {
                switchboard.astray(home, &channel, error)
            }
        }
        if matches!(
            refusal.fault,
            Fault::Moved | Fault::ClusterDown | Fault::MasterDown
        ) {
            self.target.doubt();
        }
        strays.channels.insert(channel);
        Ok(())
    }
}

impl Strays {
    fn new() -> Self {
        Self {
            channels: HashSet::new(),
            backoff: Backoff::new(),
            due: Instant::now(),
        }
    }

    fn schedule(&mut self) {
        if self.channels.is_empty() {
            self.backoff.reset();
        } else if self.due <= Instant::now() {
            self.due = Instant::now() + self.backoff.pause();
        }
    }
}

/// Asking again would not help.
fn is_forbidden(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Server(code) if &**code == "NOPERM")
}

fn lost() -> End {
    let text = "the connection of the subscriptions was lost";
    End::Lost(Error::new(ErrorKind::Unavailable, text))
}
