//! Publish and subscribe: the same promises on every backend, and what the network does to them.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::time::Duration;

use redis_conn::{Backend, Bus, Config, ErrorKind, Event, State, Subscription};
use support::LONG;
use testkit::{Fault, FaultProxy, PASSWORD, RedisServer, USER};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

async fn next(subscription: &mut Subscription) -> Event {
    tokio::time::timeout(LONG, subscription.recv())
        .await
        .expect("nothing came")
        .expect("the subscription ended")
}

async fn message(subscription: &mut Subscription) -> String {
    match next(subscription).await {
        Event::Message(message) => String::from_utf8(message.payload().to_vec()).unwrap(),
        other => panic!("expected a message, found {other:?}"),
    }
}

/// Every message that is sent arrives once, in order, at every subscriber, the sender's process included.
async fn delivers_in_order_to_everybody(backend: Backend) {
    let (bus, other) = (backend.bus(), backend.clone().bus());
    assert_ne!(bus.origin(), other.origin(), "the origin is the handle");
    let (mut first, mut second) = (
        bus.subscribe("news").await.unwrap(),
        other.subscribe("news").await.unwrap(),
    );
    for n in 0..100 {
        bus.publish("news", format!("{n}").as_bytes())
            .await
            .unwrap();
    }
    for n in 0..100 {
        assert_eq!(message(&mut first).await, n.to_string());
        let Event::Message(copy) = next(&mut second).await else {
            panic!("not a message")
        };
        assert_eq!(
            (copy.payload(), copy.origin()),
            (n.to_string().as_bytes(), bus.origin())
        );
    }
    assert_eq!(first.lost() + second.lost(), 0);
}

async fn keeps_channels_and_namespaces_apart(backend: Backend) {
    let elsewhere = backend.namespace("other").unwrap();
    let mut news = backend.bus().subscribe("news").await.unwrap();
    let mut theirs = elsewhere.bus().subscribe("news").await.unwrap();
    backend
        .bus()
        .publish("olds", b"wrong channel")
        .await
        .unwrap();
    elsewhere.bus().publish("news", b"theirs").await.unwrap();
    backend.bus().publish("news", b"ours").await.unwrap();
    assert_eq!(message(&mut news).await, "ours");
    assert_eq!(message(&mut theirs).await, "theirs");
}

async fn counts_what_a_slow_subscriber_loses_and_says_so_once(backend: Backend) {
    const SENT: u64 = 3_000;
    let bus = backend.bus();
    let mut slow = bus.subscribe("flood").await.unwrap();
    let mut end = bus.subscribe("end").await.unwrap();
    for n in 0..SENT {
        bus.publish("flood", &n.to_le_bytes()).await.unwrap();
    }
    bus.publish("end", b"").await.unwrap();
    message(&mut end).await;

    assert_eq!(next(&mut slow).await, Event::Gap);
    let mut kept = 0;
    while kept + slow.lost() < SENT {
        assert!(
            matches!(next(&mut slow).await, Event::Message(_)),
            "one gap stands for the whole run"
        );
        kept += 1;
    }
    assert_eq!(kept, 1_024, "what waits is bounded");
    bus.publish("flood", b"after").await.unwrap();
    assert_eq!(message(&mut slow).await, "after");
}

async fn ends_with_the_backend(backend: Backend) {
    let bus = backend.bus();
    let mut subscription = bus.subscribe("news").await.unwrap();
    bus.publish("news", b"last").await.unwrap();
    assert_eq!(message(&mut subscription).await, "last");
    backend.close(LONG).await.unwrap();
    assert_eq!(
        tokio::time::timeout(LONG, subscription.recv())
            .await
            .expect("it hangs"),
        None
    );
    assert_eq!(
        *bus.publish("news", b"late").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert_eq!(
        *bus.subscribe("news").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(redis_conn::Backend::memory()).await;
            })*
        }

        #[cfg(feature = "sqlite")]
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let backend = redis_conn::Backend::sqlite(dir.path().join("shared.db")).await.unwrap();
                super::$name(backend).await;
            })*
        }

        mod on_redis {
            $(#[tokio::test]
            async fn $name() {
                // One of them has a second namespace.
                let server = testkit::RedisServer::builder().allow("&other:b1:*").start().await;
                super::$name(super::on(&server.url()).await).await;
            })*
        }
    };
}

suite! {
    delivers_in_order_to_everybody,
    keeps_channels_and_namespaces_apart,
    counts_what_a_slow_subscriber_loses_and_says_so_once,
    ends_with_the_backend,
}

