//! The server fixture against a real server.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use redis::AsyncCommands as _;
use testkit::{FaultProxy, Fleet, RedisServer, process};

/// Polls a condition of the operating system, which offers nothing to await.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} did not come true"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Awaited where it is expected: a stranger may hold the port for a moment.
fn refuses(port: u16) -> bool {
    let connected = TcpStream::connect(("127.0.0.1", port));
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn alive(pid: i32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::test_kill_process(pid).is_ok()
}

#[tokio::test]
async fn answers_on_its_own_port_and_persists_nothing() {
    let server = RedisServer::start().await;
    let other = RedisServer::start().await;
    assert_ne!(server.port(), other.port());
    assert_ne!(server.port(), 6379);

    let mut connection = server.connection().await;
    let () = connection.set("b", 1).await.unwrap();
    let () = connection.set("a", 1).await.unwrap();
    assert_eq!(server.keys().await, ["a", "b"]);
    assert_eq!(other.keys().await, [""; 0]);
    let persistence = server.info("persistence").await;
    assert_eq!(persistence["aof_enabled"], "0");

    let before = server.pid();
    server.restart().await;
    assert_ne!(server.pid(), before);
    assert_eq!(server.keys().await, [""; 0]);
}

#[tokio::test]
async fn is_configured_as_in_production_but_for_what_a_test_needs() {
    let server = RedisServer::builder().arg("timeout", "7").start().await;
    let mut connection = server.connection().await;
    for (name, expected) in [
        ("maxmemory-policy", "noeviction"),
        ("appendfsync", "everysec"),
        ("tcp-keepalive", "60"),
        ("maxmemory", "1073741824"),
        ("appendonly", "no"),
        ("aclfile", &format!("{}/users.acl", server.dir().display())),
        ("bind", "127.0.0.1"),
        ("timeout", "7"),
    ] {
        let mut asked = redis::cmd("CONFIG");
        asked.arg("GET").arg(name);
        let found: (String, String) = asked.query_async(&mut connection).await.unwrap();
        assert_eq!(found, (name.to_owned(), expected.to_owned()));
    }
}

async fn connect(url: String) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test]
async fn services_have_the_rights_of_production_and_those_that_a_test_allows() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    for url in [server.url(), proxy.url()] {
        let mut service = connect(url).await;
        let () = service.set("tk:a", 1).await.unwrap();
        for refused in [
            service.set::<_, _, ()>("shop:a", 1).await,
            service.incr("tk:a", 1).await,
        ] {
            assert_eq!(refused.unwrap_err().code(), Some("NOPERM"));
        }
    }
    let mut everything = server.connection().await;
    assert_eq!(everything.incr("shop:a", 1).await, Ok(1));

    let server = RedisServer::builder()
        .allow("~shop:*")
        .allow("+incrby")
        .start()
        .await;
    let mut service = connect(server.url()).await;
    assert_eq!(service.incr("shop:a", 1).await, Ok(1));
    assert_eq!(service.incr("tk:a", 1).await, Ok(1));
}

#[tokio::test]
async fn an_open_server_lets_everybody_do_everything() {
    let server = RedisServer::builder().open().start().await;
    assert_eq!(server.url(), format!("redis://{}", server.addr()));
    let mut anybody = connect(server.url()).await;
    assert_eq!(anybody.incr("shop:a", 1).await, Ok(1));
}

#[tokio::test]
#[should_panic(expected = "this fixture has others")]
async fn nothing_can_be_added_to_users_of_a_test() {
    let _ = RedisServer::builder()
        .users("user default off")
        .allow("+incr");
}

