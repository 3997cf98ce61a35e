//! The limiter on a Redis that stops, hangs, forgets and lies.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{convert::Infallible, future::Future, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use redis_conn::{Backend, Config, ErrorKind, Status};
use testkit::{AfterDrop, Fault, FaultProxy, Matching, Probe, RedisServer};
use tokio::{runtime::Handle, time::timeout};
use tower::{Layer as _, Service, ServiceExt as _};
use tower_ratelimit_redis::{
    Decision, Limiter, LimiterBuilder, OnFailure, Policy, RateLimitError, RateLimitLayer, Source,
    key,
};

fn audit() -> redis_conn::Audit {
    redis_conn::Audit::new("test", "to begin anew")
}

/// Ten times the timeout of a decision and 50 ms, and at least 2 s: only a hang takes so long.
const DECISION: Duration = Duration::from_secs(2);
/// Ten times the 2 s within which the store decides again.
const RECOVERY: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(5);

fn policy(max: u64) -> Policy {
    let policy = Policy::new("api").limit(max, Duration::from_secs(3_600));
    policy.build().unwrap()
}

async fn connect(url: &str) -> Backend {
    let backend = Backend::redis(Config::from_url(url).unwrap()).unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    backend
}

/// A limiter whose timeout is too long to decide a test on a busy machine.
fn patient(backend: &Backend) -> LimiterBuilder {
    Limiter::builder(backend)
        .timeout(Duration::from_secs(10))
        // Each call is to reach the store.
        .denied_capacity(0)
}

async fn soon<T>(bound: Duration, what: impl Future<Output = T>) -> T {
    timeout(bound, what).await.expect("it hangs")
}

async fn check(limiter: &Limiter, policy: &Policy, subject: &str) -> Decision {
    soon(DECISION, limiter.check(policy, subject, 1))
        .await
        .unwrap()
}

