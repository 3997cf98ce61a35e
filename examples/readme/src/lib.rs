#![doc = include_str!("../../../README.md")]

/// The page about rate limits.
#[doc = include_str!("../../../docs/rate-limits.md")]
pub mod rate_limits {}

/// The page about locks.
#[doc = include_str!("../../../docs/locks.md")]
pub mod locks {}
