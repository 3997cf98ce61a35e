//! Whether the store is asked at all: while it does not answer, one call at a time finds out whether it does again.
//!
//! The others are decided at once by the failure policy, so an outage costs a request no wait. A server that nothing connects to is
//! away at once; one that is slow, when several calls in a row had no answer. On a cluster each part of the slots is away by
//! itself: a shard that is down says nothing about the others, but for the part that it may share with its neighbour. SQLite is never away: a call that is late there only had to wait for
//! others.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_conn::{Backend, Clock, Error, ErrorKind, Subject};

/// How many parts the slots of a cluster are divided into.
const PARTS: usize = 64;
/// So many calls in a row without an answer are no accident.
const SILENCES: u32 = 3;

/// Which parts of the store do not answer.
pub(crate) struct Away {
    clock: Arc<dyn Clock>,
    /// How long, in microseconds, nobody asks again.
    pause: u64,
    /// How many parts are away.
    count: AtomicUsize,
    parts: Box<[Part]>,
}

#[derive(Debug, Default)]
struct Part {
    /// When it may be asked again, in microseconds since boot; 0 where it answers.
    again: AtomicU64,
    /// Calls in a row that had no answer.
    silences: AtomicU32,
}

impl Away {
    pub(crate) fn new(backend: &Backend, pause: Duration) -> Self {
        let parts = match backend.kind() {
            "redis-cluster" => PARTS,
            kind if kind.starts_with("redis") => 1,
            _ => 0,
        };
        Self::of(backend.clock(), parts, pause)
    }

    fn of(clock: &Arc<dyn Clock>, parts: usize, pause: Duration) -> Self {
        Self {
            clock: Arc::clone(clock),
            pause: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
            count: AtomicUsize::new(0),
            parts: (0..parts).map(|_| Part::default()).collect(),
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
        let Some(part) = self.part(subject) else {
            return Ok(());
        };
        let again = part.again.load(Ordering::Relaxed);
        if again == 0 {
            return Ok(());
        }
        let now = self.clock.boot_micros();
        let next = now.saturating_add(self.pause);
        let is_mine = now >= again
            && part
                .again
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
        // Most often there is nothing to forget, and a look is all that it costs.
        let Some(part) = self.troubled(subject) else {
            return;
        };
        part.silences.store(0, Ordering::Relaxed);
        if part.again.swap(0, Ordering::Relaxed) != 0 {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn troubled(&self, subject: &Subject) -> Option<&Part> {
        let is_troubled = |part: &Part| {
            part.silences.load(Ordering::Relaxed) > 0 || part.again.load(Ordering::Relaxed) > 0
        };
        if !self.parts.iter().any(is_troubled) {
            return None;
        }
        self.part(subject)
    }

    /// The store has not answered.
    pub(crate) fn failed(&self, subject: &Subject, error: &Error) {
        let Some(part) = self.part(subject) else {
            return;
        };
        let is_away = match error.kind() {
            ErrorKind::Unavailable => true,
            ErrorKind::Timeout | ErrorKind::Ambiguous => {
                part.silences.fetch_add(1, Ordering::Relaxed) + 1 >= SILENCES
            }
            _ => false,
        };
        if is_away {
            let next = self.clock.boot_micros().saturating_add(self.pause).max(1);
            if part.again.swap(next, Ordering::Relaxed) == 0 {
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn part(&self, subject: &Subject) -> Option<&Part> {
        let part = match self.parts.len() {
            0 | 1 => 0,
            parts => crate::store::slot(subject) * parts / SLOTS,
        };
        self.parts.get(part)
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
        Away::of(&clock, 1, Duration::from_millis(100))
    }

    #[test]
    fn one_call_at_a_time_finds_out_whether_the_store_is_back() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let (away, subject) = (away(&clock), Subject::from("a"));
        let ask = || away.may_ask(&subject).is_ok();
        let late = Error::new(ErrorKind::Timeout, "");
        assert!(ask() && ask(), "it answers");

        for _ in 0..2 {
            away.failed(&subject, &late);
            assert!(ask(), "it may be an accident");
        }
        away.answered(&subject);
        for _ in 0..3 {
            assert!(ask());
            away.failed(&subject, &late);
        }
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
    fn a_server_that_nothing_connects_to_is_away_at_once() {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let (away, subject) = (away(&clock), Subject::from("a"));
        away.failed(&subject, &Error::new(ErrorKind::Unavailable, ""));
        assert!(away.may_ask(&subject).is_err());
    }

    #[test]
    fn parts_of_a_cluster_are_away_by_themselves() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(1_000_000));
        let away = Away::of(&clock, PARTS, Duration::from_millis(100));
        let down = Subject::from("a");
        away.failed(&down, &Error::new(ErrorKind::Unavailable, ""));
        let subjects = (0..1_000).map(|n| Subject::from(n.to_string()));
        let refused = subjects.filter(|subject| away.may_ask(subject).is_err());
        let refused = refused.count();
        assert!((1..100).contains(&refused), "{refused} of 1,000");
        assert!(away.may_ask(&down).is_err());
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
