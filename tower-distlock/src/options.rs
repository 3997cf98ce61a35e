//! How a lock is asked for.

use std::{fmt, time::Duration};

use redis_conn::{Error, ErrorKind};

use crate::Owner;

/// Where fences come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FenceMode {
    /// The greater of the last fence + 1 and the time of the store in microseconds. Nothing is stored for longer than twice the ttl
    /// after the last lease: a fence is greater than all before, unless the clock of a server that has forgotten the lock is behind the
    /// last grant.
    #[default]
    Clock,
    /// The last fence + 1. It is remembered for a week after the last lease, and begins anew where the store has lost it.
    Counter,
}

/// What becomes of the future that [`with_lock`](crate::Locks::with_lock) guards when the lock is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLost {
    /// It is dropped, and not polled again. What it has spawned goes on: give that the [token](crate::Held::token) and the
    /// [fence](crate::Held::fence).
    #[default]
    Cancel,
    /// It goes on to its end, without the lock; [`Held::lost`](crate::Held::lost) tells it.
    Notify,
    /// It has so long to end, then it is dropped.
    Grace(Duration),
}

/// What [`with_lock`](crate::Locks::with_lock) does when the store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnBackendDown {
    /// Nothing runs, and the error is returned.
    #[default]
    Refuse,
    /// The future runs without any exclusion, which is logged as a warning; [`Held::fence`](crate::Held::fence) is `None` then.
    RunUnprotected,
}

/// Who must know of a lock before it counts as held.
///
/// A replica that takes the place of a primary may have missed its last writes: a lock that only the primary knew of is granted to
/// somebody else then. Waiting for replicas makes that rarer; it does not exclude it, since another replica may take the place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The server that is asked.
    #[default]
    Primary,
    /// So many of its replicas too, within this time; else the lock is released and the error tells how many there were. On Redis only.
    /// It costs a connection for as long as it takes; renewals do not wait for it.
    Replicas {
        /// How many.
        n: u32,
        /// For how long they are waited for.
        timeout: Duration,
    },
}

/// For how long is waited for a lock that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Once,
    For(Duration),
    Forever,
}

/// How a lock is asked for and held.
///
/// ```
/// # use std::time::Duration;
/// # use tower_distlock::LockOptions;
/// let nightly = LockOptions::new().ttl(Duration::from_secs(600)).try_once();
/// let migration = LockOptions::new().wait(Duration::from_secs(5)).max_hold(Duration::from_secs(3600));
/// ```
#[derive(Clone)]
#[must_use]
pub struct LockOptions {
    pub(crate) ttl: Duration,
    pub(crate) wait: Wait,
    max_hold: Option<Duration>,
    endless: bool,
    pub(crate) renew: bool,
    pub(crate) fair: bool,
    pub(crate) fence: FenceMode,
    pub(crate) on_lost: OnLost,
    pub(crate) on_backend_down: OnBackendDown,
    pub(crate) warn_after: Duration,
    pub(crate) durability: Durability,
    pub(crate) owner: Option<Owner>,
}

