//! The layer on an axum `Router`.

use std::{convert::Infallible, future::Future, net::SocketAddr};

use axum::{
    Router,
    extract::Request,
    response::IntoResponse,
    routing::{Route, post},
};
use tokio::net::TcpListener;
use tower_layer::Layer;
use tower_service::Service;

use super::{Handler, Mount, Stack};

/// An axum `Router`, served with the client's address as `ConnectInfo<SocketAddr>`.
#[derive(Debug)]
pub enum Axum {}

impl Stack for Axum {
    const NAME: &'static str = "axum";
    const GRPC: bool = false;
}

impl<L> Mount<Axum> for L
where
    L: Layer<Route> + Clone + Send + Sync + 'static,
    L::Service: Service<Request, Error: Into<Infallible>> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request>>::Response: IntoResponse + 'static,
    <L::Service as Service<Request>>::Error: 'static,
    <L::Service as Service<Request>>::Future: Send + 'static,
{
    async fn serve(
        self,
        handler: Handler,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let answer = |request: Request| handler.handle(request.uri().path().to_owned());
        let router = Router::new()
            .route("/{service}/{method}", post(answer))
            .layer(self);
        let router = router.into_make_service_with_connect_info::<SocketAddr>();
        let served = axum::serve(listener, router)
            .with_graceful_shutdown(stop)
            .await;
        served.expect("axum serves until it is stopped");
    }
}
