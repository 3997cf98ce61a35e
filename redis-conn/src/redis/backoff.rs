//! How long to wait between two attempts to connect.

use std::time::Duration;

use super::fault::Fault;
use crate::random::jitter;

const FIRST: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(1);
/// A refused password is asked again at this pace: often enough to follow a rotation, too seldom to lock an account.
pub(super) const REFUSED: Duration = Duration::from_secs(2);
/// A server that loads its data says so at once, and is asked at this pace until it has.
const LOADING: Duration = Duration::from_millis(100);

/// Full jitter under a doubling ceiling.
#[derive(Debug)]
pub(super) struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { ceiling: FIRST }
    }

    pub(super) fn reset(&mut self) {
        self.ceiling = FIRST;
    }

    /// The pause after a failed attempt.
    pub(super) fn after(&mut self, fault: Fault) -> Duration {
        match fault {
            Fault::Credentials => REFUSED,
            Fault::Loading => LOADING,
            _ => self.pause(),
        }
    }

    /// The pause after a connection that did not last.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = jitter(self.ceiling);
        self.ceiling = (self.ceiling * 2).min(CAP);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_below_a_ceiling_that_doubles_up_to_the_cap() {
        let mut backoff = Backoff::new();
        for ceiling in [50, 100, 200, 400, 800, 1000, 1000] {
            assert_eq!(backoff.ceiling, Duration::from_millis(ceiling));
            assert!(backoff.after(Fault::Away) <= Duration::from_millis(ceiling));
        }
        backoff.reset();
        assert_eq!(backoff.ceiling, FIRST);
    }

    #[test]
    fn a_refused_password_is_asked_again_at_a_steady_pace() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.after(Fault::Credentials), REFUSED);
        assert_eq!(backoff.after(Fault::Credentials), REFUSED);
        assert_eq!(backoff.ceiling, FIRST, "it does not count as an outage");
    }
}
