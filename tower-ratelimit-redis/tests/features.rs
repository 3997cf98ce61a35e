//! A backend whose store is not compiled in. Run with `--no-default-features`; the other features of `redis-conn` are there all
//! the same, as they are where another crate of a program turns them on.
#![cfg(not(feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::time::Duration;

use redis_conn::{Backend, ErrorKind};
use tower_ratelimit_redis::{Limiter, Policy, RateLimitError};

#[tokio::test]
async fn limits_that_should_be_shared_are_never_those_of_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::sqlite(dir.path().join("test.db")).await.unwrap();
    let error = Limiter::builder(&backend).build().unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("\"sqlite\""), "{error}");

    // The short way defers it, and the failure policy does not hide it.
    let policy = Policy::new("api").limit(1, Duration::from_secs(1));
    let decision = Limiter::new(&backend)
        .check(&policy.build().unwrap(), "a", 1)
        .await;
    let Err(RateLimitError::Store(error)) = decision else {
        panic!("{decision:?}");
    };
    assert_eq!(*error.kind(), ErrorKind::Config);
}
