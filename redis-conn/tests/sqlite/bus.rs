//! The bus between processes.

use std::time::Duration;

use redis_conn::{Backend, Event, Subscription};
use testkit::{Fleet, process, until};

use super::{LONG, bypass, scratch};

async fn next(subscription: &mut Subscription) -> Event {
    let event = tokio::time::timeout(LONG, subscription.recv()).await;
    event
        .expect("nothing came")
        .expect("the subscription ended")
}

async fn text(subscription: &mut Subscription) -> String {
    match next(subscription).await {
        Event::Message(message) => String::from_utf8(message.payload().to_vec()).unwrap(),
        other => panic!("expected a message, found {other:?}"),
    }
}

#[tokio::test]
async fn namespaces_do_not_hear_each_other() {
    let (_directory, path) = scratch();
    let backend = Backend::sqlite(&path).await.unwrap();
    let (shop, blog) = (
        backend.namespace("shop").unwrap().bus(),
        backend.namespace("blog").unwrap().bus(),
    );
    let (mut in_shop, mut in_blog) = (
        shop.subscribe("news").await.unwrap(),
        blog.subscribe("news").await.unwrap(),
    );
    shop.publish("news", b"from the shop").await.unwrap();
    blog.publish("news", b"from the blog").await.unwrap();
    shop.publish("news", b"last").await.unwrap();
    blog.publish("news", b"last").await.unwrap();
    assert_eq!(text(&mut in_shop).await, "from the shop");
    assert_eq!(text(&mut in_shop).await, "last");
    assert_eq!(text(&mut in_blog).await, "from the blog");
    assert_eq!(text(&mut in_blog).await, "last");
}

#[tokio::test]
async fn a_message_reaches_another_process_and_comes_back() {
    let (_directory, path) = scratch();
    let backend = Backend::sqlite(&path).await.unwrap();
    let mut answers = backend.bus().subscribe("answers").await.unwrap();
    let mut children = Fleet::new("bus::answers")
        .env("FILE", path.display())
        .spawn(1)
        .await;
    assert_eq!(
        children[0].next_result().await.as_deref(),
        Some("listening")
    );
    for n in 0..20 {
        backend
            .bus()
            .publish("questions", format!("{n}").as_bytes())
            .await
            .unwrap();
        assert_eq!(text(&mut answers).await, format!("answer to {n}"));
    }
    children.remove(0).finish().await;
}

#[tokio::test]
#[ignore = "the child of a_message_reaches_another_process_and_comes_back"]
async fn answers() {
    let backend = Backend::sqlite(std::env::var("FILE").unwrap())
        .await
        .unwrap();
    let bus = backend.bus();
    let mut questions = bus.subscribe("questions").await.unwrap();
    process::report("listening");
    for _ in 0..20 {
        let answer = format!("answer to {}", text(&mut questions).await);
        bus.publish("answers", answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn many_messages_arrive_in_order() {
    let (_directory, path) = scratch();
    let backend = Backend::sqlite(&path).await.unwrap();
    let other = Backend::sqlite(&path).await.unwrap();
    let mut subscription = backend.bus().subscribe("news").await.unwrap();
    let bus = other.bus();
    for n in 0..500 {
        bus.publish("news", format!("{n}").as_bytes())
            .await
            .unwrap();
    }
    for n in 0..500 {
        assert_eq!(text(&mut subscription).await, n.to_string());
    }
}

#[tokio::test]
async fn messages_that_were_trimmed_unread_are_one_gap() {
    let (_directory, path) = scratch();
    let backend = Backend::sqlite(&path).await.unwrap();
    let bus = backend.bus();
    let mut subscription = bus.subscribe("news").await.unwrap();
    bus.publish("news", b"before").await.unwrap();
    assert_eq!(text(&mut subscription).await, "before");
    for keep in ["0", "(SELECT max(seq) FROM tk_bus)"] {
        // In one transaction, so that the poller finds them gone.
        bypass(&path)
            .execute_batch(&format!(
                "BEGIN IMMEDIATE;
                 INSERT INTO tk_bus (channel, frame, at) VALUES ('tk:b1:news', x'010000000000000000', 0);
                 INSERT INTO tk_bus (channel, frame, at) VALUES ('tk:b1:news', x'010000000000000000', 0);
                 INSERT INTO tk_bus (channel, frame, at) VALUES ('tk:b1:other', x'010000000000000000', 0);
                 DELETE FROM tk_bus WHERE seq <> {keep};
                 COMMIT"
            ))
            .unwrap();
        assert_eq!(next(&mut subscription).await, Event::Gap, "kept {keep}");
        bus.publish("news", b"after").await.unwrap();
        assert_eq!(text(&mut subscription).await, "after");
    }
}

#[tokio::test]
async fn listening_begins_anew_after_nobody_did() {
    let (_directory, path) = scratch();
    let backend = Backend::sqlite(&path).await.unwrap();
    let bus = backend.bus();
    for round in 0..20 {
        let mut subscription = bus.subscribe("news").await.unwrap();
        bus.publish("news", format!("{round}").as_bytes())
            .await
            .unwrap();
        assert_eq!(text(&mut subscription).await, round.to_string());
        drop(subscription);
        bus.publish("news", b"unheard").await.unwrap();
    }
}

#[tokio::test]
async fn old_messages_are_trimmed() {
    let (_directory, path) = scratch();
    let clock = std::sync::Arc::new(redis_conn::ManualClock::new(1_000_000_000));
    let backend = Backend::builder()
        .clock(clock.clone())
        .sqlite(&path)
        .await
        .unwrap();
    let bus = backend.bus();
    bus.publish("news", b"old").await.unwrap();
    clock.advance(Duration::from_secs(11));
    bus.publish("news", b"new").await.unwrap();
    let trimmed = async || super::number(&backend, "SELECT min(seq) FROM tk_bus").await == 2;
    until(LONG, "the end of the old message", trimmed)
        .await
        .unwrap();
    assert_eq!(
        super::number(&backend, "SELECT count(*) FROM tk_bus").await,
        1
    );
}

#[tokio::test]
async fn listening_costs_less_than_a_hundredth_of_a_core() {
    let (_directory, path) = scratch();
    let results = Fleet::new("bus::idles")
        .env("FILE", path.display())
        .run(1)
        .await;
    let micros: u64 = results[0][0].parse().unwrap();
    assert!(micros < 20_000, "{micros} µs of processor time in 2 s");
}

#[tokio::test]
#[ignore = "the child of listening_costs_less_than_a_hundredth_of_a_core"]
async fn idles() {
    let backend = super::open(&std::env::var("FILE").unwrap().into()).await;
    let _subscription = backend.bus().subscribe("news").await.unwrap();
    let spent = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
    };
    // What opening left to do is done after the first rounds of the housekeeping.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    // The least of three: what the machine did meanwhile is not ours.
    let mut least = i64::MAX;
    for _ in 0..3 {
        let before = spent();
        tokio::time::sleep(Duration::from_secs(2)).await;
        least = least.min(spent() - before);
    }
    process::report(least);
}
