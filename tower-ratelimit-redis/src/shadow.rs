//! What would have happened.

use crate::{Decision, Reason};

/// What a layer in [shadow mode](crate::RateLimitLayer::shadow) has decided, and not enforced.
///
/// It is in the extensions of each request that passes such a layer, and of its response; where several are nested, that of the
/// innermost one.
#[derive(Clone, Debug)]
pub struct Shadow(Result<Option<Decision>, Reason>);

impl Shadow {
    pub(crate) fn new(outcome: Result<Option<Decision>, Reason>) -> Self {
        Self(outcome)
    }

    /// Why the request would have been refused, if so.
    #[must_use]
    pub fn refused(&self) -> Option<&Reason> {
        self.0.as_ref().err()
    }

    /// The decision, if one was made.
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        match &self.0 {
            Ok(decision) => decision.as_ref(),
            Err(reason) => reason.decision(),
        }
    }
}
