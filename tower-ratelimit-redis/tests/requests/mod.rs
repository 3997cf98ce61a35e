//! What the tests of the layer send, and how they read what comes back; on the memory backend, whose time stands.
#![allow(
    dead_code,
    reason = "each test binary has a copy, and none uses all of it"
)]

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use redis_conn::{Backend, ManualClock};
use serde_json::Value;
use tower::{Service, ServiceExt as _};
use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer, ResponseBody, key::PeerAddr};

pub(crate) type Body = Full<Bytes>;

/// A moment on which buckets of whole milliseconds begin, so that whole windows have round times.
const START: u64 = 1_000_000_000_000;

pub(crate) fn backend() -> Backend {
    let clock = Arc::new(ManualClock::new(START));
    Backend::builder().clock(clock).memory().unwrap()
}

pub(crate) fn limiter() -> Limiter {
    Limiter::new(&backend())
}

pub(crate) fn policy(name: &str, max: u64) -> Policy {
    let policy = Policy::new(name).limit(max, Duration::from_secs(32));
    policy.build().unwrap()
}

pub(crate) fn layer(max: u64) -> RateLimitLayer {
    RateLimitLayer::new(limiter(), policy("api", max))
}

pub(crate) fn request() -> Request<Body> {
    Request::new(Body::default())
}

pub(crate) fn from(peer: &str) -> Request<Body> {
    let mut request = request();
    let peer: SocketAddr = peer.parse().unwrap();
    request.extensions_mut().insert(PeerAddr(peer));
    request
}

pub(crate) fn with(name: &'static str, value: &str) -> Request<Body> {
    let mut request = request();
    request.headers_mut().append(name, value.parse().unwrap());
    request
}

pub(crate) async fn send<S, B>(service: &S, request: Request<Body>) -> Response<ResponseBody<B>>
where
    S: Service<Request<Body>, Response = Response<ResponseBody<B>>, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap()
}

/// Sends requests one after the other and returns their status codes.
pub(crate) async fn statuses<S, B>(
    service: &S,
    requests: impl IntoIterator<Item = Request<Body>>,
) -> Vec<u16>
where
    S: Service<Request<Body>, Response = Response<ResponseBody<B>>, Error = Infallible> + Clone,
{
    let mut found = Vec::new();
    for request in requests {
        found.push(send(service, request).await.status().as_u16());
    }
    found
}

pub(crate) fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

pub(crate) async fn problem(response: Response<ResponseBody<Body>>) -> Value {
    assert_eq!(
        all(response.headers(), "content-type"),
        ["application/problem+json"]
    );
    assert_eq!(all(response.headers(), "cache-control"), ["no-store"]);
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let problem: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(problem["status"], status);
    problem
}
