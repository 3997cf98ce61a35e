//! What can go wrong.

use std::{error::Error as StdError, fmt, time::Duration};

use redis_conn::{Error, ErrorKind};

use crate::LostReason;

/// Why a lock is not held.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds it, and it was asked for once.
    NotAcquired {
        /// The instance that holds it; empty where it is promised to a waiter.
        owner: String,
        /// When that lease ends, if it is not renewed.
        remaining: Duration,
    },
    /// Somebody else held it for as long as was waited.
    TimedOut {
        /// For how long was waited.
        waited: Duration,
        /// The instance that held it last, as far as is known.
        owner: String,
    },
    /// It was held, and is not any more.
    Lost(LostReason),
    /// The answer took longer than the lease lasts. It was released again.
    TtlTooShort {
        /// The lease.
        ttl: Duration,
        /// How long the answer took.
        took: Duration,
    },
    /// Too few replicas knew of it in time. It was released again.
    NotReplicated {
        /// How many did.
        acked: u32,
        /// How many were [asked for](crate::Durability::Replicas).
        required: u32,
    },
    /// Too few servers of a [`Redlock`](crate::Redlock) stored its [fence](crate::RedlockBuilder::quorum_fence) in time. It was released
    /// again.
    FenceNotStored {
        /// How many did.
        stored: usize,
        /// How many must.
        required: usize,
        /// Why the first of the others did not.
        cause: Error,
    },
    /// The store did not answer, or refused; or what was asked for cannot be.
    Backend(Error),
}

impl LockError {
    /// Whether somebody else holds it: nothing is wrong.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::NotAcquired { .. } | Self::TimedOut { .. })
    }

    /// With what is behind it, for a log.
    pub(crate) fn with_cause(&self) -> String {
        match self {
            Self::Backend(cause) | Self::FenceNotStored { cause, .. } => {
                format!("{self}: {cause}")
            }
            _ => self.to_string(),
        }
    }

    /// Whether the store did not answer: it may another time.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Backend(cause) | Self::FenceNotStored { cause, .. } => is_outage(cause),
            _ => false,
        }
    }
}

/// Whether it may go better another time.
pub(crate) fn is_outage(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Ambiguous
        | ErrorKind::Saturated
        | ErrorKind::CircuitOpen { .. } => true,
        // While a server starts, fails over or is moved.
        ErrorKind::Server(prefix) => matches!(
            &**prefix,
            "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY"
        ),
        _ => false,
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAcquired { owner, remaining } => write!(
                f,
                "the lock is held by {owner:?}, whose lease lasts {remaining:?} if it is not renewed"
            ),
            Self::TimedOut { waited, owner } => {
                write!(f, "the lock was held by {owner:?} for all of {waited:?}")
            }
            Self::Lost(reason) => write!(f, "the lock was lost: {reason}"),
            Self::TtlTooShort { ttl, took } => write!(
                f,
                "ttl {ttl:?}: expected more than an answer of the store takes, which was {took:?}"
            ),
            Self::NotReplicated { acked, required } => {
                write!(f, "{acked} replicas know of the lock, expected {required}")
            }
            Self::FenceNotStored {
                stored, required, ..
            } => write!(
                f,
                "the fence was stored by {stored} servers, expected {required}"
            ),
            Self::Backend(_) => f.write_str("the store of the locks did not do it"),
        }
    }
}

impl StdError for LockError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Backend(cause) | Self::FenceNotStored { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

impl From<Error> for LockError {
    fn from(error: Error) -> Self {
        Self::Backend(error)
    }
}

/// What came of [`with_lock`](crate::Locks::with_lock), if not the output of the future.
#[derive(Debug)]
#[non_exhaustive]
pub enum WithLockError<E, T = ()> {
    /// The lock was not acquired: the future did not run.
    NotAcquired(LockError),
    /// The lock was lost while the future ran: somebody else may have run at the same time.
    Lost {
        /// Why.
        reason: LostReason,
        /// What came of the future, if it was not dropped.
        output: Option<Result<T, E>>,
    },
    /// The future failed, under the lock.
    Inner(E),
}

impl<E, T> WithLockError<E, T> {
    /// Whether somebody else holds it: nothing is wrong.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::NotAcquired(error) if error.is_busy())
    }
}

impl<E, T> fmt::Display for WithLockError<E, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAcquired(_) => f.write_str("the lock was not acquired"),
            Self::Lost { reason, .. } => {
                write!(f, "the lock was lost while it was needed: {reason}")
            }
            Self::Inner(_) => f.write_str("what ran under the lock failed"),
        }
    }
}

impl<E: StdError + 'static, T: fmt::Debug> StdError for WithLockError<E, T> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::NotAcquired(error) => Some(error),
            Self::Inner(error) => Some(error),
            Self::Lost { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_lower_case_without_a_full_stop_or_the_source() {
        let late = || Error::new(ErrorKind::Timeout, "late");
        let errors: [Box<dyn StdError>; 7] = [
            Box::new(LockError::from(late())),
            Box::new(LockError::NotAcquired {
                owner: "a".to_owned(),
                remaining: Duration::from_secs(1),
            }),
            Box::new(LockError::TimedOut {
                waited: Duration::from_secs(1),
                owner: String::new(),
            }),
            Box::new(LockError::TtlTooShort {
                ttl: Duration::from_secs(1),
                took: Duration::from_secs(2),
            }),
            Box::new(LockError::Lost(LostReason::Stolen)),
            Box::new(LockError::FenceNotStored {
                stored: 1,
                required: 2,
                cause: late(),
            }),
            Box::new(WithLockError::<Error>::Inner(late())),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(|c: char| c.is_ascii_lowercase()), "{text}");
            assert!(!text.ends_with('.') && !text.contains("late"), "{text}");
        }
    }
}
