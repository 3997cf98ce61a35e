//! The handle.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis_conn::{Audit, Backend, Subject};
use tokio::time::Instant;

use crate::{
    Decision, LimiterBuilder, Policy, RateLimitError,
    counter::Charge,
    counters::Ask,
    fallback::Fallback,
    permit::{Acquired, Keeper, Permit},
    store::{AnyStore, Asked, Store, digest},
};

/// Decides about calls, for all processes that share a [`Backend`]. Cheap to clone; clones share everything.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use redis_conn::Backend;
/// use tower_ratelimit_redis::{Limiter, Policy};
///
/// let limiter = Limiter::new(&Backend::memory());
/// let policy = Policy::new("mails").limit(2, Duration::from_secs(3600)).build()?;
///
/// assert!(limiter.check(&policy, "user:42", 2).await?.is_allowed());
/// let refused = limiter.check(&policy, "user:42", 1).await?;
/// assert!(refused.retry_after() > Some(Duration::from_secs(3600)));
/// assert!(limiter.check(&policy, "user:43", 1).await?.is_allowed());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) store: AnyStore,
    /// Behind an `Arc` of its own: the backend asks it for its health.
    pub(crate) fallback: Arc<Fallback>,
    pub(crate) timeout: Duration,
    /// From the first permit on.
    pub(crate) keeper: OnceLock<Arc<Keeper>>,
}

impl Limiter {
    /// A limiter with the defaults of [`builder`](Self::builder).
    ///
    /// If this crate's feature for the kind of backend is off, every decision is the [`Config`](redis_conn::ErrorKind::Config) error that
    /// [`build`](LimiterBuilder::build) would return at once; no failure policy hides it.
    #[must_use]
    pub fn new(backend: &Backend) -> Self {
        Self::builder(backend).with_defaults()
    }

    /// Begins a limiter on this backend.
    pub fn builder(backend: &Backend) -> LimiterBuilder {
        LimiterBuilder::new(backend)
    }

