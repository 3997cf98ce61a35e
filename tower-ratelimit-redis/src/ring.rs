//! The strict sliding window.
//!
//! A window of `W` microseconds is counted in buckets of `W/32`. Bucket `i(t) = 32 * floor(t / W) + floor(32 * (t mod W) / W)`
//! holds the moment `t`; the ring holds the bucket of now, called the head, and the 32 before it, and admits a cost if their
//! sum leaves room for it.
//!
//! **Never more than the limit in any interval of the length `W`.** `i` never falls, and `i(t + W) = i(t) + 32`: a step by `W`
//! raises `floor(t / W)` by one and leaves `t mod W` alone. A unit charged at `t0` therefore lies within the ring at every
//! `t` up to and including `t0 + W`. Take the last admission of an interval: every other admission of the interval was in the
//! ring then, and the sum did not exceed the limit.
//!
//! **Never a denial because of units older than `W + W/32`.** Bucket `b` begins at `start(b)`, the least `t` with `i(t) = b`,
//! which is `floor(b / 32) * W + ceil((b mod 32) * W / 32)`. A unit is counted while `i(t) <= i(t0) + 32`, so while
//! `t < start(i(t0) + 33) = start(i(t0) + 1) + W`. Two starts differ by less than `W/32 + 1`, hence
//! `t - t0 <= W + start(i(t0) + 1) - 1 - start(i(t0)) < W + W/32`.
//!
//! This holds for every `W` of whole microseconds, divisible by 32 or not. The script computes the same in doubles: all
//! operands are integers below 2^53, and the rounded quotient of two such integers has the floor of the exact one.
//!
//! **If the clock went back** below the head, the head becomes the bucket of now and all counts keep their age from the head.
//! So nobody waits longer than `W + W/32`. The first promise, though, is one for a clock without steps: a unit may have been
//! charged at any moment of its bucket and the new head stands at any moment of its own, so in true time each step back may let
//! units go up to `W/32` earlier. The new head must be stored, also by a decision that stores nothing else: or each would find
//! the counts as old as the one before.

use std::time::Duration;

/// Into how many buckets a window is divided.
const PARTS: u64 = 32;
/// One more than that: the oldest bucket, of which only a part lies in the window, is counted in full.
const SLOTS: usize = PARTS as usize + 1;

/// The longest window, in microseconds: 366 days. Far below the 2^53 that Redis' scripts count exactly, also after a
/// multiplication by 32.
pub(crate) const MAX_WINDOW: u64 = 366 * 24 * 3_600 * 1_000_000;

/// The counts of one subject over one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    window: u64,
    /// The bucket that the last slot counts.
    head: u64,
    /// What was counted before the oldest slot; this and all sums of what is stored are modulo 2^32.
    before: u32,
    /// The sum of all slots.
    total: u32,
    /// Oldest first.
    slots: [u32; SLOTS],
}

fn index(t: u64, window: u64) -> u64 {
    t / window * PARTS + t % window * PARTS / window
}

/// The first microsecond of a bucket.
fn start(bucket: u64, window: u64) -> u64 {
    bucket / PARTS * window + (bucket % PARTS * window).div_ceil(PARTS)
}

/// For how many microseconds at most a unit is counted.
pub(crate) fn lifetime(window: u64) -> u64 {
    window + window.div_ceil(PARTS)
}

impl Ring {
    /// The length of an encoded ring.
    #[cfg(any(feature = "sqlite", feature = "redis"))]
    pub(crate) const ENCODED: usize = 8 + 8 + 4 * (1 + SLOTS);

