//! The one table of what is counted.

use super::family::Family;

pub(super) const STATE: Family = Family::gauge_of(
    "towerkeep_redis_conn_state",
    "How many backends of this process are in this state: 0 or 1 for each name where there is one backend",
)
.by("state", &["disconnected", "connecting", "connected", "reconnecting", "error"]);

pub(super) const CONNECTION_STATE: Family = Family::gauge_of(
    "redis_connection_state",
    "The state as one number: 0 disconnected or error, 1 connecting or reconnecting, 2 connected",
);

pub(super) const OPERATION_DURATION: Family = Family::seconds_of(
    "towerkeep_redis_conn_operation_duration_seconds",
    "How long a call took, retries included",
)
.by(
    "outcome",
    &[
        "ok",
        "config",
        "unavailable",
        "timeout",
        "ambiguous",
        "circuit_open",
        "saturated",
        "refused",
        "corrupt",
        "closed",
    ],
);

pub(super) const FAILURES: Family = Family::counter_of(
    "towerkeep_redis_conn_failures_total",
    "Attempts to connect or to have a command answered that failed",
)
.by(
    "fault",
    &[
        "away",
        "lost",
        "credentials",
        "timeout",
        "saturated",
        "closed",
        "max_clients",
        "loading",
        "master_down",
        "cluster_down",
        "try_again",
        "moved",
        "ask",
        "read_only",
        "busy",
        "no_script",
        "out_of_memory",
        "no_replicas",
        "misconf",
        "refused",
    ],
);

pub(super) const TIMEOUTS: Family = Family::counter_of(
    "towerkeep_redis_conn_timeouts_total",
    "Commands that were sent and not answered before their deadline",
);

pub(super) const AMBIGUOUS: Family = Family::counter_of(
    "towerkeep_redis_conn_ambiguous_total",
    "Commands that may or may not have been executed",
);

pub(super) const REDIRECTS: Family = Family::counter_of(
    "towerkeep_redis_conn_redirects_total",
    "Answers of a cluster's node that another one has the slot",
)
.by("kind", &["moved", "ask"]);

pub(super) const RECONNECTS: Family = Family::counter_of(
    "towerkeep_redis_conn_reconnects_total",
    "Shared connections that took the place of another one",
);

pub(super) const IN_FLIGHT: Family = Family::gauge_of(
    "towerkeep_redis_conn_in_flight",
    "Commands on shared connections that wait for their reply, as of the last probe",
);

pub(super) const TOPOLOGY_REFRESH: Family = Family::seconds_of(
    "towerkeep_redis_conn_topology_refresh_duration_seconds",
    "How long it took to look up who has the slots of a cluster",
);

pub(super) const PUBSUB_GAPS: Family = Family::counter_of(
    "towerkeep_redis_conn_pubsub_gaps_total",
    "Times at which subscribers were told that messages may have been lost",
);

pub(super) const PUBSUB_LOST: Family = Family::counter_of(
    "towerkeep_redis_conn_pubsub_lost_total",
    "Messages that a subscriber did not get because it was too slow or could not read them",
);

pub(super) const SUBSCRIPTIONS_REFUSED: Family = Family::counter_of(
    "towerkeep_redis_conn_subscriptions_refused_total",
    "Channels that the server does not let this user subscribe to",
);

pub(super) const POOL_CONNECTIONS: Family = Family::gauge_of(
    "towerkeep_redis_conn_pool_connections",
    "Connections for exclusive use, as of the last probe",
)
.by("state", &["idle", "used"]);

pub(super) const POOL_WAITING: Family = Family::gauge_of(
    "towerkeep_redis_conn_pool_waiting",
    "Callers that wait for a connection for exclusive use, as of the last probe",
);

const FAMILIES: &[Family] = &[
    STATE,
    CONNECTION_STATE,
    OPERATION_DURATION,
    FAILURES,
    TIMEOUTS,
    AMBIGUOUS,
    REDIRECTS,
    RECONNECTS,
    IN_FLIGHT,
    TOPOLOGY_REFRESH,
    PUBSUB_GAPS,
    PUBSUB_LOST,
    SUBSCRIPTIONS_REFUSED,
    POOL_CONNECTIONS,
    POOL_WAITING,
];

/// Tells the recorder of all families, and what each means.
pub(super) fn begin() {
    for family in FAMILIES {
        family.describe();
        family.begin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::page;

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
        for row in page(FAMILIES).lines().skip(2) {
            let (name, rest) = row[3..].split_once("` | ").unwrap();
            assert!(name.starts_with("towerkeep_redis_conn_") || name == "redis_connection_state");
            let suffix = match rest.split_once(" |").unwrap().0 {
                "counter" => "_total",
                "histogram, seconds" => "_seconds",
                _ => "",
            };
            assert!(name.ends_with(suffix), "{name}");
        }
    }
}