    /// Decides about a call of `subject`, and charges `cost` to all limits of `policy` if it is admitted.
    ///
    /// A refusal charges nothing, and neither does a cost of 0, which asks whether more than the limit is in use already (it can
    /// be after the limit was lowered).
    ///
    /// # Errors
    ///
    /// [`RateLimitError::CostExceedsLimit`] if the cost could never be admitted; [`RateLimitError::NeedsPermit`] if the policy has a
    /// concurrency limit; [`RateLimitError::Store`] if the store did not decide within the timeout and the failure policy is
    /// [`OnFailure::Closed`](crate::OnFailure::Closed).
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been charged.
    pub fn check(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        cost: u64,
    ) -> impl Future<Output = Result<Decision, RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            let cost = policy.admissible(cost)?;
            self.spend(policy, &subject, Ask::All, cost).await
        }
    }

    /// Admits as many units as there is room for, up to `cost`: [`Decision::granted`] tells how many. It is refused if that is none.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), but no cost is too great.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been charged.
    pub fn check_at_most(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        cost: u64,
    ) -> impl Future<Output = Result<Decision, RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            let cost = u32::try_from(cost).unwrap_or(u32::MAX);
            self.spend(policy, &subject, Ask::AtMost, cost).await
        }
    }

    async fn spend(
        &self,
        policy: &Policy,
        subject: &Subject,
        ask: Ask,
        cost: u32,
    ) -> Result<Decision, RateLimitError> {
        if policy.has_leases() {
            return Err(RateLimitError::NeedsPermit);
        }
        let asked = Asked::new(ask, Charge::of(cost));
        self.decide(policy, subject, asked).await
    }

    pub(crate) fn keeper(&self) -> Arc<Keeper> {
        let start = || Keeper::start(&self.0);
        Arc::clone(self.0.keeper.get_or_init(start))
    }

    pub(crate) async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
    ) -> Result<Decision, RateLimitError> {
        let Inner {
            store,
            fallback,
            timeout,
            ..
        } = &*self.0;
        match store.decide(policy, subject, asked, *timeout).await {
            Ok(decision) => {
                let units = decision.charged();
                let charge = Charge {
                    units,
                    ..asked.charge
                };
                fallback.store_charged(policy, subject, charge);
                Ok(decision)
            }
            Err(error) => Ok(fallback.decide(policy, subject, asked, error)?),
        }
    }

    /// Tells whether a call of cost 1 would be admitted now, and how much is left. It charges nothing.
    ///
    /// # Errors
    ///
    /// [`RateLimitError::Store`], as [`check`](Self::check).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn peek(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
    ) -> impl Future<Output = Result<Decision, RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            let Inner {
                store,
                fallback,
                timeout,
                ..
            } = &*self.0;
            match store.look(policy, &subject, 1, *timeout).await {
                Ok(decision) => {
                    fallback.store_answered();
                    Ok(decision)
                }
                Err(error) => Ok(fallback.look(policy, &subject, 1, error)?),
            }
        }
    }

    /// Waits until a call is admitted, and charges it; or gives up with the refusal, at once where `deadline` ends before it could
    /// be. Those who wait for one subject have no order.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have been charged.
    pub fn until_ready(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        cost: u64,
        deadline: Duration,
    ) -> impl Future<Output = Result<Decision, RateLimitError>> + Send {
        /// Where nobody can tell when.
        const ASK_AGAIN: Duration = Duration::from_secs(1);
        let subject = subject.into();
        async move {
            let begun = Instant::now();
            loop {
                let decision = self.check(policy, subject.clone(), cost).await?;
                let wait = decision.retry_after().unwrap_or(ASK_AGAIN);
                // A store's time has no parts of a microsecond, so one more is not too early.
                let wait = wait + Duration::from_micros(1);
                let left = deadline.saturating_sub(begun.elapsed());
                if decision.is_allowed() || wait > left {
                    return Ok(decision);
                }
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Gives back `units` of what `decision` was charged, as far as they still count: not more than there are in the part of the window
    /// that they were charged to, so a refund that comes late makes no room for others.
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
        let (granted, at, source) = (decision.granted(), decision.at(), decision.source());
        async move {
            let units = u32::try_from(units.min(granted)).unwrap_or(u32::MAX);
            let Some(at) = at.filter(|_| units > 0) else {
                return Ok(());
            };
            let Inner {
                store,
                fallback,
                timeout,
                ..
            } = &*self.0;
            if source == crate::Source::Store {
                store.refund(policy, &subject, units, at, *timeout).await?;
            }
            fallback.refund(policy, &subject, units);
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
            let Inner {
                store,
                fallback,
                timeout,
                ..
            } = &*self.0;
            if decision.source() == crate::Source::Store {
                store.decide(policy, &subject, asked, *timeout).await?;
            }
            fallback.store_charged(policy, &subject, asked.charge);
            Ok(())
        }
    }

    /// Holds `units` of a policy's concurrency limit, and charges them to its other limits, if all admit that.
    ///
    /// They are held until the [`Permit`] is dropped. This process renews it meanwhile.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    ///
    /// # Cancel safety
    ///
    /// What a dropped call acquired is held until its lease ends.
    pub fn acquire(
        &self,
        policy: &Policy,
        subject: impl Into<Subject>,
        units: u64,
    ) -> impl Future<Output = Result<Acquired, RateLimitError>> + Send {
        let subject = subject.into();
        async move {
            let units = policy.admissible(units)?;
            Permit::acquire(self, policy, subject, units).await
        }
    }

    /// Refuses every call of `subject` under `policy` for `time`, whatever is left of its limits; no time lifts that. It overrules the
    /// policy, therefore it is audited.
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
            let time = time.min(MAX_BLOCK);
            let Inner {
                store,
                fallback,
                timeout,
                ..
            } = &*self.0;
            let outcome = store.block(policy, &subject, time, *timeout).await;
            if outcome.is_ok() {
                fallback.block(policy, &subject, time);
            }
            let object = format_args!("{} {}", policy.name(), digest(&subject));
            audit.record("rate limit block", object, &outcome);
            Ok(outcome?)
        }
    }

    /// Forgets all that `subject` was charged under `policy`. It overrules the policy, therefore it is audited.
    ///
    /// The fallback of this process forgets them too, once the store has; that of other processes keeps its own counts, which
    /// expire.
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
            let Inner {
                store,
                fallback,
                timeout,
                ..
            } = &*self.0;
            let outcome = store.reset(policy, &subject, *timeout).await;
            // After a failed reset the counts of the store are what they were, so those of the fallback are too.
            if outcome.is_ok() {
                fallback.reset(policy, &subject);
            }
            let object = format_args!("{} {}", policy.name(), digest(&subject));
            audit.record("rate limit reset", object, &outcome);
            Ok(outcome?)
        }
    }
}

/// Longer than any window.
const MAX_BLOCK: Duration = Duration::from_micros(crate::policy::MAX_SPAN);