/// Asks until the store decides.
async fn recovered(limiter: &Limiter, policy: &Policy, subject: &str) -> Decision {
    let asked = async {
        loop {
            let decision = limiter.check(policy, subject, 1).await.unwrap();
            if decision.source() == Source::Store {
                return decision;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    soon(RECOVERY, asked).await
}

fn health(backend: &Backend) -> Status {
    let health = backend.health();
    let check = health
        .checks
        .iter()
        .find(|check| check.name == "rate-limit");
    check.expect("the limiter has a check").status
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn a_frozen_server_is_decided_for_by_the_failure_policy() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let policy = policy(1_000);
    let local = Limiter::new(&backend);
    let open = Limiter::builder(&backend)
        .on_failure(OnFailure::Open)
        .build()
        .unwrap();
    let closed = Limiter::builder(&backend)
        .on_failure(OnFailure::Closed)
        .build()
        .unwrap();
    assert_eq!(
        recovered(&local, &policy, "a").await.limits()[0].remaining,
        999
    );
    let tasks_before = tasks();

    server.freeze();
    let decision = check(&local, &policy, "a").await;
    assert_eq!(decision.source(), Source::Local);
    assert_eq!(decision.limits()[0].limit, 500);
    assert_eq!(
        decision.limits()[0].remaining,
        498,
        "what the store admitted counts"
    );
    assert_eq!(
        soon(DECISION, local.peek(&policy, "a"))
            .await
            .unwrap()
            .source(),
        Source::Local
    );
    let decision = check(&open, &policy, "a").await;
    assert!(decision.is_allowed() && decision.limits().is_empty());
    assert_eq!(decision.source(), Source::Open);
    let error = soon(DECISION, closed.check(&policy, "a", 1))
        .await
        .unwrap_err();
    assert!(matches!(error, RateLimitError::Store(_)), "{error:?}");
    assert!(
        soon(DECISION, local.reset(&policy, "b", &audit()))
            .await
            .is_err()
    );
    assert_eq!(health(&backend), Status::Degraded);

    server.thaw();
    recovered(&local, &policy, "a").await;
    recovered(&open, &policy, "a").await;
    let decided = async {
        while closed.check(&policy, "a", 1).await.is_err() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    soon(RECOVERY, decided).await;
    assert_eq!(health(&backend), Status::Healthy);
    let settled = async {
        while tasks() > tasks_before {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    soon(RECOVERY, settled).await;
}

#[tokio::test]
async fn a_black_hole_is_decided_for_by_the_failure_policy() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connect(&proxy.url()).await;
    let (limiter, policy) = (Limiter::new(&backend), policy(1_000));
    recovered(&limiter, &policy, "a").await;

    proxy.set(Fault::Blackhole);
    for _ in 0..5 {
        assert_eq!(check(&limiter, &policy, "a").await.source(), Source::Local);
    }
    proxy.set(Fault::Pass);
    recovered(&limiter, &policy, "a").await;
}

#[tokio::test]
async fn a_dead_server_grants_no_fresh_burst() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let (limiter, policy) = (patient(&backend).build().unwrap(), policy(10));
    for _ in 0..5 {
        let decision = limiter.check(&policy, "a", 1).await.unwrap();
        assert_eq!(decision.source(), Source::Store);
    }
    server.kill();
    let refused = limiter.check(&policy, "a", 1).await.unwrap();
    assert_eq!(
        (refused.source(), refused.is_allowed()),
        (Source::Local, false)
    );
    for left in [4, 3, 2, 1, 0] {
        let decision = limiter.check(&policy, "b", 1).await.unwrap();
        assert!(decision.is_allowed());
        assert_eq!(
            (decision.limits()[0].limit, decision.limits()[0].remaining),
            (5, left)
        );
    }
    assert!(!limiter.check(&policy, "b", 1).await.unwrap().is_allowed());
    // More than the smaller limit, but not than the limit: it is worth asking the store again.
    let refused = limiter.check(&policy, "c", 6).await.unwrap();
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(1)));

    server.restart().await;
    assert_eq!(
        recovered(&limiter, &policy, "b").await.limits()[0].remaining,
        9
    );
}

#[tokio::test]
async fn a_failed_reset_frees_nothing() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let (limiter, policy) = (patient(&backend).build().unwrap(), policy(10));
    limiter.check(&policy, "a", 5).await.unwrap();
    server.kill();
    assert!(!limiter.check(&policy, "a", 1).await.unwrap().is_allowed());
    assert!(limiter.reset(&policy, "a", &audit()).await.is_err());
    assert!(!limiter.check(&policy, "a", 1).await.unwrap().is_allowed());
}

#[tokio::test]
async fn a_reset_frees_the_fallback_too_and_a_look_ends_what_is_degraded() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let (limiter, policy) = (patient(&backend).build().unwrap(), policy(10));
    limiter.check(&policy, "a", 5).await.unwrap();
    limiter.reset(&policy, "a", &audit()).await.unwrap();
    server.kill();
    assert!(limiter.check(&policy, "a", 5).await.unwrap().is_allowed());
    assert_eq!(health(&backend), Status::Degraded);
    server.restart().await;
    let looked = async {
        while limiter.peek(&policy, "a").await.unwrap().source() != Source::Store {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    soon(RECOVERY, looked).await;
    assert_eq!(health(&backend), Status::Healthy);
}

#[tokio::test]
async fn a_lost_reply_is_never_a_second_execution() {
    for after in [AfterDrop::Stall, AfterDrop::Close] {
        let server = RedisServer::start().await;
        let proxy = FaultProxy::start(&server).await;
        let backend = connect(&proxy.url()).await;
        let policy = policy(10);
        let local = Limiter::builder(&backend)
            .timeout(Duration::from_millis(500))
            .build()
            .unwrap();
        let closed = Limiter::builder(&backend)
            .on_failure(OnFailure::Closed)
            .build()
            .unwrap();
        recovered(&local, &policy, "warm").await;
        server.reset_stats().await;

        let matching = Matching::Command("EVALSHA".to_owned());
        proxy.set(Fault::DropReply { matching, after });
        let decision = check(&local, &policy, "a").await;
        assert_eq!(
            (decision.source(), decision.is_allowed()),
            (Source::Local, true)
        );
        assert_eq!(decision.limits()[0].remaining, 4);
        proxy.wait_for(|stats| stats.dropped_replies == 1).await;
        let calls = server.command_calls().await;
        assert_eq!(calls["evalsha"].calls, 1, "{after:?}");
        assert_eq!(calls["set"].calls, 1);

        if after == AfterDrop::Close {
            backend.ready(RECOVERY).await.unwrap();
            let error = soon(DECISION, closed.check(&policy, "b", 1))
                .await
                .unwrap_err();
            let RateLimitError::Store(error) = error else {
                panic!("{error:?}");
            };
            // Nothing was sent if the connection is not yet there.
            let ambiguous = u64::from(error.is_ambiguous());
            let calls = server.command_calls().await;
            assert_eq!(calls["evalsha"].calls, 1 + ambiguous);
        }
        proxy.set(Fault::Pass);
        recovered(&local, &policy, "warm").await;
        let decision = recovered(&local, &policy, "a").await;
        assert_eq!(
            decision.limits()[0].remaining,
            8,
            "charged once by the lost call"
        );
    }
}

#[tokio::test]
async fn forgotten_scripts_are_sent_again() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let (limiter, policy) = (patient(&backend).build().unwrap(), policy(10));
    for left in [9, 8, 7] {
        let decision = limiter.check(&policy, "a", 1).await.unwrap();
        assert_eq!(
            (decision.source(), decision.limits()[0].remaining),
            (Source::Store, left)
        );
        let mut connection = server.connection().await;
        let flush = redis::cmd("SCRIPT")
            .arg("FLUSH")
            .exec_async(&mut connection)
            .await;
        flush.unwrap();
    }
    assert_eq!(server.command_calls().await["eval"].calls, 3);
}

#[tokio::test]
async fn a_value_of_another_type_is_left_alone() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let limiter = patient(&backend)
        .on_failure(OnFailure::Closed)
        .build()
        .unwrap();
    let policy = policy(10);
    limiter.check(&policy, "a", 1).await.unwrap();
    let [key] = &server.keys().await[..] else {
        panic!("one key");
    };
    let mut connection = server.connection().await;
    redis::cmd("DEL")
        .arg(key)
        .exec_async(&mut connection)
        .await
        .unwrap();
    redis::cmd("LPUSH")
        .arg(key)
        .arg("x")
        .exec_async(&mut connection)
        .await
        .unwrap();
    let error = limiter.check(&policy, "a", 1).await.unwrap_err();
    let RateLimitError::Store(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(*error.kind(), ErrorKind::Corrupt);
    let kind: String = redis::cmd("TYPE")
        .arg(key)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(kind, "list");
}

#[tokio::test]
async fn every_key_expires_and_names_nobody() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let limiter = patient(&backend).build().unwrap();
    limiter
        .check(&policy(10), "alice@example.org", 1)
        .await
        .unwrap();
    let keys = server.keys().await;
    let [key] = &keys[..] else {
        panic!("one key: {keys:?}");
    };
    assert!(
        key.starts_with("tk:r1:{") && key.ends_with("}:api"),
        "{key}"
    );
    assert!(!key.contains("alice"));
    let mut connection = server.connection().await;
    let ttl: u64 = redis::cmd("PTTL")
        .arg(key)
        .query_async(&mut connection)
        .await
        .unwrap();
    let longest = 3_600_000 * 34 / 32 + 1;
    assert!((longest - 60_000..=longest).contains(&ttl), "{ttl}");
}

