//! The response future.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Extensions, Request, Response};
use pin_project::pin_project;
use tower_service::Service;

use crate::{
    ResponseBody,
    admit::{Admitted, Step},
    body::UntilEnd,
    headers::Fields,
};

type Deciding = Pin<Box<dyn Future<Output = Step> + Send>>;

/// The response future of [`RateLimit`](crate::RateLimit).
///
/// # Cancel safety
///
/// Dropping it drops the request; the limits may have been charged. What it holds of a concurrency limit is released.
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
        admitted: Admitted,
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
                        Step::Admit { parts, admitted } => State::Admitted {
                            future: inner.call(Request::from_parts(parts, body)),
                            admitted,
                        },
                        Step::Refuse(response) => {
                            return Poll::Ready(Ok(response.map(ResponseBody::full)));
                        }
                    }
                }
                StateProj::Admitted { future, admitted } => {
                    let outcome = ready!(future.poll(cx));
                    // Taken in any case: an error ends what is held.
                    let admitted = mem::take(admitted);
                    return Poll::Ready(
                        outcome.map(|response| admitted.finish(response, *this.headers)),
                    );
                }
            };
            this.state.set(next);
        }
    }
}

impl Admitted {
    /// The response, with what those further out are told, and with what lasts until its body has ended.
    fn finish<B>(self, response: Response<B>, fields: Fields) -> Response<ResponseBody<B>> {
        let (mut head, body) = response.into_parts();
        let until_end = UntilEnd {
            metered: self.charged.and_then(|charged| charged.at_head(&head)),
            permit: self.permit,
        };
        if let Some(shadow) = self.shadow {
            attach(*shadow, &mut head.extensions);
        } else if let Some(decision) = self.decision {
            fields.write(decision.limits(), &mut head.headers);
            attach(decision, &mut head.extensions);
        }
        Response::from_parts(head, ResponseBody::inner(body, until_end))
    }
}

/// What is there already is of a layer further in, which knows the request better.
fn attach<T: Clone + Send + Sync + 'static>(what: T, extensions: &mut Extensions) {
    if extensions.get::<T>().is_none() {
        extensions.insert(what);
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
