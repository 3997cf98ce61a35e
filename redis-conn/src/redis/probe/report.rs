//! What a health answer says of Redis: the last snapshot, and what is known at once.

use std::time::Duration;

use super::{NO_EVICTION, Snapshot, in_flight, pools};
use crate::{Check, Details, NodeDetails, State, Status, redis::Redis};

/// After so many intervals without a round nobody asks any more.
const STALLED: u32 = 3;

impl Redis {
    /// How the servers are, without asking them; with their addresses only where they are asked for.
    pub(crate) fn check(&self, detailed: bool) -> Check {
        let snapshot = self.inner.probes.borrow().clone();
        let state = *self.states().borrow();
        let details = self.details(&snapshot, state, detailed);
        let status = snapshot.status(state);
        let mut reasons = Vec::new();
        if let Some(policy) = &snapshot.evicts {
            reasons.push(format!(
                "maxmemory-policy is {policy}, expected {NO_EVICTION}"
            ));
        }
        if let Some(error) = self.bus_error() {
            reasons.push(format!("no message arrives ({})", error.kind().as_str()));
        }
        if snapshot.is_stalled() {
            reasons.push("the probe is stalled".to_owned());
        }
        let worst = match reasons.is_empty() {
            true => status,
            false => status.max(Status::Degraded),
        };
        Check::new(
            "redis",
            self.allowed(worst, state),
            message(status, &details, &reasons),
        )
        .with_details(details)
    }

    /// A process that can do without Redis is degraded by its absence, unless its own end is the reason.
    fn allowed(&self, status: Status, state: State) -> Status {
        match self.inner.context.dialer.config().is_required() || state == State::Disconnected {
            true => status,
            false => status.min(Status::Degraded),
        }
    }

    fn details(&self, snapshot: &Snapshot, state: State, detailed: bool) -> Details {
        let nodes = self.inner.topology.nodes();
        let context = &*self.inner.context;
        let topology = self.kind().strip_prefix("redis-").unwrap_or(self.kind());
        Details {
            latency: snapshot
                .round
                .nodes
                .iter()
                .filter_map(|node| node.latency)
                .max(),
            node_count: nodes.len(),
            cluster_state: snapshot.cluster.state.as_deref().map(str::to_owned),
            master_run_id: snapshot.run_id.as_deref().map(str::to_owned),
            epoch: snapshot.cluster.epoch,
            lanes: nodes.iter().map(|node| node.lanes().len()).sum(),
            in_flight: in_flight(&nodes),
            pool: pools(&nodes),
            last_error: context.telemetry.last_error(),
            reconnects: context.telemetry.reconnects(),
            nodes: detailed.then(|| snapshot.nodes()),
            probed_at: snapshot.probed.as_ref().map(|probed| probed.at),
            age: snapshot.age(),
            ..Details::new(topology, state)
        }
    }
}

impl Snapshot {
    /// As of the last round. Before the first one the state of the connections is all that is known.
    fn status(&self, state: State) -> Status {
        match (&self.probed, state) {
            (_, State::Disconnected) => Status::Unhealthy,
            (Some(probed), _) => probed.status,
            (None, State::Connected) => Status::Healthy,
            (None, _) => Status::Unhealthy,
        }
    }

    fn age(&self) -> Option<Duration> {
        self.probed.as_ref().map(|probed| probed.ended.elapsed())
    }

    fn is_stalled(&self) -> bool {
        let probed = self.probed.as_ref();
        probed.is_some_and(|probed| probed.ended.elapsed() > probed.pause * STALLED)
    }

    fn nodes(&self) -> Vec<NodeDetails> {
        let answers = self.names.iter().zip(&self.round.nodes);
        answers
            .map(|(name, answers)| {
                let role = if answers.is_replica {
                    "replica"
                } else {
                    "primary"
                };
                NodeDetails::new(name.clone(), role, answers.latency)
            })
            .collect()
    }
}

/// The outcome in words, without an address.
fn message(status: Status, details: &Details, reasons: &[String]) -> String {
    let latency = details
        .latency
        .map(|latency| latency.as_micros() as f64 / 1_000.0);
    let latency = latency.map_or("unknown".to_owned(), |millis| format!("{millis:.1}ms"));
    let facts = format!("latency: {latency}, nodes: {}", details.node_count);
    let mut text = match status {
        Status::Healthy => format!("Redis connection is working ({facts})"),
        Status::Degraded => format!(
            "Redis connection is working in part (state: {}, {facts})",
            details.state
        ),
        Status::Unhealthy => {
            let error = details
                .last_error
                .as_ref()
                .map_or("none", |error| error.kind);
            format!(
                "Redis connection is not working (state: {}, last error: {error})",
                details.state
            )
        }
    };
    if !reasons.is_empty() {
        text += &format!(", but {}", reasons.join(" and "));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::time::{Instant, advance};

    use super::*;
    use crate::redis::probe::{ClusterInfo, Probed, Round};

    fn snapshot(status: Option<Status>) -> Snapshot {
        Snapshot {
            probed: status.map(|status| Probed {
                at: SystemTime::now(),
                ended: Instant::now(),
                pause: Duration::from_secs(5),
                status,
            }),
            names: Vec::new(),
            round: Round::default(),
            cluster: ClusterInfo::default(),
            run_id: None,
            evicts: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_has_missed_three_intervals_is_stalled() {
        let (probed, never) = (snapshot(Some(Status::Healthy)), snapshot(None));
        advance(Duration::from_secs(15)).await;
        assert!(!probed.is_stalled());
        advance(Duration::from_millis(1)).await;
        assert!(probed.is_stalled());
        assert!(
            !never.is_stalled(),
            "a backend that waits for its first caller is not probed"
        );
    }

    #[tokio::test]
    async fn the_state_of_the_connections_stands_in_until_the_first_round() {
        let never = snapshot(None);
        assert_eq!(never.status(State::Connected), Status::Healthy);
        assert_eq!(never.status(State::Connecting), Status::Unhealthy);
        let probed = snapshot(Some(Status::Healthy));
        assert_eq!(
            probed.status(State::Reconnecting),
            Status::Healthy,
            "one round decides nothing"
        );
        assert_eq!(
            probed.status(State::Disconnected),
            Status::Unhealthy,
            "it was closed"
        );
    }
}
