//! What the limiter's scripts cost the server, by its own count: against a script that does nothing and a minimal GCRA.

use std::{sync::Arc, time::Duration};

use bench::{backend, bare, closed_loop, runtime};
use redis_conn::Backend;
use testkit::RedisServer;
use tower_ratelimit_redis::{Algorithm, Limiter, OnFailure, Policy, PolicyBuilder};

const CALLS: u64 = 100_000;
const TASKS: u64 = 64;
const LIMIT: u64 = 1_000_000;
const MINUTE: Duration = Duration::from_secs(60);

const NOOP: &str = "return 1";
const GCRA: &str = include_str!("../minimal_gcra.lua");

fn main() {
    let runtime = runtime();
    for subjects in [10_000, 1] {
        println!("{subjects} subjects, microseconds of the server for each call");
        runtime.block_on(measure(subjects));
    }
}

async fn measure(subjects: u64) {
    let server = RedisServer::builder().allow("+script|load").start().await;
    let backend = backend(&[server.url()]).await;
    for (name, text) in [("script `return 1`", NOOP), ("minimal GCRA", GCRA)] {
        let connection = bare(&server.url()).await;
        let script = Arc::new(redis::Script::new(text));
        server.reset_stats().await;
        closed_loop(TASKS, CALLS, move |n| {
            let (mut connection, script) = (connection.clone(), Arc::clone(&script));
            async move {
                let mut call = script.key(format!("tk:bench:{{{}}}", n % subjects));
                call.arg(1).arg(60_000_000);
                let admitted: u32 = call.invoke_async(&mut connection).await.expect("EVALSHA");
                assert_eq!(admitted, 1);
            }
        })
        .await;
        report(name, &server, CALLS).await;
    }
    for (name, policy) in policies() {
        for coalesce in [false, true] {
            check(&server, &backend, name, &policy, subjects, coalesce).await;
        }
    }
}

fn policies() -> Vec<(&'static str, Policy)> {
    let hours = |n: u32| n * 60 * MINUTE;
    let by = |name, algorithm| Policy::new(name).limit_by(algorithm, LIMIT, MINUTE);
    let build = |policy: PolicyBuilder| policy.build().expect("a policy");
    let three = Policy::new("three")
        .limit(LIMIT, MINUTE)
        .limit(LIMIT, hours(1))
        .limit(LIMIT, hours(24));
    vec![
        (
            "strict window",
            build(by("strict", Algorithm::StrictWindow)),
        ),
        ("three strict windows", build(three)),
        (
            "sliding counter",
            build(by("sliding", Algorithm::SlidingCounter)),
        ),
        ("GCRA", build(by("gcra", Algorithm::Gcra { burst: LIMIT }))),
    ]
}

async fn check(
    server: &RedisServer,
    backend: &Backend,
    name: &str,
    policy: &Policy,
    subjects: u64,
    coalesce: bool,
) {
    let limiter = Limiter::builder(backend)
        .on_failure(OnFailure::Closed)
        .timeout(Duration::from_secs(5))
        .coalesce(coalesce)
        .build()
        .expect("a limiter");
    server.reset_stats().await;
    let policy = policy.clone();
    closed_loop(TASKS, CALLS, move |n| {
        let (limiter, policy) = (limiter.clone(), policy.clone());
        async move {
            let subject = format!("user:{}", n % subjects);
            let decision = limiter
                .check(&policy, subject, 1)
                .await
                .expect("a decision");
            assert!(decision.is_allowed());
        }
    })
    .await;
    let how = if coalesce { "gathered" } else { "one by one" };
    report(&format!("{name}, {how}"), server, CALLS).await;
}

async fn report(name: &str, server: &RedisServer, checks: u64) {
    let stats = server.command_calls().await;
    let Some(scripts) = stats.get("evalsha") else {
        return println!("{name:>40}: no script");
    };
    let per_check = scripts.usec as f64 / checks as f64;
    let commands = scripts.calls as f64 / checks as f64;
    println!("{name:>40}: {per_check:6.2} us, {commands:.3} commands");
}
