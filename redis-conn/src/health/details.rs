//! What is known of the connections to Redis.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::rfc3339;
use crate::State;

/// What is known of the connections to Redis. No field but [`nodes`](Self::nodes) names an address.
///
/// As JSON every field is there whatever is known; what is not is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Details {
    /// How long the slowest node took to answer the last probe, in milliseconds.
    #[serde(serialize_with = "millis")]
    pub latency: Option<Duration>,
    /// How many nodes are connected to, or should be.
    pub node_count: usize,
    /// What a cluster says of itself: `ok` or `fail`.
    pub cluster_state: Option<String>,
    /// Whether calls are refused without being sent. There is no breaker yet.
    pub circuit_breaker_open: bool,
    /// `single`, `cluster` or `sentinel`.
    pub topology: &'static str,
    /// The state of the connections, as it is now.
    pub state: State,
    /// The process behind the one server that takes writes; another one after each restart and failover. Nothing on a cluster,
    /// where many do, and where the user may not ask.
    pub master_run_id: Option<String>,
    /// Counts the changes of a cluster's nodes; nothing elsewhere.
    pub epoch: Option<u64>,
    /// How many connections all callers share.
    pub lanes: usize,
    /// How many commands wait for their reply.
    pub in_flight: usize,
    /// The connections for exclusive use.
    pub pool: PoolDetails,
    /// The last failure that was not the fault of a command; it stays when all is well again.
    pub last_error: Option<LastError>,
    /// How many connections took the place of another one.
    pub reconnects: u64,
    /// The nodes, only in [`health_detailed`](crate::Backend::health_detailed).
    pub nodes: Option<Vec<NodeDetails>>,
    /// When the servers were asked last.
    #[serde(serialize_with = "time")]
    pub probed_at: Option<SystemTime>,
    /// How long ago that was, in milliseconds.
    #[serde(rename = "ageMs", serialize_with = "whole_millis")]
    pub age: Option<Duration>,
    /// Whether a handle does without Redis at the moment.
    pub fallback: bool,
}

/// The connections for exclusive use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolDetails {
    /// How many there are.
    pub size: usize,
    /// How many of them nobody uses.
    pub idle: usize,
    /// How many callers wait for one.
    pub waiting: usize,
}

/// A failure, without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastError {
    /// The kind of the error, such as `unavailable`.
    pub kind: &'static str,
    /// When it happened.
    #[serde(serialize_with = "rfc3339::serialize")]
    pub at: SystemTime,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NodeDetails {
    /// Its address.
    pub name: String,
    /// `primary` or `replica`.
    pub role: &'static str,
    /// How long it took to answer the last probe, in milliseconds; nothing if it did not.
    #[serde(serialize_with = "millis")]
    pub latency: Option<Duration>,
    /// The breaker of the node, `closed` as long as there is none.
    pub breaker: &'static str,
}

#[cfg(feature = "redis")]
impl LastError {
    pub(crate) fn new(kind: &'static str, at: SystemTime) -> Self {
        Self { kind, at }
    }
}

#[cfg(feature = "redis")]
impl NodeDetails {
    pub(crate) fn new(name: String, role: &'static str, latency: Option<Duration>) -> Self {
        Self {
            name,
            role,
            latency,
            breaker: "closed",
        }
    }
}

#[cfg(feature = "redis")]
impl Details {
    /// What is known of connections that were not probed yet.
    pub(crate) fn new(topology: &'static str, state: State) -> Self {
        Self {
            latency: None,
            node_count: 0,
            cluster_state: None,
            circuit_breaker_open: false,
            topology,
            state,
            master_run_id: None,
            epoch: None,
            lanes: 0,
            in_flight: 0,
            pool: PoolDetails::default(),
            last_error: None,
            reconnects: 0,
            nodes: None,
            probed_at: None,
            age: None,
            fallback: false,
        }
    }
}

pub(super) fn millis<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let micros = time.map(|time| time.as_micros() as f64);
    micros.map(|micros| micros / 1_000.0).serialize(serializer)
}

fn whole_millis<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_millis() as u64)
        .serialize(serializer)
}

fn time<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(rfc3339::text).serialize(serializer)
}
