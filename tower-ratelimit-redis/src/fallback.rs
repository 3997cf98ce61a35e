//! What decides while the store does not answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis_conn::{Check, Clock, Error, ErrorKind, Status, Subject};

use crate::{
    Decision, Policy,
    counter::Charge,
    store::{Asked, MemoryStore, Permits},
    trace::event,
};

/// What happens to a call whose decision the store did not make in time.
///
/// A store that is only in-process never fails, so there this is without effect.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnFailure {
    /// This process decides by itself, by the same algorithm, at `ceil(limit x share)`. It has counted all calls that the store
    /// admitted through this limiter, so the outage brings no fresh burst. With n processes, a share of 1/n keeps the limit.
    Local {
        /// The part of each limit that this process may spend by itself: above 0, at most 1.
        share: f64,
    },
    /// The call is admitted, uncounted.
    Open,
    /// The call gets an error; the layer answers 503.
    Closed,
}

impl Default for OnFailure {
    /// Local, at half of the limit.
    fn default() -> Self {
        Self::Local { share: 0.5 }
    }
}

impl OnFailure {
    pub(crate) fn validate(self) -> Result<(), Error> {
        match self {
            Self::Local { share } if !(1e-6..=1.0).contains(&share) => Err(Error::new(
                ErrorKind::Config,
                format!("fallback share {share}: expected at least 0.000001 and at most 1"),
            )),
            _ => Ok(()),
        }
    }
}

/// How long, in microseconds, nothing more is said about values that cannot be read.
const CORRUPT_PAUSE: u64 = 1_000_000;

/// The failure policy at work, and what the health of the limiter is because of it.
#[derive(Debug)]
pub(crate) struct Fallback {
    mode: Mode,
    degraded: AtomicBool,
    clock: Arc<dyn Clock>,
    /// From when on a value that cannot be read is worth an event again.
    report_corrupt_at: AtomicU64,
}

#[derive(Debug)]
enum Mode {
    Local { store: MemoryStore, share: Share },
    Open,
    Closed,
}

/// A part in millions: `ceil` of a product of floats may be one too many.
#[derive(Clone, Copy, Debug)]
struct Share(u64);

impl Share {
    const WHOLE: u64 = 1_000_000;

    fn new(share: f64) -> Self {
        Self((share * Self::WHOLE as f64).round() as u64)
    }

    fn of(self, policy: &Policy) -> Policy {
        policy.scaled(self.0)
    }
}

impl Fallback {
    /// At work for a valid failure policy.
    pub(crate) fn new(on_failure: OnFailure, clock: &Arc<dyn Clock>, capacity: usize) -> Self {
        let mode = match on_failure {
            OnFailure::Local { share } => Mode::Local {
                store: MemoryStore::new(Arc::clone(clock), capacity),
                share: Share::new(share),
            },
            OnFailure::Open => Mode::Open,
            OnFailure::Closed => Mode::Closed,
        };
        Self {
            mode,
            degraded: AtomicBool::new(false),
            clock: Arc::clone(clock),
            report_corrupt_at: AtomicU64::new(0),
        }
    }

    /// So much was charged, whoever decided.
    pub(crate) fn charge(&self, policy: &Policy, subject: &Subject, charge: Charge) {
        if let Mode::Local { store, share } = &self.mode {
            store.charge(&share.of(policy), subject, charge);
        }
    }

    pub(crate) fn store_answered(&self) {
        if self.degraded.load(Ordering::Relaxed) && self.degraded.swap(false, Ordering::Relaxed) {
            event!(info, "rate limits are decided by the store again");
        }
    }

