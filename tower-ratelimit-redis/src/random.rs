//! Random numbers.

use std::hash::{BuildHasher as _, RandomState};

/// A random number; unique for all practical purposes.
pub(crate) fn number() -> u64 {
    // The keys of each are new, from a random seed of the operating system.
    RandomState::new().hash_one(std::process::id())
}
