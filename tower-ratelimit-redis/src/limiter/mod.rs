//! The handle.

mod admin;
mod settle;

use std::{sync::Arc, time::Duration};

use futures_util::stream::{self, StreamExt as _};
use redis_conn::{Backend, Error, Subject};
use tokio::time::Instant;

use crate::{
    Decision, LimiterBuilder, Policy, RateLimitError, Spending,
    counter::Charge,
    counters::Ask,
    metrics::Began,
    permit::{Acquired, Permit},
    shared::Shared,
    store::Asked,
    trace,
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
pub struct Limiter(pub(crate) Arc<Shared>);

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
            let charge = Charge::of(policy.admissible(cost)?);
            policy.needs_no_permit()?;
            self.decide(policy, &subject, Asked::new(Ask::All, charge))
                .await
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
            policy.needs_no_permit()?;
            let charge = Charge::of(u32::try_from(cost).unwrap_or(u32::MAX));
            self.decide(policy, &subject, Asked::new(Ask::AtMost, charge))
                .await
        }
    }

    /// Decides many calls at once, each by itself; the outcomes are in their order. What is for one server goes there in few script
    /// calls, all calls of one subject under one policy in one.
    ///
    /// # Errors
    ///
    /// Each call has its own, as [`check`](Self::check).
    ///
    /// # Cancel safety
    ///
    /// Each call of a dropped batch may have been charged.
    pub async fn check_all<'a>(
        &self,
        calls: impl IntoIterator<Item = (&'a Policy, Subject, u64)> + Send,
    ) -> Vec<Result<Decision, RateLimitError>> {
        /// So many are asked for at the same time: the time of a call begins when it is.
        const AT_ONCE: usize = 512;
        let check = |(policy, subject, cost)| self.check(policy, subject, cost);
        let checks = calls.into_iter().map(check);
        stream::iter(checks).buffered(AT_ONCE).collect().await
    }

    /// Decides by what is known here, by the store, or by the failure policy.
    pub(crate) async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
    ) -> Result<Decision, RateLimitError> {
        let began = Began::now();
        let inner = &*self.0;
        let decision = match inner.store.in_process() {
            // It is never away and knows all there is to know: there is nothing to wait for.
            Some(store) => store.decide_now(policy, subject, asked),
            // Boxed, since it is large, and takes far longer than an allocation.
            None => Box::pin(self.decide_elsewhere(policy, subject, asked)).await?,
        };
        inner.meters.decided(policy, &decision, began);
        if !decision.is_allowed() {
            trace::denied(policy, subject, &decision);
        }
        Ok(decision)
    }

    /// Where the store is not in this process.
    async fn decide_elsewhere(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
    ) -> Result<Decision, Error> {
        match self.decide_early(policy, subject, asked).await {
            Ok(decision) => Ok(decision),
            Err(error) => self.0.fallback.decide(policy, subject, asked, error),
        }
    }

    /// By what is known here, or by the store.
    async fn decide_early(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
    ) -> Result<Decision, Error> {
        let inner = &self.0;
        // Only a whole call is refused for a time, and nobody can tell when somebody releases a permit.
        let whole = asked.ask == Ask::All && !policy.has_leases();
        let Some(denied) = inner.denied.as_ref().filter(|_| whole) else {
            return self.spend_first(policy, subject, asked).await;
        };
        let (now, cost) = (denied.now(policy, subject), asked.charge.units);
        if let Some(refusal) = denied.find(policy, cost, now) {
            return Ok(refusal);
        }
        let decision = self.spend_first(policy, subject, asked).await?;
        denied.remember(policy, cost, now, &decision);
        Ok(decision)
    }

    /// Who counts first, decides.
    async fn spend_first(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
    ) -> Result<Decision, Error> {
        /// Who has a longer name is not remembered here: clients may choose theirs, and memory is bounded.
        const LONGEST: usize = 256;
        let inner = &self.0;
        let cost = asked.charge.units;
        match policy.spending() {
            _ if subject.as_bytes().len() > LONGEST => {
                inner.ask(policy, subject, asked, inner.until()).await
            }
            // A look is for the store: there is nothing that this process could know better.
            Spending::Lease(chunk) if cost > 0 && asked.ask == Ask::All => {
                let chunk = u32::try_from(chunk).unwrap_or(u32::MAX);
                let leases = &inner.leases;
                let decide = leases.decide(inner, policy, subject, cost, chunk);
                // Boxed like the whole, which most policies have no part of this in.
                Box::pin(decide).await
            }
            Spending::WriteBehind(interval) if cost > 0 => {
                let behind = &inner.behind;
                Box::pin(behind.decide(inner, policy, subject, asked, interval)).await
            }
            _ => inner.ask(policy, subject, asked, inner.until()).await,
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
            let inner = &*self.0;
            match inner.look(policy, &subject, 1).await {
                Ok(decision) => Ok(decision),
                Err(error) => Ok(inner.fallback.look(policy, &subject, 1, error)?),
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

    /// Holds `units` of a policy's concurrency limit, and charges them to its other limits, if all admit that.
    ///
    /// They are held until the [`Permit`] is dropped. This process renews it meanwhile.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check); [`Closed`](redis_conn::ErrorKind::Closed) also where there is no runtime to renew it on.
    ///
    /// # Cancel safety
    ///
    /// What a dropped call acquired is released, as if its permit had been dropped.
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
}
