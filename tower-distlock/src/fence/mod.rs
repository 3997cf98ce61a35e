//! The other half of a fence: what is written to refuses one that is less than one that it has seen.

mod future;
mod layer;
mod service;

use std::{error::Error as StdError, fmt, time::Duration};

use redis_conn::Error;

pub use self::{future::FenceFuture, layer::FenceLayer, service::Fence};
use crate::{
    Locks, metrics,
    name::Name,
    store::notes::{Kind, Note, Notes as _},
};

/// For how long the greatest fence of a resource is remembered after it was seen first.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Why a write was refused.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum FenceError {
    /// A greater fence was seen: somebody else has the lock by now.
    Stale {
        /// The fence of the write.
        fence: u64,
        /// The greatest that was seen.
        seen: u64,
    },
    /// The store did not answer, or refused.
    Backend(Error),
}

impl fmt::Display for FenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale { fence, seen } => {
                write!(
                    f,
                    "fence {fence}: expected at least {seen}, which was seen before"
                )
            }
            Self::Backend(_) => f.write_str("the fence could not be checked"),
        }
    }
}

impl StdError for FenceError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Backend(error) => Some(error),
            Self::Stale { .. } => None,
        }
    }
}

impl From<Error> for FenceError {
    fn from(error: Error) -> Self {
        Self::Backend(error)
    }
}

impl Locks {
    /// Checks a fence for what is written to, and remembers it: once a greater one was seen, this one is refused for a week.
    ///
    /// This is for what cannot check by itself. A database can, in the transaction that writes, which is better: nothing comes between
    /// the check and the write then. See `docs/locks.md` for the statement.
    ///
    /// # Errors
    ///
    /// [`FenceError::Stale`] if a greater fence was seen; [`FenceError::Backend`] if the store does not answer, or if no lock can have
    /// that name.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have remembered the fence.
    pub async fn check_fence(&self, resource: &str, fence: u64) -> Result<(), FenceError> {
        let (name, timeout) = (Name::new(resource)?, self.shared.timeout);
        let note = Note {
            slot: fence,
            value: Vec::new(),
        };
        let store = &self.shared.store;
        let seen = store.advance(&name, Kind::Fence, &note, KEEP, timeout);
        match seen.await? {
            Some(Note { slot: seen, .. }) if seen > fence => {
                metrics::fence_refused();
                Err(FenceError::Stale { fence, seen })
            }
            _ => Ok(()),
        }
    }
}
