//! Every family of the table is there, counts what it says, and there is no other.

#![cfg(all(feature = "redis", feature = "metrics"))]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use redis_conn::{Audit, Backend, ManualClock};
use testkit::RedisServer;
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use tower_ratelimit_redis::{Limiter, MissingKey, OnFailure, Policy, RateLimitLayer, Source, key};

/// Longer than anything that works takes, so that it decides no test.
const LONG: Duration = Duration::from_secs(20);

const TABLE: &str = include_str!("../src/metrics/metrics.md");

/// It would end its label, and its line.
const HOSTILE: &str = r#"evil"} 1 towerkeep_ratelimit_owned{policy="evil"#;

/// What was counted so far.
struct Counted(PrometheusHandle);

impl Counted {
    fn value(&self, line: &str) -> f64 {
        let page = self.0.render();
        let line = format!("towerkeep_ratelimit_{line} ");
        let found = page.lines().find_map(|found| found.strip_prefix(&line));
        let value = found.unwrap_or_else(|| panic!("no {line} in {page}"));
        value.parse().unwrap()
    }

    /// How often this outcome was counted for the policy.
    fn outcome(&self, family: &str, policy: &str, outcome: &str) -> f64 {
        self.value(&format!(
            "{family}{{policy=\"{policy}\",outcome=\"{outcome}\"}}"
        ))
    }

    fn of(&self, family: &str, policy: &str) -> f64 {
        self.value(&format!("{family}{{policy=\"{policy}\"}}"))
    }

    fn took(&self, store: &str, source: &str) -> f64 {
        let family = "decision_duration_seconds_count";
        self.value(&format!(
            "{family}{{store=\"{store}\",source=\"{source}\"}}"
        ))
    }

    /// Those of the connections are there too.
    fn families(&self) -> BTreeSet<String> {
        let page = self.0.render();
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
            .filter(|family| !family.contains("redis_conn"))
            .collect()
    }
}

fn policy(name: &str, limit: u64) -> Policy {
    let policy = Policy::new(name).limit(limit, Duration::from_secs(600));
    policy.build().unwrap()
}

async fn answer(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::default()))
}

fn with(key: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().header("x-api-key", key);
    request.body(Full::default()).unwrap()
}

async fn requests(counted: &Counted, backend: &Backend) {
    let layer = |policy, missing| {
        RateLimitLayer::new(Limiter::new(backend), policy)
            .key(key::Header::new("x-api-key"))
            .missing_key(missing)
    };
    let service = ServiceBuilder::new()
        .layer(layer(policy("web", 1), MissingKey::Skip))
        .layer(layer(policy("strict", 9), MissingKey::Reject))
        .service(service_fn(answer));
    for policy in ["web", "strict"] {
        for outcome in ["allowed", "denied", "shadowed", "skipped", "failed"] {
            let nothing = counted.outcome("requests_total", policy, outcome);
            assert_eq!(nothing, 0.0, "{policy} {outcome}");
        }
    }
    for (request, status) in [
        (with(HOSTILE), StatusCode::OK),
        (with(HOSTILE), StatusCode::TOO_MANY_REQUESTS),
        (Request::default(), StatusCode::BAD_REQUEST),
    ] {
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
    }
    for (policy, outcome) in [
        ("web", "allowed"),
        ("web", "denied"),
        ("web", "skipped"),
        ("strict", "allowed"),
        ("strict", "failed"),
    ] {
        let count = counted.outcome("requests_total", policy, outcome);
        assert_eq!(count, 1.0, "{policy} {outcome}");
    }
    assert_eq!(counted.outcome("decisions_total", "web", "denied"), 1.0);
    assert_eq!(counted.took("memory", "store"), 3.0);
}

