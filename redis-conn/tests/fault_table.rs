//! Each row of the table of failures, against a server that fails as told: how often a command of each class is sent, what becomes of
//! the connection, and what the caller hears.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use redis_conn::{
    Backend, Config, ConfigBuilder, Endpoint, Error, ErrorKind, State,
    raw::{Call, Class, Reply, Script},
};
use support::{LONG, redis, until};
use testkit::{Answer, Fault, FaultProxy, Request, RespMock};

const SHORT: Duration = Duration::from_millis(100);

/// What a server may repeat in an error, and nobody else.
const SECRET: &str = "hunter2";

/// What the caller hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hears {
    /// The command was sent a second time, and that was answered.
    Answer,
    /// It was not; the error is of the kind `Server` and has the code.
    Code,
    /// It was not; the error is of the kind `Unavailable`.
    Unavailable,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Replaced,
}

/// What the server refuses a command with, once.
#[rustfmt::skip]
const REFUSALS: &[(&str, Hears, Hears, Fate)] = &[
    // The code    idempotent     at most once   the connection
    ("LOADING",     Hears::Answer, Hears::Answer, Fate::Kept),
    ("MASTERDOWN",  Hears::Answer, Hears::Answer, Fate::Kept),
    ("CLUSTERDOWN", Hears::Answer, Hears::Answer, Fate::Kept),
    ("TRYAGAIN",    Hears::Answer, Hears::Answer, Fate::Kept),
    ("READONLY",    Hears::Answer, Hears::Answer, Fate::Kept),
    ("BUSY",        Hears::Answer, Hears::Code,   Fate::Kept),
    ("UNKILLABLE",  Hears::Answer, Hears::Code,   Fate::Kept),
    ("OOM",         Hears::Code,   Hears::Code,   Fate::Kept),
    ("NOREPLICAS",  Hears::Code,   Hears::Code,   Fate::Kept),
    ("MISCONF",     Hears::Code,   Hears::Code,   Fate::Kept),
    ("EXECABORT",   Hears::Code,   Hears::Code,   Fate::Kept),
    ("WRONGTYPE",   Hears::Code,   Hears::Code,   Fate::Kept),
    ("ERR",         Hears::Code,   Hears::Code,   Fate::Kept),
    ("CROSSSLOT",   Hears::Code,   Hears::Code,   Fate::Kept),
    ("NOSCRIPT",    Hears::Code,   Hears::Code,   Fate::Kept),
    // It is about the one command: another one may be allowed.
    ("NOPERM",      Hears::Code,   Hears::Code,   Fate::Kept),
    ("NOAUTH",      Hears::Code,   Hears::Code,   Fate::Replaced),
    ("WRONGPASS",   Hears::Code,   Hears::Code,   Fate::Replaced),
];

/// How often a command is sent that is never taken, with two retries and three redirections allowed.
#[rustfmt::skip]
const CAPS: &[(&str, usize, usize)] = &[
    ("BUSY",        3, 1),
    ("UNKILLABLE",  3, 1),
    ("MASTERDOWN",  4, 4),
    ("CLUSTERDOWN", 4, 4),
    ("TRYAGAIN",    4, 4),
];

const CLASSES: [Class; 2] = [Class::Idempotent, Class::AtMostOnce];

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint::tcp("127.0.0.1", addr.port())
}

/// With pauses that cost the tests nothing.
fn quick(config: ConfigBuilder) -> ConfigBuilder {
    let soon = Duration::from_millis(1);
    config
        .lanes(1)
        .retry_delay_on_failover(soon)
        .retry_delay_on_cluster_down(soon)
}

fn single(addr: SocketAddr) -> ConfigBuilder {
    quick(Config::builder(endpoint(addr)))
}

fn cluster(addr: SocketAddr) -> ConfigBuilder {
    quick(Config::cluster([endpoint(addr)]))
}

fn started(config: ConfigBuilder) -> Backend {
    Backend::redis(config.build().unwrap()).unwrap()
}

async fn connected(config: ConfigBuilder) -> Backend {
    let backend = started(config);
    backend.ready(LONG).await.unwrap();
    backend
}

/// A replica refuses writes, and is not left for itself.
async fn replica() -> RespMock {
    let mock = RespMock::start(data).await;
    mock.set_replica(true);
    mock
}

