//! The questions.

use std::{sync::Arc, time::Duration};

use ::redis::{Cmd, Value};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::info::{ClusterInfo, Facts, text};
use crate::redis::{Class, dial::Purpose, fault::Failure, lane::Lane, link::Link, node::Node};

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_millis(500);

/// Who answered, and how fast. The nodes are in the order in which they were asked.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) nodes: Vec<Answers>,
}

/// What came from one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) is_replica: bool,
    /// How many connections were asked.
    pub(super) lanes: usize,
    /// On how many of them the answer came.
    pub(super) answered: usize,
    /// Of the slowest.
    pub(super) latency: Option<Duration>,
}

/// Asks all connections of all nodes at the same time.
pub(super) async fn ask_all(nodes: &[Arc<Node>], number: u64) -> Round {
    let mut asked = JoinSet::new();
    for (index, node) in nodes.iter().enumerate() {
        for lane in node.lanes() {
            let lane = Arc::clone(lane);
            asked.spawn(async move { (index, ping(&lane, number).await) });
        }
    }
    let answers = |node: &Arc<Node>| Answers {
        is_replica: node.purpose() == Purpose::Reads,
        lanes: node.lanes().len(),
        answered: 0,
        latency: None,
    };
    let mut nodes: Vec<_> = nodes.iter().map(answers).collect();
    while let Some(answer) = asked.join_next().await {
        if let Ok((index, Some(took))) = answer {
            let node: &mut Answers = &mut nodes[index];
            node.answered += 1;
            node.latency = node.latency.max(Some(took));
        }
    }
    Round { nodes }
}

/// How long the server took to repeat this number on the connection of a lane. Any other answer belongs to somebody else: the
/// connection has lost count of its replies.
async fn ping(lane: &Lane, number: u64) -> Option<Duration> {
    let link = lane.link_if_up()?;
    let mut ping = ::redis::cmd("PING");
    ping.arg(number);
    let sent = Instant::now();
    let failure = match timeout(DEADLINE, link.send(&ping, false)).await {
        Ok(Ok(Value::BulkString(echo))) if echo == number.to_string().as_bytes() => {
            return Some(sent.elapsed());
        }
        Ok(Ok(Value::ServerError(answer))) => {
            // A user that may not ask hears that the server is there all the same.
            if answer.code() == "NOPERM" {
                return Some(sent.elapsed());
            }
            Failure::of_answer(&answer)
        }
        Ok(Ok(_)) => {
            link.condemn();
            return None;
        }
        Ok(Err(error)) => Failure::lost(Class::Idempotent, error),
        // Commands in flight have deadlines of their own, and whose turn comes after a long script is not lost.
        Err(_) if lane.in_flight() > 0 => return None,
        Err(_) => Failure::late(Class::Idempotent),
    };
    link.failed(&failure, sent);
    None
}

/// What the server tells of its settings; nothing if it does not answer.
pub(super) async fn ask_facts(link: &Link) -> Option<Facts> {
    match ask(link, &::redis::cmd("INFO")).await? {
        Value::ServerError(_) => Some(Facts::default()),
        answer => Some(Facts::read(text(&answer)?)),
    }
}

/// What one node tells of the cluster.
pub(super) async fn ask_cluster(nodes: &[Arc<Node>]) -> ClusterInfo {
    let mut lanes = nodes.iter().flat_map(|node| node.lanes());
    let Some(link) = lanes.find_map(|lane| lane.link_if_up()) else {
        return ClusterInfo::default();
    };
    let mut info = ::redis::cmd("CLUSTER");
    info.arg("INFO");
    let answer = ask(&link, &info).await;
    let info = answer.as_ref().and_then(text).map(ClusterInfo::read);
    info.unwrap_or_default()
}

async fn ask(link: &Link, command: &Cmd) -> Option<Value> {
    timeout(DEADLINE, link.send(command, false))
        .await
        .ok()?
        .ok()
}
