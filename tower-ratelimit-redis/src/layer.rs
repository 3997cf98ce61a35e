//! The layer.

use std::{
    any::type_name,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tower_layer::Layer;

use crate::{
    HeaderStyle, LegacyReset, Limiter, Policy, RateLimit, Reject,
    headers::Fields,
    key::{KeyExtractor, PeerIp},
    reject::Refuse,
    trace::event,
};

/// Limits the requests to a service, each by the limits of its key.
///
/// A refused request is answered with 429 and never reaches the service behind. Two services made of one layer, or of clones
/// of it, share their limits, and so do all processes on the same backend.
///
/// Layers with different policies may be nested. Mount it outside of whatever takes a permit (a concurrency limit, a load shed):
/// a request holds it while the store is asked.
///
/// ```
/// use std::time::Duration;
/// use redis_conn::Backend;
/// use tower_ratelimit_redis::{HeaderStyle, Limiter, MissingKey, Policy, RateLimitLayer, key};
///
/// let limiter = Limiter::new(&Backend::memory());
/// let policy = Policy::new("api").limit(20, Duration::from_secs(1)).build()?;
/// let layer = RateLimitLayer::new(limiter, policy)
///     .key(key::Header::new("x-api-key"))
///     .missing_key(MissingKey::Reject)
///     .headers(HeaderStyle::Both);
/// # let _ = layer;
/// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
/// ```
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RateLimitLayer<K = PeerIp> {
    rules: Rules,
    key: Arc<K>,
}

/// What all services of one layer go by.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) limiter: Limiter,
    pub(crate) policy: Policy,
    pub(crate) missing_key: MissingKey,
    pub(crate) headers: Fields,
    pub(crate) refuse: Refuse,
    /// Whether the wrong configuration that each request would meet has been logged.
    reported: Arc<AtomicBool>,
}

impl Rules {
    /// Says once that another layer of the stack has a policy of this name.
    pub(crate) fn report_twice(&self) {
        if !self.reported.swap(true, Ordering::Relaxed) {
            event!(
                error,
                "two rate limit layers of one stack have a policy named {:?}: every request is answered with 500",
                self.policy.name()
            );
        }
    }
}

/// What happens to a request that has no key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissingKey {
    /// All of them share the limits of one key, which no request with a key has.
    #[default]
    Shared,
    /// It passes, uncounted.
    Skip,
    /// It is answered with 400.
    Reject,
}

impl RateLimitLayer {
    /// A layer that limits by the address of the peer.
    pub fn new(limiter: Limiter, policy: Policy) -> Self {
        let rules = Rules {
            limiter,
            policy,
            missing_key: MissingKey::default(),
            headers: Fields::default(),
            refuse: Refuse::default(),
            reported: Arc::default(),
        };
        Self {
            rules,
            key: Arc::default(),
        }
    }
}

impl<K> RateLimitLayer<K> {
    /// Finds the key by `extractor`, a [`KeyExtractor`].
    pub fn key<K2: KeyExtractor>(self, extractor: K2) -> RateLimitLayer<K2> {
        RateLimitLayer {
            rules: self.rules,
            key: Arc::new(extractor),
        }
    }

    /// What happens to a request without a key; [`MissingKey::Shared`] if not set.
    pub fn missing_key(mut self, missing_key: MissingKey) -> Self {
        self.rules.missing_key = missing_key;
        self
    }

    /// Which quota fields a response has; [`HeaderStyle::Draft11`] if not set.
    pub fn headers(mut self, style: HeaderStyle) -> Self {
        self.rules.headers.style = style;
        self
    }

    /// What `X-RateLimit-Reset` tells, in the styles that have it; [`LegacyReset::DeltaSeconds`] if not set.
    pub fn legacy_reset(mut self, reset: LegacyReset) -> Self {
        self.rules.headers.reset = reset;
        self
    }

    /// Makes the response of a refused request; [`DefaultReject`](crate::DefaultReject) if not set.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer};
    /// use http::Response;
    /// use tower_ratelimit_redis::Refusal;
    ///
    /// # let limiter = Limiter::new(&Backend::memory());
    /// # let policy = Policy::new("api").limit(20, Duration::from_secs(1)).build()?;
    /// let layer = RateLimitLayer::new(limiter, policy).reject(|refusal: &Refusal<'_>| {
    ///     let mut response = Response::new("slow down");
    ///     *response.status_mut() = refusal.status();
    ///     response
    /// });
    /// # let _ = layer;
    /// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
    /// ```
    pub fn reject<R: Reject>(mut self, reject: R) -> Self {
        self.rules.refuse.by(reject);
        self
    }

    /// Adds up to so much, at random, to the time after which a refused client is asked to come back; zero if not set.
    ///
    /// It keeps apart those who were refused at the same time, and would otherwise all come back at the same time.
    pub fn retry_jitter(mut self, jitter: Duration) -> Self {
        self.rules.refuse.jitter = jitter;
        self
    }
}

impl<S, K> Layer<S> for RateLimitLayer<K> {
    type Service = RateLimit<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.rules.clone(), Arc::clone(&self.key))
    }
}

impl<K> Clone for RateLimitLayer<K> {
    fn clone(&self) -> Self {
        Self {
            rules: self.rules.clone(),
            key: Arc::clone(&self.key),
        }
    }
}

impl<K> fmt::Debug for RateLimitLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("rules", &self.rules)
            .field("key", &format_args!("{}", type_name::<K>()))
            .finish()
    }
}
