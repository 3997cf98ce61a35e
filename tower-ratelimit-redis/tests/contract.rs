//! The Tower contract of the layer, on all three backends and on every topology of Redis with the same assertions.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::{
    convert::Infallible,
    future::ready,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use fixture::Fixture;
use http::{Request, Response, request::Parts, response};
use http_body_util::{BodyExt as _, Full};
use testkit::{
    Probe, drop_at_every_await,
    probe::{OkHandler, Readiness},
    until,
};
use tower::{Layer as _, Service, ServiceExt as _, buffer::Buffer};
use tower_ratelimit_redis::{
    Callers, Limiter, OnFailure, Policy, RateLimitLayer, ResponseBody, Source, key::ClientIp,
};

type Body = Full<Bytes>;

/// The subject of a request that nothing is known about.
const ANONYMOUS: &str = "\0anonymous";
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(20);

fn policy(max: u64) -> Policy {
    let policy = Policy::new("api").limit(max, Duration::from_secs(3_600));
    policy.build().unwrap()
}

/// A limiter that hides no failure of the store behind another decision.
fn limiter(fixture: &impl Fixture) -> Limiter {
    Limiter::builder(fixture.backend())
        .on_failure(OnFailure::Closed)
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap()
}

fn layer(fixture: &impl Fixture, max: u64) -> RateLimitLayer {
    RateLimitLayer::new(limiter(fixture), policy(max))
}

/// A layer with a policy and nothing else, one with every option that leaves it as it is, and one whose requests hold permits.
fn layers(fixture: &impl Fixture, max: u64) -> [RateLimitLayer; 3] {
    let hour = Duration::from_secs(3_600);
    let named = |name: &str| Policy::new(name).limit(max, hour);
    let [all, held] = [named("all"), named("held").concurrency(max, hour)];
    let [all, held] = [all, held].map(|policy| policy.build().unwrap());
    let nobody = || {
        Callers::new()
            .within(ClientIp::hops(0), [])
            .subjects(["nobody"])
    };
    let resolved = move |_: &mut Parts| Some(all.clone());
    let all = RateLimitLayer::policy_by(limiter(fixture), resolved)
        .allow(nobody())
        .deny(nobody())
        .cost(|_: &Parts| 1)
        .settle(|_: &response::Parts| Some(1))
        .settle_by_body(1)
        .shadow(false);
    let held = RateLimitLayer::new(limiter(fixture), held);
    [layer(fixture, max), all, held]
}

/// What is left of the first limit of a policy.
async fn left(limiter: &Limiter, policy: &Policy) -> u64 {
    let seen = limiter.peek(policy, ANONYMOUS).await.unwrap();
    seen.limits()[0].remaining
}

/// Waits for what a task of the layer does.
async fn until_left(limiter: &Limiter, policy: &Policy, expected: u64) {
    let what = format!("{expected} left");
    let asked = until(HANG, &what, async || {
        left(limiter, policy).await == expected
    });
    asked.await.unwrap();
}

fn request() -> Request<Body> {
    Request::new(Body::default())
}

/// Sends one request and returns the status code.
async fn status<S, B>(service: &S) -> u16
where
    S: Service<Request<Body>, Response = Response<ResponseBody<B>>, Error = Infallible> + Clone,
{
    let answered = service.clone().oneshot(request()).await;
    answered.unwrap().status().as_u16()
}

