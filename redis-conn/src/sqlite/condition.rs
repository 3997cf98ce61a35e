//! How the file is, as far as the threads found out.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::{Error, ErrorKind, State};

/// Shared by the handles and the threads.
#[derive(Debug)]
pub(super) struct Condition {
    state: watch::Sender<State>,
    /// Why the last transaction that changed something, or tried to, failed.
    failure: Mutex<Option<Error>>,
}

impl Default for Condition {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::Connected),
            failure: Mutex::default(),
        }
    }
}

impl Condition {
    pub(super) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn close(&self) {
        self.state.send_replace(State::Disconnected);
    }

    /// The path does not lead to the open file any more, which nobody else can ever see again.
    pub(super) fn lose(&self) {
        self.state.send_if_modified(|state| {
            let open = *state == State::Connected;
            if open {
                *state = State::Error;
            }
            open
        });
    }

    /// Why nothing can be read or written ever again.
    pub(super) fn lost(&self) -> Option<Error> {
        let text = "the SQLite file was removed or replaced while it was open";
        (*self.state.borrow() == State::Error).then(|| Error::new(ErrorKind::Unavailable, text))
    }

    pub(super) fn wrote(&self) {
        *self.failure() = None;
    }

    pub(super) fn failed(&self, error: &Error) {
        *self.failure() = Some(error.clone());
    }

    /// What is wrong now.
    pub(super) fn last_error(&self) -> Option<Error> {
        self.lost().or_else(|| self.failure().clone())
    }

    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