    /// Nothing counted yet.
    pub(crate) fn new(window: u64, now: u64) -> Self {
        Self {
            window,
            head: index(now, window),
            before: 0,
            total: 0,
            slots: [0; SLOTS],
        }
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Whether nothing is counted.
    pub(crate) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Forgets what is too old at `now`. Tells whether the clock went back.
    pub(crate) fn advance(&mut self, now: u64) -> bool {
        let now = index(now, self.window);
        let back = now < self.head;
        let passed = now.saturating_sub(self.head).min(SLOTS as u64) as usize;
        if passed > 0 {
            let expired = self.slots[..passed].iter().copied();
            let expired = expired.fold(0, u32::wrapping_add);
            self.before = if passed < SLOTS {
                self.before.wrapping_add(expired)
            } else {
                0
            };
            self.total = self.total.wrapping_sub(expired);
            self.slots.copy_within(passed.., 0);
            self.slots[SLOTS - passed..].fill(0);
        }
        self.head = now;
        back
    }

    /// Whether `cost` more units stay within `limit`.
    pub(crate) fn fits(&self, cost: u32, limit: u32) -> bool {
        u64::from(self.total) + u64::from(cost) <= u64::from(limit)
    }

    /// How many of the units counted must expire before `cost` units fit, or all if they never will.
    pub(crate) fn excess(&self, cost: u32, limit: u32) -> u32 {
        let wanted = u64::from(self.total) + u64::from(cost);
        let excess = wanted.saturating_sub(limit.into());
        u32::try_from(excess).unwrap_or(u32::MAX).min(self.total)
    }

    /// Counts `units` in the bucket of now, without asking; the sum stops at `u32::MAX`.
    pub(crate) fn charge(&mut self, units: u32) {
        let units = units.min(u32::MAX - self.total);
        self.total += units;
        let newest = &mut self.slots[SLOTS - 1];
        *newest = newest.wrapping_add(units);
    }

    pub(crate) fn remaining(&self, limit: u32) -> u32 {
        limit.saturating_sub(self.total)
    }

    /// How long until `units` of those counted have expired; nothing if so many are not counted.
    pub(crate) fn until_expired(&self, units: u32, now: u64) -> Duration {
        if units == 0 {
            return Duration::ZERO;
        }
        let mut expired = 0_u32;
        for (age, slot) in (1..).zip(&self.slots) {
            expired = expired.saturating_add(*slot);
            if expired >= units {
                let end = start(self.head + age, self.window);
                return Duration::from_micros(end.saturating_sub(now));
            }
        }
        Duration::ZERO
    }

    /// Appends the window, the head, what was counted before the oldest slot and up to the end of each, all little endian.
    #[cfg(feature = "sqlite")]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.window.to_le_bytes());
        out.extend_from_slice(&self.head.to_le_bytes());
        let mut sum = self.before;
        out.extend_from_slice(&sum.to_le_bytes());
        for slot in self.slots {
            sum = sum.wrapping_add(slot);
            out.extend_from_slice(&sum.to_le_bytes());
        }
    }

