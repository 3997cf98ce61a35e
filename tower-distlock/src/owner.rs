//! Who holds a lock: a number that no other acquisition ever has.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// One acquisition. A new one for each, also for the same lock in the same task: what is released or renewed under it can be
/// nothing but what was granted to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId {
    /// The process, by which it is told where to send a grant.
    process: u64,
    acquisition: u64,
}

impl OwnerId {
    /// Whom nobody is.
    pub(crate) const NOBODY: Self = Self {
        process: 0,
        acquisition: 0,
    };

    pub(crate) fn new() -> Self {
        Self {
            process: process(),
            acquisition: random(),
        }
    }

    /// 32 hexadecimal digits, without the time that formatting takes.
    pub(crate) fn digits(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let number = (u128::from(self.process) << 64) | u128::from(self.acquisition);
        std::array::from_fn(|place| DIGITS[(number >> (124 - 4 * place)) as usize & 15])
    }

    /// What these digits say.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = |range| u64::from_str_radix(text.get(range)?, 16).ok();
        (text.len() == 32).then_some(())?;
        Some(Self {
            process: digits(0..16)?,
            acquisition: digits(16..32)?,
        })
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits();
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The process of an owner.
pub(crate) fn process_of(owner: OwnerId) -> u64 {
    owner.process
}

/// The number of this process; unlike the one of the operating system it is not used again.
pub(crate) fn process() -> u64 {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    *PROCESS.get_or_init(random)
}

/// SplitMix64 from a random beginning: no number comes twice in a process, and none costs a call of the system.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    static STATE: OnceLock<AtomicU64> = OnceLock::new();
    let state = STATE.get_or_init(|| {
        // Without a random source, which no supported system lacks, the seed of the standard library's hashers.
        let hash = || RandomState::new().hash_one(std::process::id());
        AtomicU64::new(getrandom::u64().unwrap_or_else(|_| hash()))
    });
    let mut number = state.fetch_add(STEP, Ordering::Relaxed);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_by_its_digits() {
        let owner = OwnerId::new();
        assert_eq!(OwnerId::parse(&owner.to_string()), Some(owner));
        assert_eq!(owner.digits(), owner.to_string().as_bytes());
        assert_ne!(OwnerId::new(), owner);
        for wrong in ["", "0", &"g".repeat(32), &"0".repeat(33)] {
            assert_eq!(OwnerId::parse(wrong), None, "{wrong:?}");
        }
    }
}
