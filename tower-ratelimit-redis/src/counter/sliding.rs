//! The sliding counter: two fixed windows, the older of which counts by the part of it that is still within reach.
//!
//! Of the window before this one, a part `1 - e/W` lies within the last `W` microseconds when `e` of this one have passed, and it is
//! taken as if its units had come evenly. Admitted are up to twice the limit in an interval of the length `W` at the very worst (all
//! of the first window at its end), and the nominal rate is sustained. The least memory of all that slide.
//!
//! The weighted part is computed in doubles, by the same operations in the same order as in the script, so both see one number.

use super::Charge;

/// The counts of one subject in this window and the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sliding {
    span: u64,
    /// The number of this window.
    index: u64,
    previous: u32,
    current: u32,
}

impl Sliding {
    pub(crate) fn new(span: u64, now: u64) -> Self {
        Self {
            span,
            index: now / span,
            previous: 0,
            current: 0,
        }
    }

    pub(crate) fn advance(&mut self, now: u64) -> bool {
        let index = now / self.span;
        let back = index < self.index;
        match index.saturating_sub(self.index) {
            0 => {}
            1 => (self.previous, self.current) = (self.current, 0),
            _ => (self.previous, self.current) = (0, 0),
        }
        self.index = index;
        back
    }

    pub(crate) fn used(&self, now: u64) -> u32 {
        self.current.saturating_add(self.weighted(now))
    }

    /// What of the window before still counts, rounded up.
    fn weighted(&self, now: u64) -> u32 {
        let left = self.span - now % self.span;
        let part = f64::from(self.previous) * (left as f64 / self.span as f64);
        part.ceil() as u32
    }

    /// Counts units in this window; what is used stops at `u32::MAX`.
    pub(crate) fn charge(&mut self, charge: Charge, now: u64) {
        self.current += charge.units.min(u32::MAX - self.used(now));
    }

    pub(crate) fn refund(&mut self, units: u32, at: u64) {
        match self.index.checked_sub(at / self.span) {
            Some(0) => self.current = self.current.saturating_sub(units),
            Some(1) => self.previous = self.previous.saturating_sub(units),
            _ => {}
        }
    }

    pub(crate) fn until(&self, most: u32, now: u64) -> Option<u64> {
        if self.used(now) <= most {
            return Some(0);
        }
        let passed = now % self.span;
        if self.current <= most {
            // Within this window, or at its end.
            return Some(self.first_moment(self.previous, most - self.current, passed) - passed);
        }
        // In the next one, where what is current now is the window before.
        Some(self.span - passed + self.first_moment(self.current, most, 0))
    }

    /// From which microsecond of a window on at most `most` of `previous` units count, `from` or later.
    fn first_moment(&self, previous: u32, most: u32, from: u64) -> u64 {
        let counted = |passed: u64| {
            let left = self.span - passed;
            (f64::from(previous) * (left as f64 / self.span as f64)).ceil() as u32
        };
        // What counts never rises within a window, so halving finds it.
        let (mut low, mut high) = (from, self.span);
        while low < high {
            let middle = low + (high - low) / 2;
            if counted(middle) <= most {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    pub(crate) fn scale(&mut self, scale: impl Fn(u32) -> u32) {
        self.previous = scale(self.previous);
        self.current = scale(self.current);
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::Sliding;
    use crate::counter::stored::{u32_of, u64_of};

    impl Sliding {
        pub(crate) fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.index.to_le_bytes());
            out.extend_from_slice(&self.previous.to_le_bytes());
            out.extend_from_slice(&self.current.to_le_bytes());
        }

        pub(crate) fn decode(span: u64, bytes: &mut &[u8]) -> Option<Self> {
            Some(Self {
                span,
                index: u64_of(bytes)?,
                previous: u32_of(bytes)?,
                current: u32_of(bytes)?,
            })
        }
    }
}
