//! How long a request holds its units of a concurrency limit; on the memory backend.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod requests;

use std::{
    convert::Infallible,
    future::{pending, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use requests::{Body, all, limiter, request};
use testkit::{Probe, drop_at_every_await, until};
use tower::{Layer as _, Service as _, ServiceBuilder, ServiceExt as _, util::BoxCloneService};
use tower_ratelimit_redis::{Limiter, Permit, Policy, RateLimitLayer, Reason, Shadow};

/// The subject of a request that nothing is known about.
const ANONYMOUS: &str = "\0anonymous";
/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(20);

/// Places that are held for the time of a request.
struct Places {
    limiter: Limiter,
    policy: Policy,
}

impl Places {
    fn of(max: u64) -> Self {
        let policy = Policy::new("api").concurrency(max, Duration::from_secs(3_600));
        Self {
            limiter: limiter(),
            policy: policy.build().unwrap(),
        }
    }

    fn layer(&self) -> RateLimitLayer {
        RateLimitLayer::new(self.limiter.clone(), self.policy.clone())
    }

    async fn free(&self) -> u64 {
        let decision = self.limiter.peek(&self.policy, ANONYMOUS).await.unwrap();
        decision.limits()[0].remaining
    }

    /// Waits until so many are free: a release is sent, and not waited for.
    async fn until_free(&self, free: u64) {
        let freed = until(HANG, "places", async || self.free().await == free);
        freed.await.unwrap();
    }
}

/// How the body of a response goes on after its first frame.
#[derive(Clone, Copy)]
enum Then {
    Ends,
    Waits,
    Fails,
    Panics,
}

struct Stream {
    begun: bool,
    then: Then,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Poll::Ready(Some(Ok(Frame::data("data".into()))));
        }
        match self.then {
            Then::Ends => Poll::Ready(None),
            Then::Waits => Poll::Pending,
            Then::Fails => Poll::Ready(Some(Err("torn"))),
            Then::Panics => panic!("the body panics"),
        }
    }
}

/// A response whose body goes on so.
fn stream(then: Then) -> Response<Stream> {
    Response::new(Stream { begun: false, then })
}

async fn response(
    places: &Places,
    then: Then,
) -> Response<tower_ratelimit_redis::ResponseBody<Stream>> {
    let (probe, _) = Probe::new(move |_: Request<Body>| ready(Ok::<_, Infallible>(stream(then))));
    let service = places.layer().layer(probe);
    service.oneshot(request()).await.unwrap()
}

#[tokio::test]
async fn a_place_is_held_until_the_body_has_ended() {
    let places = Places::of(2);
    let mut held = response(&places, Then::Ends).await.into_body();
    assert_eq!(places.free().await, 1);
    assert!(held.frame().await.unwrap().unwrap().is_data());
    assert_eq!(places.free().await, 1);
    assert!(held.frame().await.is_none());
    places.until_free(2).await;
    assert!(held.frame().await.is_none());
}

/// Tasks are on the runtime that built the backend.
#[test]
fn a_place_becomes_free_whatever_becomes_of_the_runtime_that_took_it() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (home, other) = (runtime(), runtime());
    let places = home.block_on(async { Places::of(2) });
    let acquire = || places.limiter.acquire(&places.policy, ANONYMOUS, 1);
    let permit = other.block_on(acquire()).unwrap().permit().unwrap();
    drop(other);
    assert_eq!(home.block_on(places.free()), 1);
    drop(permit);
    home.block_on(places.until_free(2));
}

/// A backend that was built where there is no runtime, and one whose runtime has ended.
#[test]
fn a_place_becomes_free_on_whatever_runtime_there_is() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let home = runtime();
    let homeless = home.block_on(async { Places::of(1) });
    drop(home);
    for places in [Places::of(1), homeless] {
        for _ in 0..2 {
            // The one before has ended, and its tasks with it.
            let present = runtime();
            present.block_on(async {
                let acquired = places.limiter.acquire(&places.policy, ANONYMOUS, 1);
                let permit = acquired.await.unwrap().permit().unwrap();
                assert!(!permit.is_lost());
                drop(permit);
                places.until_free(1).await;
            });
        }
    }
}

#[tokio::test]
async fn a_permit_of_nothing_is_held_for_ever() {
    let places = Places::of(1);
    let nothing = places.limiter.acquire(&places.policy, ANONYMOUS, 0);
    let nothing = nothing.await.unwrap().permit().unwrap();
    assert_eq!(places.free().await, 1);
    assert!(!nothing.is_lost());
    assert!(!nothing.release().await.unwrap());
}