async fn on(url: &str) -> Backend {
    let backend = Backend::redis(Config::from_url(url).unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

/// After a fault: exactly one gap, then everything arrives again.
async fn recovers_with_one_gap(subscription: &mut Subscription, sender: &Bus) {
    assert_eq!(next(subscription).await, Event::Gap);
    sender.publish("news", b"after").await.unwrap();
    assert_eq!(
        message(subscription).await,
        "after",
        "one gap, and nothing else before"
    );
}

#[tokio::test]
async fn a_cut_connection_is_one_gap_for_every_subscriber() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (listener, sender) = (on(&proxy.url()).await, on(&server.url()).await.bus());
    let bus = listener.bus();
    let (mut news, mut olds) = (
        bus.subscribe("news").await.unwrap(),
        bus.subscribe("olds").await.unwrap(),
    );

    proxy.set(Fault::Reset);
    recovers_with_one_gap(&mut news, &sender).await;
    assert_eq!(next(&mut olds).await, Event::Gap);
}

#[tokio::test]
async fn a_connection_killed_by_the_server_is_one_gap() {
    let server = RedisServer::start().await;
    let (listener, sender) = (on(&server.url()).await, on(&server.url()).await.bus());
    let mut news = listener.bus().subscribe("news").await.unwrap();
    let mut also_news = listener.bus().subscribe("news").await.unwrap();
    let mut admin = server.connection().await;
    let killed: u64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("pubsub")
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(killed, 1);
    recovers_with_one_gap(&mut news, &sender).await;
    recovers_with_one_gap(&mut also_news, &sender).await;
    assert_eq!(
        subscribers(&server, "news").await,
        1,
        "still one connection for all"
    );
}

#[tokio::test]
async fn a_connection_gone_without_a_word_is_one_gap() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (listener, sender) = (on(&proxy.url()).await, on(&server.url()).await.bus());
    let mut news = listener.bus().subscribe("news").await.unwrap();

    let accepted = proxy.accepted();
    proxy.set(Fault::Blackhole);
    proxy.wait_for(|stats| stats.accepted > accepted).await;
    proxy.set(Fault::Pass);
    recovers_with_one_gap(&mut news, &sender).await;
}

/// How many connections listen to a channel.
async fn subscribers(server: &RedisServer, channel: &str) -> u64 {
    let mut admin = server.connection().await;
    let (_, count): (String, u64) = redis::cmd("PUBSUB")
        .arg("NUMSUB")
        .arg(format!("tk:b1:{channel}"))
        .query_async(&mut admin)
        .await
        .unwrap();
    count
}

#[tokio::test]
async fn the_server_hears_of_the_first_subscriber_and_of_the_last_one_leaving() {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let subscribers = async || subscribers(&server, "news").await;
    let (bus, other) = (backend.bus(), backend.bus());
    let (first, second) = (
        bus.subscribe("news").await.unwrap(),
        other.subscribe("news").await.unwrap(),
    );
    assert_eq!(subscribers().await, 1, "one connection for all");
    drop(first);
    let third = bus.subscribe("other").await.unwrap();
    assert_eq!(subscribers().await, 1, "somebody still listens");
    drop(second);
    // Requests are served in order: this confirmation comes after the unsubscription.
    let _fourth = bus.subscribe("another").await.unwrap();
    assert_eq!(subscribers().await, 0);
    drop(third);
    // A subscriber who comes before the unsubscription of the last one is served must not lose the channel by it.
    let last = bus.subscribe("news").await.unwrap();
    drop(last);
    let mut came = bus.subscribe("news").await.unwrap();
    let _fifth = bus.subscribe("yet another").await.unwrap();
    assert_eq!(subscribers().await, 1);
    bus.publish("news", b"heard").await.unwrap();
    assert_eq!(message(&mut came).await, "heard");
}

#[tokio::test]
async fn a_subscription_while_the_server_is_away_fails_and_a_later_one_works() {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    server.kill();
    let away = backend.bus().subscribe("news").await.unwrap_err();
    assert_eq!(*away.kind(), ErrorKind::Unavailable);

    server.restart().await;
    let subscribed = async {
        loop {
            match backend.bus().subscribe("news").await {
                Ok(subscription) => return subscription,
                Err(error) => assert_eq!(*error.kind(), ErrorKind::Unavailable),
            }
            tokio::task::yield_now().await;
        }
    };
    let mut news = tokio::time::timeout(LONG, subscribed)
        .await
        .expect("it never works again");
    backend.ready(LONG).await.unwrap();
    backend.bus().publish("news", b"again").await.unwrap();
    // The channel was not listened to during the outage by anybody who could have missed something.
    assert_eq!(message(&mut news).await, "again");
}

#[tokio::test]
async fn a_frame_of_an_unknown_layout_counts_as_lost() {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    let mut admin = server.connection().await;
    let _: u64 = redis::cmd("PUBLISH")
        .arg("tk:b1:news")
        .arg(&b"\x07future"[..])
        .query_async(&mut admin)
        .await
        .unwrap();
    assert_eq!(next(&mut news).await, Event::Gap);
    assert_eq!(news.lost(), 1);
}

