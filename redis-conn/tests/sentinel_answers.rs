//! The Redis backend behind sentinels that say what no real one can be made to say in time.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{net::SocketAddr, time::Duration};

use redis_conn::{Backend, Config};
use support::{LONG, endpoints, incr, redis, until};
use testkit::{Answer, Request, RespMock};
use tokio::time::timeout;

/// What a sentinel says.
#[derive(Clone, Debug)]
struct Words {
    /// The answer to `SENTINEL MASTER`.
    master: SocketAddr,
    config_epoch: String,
    /// The host and port of the answer to `SENTINEL GET-MASTER-ADDR-BY-NAME`.
    host: String,
    port: String,
}

impl Words {
    fn new(primary: &RespMock, config_epoch: u64) -> Self {
        Self {
            master: primary.addr(),
            config_epoch: config_epoch.to_string(),
            host: primary.addr().ip().to_string(),
            port: primary.addr().port().to_string(),
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let bulk = |text: &str| Answer::Bulk(text.into());
        if request.is("SENTINEL MASTER main") {
            let (ip, port) = (self.master.ip().to_string(), self.master.port().to_string());
            let fields = [
                ("name", "main"),
                ("ip", &ip),
                ("port", &port),
                ("config-epoch", &self.config_epoch),
            ];
            Answer::Map(fields.map(|(name, value)| (bulk(name), bulk(value))).into())
        } else if request.is("SENTINEL GET-MASTER-ADDR-BY-NAME main") {
            Answer::Array(vec![bulk(&self.host), bulk(&self.port)])
        } else if request.is("SENTINEL SENTINELS main") {
            Answer::Array(Vec::new())
        } else {
            Answer::Default
        }
    }
}

struct Sentinel {
    mock: RespMock,
}

impl Sentinel {
    async fn start(words: Words) -> Self {
        let mock = RespMock::start(move |request| words.answer(request)).await;
        mock.set_mode("sentinel");
        Self { mock }
    }

    fn say(&self, words: Words) {
        self.mock.on(move |request| words.answer(request));
    }

