//! Wakes a thread that sleeps between two looks at the file.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub(super) struct Alarm {
    state: Mutex<Rings>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Rings {
    count: u64,
    stopped: bool,
}

impl Alarm {
    fn state(&self) -> MutexGuard<'_, Rings> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread; returns the number of this ring.
    pub(super) fn ring(&self) -> u64 {
        let mut state = self.state();
        state.count += 1;
        self.changed.notify_all();
        state.count
    }

    /// Tells the thread to end.
    pub(super) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Sleeps until there was a ring after the one numbered `heard`, at most for `pause`. Returns the number of the latest ring, or
    /// `None` when the thread shall end.
    pub(super) fn wait(&self, heard: u64, pause: Option<Duration>) -> Option<u64> {
        let until = pause.map(|pause| Instant::now() + pause);
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            if state.count > heard {
                return Some(state.count);
            }
            state = match until {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Some(heard);
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
