//! The handle.

use std::{sync::Arc, time::Duration};

use redis_conn::{Audit, Backend, Error, ErrorKind, Part, Subject};

use crate::{
    Decision, OnFailure, Policy, RateLimitError,
    fallback::Fallback,
    store::{AnyStore, MemoryStore, Store, digest},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);
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
    #[must_use]
    pub fn new(backend: &Backend) -> Self {
        match Self::builder(backend).build() {
            Ok(limiter) => limiter,
            Err(error) => unreachable!("the defaults are valid: {error}"),
        }
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
    /// The fallback of other processes keeps its own counts; they expire.
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
            fallback.reset(policy, &subject);
            let outcome = store.reset(policy, &subject, *timeout).await;
            let object = format_args!("{} {}", policy.name(), digest(&subject));
            audit.record("rate limit reset", object, &outcome);
            Ok(outcome?)
        }
    }
}

impl LimiterBuilder {
    /// How long the store may take for a decision before the failure policy decides; 100 ms if not set.
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
    /// [`Config`](ErrorKind::Config) if the timeout or the capacity is zero, or the share is not above 0 and at most 1.
    pub fn build(self) -> Result<Limiter, Error> {
        self.on_failure.validate()?;
        if self.timeout.is_zero() || self.capacity == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "a timeout or a local capacity of 0: expected more",
            ));
        }
        let store = self.store()?;
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
        Ok(Limiter(Arc::new(Inner {
            store,
            fallback,
            timeout: self.timeout,
        })))
    }

    fn store(&self) -> Result<AnyStore, Error> {
        Ok(match self.backend.engine() {
            #[cfg(feature = "redis")]
            redis_conn::raw::Engine::Redis(redis) => {
                AnyStore::Redis(crate::store::redis::RedisStore::new(&self.backend, redis))
            }
            #[cfg(feature = "sqlite")]
            redis_conn::raw::Engine::Sqlite(sqlite) => AnyStore::Sqlite(
                crate::store::sqlite::SqliteStore::new(&self.backend, sqlite),
            ),
            _ => AnyStore::Memory(self.shared_memory()?),
        })
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
