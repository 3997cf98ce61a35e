//! Publish and subscribe on a cluster: every channel on the node of its slot, wherever that goes.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_conn::{Backend, Bus, Config, ErrorKind, Event, Status, Subscription};
use support::{LONG, cluster_config};
use testkit::{Answer, RedisCluster, Request, RespMock};

fn config(addrs: impl IntoIterator<Item = SocketAddr>) -> Config {
    cluster_config(addrs).build().unwrap()
}

async fn on(cluster: &RedisCluster) -> Backend {
    let backend = Backend::redis(config(cluster.addrs())).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

async fn primaries_only() -> RedisCluster {
    RedisCluster::builder()
        .replicas_per_primary(0)
        .start()
        .await
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

async fn next(subscription: &mut Subscription) -> Event {
    let event = within("the next event", subscription.recv()).await;
    event.expect("the subscription ended")
}

async fn message(subscription: &mut Subscription) -> String {
    match next(subscription).await {
        Event::Message(message) => String::from_utf8(message.payload().to_vec()).unwrap(),
        other => panic!("expected a message, found {other:?}"),
    }
}

fn slot_of(channel: &str) -> u16 {
    RedisCluster::slot_of(format!("tk:b1:{channel}"))
}

/// Channels whose slots node `index` has had from the beginning, as one of three.
fn channels_of(index: u16) -> impl Iterator<Item = String> {
    let names = (0..).map(|number| format!("channel-{number}"));
    names.filter(move |name| slot_of(name) / 5_462 == index)
}

fn channel_of(index: u16) -> String {
    channels_of(index).next().unwrap()
}

/// Publishes until the cluster takes it, as it does not while a shard has no primary.
async fn publish(bus: &Bus, channel: &str, text: &str) {
    let published = async {
        while bus.publish(channel, text.as_bytes()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within("publishing", published).await;
}

/// After a fault: exactly one gap, then everything arrives again.
async fn recovers_with_one_gap(subscription: &mut Subscription, channel: &str, sender: &Bus) {
    assert_eq!(next(subscription).await, Event::Gap);
    hears_without_a_gap(subscription, channel, sender).await;
}

async fn hears_without_a_gap(subscription: &mut Subscription, channel: &str, sender: &Bus) {
    for text in ["first", "second"] {
        publish(sender, channel, text).await;
        assert_eq!(message(subscription).await, text);
    }
}

async fn ask<T: redis::FromRedisValue>(cluster: &RedisCluster, node: usize, words: &[&str]) -> T {
    let mut connection = cluster.connection(node).await;
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut connection).await.unwrap()
}

/// How many connections for subscriptions a node has.
async fn listeners(cluster: &RedisCluster, node: usize) -> usize {
    let clients: String = ask(cluster, node, &["CLIENT", "LIST"]).await;
    let is_bus = |client: &&str| {
        client
            .split(' ')
            .any(|field| field.starts_with("name=") && field.ends_with(":bus"))
    };
    clients.lines().filter(is_bus).count()
}

async fn shard_channels(cluster: &RedisCluster, node: usize) -> Vec<String> {
    ask(cluster, node, &["PUBSUB", "SHARDCHANNELS"]).await
}

/// Waits until no node knows of a subscriber.
async fn wait_until_silent(cluster: &RedisCluster) {
    let silent = async {
        for node in 0..cluster.nodes().len() {
            while listeners(cluster, node).await > 0
                || !shard_channels(cluster, node).await.is_empty()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    within("the end of all subscriptions", silent).await;
}

#[tokio::test]
async fn channels_of_all_nodes_arrive_once_and_in_order_over_one_connection_per_node() {
    const MESSAGES: usize = 20;
    let cluster = primaries_only().await;
    let (ours, theirs) = (on(&cluster).await, on(&cluster).await);
    let sender = ours.bus();
    let names: Vec<String> = (0..3).flat_map(|node| channels_of(node).take(20)).collect();
    let mut subscriptions = Vec::new();
    for name in &names {
        for backend in [&ours, &theirs] {
            subscriptions.push((name, backend.bus().subscribe(name).await.unwrap()));
        }
    }
    for node in 0..3 {
        assert_eq!(
            listeners(&cluster, node).await,
            2,
            "one connection per process"
        );
    }
    for number in 0..MESSAGES {
        for name in &names {
            publish(&sender, name, &format!("{name} {number}")).await;
        }
    }
    for (name, subscription) in &mut subscriptions {
        for number in 0..MESSAGES {
            assert_eq!(message(subscription).await, format!("{name} {number}"));
        }
    }
    // One more of each: what came twice would stand before it.
    for name in &names {
        publish(&sender, name, "last").await;
    }
    for (_, subscription) in &mut subscriptions {
        assert_eq!(message(subscription).await, "last");
    }
}

#[tokio::test]
async fn namespaces_do_not_meet() {
    let cluster = RedisCluster::builder()
        .replicas_per_primary(0)
        .allow("&other:b1:*")
        .start()
        .await;
    let backend = on(&cluster).await;
    let elsewhere = backend.namespace("other").unwrap();
    let mut ours = backend.bus().subscribe("news").await.unwrap();
    let mut theirs = elsewhere.bus().subscribe("news").await.unwrap();
    publish(&elsewhere.bus(), "news", "theirs").await;
    publish(&backend.bus(), "news", "ours").await;
    assert_eq!(message(&mut ours).await, "ours");
    assert_eq!(message(&mut theirs).await, "theirs");
}

#[tokio::test]
async fn a_subscription_waits_until_the_slots_are_known() {
    let cluster = primaries_only().await;
    let backend = Backend::redis(config(cluster.addrs())).unwrap();
    let mut news = backend.bus().subscribe("news").await.unwrap();
    backend.ready(LONG).await.unwrap();
    hears_without_a_gap(&mut news, "news", &backend.bus()).await;
}

/// Before the slots are known nobody knows how the others listen.
#[tokio::test]
async fn the_first_message_waits_until_the_slots_are_known() {
    let cluster = primaries_only().await;
    let listener = on(&cluster).await;
    let mut news = listener.bus().subscribe("news").await.unwrap();
    let sender = Backend::redis(config(cluster.addrs())).unwrap();
    sender.bus().publish("news", b"first").await.unwrap();
    assert_eq!(message(&mut news).await, "first");
}

#[tokio::test]
async fn only_those_who_listen_on_a_lost_connection_hear_of_it() {
    let cluster = primaries_only().await;
    let backend = on(&cluster).await;
    let (bus, lost, kept) = (backend.bus(), channel_of(0), channel_of(1));
    let mut on_lost = bus.subscribe(&lost).await.unwrap();
    let mut also_on_lost = bus.subscribe(&lost).await.unwrap();
    let mut on_kept = bus.subscribe(&kept).await.unwrap();
    let killed: u64 = ask(&cluster, 0, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert_eq!(killed, 1);
    recovers_with_one_gap(&mut on_lost, &lost, &bus).await;
    assert_eq!(next(&mut also_on_lost).await, Event::Gap);
    assert_eq!(message(&mut also_on_lost).await, "first");
    hears_without_a_gap(&mut on_kept, &kept, &bus).await;
}

/// A slot moves, and the server ends its subscriptions with a push of its own.
#[tokio::test]
async fn a_slot_that_moves_away_is_one_gap_and_is_followed() {
    let cluster = primaries_only().await;
    let (listener, sender) = (on(&cluster).await, on(&cluster).await.bus());
    let (moving, distant) = (channel_of(0), channel_of(2));
    let mut on_moving = listener.bus().subscribe(&moving).await.unwrap();
    let mut on_distant = listener.bus().subscribe(&distant).await.unwrap();
    hears_without_a_gap(&mut on_moving, &moving, &sender).await;

    let slot = slot_of(&moving);
    cluster.migrate_slot(slot, 0, 1).await;
    recovers_with_one_gap(&mut on_moving, &moving, &sender).await;
    assert_eq!(
        shard_channels(&cluster, 1).await,
        [format!("tk:b1:{moving}")]
    );
    hears_without_a_gap(&mut on_distant, &distant, &sender).await;
    assert_eq!(listener.health().overall, Status::Healthy);

    // And back again, to a node that has lost its last channel by then.
    cluster.migrate_slot(slot, 1, 0).await;
    recovers_with_one_gap(&mut on_moving, &moving, &sender).await;
}

/// No message is lost silently while slots move under those who publish.
#[tokio::test]
async fn whatever_is_lost_while_slots_move_is_a_gap() {
    let cluster = primaries_only().await;
    let (listener, sender) = (on(&cluster).await, on(&cluster).await.bus());
    let moving = channel_of(0);
    let mut subscription = listener.bus().subscribe(&moving).await.unwrap();
    let publishing = tokio::spawn({
        let (sender, moving) = (sender.clone(), moving.clone());
        async move {
            for number in 0.. {
                // Paced by the replies: what the mailbox can hold is not the question here.
                publish(&sender, &moving, &number.to_string()).await;
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }
    });
    let slot = slot_of(&moving);
    let moves = tokio::spawn(async move {
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            cluster.migrate_slot(slot, from, to).await;
        }
        cluster
    });
    let (mut expected, mut gaps, mut untold) = (0, 0, false);
    while !(moves.is_finished() && gaps > 0) {
        match next(&mut subscription).await {
            Event::Gap => (gaps, untold) = (gaps + 1, true),
            Event::Message(message) => {
                let number: u64 = std::str::from_utf8(message.payload())
                    .unwrap()
                    .parse()
                    .unwrap();
                assert!(number >= expected, "{number} came after {expected}");
                // Each loss has a gap of its own, which may have overtaken what had arrived before.
                let told = number == expected || std::mem::take(&mut untold);
                assert!(told, "lost {expected} without a gap");
                expected = number + 1;
            }
            other => panic!("{other:?}"),
        }
    }
    publishing.abort();
    assert!(gaps <= 3, "{gaps} gaps for three moves");
    let _cluster = moves.await.unwrap();
}

#[tokio::test]
async fn a_primary_that_dies_is_one_gap() {
    fails_over(RedisCluster::kill).await;
}

/// Its sockets stay open: only its silence and the others tell.
#[tokio::test]
async fn a_primary_that_hangs_is_one_gap() {
    fails_over(RedisCluster::freeze).await;
}

async fn fails_over(fail: fn(&RedisCluster, usize)) {
    let cluster = RedisCluster::start().await;
    let (listener, sender) = (on(&cluster).await, on(&cluster).await.bus());
    let (lost, kept) = (channel_of(0), channel_of(1));
    let mut on_lost = listener.bus().subscribe(&lost).await.unwrap();
    let mut on_kept = listener.bus().subscribe(&kept).await.unwrap();

    fail(&cluster, 0);
    hears_without_a_gap(&mut on_kept, &kept, &sender).await;
    let new = cluster.wait_for_new_primary(slot_of(&lost), 0).await;
    recovers_with_one_gap(&mut on_lost, &lost, &sender).await;
    assert_eq!(
        shard_channels(&cluster, new).await,
        [format!("tk:b1:{lost}")]
    );
    hears_without_a_gap(&mut on_kept, &kept, &sender).await;
}

/// The old primary takes subscriptions as a replica too.
#[tokio::test]
async fn a_primary_that_hands_over_is_one_gap() {
    let cluster = RedisCluster::start().await;
    let (listener, sender) = (on(&cluster).await, on(&cluster).await.bus());
    let moving = channel_of(0);
    let mut on_moving = listener.bus().subscribe(&moving).await.unwrap();
    let replica = cluster.replicas_of(0).await[0];
    cluster.failover(replica).await;
    recovers_with_one_gap(&mut on_moving, &moving, &sender).await;
    assert_eq!(
        shard_channels(&cluster, replica).await,
        [format!("tk:b1:{moving}")]
    );
}

#[tokio::test]
async fn nothing_is_left_on_any_node_when_nobody_listens() {
    let cluster = primaries_only().await;
    let backend = on(&cluster).await;
    let bus = backend.bus();
    let moving = channel_of(0);
    let slot = slot_of(&moving);
    let names: Vec<String> = (0..3).flat_map(|node| channels_of(node).take(10)).collect();
    // They keep the connections, which would take the others with them.
    let mut kept = Vec::new();
    for node in 0..3 {
        kept.push(
            bus.subscribe(&channels_of(node).nth(10).unwrap())
                .await
                .unwrap(),
        );
    }
    let moves = async {
        cluster.migrate_slot(slot, 0, 1).await;
        cluster.migrate_slot(slot, 1, 0).await;
    };
    let comings = async {
        for round in 0..20 {
            let mut some = Vec::new();
            for name in &names {
                let subscribing =
                    tokio::time::timeout(Duration::from_micros(50 * round), bus.subscribe(name));
                // Some are given up in the middle, some are refused while the slot is on its way.
                some.extend(subscribing.await);
            }
        }
    };
    within("subscribing and moving", async {
        tokio::join!(moves, comings)
    })
    .await;
    let only_one_left = async {
        for node in 0..3 {
            while shard_channels(&cluster, node).await.len() != 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    within("the end of the others", only_one_left).await;
    drop(kept);
    wait_until_silent(&cluster).await;
    assert_eq!(backend.health().overall, Status::Healthy);
    let mut again = bus.subscribe(&moving).await.unwrap();
    hears_without_a_gap(&mut again, &moving, &bus).await;
}

/// A server that claims to be a cluster, and a backend that uses it.
async fn mock(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (RespMock, Backend) {
    let mock = RespMock::start(answer).await;
    mock.set_mode("cluster");
    let backend = Backend::redis(config([mock.addr()])).unwrap();
    backend.ready(LONG).await.unwrap();
    (mock, backend)
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// The end of a subscription as the server tells it.
fn sunsubscribe(channel: &str) -> String {
    format!(">3\r\n{}{}:0\r\n", bulk("sunsubscribe"), bulk(channel))
}

/// A message of one letter.
fn smessage(channel: &str, letter: char) -> String {
    let channel = bulk(&format!("tk:b1:{channel}"));
    let frame = bulk(&format!("\u{1}\0\0\0\0\0\0\0\0{letter}"));
    format!(">3\r\n{}{channel}{frame}", bulk("smessage"))
}

/// Two servers that claim to be a cluster of this version, each with a half of the slots.
async fn two_mocks(version: &str) -> [RespMock; 2] {
    let mocks = [
        RespMock::start(|_| Answer::Default).await,
        RespMock::start(|_| Answer::Default).await,
    ];
    for mock in &mocks {
        mock.set_mode("cluster");
        mock.set_version(version);
        mock.set_slots([
            (0, 8_191, mocks[0].addr()),
            (8_192, 16_383, mocks[1].addr()),
        ]);
    }
    mocks
}

fn counts(mocks: &[RespMock; 2], command: &str) -> [usize; 2] {
    [mocks[0].count(command), mocks[1].count(command)]
}

#[tokio::test]
async fn servers_without_shard_channels_are_listened_to_on_one_node() {
    let mocks = two_mocks("6.2.0").await;
    let backend = Backend::redis(config(mocks.iter().map(RespMock::addr))).unwrap();
    backend.ready(LONG).await.unwrap();
    let bus = backend.bus();
    let (low, high) = (channel_of(0), channel_of(2));
    let mut on_low = bus.subscribe(&low).await.unwrap();
    let mut on_high = bus.subscribe(&high).await.unwrap();
    assert_eq!(counts(&mocks, "SSUBSCRIBE"), [0, 0]);
    let mut plain = counts(&mocks, "SUBSCRIBE");
    plain.sort_unstable();
    assert_eq!(plain, [0, 2], "both on one node");

    // All of them are new ones now: each channel goes to the node of its slot, which is one gap.
    mocks.iter().for_each(|mock| mock.set_version("7.2.0"));
    mocks.iter().for_each(RespMock::close_all);
    assert_eq!(next(&mut on_low).await, Event::Gap);
    assert_eq!(next(&mut on_high).await, Event::Gap);
    let moved = async {
        while counts(&mocks, "SSUBSCRIBE") != [1, 1] {
            tokio::task::yield_now().await;
        }
    };
    within("the move", moved).await;
}

/// A cluster is upgraded node by node. One that is not there at times is no reason to think that all are new.
#[tokio::test]
async fn one_old_server_is_enough_to_listen_on_one_node() {
    let mocks = two_mocks("7.2.0").await;
    mocks[1].set_version("6.2.0");
    // Who is asked first is a new one.
    let backend = Backend::redis(config([mocks[0].addr()])).unwrap();
    backend.ready(LONG).await.unwrap();
    let bus = backend.bus();
    let _low = bus.subscribe(&channel_of(0)).await.unwrap();
    let _high = bus.subscribe(&channel_of(2)).await.unwrap();
    assert_eq!(counts(&mocks, "SUBSCRIBE").iter().sum::<usize>(), 2);
    mocks[1].on(|request| match request.is("HELLO") {
        true => Answer::Close,
        false => Answer::Default,
    });
    mocks[1].close_all();
    let asked = mocks[0].count("CLUSTER SLOTS");
    let looked_up = async {
        // While the old one is away, and not only as it goes.
        while mocks[0].count("CLUSTER SLOTS") < asked + 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the look-ups", looked_up).await;
    bus.publish(&channel_of(0), b"").await.unwrap();
    assert_eq!(counts(&mocks, "SSUBSCRIBE"), [0, 0]);
    assert_eq!(counts(&mocks, "SPUBLISH"), [0, 0]);
    assert_eq!(counts(&mocks, "PUBLISH"), [1, 0]);
}

/// Nothing is in flight, so that the push disturbs no answer.
#[tokio::test]
async fn a_subscription_that_the_server_ends_is_made_again() {
    let ends = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&ends);
    let (mock, backend) = mock(move |request| {
        let fence = request.arg(1);
        if !request.is("PING") || fence.is_empty() || !armed.swap(false, Ordering::Relaxed) {
            return Answer::Default;
        }
        Answer::Raw((bulk(&fence) + &sunsubscribe("tk:b1:news")).into_bytes())
    })
    .await;
    let mut news = backend.bus().subscribe("news").await.unwrap();
    ends.store(true, Ordering::Relaxed);
    let _other = backend.bus().subscribe("other").await.unwrap();
    assert_eq!(next(&mut news).await, Event::Gap);
    assert_eq!(mock.count("SSUBSCRIBE tk:b1:news"), 2);
    mock.push(smessage("news", 'a'));
    assert_eq!(message(&mut news).await, "a");
}

#[tokio::test]
async fn a_channel_follows_the_map_even_if_its_server_says_nothing() {
    let mocks = two_mocks("7.2.0").await;
    let backend = Backend::redis(config(mocks.iter().map(RespMock::addr))).unwrap();
    backend.ready(LONG).await.unwrap();
    let (bus, moving) = (backend.bus(), channel_of(0));
    let mut subscription = bus.subscribe(&moving).await.unwrap();

    let (slot, new) = (slot_of(&moving), mocks[1].addr());
    mocks[0].on(move |request| match request.is("SPUBLISH") {
        true => Answer::error(format!("MOVED {slot} {new}")),
        false => Answer::Default,
    });
    mocks[1].on(|request| match request.is("SPUBLISH") {
        true => Answer::Int(0),
        false => Answer::Default,
    });
    for mock in &mocks {
        mock.set_slots([(0, 16_383, new)]);
    }
    // Whoever is sent elsewhere has the map looked up again.
    bus.publish(&moving, b"").await.unwrap();
    assert_eq!(next(&mut subscription).await, Event::Gap);
    let left = async {
        while mocks[0].count(&format!("SUNSUBSCRIBE tk:b1:{moving}")) == 0 {
            tokio::task::yield_now().await;
        }
    };
    within("leaving the old place", left).await;
    mocks[0].push(smessage(&moving, 'x'));
    mocks[1].push(smessage(&moving, 'a'));
    assert_eq!(
        message(&mut subscription).await,
        "a",
        "the old place is not heard any more"
    );
}

#[tokio::test]
async fn a_channel_that_is_not_taken_yet_is_asked_for_again() {
    let asked = AtomicUsize::new(0);
    let (mock, backend) = mock(move |request| {
        if !request.is("SSUBSCRIBE tk:b1:moving") {
            return Answer::Default;
        }
        match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::error("MOVED 1 127.0.0.1:1"),
            1 => Answer::error("CLUSTERDOWN Hash slot not served"),
            2 => Answer::error("TRYAGAIN"),
            _ => Answer::Default,
        }
    })
    .await;
    let bus = backend.bus();
    let mut kept = bus.subscribe("kept").await.unwrap();
    let mut moving = bus.subscribe("moving").await.unwrap();
    assert_eq!(mock.count("SSUBSCRIBE tk:b1:moving"), 4);
    assert_eq!(mock.count("SSUBSCRIBE tk:b1:kept"), 1, "the others stay");
    assert_eq!(backend.health().overall, Status::Healthy);
    for (subscription, name) in [(&mut moving, "moving"), (&mut kept, "kept")] {
        mock.push(smessage(name, 'a'));
        assert_eq!(
            message(subscription).await,
            "a",
            "and nobody has missed anything"
        );
    }
}

#[tokio::test]
async fn a_refusal_that_waiting_does_not_help_is_told_at_once() {
    let (_mock, backend) = mock(|request| match request.is("SSUBSCRIBE") {
        true => Answer::error("ERR unknown command"),
        false => Answer::Default,
    })
    .await;
    let refused = backend.bus().subscribe("news").await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Server("ERR".into()));
    let healthy = async {
        while backend.health().overall != Status::Healthy {
            tokio::task::yield_now().await;
        }
    };
    within("forgetting who was refused", healthy).await;
}

/// It would take the subscription, and lose it to the new primary a moment later.
#[tokio::test]
async fn a_node_that_has_become_a_replica_is_not_listened_to() {
    let (mock, backend) = mock(|_| Answer::Default).await;
    mock.set_replica(true);
    let refused = backend.bus().subscribe("news").await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Unavailable);
    assert_eq!(mock.count("SSUBSCRIBE"), 0);
    mock.set_replica(false);
    let subscribed = async { while backend.bus().subscribe("news").await.is_err() {} };
    within("the subscription", subscribed).await;
}

/// The client library takes the push that ends a subscription for the answer to the oldest command.
#[tokio::test]
async fn an_answer_too_many_does_not_shift_the_others() {
    let (mock, backend) = mock(|request| {
        if !request.is("SUNSUBSCRIBE") {
            return Answer::Default;
        }
        let push = sunsubscribe(&request.arg(1));
        Answer::Raw((push + "-MOVED 1 127.0.0.1:1\r\n").into_bytes())
    })
    .await;
    let bus = backend.bus();
    let left = bus.subscribe("left").await.unwrap();
    let mut kept = bus.subscribe("kept").await.unwrap();
    drop(left);
    assert_eq!(
        next(&mut kept).await,
        Event::Gap,
        "its connection is not to be trusted"
    );
    assert_eq!(mock.count("SSUBSCRIBE tk:b1:left"), 1);
    assert_eq!(mock.count("SSUBSCRIBE tk:b1:kept"), 2);
}
