//! What is stored, and what is done with what is not known.

use std::{sync::Arc, time::Duration};

use redis_conn::ErrorKind;
use testkit::clock::EPOCH_MICROS;

use super::{Fixture, LONG, mutex, name, semaphore};
use crate::{
    FenceMode,
    store::{Acquired, Next, Outcome, Store as _},
    terms::Terms,
};

/// What is stored now is read by all later versions.
#[tokio::test]
async fn what_is_stored_of_a_lock_is_this() {
    let fixture = Fixture::start().await;
    let (name, terms, later) = (name("a"), mutex(), mutex());
    let owner = terms.owner;
    let of = async |key: &str| -> String { fixture.run(&["GET", key]).await };
    let key = "tk:l1:{a}:held";
    let now = format!("{EPOCH_MICROS:016}");
    let none = "0".repeat(32);

    fixture
        .store
        .acquire(&name, &terms, None, LONG)
        .await
        .unwrap();
    let head = format!("1{now}200000000010000000060000");
    let holder = format!("{owner}0000000030000000x06here:1{now}{now}");
    assert_eq!(of(key).await, format!("{head}{holder}{none}"));

    fixture
        .store
        .acquire(&name, &later, Some("locks:b"), LONG)
        .await
        .unwrap();
    let head = format!("1{now}300000000010000000060000");
    assert_eq!(of(key).await, format!("{head}{holder}{none}"));
    let waiting: Vec<String> = fixture.run(&["HGETALL", "tk:l1:{a}:who"]).await;
    let (waits, then) = (later.owner, format!("{:016}", EPOCH_MICROS + 3_000_000));
    let waiter =
        format!("{then}cp00000000010000000060000{waits}0000000030000000x06here:1tk:b1:locks:b");
    assert_eq!(waiting, [waits.to_string(), waiter]);
    let line: Vec<String> = fixture
        .run(&["ZRANGE", "tk:l1:{a}:line", "0", "-1", "WITHSCORES"])
        .await;
    assert_eq!(line[0], waits.to_string());

    fixture
        .store
        .release(&name, &later, false, Next::InLine, LONG)
        .await
        .unwrap();
    fixture
        .store
        .release(&name, &terms, false, Next::InLine, LONG)
        .await
        .unwrap();
    let head = format!("1{now}200000000010000000060000");
    assert_eq!(of(key).await, format!("{head}{owner}"));

    fixture
        .store
        .release(&name, &later, true, Next::InLine, LONG)
        .await
        .unwrap();
    assert_eq!(of(&format!("tk:l1:{{a}}:x:{}", later.owner)).await, "1");
}

async fn no_key_is_for_ever(fixture: &Fixture, least: usize) {
    let keys = fixture.server.keys().await;
    assert!(keys.len() >= least, "{keys:?}");
    for key in keys {
        let left: i64 = fixture.run(&["PTTL", &key]).await;
        assert!(left > 0, "{key} is kept for {left}");
    }
}

#[tokio::test]
async fn no_key_is_without_an_end() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    for (number, fence) in [FenceMode::Clock, FenceMode::Counter]
        .into_iter()
        .enumerate()
    {
        let name = name(&format!("n{number}"));
        let with = |terms: Terms| Terms { fence, ..terms };
        let (one, two, three, four) = (
            with(semaphore(2)),
            with(semaphore(2)),
            with(semaphore(2)),
            with(semaphore(2)),
        );
        for terms in [&one, &two, &three] {
            store
                .acquire(&name, terms, Some("locks:a"), LONG)
                .await
                .unwrap();
            no_key_is_for_ever(&fixture, 1).await;
        }
        store
            .renew(&[(name.clone(), one.clone())], LONG)
            .await
            .unwrap();
        no_key_is_for_ever(&fixture, 3).await;
        store
            .release(&name, &one, false, Next::Pass(&four, "locks:a"), LONG)
            .await
            .unwrap();
        no_key_is_for_ever(&fixture, 3).await;
        store.force(&name, LONG).await.unwrap();
        no_key_is_for_ever(&fixture, 1).await;
        store
            .release(
                &name,
                &two,
                true,
                Next::Yield(&mutex_of(fence), "locks:a"),
                LONG,
            )
            .await
            .unwrap_err();
        store
            .release(&name, &three, false, Next::InLine, LONG)
            .await
            .unwrap();
        no_key_is_for_ever(&fixture, 2).await;
    }
    // What is remembered of a counter outlives what is remembered of a clock.
    let left: i64 = fixture.run(&["PTTL", "tk:l1:{n1}:held"]).await;
    assert!(left > 6 * 24 * 3_600 * 1_000, "{left}");
}

fn mutex_of(fence: FenceMode) -> Terms {
    Terms { fence, ..mutex() }
}

/// A lock is kept for as long as any of its holders may need it, and a shorter lease does not shorten what a longer one left.
#[tokio::test]
async fn nobody_shortens_what_is_remembered() {
    let fixture = Fixture::start().await;
    let (name, long, short) = (name("a"), semaphore(2), semaphore(2));
    let long = Terms {
        ttl: Duration::from_secs(600),
        ..long
    };
    let left = async || -> i64 { fixture.run(&["PTTL", "tk:l1:{a}:held"]).await };
    for terms in [&long, &short] {
        fixture
            .store
            .acquire(&name, terms, None, LONG)
            .await
            .unwrap();
        assert!(left().await > 1_100_000);
    }
    for terms in [&long, &short] {
        fixture
            .store
            .release(&name, terms, false, Next::InLine, LONG)
            .await
            .unwrap();
        assert!(left().await > 1_100_000);
    }
    fixture
        .store
        .acquire(&name, &short, None, LONG)
        .await
        .unwrap();
    assert!(left().await > 1_100_000);
}