#[tokio::test]
async fn a_channel_that_is_forbidden_ends_and_the_others_go_on() {
    let server = RedisServer::builder().open().start().await;
    let mut admin = server.connection().await;
    let mut allow = async |channels: &[&str]| {
        let mut setuser = redis::cmd("ACL");
        setuser
            .arg(&["SETUSER", "shop", "reset", "resetchannels", "on", ">secret"])
            .arg(&["+@all", "~*"])
            .arg(channels);
        let _: () = setuser.query_async(&mut admin).await.unwrap();
    };
    allow(&["&*"]).await;
    let url = server.url().replace("redis://", "redis://shop:secret@");
    let backend = on(&url).await;
    let bus = backend.bus();
    let mut good = bus.subscribe("good").await.unwrap();
    let mut bad = bus.subscribe("bad").await.unwrap();

    // Withdrawing a permission cuts the connection of those who used it.
    allow(&["&tk:b1:good"]).await;
    assert_eq!(next(&mut good).await, Event::Gap);
    assert_eq!(next(&mut bad).await, Event::Gap);
    let end = tokio::time::timeout(LONG, bad.recv()).await;
    assert_eq!(end.expect("it is deaf and does not know"), None);
    let health = backend.health();
    assert_eq!(health.overall, redis_conn::Status::Degraded);
    assert!(health.checks[0].message.contains("refused"), "{health:?}");
    assert_eq!(backend.state(), State::Error);
    bus.publish("good", b"after").await.unwrap();
    assert_eq!(message(&mut good).await, "after");
    let refused = bus.subscribe("bad").await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Server("NOPERM".into()));
    bus.publish("good", b"still").await.unwrap();
    assert_eq!(message(&mut good).await, "still");
    assert_eq!(backend.health().overall, redis_conn::Status::Degraded);
    assert_eq!(backend.state(), State::Error, "nobody has listened again");

    allow(&["&tk:b1:good", "&tk:b1:bad"]).await;
    let mut bad = bus.subscribe("bad").await.unwrap();
    assert_eq!(backend.state(), State::Connected);
    shows(&backend, redis_conn::Status::Healthy).await;
    bus.publish("bad", b"again").await.unwrap();
    assert_eq!(message(&mut bad).await, "again");
}

