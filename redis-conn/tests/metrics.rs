//! Every family of the table is there, counts what it says, and there is no other.

#![cfg(all(feature = "redis", feature = "metrics"))]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use redis_conn::{
    Backend, Config, Event,
    raw::{Call, Class, Script},
};
use support::{LONG, endpoints, redis};
use testkit::{Answer, Fault, FaultProxy, RedisServer, RespMock};

const SHORT: Duration = Duration::from_millis(100);
const ASK_AGAIN: Duration = Duration::from_millis(10);

const TABLE: &str = include_str!("../src/metrics/metrics.md");

async fn connected(config: Config) -> Backend {
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

async fn on(url: &str) -> Backend {
    connected(Config::from_url(url).unwrap()).await
}

fn get() -> Call {
    Call::new("GET", Class::Idempotent).key("tk:n")
}

fn incr() -> Call {
    Call::new("INCR", Class::AtMostOnce).key("tk:n")
}

/// What was counted so far.
struct Counted(PrometheusHandle);

impl Counted {
    fn value(&self, line: &str) -> f64 {
        let page = self.0.render();
        let found = page
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        let value = found.unwrap_or_else(|| panic!("no {line} in {page}"));
        value.parse().unwrap()
    }

    async fn until(&self, line: &str, wanted: impl Fn(f64) -> bool) {
        let asked = async {
            while !wanted(self.value(line)) {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        let reached = tokio::time::timeout(LONG, asked).await;
        reached.unwrap_or_else(|_| panic!("{line} stays {}", self.value(line)));
    }

    fn families(&self) -> BTreeSet<String> {
        let page = self.0.render();
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
            .collect()
    }
}

fn ours(family: &str) -> String {
    format!("towerkeep_redis_conn_{family}")
}

async fn calls(counted: &Counted) {
    let server = RedisServer::builder().allow("+incr").start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = on(&proxy.url()).await;
    assert!(counted.value(&ours("state{state=\"connected\"}")) >= 1.0);
    assert!(counted.value("redis_connection_state") >= 2.0);
    redis(&backend).call(get(), LONG).await.unwrap();

    static SCRIPT: Script = Script::new("return 1");
    let unknown = redis(&backend);
    let script = unknown.script(&SCRIPT, Class::AtMostOnce, &["tk:n"]);
    script.run(LONG).await.unwrap();
    let line = ours("operation_duration_seconds_count{outcome=\"refused\"}");
    let refused = counted.value(&line);
    assert_eq!(
        refused, 0.0,
        "a script that is sent by its text is not refused to its caller"
    );

    proxy.set(Fault::drop_reply("GET"));
    redis(&backend).call(get(), SHORT).await.unwrap_err();
    proxy.set(Fault::drop_reply("INCR"));
    redis(&backend).call(incr(), SHORT).await.unwrap_err();
    proxy.set(Fault::Reset);
    counted
        .until(&ours("reconnects_total"), |count| count >= 1.0)
        .await;

    for (line, least) in [
        ("operation_duration_seconds_count{outcome=\"ok\"}", 1.0),
        ("operation_duration_seconds_count{outcome=\"timeout\"}", 1.0),
        (
            "operation_duration_seconds_count{outcome=\"ambiguous\"}",
            1.0,
        ),
        ("timeouts_total", 2.0),
        ("ambiguous_total", 1.0),
        ("failures_total{fault=\"timeout\"}", 2.0),
    ] {
        let value = counted.value(&ours(line));
        assert!(value >= least, "{line} {value}");
    }
}

async fn a_cluster(counted: &Counted) {
    let mock = RespMock::start(|_| Answer::Default).await;
    mock.set_mode("cluster");
    let config = Config::cluster(endpoints([mock.addr()]));
    let backend = connected(config.build().unwrap()).await;
    for kind in ["moved", "ask"] {
        let answer = format!("{} 1 {}", kind.to_uppercase(), mock.addr());
        mock.on(move |request| match request.is("GET") {
            true => Answer::error(answer.clone()),
            false => Answer::Default,
        });
        redis(&backend).call(get(), LONG).await.unwrap_err();
        let line = ours(&format!("redirects_total{{kind=\"{kind}\"}}"));
        assert!(counted.value(&line) >= 1.0);
    }
    let line = ours("topology_refresh_duration_seconds_count");
    counted.until(&line, |count| count >= 1.0).await;
}

async fn subscriptions(counted: &Counted) {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    let mut admin = server.connection().await;
    let mut kill = redis::cmd("CLIENT");
    let _: u64 = kill
        .arg(&["KILL", "TYPE", "pubsub"])
        .query_async(&mut admin)
        .await
        .unwrap();
    let event = tokio::time::timeout(LONG, news.recv()).await.unwrap();
    assert!(matches!(event, Some(Event::Gap)), "{event:?}");
    assert!(counted.value(&ours("pubsub_gaps_total")) >= 1.0);

    // More than a mailbox holds.
    for _ in 0..1_100 {
        backend.bus().publish("news", b"x").await.unwrap();
    }
    counted
        .until(&ours("pubsub_lost_total"), |count| count >= 50.0)
        .await;

    refusals(counted, &server, backend).await;
}

/// Whoever was let in is refused later, and somebody else at once.
async fn refusals(counted: &Counted, server: &RedisServer, backend: Backend) {
    let line = ours("subscriptions_refused_total");
    assert_eq!(counted.value(&line), 0.0);
    let mut admin = server.connection().await;
    let mut forbid = redis::cmd("ACL");
    let forbid = forbid.arg(&["SETUSER", testkit::USER, "resetchannels"]);
    // It also ends the connection that listens, and nobody here subscribes anew.
    forbid.exec_async(&mut admin).await.unwrap();
    counted.until(&line, |count| count >= 1.0).await;
    backend.close(LONG).await.unwrap();

    let backend = on(&server.url()).await;
    let again = counted.value(&line);
    backend.bus().subscribe("other").await.unwrap_err();
    assert!(counted.value(&line) > again);
}

async fn levels(counted: &Counted) {
    let server = RedisServer::builder().allow("+blpop").start().await;
    let config = Config::from_url(&server.url())
        .unwrap()
        .into_builder()
        .pool_size(1);
    let backend = connected(config.build().unwrap()).await;
    let mut taken = redis(&backend).dedicated("tk:n", LONG).await.unwrap();
    let unknown = Call::new("NOSUCH", Class::Idempotent);
    taken.call(unknown, LONG).await.unwrap_err();
    for line in [
        "failures_total{fault=\"refused\"}",
        "operation_duration_seconds_count{outcome=\"refused\"}",
    ] {
        assert!(counted.value(&ours(line)) >= 1.0, "{line}");
    }
    let asking = redis(&backend);
    let waiter = tokio::spawn(async move { asking.dedicated("tk:n", LONG * 10).await.map(drop) });
    let asking = redis(&backend);
    let wait = Call::new("BLPOP", Class::AtMostOnce).key("tk:never").int(0);
    let caller = tokio::spawn(async move { asking.call(wait, LONG * 10).await.map(drop) });

    for line in [
        "pool_connections{state=\"used\"}",
        "pool_waiting",
        "in_flight",
    ] {
        counted.until(&ours(line), |level| level >= 1.0).await;
    }
    drop(taken);
    waiter.await.unwrap().unwrap();
    caller.abort();
    drop(backend);
    // What a backend adds to a gauge ends with it.
    for line in [
        "pool_connections{state=\"used\"}",
        "pool_waiting",
        "in_flight",
    ] {
        counted.until(&ours(line), |level| level == 0.0).await;
    }
}

#[tokio::test]
async fn every_family_of_the_table_counts_and_there_is_no_other() {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let counted = Counted(recorder);
    calls(&counted).await;
    a_cluster(&counted).await;
    subscriptions(&counted).await;
    levels(&counted).await;

    let rows = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let table: BTreeSet<_> = rows.map(|(name, _)| name.to_owned()).collect();
    assert!(table.len() >= 10, "{table:?}");
    assert_eq!(counted.families(), table);
    counted
        .until(&ours("state{state=\"connected\"}"), |count| count == 0.0)
        .await;
}
