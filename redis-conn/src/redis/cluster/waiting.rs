//! The calls that wait until something is known of the cluster.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Config, redis::fault::Failure};

/// Counts them: there is no lane yet that would.
#[derive(Debug)]
pub(super) struct Waiting {
    calls: AtomicUsize,
    limit: usize,
    is_patient: bool,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Waiting);

impl Waiting {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            calls: AtomicUsize::new(0),
            limit: config.max_in_flight(),
            is_patient: config.offline_queue(),
        }
    }

    /// Whether they wait also while no node answers.
    pub(super) fn is_patient(&self) -> bool {
        self.is_patient
    }

    pub(super) fn enter(&self) -> Result<Place<'_>, Failure> {
        let place = Place(self);
        if self.calls.fetch_add(1, Ordering::Relaxed) < self.limit {
            return Ok(place);
        }
        Err(Failure::saturated(self.limit))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}
