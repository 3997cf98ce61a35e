//! One rate limit on an axum server: 5 requests per client and 10 seconds.
//!
//! ```text
//! cargo run -p axum-quickstart
//! for i in 1 2 3 4 5 6; do curl -i http://127.0.0.1:3000/; done
//! ```
//!
//! With `SQLITE_PATH` or `REDIS_URL` set, all processes share the limit.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::{Router, routing::get};
use redis_conn::Backend;
use tokio::net::TcpListener;
use tower_ratelimit_redis::{Decision, Limiter, Policy, RateLimitLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let backend = Backend::from_env().await?;
    let policy = Policy::new("quickstart")
        .limit(5, Duration::from_secs(10))
        .build()?;
    let app = Router::new()
        .route("/", get(hello))
        .layer(RateLimitLayer::new(Limiter::new(&backend), policy));
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    println!("try http://127.0.0.1:3000");
    axum::serve(TcpListener::bind("127.0.0.1:3000").await?, app).await?;
    Ok(())
}

async fn hello(decision: Decision) -> String {
    format!("hello, {} left\n", decision.limits()[0].remaining)
}
