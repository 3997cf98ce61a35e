//! The fixed window: a count that begins anew with each window.
//!
//! The windows of one kind are aligned to the calendar (multiples of the window since the Unix epoch, so hours and days of UTC), those
//! of the other begin with the first unit that is charged in them. Up to twice the limit is admitted around the end of a window. For
//! quotas that are sold by the day or the month, and for nothing else.

use super::Charge;

/// The count of one subject in the present window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    span: u64,
    aligned: bool,
    start: u64,
    count: u32,
}

impl Fixed {
    pub(crate) fn aligned(span: u64, now: u64) -> Self {
        Self {
            span,
            aligned: true,
            start: now - now % span,
            count: 0,
        }
    }

    pub(crate) fn from_first(span: u64, now: u64) -> Self {
        Self {
            span,
            aligned: false,
            start: now,
            count: 0,
        }
    }

    pub(crate) fn advance(&mut self, now: u64) -> bool {
        let back = now < self.start;
        let ended = now >= self.start.saturating_add(self.span);
        if ended {
            self.count = 0;
        }
        if back || ended || self.count == 0 {
            self.start = if self.aligned {
                now - now % self.span
            } else {
                now
            };
        }
        back
    }

    pub(crate) fn used(&self, _: u64) -> u32 {
        self.count
    }

    pub(crate) fn charge(&mut self, charge: Charge, _: u64) {
        self.count = self.count.saturating_add(charge.units);
    }

    pub(crate) fn refund(&mut self, units: u32, at: u64) {
        if at >= self.start {
            self.count = self.count.saturating_sub(units);
        }
    }

    pub(crate) fn until(&self, most: u32, now: u64) -> Option<u64> {
        if self.count <= most {
            return Some(0);
        }
        Some(self.start.saturating_add(self.span).saturating_sub(now))
    }

    pub(crate) fn scale(&mut self, scale: impl Fn(u32) -> u32, now: u64) {
        self.count = scale(self.count);
        // Where nothing is left, the window begins anew.
        self.advance(now);
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::Fixed;
    use crate::counter::stored::{u32_of, u64_of};

    impl Fixed {
        pub(crate) fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.start.to_le_bytes());
            out.extend_from_slice(&self.count.to_le_bytes());
        }

        pub(crate) fn decode(span: u64, aligned: bool, bytes: &mut &[u8]) -> Option<Self> {
            Some(Self {
                span,
                aligned,
                start: u64_of(bytes)?,
                count: u32_of(bytes)?,
            })
        }
    }
}