async fn calls(counted: &Counted, backend: &Backend) {
    let limiter = Limiter::new(backend);
    let policy = policy("calls", 10);
    for (cost, near) in [(7, 0.0), (1, 1.0), (1, 2.0), (2, 2.0)] {
        let _ = limiter.check(&policy, HOSTILE, cost).await.unwrap();
        assert_eq!(counted.of("near_limit_total", "calls"), near);
    }
    let _ = limiter.peek(&policy, HOSTILE).await.unwrap();
    // What could never be admitted is no matter of the limits.
    let _ = limiter.check(&policy, HOSTILE, 11).await.unwrap_err();
    assert_eq!(counted.outcome("decisions_total", "calls", "allowed"), 3.0);
    assert_eq!(counted.outcome("decisions_total", "calls", "denied"), 1.0);
    assert_eq!(
        counted.outcome("fallback_decisions_total", "calls", "allowed"),
        0.0
    );
    for unused in [
        "cached_denials_total",
        "blocked_denials_total",
        "coalesced_checks_total",
    ] {
        assert_eq!(counted.of(unused, "calls"), 0.0, "{unused}");
    }
}

/// How often the store failed the policy, whatever the kind of the error.
fn errors(counted: &Counted, policy: &str) -> f64 {
    let page = counted.0.render();
    let family = format!("towerkeep_ratelimit_errors_total{{policy=\"{policy}\"");
    let lines = page.lines().filter(|line| line.starts_with(&family));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

async fn an_outage(counted: &Counted) {
    let server = RedisServer::start().await;
    let config = redis_conn::Config::from_url(&server.url()).unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let limiter = |on_failure| {
        let builder = Limiter::builder(&backend).timeout(LONG);
        builder.on_failure(on_failure).build().unwrap()
    };
    let local = limiter(OnFailure::Local { share: 0.5 });
    let open = limiter(OnFailure::Open);
    let closed = limiter(OnFailure::Closed);
    let policies = ["local", "open", "closed"].map(|name| policy(name, 2));
    let [of_local, of_open, of_closed] = &policies;

    let decision = local.check(of_local, "other", 1).await.unwrap();
    assert_eq!(decision.source(), Source::Store);
    assert_eq!(counted.took("redis-single", "store"), 1.0);
    assert_eq!(errors(counted, "local"), 0.0);

    server.kill();
    for allowed in [true, false] {
        let decision = local.check(of_local, HOSTILE, 1).await.unwrap();
        assert_eq!(decision.is_allowed(), allowed);
    }
    let _ = open.check(of_open, HOSTILE, 1).await.unwrap();
    let _ = closed.check(of_closed, HOSTILE, 1).await.unwrap_err();
    for (policy, outcome, decided) in [
        ("local", "allowed", 2.0),
        ("local", "denied", 1.0),
        ("open", "allowed", 1.0),
    ] {
        let count = counted.outcome("decisions_total", policy, outcome);
        assert_eq!(count, decided, "{policy} {outcome}");
    }
    for (policy, outcome) in [
        ("local", "allowed"),
        ("local", "denied"),
        ("open", "allowed"),
    ] {
        let count = counted.outcome("fallback_decisions_total", policy, outcome);
        assert_eq!(count, 1.0, "{policy} {outcome}");
    }
    assert_eq!(counted.took("redis-single", "local"), 2.0);
    assert_eq!(counted.took("redis-single", "open"), 1.0);
    for policy in ["open", "closed"] {
        assert_eq!(errors(counted, policy), 1.0, "{policy}");
    }
    // Once the server is known to be away, the second call did not ask it.
    assert!((1.0..=2.0).contains(&errors(counted, "local")));

    let _ = closed.peek(of_closed, HOSTILE).await.unwrap_err();
    let audit = Audit::new("ops:alice", "ticket 4711");
    let _ = closed.reset(of_closed, HOSTILE, &audit).await.unwrap_err();
    assert_eq!(errors(counted, "closed"), 2.0);
}

/// What happens only where a layer or a store is told so.
async fn the_rest(counted: &Counted, backend: &Backend) {
    let limiter = Limiter::new(backend);
    let routed = RateLimitLayer::new(limiter.clone(), policy("routed", 1))
        .key(key::Header::new("x-api-key"))
        .shadow(true)
        .route_label(|request| Some(request.uri.path().to_owned()));
    let service = ServiceBuilder::new()
        .layer(routed)
        .service(service_fn(answer));
    for outcome in ["allowed", "shadowed"] {
        let response = service.clone().oneshot(with(HOSTILE)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let count = counted.value(&format!(
            r#"requests_total{{policy="routed",route="/",outcome="{outcome}"}}"#
        ));
        assert_eq!(count, 1.0, "{outcome}");
    }

    let of_blocked = policy("blocked", 5);
    let audit = Audit::new("ops:alice", "ticket 4711");
    let hour = Duration::from_secs(3_600);
    limiter
        .block(&of_blocked, HOSTILE, hour, &audit)
        .await
        .unwrap();
    let refused = limiter.check(&of_blocked, HOSTILE, 1).await.unwrap();
    assert!(refused.is_blocked());
    assert_eq!(counted.of("blocked_denials_total", "blocked"), 1.0);
}

/// What a real server's limiter does without asking it, and by asking once for many.
async fn asked_seldom(counted: &Counted) {
    let server = RedisServer::start().await;
    let config = redis_conn::Config::from_url(&server.url()).unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let limiter = Limiter::builder(&backend).timeout(LONG).build().unwrap();

    let of_cached = policy("cached", 1);
    for source in [Source::Store, Source::Store, Source::Cached] {
        let decision = limiter.check(&of_cached, HOSTILE, 1).await.unwrap();
        assert_eq!(decision.source(), source);
    }
    assert_eq!(counted.of("cached_denials_total", "cached"), 1.0);

    let of_many = policy("many", 1_000);
    let calls = (0..100).map(|_| (&of_many, redis_conn::Subject::from(HOSTILE), 1));
    for decision in limiter.check_all(calls).await {
        assert!(decision.unwrap().is_allowed());
    }
    let coalesced = counted.of("coalesced_checks_total", "many");
    assert!((90.0..100.0).contains(&coalesced), "{coalesced} of 100");
}

/// Names that a program makes of what it is sent.
async fn too_many_policies(counted: &Counted, backend: &Backend) {
    let limiter = Limiter::new(backend);
    for n in 0..100 {
        let policy = policy(&format!("made-up-{n}"), 1);
        let _ = limiter.check(&policy, "user:42", 1).await.unwrap();
    }
    let page = counted.0.render();
    let lines = page.lines();
    let named = lines
        .filter(|line| line.starts_with("towerkeep_ratelimit_near_limit_total{"))
        .count();
    assert_eq!(named, 65);
    let other = counted.outcome("decisions_total", "other", "allowed");
    let early = counted.outcome("decisions_total", "made-up-0", "allowed");
    assert!(other > 30.0 && early == 1.0, "{other} {early}");
}

#[tokio::test]
async fn every_family_of_the_table_counts_and_there_is_no_other() {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&[0.001, 1.0])
        .unwrap()
        .install_recorder()
        .unwrap();
    let counted = Counted(recorder);
    let clock = Arc::new(ManualClock::new(1_000_000_000_000));
    let backend = Backend::builder().clock(clock).memory().unwrap();
    requests(&counted, &backend).await;
    calls(&counted, &backend).await;
    the_rest(&counted, &backend).await;
    an_outage(&counted).await;
    asked_seldom(&counted).await;
    too_many_policies(&counted, &backend).await;

    let rows = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let table: BTreeSet<_> = rows.map(|(name, _)| name.to_owned()).collect();
    assert!(table.len() >= 9, "{table:?}");
    assert_eq!(counted.families(), table);
    let page = counted.0.render();
    for secret in ["evil", "user:42"] {
        assert!(!page.contains(secret), "{page}");
    }
}
