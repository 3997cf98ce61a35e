//! The handles of each policy.

use std::sync::{LazyLock, OnceLock};

use metrics::Counter;
use redis_conn::metrics::{ByLabel, Family, Few};

use super::{
    Outcome,
    routes::{NUMBERS, Route},
    table::{
        BLOCKED_DENIALS, CACHED_DENIALS, COALESCED_CHECKS, DECISIONS, ERRORS, FALLBACK_DECISIONS,
        NEAR_LIMIT, REQUESTS,
    },
};

/// So many policies are told apart; the others are one. A program has a handful, unless it makes their names of its input.
const POLICIES: usize = 64;

static SEEN: Few<Counters, POLICIES> = Few::new();
static OTHER: LazyLock<Counters> = LazyLock::new(|| Counters::new("other"));

/// The counters of the policy of this name.
pub(super) fn of(policy: &str) -> &'static Counters {
    let found = SEEN.find(policy, Counters::new);
    found.map_or_else(|| &*OTHER, |found| found.value)
}

/// What one policy counts.
#[derive(Debug)]
pub(super) struct Counters {
    policy: Box<str>,
    decisions: ByLabel<Counter>,
    fallback: ByLabel<Counter>,
    cached: Counter,
    blocked: Counter,
    near_limit: Counter,
    errors: ByLabel<Counter>,
    #[cfg_attr(
        not(any(feature = "redis", test)),
        expect(dead_code, reason = "only servers decide many at once")
    )]
    pub(super) coalesced: Counter,
    requests: ByLabel<Counter>,
    /// Those of which a layer says the route, by its number.
    routes: Box<[OnceLock<ByLabel<Counter>>]>,
}

/// What is counted of a decision.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    pub(super) allowed: bool,
    pub(super) near_limit: bool,
    pub(super) fallback: bool,
    pub(super) cached: bool,
    pub(super) blocked: bool,
}

impl Counters {
    fn new(policy: &str) -> Self {
        let each = |family: Family| family.each(&[policy], Family::counter);
        let one = |family: Family| family.counter(&[policy]);
        Self {
            policy: policy.into(),
            decisions: each(DECISIONS),
            fallback: each(FALLBACK_DECISIONS),
            cached: one(CACHED_DENIALS),
            blocked: one(BLOCKED_DENIALS),
            near_limit: one(NEAR_LIMIT),
            errors: each(ERRORS),
            coalesced: one(COALESCED_CHECKS),
            requests: requests(policy, ""),
            routes: (0..NUMBERS).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(super) fn decided(&self, facts: Facts) {
        let outcome = if facts.allowed { "allowed" } else { "denied" };
        count(&self.decisions, outcome);
        if facts.fallback {
            count(&self.fallback, outcome);
        }
        for (counted, counter) in [
            (facts.allowed && facts.near_limit, &self.near_limit),
            (!facts.allowed && facts.cached, &self.cached),
            (!facts.allowed && facts.blocked, &self.blocked),
        ] {
            if counted {
                counter.increment(1);
            }
        }
    }

    /// `kind` is that of the error.
    pub(super) fn failed(&self, kind: &str) {
        count(&self.errors, kind);
    }

    pub(super) fn requested(&self, route: Option<Route>, outcome: Outcome) {
        let requests = match route {
            None => &self.requests,
            Some(route) => {
                self.routes[route.number].get_or_init(|| requests(&self.policy, route.label))
            }
        };
        count(requests, outcome.as_str());
    }
}

fn requests(policy: &str, route: &str) -> ByLabel<Counter> {
    REQUESTS.each(&[policy, route], Family::counter)
}

fn count(counters: &ByLabel<Counter>, says: &str) {
    if let Some(counter) = counters.of(says) {
        counter.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// The lines above zero after `counting`, without the prefix that all have.
    fn counted(counting: impl FnOnce(&Counters)) -> Vec<String> {
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || counting(&Counters::new("api")));
        let page = recorder.handle().render();
        let lines = page
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.ends_with(" 0"));
        let mut lines: Vec<_> = lines
            .map(|line| line.replace("towerkeep_ratelimit_", ""))
            .collect();
        lines.sort();
        lines
    }

    const DENIED: &str = r#"decisions_total{policy="api",outcome="denied"} 1"#;

    #[test]
    fn a_denial_says_where_it_came_from() {
        let denied = Facts::default();
        assert_eq!(counted(|api| api.decided(denied)), [DENIED]);
        let cached = Facts {
            cached: true,
            ..denied
        };
        let lines = counted(|api| api.decided(cached));
        assert_eq!(lines, [r#"cached_denials_total{policy="api"} 1"#, DENIED]);
        let blocked = Facts {
            blocked: true,
            // It is no news that nothing is left.
            near_limit: true,
            ..denied
        };
        let lines = counted(|api| api.decided(blocked));
        assert_eq!(lines, [r#"blocked_denials_total{policy="api"} 1"#, DENIED]);
        let fallback = Facts {
            fallback: true,
            ..denied
        };
        let lines = counted(|api| api.decided(fallback));
        assert_eq!(lines[1], format!("fallback_{DENIED}"));
    }

    #[test]
    fn an_allowed_call_may_be_near_the_limit() {
        let allowed = Facts {
            allowed: true,
            near_limit: true,
            ..Facts::default()
        };
        assert_eq!(
            counted(|api| api.decided(allowed)),
            [
                r#"decisions_total{policy="api",outcome="allowed"} 1"#,
                r#"near_limit_total{policy="api"} 1"#,
            ]
        );
    }

    #[test]
    fn checks_that_came_together_are_counted() {
        let lines = counted(|api| api.coalesced.increment(7));
        assert_eq!(lines, [r#"coalesced_checks_total{policy="api"} 7"#]);
    }

    #[test]
    fn a_request_has_a_route_where_it_is_to_be_said() {
        let lines = counted(|api| {
            api.requested(None, Outcome::Shadowed);
            api.requested(Some(Route::of("/books/{id}")), Outcome::Skipped);
        });
        assert_eq!(
            lines,
            [
                r#"requests_total{policy="api",outcome="shadowed"} 1"#,
                r#"requests_total{policy="api",route="/books/{id}",outcome="skipped"} 1"#,
            ]
        );
    }
}
