//! One layer value on an axum router, on plain hyper and on tonic.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::time::Duration;

use http::StatusCode;
use redis_conn::Backend;
use testkit::stacks::{self, Expect};
use tower_ratelimit_redis::{Limiter, Policy, RateLimitLayer, key};

#[tokio::test]
async fn the_layer_fits_on_every_stack() {
    let policy = Policy::new("api").limit(3, Duration::from_secs(3_600));
    let layer = RateLimitLayer::new(Limiter::new(&Backend::memory()), policy.build().unwrap())
        .key(key::Header::new(stacks::SUBJECT));
    let expect = Expect {
        admit: 3,
        refused_http: StatusCode::TOO_MANY_REQUESTS,
        // RESOURCE_EXHAUSTED
        refused_grpc: 8,
    };
    stacks::run(layer, expect).await;
}