    /// The store has not decided.
    pub(crate) fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        error: Error,
    ) -> Result<Decision, Error> {
        self.instead_of_store(error, |store, share| {
            store.decide_now(&share.of(policy), subject, asked)
        })
    }

    pub(crate) fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        error: Error,
    ) -> Result<Decision, Error> {
        self.instead_of_store(error, |store, share| {
            store.look_now(&share.of(policy), subject, cost)
        })
    }

    /// Takes back, as far as the present counts have it, what the store or this was charged.
    pub(crate) fn refund(&self, policy: &Policy, subject: &Subject, units: u32) {
        if let Mode::Local { store, share } = &self.mode {
            store.refund_now(&share.of(policy), subject, units);
        }
    }

    pub(crate) fn block(&self, policy: &Policy, subject: &Subject, time: Duration) {
        if let Mode::Local { store, share } = &self.mode {
            store.block_now(&share.of(policy), subject, time);
        }
    }

    pub(crate) fn permits(&self, policy: &Policy, subject: &Subject, what: Permits, names: &[u64]) {
        if let Mode::Local { store, share } = &self.mode {
            store.permits_now(&share.of(policy), subject, what, names);
        }
    }

    pub(crate) fn reset(&self, policy: &Policy, subject: &Subject) {
        if let Mode::Local { store, .. } = &self.mode {
            store.forget(policy, subject);
        }
    }

    fn instead_of_store(
        &self,
        error: Error,
        local: impl FnOnce(&MemoryStore, Share) -> Decision,
    ) -> Result<Decision, Error> {
        // A wrong configuration does not pass by waiting, and must not pass unseen.
        if *error.kind() == ErrorKind::Config {
            return Err(error);
        }
        if *error.kind() == ErrorKind::Corrupt {
            self.report_corrupt(&error);
        } else if !self.degraded.swap(true, Ordering::Relaxed) {
            event!(warn, "{}: {error}", self.consequence());
        }
        match &self.mode {
            Mode::Local { store, share } => Ok(local(store, *share).into_local()),
            Mode::Open => Ok(Decision::open()),
            Mode::Closed => Err(error),
        }
    }

    /// The store answers, but what it holds of one subject cannot be read. This says nothing about the others, so the limiter is
    /// no worse for it.
    fn report_corrupt(&self, error: &Error) {
        let now = self.clock.boot_micros();
        let due = |at| (at <= now).then_some(now + CORRUPT_PAUSE);
        let reported =
            self.report_corrupt_at
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, due);
        if reported.is_ok() {
            event!(
                warn,
                "the counts of a subject cannot be read, the failure policy decides for it until they expire or are reset: {error}"
            );
        }
    }

    fn consequence(&self) -> &'static str {
        match self.mode {
            Mode::Local { .. } => "counting in process since the store does not answer",
            Mode::Open => "admitting everything since the store does not answer",
            Mode::Closed => "refusing everything since the store does not answer",
        }
    }

    /// How the limiter is.
    pub(crate) fn check(&self) -> Check {
        if self.degraded.load(Ordering::Relaxed) {
            Check::new("rate-limit", Status::Degraded, self.consequence())
        } else {
            Check::new("rate-limit", Status::Healthy, "decided by the store")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Ask;

    #[test]
    fn a_share_is_rounded_up_and_exact() {
        let share = |share, max: u32| Share::new(share).of(&policy(max.into())).limits()[0].max;
        assert_eq!(share(0.5, 1), 1);
        assert_eq!(share(0.5, 5), 3);
        assert_eq!(share(0.07, 100), 7, "0.07 x 100.0 is above 7 in floats");
        assert_eq!(share(1.0, u32::MAX), u32::MAX);
        assert_eq!(share(0.000_001, u32::MAX), 4_295);
    }

    #[test]
    fn a_share_of_nothing_or_of_more_than_all_is_refused() {
        for share in [0.0, -0.5, 1.000_1, f64::NAN, f64::INFINITY, 1e-9] {
            let error = OnFailure::Local { share }.validate().unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config, "{share}");
        }
    }

    fn policy(max: u64) -> Policy {
        let policy = Policy::new("api").limit(max, std::time::Duration::from_secs(60));
        policy.build().unwrap()
    }

    fn all(units: u32) -> Asked {
        Asked::new(Ask::All, Charge::of(units))
    }

    fn fallback(on_failure: OnFailure) -> Fallback {
        let clock: Arc<dyn Clock> = Arc::new(redis_conn::ManualClock::new(1_000_000_000));
        Fallback::new(on_failure, &clock, 1_000)
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "")
    }

    #[test]
    fn a_look_is_at_the_share_and_a_reset_forgets() {
        let (fallback, policy) = (fallback(OnFailure::default()), policy(4));
        let subject = Subject::from("a");
        let decide = || {
            fallback
                .decide(&policy, &subject, all(2), error(ErrorKind::Timeout))
                .unwrap()
        };
        let peek = || {
            fallback
                .look(&policy, &subject, 1, error(ErrorKind::Timeout))
                .unwrap()
        };
        assert_eq!(peek().limits()[0].limit, 2);
        assert!(decide().is_allowed() && !peek().is_allowed());
        fallback.reset(&policy, &subject);
        assert!(peek().is_allowed() && decide().is_allowed());
    }

    #[test]
    fn any_answer_of_the_store_ends_what_is_degraded() {
        let (fallback, policy) = (fallback(OnFailure::Open), policy(4));
        let subject = Subject::from("a");
        fallback
            .decide(&policy, &subject, all(1), error(ErrorKind::Unavailable))
            .unwrap();
        assert_eq!(fallback.check().status, Status::Degraded);
        fallback.store_answered();
        assert_eq!(fallback.check().status, Status::Healthy);
    }

    #[test]
    fn a_wrong_configuration_is_not_fallen_back_from() {
        for mode in [OnFailure::default(), OnFailure::Open, OnFailure::Closed] {
            let (fallback, policy) = (fallback(mode), policy(4));
            let subject = Subject::from("a");
            let config = || error(ErrorKind::Config);
            assert!(
                fallback
                    .decide(&policy, &subject, all(1), config())
                    .is_err()
            );
            assert!(fallback.look(&policy, &subject, 1, config()).is_err());
            assert_eq!(fallback.check().status, Status::Healthy);
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_says_nothing_about_the_store() {
        let (fallback, policy) = (fallback(OnFailure::default()), policy(4));
        let subject = Subject::from("a");
        let decide = |kind| {
            fallback
                .decide(&policy, &subject, all(1), error(kind))
                .unwrap()
        };
        assert_eq!(decide(ErrorKind::Corrupt).source(), crate::Source::Local);
        assert_eq!(fallback.check().status, Status::Healthy);
        decide(ErrorKind::Timeout);
        decide(ErrorKind::Corrupt);
        assert_eq!(fallback.check().status, Status::Degraded);
    }
}