impl LockOptions {
    /// A lease of 30 s that is renewed, waited for up to 10 s.
    pub fn new() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            wait: Wait::For(Duration::from_secs(10)),
            max_hold: None,
            endless: false,
            renew: true,
            fair: false,
            fence: FenceMode::default(),
            on_lost: OnLost::default(),
            on_backend_down: OnBackendDown::default(),
            warn_after: Duration::from_secs(30),
            durability: Durability::default(),
            owner: None,
        }
    }

    /// How long the lock lasts if its holder dies. While the holder lives, it is renewed every third of it. From 10 ms to 365 days;
    /// 30 s if not set.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Asks once and does not wait.
    pub fn try_once(mut self) -> Self {
        self.wait = Wait::Once;
        self
    }

    /// Waits for so long at most; 10 s if not set.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Wait::For(wait);
        self
    }

    /// Waits however long it takes, also while the store does not answer.
    pub fn wait_forever(mut self) -> Self {
        self.wait = Wait::Forever;
        self
    }

    /// For how long it is renewed at most, so that a holder that hangs does not keep it for good: then it is lost. The greater of 10
    /// minutes and 10 times the ttl if not set.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// It may be held for good: only who leads may do so.
    pub(crate) fn endless(mut self) -> Self {
        self.endless = true;
        self
    }

    /// Whether the lease is renewed by itself; else it ends after the ttl, unless it is [extended](crate::LockGuard::extend). Renewed if
    /// not set.
    pub fn renew(mut self, renew: bool) -> Self {
        self.renew = renew;
        self
    }

    /// Waits in the order of arrival over all processes. Otherwise a process hands a lock a few times to its own waiters first, which
    /// is faster.
    pub fn fair(mut self) -> Self {
        self.fair = true;
        self
    }

    /// Where the fence comes from.
    pub fn fence_mode(mut self, fence: FenceMode) -> Self {
        self.fence = fence;
        self
    }

    /// What becomes of a guarded future when the lock is lost.
    pub fn on_lost(mut self, on_lost: OnLost) -> Self {
        self.on_lost = on_lost;
        self
    }

    /// Whether a future runs where the store does not answer.
    pub fn on_backend_down(mut self, on_backend_down: OnBackendDown) -> Self {
        self.on_backend_down = on_backend_down;
        self
    }

    /// After how long a lock that is held still is reported once, as a warning; 30 s if not set.
    pub fn warn_after(mut self, warn_after: Duration) -> Self {
        self.warn_after = warn_after;
        self
    }

    /// Who must know of the lock before it counts as held; the primary if not set.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Makes it reentrant: an owner that holds the lock already gets another guard of the same lease, with the same fence.
    pub fn owner(mut self, owner: &Owner) -> Self {
        self.owner = Some(owner.clone());
        self
    }

    /// None where it may be held for good.
    pub(crate) fn longest(&self) -> Option<Duration> {
        const LONG: Duration = Duration::from_secs(600);
        let usual = || LONG.max(self.ttl.saturating_mul(10));
        (!self.endless).then(|| self.max_hold.unwrap_or_else(usual))
    }

    /// # Errors
    ///
    /// `Config` names what cannot be.
    pub(crate) fn check(&self) -> Result<(), Error> {
        const LEAST: Duration = Duration::from_millis(10);
        const MOST: Duration = Duration::from_secs(365 * 24 * 3_600);
        let wrong = |what: String| Err(Error::new(ErrorKind::Config, what));
        if !(LEAST..=MOST).contains(&self.ttl) {
            return wrong(format!("ttl {:?}: expected 10 ms to 365 days", self.ttl));
        }
        if self.longest().is_some_and(|longest| longest.is_zero()) {
            return wrong("max_hold 0: expected some time".to_owned());
        }
        Ok(())
    }
}

impl Default for LockOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LockOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockOptions")
            .field("ttl", &self.ttl)
            .field("wait", &self.wait)
            .field("max_hold", &self.longest())
            .field("on_lost", &self.on_lost)
            .field("on_backend_down", &self.on_backend_down)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_that_cannot_be_kept_is_refused() {
        for ttl in [
            Duration::ZERO,
            Duration::from_millis(9),
            Duration::from_secs(366 * 24 * 3_600),
            Duration::MAX,
        ] {
            let error = LockOptions::new().ttl(ttl).check().unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("ttl"), "{error}");
        }
        assert!(LockOptions::new().check().is_ok());
        let never = LockOptions::new().max_hold(Duration::ZERO);
        assert!(never.check().is_err());
    }

    #[test]
    fn a_lock_is_not_held_for_good_unless_that_was_asked_for() {
        let longest = |ttl| LockOptions::new().ttl(Duration::from_secs(ttl)).longest();
        assert_eq!(longest(1), Some(Duration::from_secs(600)));
        assert_eq!(longest(100), Some(Duration::from_secs(1_000)));
    }
}
