//! Leases of one lock on several servers, of which most must last.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};

use crate::{LostReason, lease::Lease};

/// The leases of one acquisition, each of which is known to be lost by its own clock and by what its server said.
#[derive(Debug)]
pub(crate) struct Quorum {
    /// Of each server the last one that it granted.
    leases: Mutex<Vec<Option<Lease>>>,
    /// How many must last.
    most: usize,
    /// Why it is lost, once anybody has seen it: for good, whatever is granted again.
    lost: OnceLock<LostReason>,
}

impl Quorum {
    /// More than half of so many must last. It counts from when they were granted: before it would be lost.
    pub(crate) fn of(servers: usize) -> Arc<Self> {
        Arc::new(Self {
            leases: Mutex::new(vec![None; servers]),
            most: servers / 2 + 1,
            lost: OnceLock::new(),
        })
    }

    /// A server has granted it, for the first time or again.
    pub(crate) fn add(&self, place: usize, lease: &Lease) {
        // What was lost meanwhile does not come back, though nobody has looked.
        if self.leases().len() >= self.most {
            self.why_lost();
        }
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = leases.get_mut(place) {
            *slot = Some(lease.clone());
        }
    }

    fn leases(&self) -> Vec<Lease> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.iter().flatten().cloned().collect()
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// How many are not lost.
    pub(crate) fn count(&self) -> usize {
        let leases = self.leases().into_iter();
        leases.filter(|lease| lease.why_lost().is_none()).count()
    }

    /// Why it is lost, if it is: what somebody said comes before silence.
    pub(crate) fn why_lost(&self) -> Option<LostReason> {
        if let Some(reason) = self.lost.get() {
            return Some(*reason);
        }
        let leases = self.leases();
        let reasons: Vec<_> = leases.iter().filter_map(Lease::why_lost).collect();
        if leases.len() - reasons.len() >= self.most {
            return None;
        }
        let said = |reason: &&LostReason| **reason != LostReason::Expired;
        let reason = reasons.iter().find(said).copied();
        let reason = reason.unwrap_or(LostReason::Expired);
        Some(*self.lost.get_or_init(|| reason))
    }

    /// For how long most of them last without a renewal.
    pub(crate) fn valid_for(&self) -> Duration {
        if self.why_lost().is_some() {
            return Duration::ZERO;
        }
        let leases = self.leases().into_iter();
        let mut each: Vec<_> = leases.map(|lease| lease.valid_for()).collect();
        each.sort_unstable_by(|one, other| other.cmp(one));
        each.get(self.most - 1).copied().unwrap_or_default()
    }

    /// Waits until it is lost: as with one lease, no answer of anybody is needed for that.
    pub(crate) async fn lost(&self) -> LostReason {
        loop {
            if let Some(reason) = self.why_lost() {
                return reason;
            }
            // One that is added meanwhile makes up for one of these, and is looked at when that is lost.
            let leases = self.leases();
            let last = leases.iter().filter(|lease| lease.why_lost().is_none());
            let mut each: FuturesUnordered<_> = last.map(Lease::lost).collect();
            each.next().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::{Clock, SystemClock};

    use super::*;
    use crate::lease::Moment;

    const TTL: Duration = Duration::from_secs(10);

    /// One on three servers, of which the third has not answered yet.
    fn on_two_of_three() -> (Arc<Quorum>, impl Fn(u32) -> Lease) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let lease = move |times| Lease::new(Moment::now(&clock).end_of(TTL * times), &clock);
        let quorum = Quorum::of(3);
        quorum.add(0, &lease(1));
        quorum.add(1, &lease(2));
        (quorum, lease)
    }

    #[tokio::test(start_paused = true)]
    async fn it_lasts_as_long_as_most_of_them() {
        let (quorum, lease) = on_two_of_three();
        assert!(quorum.valid_for() < TTL);
        quorum.add(2, &lease(3));
        assert!(quorum.valid_for() > TTL);
        tokio::time::sleep(TTL).await;
        assert_eq!((quorum.why_lost(), quorum.count()), (None, 2));
        assert_eq!(quorum.lost().await, LostReason::Expired);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_late_makes_up_for_another_also_for_who_waits() {
        let (quorum, lease) = on_two_of_three();
        let (waiting, first) = (Arc::clone(&quorum), quorum.leases()[0].clone());
        let waiting = tokio::spawn(async move { waiting.lost().await });
        tokio::task::yield_now().await;
        let late = lease(2);
        quorum.add(2, &late);
        first.lose(LostReason::Vanished);
        tokio::time::sleep(TTL).await;
        assert!(!waiting.is_finished() && quorum.why_lost().is_none());
        late.lose(LostReason::Stolen);
        assert_eq!(waiting.await.unwrap(), LostReason::Vanished);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_is_lost_for_good_and_silence_is_the_last_reason() {
        let (quorum, lease) = on_two_of_three();
        let last = quorum.leases()[1].clone();
        last.lose(LostReason::HeldTooLong);
        assert_eq!(quorum.why_lost(), Some(LostReason::HeldTooLong));
        quorum.add(1, &lease(1));
        quorum.add(2, &lease(1));
        assert_eq!(quorum.why_lost(), Some(LostReason::HeldTooLong));
        assert_eq!(quorum.valid_for(), Duration::ZERO);

        let (quorum, _) = on_two_of_three();
        tokio::time::sleep(TTL).await;
        quorum.leases()[1].lose(LostReason::Closed);
        assert_eq!(quorum.lost().await, LostReason::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_let_go_of_in_time_is_never_lost() {
        let (quorum, _) = on_two_of_three();
        quorum.leases().iter().for_each(Lease::end);
        tokio::time::sleep(3 * TTL).await;
        assert_eq!(quorum.why_lost(), None);
        assert_eq!(quorum.valid_for(), Duration::ZERO);
    }
}
