//! One lease as this process knows it: until when it lasts, and whether it is lost.

use std::{fmt, sync::Arc, time::Duration};

use redis_conn::Clock;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{metrics::HeldSince, quorum::Quorum, terms::micros};

/// Why a lock is not held any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// No renewal was confirmed in time: the store did not answer, or this process was stopped for longer than the lease.
    Expired,
    /// Somebody else holds it by now.
    Stolen,
    /// The store knows nothing of it any more: it was emptied, or it lost its last writes.
    Vanished,
    /// Somebody took it by [`force_release`](crate::Locks::force_release).
    Forced,
    /// It was held for longer than [`max_hold`](crate::LockOptions::max_hold).
    HeldTooLong,
    /// The backend was closed.
    Closed,
    /// Whoever led an [`Election`](crate::Election) gave it up.
    Resigned,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its lease ended without a renewal",
            Self::Stolen => "somebody else holds it",
            Self::Vanished => "the store has lost it",
            Self::Forced => "it was released by force",
            Self::HeldTooLong => "it was held for too long",
            Self::Closed => "the backend was closed",
            Self::Resigned => "it was given up",
        })
    }
}

/// A moment by both clocks: one that timers go by, and one that goes on while the machine is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    boot: u64,
}

impl Moment {
    pub(crate) fn now(clock: &Arc<dyn Clock>) -> Self {
        Self {
            at: Instant::now(),
            boot: clock.boot_micros(),
        }
    }

    pub(crate) fn plus(self, time: Duration) -> Self {
        Self {
            at: self.at + time,
            boot: self.boot.saturating_add(micros(time)),
        }
    }

    pub(crate) fn earlier(self, other: Self) -> Self {
        Self {
            at: self.at.min(other.at),
            boot: self.boot.min(other.boot),
        }
    }

    /// The end of a lease of this ttl that was asked for at this moment: no later than the store's, though its clock may be faster.
    pub(crate) fn end_of(self, ttl: Duration) -> Self {
        self.plus(relied_upon(ttl))
    }

    fn has_passed(self, clock: &Arc<dyn Clock>) -> bool {
        self.at <= Instant::now() || self.boot <= clock.boot_micros()
    }
}

/// So much of a lease is relied upon: clocks drift.
pub(crate) fn relied_upon(ttl: Duration) -> Duration {
    let drift = (ttl / 100 + Duration::from_millis(2)).min(ttl / 2);
    ttl - drift
}

/// What is known of a lease now.
#[derive(Clone, Copy, Debug)]
struct Status {
    until: Moment,
    lost: Option<LostReason>,
    /// It was let go of. What was not lost by then never is.
    over: bool,
    since: HeldSince,
}

/// A lease. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    status: Arc<watch::Sender<Status>>,
    clock: Arc<dyn Clock>,
}

impl Lease {
    pub(crate) fn new(until: Moment, clock: &Arc<dyn Clock>) -> Self {
        let (status, _) = watch::channel(Status {
            until,
            lost: None,
            over: false,
            since: HeldSince::none(),
        });
        Self {
            status: Arc::new(status),
            clock: Arc::clone(clock),
        }
    }

    /// The store has confirmed it until then. What is lost stays so.
    pub(crate) fn lasts(&self, until: Moment) {
        self.status.send_if_modified(|status| {
            let prolonged = status.lost.is_none() && status.until != until;
            if prolonged {
                status.until = until;
            }
            prolonged
        });
    }

    /// It may end then already.
    pub(crate) fn lasts_no_longer(&self, until: Moment) {
        self.status
            .send_modify(|status| status.until = status.until.earlier(until));
    }

    /// It is lost, if it was not before.
    pub(crate) fn lose(&self, reason: LostReason) -> bool {
        self.status.send_if_modified(|status| {
            let first = status.lost.is_none() && !status.over;
            if !first {
                return false;
            }
            status.lost.get_or_insert(reason);
            status.since.lost(reason);
            first
        })
    }

    /// What is counted of it changes, of which nobody hears.
    #[cfg(feature = "metrics")]
    pub(crate) fn count(&self, change: impl FnOnce(&mut HeldSince)) {
        self.status.send_if_modified(|status| {
            change(&mut status.since);
            false
        });
    }

    /// It is let go of from now on.
    pub(crate) fn end(&self) {
        self.why_lost();
        self.status.send_modify(|status| status.over = true);
    }

    /// Why it is lost, if it is. A lease whose time is over is lost from the moment that anybody has seen it.
    pub(crate) fn why_lost(&self) -> Option<LostReason> {
        let status = *self.status.borrow();
        if status.lost.is_none() && !status.over && status.until.has_passed(&self.clock) {
            self.lose(LostReason::Expired);
            return Some(LostReason::Expired);
        }
        status.lost
    }

    /// For how long it lasts without a renewal.
    pub(crate) fn valid_for(&self) -> Duration {
        match self.why_lost() {
            Some(_) => Duration::ZERO,
            None if self.status.borrow().over => Duration::ZERO,
            None => self.until().saturating_duration_since(Instant::now()),
        }
    }