#[tokio::test]
async fn takes_users_from_a_text_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users.acl");
    let users = "user default off\nuser app on >secret ~app:* +get";
    std::fs::write(&file, users).unwrap();
    for builder in [
        RedisServer::builder().users(users),
        RedisServer::builder().acl_file(&file),
    ] {
        let server = builder.start().await;
        server.restart().await;
        let url = format!("redis://app:secret@{}", server.addr());
        let client = redis::Client::open(url).unwrap();
        let mut app = client.get_multiplexed_async_connection().await.unwrap();
        assert_eq!(app.get::<_, Option<i32>>("app:1").await, Ok(None));
        let refused = app.get::<_, Option<i32>>("other").await.unwrap_err();
        assert_eq!(refused.code(), Some("NOPERM"));
        // The fixture has a way in of its own.
        assert_eq!(server.keys().await, [""; 0]);
        assert_eq!(server.command_calls().await["get"].calls, 1);
    }
}

#[tokio::test]
async fn a_restarted_server_has_loaded_its_data() {
    // It answers after each 1,024 entries while it loads, and that is four times.
    let server = RedisServer::builder()
        .append_only(true)
        .arg("key-load-delay", "100")
        .start()
        .await;
    let mut connection = server.connection().await;
    let mut data = redis::pipe();
    for n in 0..5_000 {
        data.set(n, 1).ignore();
    }
    let () = data.query_async(&mut connection).await.unwrap();
    server.restart().await;
    assert_eq!(server.keys().await.len(), 5_000);
}

#[tokio::test]
async fn an_append_only_server_keeps_its_data_over_a_kill() {
    let server = RedisServer::builder()
        .append_only(true)
        .arg("appendfsync", "always")
        .start()
        .await;
    let mut connection = server.connection().await;
    let () = connection.set("kept", 1).await.unwrap();
    let (port, pid) = (server.port(), server.pid());
    server.kill();
    assert!(!alive(pid));
    eventually("a dead port", || refuses(port)).await;
    server.kill();
    server.restart().await;
    assert_eq!(server.port(), port);
    assert_eq!(server.keys().await, ["kept"]);
}

#[tokio::test]
async fn a_restart_waits_for_a_port_that_somebody_holds() {
    let server = RedisServer::start().await;
    server.kill();
    let stranger = TcpListener::bind(server.addr()).unwrap();
    let log = server.dir().join("redis.log");
    let taken = || {
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("Address already in use")
    };
    tokio::join!(server.restart(), async {
        eventually("the first attempt", taken).await;
        drop(stranger);
    });
    assert!(alive(server.pid()));
}

#[tokio::test]
async fn counts_commands() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    let () = connection.set("a", 1).await.unwrap();
    assert_eq!(server.command_calls().await["set"].calls, 1);
    server.reset_stats().await;
    for _ in 0..3 {
        let _: i32 = connection.get("a").await.unwrap();
    }
    let calls = server.command_calls().await;
    assert_eq!(calls["get"].calls, 3);
    assert!(!calls.contains_key("set"), "{calls:?}");
    let mean = calls["get"].usec as f64 / 3.0;
    assert!(
        (calls["get"].usec_per_call - mean).abs() < 0.01,
        "{calls:?}"
    );
}

