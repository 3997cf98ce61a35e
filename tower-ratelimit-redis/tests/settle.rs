//! What a request has cost, once its response tells; on the memory backend.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod requests;

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use redis_conn::Backend;
use requests::{Body, backend, policy, request};
use testkit::Probe;
use tokio::{runtime::Handle, task::yield_now};
use tower::{Layer as _, Service, ServiceExt as _};
use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer, ResponseBody};

/// The subject of a request that nothing is known about.
const ANONYMOUS: &str = "\0anonymous";

/// A limiter that is asked what is left of a policy.
struct Account {
    limiter: Limiter,
    policy: Policy,
    /// It may have tasks of its own, which end with it.
    _backend: Backend,
    tasks: usize,
}

impl Account {
    fn of(max: u64) -> Self {
        let backend = backend();
        Self {
            limiter: Limiter::new(&backend),
            policy: policy("api", max),
            _backend: backend,
            tasks: Handle::current().metrics().num_alive_tasks(),
        }
    }

    fn layer(&self) -> RateLimitLayer {
        RateLimitLayer::new(self.limiter.clone(), self.policy.clone())
    }

    fn settling(&self) -> usize {
        Handle::current().metrics().num_alive_tasks() - self.tasks
    }

    /// What is left when all is settled.
    async fn left(&self) -> u64 {
        while self.settling() > 0 {
            yield_now().await;
        }
        let decision = self.limiter.peek(&self.policy, ANONYMOUS).await.unwrap();
        decision.limits()[0].remaining
    }
}

