//! The short form.

use std::time::Duration;

use serde::Serialize;

use super::{Health, Status, details::millis};
use crate::State;

/// The short form of [`Health`], by what it is about: `{"redis": {"connected", "latency"}, "overall"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The connections to Redis, if that is the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Connection>,
    /// The worst of all checks.
    pub overall: Status,
}

/// The connections to Redis in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Connection {
    /// Whether all are connected.
    pub connected: bool,
    /// How long the slowest node took to answer the last probe, in milliseconds.
    #[serde(serialize_with = "millis")]
    pub latency: Option<Duration>,
}

impl Health {
    /// The short form.
    pub fn summary(&self) -> Summary {
        let details = self
            .checks
            .iter()
            .find_map(|check| check.details.as_deref());
        Summary {
            redis: details.map(|details| Connection {
                connected: details.state == State::Connected,
                latency: details.latency,
            }),
            overall: self.overall,
        }
    }
}
