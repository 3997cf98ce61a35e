//! One program for every backend and every topology of Redis: the same binary and the same assertions over HTTP, only the
//! environment differs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use support::{BOUND, Showcase};
use testkit::Topology;
use tokio::{task::JoinSet, time::timeout};

const LIMIT: usize = 20;
/// To each instance, all at the same time.
const REQUESTS: usize = 30;
/// How many times a decision may come too late on a busy machine.
const ATTEMPTS: u32 = 20;
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What the environment chooses, and how the showcase calls it.
struct Choice<'a> {
    env: &'a [(String, String)],
    backend: &'a str,
    /// Of the first check of the health.
    check: &'a str,
    topology: Option<&'a str>,
    primaries: usize,
}

impl Choice<'_> {
    async fn start(&self) -> Showcase {
        let limit = LIMIT.to_string();
        let mut variables = vec![
            ("SHOWCASE_LIMIT", limit.as_str()),
            ("SHOWCASE_WINDOW_MS", "3600000"),
        ];
        let env = self.env.iter();
        variables.extend(env.map(|(name, value)| (name.as_str(), value.as_str())));
        let showcase = Showcase::start(&variables).await;
        assert_eq!(showcase.backend, self.backend);
        showcase
    }
}

/// Everything that is asserted of two instances that share a store, or of a single one.
async fn serves(choice: Choice<'_>, instances: usize) {
    let mut showcases = Vec::new();
    for _ in 0..instances {
        showcases.push(Arc::new(choice.start().await));
    }
    for showcase in &showcases {
        the_health_names(&choice, showcase).await;
        the_metrics_show_the_connections(showcase).await;
    }
    the_limit_is_exact(&showcases).await;
    a_job_runs_on_one_instance(&showcases).await;
    the_cron_job_runs(&showcases).await;
    for showcase in showcases {
        let showcase = Arc::into_inner(showcase).expect("every request has ended");
        let (status, _) = showcase.stop().await;
        assert!(status.success(), "{status}");
    }
}

/// All requests for one key at once. An instance that had to do without the store decides by its share, which is no fault of
/// the limit: then the next key has to show it.
async fn the_limit_is_exact(showcases: &[Arc<Showcase>]) {
    for attempt in 0..ATTEMPTS {
        let before = undecided(showcases).await;
        let key = format!("attempt-{attempt}");
        let mut requests = JoinSet::new();
        for _ in 0..REQUESTS {
            for showcase in showcases {
                let (showcase, key) = (Arc::clone(showcase), key.clone());
                requests.spawn(async move { showcase.limited(&key).await });
            }
        }
        let statuses = requests.join_all().await;
        let count = |status| statuses.iter().filter(|found| **found == status).count();
        let (admitted, refused) = (count(200), count(429));
        assert_eq!(admitted + refused, statuses.len(), "{statuses:?}");
        if undecided(showcases).await == before {
            assert_eq!(admitted, LIMIT);
            return;
        }
    }
    panic!("the store was late {ATTEMPTS} times");
}

/// How many calls of the store gave no decision. A script that the server did not know was refused, and is sent again.
async fn undecided(showcases: &[Arc<Showcase>]) -> u64 {
    let mut sum = 0;
    for showcase in showcases {
        let page = showcase.get("/metrics", "").await.body;
        let counts = page.lines().filter_map(|line| {
            line.strip_prefix("towerkeep_redis_conn_operation_duration_seconds_count{outcome=\"")?
                .split_once("\"} ")
        });
        let failed = counts.filter(|(outcome, _)| !["ok", "refused"].contains(outcome));
        sum += failed
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .sum::<u64>();
    }
    sum
}

async fn the_health_names(choice: &Choice<'_>, showcase: &Showcase) {
    for path in ["/health", "/health/detailed"] {
        let health = healthy(showcase, path).await;
        let check = &health["checks"][0];
        assert_eq!(check["name"], choice.check, "{health}");
        assert_eq!(check["details"]["topology"].as_str(), choice.topology);
        // Only the details have the nodes.
        let is_primary = |node: &&Value| node["role"] == "primary";
        let nodes = check["details"]["nodes"].as_array();
        let primaries = nodes.map(|nodes| nodes.iter().filter(is_primary).count());
        let expected =
            (path == "/health/detailed" && choice.topology.is_some()).then_some(choice.primaries);
        assert_eq!(primaries, expected, "{health}");
    }
}

