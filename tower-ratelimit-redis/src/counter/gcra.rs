//! The generic cell rate algorithm: a bucket of `burst` units that refills by one every interval.
//!
//! What is kept is the *theoretical arrival time*: the moment at which the bucket will be full again. It lies ahead of now by one
//! interval for each unit in use, so it is all that needs to be stored. Admitted are up to `burst` at once, and in an interval of
//! the length `burst` x interval up to twice as many: those and what refills meanwhile. Everything is in whole microseconds, so
//! nothing is lost to rounding, however often it is asked.
//!
//! governor decides the same, which the tests prove: it counts in nanoseconds what is whole microseconds here and in the scripts.

use super::Charge;

/// Twice the longest window, in microseconds.
const MAX_DEBT: u64 = 2 * crate::policy::MAX_SPAN;

/// When the bucket of one subject is full again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gcra {
    /// The time in which one unit refills.
    interval: u64,
    /// The last moment at which it was charged.
    last: u64,
    /// The theoretical arrival time; what is not ahead of now is full.
    full: u64,
}

/// After how many microseconds the fullest debt is paid, also one that was settled beyond the burst.
pub(crate) fn lifetime(interval: u64, burst: u32) -> u64 {
    interval.saturating_mul(u64::from(burst)).saturating_mul(2)
}

impl Gcra {
    pub(crate) fn new(interval: u64, now: u64) -> Self {
        Self {
            interval,
            last: now,
            full: now,
        }
    }

    pub(crate) fn advance(&mut self, now: u64) -> bool {
        let back = now < self.last;
        if back {
            // The debt stays what it was.
            self.full = self.full.saturating_sub(self.last - now);
        }
        self.last = now;
        self.full = self.full.max(now);
        back
    }

    pub(crate) fn used(&self, now: u64) -> u32 {
        let used = self.full.saturating_sub(now).div_ceil(self.interval);
        u32::try_from(used).unwrap_or(u32::MAX)
    }

    pub(crate) fn charge(&mut self, charge: Charge, now: u64) {
        let more = self.interval.saturating_mul(charge.units.into());
        self.full = self.full.max(now).saturating_add(more);
    }

    /// Lets go of a debt that nobody would remember until it is paid.
    pub(crate) fn bound(&mut self, burst: u32, now: u64) {
        let most = lifetime(self.interval, burst).min(MAX_DEBT);
        self.full = self.full.min(now.saturating_add(most));
    }

    pub(crate) fn refund(&mut self, units: u32, now: u64) {
        let less = self.interval.saturating_mul(units.into());
        self.full = self.full.saturating_sub(less).max(now);
    }

    pub(crate) fn until(&self, most: u32, now: u64) -> Option<u64> {
        let kept = self.interval.saturating_mul(most.into());
        Some(self.full.saturating_sub(now).saturating_sub(kept))
    }

    pub(crate) fn scale(&mut self, scale: impl Fn(u32) -> u32, now: u64) {
        let used = scale(self.used(now));
        self.full = now.saturating_add(self.interval.saturating_mul(used.into()));
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::Gcra;
    use crate::counter::stored::u64_of;

    impl Gcra {
        pub(crate) fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.full.to_le_bytes());
            out.extend_from_slice(&self.last.to_le_bytes());
        }

        pub(crate) fn decode(interval: u64, bytes: &mut &[u8]) -> Option<Self> {
            Some(Self {
                interval,
                full: u64_of(bytes)?,
                last: u64_of(bytes)?,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn governor_decides_the_same(
            interval in prop_oneof![Just(1_u64), Just(3), 1_u64..2_000_000],
            burst in 1_u32..30,
            calls in prop::collection::vec((0_u64..40, 1_u32..5), 1..120),
        ) {
            let quota = Quota::with_period(Duration::from_micros(interval)).unwrap();
            let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap());
            let clock = FakeRelativeClock::default();
            let governor = RateLimiter::direct_with_clock(quota, clock.clone());
            let mut now = 7_000_000;
            let mut counter = Gcra::new(interval, now);
            for (tenths, units) in calls {
                // Mostly less than an interval, and never so much that it is all free again at once.
                let step = interval * tenths / 10;
                now += step;
                clock.advance(Duration::from_micros(step));
                counter.advance(now);
                let admitted = u64::from(counter.used(now)) + u64::from(units) <= u64::from(burst);
                if admitted {
                    counter.charge(Charge::of(units), now);
                }
                let theirs = governor.check_n(NonZeroU32::new(units).unwrap());
                prop_assert_eq!(admitted, matches!(theirs, Ok(Ok(()))));
            }
        }
    }
}
