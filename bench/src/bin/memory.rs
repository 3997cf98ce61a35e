//! How many bytes of the server one subject takes: what `MEMORY USAGE` says of its key and value together, and how long the value is.

use std::time::Duration;

use bench::backend;
use redis::{RedisResult, aio::MultiplexedConnection};
use testkit::RedisServer;
use tower_ratelimit_redis::{
    Algorithm, Limiter, Permit, Policy, PolicyBuilder, RateLimitError, Source, WindowStart,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const LIMIT: u64 = 1_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = RedisServer::start().await;
    let backend = backend(&[server.url()]).await;
    let limiter = Limiter::builder(&backend).timeout(HOUR).build();
    let limiter = limiter.expect("a limiter");
    let mut connection = server.connection().await;
    println!("bytes of one subject: key and value, of that the value");
    for (name, calls, policy) in policies() {
        let flushed: RedisResult<()> = redis::cmd("FLUSHALL").query_async(&mut connection).await;
        flushed.expect("FLUSHALL");
        let policy = policy.build().expect("a policy");
        let _held = call(&limiter, &policy, calls).await;
        let (both, value) = measure(&server, &mut connection).await;
        println!("{name:>24}, {calls:>4} calls: {both:>6} {value:>6}");
    }
}

/// Named, how many calls are made under it, one by one, and the policy.
fn policies() -> Vec<(&'static str, u64, PolicyBuilder)> {
    let api = || Policy::new("api");
    let by = |algorithm| api().limit_by(algorithm, LIMIT, HOUR);
    let three = api()
        .limit(LIMIT, MINUTE)
        .limit(LIMIT, HOUR)
        .limit(LIMIT, 24 * HOUR);
    vec![
        ("strict window", 100, by(Algorithm::StrictWindow)),
        ("three strict windows", 100, three),
        ("sliding counter", 100, by(Algorithm::SlidingCounter)),
        ("GCRA", 100, by(Algorithm::Gcra { burst: LIMIT })),
        ("sliding log", 1, by(Algorithm::SlidingLog)),
        ("sliding log", 100, by(Algorithm::SlidingLog)),
        ("sliding log", 1_000, by(Algorithm::SlidingLog)),
        (
            "fixed window",
            100,
            by(Algorithm::FixedWindow(WindowStart::Calendar)),
        ),
        ("concurrency", 1, api().concurrency(LIMIT, HOUR)),
        ("concurrency", 100, api().concurrency(LIMIT, HOUR)),
    ]
}

/// What it returns holds permits, where the policy has some.
async fn call(limiter: &Limiter, policy: &Policy, calls: u64) -> Vec<Permit> {
    const SUBJECT: &str = "user:42";
    let mut held = Vec::new();
    for _ in 0..calls {
        let decision = match limiter.check(policy, SUBJECT, 1).await {
            Err(RateLimitError::NeedsPermit) => {
                let acquired = limiter.acquire(policy, SUBJECT, 1).await;
                let acquired = acquired.expect("a decision");
                let decision = acquired.decision().clone();
                held.extend(acquired.permit());
                decision
            }
            decided => decided.expect("a decision"),
        };
        assert!(decision.is_allowed() && decision.source() == Source::Store);
    }
    held
}

/// Of the one key that there is: what it takes with its value, and the bytes of the value.
async fn measure(server: &RedisServer, connection: &mut MultiplexedConnection) -> (u64, u64) {
    let keys = server.keys().await;
    let [key] = keys.as_slice() else {
        panic!("{keys:?}, expected one key");
    };
    let mut ask = async |command: &[&str]| -> u64 {
        let mut asked = redis::cmd(command[0]);
        asked.arg(&command[1..]).arg(key);
        asked.query_async(connection).await.expect("a number")
    };
    (ask(&["MEMORY", "USAGE"]).await, ask(&["STRLEN"]).await)
}