    async fn asked_again(&self, times: usize) {
        let before = self.mock.count(QUESTION);
        self.mock
            .wait_for(|mock| mock.count(QUESTION) >= before + times)
            .await;
    }
}

const QUESTION: &str = "SENTINEL GET-MASTER-ADDR-BY-NAME";

async fn server() -> RespMock {
    RespMock::start(|request| {
        if request.is("INCR") {
            Answer::Int(1)
        } else {
            Answer::Default
        }
    })
    .await
}

fn start(sentinels: &[&Sentinel]) -> Backend {
    let endpoints = endpoints(sentinels.iter().map(|sentinel| sentinel.mock.addr()));
    Backend::redis(Config::sentinel(endpoints, "main").build().unwrap()).unwrap()
}

/// One write, which must reach this server.
async fn writes_to(backend: &Backend, server: &RespMock) {
    let before = server.count("INCR");
    redis(backend).call(incr("n"), LONG).await.unwrap();
    assert_eq!(server.count("INCR"), before + 1);
}

async fn is_connected_to(server: &RespMock) {
    until("a connection", async || server.connections() > 0).await;
}

#[tokio::test]
async fn the_latest_failover_counts_and_not_the_majority() {
    let (old, new) = (server().await, server().await);
    let stale = Words::new(&old, 4);
    let (one, two) = (
        Sentinel::start(stale.clone()).await,
        Sentinel::start(stale).await,
    );
    let three = Sentinel::start(Words::new(&new, 5)).await;
    let backend = start(&[&one, &two, &three]);
    is_connected_to(&new).await;
    backend.ready(LONG).await.unwrap();
    writes_to(&backend, &new).await;
}

/// The sentinel that leads it has the new epoch already, and gives the new address to those who ask for nothing else.
#[tokio::test]
async fn a_failover_that_is_not_complete_counts() {
    let (old, new) = (server().await, server().await);
    let before = Words::new(&old, 4);
    let (one, two) = (
        Sentinel::start(before.clone()).await,
        Sentinel::start(before).await,
    );
    let backend = start(&[&one, &two]);
    backend.ready(LONG).await.unwrap();
    writes_to(&backend, &old).await;

    one.say(Words {
        master: old.addr(),
        ..Words::new(&new, 5)
    });
    is_connected_to(&new).await;
    backend.ready(LONG).await.unwrap();
    writes_to(&backend, &new).await;
}

#[tokio::test]
async fn a_sentinel_that_was_cut_off_leads_nobody_back() {
    let (old, new) = (server().await, server().await);
    let told = Words::new(&new, 5);
    let (one, two) = (
        Sentinel::start(told.clone()).await,
        Sentinel::start(told).await,
    );
    let backend = start(&[&one, &two]);
    backend.ready(LONG).await.unwrap();
    drop(backend);

    let stale = Sentinel::start(Words::new(&old, 4)).await;
    let backend = start(&[&one, &two, &stale]);
    is_connected_to(&new).await;
    stale.asked_again(1).await;
    drop((one, two));
    stale.asked_again(2).await;
    writes_to(&backend, &new).await;
    assert_eq!(old.connections(), 0);
}

/// `SENTINEL REMOVE` and `SENTINEL MONITOR` at each of them. They are believed after the time in which they would have heard of a
/// failover.
#[tokio::test]
async fn sentinels_that_are_set_up_anew_are_followed() {
    let (old, new) = (server().await, server().await);
    let before = Words::new(&old, 40);
    let (one, two) = (
        Sentinel::start(before.clone()).await,
        Sentinel::start(before).await,
    );
    let backend = start(&[&one, &two]);
    backend.ready(LONG).await.unwrap();

    one.say(Words::new(&new, 0));
    one.asked_again(2).await;
    writes_to(&backend, &old).await;
    two.say(Words::new(&new, 0));
    is_connected_to(&new).await;
    backend.ready(LONG).await.unwrap();
    writes_to(&backend, &new).await;
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_that_sentinels_alone() {
    let primary = server().await;
    let right = Words::new(&primary, 4);
    let wrong = [
        Words {
            port: "0".into(),
            ..right.clone()
        },
        Words {
            port: "70000".into(),
            ..right.clone()
        },
        Words {
            host: String::new(),
            ..right.clone()
        },
        Words {
            config_epoch: "many".into(),
            ..right.clone()
        },
    ];
    for words in wrong {
        let (one, two) = (
            Sentinel::start(words).await,
            Sentinel::start(right.clone()).await,
        );
        let backend = start(&[&one, &two]);
        backend.ready(LONG).await.unwrap();
        writes_to(&backend, &primary).await;

        let backend = start(&[&one]);
        let alone = backend.ready(Duration::from_millis(100)).await;
        assert!(alone.is_err());
    }
}

/// It takes connections and closes none: only the missing answer tells.
#[tokio::test]
async fn a_sentinel_that_says_nothing_is_dialled_anew() {
    let (old, new) = (server().await, server().await);
    let sentinel = Sentinel::start(Words::new(&old, 4)).await;
    let backend = start(&[&sentinel]);
    backend.ready(LONG).await.unwrap();
    sentinel.asked_again(1).await;

    sentinel.mock.on(|request| match request.is("SENTINEL") {
        true => Answer::Silence,
        false => Answer::Default,
    });
    let subscribed = sentinel.mock.count("SUBSCRIBE");
    sentinel
        .mock
        .wait_for(|mock| mock.count("SUBSCRIBE") > subscribed)
        .await;
    writes_to(&backend, &old).await;
    sentinel.say(Words::new(&new, 5));
    is_connected_to(&new).await;
    backend.ready(LONG).await.unwrap();
    writes_to(&backend, &new).await;
}

/// The poll alone would take two seconds for each.
#[tokio::test]
async fn a_switch_that_is_announced_is_asked_about_at_once() {
    const SWITCHES: usize = 40;
    let primary = server().await;
    let sentinel = Sentinel::start(Words::new(&primary, 4)).await;
    let backend = start(&[&sentinel]);
    backend.ready(LONG).await.unwrap();
    sentinel
        .mock
        .wait_for(|mock| mock.count("SENTINEL SENTINELS") > 0)
        .await;

    let payload = "main 127.0.0.1 1 127.0.0.1 2";
    let push = format!(
        ">3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${}\r\n{payload}\r\n",
        payload.len()
    );
    let switches = async {
        for _ in 0..SWITCHES {
            let before = sentinel.mock.count(QUESTION);
            sentinel.mock.push(push.clone());
            sentinel
                .mock
                .wait_for(|mock| mock.count(QUESTION) > before)
                .await;
        }
    };
    assert!(timeout(LONG, switches).await.is_ok(), "they are not");
}

/// The poll alone would take two seconds for each of them, too.
#[tokio::test]
async fn a_lost_connection_is_a_reason_to_ask_soon() {
    const LOSSES: usize = 12;
    let primary = server().await;
    let sentinel = Sentinel::start(Words::new(&primary, 4)).await;
    let backend = start(&[&sentinel]);
    backend.ready(LONG).await.unwrap();
    let losses = async {
        for _ in 0..LOSSES {
            is_connected_to(&primary).await;
            let before = followed(&sentinel);
            primary.close_all();
            sentinel
                .mock
                .wait_for(|_| followed(&sentinel) > before)
                .await;
        }
    };
    assert!(timeout(LONG, losses).await.is_ok(), "they are not");
}

/// The questions on the connection that is subscribed.
fn followed(sentinel: &Sentinel) -> usize {
    let requests = sentinel.mock.requests();
    let subscribed = requests.iter().find(|request| request.is("SUBSCRIBE"));
    let connection = subscribed.map(|request| request.connection);
    let questions = requests.iter().filter(|request| request.is(QUESTION));
    questions
        .filter(|request| Some(request.connection) == connection)
        .count()
}
