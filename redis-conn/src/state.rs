//! The connection state that everybody may watch.

use std::fmt;

use serde::Serialize;
use tokio::sync::watch;

/// The state of the connection to the backend. The embedded backends are
/// [`Connected`](State::Connected) until closed, but for SQLite when its file was removed or replaced: that is an [`Error`](State::Error).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum State {
    /// Closed, or never begun.
    Disconnected,
    /// The first connection is being made.
    Connecting,
    /// Every lane is connected.
    Connected,
    /// A connection was lost or could not be made, and is being made again.
    Reconnecting,
    /// The server answers but refuses: a wrong password, a missing permission. It is tried again all the same.
    /// Or the SQLite file was removed or replaced, which nothing mends but another backend.
    Error,
}

impl State {
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; 5] = [
        Self::Disconnected,
        Self::Connecting,
        Self::Connected,
        Self::Reconnecting,
        Self::Error,
    ];

    /// The name used in health answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Reconnecting => "reconnecting",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Follows the connection state. Made by [`Backend::watch_state`](crate::Backend::watch_state).
#[derive(Clone, Debug)]
pub struct StateWatch {
    receiver: watch::Receiver<State>,
}

impl StateWatch {
    pub(crate) fn new(receiver: watch::Receiver<State>) -> Self {
        Self { receiver }
    }

    /// The state now.
    pub fn get(&self) -> State {
        *self.receiver.borrow()
    }

    /// Waits until the state differs from the one last seen here; `None` once the backend is gone.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change is reported by the next call.
    pub async fn changed(&mut self) -> Option<State> {
        self.receiver.changed().await.ok()?;
        Some(*self.receiver.borrow_and_update())
    }

    /// Waits for a state; `false` if the backend went away before it came.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait_for(&mut self, wanted: State) -> bool {
        self.receiver
            .wait_for(|state| *state == wanted)
            .await
            .is_ok()
    }
}
