//! The layer on plain hyper.

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet};
use tower_layer::Layer;
use tower_service::Service;

use super::{Handler, Mount, Stack};

/// A hyper server without a framework.
#[derive(Debug)]
pub enum Hyper {}

impl Stack for Hyper {
    const NAME: &'static str = "hyper";
    const GRPC: bool = false;
}

impl<L, B> Mount<Hyper> for L
where
    L: Layer<HyperHandler> + Clone + Send + Sync + 'static,
    L::Service: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    <L::Service as Service<Request<Incoming>>>::Error: Into<Box<dyn Error + Send + Sync>>,
    <L::Service as Service<Request<Incoming>>>::Future: Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    async fn serve(
        self,
        handler: Handler,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let service = self.layer(HyperHandler(handler));
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let stream = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => accepted.expect("the listener accepts").0,
            };
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // A client that goes away is part of the conversation.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            });
        }
        while let Some(ended) = connections.join_next().await {
            ended.expect("a connection does not panic");
        }
    }
}

/// The [`Handler`] as a service of hyper's own types.
#[derive(Debug, Clone)]
pub struct HyperHandler(Handler);

impl Service<Request<Incoming>> for HyperHandler {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let handled = self.0.clone().handle(request.uri().path().to_owned());
        Box::pin(async move {
            handled.await;
            Ok(Response::default())
        })
    }
}
