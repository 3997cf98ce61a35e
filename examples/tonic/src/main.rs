//! `grpc.health.v1` on tonic: it serves for as long as the backend is not unhealthy, and each peer 20 calls a second.
//!
//! ```text
//! cargo run -p tonic-quickstart
//! grpcurl -plaintext 127.0.0.1:3000 grpc.health.v1.Health/Watch
//! ```

use std::{error::Error, time::Duration};

use redis_conn::{Backend, Health, HealthWatch};
use tokio::net::TcpListener;
use tonic::{
    Request, Status,
    service::InterceptorLayer,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    server::{HealthReporter, health_reporter},
};
use tower_ratelimit_redis::{Limiter, Policy, PolicyError, RateLimitLayer, key::PeerAddr};

type Failure = Box<dyn Error + Send + Sync>;

/// The server as a whole.
const EVERYTHING: &str = "";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let backend = Backend::from_env().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try grpcurl -plaintext 127.0.0.1:3000 grpc.health.v1.Health/Watch");
    serve(listener, &backend).await
}

async fn serve(listener: TcpListener, backend: &Backend) -> Result<(), Failure> {
    let (reporter, health) = health_reporter();
    tokio::spawn(report(reporter, backend.watch_health()));
    let limit = RateLimitLayer::new(Limiter::new(backend), policy()?);
    let server = Server::builder()
        .layer(InterceptorLayer::new(tell_peer))
        .layer(limit)
        .add_service(health);
    let served = server.serve_with_incoming(TcpIncoming::from(listener));
    Ok(served.await?)
}

fn policy() -> Result<Policy, PolicyError> {
    let policy = Policy::new("calls").limit(20, Duration::from_secs(1));
    policy.build()
}

/// The limiter does not know tonic, so it is told whom a call is from.
fn tell_peer(mut call: Request<()>) -> Result<Request<()>, Status> {
    if let Some(peer) = call.remote_addr() {
        call.extensions_mut().insert(PeerAddr(peer));
    }
    Ok(call)
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
    use std::sync::Arc;

    use redis_conn::{Config, ManualClock, Status};
    use testkit::RedisServer;
    use tokio::time::timeout;
    use tonic::{
        Code, Streaming,
        transport::{Channel, Endpoint},
    };
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
    use tonic_types::StatusExt as _;

    use super::*;

    /// Only a hang takes this long.
    const BOUND: Duration = Duration::from_secs(60);

    /// A client of a server on this backend, and what it asks.
    async fn client(backend: &Backend) -> (HealthClient<Channel>, HealthCheckRequest) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = backend.clone();
        tokio::spawn(async move { serve(listener, &served).await });

        let channel = Endpoint::try_from(format!("http://{address}")).unwrap();
        let request = HealthCheckRequest {
            service: EVERYTHING.to_owned(),
        };
        (HealthClient::new(channel.connect().await.unwrap()), request)
    }

    /// What somebody hears who watches a server on this backend.
    struct Watching(Streaming<HealthCheckResponse>);

    impl Watching {
        async fn begin(backend: &Backend) -> Self {
            let (mut client, request) = client(backend).await;
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

    #[tokio::test]
    async fn a_peer_that_calls_too_often_hears_when_to_come_back() {
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        let backend = Backend::builder().clock(Arc::clone(&clock) as _);
        let backend = backend.memory().unwrap();
        let (mut client, request) = client(&backend).await;
        for _ in 0..20 {
            client.check(request.clone()).await.unwrap();
        }
        let refused = client.check(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let (limiter, policy) = (Limiter::new(&backend), policy().unwrap());
        let own = limiter.peek(&policy, "ip:127.0.0.1").await.unwrap();
        assert!(!own.is_allowed(), "it is a limit of the peer's own");
        let wait = refused.get_details_retry_info().unwrap().retry_delay;
        clock.advance(wait.unwrap());
        client.check(request).await.unwrap();
    }
}
