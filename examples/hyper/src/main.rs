//! Health endpoints on plain hyper, without a framework.
//!
//! ```text
//! cargo run -p hyper-quickstart
//! curl -i http://127.0.0.1:3000/health/ready
//! ```

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use redis_conn::{Backend, Health};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let backend = Backend::from_env().await?;
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("try http://127.0.0.1:3000/health/ready");
    serve(listener, backend).await
}

async fn serve(listener: TcpListener, backend: Backend) -> Result<(), Box<dyn Error>> {
    loop {
        let (stream, _) = listener.accept().await?;
        let backend = backend.clone();
        tokio::spawn(async move {
            let service = service_fn(async |request| answer(&backend, &request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away is no error of the server.
            let _ = connection.await;
        });
    }
}

fn answer(
    backend: &Backend,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(match request.uri().path() {
        "/health/live" => respond(200, "ok"),
        "/health" | "/health/ready" => health(&backend.health()),
        _ => respond(404, "no such route"),
    })
}

fn health(health: &Health) -> Response<Full<Bytes>> {
    respond(health.http_status(), serde_json::json!(health).to_string())
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
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn readiness_follows_the_backend_and_liveness_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let backend = Backend::memory();
        let served = backend.clone();
        tokio::spawn(async move {
            serve(listener, served)
                .await
                .map_err(|error| error.to_string())
        });
        let get = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };

        let ready = get("/health/ready").await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        assert!(ready.contains(r#""overall":"healthy""#), "{ready}");
        backend.close(Duration::from_secs(1)).await.unwrap();
        assert!(get("/health/ready").await.starts_with("HTTP/1.1 503 "));
        assert!(get("/health/live").await.starts_with("HTTP/1.1 200 "));
        assert!(get("/").await.starts_with("HTTP/1.1 404 "));
    }
}