async fn is_corrupt(fixture: &Fixture, digest: &str) {
    let (name, terms, heir) = (name("a"), mutex(), mutex());
    let dump = async || -> Vec<u8> { fixture.run(&["DUMP", "tk:l1:{a}:held"]).await };
    let before = dump().await;
    let store = &fixture.store;
    let corrupt = |what: &str, error: Option<redis_conn::Error>| {
        let kind = error.map(|error| error.kind().clone());
        assert_eq!(kind, Some(ErrorKind::Corrupt), "{what} of {digest}");
    };
    corrupt("try", store.acquire(&name, &terms, None, LONG).await.err());
    let counted = Terms {
        fence: FenceMode::Counter,
        ..mutex()
    };
    corrupt(
        "count",
        store.acquire(&name, &counted, None, LONG).await.err(),
    );
    corrupt(
        "acquire",
        store
            .acquire(&name, &terms, Some("locks:a"), LONG)
            .await
            .err(),
    );
    for abandoned in [false, true] {
        let released = store
            .release(&name, &terms, abandoned, Next::InLine, LONG)
            .await;
        corrupt("release", released.err());
    }
    for next in [Next::Pass(&heir, "locks:a"), Next::Yield(&heir, "locks:a")] {
        corrupt(
            "pass",
            store.release(&name, &terms, false, next, LONG).await.err(),
        );
    }
    corrupt("look", store.look(&name, LONG).await.err());
    corrupt("force", store.force(&name, LONG).await.err());
    // Others are renewed by the same call.
    let other = super::name("b");
    store.acquire(&other, &heir, None, LONG).await.unwrap();
    let leases = [(name.clone(), terms), (other.clone(), heir.clone())];
    let renewed = store.renew(&leases, LONG).await.unwrap();
    assert_eq!(renewed, [Outcome::Other, Outcome::Held]);
    store
        .release(&other, &heir, false, Next::InLine, LONG)
        .await
        .unwrap();
    assert_eq!(dump().await, before, "{digest}");
}

#[tokio::test]
async fn what_is_not_known_is_corrupt_and_stays_as_it_is() {
    let fixture = Fixture::start().await;
    let key = "tk:l1:{a}:held";
    fixture
        .store
        .acquire(&name("a"), &mutex(), None, LONG)
        .await
        .unwrap();
    let known: String = fixture.run(&["GET", key]).await;
    let later = known.replacen('1', "2", 1);
    for value in [
        &later,
        "",
        "1",
        &known[..100],
        &known[..73].replace('1', "x"),
        &format!("1{}", "x".repeat(200)),
    ] {
        let _: String = fixture.run(&["SET", key, value, "PX", "60000"]).await;
        is_corrupt(&fixture, value).await;
    }
    let _: u64 = fixture.run(&["DEL", key]).await;
    let _: u64 = fixture.run(&["RPUSH", key, "a"]).await;
    is_corrupt(&fixture, "a list").await;
}

/// The line is asked for only where somebody may be in it.
#[tokio::test]
async fn a_line_that_is_none_is_corrupt() {
    let fixture = Fixture::start().await;
    let (name, first, second) = (name("a"), mutex(), mutex());
    fixture
        .store
        .acquire(&name, &first, None, LONG)
        .await
        .unwrap();
    let _: u64 = fixture.run(&["RPUSH", "tk:l1:{a}:line", "a"]).await;
    let asked = fixture
        .store
        .acquire(&name, &second, Some("locks:a"), LONG)
        .await;
    assert_eq!(*asked.unwrap_err().kind(), ErrorKind::Corrupt);
    let kind: String = fixture.run(&["TYPE", "tk:l1:{a}:line"]).await;
    assert_eq!(kind, "list");
}

#[tokio::test]
async fn an_instance_of_any_length_is_told_as_far_as_there_is_room() {
    let fixture = Fixture::start().await;
    for (given, told) in [
        (String::new(), 0),
        ("x".repeat(64), 64),
        ("\u{e9}".repeat(80), 98),
    ] {
        let (name, terms) = (name(&given.len().to_string()), mutex());
        let terms = Terms {
            instance: Arc::from(&*given),
            ..terms
        };
        fixture
            .store
            .acquire(&name, &terms, None, LONG)
            .await
            .unwrap();
        let seen = fixture.store.look(&name, LONG).await.unwrap();
        assert_eq!(seen.holders[0].instance, given[..told]);
        let busy = fixture
            .store
            .acquire(&name, &mutex(), None, LONG)
            .await
            .unwrap();
        assert!(matches!(busy, Acquired::Busy(busy) if busy.instance == given[..told]));
        let released = fixture
            .store
            .release(&name, &terms, false, Next::InLine, LONG)
            .await;
        assert_eq!(released.unwrap(), (Outcome::Held, None));
    }
}
