//! What a client of tonic hears over the limit, from servers on tonic, axum and hyper that share one layer value.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use redis_conn::{Backend, ManualClock};
use tokio::net::{TcpListener, TcpStream};
use tonic::{Code, Request, Status, service::Routes, transport::server::TcpIncoming};
use tonic_health::{
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::health_reporter,
};
use tonic_types::StatusExt as _;
use tower::Layer as _;
use tower_ratelimit_redis::{Limiter, MissingKey, Policy, RateLimitLayer, key};

const KEY: &str = "x-api-key";
const HOUR: Duration = Duration::from_secs(3_600);
/// A moment on which buckets of whole milliseconds begin.
const START: u64 = 1_000_000_000_000;

type Layer = RateLimitLayer<key::Header>;

fn over(limiter: Limiter) -> Layer {
    let policy = Policy::new("api").limit(1, HOUR);
    RateLimitLayer::new(limiter, policy.build().unwrap())
        .key(key::Header::new(KEY))
        .missing_key(MissingKey::Reject)
}

/// A layer that admits one request of each key in an hour, and what tells it the time.
fn layer() -> (Layer, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(START));
    let backend = Backend::builder()
        .clock(Arc::clone(&clock) as _)
        .memory()
        .unwrap();
    (over(Limiter::new(&backend)), clock)
}

#[derive(Clone, Copy, Debug)]
enum Stack {
    Tonic,
    Axum,
    Hyper,
}

const STACKS: [Stack; 3] = [Stack::Tonic, Stack::Axum, Stack::Hyper];

impl Stack {
    /// Serves the health service behind `layer` for as long as the test runs.
    async fn serve(self, layer: Layer) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (_, health) = health_reporter();
        match self {
            Self::Tonic => {
                let server = tonic::transport::Server::builder()
                    .accept_http1(true)
                    .layer(layer)
                    .add_service(health);
                tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
            }
            Self::Axum => {
                let router = Routes::new(health).into_axum_router().layer(layer);
                tokio::spawn(async { axum::serve(listener, router).await });
            }
            Self::Hyper => {
                let service = TowerToHyperService::new(layer.layer(Routes::new(health).prepare()));
                tokio::spawn(async move {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let service = service.clone();
                        tokio::spawn(async {
                            let server = auto::Builder::new(TokioExecutor::new());
                            // A client that goes away is part of the conversation.
                            let _ = server.serve_connection(TokioIo::new(stream), service).await;
                        });
                    }
                });
            }
        }
        addr
    }
}

/// Calls the health service on behalf of `key`.
async fn call(addr: SocketAddr, key: Option<&str>) -> Result<(), Status> {
    let endpoint = tonic::transport::Endpoint::try_from(format!("http://{addr}")).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(key) = key {
        request.metadata_mut().insert(KEY, key.parse().unwrap());
    }
    client.check(request).await.map(|_| ())
}

/// Asks in HTTP/1.
async fn get(addr: SocketAddr, key: &str) -> (StatusCode, HeaderMap, Bytes) {
    let stream = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/")
        .header("host", addr.to_string())
        .header(KEY, key)
        .body(Empty::<Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    let (mut head, body) = response.into_parts();
    head.headers.remove("date");
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, body)
}

#[tokio::test]
async fn a_client_hears_when_to_come_back_and_which_limit_it_was() {
    let (layer, clock) = layer();
    for stack in STACKS {
        let addr = stack.serve(layer.clone()).await;
        let key = format!("{stack:?}");
        call(addr, Some(&key)).await.unwrap();
        let refused = call(addr, Some(&key)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{stack:?}");
        assert_eq!(refused.message(), "request quota exceeded", "{stack:?}");

        let delay = refused.get_details_retry_info().unwrap().retry_delay;
        assert!(delay > Some(HOUR), "{stack:?}: {delay:?}");
        let failure = refused.get_details_quota_failure().unwrap();
        let [violation] = &failure.violations[..] else {
            panic!("{stack:?}: one violation: {failure:?}");
        };
        assert_eq!(violation.subject, "api-3600s", "{stack:?}");
        assert_eq!(violation.description, "limit of 1 in 3600s", "{stack:?}");
        let told = refused.metadata().get("ratelimit-policy").unwrap();
        assert_eq!(told, r#""api-3600s";q=1;w=3600"#, "{stack:?}");

        clock.advance(delay.unwrap());
        call(addr, Some(&key)).await.unwrap();
    }
}

#[tokio::test]
async fn servers_with_one_layer_value_refuse_in_the_same_words_and_share_the_limit() {
    let (layer, _) = layer();
    let (mut statuses, mut pages) = (Vec::new(), Vec::new());
    for (number, stack) in STACKS.into_iter().enumerate() {
        let addr = stack.serve(layer.clone()).await;
        let admitted = call(addr, Some("grpc")).await;
        assert_eq!(admitted.is_ok(), number == 0, "{stack:?}");
        let refused = call(addr, Some("grpc")).await.unwrap_err();
        let details = Bytes::copy_from_slice(refused.details());
        let mut fields = refused.metadata().clone().into_headers();
        fields.remove("date");
        statuses.push((
            refused.code(),
            refused.message().to_owned(),
            details,
            fields,
        ));
        get(addr, "http").await;
        pages.push(get(addr, "http").await);
    }
    for (stack, (status, page)) in STACKS.iter().zip(statuses.iter().zip(&pages)) {
        assert_eq!(*status, statuses[0], "{stack:?}");
        assert_eq!(*page, pages[0], "{stack:?}");
    }
    let (status, headers, body) = &pages[0];
    assert_eq!(*status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["content-type"], "application/problem+json");
    assert!(headers.contains_key("retry-after"));
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(problem["violated-policies"][0], "api-3600s");
}

#[tokio::test]
async fn a_call_without_a_key_is_an_invalid_one() {
    let (layer, _) = layer();
    for stack in STACKS {
        let addr = stack.serve(layer.clone()).await;
        let refused = call(addr, None).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{stack:?}");
        assert_eq!(
            refused.message(),
            "the request has no key to be limited by",
            "{stack:?}"
        );
        assert!(refused.details().is_empty(), "{stack:?}");
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_store_that_is_away_is_unavailable_and_worth_another_try() {
    use redis_conn::Config;
    use tower_ratelimit_redis::OnFailure;

    // Nobody listens where somebody did.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let backend = Backend::redis(Config::from_url(&url).unwrap()).unwrap();
    let limiter = Limiter::builder(&backend).on_failure(OnFailure::Closed);
    let addr = Stack::Tonic.serve(over(limiter.build().unwrap())).await;

    let refused = call(addr, Some("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "rate limit unavailable");
    let delay = refused.get_details_retry_info().unwrap().retry_delay;
    assert!(delay >= Some(Duration::from_secs(1)), "{delay:?}");
    assert!(refused.get_details_quota_failure().is_none());
}
