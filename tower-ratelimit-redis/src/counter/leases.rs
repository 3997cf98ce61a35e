//! Concurrency: units that are held, not spent, until they are released or their lease ends.
//!
//! Whoever holds some renews their lease, so those of a process that was killed are free again after one lease. Renewing what has
//! ended, or was never there, brings nothing back.
//!
//! Stored are the number of permits (2 bytes), and for each its name (8), the end of its lease (8) and its units (4).

use super::Charge;

/// The greatest limit: each decision reads up to so many permits.
pub(crate) const MAX_LIMIT: u32 = 1_024;

/// Who holds units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leases {
    /// For how long an acquired or renewed permit is held.
    lease: u64,
    permits: Vec<Permit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Permit {
    name: u64,
    ends: u64,
    units: u32,
}

impl Leases {
    pub(crate) fn new(lease: u64) -> Self {
        Self {
            lease,
            permits: Vec::new(),
        }
    }

    pub(crate) fn advance(&mut self, now: u64) -> bool {
        let latest = now.saturating_add(self.lease);
        let mut back = false;
        self.permits.retain_mut(|permit| {
            if permit.ends > latest {
                // The clock went back: no lease is longer than one.
                permit.ends = latest;
                back = true;
            }
            permit.ends > now
        });
        back
    }

    pub(crate) fn used(&self, _: u64) -> u32 {
        let units = self.permits.iter().map(|permit| permit.units);
        units.fold(0, u32::saturating_add)
    }

    /// Holds units under the name of their permit. Without a name they could not be released, so they are not held.
    pub(crate) fn charge(&mut self, charge: Charge, now: u64) {
        if charge.units > 0 && charge.permit != 0 && self.permits.len() < MAX_LIMIT as usize {
            self.permits.push(Permit {
                name: charge.permit,
                ends: now.saturating_add(self.lease),
                units: charge.units,
            });
        }
    }

    /// Nobody can tell when somebody releases.
    pub(crate) fn until(&self, most: u32, now: u64) -> Option<u64> {
        (self.used(now) <= most).then_some(0)
    }

    /// Holds a permit for another lease. Tells whether it was held until now.
    pub(crate) fn renew(&mut self, name: u64, now: u64) -> bool {
        let ends = now.saturating_add(self.lease);
        let held = self.permits.iter_mut().find(|permit| permit.name == name);
        held.map(|permit| permit.ends = ends).is_some()
    }

    /// Gives the units of a permit back. Tells whether it was held until now.
    pub(crate) fn release(&mut self, name: u64) -> bool {
        let before = self.permits.len();
        self.permits.retain(|permit| permit.name != name);
        self.permits.len() < before
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::{Leases, MAX_LIMIT, Permit};
    use crate::counter::stored::{u16_of, u32_of, u64_of};

    impl Leases {
        pub(crate) fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&(self.permits.len() as u16).to_le_bytes());
            for permit in &self.permits {
                out.extend_from_slice(&permit.name.to_le_bytes());
                out.extend_from_slice(&permit.ends.to_le_bytes());
                out.extend_from_slice(&permit.units.to_le_bytes());
            }
        }

        pub(crate) fn decode(lease: u64, bytes: &mut &[u8]) -> Option<Self> {
            let count = u16_of(bytes)?;
            if u32::from(count) > MAX_LIMIT {
                return None;
            }
            let mut permits = Vec::with_capacity(count.into());
            for _ in 0..count {
                permits.push(Permit {
                    name: u64_of(bytes)?,
                    ends: u64_of(bytes)?,
                    units: u32_of(bytes)?,
                });
            }
            Some(Self { lease, permits })
        }
    }
}
