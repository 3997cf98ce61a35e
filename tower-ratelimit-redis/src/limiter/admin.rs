//! What people do to a subject, against the policy.

use std::time::Duration;

use redis_conn::{Audit, Subject};

use super::Limiter;
use crate::{Policy, RateLimitError, store::digest};

/// Longer than any window.
const MAX_BLOCK: Duration = Duration::from_micros(crate::policy::MAX_SPAN);

impl Limiter {
    /// Refuses every call of `subject` under `policy` for `time`, whatever is left of its limits; no time lifts that. It overrules the
    /// policy, therefore it is audited.
    ///
    /// If the clock of the store goes back meanwhile, it ends no later than after that time again, or after the longest window of the
    /// policy where that is longer.
    ///
    /// # Errors
    ///
    /// [`RateLimitError::Store`] if the store did not answer, whatever the failure policy. Calling it again does no harm.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have taken effect, and is not audited.
    pub fn block(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        time: Duration,
        audit: &Audit,
    ) -> impl Future<Output = Result<(), RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            // Less than the smallest part of time that is counted is a block all the same.
            let least = Duration::from_micros(u64::from(!time.is_zero()));
            let time = time.clamp(least, MAX_BLOCK);
            let inner = &*self.0;
            let outcome = inner.block(policy, &subject, time).await;
            let object = format_args!("{} {}", policy.name(), digest(&subject));
            audit.record("rate limit block", object, &outcome);
            Ok(outcome?)
        }
    }

    /// Forgets all that `subject` was charged under `policy`. It overrules the policy, therefore it is audited.
    ///
    /// The fallback of this process forgets them too, once the store has; that of other processes keeps its own counts, which
    /// expire. Refusals that other processes remember are forgotten when they hear of it, at once.
    ///
    /// # Errors
    ///
    /// [`RateLimitError::Store`] if the store did not answer, whatever the failure policy. Calling it again does no harm.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have taken effect, and is not audited.
    pub fn reset(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        audit: &Audit,
    ) -> impl Future<Output = Result<(), RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            let inner = &*self.0;
            let outcome = inner.reset(policy, &subject).await;
            let object = format_args!("{} {}", policy.name(), digest(&subject));
            audit.record("rate limit reset", object, &outcome);
            Ok(outcome?)
        }
    }
}
