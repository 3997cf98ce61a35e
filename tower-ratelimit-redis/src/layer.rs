//! The layer.

use std::{any::type_name, fmt, num::NonZeroU64, sync::Arc, time::Duration};

use http::{request::Parts, response};
use redis_conn::Backend;
use tower_layer::Layer;

use crate::{
    Callers, HeaderStyle, LegacyReset, Limiter, MissingKey, Policy, PolicyResolver, RateLimit,
    Reject,
    key::{KeyExtractor, PeerIp},
    metrics,
    resolver::Policies,
    rules::{Cost, Route, Rules},
};

/// Limits the requests to a service, each by the limits of its key.
///
/// A refused request is answered with 429 and never reaches the service behind. Two services made of one layer, or of clones
/// of it, share their limits, and so do all processes on the same backend.
///
/// Layers with different policies may be nested. Mount it outside of whatever takes a permit (a concurrency limit, a load shed):
/// a request holds it while the store is asked.
///
/// Under a policy with a [concurrency limit](crate::PolicyBuilder::concurrency) a request holds its units until its response body
/// has ended or is dropped, or there is no response any more. A connection that is upgraded has no body: its handler finds
/// the [`Permit`](crate::Permit) as an `Arc` in the request extensions, that of the innermost such layer, and holds the units for as
/// long as it keeps that.
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

impl RateLimitLayer {
    /// A layer that limits by the address of the peer.
    pub fn new(limiter: Limiter, policy: Policy) -> Self {
        metrics::known(&policy);
        Self::with(limiter, Policies::One(policy))
    }

