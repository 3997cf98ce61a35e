//! The one table of what is counted.

use redis_conn::metrics::{Family, KINDS};

pub(super) const DECISIONS: Family = Family::counter_of(
    "towerkeep_ratelimit_decisions_total",
    "Calls that were decided about, whoever decided",
)
.by_name("policy")
.by("outcome", &["allowed", "denied"]);

pub(super) const FALLBACK_DECISIONS: Family = Family::counter_of(
    "towerkeep_ratelimit_fallback_decisions_total",
    "Decisions that the failure policy made, because the store did not",
)
.by_name("policy")
.by("outcome", &["allowed", "denied"]);

pub(super) const CACHED_DENIALS: Family = Family::counter_of(
    "towerkeep_ratelimit_cached_denials_total",
    "Denials that this process remembered, so that the store was not asked",
)
.by_name("policy");

pub(super) const BLOCKED_DENIALS: Family = Family::counter_of(
    "towerkeep_ratelimit_blocked_denials_total",
    "Denials because the subject is blocked, however much of its limits is left",
)
.by_name("policy");

pub(super) const NEAR_LIMIT: Family = Family::counter_of(
    "towerkeep_ratelimit_near_limit_total",
    "Allowed calls that left at most a fifth of a limit",
)
.by_name("policy");

pub(super) const COALESCED_CHECKS: Family = Family::counter_of(
    "towerkeep_ratelimit_coalesced_checks_total",
    "Checks that the store decided together with another one, at no command of their own",
)
.by_name("policy");

pub(super) const ERRORS: Family = Family::counter_of(
    "towerkeep_ratelimit_errors_total",
    "Answers that the store owed and did not give, whatever the failure policy made of it",
)
.by_name("policy")
.by("kind", KINDS);

pub(super) const REQUESTS: Family = Family::counter_of(
    "towerkeep_ratelimit_requests_total",
    "Requests that reached a layer; the route is there where the layer was told to say it",
)
.by_name("policy")
.by_name("route")
.by(
    "outcome",
    &["allowed", "denied", "shadowed", "skipped", "failed"],
);

pub(super) const DECISION_DURATION: Family = Family::seconds_of(
    "towerkeep_ratelimit_decision_duration_seconds",
    "How long a decision took, by the kind of the backend and by who decided",
)
.by(
    "store",
    &[
        "memory",
        "sqlite",
        "redis-single",
        "redis-cluster",
        "redis-sentinel",
    ],
)
.by(
    "source",
    &["store", "cached", "leased", "behind", "local", "open"],
);

pub(super) const FAMILIES: &[Family] = &[
    DECISIONS,
    FALLBACK_DECISIONS,
    CACHED_DENIALS,
    BLOCKED_DENIALS,
    NEAR_LIMIT,
    COALESCED_CHECKS,
    ERRORS,
    REQUESTS,
    DECISION_DURATION,
];

#[cfg(test)]
mod tests {
    use redis_conn::metrics::page;

    use super::*;

    #[test]
    fn the_reference_page_is_the_table() {
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics/metrics.md");
            std::fs::write(path, page(FAMILIES)).unwrap();
            return;
        }
        let found = include_str!("metrics.md");
        assert_eq!(found, page(FAMILIES), "run this once with UPDATE_EXPECT=1");
    }

    #[test]
    fn names_say_what_is_measured() {
        for family in FAMILIES {
            let name = family.name();
            assert!(name.starts_with("towerkeep_ratelimit_"), "{name}");
            assert!(
                name.ends_with("_total") || name.ends_with("_seconds"),
                "{name}"
            );
        }
    }
}
