//! The stacks suite, with layers that behave and layers that do not.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use testkit::stacks::{self, Axum, Expect, Hyper, SUBJECT, Tonic};
use tower::{Layer, Service, layer::layer_fn};

const EXPECT: Expect = Expect {
    admit: 3,
    refused_http: StatusCode::TOO_MANY_REQUESTS,
    refused_grpc: 8,
};

/// Admits as many requests of each subject as it is told, over all its clones.
#[derive(Clone)]
struct Quota {
    admit: usize,
    used: Arc<Mutex<HashMap<Vec<u8>, usize>>>,
    misbehave: Misbehave,
}

#[derive(Clone, Copy, PartialEq)]
enum Misbehave {
    No,
    /// Runs the inner service although it refuses.
    CallsInner,
    /// Runs the inner service in a task that outlives a cancelled request.
    Detaches,
    /// Leaves a task behind when a request is cancelled.
    LeavesTask,
}

impl Quota {
    fn new(admit: usize, misbehave: Misbehave) -> Self {
        Self {
            admit,
            used: Arc::default(),
            misbehave,
        }
    }

    fn take(&self, subject: &HeaderValue) -> bool {
        let mut used = self.used.lock().unwrap();
        let used = used.entry(subject.as_bytes().to_vec()).or_default();
        *used += 1;
        *used <= self.admit
    }
}

impl<S> Layer<S> for Quota {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            quota: self.clone(),
        }
    }
}

#[derive(Clone)]
struct Limited<S> {
    inner: S,
    quota: Quota,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Limited<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: Send + 'static,
{
    type Response = Response<EitherBody<ResBody>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let headers = request.headers();
        let grpc = headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/grpc");
        if !self.quota.take(&headers[SUBJECT]) {
            if self.quota.misbehave == Misbehave::CallsInner {
                tokio::spawn(self.inner.call(request));
            }
            return Box::pin(async move { Ok(refusal(grpc)) });
        }
        let inner = self.inner.call(request);
        let misbehave = self.quota.misbehave;
        Box::pin(async move {
            let response = match misbehave {
                Misbehave::Detaches => tokio::spawn(inner).await.unwrap()?,
                Misbehave::LeavesTask => {
                    let mut leave = SpawnOnDrop { armed: true };
                    let response = inner.await?;
                    leave.armed = false;
                    response
                }
                Misbehave::No | Misbehave::CallsInner => inner.await?,
            };
            Ok(response.map(EitherBody::Inner))
        })
    }
}

struct SpawnOnDrop {
    armed: bool,
}

impl Drop for SpawnOnDrop {
    fn drop(&mut self) {
        if self.armed {
            tokio::spawn(pending::<()>());
        }
    }
}

fn refusal<B>(grpc: bool) -> Response<EitherBody<B>> {
    let response = Response::builder();
    let response = if grpc {
        response
            .header("content-type", "application/grpc")
            .header("grpc-status", "8")
    } else {
        response.status(StatusCode::TOO_MANY_REQUESTS)
    };
    response.body(EitherBody::Refused(Full::default())).unwrap()
}

/// The body of a layer that answers by itself, as real layers have it.
enum EitherBody<B> {
    Inner(B),
    Refused(Full<Bytes>),
}

impl<B: Body<Data = Bytes> + Unpin> Body for EitherBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.get_mut() {
            Self::Inner(body) => Pin::new(body).poll_frame(cx),
            Self::Refused(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|never: Infallible| match never {})))
            }
        }
    }
}

#[tokio::test]
async fn one_layer_value_serves_all_stacks() {
    let quota = Quota::new(3, Misbehave::No);
    stacks::run(quota.clone(), EXPECT).await;
    let mut used: Vec<_> = quota.used.lock().unwrap().clone().into_iter().collect();
    used.sort();
    let subjects = [
        ("axum", 4),
        ("axum-cancelled", 1),
        ("hyper", 4),
        ("hyper-cancelled", 1),
        ("tonic", 4),
    ];
    let mut expected: Vec<_> = subjects
        .into_iter()
        .chain([("tonic-cancelled", 1)])
        .map(|(s, n)| (s.into(), n))
        .collect();
    expected.sort();
    assert_eq!(used, expected, "all stacks share the layer's state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn also_on_several_threads() {
    stacks::run(Quota::new(3, Misbehave::No), EXPECT).await;
}

#[tokio::test]
#[should_panic(expected = "axum: one more request must be refused")]
async fn finds_a_layer_that_admits_too_many() {
    stacks::run(Quota::new(4, Misbehave::No), EXPECT).await;
}

#[tokio::test]
#[should_panic(expected = "tonic: request 3 must be admitted")]
async fn finds_a_layer_that_admits_too_few() {
    stacks::run_on::<Tonic, _>(Quota::new(2, Misbehave::No), EXPECT).await;
}

#[tokio::test]
#[should_panic(expected = "tonic: one more request must be refused")]
async fn finds_a_wrong_grpc_code() {
    let expect = Expect {
        refused_grpc: 14,
        ..EXPECT
    };
    stacks::run_on::<Tonic, _>(Quota::new(3, Misbehave::No), expect).await;
}

#[tokio::test]
#[should_panic(expected = "hyper: a refused request reached the handler")]
async fn finds_a_refused_request_that_runs() {
    stacks::run_on::<Hyper, _>(Quota::new(3, Misbehave::CallsInner), EXPECT).await;
}

#[tokio::test]
#[should_panic(expected = "waiting for the handler")]
async fn finds_a_handler_that_outlives_its_request() {
    stacks::run_on::<Axum, _>(Quota::new(3, Misbehave::Detaches), EXPECT).await;
}

#[tokio::test]
#[should_panic(expected = "hyper: tasks are left")]
async fn finds_a_task_that_outlives_its_request() {
    stacks::run_on::<Hyper, _>(Quota::new(3, Misbehave::LeavesTask), EXPECT).await;
}

#[tokio::test]
async fn a_task_that_the_layer_keeps_is_no_leak() {
    let started = Arc::new(std::sync::Once::new());
    let quota = Quota::new(3, Misbehave::No);
    let lazy = layer_fn(move |inner| {
        started.call_once(|| drop(tokio::spawn(pending::<()>())));
        quota.layer(inner)
    });
    stacks::run_on::<Hyper, _>(lazy, EXPECT).await;
}