async fn node() -> RespMock {
    let mock = RespMock::start(data).await;
    mock.set_mode("cluster");
    mock
}

/// A command that only data is about.
fn call(class: Class) -> Call {
    let name = match class {
        Class::Idempotent => "GET",
        Class::AtMostOnce => "INCR",
    };
    Call::new(name, class).key("k")
}

fn is_data(request: &Request) -> bool {
    ["GET", "INCR", "EVAL", "EVALSHA"]
        .iter()
        .any(|name| request.is(name))
}

/// What a server says that works.
fn data(request: &Request) -> Answer {
    if is_data(request) {
        Answer::Int(1)
    } else {
        Answer::Default
    }
}

/// Gives this answer to the next commands, so many of them.
fn fail(mock: &RespMock, times: usize, answer: Answer) {
    let left = AtomicUsize::new(times);
    mock.forget();
    mock.on(move |request| {
        let one_less = |left: usize| left.checked_sub(1);
        let order = Ordering::Relaxed;
        match is_data(request) && left.fetch_update(order, order, one_less).is_ok() {
            true => answer.clone(),
            false => data(request),
        }
    });
}

/// The connections that the commands came on, in their order.
fn sent(mock: &RespMock) -> Vec<usize> {
    let requests = mock.requests();
    let commands = requests.iter().filter(|request| is_data(request));
    commands.map(|request| request.connection).collect()
}

fn refusal(code: &str) -> Answer {
    Answer::error(format!("{code} {SECRET} is repeated"))
}

fn cause(error: &Error) -> &Error {
    let source = std::error::Error::source(error).expect("a cause");
    source.downcast_ref().expect("our error")
}

fn tells_no_secret(error: &Error) {
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
}

/// A call that works, on whatever connection there is by then.
async fn recovers(backend: &Backend) {
    until("an answer", async || {
        redis(backend)
            .call(call(Class::AtMostOnce), LONG)
            .await
            .is_ok()
    })
    .await;
}

fn check(context: &str, code: &str, hears: Hears, answered: Result<Reply, Error>) {
    let error = match (answered, hears) {
        (Ok(reply), Hears::Answer) => return assert_eq!(reply.int().unwrap(), 1, "{context}"),
        (Ok(reply), _) => panic!("{context}: {reply:?}"),
        (Err(error), _) => error,
    };
    let kind = match hears {
        Hears::Answer => panic!("{context}: {error}"),
        Hears::Code => ErrorKind::Server(code.into()),
        Hears::Unavailable => ErrorKind::Unavailable,
    };
    assert_eq!(*error.kind(), kind, "{context}: {error}");
    tells_no_secret(&error);
}

async fn every_refusal_has_its_consequences(mock: &RespMock, config: ConfigBuilder) {
    let backend = connected(config).await;
    for (code, idempotent, at_most_once, fate) in REFUSALS {
        for (class, hears) in CLASSES.into_iter().zip([idempotent, at_most_once]) {
            let context = format!("{code} to {class:?}");
            fail(mock, 1, refusal(code));
            let answered = redis(&backend).call(call(class), LONG).await;
            check(&context, code, *hears, answered);
            let times = if *hears == Hears::Answer { 2 } else { 1 };
            assert_eq!(sent(mock).len(), times, "{context}");

            recovers(&backend).await;
            let connections = sent(mock);
            let fates = match connections
                .iter()
                .all(|connection| *connection == connections[0])
            {
                true => Fate::Kept,
                false => Fate::Replaced,
            };
            assert_eq!(fates, *fate, "{context}: {connections:?}");
        }
    }
}

#[tokio::test]
async fn every_refusal_of_a_single_server_has_its_consequences() {
    let mock = replica().await;
    every_refusal_has_its_consequences(&mock, single(mock.addr())).await;
}

