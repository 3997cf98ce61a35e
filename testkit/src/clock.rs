//! Controlling the time that scripts read in Redis.
//!
//! A production script reads the server's time in exactly one line. [`frozen_time_script`] puts the
//! time that a [`RedisClock`] shows in the place of that line: a script needs no key, no permission
//! and no particular node for it.
//!
//! Only what the script computes follows the clock. Redis expires keys by its own clock all the same:
//! step the time forward and nothing expires, let a test run longer than a TTL and it does.

use std::{
    cell::Cell,
    thread::{self, ThreadId},
    time::Duration,
};

/// What a [`RedisClock`] shows at first: a fixed moment, so that a failure repeats itself.
pub const EPOCH_MICROS: u64 = 1_700_000_000_000_000;

/// The line that a production script reads the time with.
const TIME_LINE: &str = "local t = redis.call('TIME')";

thread_local! {
    /// A rewrite is a plain function: what it puts into the script has to be in reach of it.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes a script take its time from the [`RedisClock`] of this thread instead of from the server.
///
/// The script of another time is another script, which a server does not know by its digest at first.
///
/// # Panics
///
/// Unless exactly one line of `text` is `local t = redis.call('TIME')`, indented as it may be, and
/// nothing else in it calls TIME; and unless this thread has a [`RedisClock`].
pub fn frozen_time_script(text: &str) -> String {
    let lines = text.lines().filter(|line| line.trim() == TIME_LINE).count();
    assert_eq!(
        lines, 1,
        "a script must read its time in exactly one line `{TIME_LINE}`:\n{text}"
    );
    let calls = text.matches("TIME'").count() + text.matches("TIME\"").count();
    assert_eq!(calls, 1, "a script must not read its time twice:\n{text}");
    let micros = NOW.get().expect("a RedisClock of the thread that calls the script");
    text.replace(TIME_LINE, &frozen_line(micros))
}

/// Two strings, because that is what TIME replies.
fn frozen_line(micros: u64) -> String {
    format!(
        "local t = {{ '{}', '{}' }}",
        micros / 1_000_000,
        micros % 1_000_000
    )
}

/// The hand on the clock that the frozen scripts of this thread read, on whatever servers.
///
/// A test runs on one thread, and so does all that it spawns, unless it asks for more. One clock at a
/// time: a second one moves the hand of the first.
#[derive(Debug)]
pub struct RedisClock {
    thread: ThreadId,
}

impl RedisClock {
    /// Freezes the time of this thread's scripts at [`EPOCH_MICROS`].
    #[allow(clippy::new_without_default, reason = "it has an effect elsewhere")]
    pub fn new() -> Self {
        let clock = Self {
            thread: thread::current().id(),
        };
        clock.set_micros(EPOCH_MICROS);
        clock
    }

    /// Jumps to `micros` microseconds after the Unix epoch, forward or back.
    ///
    /// # Panics
    ///
    /// On another thread than it was made on, as [`advance`](Self::advance) and
    /// [`micros`](Self::micros) do.
    pub fn set_micros(&self, micros: u64) {
        self.check_thread();
        NOW.set(Some(micros));
    }

    /// Steps forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_micros()).expect("a step fits in 64 bits of microseconds");
        self.set_micros(self.micros() + by);
    }

    /// What the clock shows, in microseconds after the Unix epoch.
    pub fn micros(&self) -> u64 {
        self.check_thread();
        NOW.get().unwrap_or(EPOCH_MICROS)
    }

    fn check_thread(&self) {
        assert_eq!(
            self.thread,
            thread::current().id(),
            "a RedisClock holds still the time of its own thread only"
        );
    }
}
