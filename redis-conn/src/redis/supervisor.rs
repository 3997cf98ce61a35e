//! Keeps one lane connected for as long as the backend lives.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    backoff::Backoff,
    board::Board,
    dial::{Connection, Dialer},
    lane::{Lane, Link, Phase},
};
use crate::{Error, ErrorKind, trace::event};

/// A connection that lived so long was a good one: the next attempt needs no pause.
const STABLE: Duration = Duration::from_secs(1);

/// A pause that callers wait out.
const SHORT: Duration = Duration::from_millis(50);

/// Everything that the supervisor of one lane needs.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) lane: Arc<Lane>,
    pub(super) index: usize,
    pub(super) dialer: Arc<Dialer>,
    pub(super) board: Arc<Board>,
    /// No new commands come; those in flight are finished.
    pub(super) closed: CancellationToken,
    /// Nothing is waited for any more.
    pub(super) aborted: CancellationToken,
}

impl Supervisor {
    pub(super) async fn run(self) {
        // Also when the runtime ends and drops this task: later calls must not wait for a connection that nobody makes.
        let supervisor = Closing(self);
        tokio::select! {
            () = supervisor.0.keep_connected() => {}
            () = supervisor.0.ended() => {}
        }
    }

    async fn ended(&self) {
        self.closed.cancelled().await;
        tokio::select! {
            () = self.aborted.cancelled() => {}
            () = self.lane.idle() => {}
        }
    }

    async fn keep_connected(&self) {
        let mut backoff = Backoff::new();
        loop {
            match self.dialer.dial(None).await {
                Ok(connection) => {
                    let lived = self.serve(connection).await;
                    event!(warn, "lane {} lost its connection", self.index);
                    if lived >= STABLE {
                        backoff.reset();
                        continue;
                    }
                    let pause = backoff.pause();
                    if pause > SHORT {
                        let text = "the last connection ended soon after it was made";
                        self.enter(Phase::Down(Error::new(ErrorKind::Unavailable, text)));
                    }
                    tokio::time::sleep(pause).await;
                }
                Err(error) => {
                    event!(warn, "lane {} is not connected: {error}", self.index);
                    let pause = backoff.after(&error);
                    self.enter(Phase::Down(error));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Serves until the connection ends or is condemned; returns how long it lived.
    async fn serve(&self, mut connection: Connection) -> Duration {
        let since = Instant::now();
        let link = Arc::new(Link::new(&connection));
        event!(info, "lane {} is connected", self.index);
        self.enter(Phase::Up(Arc::clone(&link)));
        tokio::select! {
            _ = &mut connection.driver => link.condemn(),
            () = link.condemned() => {}
        }
        self.enter(Phase::Dialing);
        since.elapsed()
    }

    fn enter(&self, phase: Phase) {
        self.board.show(self.index, &phase);
        self.lane.enter(phase);
    }
}

/// Enters the last phase however the supervisor ends.
struct Closing(Supervisor);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.enter(Phase::Closed);
    }
}
