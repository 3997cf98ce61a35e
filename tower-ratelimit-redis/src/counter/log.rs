//! The sliding log: the time of every unit, and so exactly the limit in any interval of the window's length.
//!
//! A unit charged at `t` counts before `t + W`. There is nothing to round and no price but memory: 12 bytes for each moment at which
//! something was charged, so limits are small ([`MAX_LIMIT`]).
//!
//! Stored are the number of entries (2 bytes), the sum of what was counted before them, and for each its time (8) and the sum up to
//! its end; sums are modulo 2^32 (4). So what a run of entries counts is one difference.

use super::Charge;

/// The greatest limit: each decision reads up to so many entries.
pub(crate) const MAX_LIMIT: u32 = 1_024;

/// The moments at which one subject was charged, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    span: u64,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    at: u64,
    units: u32,
}

impl Log {
    pub(crate) fn new(span: u64) -> Self {
        Self {
            span,
            entries: Vec::new(),
        }
    }

    pub(crate) fn advance(&mut self, now: u64) -> bool {
        let ahead = self
            .entries
            .last()
            .map_or(0, |last| last.at.saturating_sub(now));
        if ahead > 0 {
            // All keep their age.
            for entry in &mut self.entries {
                entry.at = entry.at.saturating_sub(ahead);
            }
        }
        let expired = self
            .entries
            .partition_point(|entry| entry.at.saturating_add(self.span) <= now);
        self.entries.drain(..expired);
        ahead > 0
    }

    pub(crate) fn used(&self, _: u64) -> u32 {
        let units = self.entries.iter().map(|entry| entry.units);
        units.fold(0, u32::saturating_add)
    }

    pub(crate) fn charge(&mut self, charge: Charge, now: u64) {
        let units = charge.units.min(u32::MAX - self.used(now));
        if units == 0 {
            return;
        }
        let full = self.entries.len() >= MAX_LIMIT as usize;
        match self.entries.last_mut() {
            // What is charged beyond the limit joins the newest, which then counts from now on.
            Some(last) if full || last.at == now => {
                last.at = now;
                last.units += units;
            }
            _ => self.entries.push(Entry { at: now, units }),
        }
    }

    pub(crate) fn refund(&mut self, units: u32, at: u64) {
        if let Ok(found) = self.entries.binary_search_by_key(&at, |entry| entry.at) {
            let entry = &mut self.entries[found];
            entry.units = entry.units.saturating_sub(units);
        }
    }

    pub(crate) fn until(&self, most: u32, now: u64) -> Option<u64> {
        let mut excess = self.used(now).saturating_sub(most);
        for entry in &self.entries {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(entry.units);
            if excess == 0 {
                return Some(entry.at.saturating_add(self.span).saturating_sub(now));
            }
        }
        Some(0)
    }

    /// The sum is what is scaled, or many small entries would lose too much.
    pub(crate) fn scale(&mut self, scale: impl Fn(u32) -> u32) {
        let (mut sum, mut scaled) = (0_u32, 0_u32);
        for entry in &mut self.entries {
            sum = sum.saturating_add(entry.units);
            let to = scale(sum);
            entry.units = to - scaled;
            scaled = to;
        }
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::{Entry, Log, MAX_LIMIT};
    use crate::counter::stored::{u16_of, u32_of, u64_of};

    impl Log {
        pub(crate) fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&(self.entries.len() as u16).to_le_bytes());
            let mut sum = 0_u32;
            out.extend_from_slice(&sum.to_le_bytes());
            for entry in &self.entries {
                sum = sum.wrapping_add(entry.units);
                out.extend_from_slice(&entry.at.to_le_bytes());
                out.extend_from_slice(&sum.to_le_bytes());
            }
        }

        pub(crate) fn decode(span: u64, bytes: &mut &[u8]) -> Option<Self> {
            let (count, mut sum) = (u16_of(bytes)?, u32_of(bytes)?);
            if u32::from(count) > MAX_LIMIT {
                return None;
            }
            let mut entries = Vec::with_capacity(count.into());
            for _ in 0..count {
                let (at, end) = (u64_of(bytes)?, u32_of(bytes)?);
                let units = end.wrapping_sub(sum);
                entries.push(Entry { at, units });
                sum = end;
            }
            Some(Self { span, entries })
        }
    }
}