/// Polls a service for readiness.
fn readiness<S: Service<Request<Body>>>(
    service: &mut S,
) -> impl FnMut() -> Poll<Result<(), S::Error>> {
    move || service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

mod cases {
    use super::*;

    /// The probe panics when an instance is called that was not polled ready.
    pub(super) async fn the_instance_that_was_ready_is_called(fixture: &impl Fixture) {
        let (probe, handle) = Probe::ok();
        handle.set_readiness(Readiness::PendingTimes(3));
        for layer in layers(fixture, 10) {
            let mut service = layer.layer(probe.clone());
            for _ in 0..3 {
                let future = service.ready().await.unwrap().call(request());
                // A second request, before the first is under way.
                let other = service.ready().await.unwrap().call(request());
                assert_eq!(other.await.unwrap().status(), 200);
                assert_eq!(future.await.unwrap().status(), 200);
            }
        }
        assert_eq!(handle.calls(), 18);
        drop(probe);
        handle.assert_clean();
        assert_eq!(handle.live_instances(), 0);
    }

    pub(super) async fn readiness_is_that_of_the_service_behind(fixture: &impl Fixture) {
        for layer in layers(fixture, 1) {
            let (probe, handle) = Probe::<OkHandler<Body>>::ok();
            handle.set_readiness(Readiness::Pending);
            let mut service = layer.layer(probe);
            let mut ready = readiness(&mut service);
            assert!(ready().is_pending());
            assert!(ready().is_pending());
            handle.set_readiness(Readiness::Ready);
            assert!(ready().is_ready());
            assert_eq!(handle.stats().ready_polls, 3);
        }
        let left = left(&limiter(fixture), &policy(1)).await;
        assert_eq!(left, 1, "asking for readiness charges nothing");
    }

    pub(super) async fn a_refused_request_never_reaches_a_buffer(fixture: &impl Fixture) {
        for layer in layers(fixture, 1) {
            let (probe, handle) = Probe::ok();
            let service = layer.layer(Buffer::new(probe, 8));
            for _ in 0..10 {
                let response = service.clone().oneshot(request()).await.unwrap();
                drop(response);
            }
            // What was enqueued before this one has been seen when it has been answered.
            assert_eq!(handle.calls(), 1);
            assert_eq!(handle.stats().completed_futures, 1);
        }
    }

    pub(super) async fn a_request_dropped_while_the_store_decides_leaves_nothing(
        fixture: &impl Fixture,
    ) {
        let (probe, handle) = Probe::ok();
        let (limiter, policy) = (limiter(fixture), policy(1_000));
        // The first decision makes the table or sends the script.
        limiter.peek(&policy, ANONYMOUS).await.unwrap();
        let service = RateLimitLayer::new(limiter.clone(), policy.clone()).layer(probe);
        let mut held = fixture.hold();
        let polls = drop_at_every_await(
            || service.clone().oneshot(request()),
            |polls| {
                assert_eq!(handle.live_futures(), 0);
                assert_eq!(handle.live_instances(), 1);
                if polls == 1 {
                    held.take();
                }
            },
        )
        .await;
        let is_elsewhere = fixture.stored().await.is_some();
        assert!(
            polls >= 2 || !is_elsewhere,
            "{polls} polls: the store was awaited"
        );
        handle.assert_clean();
        // What was dropped holds up nobody, and may have been charged.
        let seen = limiter.peek(&policy, ANONYMOUS).await.unwrap();
        assert_eq!(seen.source(), Source::Store);
        let left = seen.limits()[0].remaining;
        assert!((1_000 - polls as u64..1_000).contains(&left), "{left}");
        let closed = fixture.backend().close(Duration::from_secs(20)).await;
        closed.unwrap();
    }

    pub(super) async fn the_error_of_the_service_behind_is_kept(fixture: &impl Fixture) {
        for layer in layers(fixture, 1) {
            let (probe, _) =
                Probe::new(|_: Request<Body>| ready(Err::<Response<Body>, _>("broken")));
            let service = layer.layer(probe);
            assert_eq!(service.oneshot(request()).await.unwrap_err(), "broken");
        }
    }

    pub(super) async fn everything_made_of_one_layer_shares_its_limits(fixture: &impl Fixture) {
        for layer in layers(fixture, 3) {
            let (probe, handle) = Probe::<OkHandler<Body>>::ok();
            let (first, second) = (layer.layer(probe.clone()), layer.clone().layer(probe));
            assert_eq!(status(&first).await, 200);
            assert_eq!(status(&first.clone()).await, 200);
            assert_eq!(status(&second).await, 200);
            assert_eq!(status(&second).await, 429);
            assert_eq!(handle.calls(), 3);
        }
    }

    pub(super) async fn what_a_response_settles_reaches_the_store(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(100));
        let layer = layer(fixture, 100).cost(|_| 10);
        let (probe, _) = Probe::ok();
        let service = layer.clone().settle(|_| Some(30)).layer(probe.clone());
        assert_eq!(status(&service).await, 200);
        until_left(&limiter, &policy, 70).await;
        let service = layer.settle_by_body(1).layer(probe);
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(left(&limiter, &policy).await, 60);
        response.into_body().collect().await.unwrap();
        until_left(&limiter, &policy, 68).await;
    }

    pub(super) async fn a_place_is_held_as_long_as_the_body(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let places = Policy::new("places").concurrency(2, Duration::from_secs(3_600));
        let places = places.build().unwrap();
        let (probe, _) = Probe::ok();
        let service = RateLimitLayer::new(limiter.clone(), places.clone()).layer(probe);
        let read = service.clone().oneshot(request()).await.unwrap();
        let dropped = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(status(&service).await, 429);
        read.into_body().collect().await.unwrap();
        until_left(&limiter, &places, 1).await;
        drop(dropped);
        until_left(&limiter, &places, 2).await;
    }
}

backends::on_each_backend! {
    the_instance_that_was_ready_is_called
    readiness_is_that_of_the_service_behind
    a_refused_request_never_reaches_a_buffer
    a_request_dropped_while_the_store_decides_leaves_nothing
    the_error_of_the_service_behind_is_kept
    everything_made_of_one_layer_shares_its_limits
    what_a_response_settles_reaches_the_store
    a_place_is_held_as_long_as_the_body
}
