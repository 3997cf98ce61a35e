//! One layer value on an axum router, on plain hyper and on tonic.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::time::Duration;

use http::{StatusCode, request::Parts, response};
use redis_conn::Backend;
use testkit::stacks::{self, Expect};
use tower_ratelimit_redis::{Callers, Limiter, Policy, RateLimitLayer, key};

const HOUR: Duration = Duration::from_secs(3_600);

const EXPECT: Expect = Expect {
    admit: 3,
    refused_http: StatusCode::TOO_MANY_REQUESTS,
    // RESOURCE_EXHAUSTED
    refused_grpc: 8,
};

fn limiter() -> Limiter {
    Limiter::new(&Backend::memory())
}

#[tokio::test]
async fn the_layer_fits_on_every_stack() {
    let policy = Policy::new("api").limit(3, HOUR).build().unwrap();
    let layer = RateLimitLayer::new(limiter(), policy).key(key::Header::new(stacks::SUBJECT));
    stacks::run(layer, EXPECT).await;
}

#[tokio::test]
async fn so_it_does_with_every_option() {
    let policy = Policy::new("api").limit(3 * 9, HOUR).build().unwrap();
    let layer = RateLimitLayer::policy_by(limiter(), move |_: &mut Parts| Some(policy.clone()))
        .key(key::Header::new(stacks::SUBJECT))
        .cost(|_: &Parts| 10)
        .settle(|response: &response::Parts| (response.status == StatusCode::OK).then_some(9))
        .settle_by_body(1_024)
        .allow(Callers::new().subjects(["nobody"]))
        .deny(Callers::new().subjects(["nobody"]));
    // Settling is not waited for, so the last is refused whether 18 or 19 are counted.
    stacks::run(layer, Expect { admit: 2, ..EXPECT }).await;
}

#[tokio::test]
async fn so_it_does_where_requests_hold_permits() {
    let policy = Policy::new("api").limit(3, HOUR).concurrency(10, HOUR);
    let layer = RateLimitLayer::new(limiter(), policy.build().unwrap())
        .key(key::Header::new(stacks::SUBJECT));
    stacks::run(layer, EXPECT).await;
}
