//! The showcase from outside: what it prints, answers and ends with, in each environment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::RedisServer;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use support::{BOUND, Showcase, command};

/// How a showcase ends that does not start: its exit code, stdout and stderr.
async fn refused(variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = command(variables).stderr(Stdio::piped()).output();
    let output = timeout(BOUND, output).await.expect("the end").unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The URL of a port on which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("redis://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn nothing_set_is_the_in_process_backend() {
    let showcase = Showcase::start(&[("INSTANCE", "one"), ("SHOWCASE_LIMIT", "1")]).await;
    assert_eq!(showcase.backend, "memory");
    assert!(showcase.address.starts_with("127.0.0.1:"));

    let live = showcase.get("/health/live", "").await;
    assert_eq!(
        (live.status, &*live.body),
        (200, r#"{"instance":"one","status":"ok"}"#)
    );

    let first = showcase.get("/limited", "x-api-key: a\r\n").await;
    assert_eq!((first.status, &*first.body), (200, "ok"));
    assert!(first.head.contains("\r\nratelimit: "), "{first:?}");
    let second = showcase.get("/limited", "x-api-key: a\r\n").await;
    second.assert_problem(429);
    assert!(second.head.contains("\r\nretry-after: "), "{second:?}");
}

#[tokio::test]
async fn without_an_api_key_the_client_address_is_limited() {
    let showcase = Showcase::start(&[("SHOWCASE_LIMIT", "1")]).await;
    assert_eq!(showcase.limited("a").await, 200);
    assert_eq!(showcase.limited("b").await, 200);
    assert_eq!(showcase.get("/limited", "").await.status, 200);
    showcase.get("/limited", "").await.assert_problem(429);

    // Only Linux has more than one loopback address without being told so.
    #[cfg(target_os = "linux")]
    {
        let other = Ipv4Addr::new(127, 0, 0, 2);
        let answer = showcase.send_from(other, "GET /limited HTTP/1.1\r\n").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems() {
    let showcase = Showcase::start(&[]).await;
    showcase.get("/nowhere", "").await.assert_problem(404);
    showcase
        .send("POST /limited HTTP/1.1\r\ncontent-length: 0\r\n")
        .await
        .assert_problem(405);
}

#[tokio::test]
async fn the_window_is_the_one_that_is_set() {
    let showcase =
        Showcase::start(&[("SHOWCASE_LIMIT", "7"), ("SHOWCASE_WINDOW_MS", "60000")]).await;
    let answer = showcase.get("/limited", "x-api-key: a\r\n").await;
    assert!(
        answer.head.contains("q=7") && answer.head.contains("w=60"),
        "{answer:?}"
    );
}

/// Two instances with these variables admit one request together.
async fn share_one_limit(backend: (&str, &str), name: &str) {
    let variables = [
        ("SHOWCASE_LIMIT", "1"),
        ("SHOWCASE_WINDOW_MS", "600000"),
        backend,
    ];
    let (one, two) = tokio::join!(Showcase::start(&variables), Showcase::start(&variables));
    assert_eq!((&*one.backend, &*two.backend), (name, name));
    assert_eq!(one.limited("a").await, 200);
    assert_eq!(two.limited("a").await, 429);
    assert_eq!(two.limited("b").await, 200);
    assert_eq!(one.limited("b").await, 429);
    for showcase in [one, two] {
        let (status, _) = showcase.stop().await;
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn instances_on_one_sqlite_file_share_one_limit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("limits.sqlite");
    share_one_limit(("SQLITE_PATH", file.to_str().unwrap()), "sqlite").await;
}

#[tokio::test]
async fn instances_on_one_redis_share_one_limit() {
    let server = RedisServer::start().await;
    share_one_limit(("REDIS_URL", &server.url()), "redis-single").await;
}

#[tokio::test]
async fn a_frozen_redis_fails_no_request_and_delays_no_end() {
    let server = RedisServer::start().await;
    let showcase = Showcase::start(&[("REDIS_URL", &server.url()), ("SHOWCASE_LIMIT", "2")]).await;
    assert_eq!(showcase.limited("a").await, 200);
    server.freeze();
    assert_eq!(showcase.limited("b").await, 200);
    // Half of the limit is the local share.
    assert_eq!(showcase.limited("b").await, 429);
    let (status, _) = showcase.stop().await;
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn it_starts_while_redis_is_away() {
    let showcase = Showcase::start(&[("REDIS_URL", &nobody())]).await;
    assert_eq!(showcase.backend, "redis-single");
    assert_eq!(showcase.limited("a").await, 200);
}

#[tokio::test]
async fn a_required_redis_that_is_away_is_exit_1() {
    let (code, stdout, stderr) = refused(&[
        ("REDIS_URL", &nobody()),
        ("REDIS_REQUIRED", "true"),
        ("REDIS_CONNECT_TIMEOUT", "200"),
    ])
    .await;
    assert_eq!((code, &*stdout), (Some(1), ""), "{stderr}");
    assert!(stderr.contains("cannot be reached"), "{stderr}");
}

#[tokio::test]
async fn wrong_configuration_is_exit_2_and_names_every_variable() {
    let (code, stdout, stderr) = refused(&[
        ("SHOWCASE_LIMIT", "0"),
        ("SHOWCASE_WINDOW_MS", "soon"),
        ("REDIS_HOST", "127.0.0.1"),
        ("REDIS_PASSWORD", "sesame"),
        ("SQLITE_PATH", "limits.sqlite"),
    ])
    .await;
    assert_eq!((code, &*stdout), (Some(2), ""), "{stderr}");
    for name in [
        "SHOWCASE_LIMIT",
        "SHOWCASE_WINDOW_MS",
        "REDIS_HOST",
        "SQLITE_PATH",
    ] {
        assert!(stderr.contains(name), "{name} is missing in {stderr}");
    }
    assert!(!stderr.contains("sesame"), "{stderr}");
}

#[tokio::test]
async fn settings_of_its_own_are_checked_before_a_backend_is_waited_for() {
    let (code, _, stderr) = refused(&[
        ("SHOWCASE_LIMIT", "-1"),
        ("REDIS_URL", &nobody()),
        ("REDIS_REQUIRED", "true"),
        ("REDIS_CONNECT_TIMEOUT", "600000"),
    ])
    .await;
    assert_eq!(code, Some(2), "{stderr}");
}

#[tokio::test]
async fn a_port_in_use_is_exit_1() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let (code, _, stderr) = refused(&[("PORT", &port)]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("PORT"), "{stderr}");
}

#[tokio::test]
async fn sigterm_ends_it_although_connections_are_open() {
    let showcase = Showcase::start(&[]).await;
    let mut idle = TcpStream::connect(&showcase.address).await.unwrap();
    let mut keep_alive = TcpStream::connect(&showcase.address).await.unwrap();
    keep_alive
        .write_all(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(keep_alive.read_u8().await.unwrap(), b'H');

    let (status, printed) = showcase.stop().await;
    assert!(status.success(), "{status}");
    assert!(printed.is_empty(), "{printed:?}");
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn sigterm_ends_it_while_it_waits_for_a_required_redis() {
    let mut child = command(&[
        ("REDIS_URL", &nobody()),
        ("REDIS_REQUIRED", "true"),
        ("REDIS_CONNECT_TIMEOUT", "60000"),
    ])
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = timeout(BOUND, log.next_line()).await.unwrap().unwrap();
    assert!(said.unwrap().contains("not connected"));
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = timeout(BOUND, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// The status of the readiness and what it says of the backend.
async fn readiness(showcase: &Showcase) -> (u16, String) {
    let ready = showcase.get("/health/ready", "").await;
    let health: Value = serde_json::from_str(&ready.body).unwrap();
    let backend = health["checks"][0]["status"].as_str().unwrap();
    (ready.status, backend.to_owned())
}

async fn until_ready_is(showcase: &Showcase, status: u16, backend: &str) {
    let wanted = (status, backend.to_owned());
    let mut last = None;
    let asked = async {
        while last.as_ref() != Some(&wanted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            last = Some(readiness(showcase).await);
        }
    };
    if timeout(BOUND, asked).await.is_err() {
        panic!("it stays {last:?}, expected {wanted:?}");
    }
}

#[tokio::test]
async fn health_without_a_server_is_one_check_of_the_backend() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("shared.db");
    let file = file.to_str().unwrap();
    for (variables, name) in [(&[][..], "memory"), (&[("SQLITE_PATH", file)], "sqlite")] {
        let showcase = Showcase::start(variables).await;
        for path in ["/health", "/health/ready", "/health/detailed"] {
            let answer = showcase.get(path, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(
                answer.head.contains("cache-control: no-store"),
                "{answer:?}"
            );
            let health: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(
                (&health["status"], &health["overall"]),
                (&"ok".into(), &"healthy".into())
            );
            assert_eq!(health["checks"][0]["name"], name);
            assert!(health["timestamp"].as_str().unwrap().ends_with('Z'));
        }
    }
}

#[tokio::test]
async fn the_metrics_are_there_before_anything_happened() {
    let server = RedisServer::start().await;
    for variables in [&[][..], &[("REDIS_URL", &*server.url())]] {
        let showcase = Showcase::start(variables).await;
        assert_eq!(showcase.limited("a").await, 200);
        let metrics = showcase.get("/metrics", "").await;
        assert_eq!(metrics.status, 200);
        let families = metrics.body.matches("# TYPE ").count();
        assert!(families >= 10, "{}", metrics.body);
        let backend = &showcase.backend;
        let counted = "operation_duration_seconds_count{outcome=\"ok\"} ";
        let (_, count) = metrics.body.split_once(counted).unwrap();
        assert_eq!(count.starts_with('0'), backend == "memory", "{count}");
        let family = "towerkeep_ratelimit_requests_total";
        let limited = format!("{family}{{policy=\"limited\",outcome=\"allowed\"}} 1");
        let mut lines = metrics.body.lines();
        assert!(lines.any(|line| line == limited), "{}", metrics.body);
        for nothing in [
            "towerkeep_lock_acquisitions_total{outcome=\"busy\"} 0",
            "towerkeep_lock_lost_total{reason=\"expired\"} 0",
        ] {
            let mut lines = metrics.body.lines();
            assert!(lines.any(|line| line == nothing), "{}", metrics.body);
        }
        let cron = "towerkeep_lock_cron_runs_total{cron=\"tick\"";
        assert!(metrics.body.contains(cron), "{}", metrics.body);
    }
}

#[tokio::test]
async fn the_addresses_of_servers_are_shown_only_where_they_are_asked_for() {
    let server = RedisServer::start().await;
    let (url, port) = (server.url(), server.port().to_string());
    let redis = ("REDIS_URL", &*url);
    for (addresses, name) in [
        (None, "node-1".to_owned()),
        (Some("false"), "node-1".to_owned()),
        (Some("true"), server.addr().to_string()),
    ] {
        let mut variables = vec![redis];
        variables.extend(addresses.map(|value| ("SHOWCASE_HEALTH_ADDRESSES", value)));
        let showcase = Showcase::start(&variables).await;
        until_ready_is(&showcase, 200, "healthy").await;
        let mut nodes = Value::Null;
        let probed = async {
            // Before the first answer of the server there are none.
            while nodes.get(0).is_none() {
                let health = showcase.get("/health/detailed", "").await.body;
                let health: Value = serde_json::from_str(&health).unwrap();
                nodes = health["checks"][0]["details"]["nodes"].clone();
            }
        };
        timeout(BOUND, probed).await.expect("a node");
        assert_eq!(
            (&nodes[0]["name"], &nodes[0]["role"]),
            (&name.into(), &"primary".into())
        );
        for path in ["/health", "/health/ready", "/health/detailed"] {
            let body = showcase.get(path, "").await.body;
            let shows = addresses == Some("true") && path == "/health/detailed";
            assert_eq!(body.contains(&port), shows, "{path}: {body}");
        }
    }
}

#[tokio::test]
async fn ten_thousand_questions_for_the_health_cost_no_command() {
    const QUESTIONS: usize = 10_000;
    const CONNECTIONS: usize = 10;
    const PATHS: [&str; 4] = [
        "/health",
        "/health/ready",
        "/health/detailed",
        "/health/live",
    ];
    let server = RedisServer::start().await;
    // Without the cron job, which does ask.
    let variables = [("REDIS_URL", &*server.url()), ("SHOWCASE_CRON_MS", "0")];
    let showcase = Showcase::start(&variables).await;
    until_ready_is(&showcase, 200, "healthy").await;
    server.reset_stats().await;

    let mut asking = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut connection = showcase.keep_alive().await;
        asking.spawn(async move {
            for path in PATHS.into_iter().cycle().take(QUESTIONS / CONNECTIONS) {
                assert_eq!(connection.get(path).await.status, 200);
            }
        });
    }
    asking.join_all().await;

    let calls = server.command_calls().await;
    // The probe itself, and the connection of the fixture.
    let known = ["ping", "info", "hello", "auth", "client", "config"];
    let others = calls.keys().filter(|name| {
        let command = name.split('|').next().unwrap();
        !known.contains(&command)
    });
    assert_eq!(others.collect::<Vec<_>>(), [""; 0], "{calls:?}");
    let sum: u64 = calls.values().map(|stat| stat.calls).sum();
    assert!(sum < QUESTIONS as u64 / 100, "{calls:?}");
}

/// How long a load must be borne.
const LOADING: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_required_redis_that_loads_its_data_is_not_ready_but_alive() {
    // 2,000 keys, 80 ms each, is longer than any step here may take: it loads until it is told to hurry.
    let server = RedisServer::builder()
        .arg("enable-debug-command", "yes")
        .arg("key-load-delay", "80000")
        .arg("rdbcompression", "no")
        .arg("loading-process-events-interval-bytes", "1024")
        .start()
        .await;
    let mut admin = server.connection().await;
    let mut data = redis::pipe();
    for n in 0..2_000 {
        data.cmd("SET").arg(n).arg("x".repeat(1024)).ignore();
    }
    let _: () = data.query_async(&mut admin).await.unwrap();
    let url = server.url();
    let optional = [("REDIS_URL", &*url), ("SHOWCASE_LIMIT", "1000000")];
    let required = [&optional[..], &[("REDIS_REQUIRED", "true")]].concat();
    let required = Showcase::start(&required).await;
    let optional = Showcase::start(&optional).await;
    until_ready_is(&required, 200, "healthy").await;
    until_ready_is(&optional, 200, "healthy").await;

    // It answers when it is done; until then all others hear that the server loads.
    let mut reloader = server.patient_connection().await;
    let began = Instant::now();
    let reload = tokio::spawn(async move {
        let mut reload = redis::cmd("DEBUG");
        reload.arg("RELOAD").query_async::<()>(&mut reloader).await
    });
    until_ready_is(&required, 503, "unhealthy").await;
    until_ready_is(&optional, 200, "degraded").await;
    // It stays so for as long as the server loads.
    loop {
        for showcase in [&required, &optional] {
            assert_eq!(showcase.get("/health/live", "").await.status, 200);
            assert_eq!(showcase.limited("a").await, 200, "the local share decides");
        }
        assert_eq!(required.get("/health", "").await.status, 503);
        assert_eq!(optional.get("/health/detailed", "").await.status, 200);
        assert_eq!(readiness(&required).await, (503, "unhealthy".to_owned()));
        assert_eq!(readiness(&optional).await, (200, "degraded".to_owned()));
        if began.elapsed() > LOADING {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!reload.is_finished(), "it was not ready for another reason");

    let mut hurry = redis::cmd("CONFIG");
    let hurry = hurry.arg("SET").arg("key-load-delay").arg(0);
    hurry.exec_async(&mut admin).await.unwrap();
    timeout(BOUND, reload).await.unwrap().unwrap().unwrap();
    until_ready_is(&required, 200, "healthy").await;
    until_ready_is(&optional, 200, "healthy").await;
}