/// Before Redis 7 what a command inside of a script is refused with comes in another wrapping.
#[tokio::test]
async fn a_refusal_inside_of_a_script_is_that_refusal_on_old_servers_too() {
    static SCRIPT: Script = Script::new("return redis.call('SET', KEYS[1], 1)");
    let old = |code: &str| {
        Answer::error(format!(
            "ERR Error running script (call to f_2067d915024a3e1657c4169c84f809f8ebcf5b2e): \
             @user_script:1: @user_script: 1: -{code} {SECRET} is repeated: -NOAUTH "
        ))
    };
    let mock = replica().await;
    let backend = connected(single(mock.addr())).await;
    for (code, hears) in [
        ("READONLY", Hears::Answer),
        ("OOM", Hears::Code),
        ("MISCONF", Hears::Code),
        ("WRONGTYPE", Hears::Code),
    ] {
        fail(&mock, 1, old(code));
        let redis = redis(&backend);
        let script = redis.script(&SCRIPT, Class::AtMostOnce, &["k"]);
        check(code, code, hears, script.run(LONG).await);
        // Who refuses writes is looked past.
        mock.wait_for(|mock| mock.accepted() > 1).await;
    }
}

#[tokio::test]
async fn every_refusal_of_a_node_has_its_consequences() {
    let mock = node().await;
    every_refusal_has_its_consequences(&mock, cluster(mock.addr())).await;
}

async fn a_command_that_is_never_taken_is_sent_so_often(mock: &RespMock, config: ConfigBuilder) {
    let backend = connected(config.max_retries(2).max_redirections(3)).await;
    for (code, idempotent, at_most_once) in CAPS {
        for (class, times) in CLASSES.into_iter().zip([idempotent, at_most_once]) {
            let context = format!("{code} to {class:?}");
            fail(mock, usize::MAX, refusal(code));
            let answered = redis(&backend).call(call(class), LONG).await;
            let hears = match *code {
                "BUSY" | "UNKILLABLE" => Hears::Code,
                _ => Hears::Unavailable,
            };
            check(&context, code, hears, answered);
            assert_eq!(sent(mock).len(), *times, "{context}");
        }
    }
}

#[tokio::test]
async fn a_command_that_is_never_taken_is_sent_only_so_often() {
    let mock = replica().await;
    a_command_that_is_never_taken_is_sent_so_often(&mock, single(mock.addr())).await;
    let mock = node().await;
    a_command_that_is_never_taken_is_sent_so_often(&mock, cluster(mock.addr())).await;
}

#[tokio::test]
async fn who_loads_or_has_a_successor_is_asked_until_it_answers_whatever_the_caps_say() {
    let mock = replica().await;
    let config = single(mock.addr()).max_retries(0).max_redirections(1);
    let backend = connected(config.retry_delay_on_failover(SHORT)).await;
    for (code, class) in [
        ("LOADING", Class::Idempotent),
        ("LOADING", Class::AtMostOnce),
        ("READONLY", Class::Idempotent),
        ("READONLY", Class::AtMostOnce),
    ] {
        fail(&mock, 5, refusal(code));
        redis(&backend).call(call(class), LONG).await.unwrap();
        assert_eq!(sent(&mock).len(), 6, "{code}");

        fail(&mock, usize::MAX, refusal(code));
        let loading = redis(&backend)
            .call(call(class), Duration::from_secs(2))
            .await;
        let loading = loading.unwrap_err();
        assert_eq!(
            *loading.kind(),
            ErrorKind::Unavailable,
            "the refusal, no timeout: {loading}"
        );
        assert!(sent(&mock).len() > 2);
    }
}

#[tokio::test]
async fn a_pause_beyond_the_deadline_is_not_begun() {
    let late = Duration::from_secs(60);
    for code in ["READONLY", "MASTERDOWN", "CLUSTERDOWN"] {
        let mock = replica().await;
        let config = single(mock.addr())
            .retry_delay_on_failover(late)
            .retry_delay_on_cluster_down(late);
        let backend = connected(config).await;
        for class in CLASSES {
            fail(&mock, usize::MAX, refusal(code));
            let began = Instant::now();
            let refused = redis(&backend)
                .call(call(class), late / 2)
                .await
                .unwrap_err();
            assert_eq!(*refused.kind(), ErrorKind::Unavailable, "{code}: {refused}");
            assert!(refused.to_string().contains(code), "{refused}");
            assert!(began.elapsed() < late / 4, "{code}: {:?}", began.elapsed());
            assert_eq!(sent(&mock).len(), 1, "{code}");
        }
    }
}

