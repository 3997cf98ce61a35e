//! What is asked of a store for one acquisition.

use std::{sync::Arc, time::Duration};

use crate::{FenceMode, OwnerId};

/// Whether others may hold it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Nobody else holds it.
    Alone,
    /// Others hold it who asked for the same.
    Together,
}

/// How many may hold a lock at the same time. All who ask for a name must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seats {
    /// So many: 1 for a mutex, n for a semaphore.
    Some(u32),
    /// Any number of those who hold it together: a read-write lock.
    Any,
}

/// The terms of one acquisition, which are the same each time it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) owner: OwnerId,
    /// How long it lasts without a renewal.
    pub(crate) ttl: Duration,
    pub(crate) mode: Mode,
    pub(crate) seats: Seats,
    pub(crate) fence: FenceMode,
    /// The instance, for whoever asks who holds it; up to 64 bytes.
    pub(crate) instance: Arc<str>,
}

/// How long a counter of fences outlives the last lease.
const COUNTER: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Terms {
    /// For how long a store remembers the last fence after this grant or renewal.
    pub(crate) fn memory(&self) -> Duration {
        memory(self.ttl, self.fence)
    }

    pub(crate) fn ttl_micros(&self) -> u64 {
        micros(self.ttl)
    }
}

pub(crate) fn memory(ttl: Duration, fence: FenceMode) -> Duration {
    let twice = ttl * 2;
    match fence {
        FenceMode::Clock => twice,
        FenceMode::Counter => twice.max(COUNTER),
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
