//! Controlling the time that scripts read in Redis.
//!
//! A production script reads the server's time in exactly one line. [`frozen_time_script`] replaces
//! that line by one that reads the key [`TIME_KEY`], which a [`RedisClock`] holds still or steps.
//!
//! Only what the script computes follows the key. Redis expires keys by its own clock all the same:
//! step the key forward and nothing expires, let a test run longer than a TTL and it does.

use std::time::Duration;

use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use crate::RedisServer;

/// Holds the time as `seconds:microseconds`.
pub const TIME_KEY: &str = "testkit:time";

/// What a [`RedisClock`] shows at first: a fixed moment, so that a failure repeats itself.
pub const EPOCH_MICROS: u64 = 1_700_000_000_000_000;

/// The line that a production script reads the time with.
const TIME_LINE: &str = "local t = redis.call('TIME')";

/// One statement, because it takes the place of one line; no global, because Redis forbids them;
/// two strings, because that is what TIME replies.
const FROZEN_LINE: &str = "local t = (function() \
     local s, us = string.match(redis.call('GET', 'testkit:time'), '^(%d+):(%d+)$') \
     return { s, us } end)()";

/// Makes a script read its time from [`TIME_KEY`] instead of the server's clock.
///
/// # Panics
///
/// Unless exactly one line of `text` is `local t = redis.call('TIME')`, indented as it may be, and
/// nothing else in it calls TIME.
pub fn frozen_time_script(text: &str) -> String {
    let lines = text.lines().filter(|line| line.trim() == TIME_LINE).count();
    assert_eq!(
        lines, 1,
        "a script must read its time in exactly one line `{TIME_LINE}`:\n{text}"
    );
    let calls = text.matches("TIME'").count() + text.matches("TIME\"").count();
    assert_eq!(calls, 1, "a script must not read its time twice:\n{text}");
    text.replace(TIME_LINE, FROZEN_LINE)
}

/// The hand on the clock that frozen scripts read.
///
/// It talks through one connection: make a new one after the server restarted.
#[derive(Debug)]
pub struct RedisClock {
    hand: Mutex<Hand>,
}

#[derive(Debug)]
struct Hand {
    micros: u64,
    connection: MultiplexedConnection,
}

impl RedisClock {
    /// Freezes the time of `server` at [`EPOCH_MICROS`].
    pub async fn new(server: &RedisServer) -> Self {
        let connection = server.connection().await;
        let clock = Self {
            hand: Mutex::new(Hand {
                micros: 0,
                connection,
            }),
        };
        clock.set_micros(EPOCH_MICROS).await;
        clock
    }

    /// Jumps to `micros` microseconds after the Unix epoch, forward or back.
    pub async fn set_micros(&self, micros: u64) {
        self.hand.lock().await.point_at(micros).await;
    }

    /// Steps forward.
    pub async fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_micros()).expect("a step fits in 64 bits of microseconds");
        let mut hand = self.hand.lock().await;
        let micros = hand.micros + by;
        hand.point_at(micros).await;
    }

    /// What the clock shows, in microseconds after the Unix epoch.
    pub async fn micros(&self) -> u64 {
        self.hand.lock().await.micros
    }
}

impl Hand {
    async fn point_at(&mut self, micros: u64) {
        let value = format!("{}:{}", micros / 1_000_000, micros % 1_000_000);
        let set: redis::RedisResult<()> = self.connection.set(TIME_KEY, value).await;
        set.expect("a server that runs takes the test's time");
        self.micros = micros;
    }
}