    /// Reads an encoded ring; nothing if it cannot be one. Any sums can be: the counts are their differences, here as in the
    /// script, which has no time to look at all of them.
    #[cfg(any(feature = "sqlite", feature = "redis"))]
    pub(crate) fn decode(bytes: &[u8; Self::ENCODED]) -> Option<Self> {
        let (window, rest) = bytes.split_first_chunk()?;
        let (head, rest) = rest.split_first_chunk()?;
        let (sums, _) = rest.as_chunks::<4>();
        let sum = |at: usize| u32::from_le_bytes(sums[at]);
        let window = u64::from_le_bytes(*window);
        (1..=MAX_WINDOW).contains(&window).then(|| Self {
            window,
            head: u64::from_le_bytes(*head),
            before: sum(0),
            total: sum(SLOTS).wrapping_sub(sum(0)),
            slots: std::array::from_fn(|at| sum(at + 1).wrapping_sub(sum(at))),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The exact times of all units, and what the module docs promise about them.
    #[derive(Default)]
    struct Log(Vec<(u64, u32)>);

    impl Log {
        fn sum(&self, counts: impl Fn(u64) -> bool) -> u64 {
            let counted = self.0.iter().filter(|(at, _)| counts(*at));
            counted.map(|(_, cost)| u64::from(*cost)).sum()
        }

        /// Those of the last `W`, both ends included.
        fn within(&self, now: u64, window: u64) -> u64 {
            self.sum(|at| now - at <= window)
        }

        /// Those of the last `W + W/32`.
        fn about(&self, now: u64, window: u64) -> u64 {
            self.sum(|at| (now - at) * PARTS < window * (PARTS + 1))
        }
    }

    fn admit(ring: &mut Ring, now: u64, cost: u32, limit: u32) -> bool {
        ring.advance(now);
        let fits = ring.fits(cost, limit);
        if fits {
            ring.charge(cost);
        }
        fits
    }

    #[test]
    fn a_unit_is_counted_for_the_window_and_at_most_a_bucket_more() {
        for window in [1_000, 1_001, 3_200, 9_999, 1_000_000, 31_622_400_000_000] {
            let base = 7 * window;
            for t0 in [base, base + 1, base + window / 3, base + window - 1] {
                let mut ring = Ring::new(window, t0);
                ring.charge(1);
                let end = t0 + u64::try_from(ring.until_expired(1, t0).as_micros()).unwrap();
                assert!(end - t0 > window, "counted at t0 + W");
                assert!(
                    (end - 1 - t0) * PARTS < window * (PARTS + 1),
                    "never so long"
                );
                ring.advance(end - 1);
                assert_eq!(ring.total, 1);
                ring.advance(end);
                assert_eq!(ring.total, 0);
            }
        }
    }

    #[test]
    fn starts_are_the_first_moments_of_their_buckets() {
        for window in [1_000, 1_001, 1_023, 1_024, 33_333] {
            for bucket in 0..200 {
                let first = start(bucket, window);
                assert_eq!(index(first, window), bucket);
                assert!(first == 0 || index(first - 1, window) == bucket - 1);
            }
        }
    }

    #[test]
    fn a_clock_that_went_back_relabels_the_ring() {
        let (window, late) = (32_000, 900_000_000);
        let mut ring = Ring::new(window, late);
        ring.charge(3);
        ring.advance(late + 5_000);
        ring.charge(4);
        let early = 77_000;
        ring.advance(early);
        assert_eq!((ring.total, ring.remaining(10)), (7, 3));
        // The later units are as old as if charged now, the earlier ones five buckets older.
        assert!(ring.until_expired(7, early) <= Duration::from_micros(lifetime(window)));
        let gap = ring.until_expired(4, early) - ring.until_expired(3, early);
        assert_eq!(gap, Duration::from_millis(5));
    }

    #[test]
    fn a_cost_above_the_limit_never_fits() {
        let mut ring = Ring::new(1_000, 0);
        assert!(!ring.fits(6, 5));
        assert_eq!(ring.excess(6, 5), 0);
        ring.charge(2);
        assert!(!ring.fits(6, 5));
        assert_eq!(ring.excess(6, 5), 2);
    }

    #[test]
    fn a_charge_beyond_what_can_be_counted_stops_there() {
        let mut ring = Ring::new(1_000, 0);
        ring.charge(u32::MAX);
        ring.charge(5);
        assert_eq!((ring.total, ring.remaining(1)), (u32::MAX, 0));
        ring.advance(10_000);
        assert_eq!(ring.total, 0);
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn what_cannot_have_been_written_is_not_read() {
        let mut ring = Ring::new(1_000, 5_000);
        ring.charge(2);
        let mut bytes = Vec::new();
        ring.encode(&mut bytes);
        let good: [u8; Ring::ENCODED] = bytes.try_into().unwrap();
        assert_eq!(Ring::decode(&good), Some(ring));
        assert_eq!(Ring::decode(&[0; Ring::ENCODED]), None, "no window");
        let mut bad = good;
        bad[7] = 1;
        assert_eq!(Ring::decode(&bad), None, "a window of ages");
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn any_sums_can_be_read_aged_and_charged() {
        for fill in [0xAB, 0xFF, 0x01] {
            let mut bytes = [fill; Ring::ENCODED];
            bytes[..8].copy_from_slice(&1_000_u64.to_le_bytes());
            bytes[20..24].fill(0);
            for now in [0, 5_000, 5_031, 5_100, 90_000] {
                let mut ring = Ring::decode(&bytes).unwrap();
                let mut again = Vec::new();
                ring.encode(&mut again);
                assert_eq!(again, bytes);
                ring.advance(now);
                ring.charge(u32::MAX);
                ring.until_expired(u32::MAX, now);
                ring.advance(now + 100);
                ring.advance(now + 10_000);
                assert_eq!(ring.total, 0);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_ring_keeps_both_promises(
            window in 1_000_u64..200_000,
            limit in 1_u32..12,
            first in 0_u64..10_000_000,
            steps in prop::collection::vec((0_u64..100, 0_u64..40_000, 1_u32..4), 1..120),
        ) {
            let (mut log, mut now) = (Log::default(), first);
            let mut ring = Ring::new(window, now);
            for (often, step, cost) in steps {
                // Mostly small steps, so that units pile up; sometimes exactly a window.
                now += match often { 0..60 => step / 40, 60..90 => step, 90..95 => window, _ => 0 };
                let cost = cost.min(limit);
                let within = log.within(now, window) + u64::from(cost);
                let about = log.about(now, window) + u64::from(cost);
                let admitted = admit(&mut ring, now, cost, limit);
                prop_assert!(!admitted || within <= u64::from(limit));
                prop_assert!(admitted || about > u64::from(limit));
                if admitted {
                    log.0.push((now, cost));
                    continue;
                }
                // Exactly when told, and not a microsecond earlier.
                let wait = ring.until_expired(ring.excess(cost, limit), now).as_micros();
                let then = now + u64::try_from(wait).unwrap();
                prop_assert!(!admit(&mut ring.clone(), then - 1, cost, limit));
                prop_assert!(admit(&mut ring.clone(), then, cost, limit));
            }
        }
    }
}
