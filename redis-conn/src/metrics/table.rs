//! The one table of what is counted.

use metrics::{Counter, Gauge, Histogram, Label, Unit};

/// Everything of one name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    kind: Kind,
    unit: Option<Unit>,
    /// The one label, and all that it may say; empty if there is none.
    label: &'static str,
    values: &'static [&'static str],
    help: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    family(name, Kind::Counter, None, help)
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    family(name, Kind::Gauge, None, help)
}

const fn seconds(name: &'static str, help: &'static str) -> Family {
    family(name, Kind::Histogram, Some(Unit::Seconds), help)
}

const fn family(name: &'static str, kind: Kind, unit: Option<Unit>, help: &'static str) -> Family {
    Family {
        name,
        kind,
        unit,
        label: "",
        values: &[],
        help,
    }
}

pub(super) const STATE: Family = gauge(
    "towerkeep_redis_conn_state",
    "How many backends of this process are in this state: 0 or 1 for each name where there is one backend",
)
.by("state", &["disconnected", "connecting", "connected", "reconnecting", "error"]);

pub(super) const CONNECTION_STATE: Family = gauge(
    "redis_connection_state",
    "The state as one number: 0 disconnected or error, 1 connecting or reconnecting, 2 connected",
);

pub(super) const OPERATION_DURATION: Family = seconds(
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

pub(super) const FAILURES: Family = counter(
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

pub(super) const TIMEOUTS: Family = counter(
    "towerkeep_redis_conn_timeouts_total",
    "Commands that were sent and not answered before their deadline",
);

pub(super) const AMBIGUOUS: Family = counter(
    "towerkeep_redis_conn_ambiguous_total",
    "Commands that may or may not have been executed",
);

pub(super) const REDIRECTS: Family = counter(
    "towerkeep_redis_conn_redirects_total",
    "Answers of a cluster's node that another one has the slot",
)
.by("kind", &["moved", "ask"]);

pub(super) const RECONNECTS: Family = counter(
    "towerkeep_redis_conn_reconnects_total",
    "Shared connections that took the place of another one",
);

pub(super) const IN_FLIGHT: Family = gauge(
    "towerkeep_redis_conn_in_flight",
    "Commands on shared connections that wait for their reply, as of the last probe",
);

pub(super) const TOPOLOGY_REFRESH: Family = seconds(
    "towerkeep_redis_conn_topology_refresh_duration_seconds",
    "How long it took to look up who has the slots of a cluster",
);

pub(super) const PUBSUB_GAPS: Family = counter(
    "towerkeep_redis_conn_pubsub_gaps_total",
    "Times at which subscribers were told that messages may have been lost",
);

pub(super) const PUBSUB_LOST: Family = counter(
    "towerkeep_redis_conn_pubsub_lost_total",
    "Messages that a subscriber did not get because it was too slow or could not read them",
);

pub(super) const SUBSCRIPTIONS_REFUSED: Family = counter(
    "towerkeep_redis_conn_subscriptions_refused_total",
    "Channels that the server does not let this user subscribe to",
);

pub(super) const POOL_CONNECTIONS: Family = gauge(
    "towerkeep_redis_conn_pool_connections",
    "Connections for exclusive use, as of the last probe",
)
.by("state", &["idle", "used"]);

pub(super) const POOL_WAITING: Family = gauge(
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

impl Family {
    const fn by(mut self, label: &'static str, values: &'static [&'static str]) -> Self {
        self.label = label;
        self.values = values;
        self
    }

    /// The counter of this label value; `""` where there is no label.
    pub(super) fn counter(&self, value: &'static str) -> Counter {
        metrics::counter!(self.name, self.labels(value))
    }

    pub(super) fn gauge(&self, value: &'static str) -> Gauge {
        metrics::gauge!(self.name, self.labels(value))
    }

    pub(super) fn histogram(&self, value: &'static str) -> Histogram {
        metrics::histogram!(self.name, self.labels(value))
    }

    /// A handle for each value of the label.
    #[cfg(feature = "redis")]
    pub(super) fn each<T>(&self, handle: impl Fn(&Self, &'static str) -> T) -> ByLabel<T> {
        let values = self.values.iter();
        ByLabel(values.map(|value| (*value, handle(self, value))).collect())
    }

    fn labels(&self, value: &'static str) -> Vec<Label> {
        if self.label.is_empty() {
            return Vec::new();
        }
        vec![Label::from_static_parts(self.label, value)]
    }

    /// Has the family shown before anything happened: what is absent cannot be told from what is zero.
    fn begin(&self) {
        let values = if self.values.is_empty() {
            &[""]
        } else {
            self.values
        };
        match self.kind {
            Kind::Counter => values
                .iter()
                .for_each(|value| self.counter(value).increment(0)),
            Kind::Gauge => values
                .iter()
                .for_each(|value| self.gauge(value).increment(0.0)),
            // Each is many lines of text: one shows that the family is there.
            Kind::Histogram => drop(self.histogram(values[0])),
        }
    }

    fn describe(&self) {
        // A number of things has no unit.
        let unit = self.unit.unwrap_or(Unit::Count);
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, unit, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, unit, self.help),
            Kind::Histogram => metrics::describe_histogram!(self.name, unit, self.help),
        }
    }
}

/// Tells the recorder of all families, and what each means.
pub(super) fn begin() {
    for family in FAMILIES {
        family.describe();
        family.begin();
    }
}

/// The handles of one family.
#[cfg(feature = "redis")]
#[derive(Debug)]
pub(super) struct ByLabel<T>(Vec<(&'static str, T)>);

#[cfg(feature = "redis")]
impl<T> ByLabel<T> {
    pub(super) fn of(&self, value: &str) -> Option<&T> {
        let mut handles = self.0.iter();
        handles.find_map(|(name, handle)| (*name == value).then_some(handle))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The reference page.
    fn page() -> String {
        let mut page = "| family | kind | label | meaning |\n|---|---|---|---|\n".to_owned();
        for family in FAMILIES {
            let kind = match (family.kind, family.unit) {
                (Kind::Counter, _) => "counter",
                (Kind::Gauge, _) => "gauge",
                (Kind::Histogram, Some(Unit::Seconds)) => "histogram, seconds",
                (Kind::Histogram, _) => "histogram",
            };
            let label = match family.label {
                "" => String::new(),
                label => format!("`{label}`: `{}`", family.values.join("`, `")),
            };
            writeln!(
                page,
                "| `{}` | {kind} | {label} | {} |",
                family.name, family.help
            )
            .unwrap();
        }
        page
    }

    #[test]
    fn the_reference_page_is_the_table() {
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/metrics/metrics.md");
            std::fs::write(path, page()).unwrap();
            return;
        }
        let found = include_str!("metrics.md");
        assert_eq!(found, page(), "run this once with UPDATE_EXPECT=1");
    }

    #[test]
    fn names_say_what_is_measured() {
        for family in FAMILIES {
            let name = family.name;
            assert!(name.starts_with("towerkeep_redis_conn_") || name == "redis_connection_state");
            let suffix = match family.kind {
                Kind::Counter => "_total",
                Kind::Histogram => "_seconds",
                Kind::Gauge => "",
            };
            assert!(name.ends_with(suffix), "{name}");
        }
    }
}