#[tokio::test]
async fn a_password_is_required_changed_and_kept() {
    let server = RedisServer::builder()
        .password("p@ss \"w\\rd")
        .start()
        .await;
    let anonymous = redis::Client::open(format!("redis://{}", server.addr())).unwrap();
    let refused = match anonymous.get_multiplexed_async_connection().await {
        Ok(mut connection) => connection.get::<_, Option<i32>>("a").await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(refused.unwrap_err().code(), Some("NOAUTH"));

    server.set_password("another").await;
    assert!(
        server.url().starts_with("redis://:another@"),
        "{}",
        server.url()
    );
    server.restart().await;
    let () = server.connection().await.set("a", 1).await.unwrap();
}

#[tokio::test]
async fn a_frozen_server_says_nothing_until_it_thaws() {
    let server = RedisServer::start().await;
    let mut connection = server.connection().await;
    server.freeze();
    let mut asked = tokio::spawn(async move { connection.set::<_, _, ()>("a", 1).await });
    let silence = tokio::time::timeout(Duration::from_millis(100), &mut asked).await;
    assert!(silence.is_err(), "a frozen server answered {silence:?}");
    server.thaw();
    asked.await.unwrap().unwrap();

    server.freeze();
    let pid = server.pid();
    drop(server);
    assert!(!alive(pid), "a frozen server survived its fixture");
}

#[tokio::test]
async fn listens_on_a_unix_socket() {
    let server = RedisServer::builder()
        .open()
        .unix_socket(true)
        .start()
        .await;
    let path = server.unix_socket().unwrap();
    let client = redis::Client::open(format!("redis+unix://{}", path.display())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let () = connection.set("a", 1).await.unwrap();
    assert_eq!(server.keys().await, ["a"]);
}

#[tokio::test]
async fn leaves_a_directory_that_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    drop(RedisServer::builder().dir(dir.path()).start().await);
    assert!(dir.path().join("redis.log").is_file());

    let server = RedisServer::start().await;
    let scratch = server.dir().to_owned();
    assert!(scratch.is_dir());
    drop(server);
    assert!(!scratch.exists());
}

#[tokio::test]
async fn a_panic_stops_the_server() {
    let server = RedisServer::start().await;
    let (port, pid) = (server.port(), server.pid());
    assert!(alive(pid) && !refuses(port));
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _server = server;
        panic!("as a failing test does");
    }));
    assert!(panicked.is_err());
    assert!(!alive(pid));
    eventually("a dead port", || refuses(port)).await;
}

#[tokio::test]
#[should_panic(expected = "Bad directive")]
async fn a_server_that_cannot_start_shows_its_log() {
    RedisServer::builder().arg("nonsense", "1").start().await;
}

#[tokio::test]
async fn a_missing_binary_names_the_command_that_installs_it() {
    let child = Fleet::new("without_a_binary").env("PATH", "/nonexistent");
    let nothing_found = child.clone().env("REDIS_SERVER_BIN", "").run(1).await;
    assert_eq!(
        nothing_found,
        [["neither redis-server nor valkey-server", "true"]]
    );
    let wrongly_set = child
        .env("REDIS_SERVER_BIN", "/nonexistent/redis-server")
        .run(1)
        .await;
    assert_eq!(
        wrongly_set,
        [["REDIS_SERVER_BIN=/nonexistent/redis-server", "true"]]
    );
}

#[tokio::test]
#[ignore = "the child of a_missing_binary_names_the_command_that_installs_it"]
async fn without_a_binary() {
    let started = tokio::spawn(async { drop(RedisServer::start().await) }).await;
    let panic = started.unwrap_err().into_panic();
    let message = panic.downcast::<String>().map_or_else(
        |panic| (*panic.downcast::<&str>().unwrap()).to_owned(),
        |message| *message,
    );
    process::report(message.split(" is ").next().unwrap());
    process::report(message.contains("cargo xtask setup"));
}

#[tokio::test]
async fn the_server_dies_with_a_killed_test_process() {
    let mut child = Fleet::new("starts_a_server_and_waits")
        .spawn(1)
        .await
        .remove(0);
    let port: u16 = child.next_result().await.unwrap().parse().unwrap();
    let pid: i32 = child.next_result().await.unwrap().parse().unwrap();
    let dir = PathBuf::from(child.next_result().await.unwrap());
    assert!(alive(pid) && !refuses(port) && dir.is_dir());

    child.kill();
    eventually("the server's death", || !alive(pid)).await;
    eventually("a dead port", || refuses(port)).await;
    eventually("the removal of its directory", || !Path::exists(&dir)).await;
}

#[tokio::test]
#[ignore = "the child of the_server_dies_with_a_killed_test_process"]
async fn starts_a_server_and_waits() {
    let server = RedisServer::start().await;
    process::report(server.port());
    process::report(server.pid());
    process::report(server.dir().display());
    // A frozen server must die as well.
    server.freeze();
    std::future::pending::<()>().await;
}
