//! What a health endpoint shows.

mod details;
mod rfc3339;
mod summary;
mod watch;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

pub use self::{
    details::{Details, LastError, NodeDetails, PoolDetails},
    summary::{Connection, Summary},
    watch::HealthWatch,
};
use crate::{Backend, engine::Core};

/// How well something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// It works.
    Healthy,
    /// It works with a loss, such as a limiter that counts in process while Redis is away.
    Degraded,
    /// It does not work.
    Unhealthy,
}

/// One part of [`Health`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// What was looked at: the backend (`memory`, `sqlite`, `redis`) or a handle.
    pub name: Cow<'static, str>,
    /// How it is.
    pub status: Status,
    /// The same in words. It names no address and no secret.
    pub message: String,
    /// What is known of the connections; only of `redis`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
}

impl Check {
    /// A check with this outcome.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        status: Status,
        message: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            status,
            message: message.into(),
            details: None,
        }
    }

    /// Adds what is known of the connections.
    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }
}

/// A snapshot of the backend and all handles on it. Taking it sends no command.
///
/// As JSON it is `{"status", "timestamp", "uptime", "checks": [..], "overall"}`: `status` is `error` if `overall` is
/// `unhealthy` and `ok` otherwise, `timestamp` is RFC 3339, `uptime` counts seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The worst of all checks.
    pub overall: Status,
    /// The backend first, then the handles.
    pub checks: Vec<Check>,
    /// When this was put together.
    pub timestamp: SystemTime,
    /// How long ago the backend was built.
    pub uptime: Duration,
}

impl Health {
    fn of(checks: Vec<Check>, uptime: Duration) -> Self {
        let statuses = checks.iter().map(|check| check.status);
        Self {
            overall: statuses.max().unwrap_or(Status::Healthy),
            checks,
            timestamp: SystemTime::now(),
            uptime,
        }
    }

    /// The status of an answer that carries this: 503 if something that the process cannot do without does not work, else 200.
    ///
    /// A Redis that is away makes this 503 only if it is [required](crate::Config::is_required): otherwise the handles go on
    /// without it as they are told to, which is `degraded`.
    pub fn http_status(&self) -> u16 {
        match self.overall {
            Status::Healthy | Status::Degraded => 200,
            Status::Unhealthy => 503,
        }
    }
}

impl Serialize for Health {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let status = match self.overall {
            Status::Healthy | Status::Degraded => "ok",
            Status::Unhealthy => "error",
        };
        let mut fields = serializer.serialize_struct("Health", 5)?;
        fields.serialize_field("status", status)?;
        fields.serialize_field("timestamp", &rfc3339::text(self.timestamp))?;
        fields.serialize_field("uptime", &self.uptime.as_secs())?;
        fields.serialize_field("checks", &self.checks)?;
        fields.serialize_field("overall", &self.overall)?;
        fields.end()
    }
}

/// Health.
impl Backend {
    /// How the backend and all handles are. It reads what is known and sends no command: the servers are asked in the background,
    /// every five seconds, and every second while something is wrong. It names no address.
    pub fn health(&self) -> Health {
        self.core.health(false)
    }

    /// [`health`](Self::health) with the nodes, addresses included: for operators, not for everybody.
    pub fn health_detailed(&self) -> Health {
        self.core.health(true)
    }

    /// Follows the overall health.
    pub fn watch_health(&self) -> HealthWatch {
        HealthWatch::new(&self.core)
    }
}

impl Core {
    fn health(self: &Arc<Self>, detailed: bool) -> Health {
        let parts = self.parts.checks();
        let mut backend = self.check(detailed);
        if let Some(details) = &mut backend.details {
            details.fallback = parts.iter().any(|part| part.status == Status::Degraded);
        }
        let mut checks = vec![backend];
        checks.extend(parts);
        Health::of(checks, self.born.elapsed())
    }
}
