//! Time in Redis, frozen and stepped.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use std::{
    panic::catch_unwind,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use testkit::{RedisClock, RedisServer, clock::EPOCH_MICROS, frozen_time_script};

const SCRIPT: &str = "
local key = KEYS[1]
    local t = redis.call('TIME')
redis.call('SET', key, t[1] * 1000000 + t[2])
return { type(t[1]), type(t[2]), #t, t[1], t[2] }
";

type Reply = (String, String, usize, String, String);

async fn run(server: &RedisServer, text: &str) -> Reply {
    let mut connection = server.connection().await;
    let mut eval = redis::cmd("EVAL");
    eval.arg(text)
        .arg(1)
        .arg("k")
        .query_async(&mut connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_rewritten_script_reads_the_clock_in_the_shape_of_time() {
    let rewrite: fn(&str) -> String = frozen_time_script;
    let server = RedisServer::start().await;
    let clock = RedisClock::new(&server).await;
    let real = run(&server, SCRIPT).await;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(now.abs_diff(real.3.parse().unwrap()) < 60);

    let frozen = rewrite(SCRIPT);
    let expected = |seconds: &str, micros: &str| {
        let string = "string".to_owned();
        (
            string.clone(),
            string,
            2,
            seconds.to_owned(),
            micros.to_owned(),
        )
    };
    assert_eq!(
        (&real.0, &real.1, real.2),
        (&"string".to_owned(), &"string".to_owned(), 2)
    );
    assert_eq!(run(&server, &frozen).await, expected("1700000000", "0"));
    assert_eq!(run(&server, &frozen).await, expected("1700000000", "0"));
    clock.advance(Duration::from_micros(1_000_042)).await;
    assert_eq!(clock.micros().await, EPOCH_MICROS + 1_000_042);
    assert_eq!(run(&server, &frozen).await, expected("1700000001", "42"));
    clock.set_micros(999).await;
    assert_eq!(run(&server, &frozen).await, expected("0", "999"));
    assert_eq!(
        server.keys().await,
        ["k"],
        "the clock's own key is not listed"
    );
}

#[test]
fn a_script_must_read_its_time_once() {
    let refused = |text: &'static str| catch_unwind(|| frozen_time_script(text)).is_err();
    assert!(refused("return 1"));
    assert!(refused(
        "local t = redis.call('TIME')\nlocal t = redis.call('TIME')"
    ));
    assert!(refused(
        "local t = redis.call('TIME')\nlocal u = redis.call(\"TIME\")"
    ));
    assert!(refused("local now = redis.call('TIME')"));
    assert!(refused("local t = redis.call('TIME') return t"));
    assert!(!refused("local t = redis.call('TIME')"));
}
