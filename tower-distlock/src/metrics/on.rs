//! With the feature `metrics`: what is counted of all locks together.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, Histogram};
use redis_conn::{
    Error,
    metrics::{ByLabel, Family},
};
use tokio::time::Instant;

use super::table::{
    ACQUISITIONS, FAMILIES, FENCES_REFUSED, HELD, HOLD, LOST, RENEWALS, UNPROTECTED, WAIT,
};
use crate::{LockError, LostReason, lease::Lease, store::Outcome};

static METERS: LazyLock<Meters> = LazyLock::new(Meters::new);

/// The handles of this process.
struct Meters {
    acquisitions: ByLabel<Counter>,
    wait: Histogram,
    hold: Histogram,
    lost: ByLabel<Counter>,
    held: Gauge,
    renewals: ByLabel<Counter>,
    unprotected: Counter,
    fences_refused: Counter,
}

impl Meters {
    fn new() -> Self {
        Self {
            acquisitions: ACQUISITIONS.each(&[], Family::counter),
            wait: WAIT.histogram(&[]),
            hold: HOLD.histogram(&[]),
            lost: LOST.each(&[], Family::counter),
            held: HELD.gauge(&[]),
            renewals: RENEWALS.each(&[], Family::counter),
            unprotected: UNPROTECTED.counter(&[]),
            fences_refused: FENCES_REFUSED.counter(&[]),
        }
    }
}

/// Has the families show before anything happened.
pub(crate) fn begin() {
    FAMILIES.iter().for_each(Family::describe);
    LazyLock::force(&METERS);
}

/// An acquisition under way. Counts what comes of it; one that is dropped was cancelled.
pub(crate) struct Acquiring {
    began: Instant,
    /// None if another one goes on where this ends.
    outcome: Option<&'static str>,
}

impl Acquiring {
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
            outcome: Some("cancelled"),
        }
    }

    pub(crate) fn end(mut self, error: Option<&LockError>) {
        if error.is_none() {
            METERS.wait.record(self.began.elapsed());
        }
        self.outcome = Some(outcome(error));
    }

    /// It has not come to its end, and is counted as another one when it does.
    pub(crate) fn goes_on(mut self) {
        self.outcome = None;
    }
}

impl Drop for Acquiring {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            count(&METERS.acquisitions, outcome, 1);
        }
    }
}

/// So many leases were to be renewed together.
pub(crate) fn renewed(leases: usize, renewed: &Result<Vec<Outcome>, Error>) {
    match renewed {
        Ok(outcomes) => outcomes
            .iter()
            .for_each(|outcome| count(&METERS.renewals, renewal(*outcome), 1)),
        Err(_) => count(&METERS.renewals, "failed", leases as u64),
    }
}

/// A future runs without its lock.
pub(crate) fn unprotected() {
    METERS.unprotected.increment(1);
}

/// A fence was less than one that was seen.
pub(crate) fn fence_refused() {
    METERS.fences_refused.increment(1);
}

/// Since when a lock is held; nothing before it is and when it is not any more. It ends once, whichever end comes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldSince(Option<Instant>);

impl HeldSince {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    fn begin(&mut self) {
        self.0 = Some(Instant::now());
        METERS.held.increment(1.0);
    }

    /// It was lost. What was let go of before is not.
    pub(crate) fn lost(&mut self, reason: LostReason) {
        if self.end() {
            count(&METERS.lost, label(reason), 1);
        }
    }

    /// Whether it was held until now.
    fn end(&mut self) -> bool {
        let since = self.0.take();
        if let Some(since) = since {
            METERS.held.decrement(1.0);
            METERS.hold.record(since.elapsed());
        }
        since.is_some()
    }
}

/// That a lock is held, until this is dropped: it was let go of then.
#[derive(Debug)]
pub(crate) struct Holding(Option<Lease>);

impl Holding {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn of(lease: &Lease) -> Self {
        lease.count(HeldSince::begin);
        Self(Some(lease.clone()))
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(lease) = &self.0 {
            lease.count(|since| {
                since.end();
            });
        }
    }
}

fn count(counters: &ByLabel<Counter>, says: &str, times: u64) {
    if let Some(counter) = counters.of(says) {
        counter.increment(times);
    }
}

fn outcome(error: Option<&LockError>) -> &'static str {
    match error {
        None => "acquired",
        Some(LockError::NotAcquired { .. }) => "busy",
        Some(LockError::TimedOut { .. }) => "timed_out",
        Some(LockError::TtlTooShort { .. }) => "too_short",
        Some(
            LockError::Backend(_)
            | LockError::NotReplicated { .. }
            | LockError::FenceNotStored { .. }
            | LockError::Lost(_),
        ) => "error",
    }
}

fn renewal(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Held => "renewed",
        Outcome::Absent => "vanished",
        Outcome::Other => "stolen",
    }
}

fn label(reason: LostReason) -> &'static str {
    match reason {
        LostReason::Expired => "expired",
        LostReason::Stolen => "stolen",
        LostReason::Vanished => "vanished",
        LostReason::Forced => "forced",
        LostReason::HeldTooLong => "held_too_long",
        LostReason::Closed => "closed",
        LostReason::Resigned => "resigned",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redis_conn::ErrorKind;

    use super::*;

    #[test]
    fn all_that_can_be_said_is_in_the_table() {
        let known = |family: Family, says: &str| {
            let handles = family.each(&[], |_, says| says.concat());
            assert_eq!(handles.of(says).map(String::as_str), Some(says));
        };
        let (owner, ttl) = (String::new(), Duration::ZERO);
        for (error, expected) in [
            (
                LockError::NotAcquired {
                    owner: owner.clone(),
                    remaining: ttl,
                },
                "busy",
            ),
            (LockError::TimedOut { waited: ttl, owner }, "timed_out"),
            (LockError::TtlTooShort { ttl, took: ttl }, "too_short"),
            (Error::new(ErrorKind::Timeout, "").into(), "error"),
            (LockError::Lost(LostReason::Expired), "error"),
        ] {
            assert_eq!(outcome(Some(&error)), expected);
            known(ACQUISITIONS, expected);
        }
        known(ACQUISITIONS, outcome(None));
        for says in [Outcome::Held, Outcome::Absent, Outcome::Other] {
            known(RENEWALS, renewal(says));
        }
        known(RENEWALS, "failed");
        for reason in [
            LostReason::Expired,
            LostReason::Stolen,
            LostReason::Vanished,
            LostReason::Forced,
            LostReason::HeldTooLong,
            LostReason::Closed,
            LostReason::Resigned,
        ] {
            known(LOST, label(reason));
        }
    }
}
