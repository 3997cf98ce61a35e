//! The handle.

use std::{sync::Arc, time::Duration};

use redis_conn::{Audit, Backend, Error, ErrorKind, Part, Subject};

use crate::{
    Decision, OnFailure, Policy, RateLimitError,
    fallback::Fallback,
    store::{AnyStore, MemoryStore, Store, digest},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);
/// Whoever waits longer has no use for a decision; and a point in time so far away can always be told.
const MAX_TIMEOUT: Duration = Duration::from_secs(3_600);
const DEFAULT_CAPACITY: usize = 1_000_000;

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
pub struct Limiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: AnyStore,
    /// Behind an `Arc` of its own: the backend asks it for its health.
    fallback: Arc<Fallback>,
    timeout: Duration,
}

/// Options of a [`Limiter`]. Made by [`Limiter::builder`].
#[derive(Clone, Debug)]
#[must_use = "a limiter begins to exist with `build`"]
pub struct LimiterBuilder {
    backend: Backend,
    timeout: Duration,
    on_failure: OnFailure,
    capacity: usize,
}

impl Limiter {
    /// A limiter with the defaults of [`builder`](Self::builder).
    ///
    /// If this crate's feature for the kind of backend is off, every decision is the [`Config`](ErrorKind::Config) error that
    /// [`build`](LimiterBuilder::build) would return at once; no failure policy hides it.
    #[must_use]
    pub fn new(backend: &Backend) -> Self {
        let builder = Self::builder(backend);
        let store = builder.store().unwrap_or_else(AnyStore::None);
        builder.assemble(store)
    }

    /// Begins a limiter on this backend.
    pub fn builder(backend: &Backend) -> LimiterBuilder {
        LimiterBuilder {
            backend: backend.clone(),
            timeout: DEFAULT_TIMEOUT,
            on_failure: OnFailure::default(),
            capacity: DEFAULT_CAPACITY,
        }
    }

    /// Decides about a call of `subject`, and charges `cost` to all limits of `policy` if it is admitted.
    ///
    /// A refusal charges nothing, and neither does a cost of 0, which asks whether more than the limit is in use already (it can
    /// be after the limit was lowered).
    ///
    /// # Errors
    ///
    /// [`RateLimitError::CostExceedsLimit`] if the cost could never be admitted; [`RateLimitError::Store`] if the store did not
    /// decide within the timeout and the failure policy is [`OnFailure::Closed`].
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
            let Inner {
                store,
                fallback,
                timeout,
            } = &*self.0;
            match store.decide(policy, &subject, cost, *timeout).await {
                Ok(decision) => {
                    fallback.store_decided(policy, &subject, cost, &decision);
                    Ok(decision)
                }
                Err(error) => Ok(fallback.decide(policy, &subject, cost, error)?),
            }
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
            } = &*self.0;
            match store.peek(policy, &subject, *timeout).await {
                Ok(decision) => {
                    fallback.store_answered();
                    Ok(decision)
                }
                Err(error) => Ok(fallback.peek(policy, &subject, error)?),
            }
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

impl LimiterBuilder {
    /// How long the store may take for a decision before the failure policy decides, up to an hour; 100 ms if not set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What happens while the store does not decide; `Local { share: 0.5 }` if not set.
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// How many subjects the in-process store holds, be it the fallback's or that of the memory backend, which belongs to the
    /// first limiter of a namespace; 1,000,000 if not set. Beyond it newcomers share their counts.
    pub fn local_capacity(mut self, subjects: usize) -> Self {
        self.capacity = subjects;
        self
    }

    /// Makes the limiter. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the timeout is zero or above an hour, the capacity is zero, the share is not above 0 and at
    /// most 1, or this crate's feature for the kind of backend is off.
    pub fn build(self) -> Result<Limiter, Error> {
        self.on_failure.validate()?;
        let wrong = |text| Err(Error::new(ErrorKind::Config, text));
        if self.timeout.is_zero() || self.timeout > MAX_TIMEOUT {
            let found = self.timeout;
            return wrong(format!(
                "timeout {found:?}: expected more than 0 and at most 1 h"
            ));
        }
        if self.capacity == 0 {
            return wrong("local capacity 0: expected at least 1".to_owned());
        }
        let store = self.store()?;
        Ok(self.assemble(store))
    }

    fn assemble(self, store: AnyStore) -> Limiter {
        let on_failure = if matches!(store, AnyStore::Memory(_)) {
            // It never fails, so nothing need be counted twice for it.
            OnFailure::Closed
        } else {
            self.on_failure
        };
        let fallback = Fallback::new(on_failure, self.backend.clock(), self.capacity);
        let fallback = Arc::new(fallback);
        let part: Arc<dyn Part> = Arc::clone(&fallback) as _;
        self.backend.register(&part);
        Limiter(Arc::new(Inner {
            store,
            fallback,
            timeout: self.timeout,
        }))
    }

    fn store(&self) -> Result<AnyStore, Error> {
        AnyStore::of(&self.backend, || self.shared_memory())
    }

    /// The counts of the memory backend are one for all limiters of a namespace (and of one version of this crate: a program may
    /// contain two, whose stores are different types).
    fn shared_memory(&self) -> Result<Arc<MemoryStore>, Error> {
        const PLACE: &str = concat!("limits ", env!("CARGO_PKG_VERSION"));
        self.backend.shared('r', PLACE, || {
            MemoryStore::new(Arc::clone(self.backend.clock()), self.capacity)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_that_is_none_is_refused() {
        let with = |timeout| {
            Limiter::builder(&Backend::memory())
                .timeout(timeout)
                .build()
        };
        for timeout in [
            Duration::ZERO,
            MAX_TIMEOUT + Duration::from_nanos(1),
            Duration::MAX,
        ] {
            let error = with(timeout).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config, "{timeout:?}");
        }
        assert!(with(MAX_TIMEOUT).is_ok());
    }
}