fn request(key: usize) -> Request<Full<Bytes>> {
    let request = Request::builder().header("x-api-key", key.to_string());
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_request_is_one_script_call() {
    const REQUESTS: usize = 10_000;
    const SUBJECTS: usize = 100;
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let limiter = patient(&backend).coalesce(false).build().unwrap();
    // Half of the requests are refused.
    let policy = policy((REQUESTS / SUBJECTS / 2) as u64);
    let layer = RateLimitLayer::new(limiter.clone(), policy.clone());
    let (probe, handle) = Probe::ok();
    let service = layer.key(key::Header::new("x-api-key")).layer(probe);
    limiter
        .check(&policy, "the first sends the script", 1)
        .await
        .unwrap();
    server.reset_stats().await;

    let mut running = tokio::task::JoinSet::new();
    for worker in 0..50 {
        let service = service.clone();
        running.spawn(async move {
            for number in (worker..REQUESTS).step_by(50) {
                answer(&service, request(number % SUBJECTS)).await;
            }
        });
    }
    running.join_all().await;

    let calls = server.command_calls().await;
    let of = |command: &str| calls.get(command).map_or(0, |stat| stat.calls);
    assert_eq!(of("evalsha"), REQUESTS as u64);
    assert_eq!((of("time"), of("get")), (of("evalsha"), of("evalsha")));
    assert_eq!(of("set"), REQUESTS as u64 / 2, "one for each admission");
    assert_eq!(handle.calls(), REQUESTS / 2);
    for (command, stat) in &calls {
        let known = ["evalsha", "time", "get", "set", "config|resetstat", "info"];
        // The test's own connections say hello.
        let greeting = ["hello", "auth", "client|setinfo", "select"].contains(&&**command);
        assert!(
            known.contains(&&**command) || greeting,
            "{command}: {stat:?}"
        );
    }
}

async fn answer<S, B>(service: &S, request: Request<Full<Bytes>>) -> StatusCode
where
    S: Service<Request<Full<Bytes>>, Response = http::Response<B>, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn a_refusal_does_not_grow_the_log_of_writes() {
    let server = RedisServer::builder().append_only(true).start().await;
    let backend = connect(&server.url()).await;
    let (limiter, policy) = (patient(&backend).build().unwrap(), policy(1));
    let written = async || {
        let info = server.info("persistence").await;
        info["aof_current_size"].parse::<u64>().unwrap()
    };
    let before = written().await;
    assert!(limiter.check(&policy, "a", 1).await.unwrap().is_allowed());
    let after = written().await;
    assert!(after > before, "an admission is written");
    for _ in 0..1_000 {
        let decision = limiter.check(&policy, "a", 1).await.unwrap();
        assert_eq!(
            (decision.source(), decision.is_allowed()),
            (Source::Store, false)
        );
    }
    limiter.peek(&policy, "b").await.unwrap();
    assert_eq!(written().await, after);
}

#[tokio::test]
async fn the_layer_answers_by_the_failure_policy() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let layer = |on_failure| {
        let limiter = patient(&backend).on_failure(on_failure).build().unwrap();
        RateLimitLayer::new(limiter, policy(10))
    };
    server.kill();
    let (probe, handle) = Probe::ok();

    let closed = layer(OnFailure::Closed).layer(probe.clone());
    let response = closed.clone().oneshot(request(1)).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let kind = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";
    assert_eq!(
        (&problem["type"], &problem["status"]),
        (&kind.into(), &503.into())
    );

    let mut call = request(1);
    *call.method_mut() = http::Method::POST;
    call.headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let response = closed.oneshot(call).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["grpc-status"]),
        (StatusCode::OK, &"14".parse().unwrap())
    );
    assert_eq!(handle.calls(), 0);

    let open = layer(OnFailure::Open).layer(probe.clone());
    let response = open.oneshot(request(1)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        !response.headers().contains_key("ratelimit"),
        "nothing true to say"
    );

    let local = layer(OnFailure::default()).layer(probe);
    let response = local.oneshot(request(1)).await.unwrap();
    assert_eq!(
        response.headers()["ratelimit-policy"],
        "\"api-3600s\";q=5;w=3600"
    );
}

