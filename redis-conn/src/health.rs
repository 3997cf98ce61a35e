//! What a health endpoint shows.

use std::borrow::Cow;

use serde::Serialize;

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
        }
    }
}

/// A snapshot of the backend and all handles on it. Taking it sends no command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The worst of all checks.
    pub overall: Status,
    /// The backend first, then the handles.
    pub checks: Vec<Check>,
}

impl Health {
    pub(crate) fn of(checks: Vec<Check>) -> Self {
        let overall = checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(Status::Healthy);
        Self { overall, checks }
    }
}
