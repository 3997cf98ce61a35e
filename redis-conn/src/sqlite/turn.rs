//! Lets the writers of several processes take turns.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use super::connection::nap;

/// How long a writer waits for its turn. This lock makes writing fair, not safe: without it, it goes on all the same.
const PATIENCE: Duration = Duration::from_millis(20);

/// A lock that is held while waiting for SQLite's write lock.
///
/// SQLite's lock has no queue: a busy writer takes it again before anybody else wakes up, and the others starve. With this lock
/// the one who waits stands in the door, and whoever just committed has to queue up behind.
#[derive(Debug)]
pub(super) struct Turnstile(pub(super) File);

/// Held until the write lock is.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a File);

impl Turnstile {
    pub(super) fn wait(&self) -> Option<Turn<'_>> {
        let start = Instant::now();
        while self.0.try_lock().is_err() {
            if start.elapsed() > PATIENCE {
                return None;
            }
            nap();
        }
        Some(Turn(&self.0))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // It cannot fail for a lock that is held, and would end with the process.
        let _ = self.0.unlock();
    }
}
