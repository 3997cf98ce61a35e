//! The handles of one Redis backend.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::{
    family::{ByLabel, Family},
    level::Level,
    table::{
        AMBIGUOUS, FAILURES, IN_FLIGHT, OPERATION_DURATION, POOL_CONNECTIONS, POOL_WAITING,
        RECONNECTS, REDIRECTS, TIMEOUTS, TOPOLOGY_REFRESH,
    },
};
use crate::PoolDetails;

/// The handles of what happens.
#[derive(Debug)]
pub(crate) struct Meters {
    succeeded: Histogram,
    failed: ByLabel<Histogram>,
    faults: ByLabel<Counter>,
    redirects: ByLabel<Counter>,
    pub(crate) timeouts: Counter,
    pub(crate) ambiguous: Counter,
    pub(crate) reconnects: Counter,
    refreshes: Histogram,
}

/// What is looked at from time to time.
#[derive(Debug)]
pub(crate) struct Levels {
    in_flight: Level,
    idle: Level,
    used: Level,
    waiting: Level,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self {
            succeeded: OPERATION_DURATION.histogram(&["ok"]),
            failed: OPERATION_DURATION.each(&[], Family::histogram),
            faults: FAILURES.each(&[], Family::counter),
            redirects: REDIRECTS.each(&[], Family::counter),
            timeouts: TIMEOUTS.counter(&[]),
            ambiguous: AMBIGUOUS.counter(&[]),
            reconnects: RECONNECTS.counter(&[]),
            refreshes: TOPOLOGY_REFRESH.histogram(&[]),
        }
    }

    pub(crate) fn succeeded(&self, took: Duration) {
        self.succeeded.record(took);
    }

    /// `outcome` is the kind of the error.
    pub(crate) fn failed(&self, outcome: &str, took: Duration) {
        if let Some(histogram) = self.failed.of(outcome) {
            histogram.record(took);
        }
    }

    pub(crate) fn fault(&self, fault: &str) {
        if let Some(counter) = self.faults.of(fault) {
            counter.increment(1);
        }
        if let Some(counter) = self.redirects.of(fault) {
            counter.increment(1);
        }
    }

    pub(crate) fn refreshed(&self, took: Duration) {
        self.refreshes.record(took);
    }
}

impl Levels {
    pub(crate) fn new() -> Self {
        Self {
            in_flight: Level::new(IN_FLIGHT.gauge(&[])),
            idle: Level::new(POOL_CONNECTIONS.gauge(&["idle"])),
            used: Level::new(POOL_CONNECTIONS.gauge(&["used"])),
            waiting: Level::new(POOL_WAITING.gauge(&[])),
        }
    }

    pub(crate) fn show(&mut self, in_flight: usize, pool: PoolDetails) {
        self.in_flight.show(in_flight as f64);
        self.idle.show(pool.idle as f64);
        self.used.show(pool.size.saturating_sub(pool.idle) as f64);
        self.waiting.show(pool.waiting as f64);
    }
}
