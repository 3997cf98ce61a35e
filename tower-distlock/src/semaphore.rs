//! A lock that a number of holders have at the same time.

use std::fmt;

use redis_conn::{Error, ErrorKind};

use crate::{
    LockError, LockGuard, LockOptions, Locks,
    terms::{Mode, Seats},
};

/// The most permits: all who hold one are in one value.
const MOST: u32 = 1_024;

/// A lock that up to a number of holders have together, each with a lease of its own; made by [`Locks::semaphore`].
#[derive(Clone)]
pub struct Semaphore {
    locks: Locks,
    name: String,
    permits: u32,
}

impl Locks {
    /// A semaphore of this name, with so many permits. All who use the name must agree on their number: while somebody holds one,
    /// whoever says otherwise gets an error.
    ///
    /// # Errors
    ///
    /// `Config` if there are no permits, or more than 1,024.
    pub fn semaphore(&self, name: impl Into<String>, permits: u32) -> Result<Semaphore, Error> {
        if !(1..=MOST).contains(&permits) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{permits} permits: expected 1 to {MOST}"),
            ));
        }
        Ok(Semaphore {
            locks: self.clone(),
            name: name.into(),
            permits,
        })
    }
}

impl Semaphore {
    /// Holds one of the permits.
    ///
    /// # Errors
    ///
    /// Those of [`Locks::acquire`]; `Config` if somebody holds the name with another number of permits.
    ///
    /// # Cancel safety
    ///
    /// That of [`Locks::acquire`].
    pub async fn acquire(&self, options: LockOptions) -> Result<LockGuard, LockError> {
        let kind = (Mode::Together, Seats::Some(self.permits));
        self.locks.acquire_as(&self.name, kind, &options).await
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("name", &self.name)
            .field("permits", &self.permits)
            .finish_non_exhaustive()
    }
}
