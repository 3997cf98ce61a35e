//! A rate limit and health endpoints on plain hyper, without a framework: 5 requests per client and 10 seconds.
//!
//! ```text
//! cargo run -p hyper-quickstart
//! curl -i http://127.0.0.1:3000/health/ready
//! for i in 1 2 3 4 5 6; do curl -i http://127.0.0.1:3000/; done
//! ```

use std::convert::Infallible;
use std::error::Error;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use redis_conn::{Backend, Health};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_ratelimit_redis::{Limiter, Policy, PolicyError, RateLimitLayer, key::PeerAddr};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = Backend::from_env().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try http://127.0.0.1:3000/ and http://127.0.0.1:3000/health/ready");
    serve(listener, backend).await
}

async fn serve(listener: TcpListener, backend: Backend) -> Result<(), Box<dyn Error>> {
    let limit = limit(&backend)?;
    let service = ServiceBuilder::new()
        .layer(limit)
        .service_fn(move |request: Request<Incoming>| ready(answer(&backend, &request)));
    loop {
        let (stream, peer) = listener.accept().await?;
        // The limiter does not know hyper, so it is told whom a request is from.
        let service = ServiceBuilder::new()
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                request
            })
            .service(service.clone());
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away is no error of the server.
            let _ = connection.await;
        });
    }
}

/// Whoever asks for the health of the server is never refused.
fn limit(backend: &Backend) -> Result<RateLimitLayer, PolicyError> {
    let policy = Policy::new("quickstart")
        .limit(5, Duration::from_secs(10))
        .build()?;
    let limiter = Limiter::new(backend);
    Ok(RateLimitLayer::policy_by(
        limiter,
        move |request: &mut Parts| {
            let health = request.uri.path().starts_with("/health");
            (!health).then(|| policy.clone())
        },
    ))
}

fn answer(
    backend: &Backend,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match request.uri().path() {
        "/" => respond(200, "hello\n"),
        "/health/live" => respond(200, "ok"),
        "/health" | "/health/ready" => health(&backend.health()),
        _ => respond(404, "no such route"),
    })
}

fn health(health: &Health) -> Response<Full<Bytes>> {
    let body = serde_json::json!(health).to_string();
    let mut response = respond(health.http_status(), body);
    // Whoever asks wants to know how it is now.
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}

fn respond(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    if let Ok(status) = status.try_into() {
        *response.status_mut() = status;
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use redis_conn::{Config, ManualClock};
    use testkit::RedisServer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// Only a hang takes this long.
    const BOUND: Duration = Duration::from_secs(60);

    async fn started(backend: &Backend) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = backend.clone();
        tokio::spawn(async move {
            serve(listener, backend)
                .await
                .map_err(|error| error.to_string())
        });
        address
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_follows_the_backend_and_liveness_does_not() {
        let backend = Backend::memory();
        let address = started(&backend).await;
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        assert!(ready.contains("cache-control: no-store\r\n"), "{ready}");
        assert!(ready.contains(r#""overall":"healthy""#), "{ready}");
        backend.close(Duration::from_secs(1)).await.unwrap();
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
        assert!(ready.contains("cache-control: no-store\r\n"), "{ready}");
        let live = get(address, "/health/live").await;
        assert!(live.starts_with("HTTP/1.1 200 "), "{live}");
        let nowhere = get(address, "/nowhere").await;
        assert!(nowhere.starts_with("HTTP/1.1 404 "), "{nowhere}");
    }

    #[tokio::test]
    async fn a_client_is_limited_and_still_told_how_the_server_is() {
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        let backend = Backend::builder().clock(clock).memory().unwrap();
        let address = started(&backend).await;
        for _ in 0..5 {
            let hello = get(address, "/").await;
            assert!(hello.starts_with("HTTP/1.1 200 "), "{hello}");
        }
        let refused = get(address, "/").await;
        assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
        assert!(refused.contains("retry-after: "), "{refused}");
        let ready = get(address, "/health/ready").await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        assert!(!ready.contains("ratelimit"), "{ready}");
    }

    async fn until_ready_is(address: SocketAddr, status: u16, overall: &str) {
        let (status, overall) = (
            format!("HTTP/1.1 {status} "),
            format!(r#""overall":"{overall}""#),
        );
        let mut last = String::new();
        let asked = async {
            while !(last.starts_with(&status) && last.contains(&overall)) {
                sleep(Duration::from_millis(20)).await;
                last = get(address, "/health/ready").await;
            }
        };
        let asked = timeout(BOUND, asked).await;
        asked.unwrap_or_else(|_| panic!("it stays {last}, expected {status}and {overall}"));
    }

    #[tokio::test]
    async fn a_frozen_redis_is_not_ready_only_where_it_is_required() {
        let server = RedisServer::start().await;
        let config = Config::from_url(&server.url()).unwrap();
        let required = config.clone().into_builder().required(true).build();
        let required = Backend::redis(required.unwrap()).unwrap();
        let required = started(&required).await;
        let optional = started(&Backend::redis(config).unwrap()).await;
        for address in [required, optional] {
            until_ready_is(address, 200, "healthy").await;
        }

        server.freeze();
        until_ready_is(required, 503, "unhealthy").await;
        until_ready_is(optional, 200, "degraded").await;
        for address in [required, optional] {
            let live = get(address, "/health/live").await;
            assert!(live.starts_with("HTTP/1.1 200 "), "{live}");
        }
        server.thaw();
        for address in [required, optional] {
            until_ready_is(address, 200, "healthy").await;
        }
    }
}
