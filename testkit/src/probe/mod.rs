//! The Tower contract, seen from the service that a layer wraps.
//!
//! ```
//! use http::Request;
//! use testkit::Probe;
//! use tower::{Layer as _, ServiceExt as _, layer::util::Identity};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let (probe, handle) = Probe::ok();
//! let service = Identity::new().layer(probe);
//! service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(handle.calls(), 1);
//! handle.assert_clean();
//! # }
//! ```

mod cancel;
mod handle;

use std::{
    convert::Infallible,
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower_service::Service;

use self::handle::Ledger;
pub use self::{
    cancel::drop_at_every_await,
    handle::{ProbeHandle, ProbeStats, Readiness},
};

/// An inner service that watches how it is used.
///
/// Readiness belongs to the instance: a clone starts not ready, and each readiness is good for one
/// call. Calling an instance that was not polled ready panics, and is recorded as a violation for
/// the case that something catches the panic.
pub struct Probe<H> {
    handler: H,
    ready: bool,
    /// How many times this instance has answered `Pending` so far.
    delayed: usize,
    ledger: Arc<Ledger>,
}

/// The handler of [`Probe::ok`].
pub type OkHandler<B> = fn(Request<B>) -> Ready<Result<Response<Full<Bytes>>, Infallible>>;

impl<B> Probe<OkHandler<B>> {
    /// A probe that answers 200 `ok`.
    pub fn ok() -> (Self, ProbeHandle) {
        Self::new(|_| ready(Ok(Response::new(Full::from("ok")))))
    }
}

impl<H> Probe<H> {
    /// A probe that answers what `handler` returns, and the handle to ask about it.
    pub fn new(handler: H) -> (Self, ProbeHandle) {
        let ledger = Arc::new(Ledger::default());
        let handle = ProbeHandle::new(Arc::clone(&ledger));
        ledger.count(|stats| stats.live_instances += 1);
        (
            Self {
                handler,
                ready: false,
                delayed: 0,
                ledger,
            },
            handle,
        )
    }
}

impl<H, B, F, ResBody, E> Service<Request<B>> for Probe<H>
where
    H: Fn(Request<B>) -> F,
    F: Future<Output = Result<Response<ResBody>, E>> + Send + 'static,
{
    type Response = Response<ResBody>;
    type Error = E;
    type Future = ProbeFuture<F::Output>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.ledger.count(|stats| stats.ready_polls += 1);
        if !self.ledger.grants_readiness(cx.waker(), &mut self.delayed) {
            return Poll::Pending;
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !std::mem::take(&mut self.ready) {
            self.ledger
                .violated("call without poll_ready on this instance".to_owned());
            panic!("contract violated: call without poll_ready on this instance");
        }
        self.delayed = 0;
        self.ledger.count(|stats| {
            stats.calls += 1;
            stats.live_futures += 1;
        });
        ProbeFuture {
            inner: Some(Box::pin((self.handler)(request))),
            ledger: Arc::clone(&self.ledger),
        }
    }
}

impl<H: Clone> Clone for Probe<H> {
    fn clone(&self) -> Self {
        self.ledger.count(|stats| {
            stats.clones += 1;
            stats.live_instances += 1;
        });
        Self {
            handler: self.handler.clone(),
            ready: false,
            delayed: 0,
            ledger: Arc::clone(&self.ledger),
        }
    }
}

impl<H> Drop for Probe<H> {
    fn drop(&mut self) {
        self.ledger.count(|stats| stats.live_instances -= 1);
    }
}

impl<H> fmt::Debug for Probe<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

/// The response future of a [`Probe`].
pub struct ProbeFuture<T> {
    inner: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    ledger: Arc<Ledger>,
}

impl<T> Future for ProbeFuture<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(inner) = &mut self.inner else {
            self.ledger
                .violated("response future polled after it was done".to_owned());
            panic!("contract violated: response future polled after it was done");
        };
        let output = std::task::ready!(inner.as_mut().poll(cx));
        self.inner = None;
        self.ledger.count(|stats| stats.completed_futures += 1);
        Poll::Ready(output)
    }
}

impl<T> Drop for ProbeFuture<T> {
    fn drop(&mut self) {
        let cancelled = usize::from(self.inner.is_some());
        self.ledger.count(|stats| {
            stats.live_futures -= 1;
            stats.cancelled_futures += cancelled;
        });
    }
}

impl<T> fmt::Debug for ProbeFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeFuture").finish_non_exhaustive()
    }
}

/// Compiles only if `T` can be a layer or a service in a server: shared, cloned and sent.
pub fn assert_auto_traits<T: Clone + Send + Sync + 'static>() {}