#[tokio::test]
async fn readers_keep_their_connection_until_a_server_takes_writes() {
    let mock = replica().await;
    let backend = connected(single(mock.addr()).max_retries(0)).await;
    fail(&mock, 1, refusal("READONLY"));
    let dialled = mock.accepted();
    redis(&backend)
        .call(call(Class::AtMostOnce), LONG)
        .await
        .unwrap();
    mock.wait_for(|mock| mock.accepted() > dialled).await;
    redis(&backend)
        .call(call(Class::Idempotent), LONG)
        .await
        .unwrap();
    assert_eq!(
        sent(&mock),
        [0, 0, 0],
        "the server that was dialled refuses writes too"
    );

    mock.set_replica(false);
    fail(&mock, 1, refusal("READONLY"));
    let refused = redis(&backend).call(call(Class::AtMostOnce), LONG).await;
    refused.unwrap();
    until("another connection", async || {
        redis(&backend)
            .call(call(Class::Idempotent), LONG)
            .await
            .unwrap();
        let connections = sent(&mock);
        connections.last() != connections.first()
    })
    .await;
}

#[tokio::test]
async fn a_script_that_the_server_does_not_know_is_sent_by_its_text_once() {
    static SCRIPT: Script = Script::new("return 1");
    let mock = RespMock::start(data).await;
    let backend = connected(single(mock.addr())).await;
    for class in CLASSES {
        fail(&mock, 1, refusal("NOSCRIPT"));
        let redis = redis(&backend);
        let script = redis.script(&SCRIPT, class, &["k"]);
        assert_eq!(script.run(LONG).await.unwrap().int().unwrap(), 1);
        assert_eq!((mock.count("EVALSHA"), mock.count("EVAL")), (1, 1));

        fail(&mock, usize::MAX, refusal("NOSCRIPT"));
        let script = redis.script(&SCRIPT, class, &["k"]);
        let unknown = script.run(LONG).await.unwrap_err();
        assert_eq!(*unknown.kind(), ErrorKind::Server("NOSCRIPT".into()));
        assert_eq!((mock.count("EVALSHA"), mock.count("EVAL")), (1, 1));
    }
    assert_eq!(mock.accepted(), 1);
}

#[tokio::test]
async fn a_connection_that_ends_or_speaks_no_resp_is_replaced() {
    for torn in [
        Answer::Close,
        Answer::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Answer::Raw(b"$many\r\n".to_vec()),
    ] {
        let mock = RespMock::start(data).await;
        let backend = connected(single(mock.addr())).await;
        fail(&mock, 1, torn.clone());
        let reply = redis(&backend)
            .call(call(Class::Idempotent), LONG)
            .await
            .unwrap();
        assert_eq!(reply.int().unwrap(), 1);
        let connections = sent(&mock);
        assert_eq!(connections.len(), 2, "{torn:?}");
        assert_ne!(connections[0], connections[1], "{torn:?}");

        fail(&mock, 1, torn.clone());
        let lost = redis(&backend)
            .call(call(Class::AtMostOnce), LONG)
            .await
            .unwrap_err();
        assert!(lost.is_ambiguous(), "{torn:?}: {lost}");
        assert_eq!(sent(&mock).len(), 1, "{torn:?}");
        recovers(&backend).await;
        let connections = sent(&mock);
        assert_ne!(connections.first(), connections.last(), "{torn:?}");
    }
}

#[tokio::test]
async fn a_connection_that_always_ends_is_not_tried_for_ever() {
    let mock = RespMock::start(data).await;
    let backend = connected(single(mock.addr()).max_retries(2)).await;
    fail(&mock, usize::MAX, Answer::Close);
    let lost = redis(&backend)
        .call(call(Class::Idempotent), LONG)
        .await
        .unwrap_err();
    assert_eq!(*lost.kind(), ErrorKind::Unavailable);
    let times = sent(&mock).len();
    assert!((1..=3).contains(&times), "sent {times} times");
}

#[tokio::test]
async fn a_wrong_answer_to_the_probe_condemns_the_connection() {
    let mock = RespMock::start(
        |request| match request.is("PING") && request.args.len() > 1 {
            true if request.connection == 0 => Answer::bulk("0"),
            _ => data(request),
        },
    )
    .await;
    let backend = started(single(mock.addr()));
    let probed = |mock: &RespMock, connection| {
        let requests = mock.requests();
        let of = |request: &&Request| request.connection == connection && request.args.len() > 1;
        requests.iter().filter(of).any(|request| request.is("PING"))
    };
    mock.wait_for(|mock| probed(mock, 0)).await;
    mock.wait_for(|mock| probed(mock, 1)).await;
    recovers(&backend).await;
    assert_eq!(
        sent(&mock).last(),
        Some(&1),
        "the right answer keeps the connection"
    );
    assert_eq!(mock.accepted(), 2);
}

