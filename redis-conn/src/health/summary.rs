//! The short form.

use std::time::Duration;

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

use super::{Health, Status, details::millis};
use crate::State;

/// The short form of [`Health`], by what it is about.
///
/// As JSON it is `{"redis": {"connected", "latency"}, "cache", "sessions", "overall"}`; what there is not is `null`, as the cache and
/// the sessions are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The connections to Redis, if that is the backend.
    pub redis: Option<Connection>,
    /// The worst of all checks.
    pub overall: Status,
}

impl Serialize for Summary {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Summary", 4)?;
        fields.serialize_field("redis", &self.redis)?;
        // Whoever reads this form looks for them; no handle tells of them yet.
        fields.serialize_field("cache", &None::<()>)?;
        fields.serialize_field("sessions", &None::<()>)?;
        fields.serialize_field("overall", &self.overall)?;
        fields.end()
    }
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
