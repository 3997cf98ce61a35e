//! The service.

use std::{
    any::type_name,
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    ResponseBody, ResponseFuture, admit,
    key::{KeyExtractor, PeerIp},
    rules::Rules,
};

/// A service whose requests are limited. Made by [`RateLimitLayer`](crate::RateLimitLayer).
pub struct RateLimit<S, K = PeerIp> {
    inner: S,
    rules: Arc<Rules>,
    key: Arc<K>,
}

impl<S, K> RateLimit<S, K> {
    pub(crate) fn new(inner: S, rules: Rules, key: Arc<K>) -> Self {
        let rules = Arc::new(rules);
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
        let step = admit::step(Arc::clone(&self.rules), Arc::clone(&self.key), parts);
        ResponseFuture::new(Box::pin(step), inner, body, self.rules.headers)
    }
}

impl<S: Clone, K> Clone for RateLimit<S, K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            rules: Arc::clone(&self.rules),
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
