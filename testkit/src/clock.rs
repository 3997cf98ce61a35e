//! Controlling the time that scripts read in Redis.
//!
//! A production script reads the server's time in exactly one line. A [`RedisClock`] puts another one
//! in its place, which takes the time from arguments that are added to each call. So it holds on every
//! node of a cluster, for users who may touch no key but their own, and the text stays the same
//! whatever the time is.
//!
//! Only what the script computes follows the clock. Redis expires keys by its own clock all the same:
//! step it forward and nothing expires, let a test run longer than a TTL and it does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What a [`RedisClock`] shows at first: a fixed moment, so that a failure repeats itself.
pub const EPOCH_MICROS: u64 = 1_700_000_000_000_000;

/// The line that a production script reads the time with.
const TIME_LINE: &str = "local t = redis.call('TIME')";

/// Takes the time away before the script sees its arguments. On the script's first line, so that
/// errors name the lines that they mean.
const TAKE: &str = "local frozen_s, frozen_us = table.remove(ARGV, #ARGV - 1), table.remove(ARGV) ";

/// Two strings, because that is what TIME replies.
const FROZEN_LINE: &str = "local t = { frozen_s, frozen_us }";

/// Makes a script read its time from its last two arguments, seconds and microseconds, instead of the
/// server's clock. The rest of it does not see them.
///
/// # Panics
///
/// If `text` calls TIME anywhere but in one line `local t = redis.call('TIME')`, indented as it may be.
/// A script that never reads the time is left as it is, but for the arguments that it does not see.
pub fn frozen_time_script(text: &str) -> String {
    let lines = text.lines().filter(|line| line.trim() == TIME_LINE).count();
    let calls = text.matches("'TIME'").count() + text.matches("\"TIME\"").count();
    assert_eq!(
        (lines, lines),
        (calls, calls.min(1)),
        "a script must read its time in one line `{TIME_LINE}`, and once:\n{text}"
    );
    format!("{TAKE}{}", text.replace(TIME_LINE, FROZEN_LINE))
}

/// The hand on the clock that frozen scripts read. A clone is the same clock.
#[derive(Debug, Clone)]
pub struct RedisClock {
    micros: Arc<AtomicU64>,
}

impl Default for RedisClock {
    fn default() -> Self {
        Self::new()
    }
}

impl RedisClock {
    /// A clock that stands at [`EPOCH_MICROS`].
    pub fn new() -> Self {
        Self {
            micros: Arc::new(EPOCH_MICROS.into()),
        }
    }

    /// Jumps to `micros` microseconds after the Unix epoch, forward or back.
    pub fn set_micros(&self, micros: u64) {
        self.micros.store(micros, Ordering::SeqCst);
    }

    /// Steps forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_micros()).expect("a step fits in 64 bits of microseconds");
        self.micros.fetch_add(by, Ordering::SeqCst);
    }

    /// What the clock shows, in microseconds after the Unix epoch.
    pub fn micros(&self) -> u64 {
        self.micros.load(Ordering::SeqCst)
    }

    /// A script that reads this clock, see [`frozen_time_script`], and what has to follow the arguments
    /// of a call now.
    pub fn freeze(&self, text: &str) -> (String, Vec<String>) {
        let micros = self.micros();
        let time = [micros / 1_000_000, micros % 1_000_000];
        let arguments = time.iter().map(u64::to_string).collect();
        (frozen_time_script(text), arguments)
    }

    /// [`freeze`](Self::freeze) for whoever calls scripts, such as a backend that is built with
    /// `rewrite_scripts`.
    pub fn rewriter(
        &self,
    ) -> impl Fn(&str) -> (String, Vec<String>) + Send + Sync + 'static + use<> {
        let clock = self.clone();
        move |text| clock.freeze(text)
    }
}
