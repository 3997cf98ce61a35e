//! The response body.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use crate::{Permit, settle::Metered};

/// The body of a response of [`RateLimit`](crate::RateLimit): the one of the service behind, or the text of a refusal.
///
/// When it has ended, in whatever way, or is dropped, the units of a concurrency limit are released, and what is
/// [charged by its size](crate::RateLimitLayer::settle_by_body) is settled. Clones count as one body, which lasts as long as the last
/// of them.
#[pin_project]
#[derive(Clone, Debug)]
pub struct ResponseBody<B> {
    #[pin]
    kind: Kind<B>,
    /// Behind a pointer: most responses have none.
    until_end: Option<Arc<UntilEnd>>,
}

#[pin_project(project = KindProj)]
#[derive(Clone, Debug)]
enum Kind<B> {
    Inner(#[pin] B),
    Full(Bytes),
}

/// What lasts until the body has ended.
#[derive(Default)]
pub(crate) struct UntilEnd {
    pub(crate) permit: Option<Arc<Permit>>,
    pub(crate) metered: Option<Metered>,
}

impl<B> ResponseBody<B> {
    pub(crate) fn inner(body: B, until_end: UntilEnd) -> Self {
        let lasts = until_end.permit.is_some() || until_end.metered.is_some();
        Self {
            kind: Kind::Inner(body),
            until_end: lasts.then(|| Arc::new(until_end)),
        }
    }

    pub(crate) fn full(text: Bytes) -> Self {
        Self {
            kind: Kind::Full(text),
            until_end: None,
        }
    }
}

impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::inner(B::default(), UntilEnd::default())
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let polled = match this.kind.project() {
            KindProj::Inner(body) => body.poll_frame(cx),
            KindProj::Full(text) if text.is_empty() => Poll::Ready(None),
            KindProj::Full(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let metered = this.until_end.as_ref().and_then(|end| end.metered.as_ref());
                if let (Some(metered), Some(data)) = (metered, frame.data_ref()) {
                    metered.count(data.len());
                }
            }
            Poll::Ready(None | Some(Err(_))) => *this.until_end = None,
            Poll::Pending => {}
        }
        polled
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

impl fmt::Debug for UntilEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UntilEnd")
            .field("permit", &self.permit)
            .field("metered", &self.metered.is_some())
            .finish()
    }
}
