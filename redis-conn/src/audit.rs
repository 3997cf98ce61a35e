//! Who overrules somebody, and why.

use std::{fmt, sync::Arc};

use crate::Error;

/// Who carries out an administrative operation, and why: lifting a limit, ending somebody's sessions, breaking a lock.
///
/// Every such operation takes one and emits one event on the tracing target `audit` (feature `tracing`) when it has ended, also
/// when it failed. The event names the operation, the actor, the reason, the outcome, and what it was done to; users' keys are
/// hashed in it.
///
/// ```
/// let audit = redis_conn::Audit::new("ops:alice", "ticket 4711: the customer's import was ours to slow down");
/// assert_eq!(audit.actor(), "ops:alice");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    actor: Arc<str>,
    reason: Arc<str>,
}

impl Audit {
    /// An actor, such as a user of the admin tool or the name of a job, and the reason in words.
    pub fn new(actor: impl Into<Arc<str>>, reason: impl Into<Arc<str>>) -> Self {
        Self {
            actor: actor.into(),
            reason: reason.into(),
        }
    }

    /// Who it is.
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// Why.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Emits the event. For the handles of the sibling crates; `object` holds nothing of a user that is not hashed.
    #[doc(hidden)]
    pub fn record<T>(
        &self,
        operation: &str,
        object: impl fmt::Display,
        outcome: &Result<T, Error>,
    ) {
        let Self { actor, reason } = self;
        let outcome = match outcome {
            Ok(_) => "done".to_owned(),
            Err(error) => error.to_string(),
        };
        #[cfg(feature = "tracing")]
        tracing::info!(target: "audit", operation, %object, %actor, %reason, outcome);
        #[cfg(not(feature = "tracing"))]
        let _ = (operation, object, actor, reason, outcome);
    }
}
