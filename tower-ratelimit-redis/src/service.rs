//! The service.

use std::{
    any::type_name,
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use tower_service::Service;

use crate::{
    Decision, MissingKey, RateLimitError, Reason, ResponseBody, ResponseFuture,
    key::{Key, KeyExtractor, PeerIp},
    layer::Rules,
};

/// A service whose requests are limited. Made by [`RateLimitLayer`](crate::RateLimitLayer).
pub struct RateLimit<S, K = PeerIp> {
    inner: S,
    rules: Rules,
    key: Arc<K>,
}

/// How a request goes on.
pub(crate) enum Step {
    Admit {
        parts: Parts,
        decision: Option<Decision>,
    },
    Refuse(Response<Bytes>),
}

/// The names of the policies that a request has passed already. They are few.
#[derive(Clone, Default)]
struct Passed(Vec<Arc<str>>);

impl<S, K> RateLimit<S, K> {
    pub(crate) fn new(inner: S, rules: Rules, key: Arc<K>) -> Self {
        Self { inner, rules, key }
    }
}

impl<S, K, ReqBody, ResBody> Service<Request<ReqBody>> for RateLimit<S, K>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    K: KeyExtractor,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The instance that was polled ready is the one to call; the clone has yet to become ready.
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        let (parts, body) = request.into_parts();
        let step = decide(self.rules.clone(), Arc::clone(&self.key), parts);
        ResponseFuture::new(Box::pin(step), inner, body, self.rules.headers)
    }
}

async fn decide<K: KeyExtractor>(rules: Rules, key: Arc<K>, mut parts: Parts) -> Step {
    match admit(&rules, &*key, &mut parts).await {
        Ok(decision) => {
            if let Some(decision) = &decision {
                parts.extensions.insert(decision.clone());
            }
            Step::Admit { parts, decision }
        }
        Err(reason) => Step::Refuse(rules.refuse.response(reason, &parts, rules.headers)),
    }
}

/// The decision, or none if the request passes uncounted.
async fn admit<K: KeyExtractor>(
    rules: &Rules,
    key: &K,
    parts: &mut Parts,
) -> Result<Option<Decision>, Reason> {
    pass(rules, parts)?;
    let key = match (key.extract(parts).await, rules.missing_key) {
        (Ok(Some(key)), _) => key,
        (Ok(None), MissingKey::Shared) => Key::anonymous(),
        (Ok(None), MissingKey::Skip) => return Ok(None),
        (Ok(None), MissingKey::Reject) => return Err(Reason::MissingKey),
        (Err(error), _) => return Err(Reason::InvalidKey(error)),
    };
    match rules.limiter.check(&rules.policy, key, 1).await {
        Ok(decision) if decision.is_allowed() => Ok(Some(decision)),
        Ok(decision) if decision.is_blocked() => Err(Reason::Blocked(decision)),
        Ok(decision) => Err(Reason::Quota(decision)),
        Err(RateLimitError::Store(error)) => Err(Reason::Undecided(error)),
        // Every limit is at least 1.
        Err(RateLimitError::CostExceedsLimit { .. } | RateLimitError::NeedsPermit) => {
            unreachable!("a request costs 1")
        }
    }
}

/// Two layers with policies of one name would charge each request twice, and their quota fields could not be told apart.
fn pass(rules: &Rules, parts: &mut Parts) -> Result<(), Reason> {
    let name = rules.policy.shared_name();
    let passed = parts.extensions.get_or_insert_default::<Passed>();
    if passed.0.contains(name) {
        rules.report_twice();
        return Err(Reason::DuplicatePolicy(Arc::clone(name)));
    }
    passed.0.push(Arc::clone(name));
    Ok(())
}

impl<S: Clone, K> Clone for RateLimit<S, K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            rules: self.rules.clone(),
            key: Arc::clone(&self.key),
        }
    }
}

impl<S: fmt::Debug, K> fmt::Debug for RateLimit<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("rules", &self.rules)
            .field("key", &format_args!("{}", type_name::<K>()))
            .finish()
    }
}
