//! Responses that the user has a say in.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use redis_conn::{Backend, ManualClock};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_ratelimit_redis::{
    DefaultReject, HeaderStyle, LegacyReset, Limiter, MissingKey, Policy, RateLimitLayer, Reason,
    Refusal, Reject as _, key,
};

/// Admits one request of each key in an hour. Its clock stands still.
fn layer() -> RateLimitLayer<key::Header> {
    let clock = Arc::new(ManualClock::new(1_000_000_000_000));
    let backend = Backend::builder().clock(clock).memory().unwrap();
    let policy = Policy::new("api").limit(1, Duration::from_secs(3_600));
    RateLimitLayer::new(Limiter::new(&backend), policy.build().unwrap())
        .key(key::Header::new("x-api-key"))
        .missing_key(MissingKey::Reject)
}

fn request(content_type: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/")
        .header("content-type", content_type)
        .header("x-api-key", "k");
    request.body(Full::default()).unwrap()
}

/// The answer to a request that comes after another one of its key.
async fn second(layer: &RateLimitLayer<key::Header>, content_type: &str) -> Response<Bytes> {
    answer(layer, request(content_type)).await;
    answer(layer, request(content_type)).await
}

async fn answer(
    layer: &RateLimitLayer<key::Header>,
    request: Request<Full<Bytes>>,
) -> Response<Bytes> {
    let inner = service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::from("inner")))
    });
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, body)
}

fn number(headers: &HeaderMap, name: &str) -> u64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

/// As a shop might refuse: a page for people, the rest as usual.
fn page(refusal: &Refusal<'_>) -> Response<Bytes> {
    match refusal.reason() {
        Reason::Quota(_) if !refusal.is_grpc() => Response::builder()
            .status(StatusCode::PAYMENT_REQUIRED)
            .header("content-type", "text/html")
            .body("<p>slow down".into())
            .unwrap(),
        _ => DefaultReject.reject(refusal),
    }
}

#[tokio::test]
async fn the_response_is_the_users() {
    let layer = layer().reject(page);
    let refused = second(&layer, "text/plain").await;
    assert_eq!(refused.status(), StatusCode::PAYMENT_REQUIRED);
    assert_eq!(refused.headers()["content-type"], "text/html");
    assert_eq!(refused.body(), "<p>slow down");
    assert_eq!(
        refused.headers()["ratelimit-policy"],
        r#""api-3600s";q=1;w=3600"#
    );
    let ends = refused.headers()["ratelimit"].to_str().unwrap();
    let ends = ends.strip_prefix(r#""api-3600s";r=0;t="#).unwrap();
    assert_eq!(refused.headers()["retry-after"], ends);
    assert!(matches!(refused.extensions().get(), Some(Reason::Quota(_))));
}

#[tokio::test]
async fn what_the_user_leaves_alone_is_as_usual() {
    let (own, usual) = (layer().reject(page), layer());
    for content_type in ["application/grpc", "application/grpc-web-text"] {
        let (own, usual) = (
            second(&own, content_type).await,
            second(&usual, content_type).await,
        );
        assert_eq!(own.headers(), usual.headers(), "{content_type}");
        assert_eq!(own.body(), usual.body(), "{content_type}");
    }
    let without_key = answer(&own, Request::new(Full::default())).await;
    assert_eq!(without_key.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn jitter_comes_on_top_of_the_time_to_wait() {
    let exact = number(
        second(&layer(), "text/plain").await.headers(),
        "retry-after",
    );
    let layer = layer().retry_jitter(Duration::from_secs(1_000_000));
    let mut waits = Vec::new();
    for _ in 0..8 {
        let refused = second(&layer, "text/plain").await;
        waits.push(number(refused.headers(), "retry-after"));
    }
    assert!(
        waits
            .iter()
            .all(|wait| (exact..=exact + 1_000_000).contains(wait)),
        "{waits:?}"
    );
    assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
}

#[tokio::test]
async fn the_older_reset_may_be_a_point_in_time() {
    let legacy = layer().headers(HeaderStyle::Legacy);
    let delta = second(&legacy, "text/plain").await;
    let delta = number(delta.headers(), "x-ratelimit-reset");
    assert!((3_600..4_000).contains(&delta), "{delta}");

    let unix = legacy.legacy_reset(LegacyReset::UnixSeconds);
    let unix = second(&unix, "text/plain").await;
    // This was written in 2026.
    assert!(number(unix.headers(), "x-ratelimit-reset") > 1_767_225_600);
}

#[tokio::test]
async fn the_seventh_draft() {
    let layer = layer().headers(HeaderStyle::Draft7);
    let refused = second(&layer, "text/plain").await;
    assert_eq!(refused.headers()["ratelimit-policy"], "1;w=3600");
    let wait = refused.headers()["retry-after"].to_str().unwrap();
    assert_eq!(
        refused.headers()["ratelimit"],
        format!("limit=1, remaining=0, reset={wait}")
    );
}
