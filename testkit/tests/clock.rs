//! Time in Redis, frozen and stepped.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    panic::catch_unwind,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::aio::MultiplexedConnection;
use testkit::{RedisClock, RedisServer, clock::EPOCH_MICROS, frozen_time_script};

/// It counts its arguments before it reads the time.
const SCRIPT: &str = "-- as in production
local key, count = KEYS[1], #ARGV
    local t = redis.call('TIME')
redis.call('SET', key, t[1] * 1000000 + t[2])
return { type(t[1]), type(t[2]), #t, t[1], t[2], count, ARGV[1], #ARGV }
";

type Reply = (String, String, usize, String, String, usize, String, usize);

async fn run(connection: &mut MultiplexedConnection, text: &str, added: Vec<String>) -> Reply {
    let mut eval = redis::cmd("EVAL");
    eval.arg(text)
        .arg(1)
        .arg("tk:k")
        .arg("own")
        .arg(added)
        .query_async(connection)
        .await
        .unwrap()
}

/// What the script answers at that time, with one argument of its own.
fn at(seconds: &str, micros: &str) -> Reply {
    let (string, seconds, micros) = ("string".to_owned(), seconds.to_owned(), micros.to_owned());
    let own = "own".to_owned();
    (string.clone(), string, 2, seconds, micros, 1, own, 1)
}

/// A user who may run scripts on one key, and nothing else.
const USER: &str = "user least on >least ~tk:k +eval +set";

#[tokio::test]
async fn a_frozen_script_reads_the_clock_in_the_shape_of_time() {
    let server = RedisServer::builder().users(USER).start().await;
    let clock = RedisClock::new();
    let real = run(&mut server.connection().await, SCRIPT, Vec::new()).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(now.as_secs().abs_diff(real.3.parse().unwrap()) < 60);
    assert_eq!(real, at(&real.3, &real.4));

    let least = redis::Client::open(format!("redis://least:least@{}", server.addr())).unwrap();
    let mut least = least.get_multiplexed_async_connection().await.unwrap();
    let freeze = clock.rewriter();
    let (text, added) = freeze(SCRIPT);
    assert_eq!(
        run(&mut least, &text, added.clone()).await,
        at("1700000000", "0")
    );
    assert_eq!(run(&mut least, &text, added).await, at("1700000000", "0"));
    clock.advance(Duration::from_micros(1_000_042));
    assert_eq!(clock.micros(), EPOCH_MICROS + 1_000_042);
    let (same, added) = freeze(SCRIPT);
    assert_eq!(run(&mut least, &same, added).await, at("1700000001", "42"));
    assert_eq!(same, text, "a server keeps one text whatever the time is");
    clock.clone().set_micros(999);
    let (_, added) = clock.freeze(SCRIPT);
    assert_eq!(run(&mut least, &text, added).await, at("0", "999"));
    assert_eq!(server.keys().await, ["tk:k"], "the clock has no key");
}

#[tokio::test]
async fn an_error_names_the_line_of_the_script() {
    let server = RedisServer::start().await;
    let (text, _) = RedisClock::new().freeze("local t = redis.call('TIME')\nnonsense()");
    let mut eval = redis::cmd("EVAL");
    eval.arg(text).arg(0).arg(0).arg(0);
    let refused = eval.exec_async(&mut server.connection().await).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("user_script:2"), "{text}");
}

#[test]
fn a_script_must_read_its_time_in_one_line_or_not_at_all() {
    let refused = |text: &'static str| catch_unwind(|| frozen_time_script(text)).is_err();
    assert!(refused("return redis.call('TIME')"));
    assert!(refused(
        "local t = redis.call('TIME')\nlocal t = redis.call('TIME')"
    ));
    assert!(refused(
        "local t = redis.call('TIME')\nlocal u = redis.call(\"TIME\")"
    ));
    assert!(refused("local now = redis.call('TIME')"));
    assert!(refused("local t = redis.call('TIME') return t"));
    assert!(!refused("local t = redis.call('TIME')"));
    assert!(!refused("return 1"));
}
