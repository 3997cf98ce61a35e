//! The response future.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, request::Parts};
use pin_project::pin_project;
use tower_service::Service;

use crate::body::{self, ResponseBody};

type Checking = Pin<Box<dyn Future<Output = Result<Parts, StatusCode>> + Send>>;

/// The response future of [`Fence`](crate::Fence).
///
/// # Cancel safety
///
/// Dropping it drops the request; its fence may have been remembered.
#[pin_project]
pub struct FenceFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    #[pin]
    state: State<S::Future, S, ReqBody>,
}

#[pin_project(project = StateProj)]
enum State<F, S, ReqBody> {
    Checking {
        checking: Checking,
        /// The instance that was ready and the body, until the fence is accepted.
        held: Option<(S, ReqBody)>,
    },
    Accepted(#[pin] F),
}

impl<S, ReqBody> FenceFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(super) fn new(checking: Checking, inner: S, body: ReqBody) -> Self {
        let held = Some((inner, body));
        Self {
            state: State::Checking { checking, held },
        }
    }
}

impl<S, ReqBody, ResBody> Future for FenceFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Checking { checking, held } => {
                    let checked = ready!(checking.as_mut().poll(cx));
                    // Polled on after the refusal, it does not reach here again: the check itself panics then.
                    let Some((mut inner, body)) = held.take() else {
                        unreachable!("checked twice");
                    };
                    match checked {
                        Ok(parts) => State::Accepted(inner.call(Request::from_parts(parts, body))),
                        Err(status) => return Poll::Ready(Ok(body::problem(status))),
                    }
                }
                StateProj::Accepted(future) => {
                    let response = ready!(future.poll(cx));
                    return Poll::Ready(response.map(|response| response.map(ResponseBody::inner)));
                }
            };
            this.state.set(next);
        }
    }
}

impl<S, ReqBody> fmt::Debug for FenceFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceFuture").finish_non_exhaustive()
    }
}
