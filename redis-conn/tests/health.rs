//! What health says of Redis, and what it costs: nothing.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use redis_conn::{
    Backend, Config, ErrorKind, Health, State, Status,
    raw::{Call, Class},
};
use serde_json::{Value, json};
use support::{LONG, cluster_config, redis};
use testkit::{Answer, RedisCluster, RedisServer, RespMock};

const ASK_AGAIN: Duration = Duration::from_millis(10);

fn config(url: &str, required: bool) -> Config {
    let builder = Config::from_url(url).unwrap().into_builder();
    builder.required(required).build().unwrap()
}

async fn connected(url: &str, required: bool) -> Backend {
    let backend = Backend::redis(config(url, required)).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

/// The health once it is as it should be.
async fn until(backend: &Backend, wanted: impl Fn(&Health) -> bool) -> Health {
    let asked = async {
        loop {
            let health = backend.health_detailed();
            if wanted(&health) {
                return health;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    let found = tokio::time::timeout(LONG, asked).await;
    found.unwrap_or_else(|_| panic!("it stays {:?}", backend.health_detailed()))
}

fn is_probed(health: &Health) -> bool {
    let details = health.checks[0].details.as_ref();
    details.is_some_and(|details| details.latency.is_some())
}

/// The JSON with everything replaced that is another number or time in each run.
fn golden(health: &Health) -> Value {
    let mut json = serde_json::to_value(health).unwrap();
    let time = |value: &mut Value| {
        let text = value.as_str().expect("a time").to_owned();
        assert!(
            text.len() == 24 && text.starts_with("20") && text.ends_with('Z'),
            "{text}"
        );
        *value = json!("TIME");
    };
    let number = |value: &mut Value| {
        assert!(value.is_number(), "{value}");
        *value = json!("NUMBER");
    };
    time(&mut json["timestamp"]);
    number(&mut json["uptime"]);
    let details = &mut json["checks"][0]["details"];
    time(&mut details["probedAt"]);
    number(&mut details["latency"]);
    number(&mut details["ageMs"]);
    for node in details["nodes"].as_array_mut().into_iter().flatten() {
        number(&mut node["latency"]);
    }
    let text = json["checks"][0]["message"].as_str().unwrap().to_owned();
    if let Some((before, rest)) = text.split_once("latency: ") {
        let (_, after) = rest.split_once("ms").unwrap();
        json["checks"][0]["message"] = json!(format!("{before}latency: N{after}"));
    }
    json
}

#[tokio::test]
async fn the_json_key_for_key() {
    let server = RedisServer::start().await;
    let backend = connected(&server.url(), false).await;
    let health = until(&backend, is_probed).await;
    let run_id = server.info("server").await["run_id"].clone();
    let expected = json!({
        "status": "ok",
        "timestamp": "TIME",
        "uptime": "NUMBER",
        "checks": [{
            "name": "redis",
            "status": "healthy",
            "message": "Redis connection is working (latency: N, nodes: 1)",
            "details": {
                "latency": "NUMBER",
                "nodeCount": 1,
                "clusterState": null,
                "circuitBreakerOpen": false,
                "topology": "single",
                "state": "connected",
                "masterRunId": run_id,
                "epoch": null,
                "lanes": 1,
                "inFlight": 0,
                "pool": { "size": 0, "idle": 0, "waiting": 0 },
                "lastError": null,
                "reconnects": 0,
                "nodes": [{
                    "name": server.addr().to_string(),
                    "role": "primary",
                    "latency": "NUMBER",
                    "breaker": "closed",
                }],
                "probedAt": "TIME",
                "ageMs": "NUMBER",
                "fallback": false,
            },
        }],
        "overall": "healthy",
    });
    assert_eq!(golden(&health), expected);

    // Everybody may see the public form.
    let public = backend.health();
    let mut without_nodes = expected;
    without_nodes["checks"][0]["details"]["nodes"] = Value::Null;
    assert_eq!(golden(&public), without_nodes);
    let text = serde_json::to_string(&public).unwrap();
    assert!(!text.contains(&server.port().to_string()), "{text}");
    assert_eq!(public.http_status(), 200);

    let summary = serde_json::to_value(health.summary()).unwrap();
    assert_eq!(summary["redis"]["connected"], true);
    assert!(summary["redis"]["latency"].is_number());
    assert_eq!(keys(&summary), ["cache", "overall", "redis", "sessions"]);
    let memory = Backend::memory().health().summary();
    assert_eq!(
        serde_json::to_value(memory).unwrap(),
        json!({ "redis": null, "cache": null, "sessions": null, "overall": "healthy" })
    );
}

fn keys(json: &Value) -> Vec<&str> {
    json.as_object().unwrap().keys().map(|key| &**key).collect()
}

#[tokio::test]
async fn what_is_not_known_is_null_and_no_key_is_missing() {
    let server = RedisServer::start().await;
    let known = connected(&server.url(), false).await;
    let known = serde_json::to_value(until(&known, is_probed).await).unwrap();
    let config = config(&server.url(), false).into_builder();
    let lazy = Backend::redis(config.lazy_connect(true).build().unwrap()).unwrap();
    let unknown = serde_json::to_value(lazy.health()).unwrap();
    assert_eq!(keys(&unknown), keys(&known));
    let [known, unknown] = [known, unknown].map(|health| health["checks"][0].clone());
    assert_eq!(keys(&unknown), keys(&known));
    let (known, unknown) = (&known["details"], &unknown["details"]);
    assert_eq!(keys(unknown), keys(known));
    let nothing = unknown.as_object().unwrap().iter();
    let nothing = nothing.filter(|(_, value)| value.is_null());
    assert_eq!(
        nothing.map(|(key, _)| &**key).collect::<Vec<_>>(),
        [
            "ageMs",
            "clusterState",
            "epoch",
            "lastError",
            "latency",
            "masterRunId",
            "nodes",
            "probedAt"
        ]
    );
}

#[tokio::test]
async fn a_cluster_shows_its_nodes_and_what_it_says_of_itself() {
    // Without replicas: one could take the place of a node before it is missed.
    let cluster = RedisCluster::builder().replicas_per_primary(0);
    let cluster = cluster.start().await;
    let config = cluster_config(cluster.addrs()).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let health = until(&backend, |health| {
        let details = health.checks[0].details.as_ref().unwrap();
        details.node_count == 3
            && details.cluster_state.is_some()
            && health.overall == Status::Healthy
    })
    .await;
    let json = golden(&health);
    let details = &json["checks"][0]["details"];
    assert_eq!(details["clusterState"], "ok");
    assert_eq!(details["topology"], "cluster");
    assert!(details["epoch"].is_number());
    assert!(details["masterRunId"].is_null());
    assert_eq!(details["nodes"].as_array().unwrap().len(), 3);
    assert!(
        json["checks"][0]["message"]
            .as_str()
            .unwrap()
            .ends_with("nodes: 3)")
    );

    // One of its shards is gone, the other two go on.
    cluster.freeze(0);
    let health = until(&backend, |health| health.overall == Status::Degraded).await;
    assert_eq!(health.http_status(), 200);
    cluster.thaw(0);
    until(&backend, |health| health.overall == Status::Healthy).await;
}

fn commands(calls: &BTreeMap<String, testkit::CommandStat>) -> u64 {
    calls.values().map(|stat| stat.calls).sum()
}

#[tokio::test]
async fn ten_thousand_questions_cost_no_command() {
    let server = RedisServer::start().await;
    let backend = connected(&server.url(), true).await;
    until(&backend, is_probed).await;
    server.reset_stats().await;
    for _ in 0..10_000 {
        assert_eq!(backend.health().overall, Status::Healthy);
        assert_eq!(backend.health_detailed().overall, Status::Healthy);
    }
    let calls = server.command_calls().await;
    // The probe itself, and the connections of the fixture.
    let known = [
        "ping",
        "info",
        "hello",
        "auth",
        "client|setinfo",
        "config|resetstat",
        // As servers older than 7 count them.
        "client",
        "config",
    ];
    let others: Vec<_> = calls
        .keys()
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(commands(&calls) < 50, "{calls:?}");
}

#[tokio::test]
async fn the_probe_of_an_idle_backend_stays_within_three_commands_a_second() {
    let mock = RespMock::start(|_| Answer::Default).await;
    let backend = connected(&mock.url(), false).await;
    mock.wait_for(|mock| mock.count("PING") >= 2).await;
    let began = tokio::time::Instant::now();
    mock.forget();
    mock.wait_for(|mock| mock.count("PING") >= 1).await;
    // One interval is at least 4.5 s; whatever else is slow makes it longer.
    let rate = mock.requests().len() as f64 / began.elapsed().as_secs_f64();
    assert!(rate <= 3.0, "{rate} commands/s: {:?}", mock.requests());
    drop(backend);
}

#[tokio::test]
async fn a_required_redis_that_is_away_is_unhealthy_and_another_one_degraded() {
    let server = RedisServer::start().await;
    let required = connected(&server.url(), true).await;
    let optional = connected(&server.url(), false).await;
    let mut watch = required.watch_health();
    assert_eq!(watch.get().unwrap().overall, Status::Healthy);

    server.kill();
    let changed = tokio::time::timeout(LONG, watch.changed()).await;
    let health = changed.expect("nobody was told").unwrap();
    assert_eq!(
        (health.overall, health.http_status()),
        (Status::Unhealthy, 503)
    );
    let json = serde_json::to_value(&health).unwrap();
    assert_eq!(
        (&json["status"], &json["overall"]),
        (&json!("error"), &json!("unhealthy"))
    );
    let details = &json["checks"][0]["details"];
    assert_eq!(details["state"], "reconnecting");
    assert_eq!(details["lastError"]["kind"], "unavailable");
    let text = json.to_string();
    assert!(!text.contains(&server.port().to_string()), "{text}");

    let health = until(&optional, |health| health.overall != Status::Healthy).await;
    assert_eq!(
        (health.overall, health.http_status()),
        (Status::Degraded, 200)
    );

    server.restart().await;
    let changed = tokio::time::timeout(LONG, watch.changed()).await;
    assert_eq!(
        changed.expect("nobody was told").unwrap().overall,
        Status::Healthy
    );
    let health = until(&optional, |health| health.overall == Status::Healthy).await;
    let details = health.checks[0].details.as_ref().unwrap();
    assert_eq!(details.state, State::Connected);
    assert!(details.reconnects >= 1);
    assert!(
        details.last_error.is_some(),
        "it stays when all is well again"
    );

    required.close(LONG).await.unwrap();
    assert_eq!(watch.changed().await.unwrap().overall, Status::Unhealthy);
    drop(required);
    assert!(watch.changed().await.is_none());
}

#[tokio::test]
async fn an_answer_that_belongs_to_somebody_else_condemns_the_connection() {
    let mock = RespMock::start(|request| {
        let is_numbered = request.is("PING") && request.args.len() > 1;
        if is_numbered {
            Answer::bulk("0")
        } else {
            Answer::Default
        }
    })
    .await;
    let backend = connected(&mock.url(), false).await;
    mock.wait_for(|mock| mock.accepted() >= 3).await;
    mock.on(|_| Answer::Default);
    until(&backend, |health| health.overall == Status::Healthy).await;
}

#[tokio::test]
async fn a_server_that_removes_keys_when_it_is_full_is_degraded() {
    for (policy, status) in [
        ("allkeys-lru", Status::Degraded),
        ("volatile-ttl", Status::Degraded),
        ("noeviction", Status::Healthy),
    ] {
        let server = RedisServer::builder()
            .arg("maxmemory-policy", policy)
            .start()
            .await;
        let backend = connected(&server.url(), true).await;
        let health = until(&backend, is_probed).await;
        assert_eq!(health.overall, status, "{policy}");
        let message = &health.checks[0].message;
        assert_eq!(
            message.contains(policy),
            status == Status::Degraded,
            "{message}"
        );
        assert_eq!(health.http_status(), 200);
    }
}

#[tokio::test]
async fn a_user_who_may_not_ask_is_healthy_all_the_same() {
    let users = "user default on nopass ~* &* +@all -info -ping";
    let server = RedisServer::builder().users(users).start().await;
    let backend = connected(&server.url(), false).await;
    let health = until(&backend, is_probed).await;
    assert_eq!(health.overall, Status::Healthy);
    let details = health.checks[0].details.as_ref().unwrap();
    assert!(details.master_run_id.is_none());
}

#[tokio::test]
async fn a_full_server_refuses_writes_and_keeps_what_it_has() {
    let server = RedisServer::builder()
        .arg("maxmemory", "3mb")
        .arg("maxmemory-policy", "noeviction")
        .start()
        .await;
    let backend = connected(&server.url(), true).await;
    let set = |key: String| {
        Call::new("SET", Class::Idempotent)
            .key(key)
            .arg("x".repeat(64 << 10))
    };
    let mut held = Vec::new();
    let refused = loop {
        let key = format!("tk:held-{}", held.len());
        match redis(&backend).call(set(key.clone()), LONG).await {
            Ok(_) => held.push(key),
            Err(error) => break error,
        }
        assert!(held.len() < 1_000, "it takes everything");
    };
    assert_eq!(*refused.kind(), ErrorKind::Server("OOM".into()));
    assert!(!held.is_empty());
    held.sort();
    assert_eq!(server.keys().await, held);
    let health = until(&backend, is_probed).await;
    assert_eq!(
        health.overall,
        Status::Healthy,
        "it answers and keeps what it has"
    );
}
