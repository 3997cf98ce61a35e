//! What becomes of a charge when its true cost is known.

use redis_conn::Subject;

use super::Limiter;
use crate::{
    Decision, Policy, RateLimitError, Source, counter::Charge, counters::Ask, store::Asked,
};

impl Limiter {
    /// Gives back `units` of what `decision` was charged, as far as they still count: not more than there are in the part of the window
    /// that they were charged to, so a refund that comes late makes no room for others. (A GCRA does not know when units were charged: there it
    /// fills the bucket, up to full.)
    ///
    /// # Errors
    ///
    /// [`RateLimitError::Store`] if the store did not answer, whatever the failure policy. It may have taken effect: do not repeat it.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have taken effect.
    pub fn refund(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        decision: &Decision,
        units: u64,
    ) -> impl Future<Output = Result<(), RateLimitError>> + Send {
        let subject = subject.into();
        let (granted, charged, source) =
            (decision.granted(), decision.charged(), decision.source());
        async move {
            let units = u32::try_from(units.min(granted)).unwrap_or(u32::MAX);
            let Some(charged) = charged.filter(|_| units > 0) else {
                return Ok(());
            };
            let inner = &*self.0;
            match source {
                // Nobody but this process knows of it.
                Source::Local => inner.fallback.refund(policy, &subject, units),
                Source::Behind => inner.behind.refund(inner, policy, &subject, units).await?,
                _ => inner.give_back(policy, &subject, units, charged).await?,
            }
            inner.forget_refusal(policy, &subject);
            Ok(())
        }
    }

    /// Makes the cost of an admitted call `actual`, which is known only now: the rest is [refunded](Self::refund), or more is charged,
    /// whatever the limits, since it has been used.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let limiter = Limiter::new(&Backend::memory());
    /// let policy = Policy::new("tokens").limit(10_000, Duration::from_secs(60)).build()?;
    /// let decision = limiter.check(&policy, "user:42", 500).await?;
    /// // ... the answer took 180 tokens ...
    /// limiter.settle(&policy, "user:42", &decision, 180).await?;
    /// assert_eq!(limiter.peek(&policy, "user:42").await?.limits()[0].remaining, 9_820);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`refund`](Self::refund).
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have taken effect.
    pub fn settle(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        decision: &Decision,
        actual: u64,
    ) -> impl Future<Output = Result<(), RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            let granted = decision.granted();
            if actual <= granted {
                return self
                    .refund(policy, subject, decision, granted - actual)
                    .await;
            }
            let more = u32::try_from(actual - granted).unwrap_or(u32::MAX);
            let asked = Asked::new(Ask::Anyway, Charge::of(more));
            let inner = &*self.0;
            match decision.source() {
                Source::Local => inner.fallback.charge(policy, &subject, asked.charge),
                Source::Open | Source::Cached => {}
                _ => drop(inner.ask(policy, &subject, asked, inner.until()).await?),
            }
            Ok(())
        }
    }
}