    pub(crate) fn until(&self) -> Instant {
        self.status.borrow().until.at
    }

    /// Waits until it is lost: by what was heard, or by the time, which needs no answer of anybody.
    pub(crate) async fn lost(&self) -> LostReason {
        let mut heard = self.status.subscribe();
        loop {
            if let Some(reason) = self.why_lost() {
                return reason;
            }
            let Status { until, over, .. } = *heard.borrow_and_update();
            tokio::select! {
                () = sleep_until(until.at), if !over => {}
                changed = heard.changed() => if changed.is_err() { return LostReason::Closed },
            }
        }
    }
}

/// Tells whether a lock is held still, for as long as anybody wants to know: for what was spawned.
#[derive(Clone)]
pub struct LockToken {
    of: Of,
}

#[derive(Clone)]
enum Of {
    /// What runs without a lock.
    Nothing,
    One(Lease),
    Most(Arc<Quorum>),
}

impl LockToken {
    pub(crate) fn new(lease: &Lease) -> Self {
        Self {
            of: Of::One(lease.clone()),
        }
    }

    /// Of a lock that several servers hold.
    pub(crate) fn of_most(quorum: &Arc<Quorum>) -> Self {
        Self {
            of: Of::Most(Arc::clone(quorum)),
        }
    }

    /// Of what runs without a lock.
    pub(crate) fn unprotected() -> Self {
        Self { of: Of::Nothing }
    }

    /// Whether the lock is lost. A lock that was released in time is not.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.reason().is_some()
    }

    /// Why it is lost, if it is.
    #[must_use]
    pub fn reason(&self) -> Option<LostReason> {
        match &self.of {
            Of::Nothing => None,
            Of::One(lease) => lease.why_lost(),
            Of::Most(quorum) => quorum.why_lost(),
        }
    }

    /// For how long it lasts without a renewal.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        match &self.of {
            Of::Nothing => Duration::ZERO,
            Of::One(lease) => lease.valid_for(),
            Of::Most(quorum) => quorum.valid_for(),
        }
    }

    /// Waits until the lock is lost.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn lost(&self) -> LostReason {
        match &self.of {
            Of::Nothing => std::future::pending().await,
            Of::One(lease) => lease.lost().await,
            Of::Most(quorum) => quorum.lost().await,
        }
    }
}

impl fmt::Debug for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockToken")
            .field("lost", &self.reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::{ManualClock, SystemClock};

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn lease(clock: &Arc<dyn Clock>) -> Lease {
        Lease::new(Moment::now(clock).end_of(TTL), clock)
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_lost_when_its_time_is_over_and_nobody_said_anything() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (lease, begun) = (lease(&clock), Instant::now());
        assert_eq!(lease.lost().await, LostReason::Expired);
        let drift = TTL / 100 + Duration::from_millis(2);
        assert_eq!(begun.elapsed(), TTL - drift);
        lease.lasts(Moment::now(&clock).end_of(TTL));
        assert_eq!(lease.why_lost(), Some(LostReason::Expired), "for good");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_prolongs_it_also_for_who_waits() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (lease, begun) = (lease(&clock), Instant::now());
        let waiting = tokio::spawn({
            let lease = lease.clone();
            async move { lease.lost().await }
        });
        tokio::time::sleep(TTL / 2).await;
        lease.lasts(Moment::now(&clock).end_of(TTL));
        assert_eq!(waiting.await.unwrap(), LostReason::Expired);
        assert!(begun.elapsed() > TTL, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_suspended_has_lost_it() {
        let manual = Arc::new(ManualClock::new(1));
        let clock: Arc<dyn Clock> = Arc::clone(&manual) as _;
        let lease = lease(&clock);
        assert_eq!(lease.why_lost(), None);
        // Timers have not gone on meanwhile.
        manual.advance(TTL);
        assert_eq!(lease.why_lost(), Some(LostReason::Expired));
        assert_eq!(lease.valid_for(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_let_go_of_in_time_is_never_lost() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (released, late) = (lease(&clock), lease(&clock));
        let (token, waiting) = (LockToken::new(&released), LockToken::new(&released));
        let waiting = tokio::spawn(async move { waiting.lost().await });
        tokio::task::yield_now().await;
        released.end();
        assert_eq!(token.valid_for(), Duration::ZERO);
        tokio::time::sleep(2 * TTL).await;
        assert!(!token.is_lost() && !waiting.is_finished());
        assert!(!released.lose(LostReason::Stolen));
        assert!(!token.is_lost());
        late.end();
        assert_eq!(late.why_lost(), Some(LostReason::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_reason_is_the_one() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let lease = lease(&clock);
        assert!(lease.lose(LostReason::Forced));
        assert!(!lease.lose(LostReason::Stolen));
        assert_eq!(lease.lost().await, LostReason::Forced);
    }
}