    /// A layer that limits each request by the policy that `resolver`, a [`PolicyResolver`], finds for it, and by the address of the
    /// peer. Requests without a policy pass uncounted.
    ///
    /// The resolver is asked before the key is extracted. Policies of different names count apart; two of one name are two
    /// versions of one policy, and count together.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use http::{Method, request::Parts};
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer};
    ///
    /// # let limiter = Limiter::new(&Backend::memory());
    /// let reads = Policy::new("reads").limit(100, Duration::from_secs(1)).build()?;
    /// let writes = Policy::new("writes").limit(10, Duration::from_secs(1)).build()?;
    /// let layer = RateLimitLayer::policy_by(limiter, move |parts: &mut Parts| {
    ///     match parts.method {
    ///         Method::OPTIONS => None,
    ///         Method::GET | Method::HEAD => Some(reads.clone()),
    ///         _ => Some(writes.clone()),
    ///     }
    /// });
    /// # let _ = layer;
    /// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
    /// ```
    pub fn policy_by(limiter: Limiter, resolver: impl PolicyResolver) -> Self {
        Self::with(limiter, Policies::by(resolver))
    }

    /// A layer for a beginning: so many requests in any second for each address, counted in this process.
    ///
    /// # Panics
    ///
    /// If `max` is 0.
    pub fn per_second(max: u32) -> Self {
        Self::per("per-second", max, Duration::from_secs(1))
    }

    /// A layer for a beginning: so many requests in any minute for each address, counted in this process. With another
    /// [limiter](Self::limiter) all processes count together.
    ///
    /// ```
    /// use tower_ratelimit_redis::RateLimitLayer;
    ///
    /// let layer = RateLimitLayer::per_minute(60);
    /// # let _ = layer;
    /// ```
    ///
    /// # Panics
    ///
    /// If `max` is 0.
    pub fn per_minute(max: u32) -> Self {
        Self::per("per-minute", max, Duration::from_secs(60))
    }

    /// A layer for a beginning: so many requests in any hour for each address, counted in this process.
    ///
    /// # Panics
    ///
    /// If `max` is 0.
    pub fn per_hour(max: u32) -> Self {
        Self::per("per-hour", max, Duration::from_secs(3_600))
    }

    fn per(name: &str, max: u32, window: Duration) -> Self {
        let policy = Policy::new(name).limit(max.into(), window).build();
        let policy = policy.unwrap_or_else(|error| panic!("{error}"));
        Self::new(Limiter::new(&Backend::memory()), policy)
    }

    fn with(limiter: Limiter, policies: Policies) -> Self {
        Self {
            rules: Rules::new(limiter, policies),
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

    /// Counts by another limiter, so where its backend is.
    pub fn limiter(mut self, limiter: Limiter) -> Self {
        self.rules.limiter = limiter;
        self
    }

    /// What happens to a request without a key; [`MissingKey::Shared`] if not set.
    ///
    /// # Panics
    ///
    /// If the challenge of [`MissingKey::Unauthorized`] is no value of a header field.
    pub fn missing_key(mut self, missing_key: MissingKey) -> Self {
        if let MissingKey::Unauthorized { challenge } = missing_key {
            // As strict as `HeaderValue::from_static`, which makes the field.
            let valid = challenge.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            assert!(
                valid,
                "the challenge {challenge:?}, expected printable ASCII"
            );
        }
        self.rules.missing_key = missing_key;
        self
    }

    /// Admits these callers always, and counts nothing of them.
    pub fn allow(mut self, callers: Callers) -> Self {
        self.rules.allow = callers;
        self
    }

    /// Refuses these callers always, also those that [`allow`](Self::allow) names, with 403 (`PERMISSION_DENIED` in gRPC): it is not a
    /// matter of time, so 429 would be wrong. Requests for which a resolver has no policy are refused too.
    pub fn deny(mut self, callers: Callers) -> Self {
        self.rules.deny = callers;
        self
    }

    /// What a request costs; 1 if not set.
    ///
    /// One that costs 0 is admitted if one of cost 1 would be, and is charged nothing. One that costs more than a limit is
    /// refused; waiting does not help it, so its answer has no `Retry-After`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use http::{Method, request::Parts};
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer};
    ///
    /// # let limiter = Limiter::new(&Backend::memory());
    /// # let policy = Policy::new("api").limit(20, Duration::from_secs(1)).build()?;
    /// let layer = RateLimitLayer::new(limiter, policy)
    ///     .cost(|request: &Parts| if request.method == Method::GET { 1 } else { 5 });
    /// # let _ = layer;
    /// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
    /// ```
    pub fn cost<F>(mut self, cost: F) -> Self
    where
        F: Fn(&Parts) -> u64 + Send + Sync + 'static,
    {
        self.rules.cost = Cost::by(cost);
        self
    }

    /// What a request has cost, by the head of its response; `None` leaves it to
    /// [`settle_by_body`](Self::settle_by_body) or, without that, as it was charged.
    ///
    /// What was too much is given back, and what is missing is charged whatever the limits, since it has been used. The response
    /// does not wait for that: it happens in a task, of which a layer has up to 4,096 at a time. Beyond that, where the store does not
    /// answer, and where no response comes, a request stays charged as it was. What it holds of a concurrency limit stays
    /// what it is. The quota fields tell how it was before.
    ///
    /// Only failed logins count:
    ///
    /// ```
    /// # use std::time::Duration;
    /// use http::{StatusCode, response};
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer};
    ///
    /// # let limiter = Limiter::new(&Backend::memory());
    /// let policy = Policy::new("logins").limit(5, Duration::from_secs(900)).build()?;
    /// let layer = RateLimitLayer::new(limiter, policy).settle(|response: &response::Parts| {
    ///     (response.status != StatusCode::UNAUTHORIZED).then_some(0)
    /// });
    /// # let _ = layer;
    /// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
    /// ```
    ///
    /// The model behind tells how many tokens it took, and until then a guess counts:
    ///
    /// ```
    /// # use std::time::Duration;
    /// use http::response;
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer};
    ///
    /// # let limiter = Limiter::new(&Backend::memory());
    /// let policy = Policy::new("tokens").limit(100_000, Duration::from_secs(60)).build()?;
    /// let layer = RateLimitLayer::new(limiter, policy)
    ///     .cost(|_| 1_000)
    ///     .settle(|response: &response::Parts| {
    ///         let tokens = response.headers.get("x-tokens")?;
    ///         tokens.to_str().ok()?.parse().ok()
    ///     });
    /// # let _ = layer;
    /// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
    /// ```
    pub fn settle<F>(mut self, settle: F) -> Self
    where
        F: Fn(&response::Parts) -> Option<u64> + Send + Sync + 'static,
    {
        self.rules.settle.by_head = Some(Arc::new(settle));
        self
    }

    /// Makes the cost of a request the size of its response body, in units of so many bytes, of which the last may be in part.
    /// It is [settled](Self::settle) when the body has ended or is dropped, by what was taken of it until then.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use redis_conn::Backend;
    /// # use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer};
    /// # let limiter = Limiter::new(&Backend::memory());
    /// // 100 MiB in any hour, counted in KiB.
    /// let policy = Policy::new("downloads").limit(100 * 1_024, Duration::from_secs(3_600)).build()?;
    /// let layer = RateLimitLayer::new(limiter, policy).settle_by_body(1_024);
    /// # let _ = layer;
    /// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If `bytes_per_unit` is 0.
    pub fn settle_by_body(mut self, bytes_per_unit: u64) -> Self {
        let bytes_per_unit = NonZeroU64::new(bytes_per_unit);
        assert!(
            bytes_per_unit.is_some(),
            "units of 0 bytes, expected at least 1"
        );
        self.rules.settle.bytes_per_unit = bytes_per_unit;
        self
    }

    /// Whether nobody is refused, to see what limits would do before they do it; not if not set.
    ///
    /// All is decided and charged as ever, permits are acquired, and metrics tell of it; but every request passes, and there are no
    /// quota fields. The extensions of requests and responses have a [`Shadow`](crate::Shadow), which tells of the refusals. A
    /// handler finds a [`Decision`](crate::Decision) too, which then may be a refusal.
    pub fn shadow(mut self, shadow: bool) -> Self {
        self.rules.shadow = shadow;
        self
    }

    /// Names the route of a request in the metrics; none is named if not set. Name its template, never its path: the first 64 names are
    /// labels, all others count as `other`.
    ///
    /// ```
    /// # use redis_conn::Backend;
    /// use http::request::Parts;
    /// # use tower_ratelimit_redis::RateLimitLayer;
    /// # #[derive(Clone)] struct MatchedPath; impl MatchedPath { fn as_str(&self) -> &str { "/" } }
    ///
    /// // With `axum::extract::MatchedPath`, which a layer on a router's routes finds.
    /// let layer = RateLimitLayer::per_minute(60).route_label(|request: &Parts| {
    ///     let path = request.extensions.get::<MatchedPath>()?;
    ///     Some(path.as_str().to_owned())
    /// });
    /// # let _ = layer;
    /// ```
    pub fn route_label<F>(mut self, route: F) -> Self
    where
        F: Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    {
        self.rules.route = Route::by(route);
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