/// Keeps silent for a while, and gives the answers that are due with the first one after it.
fn silent_until_told(mock: &RespMock) -> Arc<AtomicBool> {
    let speaks = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&speaks);
    let due = AtomicUsize::new(0);
    mock.forget();
    mock.on(move |request| {
        if !is_data(request) {
            return Answer::Default;
        }
        if !told.load(Ordering::SeqCst) {
            due.fetch_add(1, Ordering::SeqCst);
            return Answer::Silence;
        }
        Answer::Raw(
            ":1\r\n"
                .repeat(due.swap(0, Ordering::SeqCst) + 1)
                .into_bytes(),
        )
    });
    speaks
}

/// The first questions about a new connection have been answered: for seconds there are no others.
async fn settled(mock: &RespMock) {
    mock.wait_for(|mock| mock.count("INFO") > 0).await;
}

#[tokio::test]
async fn three_silent_timeouts_replace_the_connection_and_none_is_sent_again() {
    let mock = RespMock::start(data).await;
    let backend = connected(single(mock.addr())).await;
    settled(&mock).await;
    silent_until_told(&mock);
    for (class, kind) in [
        (Class::Idempotent, ErrorKind::Timeout),
        (Class::AtMostOnce, ErrorKind::Ambiguous),
        (Class::Idempotent, ErrorKind::Timeout),
    ] {
        assert_eq!(mock.accepted(), 1);
        let late = redis(&backend).call(call(class), SHORT).await.unwrap_err();
        assert_eq!(*late.kind(), kind, "{late}");
    }
    assert_eq!(sent(&mock), [0, 0, 0]);
    mock.wait_for(|mock| mock.accepted() == 2).await;
    mock.on(data);
    recovers(&backend).await;
}

#[tokio::test]
async fn a_reply_between_timeouts_begins_the_count_anew() {
    let mock = RespMock::start(data).await;
    let backend = connected(single(mock.addr())).await;
    settled(&mock).await;
    for _ in 0..3 {
        let speaks = silent_until_told(&mock);
        for _ in 0..2 {
            let late = redis(&backend).call(call(Class::Idempotent), SHORT).await;
            assert_eq!(*late.unwrap_err().kind(), ErrorKind::Timeout);
        }
        speaks.store(true, Ordering::SeqCst);
        redis(&backend)
            .call(call(Class::Idempotent), LONG)
            .await
            .unwrap();
    }
    assert_eq!(mock.accepted(), 1);
}

#[tokio::test]
async fn what_is_too_much_is_not_sent() {
    let mock = RespMock::start(data).await;
    let backend = connected(single(mock.addr()).max_in_flight(1)).await;
    settled(&mock).await;
    let speaks = silent_until_told(&mock);
    let waiting = tokio::spawn({
        let redis = redis(&backend).clone();
        async move { redis.call(call(Class::Idempotent), LONG).await }
    });
    mock.wait_for(|mock| mock.count("GET") == 1).await;
    for class in CLASSES {
        let refused = redis(&backend).call(call(class), LONG).await.unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::Saturated);
    }
    assert_eq!(sent(&mock).len(), 1);
    speaks.store(true, Ordering::SeqCst);
    mock.push(":1\r\n");
    assert_eq!(waiting.await.unwrap().unwrap().int().unwrap(), 1);
    assert_eq!(mock.accepted(), 1);
}

