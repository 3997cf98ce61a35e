//! The strict sliding window.
//!
//! A window of `W` microseconds is counted in buckets of `W/32`. Bucket `i(t) = 32 * floor(t / W) + floor(32 * (t mod W) / W)`
//! holds the moment `t`; the ring holds the bucket of now, called the head, the 32 before it and the one ahead, and admits a cost if
//! their sum leaves room for it.
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

use super::Charge;

/// Into how many buckets a window is divided.
const PARTS: u64 = 32;
/// Two more than that: the oldest bucket, of which only a part lies in the window, is counted in full; and the last one lies ahead.
const SLOTS: usize = PARTS as usize + 2;
/// The slots of now and of the bucket ahead.
const NOW: usize = SLOTS - 2;
const AHEAD: usize = SLOTS - 1;

/// The counts of one subject over one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    window: u64,
    /// The bucket of now, which the last slot but one counts.
    head: u64,
    /// The moment to which it was advanced.
    now: u64,
    /// What was counted before the oldest slot; this and all sums of what is stored are modulo 2^32.
    before: u32,
    /// The sum of all slots.
    total: u32,
    /// Before this slot nothing counts.
    oldest: usize,
    /// Oldest first.
    slots: [u32; SLOTS],
}

fn index(t: u64, window: u64) -> u64 {
    t / window * PARTS + t % window * PARTS / window
}

/// The first microsecond of a bucket; the last one there is where what is stored is beyond all time.
fn start(bucket: u64, window: u64) -> u64 {
    let windows = (bucket / PARTS).saturating_mul(window);
    windows.saturating_add((bucket % PARTS * window).div_ceil(PARTS))
}

/// For how many microseconds at most a unit is counted, also one of the bucket ahead.
pub(crate) fn lifetime(window: u64) -> u64 {
    window + 2 * window.div_ceil(PARTS)
}

/// How long until the bucket after that of `now` ends, in microseconds: so long what is charged ahead may be used.
pub(crate) fn ahead_for(window: u64, now: u64) -> u64 {
    start(index(now, window) + 2, window) - now
}

impl Ring {
    /// Nothing counted yet.
    pub(crate) fn new(window: u64, now: u64) -> Self {
        Self {
            window,
            head: index(now, window),
            now,
            before: 0,
            total: 0,
            oldest: SLOTS,
            slots: [0; SLOTS],
        }
    }

