//! What follows from the answers.

use super::{ask::Round, info::ClusterInfo};
use crate::{State, Status};

/// So many rounds must agree before health leaves `healthy` or returns to it.
const AGREE: u32 = 2;

/// How one round looks.
pub(super) fn judge(round: &Round, cluster: &ClusterInfo, state: State) -> Status {
    let mut primaries = round.nodes.iter().filter(|node| !node.is_replica);
    let is_down = cluster.state.as_deref().is_some_and(|state| state != "ok");
    if is_down || !primaries.any(|node| node.answered > 0) {
        return Status::Unhealthy;
    }
    let all = round.nodes.iter().all(|node| node.answered == node.lanes);
    if all && state == State::Connected {
        Status::Healthy
    } else {
        Status::Degraded
    }
}

/// Keeps a single lost answer from being shown, and a single one that came.
#[derive(Debug, Default)]
pub(super) struct Hysteresis {
    shown: Option<Status>,
    against: u32,
}

impl Hysteresis {
    /// What is shown after one more round.
    pub(super) fn settle(&mut self, verdict: Status) -> Status {
        let Some(shown) = self.shown else {
            return *self.shown.insert(verdict);
        };
        let crosses = (shown == Status::Healthy) != (verdict == Status::Healthy);
        self.against = if crosses { self.against + 1 } else { 0 };
        if crosses && self.against < AGREE {
            return shown;
        }
        self.against = 0;
        *self.shown.insert(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ask::Answers, *};
    use crate::Status::{Degraded, Healthy, Unhealthy};

    #[test]
    fn two_rounds_must_agree_before_it_leaves_healthy_or_returns() {
        let mut hysteresis = Hysteresis::default();
        for (verdict, shown) in [
            (Healthy, Healthy),
            (Unhealthy, Healthy),
            (Healthy, Healthy),
            (Unhealthy, Healthy),
            (Degraded, Degraded),
            (Unhealthy, Unhealthy),
            (Healthy, Unhealthy),
            (Degraded, Degraded),
            (Healthy, Degraded),
            (Healthy, Healthy),
        ] {
            assert_eq!(hysteresis.settle(verdict), shown, "{hysteresis:?}");
        }
    }

    #[test]
    fn the_first_round_is_shown_as_it_is() {
        for verdict in [Healthy, Degraded, Unhealthy] {
            assert_eq!(Hysteresis::default().settle(verdict), verdict);
        }
    }

    #[test]
    fn rounds() {
        let node = |is_replica, answered| Answers {
            is_replica,
            lanes: 2,
            answered,
            latency: None,
        };
        let (up, half, down, replica) = (
            node(false, 2),
            node(false, 1),
            node(false, 0),
            node(true, 0),
        );
        let cluster = |state: &str| ClusterInfo::read(&format!("cluster_state:{state}"));
        let unknown = ClusterInfo::default();
        for (nodes, cluster, state, expected) in [
            (vec![up], unknown.clone(), State::Connected, Healthy),
            (vec![up], unknown.clone(), State::Reconnecting, Degraded),
            (vec![half], unknown.clone(), State::Connected, Degraded),
            (vec![down], unknown.clone(), State::Connected, Unhealthy),
            (vec![], unknown, State::Reconnecting, Unhealthy),
            (vec![up, up], cluster("ok"), State::Connected, Healthy),
            (vec![up, down], cluster("ok"), State::Connected, Degraded),
            (vec![up, replica], cluster("ok"), State::Connected, Degraded),
            (vec![up, up], cluster("fail"), State::Connected, Unhealthy),
            (
                vec![down, node(true, 2)],
                cluster("ok"),
                State::Connected,
                Unhealthy,
            ),
        ] {
            let round = Round { nodes };
            assert_eq!(
                judge(&round, &cluster, state),
                expected,
                "{round:?} {cluster:?} {state}"
            );
        }
    }
}
