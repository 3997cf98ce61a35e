//! `grpc.health.v1` on tonic: it serves for as long as the backend is not unhealthy.
//!
//! ```text
//! cargo run -p tonic-quickstart
//! grpcurl -plaintext 127.0.0.1:3000 grpc.health.v1.Health/Watch
//! ```

use std::error::Error;

use redis_conn::{Backend, Health, HealthWatch};
use tokio::net::TcpListener;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};

/// The server as a whole.
const EVERYTHING: &str = "";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = Backend::from_env().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try grpcurl -plaintext 127.0.0.1:3000 grpc.health.v1.Health/Watch");
    serve(listener, &backend).await?;
    Ok(())
}

async fn serve(listener: TcpListener, backend: &Backend) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = health_reporter();
    tokio::spawn(report(reporter, backend.watch_health()));
    let server = Server::builder().add_service(health);
    server
        .serve_with_incoming(TcpIncoming::from(listener))
        .await
}

/// Tells every change, and the beginning.
async fn report(reporter: HealthReporter, mut watch: HealthWatch) {
    let mut health = watch.get();
    while let Some(now) = health {
        reporter.set_service_status(EVERYTHING, status(&now)).await;
        health = watch.changed().await;
    }
}

fn status(health: &Health) -> ServingStatus {
    match health.http_status() {
        200 => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redis_conn::{Config, Status};
    use testkit::RedisServer;
    use tokio::time::timeout;
    use tonic::{Streaming, transport::Endpoint};
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

    use super::*;

    /// Only a hang takes this long.
    const BOUND: Duration = Duration::from_secs(60);

    /// What somebody hears who watches a server on this backend.
    struct Watching(Streaming<HealthCheckResponse>);

    impl Watching {
        async fn begin(backend: &Backend) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let served = backend.clone();
            tokio::spawn(async move { serve(listener, &served).await });

            let channel = Endpoint::try_from(format!("http://{address}")).unwrap();
            let mut client = HealthClient::new(channel.connect().await.unwrap());
            let request = HealthCheckRequest {
                service: EVERYTHING.to_owned(),
            };
            Self(client.watch(request).await.unwrap().into_inner())
        }

        /// Serving is what it says as long as nobody has reported anything, too.
        async fn until(&mut self, wanted: ServingStatus) {
            let heard = async {
                loop {
                    let status = self.0.message().await.unwrap().unwrap().status;
                    if status == wanted as i32 {
                        return;
                    }
                }
            };
            timeout(BOUND, heard).await.expect("nothing is heard");
        }
    }

    #[tokio::test]
    async fn whoever_watches_hears_that_the_backend_has_ended() {
        let backend = Backend::memory();
        let mut statuses = Watching::begin(&backend).await;
        statuses.until(ServingStatus::Serving).await;
        backend.close(Duration::from_secs(1)).await.unwrap();
        statuses.until(ServingStatus::NotServing).await;
    }

    #[tokio::test]
    async fn whoever_watches_hears_of_a_frozen_redis_that_is_required() {
        let server = RedisServer::start().await;
        let config = Config::from_url(&server.url()).unwrap().into_builder();
        let backend = Backend::redis(config.required(true).build().unwrap()).unwrap();
        backend.ready(BOUND).await.unwrap();
        let mut statuses = Watching::begin(&backend).await;
        statuses.until(ServingStatus::Serving).await;
        server.freeze();
        statuses.until(ServingStatus::NotServing).await;
        server.thaw();
        statuses.until(ServingStatus::Serving).await;
    }

    #[tokio::test]
    async fn a_frozen_redis_that_is_not_required_is_degraded_and_served_without() {
        let server = RedisServer::start().await;
        let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
        backend.ready(BOUND).await.unwrap();
        let mut changes = backend.watch_health();
        let mut statuses = Watching::begin(&backend).await;
        statuses.until(ServingStatus::Serving).await;
        server.freeze();
        let changed = timeout(BOUND, changes.changed()).await;
        let health = changed.expect("nothing has changed").unwrap();
        assert_eq!(health.overall, Status::Degraded);
        assert_eq!(status(&health), ServingStatus::Serving);
        let heard = timeout(BOUND, statuses.0.message()).await;
        let heard = heard.expect("nothing is heard").unwrap().unwrap();
        assert_eq!(heard.status, ServingStatus::Serving as i32);
    }
}
