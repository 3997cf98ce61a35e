//! The layer on a tonic server.

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::net::TcpListener;
use tonic::{body::Body, server::NamedService, service::Routes, transport::server::TcpIncoming};
use tower_layer::Layer;
use tower_service::Service;

use super::{Handler, Mount, Stack, client::EMPTY_MESSAGE};

/// The service's name, which is the first part of every path.
pub(super) const SERVICE: &str = "testkit.Stack";

/// A tonic server with one unary service.
#[derive(Debug)]
pub enum Tonic {}

impl Stack for Tonic {
    const NAME: &'static str = "tonic";
    const GRPC: bool = true;
}

impl<L, B> Mount<Tonic> for L
where
    L: Layer<Routes> + Clone + Send + Sync + 'static,
    L::Service: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    <L::Service as Service<Request<Body>>>::Error: Into<Box<dyn Error + Send + Sync>> + Send,
    <L::Service as Service<Request<Body>>>::Future: Send,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    async fn serve(
        self,
        handler: Handler,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let served = tonic::transport::Server::builder()
            .layer(self)
            .add_service(TonicHandler(handler))
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop)
            .await;
        served.expect("tonic serves until it is stopped");
    }
}

/// The [`Handler`] as a unary service, written by hand: every answer is one empty message.
#[derive(Debug, Clone)]
struct TonicHandler(Handler);

impl NamedService for TonicHandler {
    const NAME: &'static str = SERVICE;
}

impl Service<Request<Body>> for TonicHandler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let handled = self.0.clone().handle(request.uri().path().to_owned());
        Box::pin(async move {
            handled.await;
            Ok(ok())
        })
    }
}

fn ok() -> Response<Body> {
    let status = (
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    );
    let trailers = HeaderMap::from_iter([status]);
    let body = Full::new(Bytes::from_static(EMPTY_MESSAGE))
        .with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    let content_type = HeaderValue::from_static("application/grpc");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, content_type);
    response
}
