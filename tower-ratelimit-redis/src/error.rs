//! What can go wrong.

use std::{error::Error as StdError, fmt, time::Duration};

/// Why a [`Policy`](crate::Policy) could not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// The name is not 1 to 64 characters of `[A-Za-z0-9_.-]`.
    InvalidName {
        /// The name that was given.
        name: String,
    },
    /// The policy limits nothing.
    NoLimit,
    /// More than 8 limits.
    TooManyLimits {
        /// How many were given.
        count: usize,
    },
    /// A limit of zero units.
    ZeroLimit,
    /// A limit beyond `u32::MAX`, or beyond what an algorithm takes that stores each unit by itself.
    LimitTooLarge {
        /// The limit that was given.
        limit: u64,
        /// The greatest that is possible.
        most: u64,
    },
    /// A window of no length.
    ZeroWindow,
    /// A window below a millisecond, above 366 days, or not of whole microseconds.
    WindowNotRepresentable {
        /// The window that was given.
        window: Duration,
    },
    /// A rate whose interval per unit, in whole microseconds, differs by more than a hundredth from it.
    RateNotRepresentable {
        /// How many units.
        limit: u64,
        /// In which time.
        window: Duration,
    },
    /// A bucket that needs more than 366 days to refill.
    BurstTooLong {
        /// The burst that was given.
        burst: u64,
    },
    /// A way of [`Spending`](crate::Spending) that these limits cannot have.
    InvalidSpending {
        /// What was given.
        spending: crate::Spending,
        /// What is possible.
        expected: &'static str,
    },
    /// Two limits over windows of one length, so that they would also have one name.
    DuplicateWindow {
        /// The window of both.
        window: Duration,
    },
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidName { name } => write!(
                f,
                "policy name {name:?}: expected 1 to 64 characters of [A-Za-z0-9_.-]"
            ),
            Self::NoLimit => f.write_str("the policy has no limit"),
            Self::TooManyLimits { count } => {
                write!(f, "the policy has {count} limits, expected at most 8")
            }
            Self::ZeroLimit => f.write_str("a limit of 0 admits nothing, expected at least 1"),
            Self::LimitTooLarge { limit, most } => {
                write!(f, "limit {limit}: expected at most {most}")
            }
            Self::ZeroWindow => f.write_str("a window of no length, expected at least 1 ms"),
            Self::WindowNotRepresentable { window } => write!(
                f,
                "window {window:?}: expected whole microseconds, from 1 ms to 366 days"
            ),
            Self::RateNotRepresentable { limit, window } => write!(
                f,
                "{limit} units in {window:?}: expected an interval that is a whole number of microseconds, to a hundredth"
            ),
            Self::BurstTooLong { burst } => write!(
                f,
                "burst {burst}: expected a bucket that refills within 366 days"
            ),
            Self::InvalidSpending { spending, expected } => {
                write!(f, "spending {spending:?}: expected {expected}")
            }
            Self::DuplicateWindow { window } => {
                write!(
                    f,
                    "two limits over {window:?}, expected one for each window"
                )
            }
        }
    }
}

impl StdError for PolicyError {}

/// Why there is no [`Decision`](crate::Decision).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RateLimitError {
    /// The store could not decide, and the limiter is set to [`OnFailure::Closed`](crate::OnFailure::Closed); or the
    /// configuration is wrong, which no failure policy hides.
    Store(redis_conn::Error),
    /// The cost is more than a limit ever admits at once, so waiting cannot help. Nothing was charged.
    CostExceedsLimit {
        /// The cost that was asked for.
        cost: u64,
        /// The smallest limit of the policy.
        limit: u64,
    },
    /// The policy has a concurrency limit, whose units somebody must hold: expected [`acquire`](crate::Limiter::acquire).
    NeedsPermit,
}

impl fmt::Display for RateLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(_) => f.write_str("the rate limit could not be decided"),
            Self::CostExceedsLimit { cost, limit } => {
                write!(f, "cost {cost} exceeds the limit of {limit}")
            }
            Self::NeedsPermit => {
                f.write_str("the policy has a concurrency limit, expected acquire")
            }
        }
    }
}

impl StdError for RateLimitError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::CostExceedsLimit { .. } | Self::NeedsPermit => None,
        }
    }
}

impl From<redis_conn::Error> for RateLimitError {
    fn from(error: redis_conn::Error) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::{Error, ErrorKind};

    use super::*;

    #[test]
    fn texts_are_lower_case_without_a_full_stop_or_the_source() {
        let errors: [Box<dyn StdError>; 4] = [
            Box::new(PolicyError::NoLimit),
            Box::new(PolicyError::LimitTooLarge {
                limit: 1 << 40,
                most: 1_024,
            }),
            Box::new(RateLimitError::from(Error::new(ErrorKind::Timeout, "late"))),
            Box::new(RateLimitError::CostExceedsLimit { cost: 2, limit: 1 }),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(|c: char| c.is_ascii_lowercase()), "{text}");
            assert!(!text.ends_with('.') && !text.contains("late"), "{text}");
        }
    }
}