/// The store may have granted what the fallback refuses, and nobody would hold it.
#[tokio::test]
async fn what_the_fallback_refuses_is_released_in_the_store() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (here, there) = (connect(&proxy.url()).await, connect(&server.url()).await);
    let limiter = Limiter::builder(&here)
        .timeout(Duration::from_millis(200))
        .on_failure(OnFailure::Local { share: 0.1 })
        .build()
        .unwrap();
    let seen = patient(&there).build().unwrap();
    let lease = Duration::from_secs(3_600);
    let policy = Policy::new("held").concurrency(10, lease).build().unwrap();
    let left = async || seen.peek(&policy, "a").await.unwrap().limits()[0].remaining;
    // So that the script is known.
    drop(limiter.acquire(&policy, "a", 1).await.unwrap());
    let free = testkit::until(RECOVERY, "the first release", async || left().await == 10);
    free.await.unwrap();

    proxy.set(Fault::drop_reply("EVALSHA"));
    let held = limiter.acquire(&policy, "a", 1).await.unwrap();
    assert_eq!(held.decision().source(), Source::Local);
    assert!(held.decision().is_allowed());
    proxy.set(Fault::drop_reply("EVALSHA"));
    let refused = limiter.acquire(&policy, "a", 1).await.unwrap();
    assert_eq!(refused.decision().source(), Source::Local);
    assert!(!refused.decision().is_allowed());
    proxy.set(Fault::Pass);
    drop(held);
    let free = testkit::until(RECOVERY, "all to be released", async || {
        // Somebody has to find out that the store is back.
        drop(limiter.acquire(&policy, "b", 1).await);
        left().await == 10
    });
    free.await.unwrap();
}

/// A process that remembers refusals hears of resets; that ends with its handles.
#[tokio::test]
async fn nothing_is_left_of_a_limiter_that_refused() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connect(&proxy.url()).await;
    let limiter = Limiter::builder(&backend)
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let policy = policy(1);
    check(&limiter, &policy, "a").await;
    assert!(!check(&limiter, &policy, "a").await.is_allowed());
    // It listens from then on, over a connection of its own.
    let before = proxy.accepted();
    proxy
        .wait_for(|stats| stats.accepted > before || stats.live > 1)
        .await;
    drop((limiter, backend));
    soon(RECOVERY, proxy.wait_for(|stats| stats.live == 0)).await;
}

#[tokio::test]
async fn three_windows_cost_one_command() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let limiter = patient(&backend).build().unwrap();
    let seconds = Duration::from_secs;
    let policy = Policy::new("test").limit(3, seconds(60));
    let policy = policy.limit(5, seconds(600)).limit(7, seconds(3_600));
    let policy = policy.build().unwrap();
    let first = limiter.check(&policy, "the first sends the script", 1);
    first.await.unwrap();
    server.reset_stats().await;
    for allowed in [true, true, true, false] {
        let decision = limiter.check(&policy, "a", 1).await.unwrap();
        assert_eq!(decision.is_allowed(), allowed);
        assert_eq!(decision.limits().len(), 3);
    }
    let calls = server.command_calls().await;
    // The refusal is remembered only once it was told.
    assert_eq!(calls["evalsha"].calls, 4);
    let reads = (calls["get"].calls, calls["set"].calls);
    assert_eq!(reads, (4, 3), "one value holds all three");
}