#[tokio::test]
async fn who_finds_no_place_is_refused() {
    let places = Places::of(1);
    let held = response(&places, Then::Waits).await;
    let refused = response(&places, Then::Waits).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(all(refused.headers(), "retry-after"), ["1"]);
    let policy = r#""api-concurrency";q=1;qu="concurrent-requests""#;
    for response in [&held, &refused] {
        assert_eq!(all(response.headers(), "ratelimit-policy"), [policy]);
        assert_eq!(
            all(response.headers(), "ratelimit"),
            [r#""api-concurrency";r=0"#]
        );
    }
    drop(held);
    places.until_free(1).await;
    drop(refused);
    assert_eq!(places.free().await, 1, "a refusal holds nothing");
    assert_eq!(response(&places, Then::Waits).await.status(), 200);
}

#[tokio::test]
async fn a_body_that_is_dropped_or_fails_or_panics_holds_nothing() {
    let places = Places::of(1);
    let mut body = response(&places, Then::Waits).await.into_body();
    assert!(body.frame().await.unwrap().unwrap().is_data());
    assert_eq!(places.free().await, 0);
    drop(body);
    places.until_free(1).await;

    let mut failed = response(&places, Then::Fails).await.into_body();
    assert!(failed.frame().await.unwrap().unwrap().is_data());
    assert_eq!(failed.frame().await.unwrap().unwrap_err(), "torn");
    places.until_free(1).await;

    let panicking = response(&places, Then::Panics).await.into_body();
    let read = tokio::spawn(async move { panicking.collect().await.map(drop) });
    assert!(read.await.unwrap_err().is_panic());
    places.until_free(1).await;
}

#[tokio::test]
async fn without_a_response_nothing_is_held() {
    let places = Places::of(1);
    let (broken, _) = Probe::new(|_: Request<Body>| ready(Err::<Response<Body>, _>("broken")));
    let mut service = places.layer().layer(broken);
    // The future lives on.
    let mut future = std::pin::pin!(service.ready().await.unwrap().call(request()));
    assert_eq!(future.as_mut().await.unwrap_err(), "broken");
    places.until_free(1).await;

    let (panicking, _) = Probe::new(|request: Request<Body>| async move {
        assert!(request.uri().path().is_empty(), "the handler panics");
        Ok::<_, Infallible>(Response::new(Body::default()))
    });
    let service = places.layer().layer(panicking);
    let answered = tokio::spawn(service.oneshot(request()));
    assert!(answered.await.unwrap_err().is_panic());
    places.until_free(1).await;
}

#[tokio::test]
async fn a_request_that_is_given_up_holds_nothing() {
    let places = Places::of(1);
    let (waiting, handle) =
        Probe::new(|_: Request<Body>| pending::<Result<Response<Body>, Infallible>>());
    let service = places.layer().layer(waiting);
    {
        let mut future = std::pin::pin!(service.clone().oneshot(request()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
        assert_eq!((handle.live_futures(), places.free().await), (1, 0));
    }
    places.until_free(1).await;

    let (probe, handle) = Probe::new(|_: Request<Body>| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(stream(Then::Ends))
    });
    let service = places.layer().layer(probe);
    drop_at_every_await(|| service.clone().oneshot(request()), |_| ()).await;
    handle.assert_clean();
    places.until_free(1).await;
}

/// The connection goes on when the response has been sent.
#[tokio::test]
async fn who_upgrades_keeps_the_permit() {
    type Kept = Arc<Mutex<Option<Arc<Permit>>>>;
    let places = Places::of(1);
    let kept = Kept::default();
    let keep = Arc::clone(&kept);
    let (probe, _) = Probe::new(move |request: Request<Body>| {
        let permit: &Arc<Permit> = request.extensions().get().unwrap();
        *keep.lock().unwrap() = Some(Arc::clone(permit));
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        ready(Ok::<_, Infallible>(response))
    });
    let service = places.layer().layer(probe);
    let upgraded = service.oneshot(request()).await.unwrap();
    assert!(
        upgraded
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );
    let permit = kept.lock().unwrap().take().unwrap();
    assert_eq!(places.free().await, 0);
    assert!(!permit.is_lost());
    drop(permit);
    places.until_free(1).await;
}

#[tokio::test]
async fn a_request_holds_as_many_places_as_it_costs() {
    let places = Places::of(5);
    let layer = places.layer().cost(|_| 3);
    let (probe, _) = Probe::ok();
    let service = layer.layer(probe);
    let held = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(places.free().await, 2);
    assert_eq!(service.oneshot(request()).await.unwrap().status(), 429);
    drop(held);
    places.until_free(5).await;
}

#[tokio::test]
async fn in_shadow_mode_places_are_held_and_who_finds_none_passes() {
    let places = Places::of(1);
    let (probe, _) = Probe::ok();
    let service = places.layer().shadow(true).layer(probe);
    let held = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(places.free().await, 0);
    let passed = service.oneshot(request()).await.unwrap();
    assert_eq!(passed.status(), 200);
    let shadow: &Shadow = passed.extensions().get().unwrap();
    assert!(matches!(shadow.refused(), Some(Reason::Quota(_))));
    drop(passed);
    assert_eq!(places.free().await, 0);
    drop(held);
    places.until_free(1).await;
}

/// What one layer holds and another refuses is held no longer.
#[tokio::test]
async fn a_refusal_further_in_ends_what_is_held_further_out() {
    let (places, other) = (Places::of(1), Policy::new("other").limit(1, HANG));
    let inner = RateLimitLayer::new(places.limiter.clone(), other.build().unwrap());
    let (probe, _) = Probe::ok();
    let service = ServiceBuilder::new()
        .layer(places.layer())
        .layer(inner)
        .service(probe);
    let service = BoxCloneService::new(service);
    for status in [200, 429] {
        let response = service.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(places.free().await, 0);
        response.into_body().collect().await.unwrap();
        places.until_free(1).await;
    }
}