    /// Forgets what is too old at `now`. Tells whether the clock went back.
    pub(crate) fn advance(&mut self, now: u64) -> bool {
        self.now = now;
        let now = self.bucket_of(now);
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
            self.oldest = self.oldest.saturating_sub(passed);
        }
        while self.slots.get(self.oldest) == Some(&0) {
            self.oldest += 1;
        }
        self.head = now;
        back
    }

    /// Most often it is the bucket of last time, and to see that takes no division.
    fn bucket_of(&self, now: u64) -> u64 {
        let next = start(self.head.saturating_add(1), self.window);
        if (start(self.head, self.window)..next).contains(&now) {
            self.head
        } else {
            index(now, self.window)
        }
    }

    pub(crate) fn used(&self, _: u64) -> u32 {
        self.total
    }

    /// Counts units in the bucket of now, or in the one ahead; the sum stops at `u32::MAX`.
    pub(crate) fn charge(&mut self, charge: Charge, _: u64) {
        let units = charge.units.min(u32::MAX - self.total);
        self.total += units;
        let at = if charge.ahead { AHEAD } else { NOW };
        self.slots[at] = self.slots[at].wrapping_add(units);
        self.oldest = self.oldest.min(at);
    }

    /// Takes units out of the bucket of `at`, or of the one ahead of that: as many as it has. What was charged at other times counts on
    /// for as long as it must.
    pub(crate) fn refund(&mut self, units: u32, at: u64, ahead: bool) {
        let bucket = index(at, self.window) + u64::from(ahead);
        let Some(slot) = (bucket + NOW as u64).checked_sub(self.head) else {
            return;
        };
        if let Some(slot) = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.slots.get_mut(slot))
        {
            let units = units.min(*slot);
            *slot -= units;
            self.total = self.total.wrapping_sub(units);
        }
    }

    /// How long until at most `most` units are counted.
    pub(crate) fn until(&self, most: u32, now: u64) -> Option<u64> {
        let excess = u64::from(self.total.saturating_sub(most));
        if excess == 0 {
            return Some(0);
        }
        let mut expired = 0;
        for (at, slot) in self.slots.iter().enumerate().skip(self.oldest) {
            expired += u64::from(*slot);
            if expired >= excess {
                let end = start(self.head + at as u64 + 1, self.window);
                return Some(end.saturating_sub(now));
            }
        }
        Some(0)
    }

    /// The sums are what is scaled, or many small buckets would lose too much.
    pub(crate) fn scale(&mut self, scale: impl Fn(u32) -> u32) {
        let (mut sum, mut scaled) = (0_u32, 0_u32);
        for slot in &mut self.slots {
            sum = sum.saturating_add(*slot);
            let to = scale(sum);
            *slot = to - scaled;
            scaled = to;
        }
        self.total = scaled;
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::{Ring, SLOTS};
    use crate::counter::stored::{u32_of, u64_of};

    impl Ring {
        /// Appends the head, what was counted before the oldest slot and up to the end of each, and the time, which a script answers by it.
        pub(crate) fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.head.to_le_bytes());
            let mut sum = self.before;
            out.extend_from_slice(&sum.to_le_bytes());
            for slot in self.slots {
                sum = sum.wrapping_add(slot);
                out.extend_from_slice(&sum.to_le_bytes());
            }
            out.extend_from_slice(&self.now.to_le_bytes());
        }

        /// Reads an encoded ring. Any sums can be one: the counts are their differences, here as in the script, which has no time
        /// to look at all of them.
        pub(crate) fn decode(window: u64, bytes: &mut &[u8]) -> Option<Self> {
            let (head, before) = (u64_of(bytes)?, u32_of(bytes)?);
            let (mut sum, mut slots) = (before, [0; SLOTS]);
            for slot in &mut slots {
                let end = u32_of(bytes)?;
                *slot = end.wrapping_sub(sum);
                sum = end;
            }
            Some(Self {
                window,
                head,
                now: u64_of(bytes)?,
                before,
                total: sum.wrapping_sub(before),
                oldest: 0,
                slots,
            })
        }
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

    fn charge(ring: &mut Ring, units: u32) {
        ring.charge(Charge::of(units), 0);
    }

    fn admit(ring: &mut Ring, now: u64, cost: u32, limit: u32) -> bool {
        ring.advance(now);
        let fits = u64::from(ring.used(now)) + u64::from(cost) <= u64::from(limit);
        if fits {
            charge(ring, cost);
        }
        fits
    }

    #[test]
    fn a_unit_is_counted_for_the_window_and_at_most_a_bucket_more() {
        for window in [1_000, 1_001, 3_200, 9_999, 1_000_000, 31_622_400_000_000] {
            let base = 7 * window;
            for t0 in [base, base + 1, base + window / 3, base + window - 1] {
                let mut ring = Ring::new(window, t0);
                charge(&mut ring, 1);
                let end = t0 + ring.until(0, t0).unwrap();
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
        charge(&mut ring, 3);
        ring.advance(late + 5_000);
        charge(&mut ring, 4);
        let early = 77_000;
        ring.advance(early);
        assert_eq!(ring.used(early), 7);
        // The later units are as old as if charged now, the earlier ones five buckets older.
        let until = |most| ring.until(most, early).unwrap();
        assert!(until(0) * PARTS <= window * (PARTS + 1));
        assert_eq!(until(3) - until(4), 5_000);
    }

    #[test]
    fn what_is_charged_ahead_counts_for_a_window_after_its_use() {
        for window in [1_000, 1_023, 32_000, 1_000_003] {
            for t0 in [7 * window, 7 * window + 1, 8 * window - 1] {
                let mut ring = Ring::new(window, t0);
                let ahead = Charge {
                    ahead: true,
                    ..Charge::of(1)
                };
                ring.charge(ahead, t0);
                let used = t0 + ahead_for(window, t0) - 1;
                ring.advance(used);
                assert_eq!(ring.used(used), 1, "counted at its last use");
                ring.advance(used + window);
                assert_eq!(ring.used(used + window), 1, "and a window later");
                let end = t0 + lifetime(window);
                ring.advance(end);
                assert_eq!(ring.used(end), 0);
            }
        }
    }

    #[test]
    fn a_refund_comes_out_of_the_bucket_that_was_charged() {
        let (window, t0) = (32_000, 900_000_000);
        let mut ring = Ring::new(window, t0);
        charge(&mut ring, 3);
        let later = t0 + 10_000;
        ring.advance(later);
        charge(&mut ring, 4);
        ring.refund(5, t0, false);
        assert_eq!(ring.used(later), 4, "no more than it had");
        ring.refund(1, t0 + 5_000, false);
        ring.refund(1, t0 - window, false);
        ring.refund(1, later + window, false);
        assert_eq!(ring.used(later), 4, "nothing was charged then");
        ring.refund(1, later, false);
        assert_eq!(
            (ring.used(later), ring.until(2, later)),
            (3, ring.until(0, later))
        );
    }

    #[test]
    fn a_charge_beyond_what_can_be_counted_stops_there() {
        let mut ring = Ring::new(1_000, 0);
        charge(&mut ring, u32::MAX);
        charge(&mut ring, 5);
        assert_eq!(ring.used(0), u32::MAX);
        ring.advance(10_000);
        assert_eq!(ring.total, 0);
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn any_sums_can_be_read_aged_and_charged() {
        for fill in [0xAB, 0xFF, 0x01] {
            let mut bytes = [fill; 156];
            bytes[4..8].fill(0);
            for now in [0, 5_000, 5_031, 5_100, 90_000] {
                let mut ring = Ring::decode(1_000, &mut bytes.as_slice()).unwrap();
                let mut again = Vec::new();
                ring.encode(&mut again);
                assert_eq!(again, bytes);
                ring.advance(now);
                charge(&mut ring, u32::MAX);
                ring.until(0, now);
                ring.advance(now + 100);
                ring.advance(now + u64::from(u32::MAX) * 1_000);
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
                let then = now + ring.until(limit - cost, now).unwrap();
                prop_assert!(!admit(&mut ring.clone(), then - 1, cost, limit));
                prop_assert!(admit(&mut ring.clone(), then, cost, limit));
            }
        }
    }
}
