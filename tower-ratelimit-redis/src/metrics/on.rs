//! With the feature `metrics`.

use std::time::Instant;

use metrics::Histogram;
use redis_conn::{
    Error,
    metrics::{ByLabel, Family, kind},
};

use super::{
    Outcome,
    policies::{self, Facts},
    routes::Route,
    table::{DECISION_DURATION, FAMILIES},
};
use crate::{Decision, LimitState, Policy, Source};

/// The handles of one limiter.
#[derive(Debug)]
pub(crate) struct Meters {
    durations: ByLabel<Histogram>,
}

/// When a decision was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(Instant);

impl Began {
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }
}

impl Meters {
    /// For a limiter on this kind of backend.
    pub(crate) fn new(store: &str) -> Self {
        FAMILIES.iter().for_each(Family::describe);
        Self {
            durations: DECISION_DURATION.each(&[store], Family::histogram),
        }
    }

    /// A call was decided about.
    pub(crate) fn decided(&self, policy: &Policy, decision: &Decision, began: Began) {
        policies::of(policy.name()).decided(decision.into());
        if let Some(durations) = self.durations.of(source(decision)) {
            durations.record(began.0.elapsed());
        }
    }
}

/// A policy that will be asked about: its families show before anything happened.
pub(crate) fn known(policy: &Policy) {
    policies::of(policy.name());
}

/// The store has not answered.
pub(crate) fn failed(policy: &Policy, error: &Error) {
    policies::of(policy.name()).failed(kind(error));
}

/// So many checks were decided with another one.
#[cfg(feature = "redis")]
pub(crate) fn coalesced(policy: &Policy, checks: u64) {
    policies::of(policy.name()).coalesced.increment(checks);
}

/// A layer let a request pass or did not. `route` is the template that it matched, where the layer is to say it.
pub(crate) fn requested(policy: &Policy, route: Option<&str>, outcome: Outcome) {
    policies::of(policy.name()).requested(route.map(Route::of), outcome);
}

impl From<&Decision> for Facts {
    fn from(decision: &Decision) -> Self {
        Self {
            allowed: decision.is_allowed(),
            near_limit: decision.limits().iter().any(is_near),
            fallback: matches!(decision.source(), Source::Local | Source::Open),
            cached: decision.source() == Source::Cached,
            blocked: decision.is_blocked(),
        }
    }
}

/// At the line of 80 % or beyond.
fn is_near(state: &LimitState) -> bool {
    state.remaining <= state.limit / 5
}

fn source(decision: &Decision) -> &'static str {
    match decision.source() {
        Source::Store => "store",
        Source::Cached => "cached",
        Source::Leased => "leased",
        Source::Behind => "behind",
        Source::Local => "local",
        Source::Open => "open",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn near_is_a_fifth_or_less() {
        let near = |remaining, limit| {
            is_near(&LimitState {
                unit: crate::Unit::Requests,
                name: "api-1s".into(),
                limit,
                remaining,
                window: Duration::from_secs(1),
                reset_after: Duration::ZERO,
            })
        };
        assert!(near(20, 100) && near(0, 1) && near(1, 5));
        assert!(!near(21, 100) && !near(1, 4) && !near(u64::MAX, u64::MAX));
    }
}