/// The health, once the servers have been asked and were found well.
async fn healthy(showcase: &Showcase, path: &str) -> Value {
    let mut last = Value::Null;
    let asked = async {
        while last["overall"] != "healthy" {
            last = serde_json::from_str(&showcase.get(path, "").await.body).unwrap();
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    match timeout(BOUND, asked).await {
        Ok(()) => last,
        Err(_) => panic!("it stays {last}"),
    }
}

async fn the_metrics_show_the_connections(showcase: &Showcase) {
    let page = showcase.get("/metrics", "").await.body;
    for line in [
        "towerkeep_redis_conn_state{state=\"connected\"} 1",
        "redis_connection_state 2",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}: {page}");
    }
}

/// On the first instance, while the last one looks and takes its lock.
async fn a_job_runs_on_one_instance(showcases: &[Arc<Showcase>]) {
    let (first, last) = (&showcases[0], &showcases[showcases.len() - 1]);
    let request = |method: &str, path: &str| {
        format!("{method} /jobs/report{path} HTTP/1.1\r\ncontent-length: 0\r\n")
    };
    let json = |body: &str| serde_json::from_str::<Value>(body).unwrap();
    // Until it is told to end.
    let running = tokio::spawn({
        let (first, head) = (Arc::clone(first), request("POST", "/run?ms=600000"));
        async move { first.send(&head).await }
    });
    testkit::until(BOUND, "the job runs", async || {
        json(&last.get("/jobs/report", "").await.body)["locked"] == true
    })
    .await
    .unwrap();
    let mut owners = Vec::new();
    for showcase in showcases {
        let seen = json(&showcase.get("/jobs/report", "").await.body);
        assert!(seen["ttl_ms"].as_u64().unwrap() <= 10_000, "{seen}");
        assert_eq!(seen["runs"], 0, "{seen}");
        owners.push(seen["owner"].as_str().unwrap().to_owned());
        let refused = showcase.send(&request("POST", "/run")).await;
        assert_eq!((refused.status, &*refused.body), (409, r#"{"ran":false}"#));
    }
    assert!(owners.iter().all(|owner| *owner == owners[0]), "{owners:?}");
    let stats = json(&first.get("/stats", "").await.body);
    let held = stats["locks"].as_array().unwrap();
    assert!(held.iter().any(|lock| lock["name"] == "report"), "{stats}");

    let released = last.send(&request("DELETE", "/lock")).await;
    assert_eq!(
        (released.status, &*released.body),
        (200, r#"{"released":true}"#)
    );
    let lost = timeout(BOUND, running).await.expect("it is lost").unwrap();
    assert_eq!(lost.status, 409, "{lost:?}");
    assert_eq!(
        json(&lost.body),
        serde_json::json!({"ran": false, "lost": true})
    );

    let mut fence = 0;
    for showcase in showcases {
        let ran = showcase.send(&request("POST", "/run")).await;
        let body = json(&ran.body);
        assert_eq!((ran.status, &body["ran"]), (200, &Value::Bool(true)));
        assert!(
            body["fence"].as_u64().unwrap() > fence,
            "{body} after {fence}"
        );
        fence = body["fence"].as_u64().unwrap();
        let seen = json(&showcase.get("/jobs/report", "").await.body);
        let expected =
            serde_json::json!({"locked": false, "owner": null, "ttl_ms": null, "runs": 1});
        assert_eq!(seen, expected);
    }
    first
        .send(&request("POST", "/run?ms=soon"))
        .await
        .assert_problem(400);
}

async fn the_cron_job_runs(showcases: &[Arc<Showcase>]) {
    testkit::until(BOUND, "the cron job", async || {
        let mut runs = 0;
        for showcase in showcases {
            let stats = showcase.get("/stats", "").await.body;
            let stats: Value = serde_json::from_str(&stats).unwrap();
            runs += stats["cron_runs"].as_u64().unwrap();
        }
        runs > 2
    })
    .await
    .unwrap();
}

async fn serves_on(topology: Topology, backend: &str, primaries: usize) {
    let servers = topology.start().await;
    let choice = Choice {
        env: &servers.env(),
        backend,
        check: "redis",
        topology: backend.strip_prefix("redis-"),
        primaries,
    };
    serves(choice, 2).await;
}

fn embedded<'a>(backend: &'a str, env: &'a [(String, String)]) -> Choice<'a> {
    Choice {
        env,
        backend,
        check: backend,
        topology: None,
        primaries: 0,
    }
}

#[tokio::test]
async fn the_same_binary_serves_in_process() {
    serves(embedded("memory", &[]), 1).await;
}

#[tokio::test]
async fn the_same_binary_serves_on_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("limits.sqlite");
    let env = [("SQLITE_PATH".to_owned(), file.display().to_string())];
    serves(embedded("sqlite", &env), 2).await;
}

#[tokio::test]
async fn the_same_binary_serves_on_one_server() {
    serves_on(Topology::Single, "redis-single", 1).await;
}

#[tokio::test]
async fn the_same_binary_serves_on_a_cluster() {
    serves_on(Topology::Cluster, "redis-cluster", 3).await;
}

#[tokio::test]
async fn the_same_binary_serves_behind_sentinels() {
    serves_on(Topology::Sentinel, "redis-sentinel", 1).await;
}
