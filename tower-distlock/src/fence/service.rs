//! The service.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, StatusCode, request::Parts};
use tower_service::Service;

use super::{FenceError, FenceFuture, layer::Rules};
use crate::body::ResponseBody;

/// A service that refuses stale fences. Made by [`FenceLayer`](crate::FenceLayer).
pub struct Fence<S, F> {
    inner: S,
    rules: Arc<Rules<F>>,
}

impl<S, F> Fence<S, F> {
    pub(super) fn new(inner: S, rules: Arc<Rules<F>>) -> Self {
        Self { inner, rules }
    }
}

impl<S, F, ReqBody, ResBody> Service<Request<ReqBody>> for Fence<S, F>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    F: Fn(&Parts) -> String + Send + Sync + 'static,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = FenceFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The instance that was polled ready is the one to call; the clone has yet to become ready.
        let next = self.inner.clone();
        let inner = mem::replace(&mut self.inner, next);
        let (parts, body) = request.into_parts();
        let checking = check(Arc::clone(&self.rules), parts);
        FenceFuture::new(Box::pin(checking), inner, body)
    }
}

/// The request, or why it is refused.
async fn check<F: Fn(&Parts) -> String>(
    rules: Arc<Rules<F>>,
    parts: Parts,
) -> Result<Parts, StatusCode> {
    let mut fences = parts.headers.get_all(&rules.field).iter();
    let fence = match (fences.next(), fences.next()) {
        (None, _) => return Err(StatusCode::PRECONDITION_REQUIRED),
        (Some(fence), None) => fence.to_str().ok().and_then(|fence| fence.parse().ok()),
        (Some(_), Some(_)) => None,
    };
    let fence = fence.ok_or(StatusCode::BAD_REQUEST)?;
    let resource = (rules.resource)(&parts);
    match rules.locks.check_fence(&resource, fence).await {
        Ok(()) => Ok(parts),
        Err(FenceError::Stale { .. }) => Err(StatusCode::PRECONDITION_FAILED),
        Err(FenceError::Backend(error)) => {
            let status = StatusCode::from_u16(error.kind().http_status());
            Err(status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
        }
    }
}

impl<S: Clone, F> Clone for Fence<S, F> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            rules: Arc::clone(&self.rules),
        }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Fence<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence")
            .field("inner", &self.inner)
            .field("rules", &self.rules)
            .finish()
    }
}