/// Waits until the health says so, as it does when the probe has asked twice.
async fn shows(backend: &Backend, status: redis_conn::Status) {
    let shown = async {
        while backend.health().overall != status {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let shown = tokio::time::timeout(LONG, shown).await;
    shown.unwrap_or_else(|_| panic!("not {status:?}: {:?}", backend.health()));
}

async fn reaches(backend: &Backend, state: State) {
    let mut states = backend.watch_state();
    let reached = tokio::time::timeout(LONG, states.wait_for(state)).await;
    assert!(reached.unwrap_or_else(|_| panic!("it stays {}", backend.state())));
}

async fn as_admin(server: &RedisServer, command: &str) {
    let mut words = command.split(' ');
    let mut admin = server.connection().await;
    let mut asked = redis::cmd(words.next().unwrap());
    let _: redis::Value = asked
        .arg(words.collect::<Vec<_>>())
        .query_async(&mut admin)
        .await
        .unwrap();
}

/// The subscription had been granted, and is refused when it is made again.
#[tokio::test]
async fn messages_that_cannot_arrive_are_seen_in_the_state_and_in_the_health() {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    assert_eq!(backend.health().overall, redis_conn::Status::Healthy);
    as_admin(&server, &format!("ACL SETUSER {USER} -subscribe")).await;
    as_admin(&server, "CLIENT KILL TYPE pubsub").await;

    assert_eq!(next(&mut news).await, Event::Gap);
    let end = tokio::time::timeout(LONG, news.recv()).await;
    assert_eq!(end.expect("it is deaf and does not know"), None);
    assert_eq!(backend.state(), State::Error);
    // It stays so for longer than the probe needs to change its mind, whatever becomes of the handle that has ended.
    drop(news);
    let mut health = backend.health();
    let probed = |health: &redis_conn::Health| health.checks[0].details.as_ref().unwrap().probed_at;
    for _ in 0..3 {
        let before = probed(&health);
        let asked = async {
            while probed(&health) == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
                health = backend.health();
            }
        };
        tokio::time::timeout(LONG, asked).await.expect("no probe");
        assert_eq!(health.overall, redis_conn::Status::Degraded, "{health:?}");
        assert_eq!(backend.state(), State::Error);
    }

    as_admin(&server, &format!("ACL SETUSER {USER} +subscribe")).await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    assert_eq!(backend.state(), State::Connected);
    backend.bus().publish("news", b"again").await.unwrap();
    assert_eq!(message(&mut news).await, "again");
    shows(&backend, redis_conn::Status::Healthy).await;
}

/// The lanes were connected before the password was changed, and go on.
#[tokio::test]
async fn a_connection_for_subscriptions_that_is_refused_is_seen_in_the_state() {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    as_admin(&server, &format!("ACL SETUSER {USER} resetpass >another")).await;
    as_admin(&server, "CLIENT KILL TYPE pubsub").await;
    reaches(&backend, State::Error).await;
    backend.bus().publish("news", b"unheard").await.unwrap();
    let late = backend.bus().subscribe("olds").await.unwrap_err();
    assert_eq!(*late.kind(), ErrorKind::Unavailable);

    as_admin(&server, &format!("ACL SETUSER {USER} >{PASSWORD}")).await;
    assert_eq!(next(&mut news).await, Event::Gap);
    reaches(&backend, State::Connected).await;
    backend.bus().publish("news", b"again").await.unwrap();
    assert_eq!(message(&mut news).await, "again");
}

#[tokio::test]
async fn subscriptions_that_are_given_up_leave_nothing_behind() {
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let bus = backend.bus();
    // It keeps the connection, which would take the others with it.
    let kept = bus.subscribe("kept").await.unwrap();
    for attempt in 0..200 {
        let channel = format!("channel-{}", attempt % 7);
        let subscribing =
            tokio::time::timeout(Duration::from_micros(attempt), bus.subscribe(&channel));
        drop(subscribing.await);
    }
    let mut admin = server.connection().await;
    let mut channels = async || -> Vec<String> {
        let mut command = redis::cmd("PUBSUB");
        command
            .arg("CHANNELS")
            .query_async(&mut admin)
            .await
            .unwrap()
    };
    let only_one_left = async {
        while channels().await != ["tk:b1:kept"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, only_one_left)
        .await
        .expect("the server knows channels that nobody listens to");

    drop(kept);
    let mut open = async || -> usize {
        let mut command = redis::cmd("CLIENT");
        let clients: String = command.arg("LIST").query_async(&mut admin).await.unwrap();
        clients
            .lines()
            .filter(|client| client.contains(":bus "))
            .count()
    };
    let all_gone = async {
        while open().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, all_gone)
        .await
        .expect("a connection that nobody needs stays open");
    let mut news = bus.subscribe("news").await.unwrap();
    assert_eq!(open().await, 1);
    bus.publish("news", b"heard").await.unwrap();
    assert_eq!(message(&mut news).await, "heard");
}

#[tokio::test]
async fn each_message_to_a_slow_subscriber_is_received_or_counted_as_lost() {
    const SENT: u64 = 1_000_000;
    const BATCH: u64 = 10_000;
    let server = RedisServer::start().await;
    let backend = on(&server.url()).await;
    let mut slow = backend.bus().subscribe("flood").await.unwrap();
    let mut publisher = TcpStream::connect(server.addr()).await.unwrap();
    let login = format!("AUTH {USER} {PASSWORD}\r\n");
    publisher.write_all(login.as_bytes()).await.unwrap();
    let mut welcome = [0; "+OK\r\n".len()];
    publisher.read_exact(&mut welcome).await.unwrap();
    // The layout, an origin, and one byte.
    let frame = "\u{1}\0\0\0\0\0\0\0\0x";
    let publish = format!("*3\r\n$7\r\nPUBLISH\r\n$11\r\ntk:b1:flood\r\n$10\r\n{frame}\r\n");
    let batch = publish.repeat(BATCH as usize);
    // Each is received by one connection.
    let mut replies = vec![0; ":1\r\n".len() * BATCH as usize];
    let mut sent = 0;
    while sent < SENT {
        let (mut requests, answers) = (batch.as_bytes(), &mut replies[..]);
        let (mut reader, mut writer) = publisher.split();
        let written = tokio::io::copy(&mut requests, &mut writer);
        let (written, read) = tokio::join!(written, reader.read_exact(answers));
        assert!(written.is_ok() && read.is_ok());
        sent += BATCH;
        // A client that cannot follow the server is cut by it, which is another matter.
        let followed = async {
            while slow.lost() + 1_024 < sent {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, followed)
            .await
            .expect("some messages are neither kept nor counted");
    }
    assert_eq!(next(&mut slow).await, Event::Gap);
    let mut received = 0;
    while received + slow.lost() < SENT {
        assert!(matches!(next(&mut slow).await, Event::Message(_)));
        received += 1;
    }
    assert_eq!(received, 1_024, "what waits is bounded");
    assert_eq!(received + slow.lost(), SENT);
    backend.bus().publish("flood", b"after").await.unwrap();
    assert_eq!(message(&mut slow).await, "after");
}
