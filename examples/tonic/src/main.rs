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

    use tokio::time::timeout;
    use tonic::transport::Endpoint;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;

    #[tokio::test]
    async fn whoever_watches_hears_that_the_backend_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Backend::memory();
        let served = backend.clone();
        tokio::spawn(async move { serve(listener, &served).await });

        let channel = Endpoint::try_from(format!("http://{address}")).unwrap();
        let mut client = HealthClient::new(channel.connect().await.unwrap());
        let request = HealthCheckRequest {
            service: EVERYTHING.to_owned(),
        };
        let mut statuses = client.watch(request).await.unwrap().into_inner();
        // Serving is what it says as long as nobody has reported anything, too.
        let mut until = async |wanted: ServingStatus| {
            let heard = async {
                loop {
                    let status = statuses.message().await.unwrap().unwrap().status;
                    if status == wanted as i32 {
                        return;
                    }
                }
            };
            timeout(Duration::from_secs(20), heard)
                .await
                .expect("nothing is heard");
        };
        until(ServingStatus::Serving).await;
        backend.close(Duration::from_secs(1)).await.unwrap();
        until(ServingStatus::NotServing).await;
    }
}