/// What the server says to `HELLO`, the state that follows, and the kind of error that is the cause.
#[tokio::test]
async fn who_is_refused_at_the_door_knocks_again() {
    let code = |code: &str| ErrorKind::Server(code.into());
    for (says, state, kind) in [
        ("WRONGPASS", State::Error, code("WRONGPASS")),
        ("NOAUTH", State::Error, code("NOAUTH")),
        ("NOPERM", State::Error, code("NOPERM")),
        ("NOPROTO", State::Error, code("NOPROTO")),
        ("ERR unknown command", State::Error, code("ERR")),
        (
            "ERR max number of clients reached",
            State::Reconnecting,
            ErrorKind::Unavailable,
        ),
        ("MASTERDOWN", State::Reconnecting, ErrorKind::Unavailable),
    ] {
        let mock = RespMock::start(move |request| match request.is("HELLO") {
            true => refusal(says),
            false => data(request),
        })
        .await;
        let backend = started(single(mock.addr()).password(SECRET));
        assert!(backend.watch_state().wait_for(state).await, "{says}");
        for class in CLASSES {
            let mut refused = redis(&backend).call(call(class), LONG).await;
            if refused
                .as_ref()
                .is_err_and(|error| std::error::Error::source(error).is_none())
            {
                // The attempt that it waited for.
                refused = redis(&backend).call(call(class), LONG).await;
            }
            let refused = refused.unwrap_err();
            assert_eq!(*refused.kind(), ErrorKind::Unavailable, "{says}: {refused}");
            assert_eq!(*cause(&refused).kind(), kind, "{says}: {refused:?}");
            tells_no_secret(&refused);
        }
        let unready = backend.ready(SHORT).await.unwrap_err();
        assert_eq!(*cause(&unready).kind(), kind, "{says}: {unready:?}");
        assert_eq!(backend.state(), state, "{says}");
        assert!(sent(&mock).is_empty(), "{says}");

        mock.on(data);
        backend.ready(LONG).await.unwrap();
        redis(&backend)
            .call(call(Class::AtMostOnce), LONG)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_dialled_until_it_is() {
    let mock = RespMock::start(data).await;
    let proxy = FaultProxy::start(mock.addr()).await;
    proxy.set(Fault::Refuse);
    let nobody = RespMock::start(data).await.addr();
    let closing = RespMock::start(|_| Answer::Close).await;
    for addr in [proxy.addr(), nobody, closing.addr()] {
        let backend = started(single(addr));
        assert!(backend.watch_state().wait_for(State::Reconnecting).await);
        for class in CLASSES {
            let away = redis(&backend).call(call(class), LONG).await.unwrap_err();
            assert_eq!(*away.kind(), ErrorKind::Unavailable);
            assert_eq!(*cause(&away).kind(), ErrorKind::Unavailable, "{away:?}");
        }
        assert_eq!(backend.state(), State::Reconnecting);
        if addr == proxy.addr() {
            proxy.wait_for(|stats| stats.refused > 1).await;
            proxy.set(Fault::Pass);
            backend.ready(LONG).await.unwrap();
            redis(&backend)
                .call(call(Class::AtMostOnce), LONG)
                .await
                .unwrap();
        }
        if addr == closing.addr() {
            closing.on(data);
            backend.ready(LONG).await.unwrap();
        }
    }
    assert_eq!(sent(&mock).len(), 1);
}

/// It accepts connections, and says so to the `PING` of the greeting.
fn loads(request: &Request) -> Answer {
    match request.is("PING") && request.args.len() == 1 {
        true => refusal("LOADING"),
        false => data(request),
    }
}

#[tokio::test]
async fn callers_wait_for_a_server_that_loads_and_only_so_long() {
    let mock = RespMock::start(loads).await;
    let backend = started(single(mock.addr()).max_loading_timeout(LONG));
    let waiting = tokio::spawn({
        let redis = redis(&backend).clone();
        async move { redis.call(call(Class::AtMostOnce), LONG).await }
    });
    mock.wait_for(|mock| mock.count("PING") > 2).await;
    assert_eq!(backend.state(), State::Reconnecting);
    assert!(!waiting.is_finished());
    mock.on(data);
    waiting.await.unwrap().unwrap();
    assert_eq!(sent(&mock).len(), 1);

    let mock = RespMock::start(loads).await;
    let backend = started(single(mock.addr()).max_loading_timeout(SHORT));
    let loading = redis(&backend)
        .call(call(Class::Idempotent), LONG)
        .await
        .unwrap_err();
    assert_eq!(*loading.kind(), ErrorKind::Unavailable);
    assert!(
        cause(&loading).to_string().contains("LOADING"),
        "{loading:?}"
    );
    tells_no_secret(&loading);
    mock.on(data);
    backend.ready(LONG).await.unwrap();
}

#[tokio::test]
async fn without_the_ready_check_a_server_that_loads_is_connected_to() {
    let mock = RespMock::start(loads).await;
    let backend = connected(single(mock.addr()).ready_check(false)).await;
    redis(&backend)
        .call(call(Class::Idempotent), LONG)
        .await
        .unwrap();
    assert_eq!(mock.accepted(), 1);
}

/// Two nodes, each with one half of the slots; the key of [`call`] is in the half of the first.
async fn two_nodes() -> (RespMock, RespMock) {
    let (here, there) = tokio::join!(node(), node());
    for mock in [&here, &there] {
        mock.set_slots([(0, 8_191, here.addr()), (8_192, 16_383, there.addr())]);
    }
    (here, there)
}

#[tokio::test]
async fn a_moved_key_is_followed_by_both_classes() {
    let (here, there) = two_nodes().await;
    let backend = connected(cluster(here.addr())).await;
    for class in CLASSES {
        fail(
            &here,
            usize::MAX,
            Answer::error(format!("MOVED 7629 {}", there.addr())),
        );
        fail(&there, 0, Answer::Default);
        redis(&backend).call(call(class), LONG).await.unwrap();
        assert_eq!((sent(&here).len(), sent(&there).len()), (1, 1), "{class:?}");
        assert_eq!(there.count("ASKING"), 0);
    }
    here.on(data);
    redis(&backend)
        .call(call(Class::Idempotent), LONG)
        .await
        .unwrap();
    let connections = sent(&here);
    assert!(
        connections
            .iter()
            .all(|connection| *connection == connections[0])
    );
}

#[tokio::test]
async fn asking_stands_directly_before_its_command() {
    const CALLERS: usize = 50;
    let (here, there) = two_nodes().await;
    let backend = connected(cluster(here.addr())).await;
    fail(
        &here,
        usize::MAX,
        Answer::error(format!("ASK 7629 {}", there.addr())),
    );
    fail(&there, 0, Answer::Default);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let redis = redis(&backend).clone();
        let class = CLASSES[caller % 2];
        callers.spawn(async move { redis.call(call(class), LONG).await.unwrap() });
    }
    callers.join_all().await;
    assert_eq!((sent(&here).len(), sent(&there).len()), (CALLERS, CALLERS));

    let requests = there.requests();
    for (at, request) in requests
        .iter()
        .enumerate()
        .filter(|(_, request)| is_data(request))
    {
        let mut before = requests[..at].iter().rev();
        let before = before.find(|before| before.connection == request.connection);
        assert!(
            before.is_some_and(|before| before.is("ASKING")),
            "{before:?}"
        );
    }
    assert_eq!(there.count("ASKING"), CALLERS);
}

#[tokio::test]
async fn nodes_that_send_a_command_to_each_other_do_not_do_so_for_ever() {
    for redirection in ["ASK", "MOVED"] {
        let (here, there) = two_nodes().await;
        let backend = connected(cluster(here.addr()).max_redirections(5)).await;
        for class in CLASSES {
            let to = |mock: &RespMock| Answer::error(format!("{redirection} 7629 {}", mock.addr()));
            fail(&here, usize::MAX, to(&there));
            fail(&there, usize::MAX, to(&here));
            let lost = redis(&backend).call(call(class), LONG).await.unwrap_err();
            assert_eq!(*lost.kind(), ErrorKind::Unavailable, "{lost}");
            assert_eq!(sent(&here).len() + sent(&there).len(), 6, "{redirection}");
        }
    }
}

#[tokio::test]
async fn a_single_server_that_redirects_is_not_followed() {
    let mock = RespMock::start(data).await;
    let backend = connected(single(mock.addr())).await;
    for redirection in ["ASK", "MOVED"] {
        for class in CLASSES {
            fail(
                &mock,
                usize::MAX,
                Answer::error(format!("{redirection} 1 {SECRET}:7000")),
            );
            let context = format!("{redirection} to {class:?}");
            let refused = redis(&backend).call(call(class), LONG).await;
            check(&context, redirection, Hears::Unavailable, refused);
            assert_eq!(sent(&mock), [0], "{context}");
        }
    }
    assert_eq!(mock.accepted(), 1);
}
