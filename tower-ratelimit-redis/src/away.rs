//! Whether the store is asked at all: while it does not answer, one call at a time finds out whether it does again.
//!
//! The others are decided at once by the failure policy, so an outage costs a request no wait. On a cluster each part of the slots
//! is away by itself: a shard that is down says nothing about the others.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_conn::{Backend, Clock, Error, ErrorKind, Subject};

/// How many parts the slots of a cluster are divided into.
const PARTS: usize = 64;

/// Which parts of the store do not answer.
pub(crate) struct Away {
    clock: Arc<dyn Clock>,
    /// How long, in microseconds, nobody asks again.
    pause: u64,
    /// How many parts are away.
    count: AtomicUsize,
    /// When each may be asked again, in microseconds since boot; 0 where it answers.
    parts: Box<[AtomicU64]>,
}

impl Away {
    pub(crate) fn new(backend: &Backend, pause: Duration) -> Self {
        let parts = match backend.kind() {
            "redis-cluster" => PARTS,
            _ => 1,
        };
        Self {
            clock: Arc::clone(backend.clock()),
            pause: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
            count: AtomicUsize::new(0),
            parts: (0..parts).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Whether this call may ask the store: if it answers, or if this is the one that finds out.
    ///
    /// # Errors
    ///
    /// `Unavailable` while somebody else finds out.
    pub(crate) fn may_ask(&self, subject: &Subject) -> Result<(), Error> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let part = self.part(subject);
        let again = part.load(Ordering::Relaxed);
        if again == 0 {
            return Ok(());
        }
        let now = self.clock.boot_micros();
        let next = now.saturating_add(self.pause);
        let is_mine = now >= again
            && part
                .compare_exchange(again, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the store did not answer lately",
        ))
    }

    /// The store has answered.
    pub(crate) fn answered(&self, subject: &Subject) {
        if self.count.load(Ordering::Relaxed) > 0
            && self.part(subject).swap(0, Ordering::Relaxed) != 0
        {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The store has not answered.
    pub(crate) fn failed(&self, subject: &Subject, error: &Error) {
        let is_away = matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Ambiguous
        );
        if is_away {
            let next = self.clock.boot_micros().saturating_add(self.pause).max(1);
            if self.part(subject).swap(next, Ordering::Relaxed) == 0 {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn part(&self, subject: &Subject) -> &AtomicU64 {
        let part = match self.parts.len() {
            1 => 0,
            parts => crate::store::slot(subject) * parts / SLOTS,
        };
        &self.parts[part]
    }
}

/// How many slots a cluster has.
const SLOTS: usize = 16_384;

impl fmt::Debug for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Away")
            .field("parts", &self.count)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::ManualClock;

    use super::*;

    fn away(clock: &Arc<ManualClock>) -> Away {
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        let backend = Backend::builder().clock(clock).memory().unwrap();
        Away::new(&backend, Duration::from_millis(100))
    }

    #[test]
    fn one_call_at_a_time_finds_out_whether_the_store_is_back() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let (away, subject) = (away(&clock), Subject::from("a"));
        let ask = || away.may_ask(&subject).is_ok();
        let late = Error::new(ErrorKind::Timeout, "");
        assert!(ask() && ask(), "it answers");

        away.failed(&subject, &late);
        assert!(!ask());
        for _ in 0..3 {
            clock.advance(Duration::from_millis(100));
            assert!(ask(), "one finds out");
            assert!(!ask(), "the others do not wait for that");
            away.failed(&subject, &late);
        }
        clock.advance(Duration::from_millis(100));
        assert!(ask());
        away.answered(&subject);
        assert!(ask() && ask());
        assert_eq!(away.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_answer_that_is_an_error_is_an_answer() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let (away, subject) = (away(&clock), Subject::from("a"));
        for kind in [
            ErrorKind::Corrupt,
            ErrorKind::Config,
            ErrorKind::Server("OOM".into()),
        ] {
            away.failed(&subject, &Error::new(kind, ""));
            assert!(away.may_ask(&subject).is_ok());
        }
    }
}
