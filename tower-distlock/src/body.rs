//! The response body, and what a layer answers by itself.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

/// The body of a response: the one of the service behind, or the text of a refusal.
#[pin_project]
#[derive(Clone, Debug)]
pub struct ResponseBody<B> {
    #[pin]
    kind: Kind<B>,
}

#[pin_project(project = KindProj)]
#[derive(Clone, Debug)]
enum Kind<B> {
    Inner(#[pin] B),
    Full(Bytes),
}

impl<B> ResponseBody<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner(body),
        }
    }
}

/// A problem document of RFC 9457.
pub(crate) fn problem<B>(status: StatusCode) -> Response<ResponseBody<B>> {
    let title = status.canonical_reason().unwrap_or_default();
    let number = status.as_u16();
    let text = format!(r#"{{"type":"about:blank","title":"{title}","status":{number}}}"#);
    let body = ResponseBody {
        kind: Kind::Full(text.into()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().kind.project() {
            KindProj::Inner(body) => body.poll_frame(cx),
            KindProj::Full(text) if text.is_empty() => Poll::Ready(None),
            KindProj::Full(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner(body) => body.is_end_stream(),
            Kind::Full(text) => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner(body) => body.size_hint(),
            Kind::Full(text) => SizeHint::with_exact(text.len() as u64),
        }
    }
}
