//! Two calls a minute for each user, without HTTP and without a server.
//!
//! Run with `cargo run -p tower-ratelimit-redis --example quickstart`.
//!
//! expected output:
//! > alice: admitted, 1 left
//! > alice: admitted, 0 left
//! > alice: refused
//! > bob: admitted, 1 left

use std::{error::Error, time::Duration};

use redis_conn::Backend;
use tower_ratelimit_redis::{Limiter, Policy};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // `Backend::from_env()` takes Redis or an SQLite file from the environment: then all processes share the limits.
    let limiter = Limiter::new(&Backend::memory());
    let policy = Policy::new("calls")
        .limit(2, Duration::from_secs(60))
        .build()?;
    for user in ["alice", "alice", "alice", "bob"] {
        let decision = limiter.check(&policy, user, 1).await?;
        let left = decision.limits()[0].remaining;
        if decision.is_allowed() {
            println!("{user}: admitted, {left} left");
        } else {
            println!("{user}: refused");
        }
    }
    Ok(())
}
