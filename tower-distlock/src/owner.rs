//! Who holds a lock: a number that no other acquisition ever has.

use std::{fmt, sync::OnceLock};

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

    /// 32 hexadecimal digits.
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
        write!(f, "{:016x}{:016x}", self.process, self.acquisition)
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

pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Without a random source, which no supported system lacks, the seed of the standard library's hashers.
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_by_its_digits() {
        let owner = OwnerId::new();
        assert_eq!(OwnerId::parse(&owner.to_string()), Some(owner));
        assert_ne!(OwnerId::new(), owner);
        for wrong in ["", "0", &"g".repeat(32), &"0".repeat(33)] {
            assert_eq!(OwnerId::parse(wrong), None, "{wrong:?}");
        }
    }
}
