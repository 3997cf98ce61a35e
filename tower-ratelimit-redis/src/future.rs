//! The response future.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project::pin_project;
use tower_service::Service;

use crate::{Decision, ResponseBody, headers::Fields, service::Step};

type Deciding = Pin<Box<dyn Future<Output = Step> + Send>>;

/// The response future of [`RateLimit`](crate::RateLimit).
///
/// # Cancel safety
///
/// Dropping it drops the request; the limits may have been charged.
#[pin_project]
pub struct ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    #[pin]
    state: State<S::Future, S, ReqBody>,
    headers: Fields,
}

#[pin_project(project = StateProj)]
enum State<F, S, ReqBody> {
    Deciding {
        step: Deciding,
        /// The instance that was ready and the body, until the request is admitted.
        held: Option<(S, ReqBody)>,
    },
    Admitted {
        #[pin]
        future: F,
        decision: Option<Decision>,
    },
}

impl<S, ReqBody> ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    pub(crate) fn new(step: Deciding, inner: S, body: ReqBody, headers: Fields) -> Self {
        let held = Some((inner, body));
        Self {
            state: State::Deciding { step, held },
            headers,
        }
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Deciding { step, held } => {
                    let step = ready!(step.as_mut().poll(cx));
                    // Polled on after the refusal, it must not reach here again: the step itself panics then.
                    let Some((mut inner, body)) = held.take() else {
                        unreachable!("decided twice");
                    };
                    match step {
                        Step::Admit { parts, decision } => State::Admitted {
                            future: inner.call(Request::from_parts(parts, body)),
                            decision,
                        },
                        Step::Refuse(response) => {
                            return Poll::Ready(Ok(response.map(ResponseBody::full)));
                        }
                    }
                }
                StateProj::Admitted { future, decision } => {
                    let mut response = ready!(future.poll(cx))?.map(ResponseBody::inner);
                    if let Some(decision) = mem::take(decision) {
                        this.headers
                            .write(decision.limits(), response.headers_mut());
                        attach(decision, &mut response);
                    }
                    return Poll::Ready(Ok(response));
                }
            };
            this.state.set(next);
        }
    }
}

/// A decision that is there already is of a layer further in, which knows the request better.
fn attach<B>(decision: Decision, response: &mut Response<B>) {
    if response.extensions().get::<Decision>().is_none() {
        response.extensions_mut().insert(decision);
    }
}

impl<S, ReqBody> fmt::Debug for ResponseFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
