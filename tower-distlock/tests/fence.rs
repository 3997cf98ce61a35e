//! The checking side of fences, on all three backends and on every topology of Redis, and its layer.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{convert::Infallible, time::Duration};

use backends::Fixture;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use redis_conn::Backend;
use testkit::Probe;
use tower::{Layer as _, ServiceExt as _};
use tower_distlock::{FenceError, FenceLayer, LockOptions, Locks};

fn locks(fixture: &impl Fixture) -> Locks {
    Locks::with_timeout(fixture.backend(), Duration::from_secs(10)).unwrap()
}

mod cases {
    use super::*;

    pub(super) async fn a_fence_that_was_passed_is_refused(fixture: &impl Fixture) {
        let (one, two) = (locks(fixture), locks(fixture));
        for fence in [0, 5, 5, 7, u64::MAX] {
            one.check_fence("a", fence).await.unwrap();
            for less in [fence.saturating_sub(1), 0] {
                let checked = two.check_fence("a", less).await;
                if less == fence {
                    checked.unwrap();
                    continue;
                }
                let Err(FenceError::Stale { fence: tried, seen }) = checked else {
                    panic!("{fence} was seen");
                };
                assert_eq!((tried, seen), (less, fence));
            }
        }
        two.check_fence("{a}", 1).await.unwrap();
        assert!(two.check_fence("", 1).await.is_err());
    }

    pub(super) async fn the_fences_of_a_lock_are_those_of_its_resource(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let options = || LockOptions::new().ttl(Duration::from_secs(600));
        let first = locks.try_acquire("a", options()).await.unwrap();
        let old = first.fence();
        locks.check_fence("a", old).await.unwrap();
        first.release().await.unwrap();
        let second = locks.try_acquire("a", options()).await.unwrap();
        locks.check_fence("a", second.fence()).await.unwrap();
        assert!(locks.check_fence("a", old).await.is_err());
    }
}

backends::on_each_backend! {
    a_fence_that_was_passed_is_refused
    the_fences_of_a_lock_are_those_of_its_resource
}

fn layer() -> FenceLayer<impl Fn(&http::request::Parts) -> String + Clone> {
    let locks = Locks::new(&Backend::memory()).unwrap();
    FenceLayer::new(locks, |request| request.uri.path().to_owned())
}

fn request(path: &str, fences: &[&str]) -> Request<Full<Bytes>> {
    let builder = Request::builder().uri(path);
    let fields = fences.iter();
    let builder = fields.fold(builder, |builder, fence| builder.header("fence", *fence));
    builder.body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_request_is_let_through_by_its_fence() {
    let (probe, handle) = Probe::ok();
    let service = layer().layer(probe);
    for (path, fences, expected) in [
        ("/a", &["7"][..], StatusCode::OK),
        ("/a", &["7"], StatusCode::OK),
        ("/a", &["6"], StatusCode::PRECONDITION_FAILED),
        ("/b", &["6"], StatusCode::OK),
        ("/a", &[], StatusCode::PRECONDITION_REQUIRED),
        ("/a", &["-1"], StatusCode::BAD_REQUEST),
        ("/a", &["8", "8"], StatusCode::BAD_REQUEST),
        ("/a", &["18446744073709551616"], StatusCode::BAD_REQUEST),
        ("/a", &["8"], StatusCode::OK),
        ("/a", &["7"], StatusCode::PRECONDITION_FAILED),
    ] {
        let response = service.clone().oneshot(request(path, fences)).await;
        let response = response.unwrap();
        assert_eq!(response.status(), expected, "{path} {fences:?}");
        if expected != StatusCode::OK {
            let kind = &response.headers()[header::CONTENT_TYPE];
            assert_eq!(kind, "application/problem+json");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.ends_with(format!("{}}}", expected.as_u16()).as_bytes()));
        }
    }
    assert_eq!(handle.calls(), 4);
    handle.assert_clean();
}

#[tokio::test]
async fn a_store_that_is_away_lets_nothing_through() {
    let backend = Backend::memory();
    let locks = Locks::new(&backend).unwrap();
    let layer = FenceLayer::new(locks, |_: &http::request::Parts| String::new());
    let service = layer.layer(tower::service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    // No lock has that name.
    let response = service.oneshot(request("/a", &["1"])).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
}
