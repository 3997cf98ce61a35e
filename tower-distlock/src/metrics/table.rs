//! The one table of what is counted.

use redis_conn::metrics::Family;

pub(super) const ACQUISITIONS: Family = Family::counter_of(
    "towerkeep_lock_acquisitions_total",
    "Acquisitions that came to their end, of a Redlock one on each server; what an owner holds already is none",
)
.by(
    "outcome",
    &["acquired", "busy", "timed_out", "too_short", "cancelled", "error"],
);

pub(super) const WAIT: Family = Family::seconds_of(
    "towerkeep_lock_wait_seconds",
    "How long it took until a lock was acquired",
);

pub(super) const HOLD: Family = Family::seconds_of(
    "towerkeep_lock_hold_seconds",
    "How long a lock was held, until it was released or lost",
);

pub(super) const LOST: Family = Family::counter_of(
    "towerkeep_lock_lost_total",
    "Locks that were lost before they were released",
)
.by(
    "reason",
    &[
        "expired",
        "stolen",
        "vanished",
        "forced",
        "held_too_long",
        "closed",
        "resigned",
    ],
);

pub(super) const HELD: Family =
    Family::gauge_of("towerkeep_lock_held", "Locks that this process holds");

pub(super) const RENEWALS: Family = Family::counter_of(
    "towerkeep_lock_renewals_total",
    "Renewals of a lease in the background; one that failed is tried again until the lease ends",
)
.by("outcome", &["renewed", "vanished", "stolen", "failed"]);

pub(super) const UNPROTECTED: Family = Family::counter_of(
    "towerkeep_lock_unprotected_total",
    "Futures that ran without their lock, because the store did not answer and `RunUnprotected` allows it",
);

pub(super) const FENCES_REFUSED: Family = Family::counter_of(
    "towerkeep_lock_fences_refused_total",
    "Fences that were refused, because a greater one was seen",
);

pub(super) const CRON_RUNS: Family = Family::counter_of(
    "towerkeep_lock_cron_runs_total",
    "Slots of a cron job by what came of them in this process; `refused` if the store did not answer",
)
.by_name("cron")
.by(
    "outcome",
    &[
        "ran",
        "skipped",
        "missed",
        "overlapped",
        "failed",
        "lost",
        "refused",
    ],
);

pub(super) const CRON_DURATION: Family = Family::seconds_of(
    "towerkeep_lock_cron_duration_seconds",
    "How long a run took from its claim to its end, well or not",
)
.by_name("cron");

pub(super) const CRON_LAG: Family = Family::seconds_of(
    "towerkeep_lock_cron_lag_seconds",
    "How long after its slot a run was begun, by the clock of this process",
)
.by_name("cron");

pub(super) const ELECTION_LEADER: Family = Family::gauge_of(
    "towerkeep_lock_election_leader",
    "Whether this process leads: 1 or 0; the sum over all processes is how many believe to",
)
.by_name("election");

pub(super) const ELECTION_CHANGES: Family = Family::counter_of(
    "towerkeep_lock_election_changes_total",
    "Times at which this process came to lead; the sum over all processes is how often the leader changed",
)
.by_name("election");

pub(super) const FAMILIES: &[Family] = &[
    ACQUISITIONS,
    WAIT,
    HOLD,
    LOST,
    HELD,
    RENEWALS,
    UNPROTECTED,
    FENCES_REFUSED,
    CRON_RUNS,
    CRON_DURATION,
    CRON_LAG,
    ELECTION_LEADER,
    ELECTION_CHANGES,
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
        const GAUGES: [&str; 2] = ["towerkeep_lock_held", "towerkeep_lock_election_leader"];
        for family in FAMILIES {
            let name = family.name();
            assert!(name.starts_with("towerkeep_lock_"), "{name}");
            assert!(
                name.ends_with("_total") || name.ends_with("_seconds") || GAUGES.contains(&name),
                "{name}"
            );
        }
    }
}