/// A service that answers so.
fn answering(
    status: u16,
    tokens: Option<u64>,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
+ Clone {
    let (probe, _) = Probe::new(move |_: Request<Body>| {
        let mut response = Response::new(Body::from("ok"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(tokens) = tokens {
            response.headers_mut().insert("x-tokens", tokens.into());
        }
        ready(Ok(response))
    });
    probe
}

mod by_head {
    use super::*;

    /// Only what fails costs anything.
    fn failures(response: &response::Parts) -> Option<u64> {
        (response.status != StatusCode::UNAUTHORIZED).then_some(0)
    }

    fn tokens(response: &response::Parts) -> Option<u64> {
        let tokens = response.headers.get("x-tokens")?;
        tokens.to_str().ok()?.parse().ok()
    }

    #[tokio::test]
    async fn what_is_given_back_makes_room() {
        let account = Account::of(2);
        let layer = account.layer().settle(failures);
        let (right, wrong) = (
            layer.layer(answering(200, None)),
            layer.layer(answering(401, None)),
        );
        for _ in 0..5 {
            right.clone().oneshot(request()).await.unwrap();
            assert_eq!(account.left().await, 2);
        }
        for left in [1, 0] {
            wrong.clone().oneshot(request()).await.unwrap();
            assert_eq!(account.left().await, left);
        }
        let refused = right.oneshot(request()).await.unwrap();
        assert_eq!(refused.status(), 429);
    }

    #[tokio::test]
    async fn what_was_too_little_is_charged_whatever_the_limit() {
        let account = Account::of(100);
        let layer = account.layer().cost(|_| 10).settle(tokens);
        let charged = async |tokens| {
            let service = layer.layer(answering(200, tokens));
            service.oneshot(request()).await.unwrap().status()
        };
        assert_eq!(charged(Some(30)).await, 200);
        assert_eq!(account.left().await, 70);
        assert_eq!(charged(None).await, 200);
        assert_eq!(account.left().await, 60, "as it was charged");
        assert_eq!(charged(Some(10)).await, 200);
        assert_eq!(account.settling(), 0, "there is nothing to settle");
        assert_eq!(charged(Some(1_000)).await, 200);
        assert_eq!(account.left().await, 0);
        assert_eq!(charged(Some(1)).await, 429);
    }

    #[tokio::test]
    async fn what_cost_nothing_at_first_is_charged_afterwards() {
        let account = Account::of(100);
        let layer = account.layer().cost(|_| 0).settle(tokens);
        let service = layer.layer(answering(200, Some(100)));
        let first = service.clone().oneshot(request()).await.unwrap();
        assert_eq!((first.status().as_u16(), account.left().await), (200, 0));
        assert_eq!(service.oneshot(request()).await.unwrap().status(), 429);
    }

    #[tokio::test]
    async fn the_response_waits_for_nothing() {
        let account = Account::of(100);
        let service = account
            .layer()
            .settle(tokens)
            .layer(answering(200, Some(9)));
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(account.settling(), 1);
        assert_eq!(account.left().await, 91);
        drop(response);
        assert_eq!((account.settling(), account.left().await), (0, 91));
    }

    #[tokio::test]
    async fn without_a_response_it_stays_charged() {
        let account = Account::of(100);
        let layer = account.layer().cost(|_| 5).settle(|_| Some(0));
        let (probe, _) = Probe::new(|_: Request<Body>| ready(Err::<Response<Body>, _>("broken")));
        let error = layer.layer(probe).oneshot(request()).await.unwrap_err();
        assert_eq!((error, account.left().await), ("broken", 95));
    }

    #[tokio::test]
    async fn what_a_layer_does_not_count_it_does_not_settle() {
        let account = Account::of(100);
        let layer = account.layer().settle(tokens);
        let layer = layer.missing_key(tower_ratelimit_redis::MissingKey::Skip);
        let service = layer.layer(answering(200, Some(9)));
        service.oneshot(request()).await.unwrap();
        assert_eq!(account.left().await, 100);
    }

    /// What is held is that of the permit, which nobody would release otherwise.
    #[tokio::test]
    async fn under_a_concurrency_limit_only_what_is_spent_is_settled() {
        let hour = std::time::Duration::from_secs(3_600);
        let mixed = Policy::new("api").limit(100, hour).concurrency(10, hour);
        let account = Account {
            policy: mixed.build().unwrap(),
            ..Account::of(1)
        };
        let left = async || {
            let seen = account.limiter.peek(&account.policy, ANONYMOUS).await;
            let seen = seen.unwrap();
            seen.limits().iter().map(|limit| limit.remaining).collect()
        };
        let layer = account.layer().cost(|_| 5).settle(tokens);
        for (actual, expected) in [(9, [91, 10]), (2, [89, 10])] {
            let service = layer.layer(answering(200, Some(actual)));
            drop(service.oneshot(request()).await.unwrap());
            let settled = testkit::until(HANG, "what is settled", async || {
                let left: Vec<u64> = left().await;
                left == expected
            });
            settled.await.unwrap();
        }
    }

    /// Only a hang takes this long.
    const HANG: std::time::Duration = std::time::Duration::from_secs(20);
}

mod by_body {
    use super::*;

    type Sent = Result<Frame<Bytes>, &'static str>;

    /// A body of these frames.
    struct Frames(std::vec::IntoIter<Sent>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Ready(self.0.next())
        }
    }

    fn data(length: usize) -> Sent {
        Ok(Frame::data(vec![0; length].into()))
    }

    fn body(frames: Vec<Sent>) -> Frames {
        Frames(frames.into_iter())
    }

    /// What `layer` makes of such a body.
    async fn behind<B: Send + 'static>(
        layer: &RateLimitLayer,
        body: impl Fn() -> B + Clone,
    ) -> ResponseBody<B> {
        let (probe, _) =
            Probe::new(|_: Request<Body>| ready(Ok::<_, Infallible>(Response::new(body()))));
        let response = layer.layer(probe).oneshot(request()).await;
        response.unwrap().into_body()
    }

    async fn next<B: http_body::Body<Data = Bytes> + Unpin>(body: &mut ResponseBody<B>) -> usize {
        let frame = body.frame().await.unwrap().ok().unwrap();
        frame.into_data().map_or(0, |data| data.len())
    }

    #[tokio::test]
    async fn it_costs_what_was_sent_in_units_begun() {
        let account = Account::of(100);
        let layer = account.layer().settle_by_body(10);
        let frames = || {
            let trailers = Ok(Frame::trailers(HeaderMap::new()));
            body(vec![data(15), data(0), data(16), trailers])
        };
        let held = behind(&layer, frames).await;
        assert_eq!(
            account.left().await,
            99,
            "until its end, what it cost before"
        );
        let sent = held.collect().await.unwrap().to_bytes();
        assert_eq!((sent.len(), account.left().await), (31, 96));
        let empty = behind(&layer, || body(vec![])).await;
        drop(empty);
        assert_eq!(account.left().await, 96, "nothing was sent");
    }

    #[tokio::test]
    async fn its_end_settles_and_not_only_its_drop() {
        let account = Account::of(100);
        let layer = account.layer().settle_by_body(10);
        let mut body = behind(&layer, || body(vec![data(50)])).await;
        assert_eq!(next(&mut body).await, 50);
        assert_eq!(account.left().await, 99);
        assert!(body.frame().await.is_none());
        assert_eq!(account.left().await, 95);
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(account.left().await, 95, "once");
    }

    #[tokio::test]
    async fn an_error_is_an_end() {
        let account = Account::of(100);
        let layer = account.layer().settle_by_body(10);
        let mut body = behind(&layer, || body(vec![data(50), Err("torn")])).await;
        assert_eq!(next(&mut body).await, 50);
        assert_eq!(body.frame().await.unwrap().unwrap_err(), "torn");
        assert_eq!(account.left().await, 95);
    }

    #[tokio::test]
    async fn what_is_dropped_costs_what_was_taken_of_it() {
        let account = Account::of(100);
        let layer = account.layer().settle_by_body(10);
        let mut body = behind(&layer, || body(vec![data(50), data(50)])).await;
        assert_eq!(next(&mut body).await, 50);
        drop(body);
        assert_eq!(account.left().await, 95);
    }

    #[tokio::test]
    async fn what_panics_costs_what_was_taken_of_it() {
        struct Panics(bool);

        impl http_body::Body for Panics {
            type Data = Bytes;
            type Error = Infallible;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                assert!(!std::mem::replace(&mut self.0, true), "the body panics");
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 50])))))
            }
        }

        let account = Account::of(100);
        let layer = account.layer().settle_by_body(10);
        let body = behind(&layer, || Panics(false)).await;
        let sent = tokio::spawn(async move { body.collect().await.map(drop) });
        assert!(sent.await.unwrap_err().is_panic());
        assert_eq!(account.left().await, 95);
    }

    #[tokio::test]
    async fn it_settles_wherever_it_is_dropped() {
        let account = Account::of(100);
        let layer = account.layer().settle_by_body(10);
        let mut body = behind(&layer, || body(vec![data(50)])).await;
        assert_eq!(next(&mut body).await, 50);
        std::thread::spawn(move || drop(body)).join().unwrap();
        assert_eq!(account.left().await, 95);
    }

    #[tokio::test]
    async fn clones_are_one_body() {
        let account = Account::of(100);
        let layer = account.layer().settle_by_body(1);
        let body = behind(&layer, || Body::from("12345")).await;
        let other = body.clone();
        drop(body.collect().await.unwrap());
        assert_eq!(account.left().await, 99);
        drop(other);
        assert_eq!(account.left().await, 95);
    }

    #[tokio::test]
    async fn the_head_goes_first() {
        let account = Account::of(100);
        let by_head = |response: &response::Parts| (response.status == 500).then_some(0);
        let layer = account.layer().settle(by_head).settle_by_body(1);
        for (status, left) in [(500, 100), (200, 98)] {
            let service = layer.layer(answering(status, None));
            let response = service.oneshot(request()).await.unwrap();
            response.into_body().collect().await.unwrap();
            assert_eq!(account.left().await, left);
        }
    }

    #[tokio::test]
    async fn a_refusal_costs_nothing() {
        let account = Account::of(1);
        let layer = account.layer().settle_by_body(1_000);
        let held = behind(&layer, || Body::from("1")).await;
        let refused = behind(&layer, || Body::from("1")).await;
        assert!(refused.size_hint().exact() > Some(1), "a problem document");
        drop(refused.collect().await.unwrap());
        assert_eq!(account.left().await, 0);
        drop(held);
        assert_eq!(account.left().await, 1, "nothing of it was taken");
    }

    #[test]
    #[should_panic(expected = "units of 0 bytes, expected at least 1")]
    fn a_unit_of_nothing_is_refused() {
        let _ = RateLimitLayer::per_minute(1).settle_by_body(0);
    }
}

/// How many may be settled at a time.
mod bound {
    use super::*;

    #[tokio::test]
    async fn beyond_it_requests_stay_charged() {
        const MOST: usize = 4_096;
        let account = Account::of(10_000);
        let service = account
            .layer()
            .settle(|_| Some(0))
            .layer(answering(200, None));
        // The one thread of this runtime runs no task meanwhile: nothing here waits.
        for _ in 0..MOST + 100 {
            let answered = service.clone().oneshot(request());
            assert!(at_once(answered).is_ok());
        }
        assert_eq!(account.settling(), MOST);
        assert_eq!(account.left().await, 10_000 - 100);
        service.oneshot(request()).await.unwrap();
        assert_eq!(account.left().await, 10_000 - 100, "there is room again");
    }

    /// What a future that is ready at once returns.
    fn at_once<F: Future>(future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(std::task::Waker::noop());
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("it waits"),
        }
    }
}
