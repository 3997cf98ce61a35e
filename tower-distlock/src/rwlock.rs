//! A lock that many may read under, and one may write under.

use std::fmt;

use crate::{
    LockError, LockGuard, LockOptions, Locks,
    terms::{Mode, Seats},
};

/// A lock that many hold together who read, or one alone who writes; made by [`Locks::rw_lock`].
///
/// Each reader has a lease of its own, so one that dies delays a writer by one lease at most, however many others read. Nobody who
/// comes after a waiting writer reads before it.
#[derive(Clone)]
pub struct RwLock {
    locks: Locks,
    name: String,
}

impl Locks {
    /// A read-write lock of this name. All who use the name must use it as one.
    #[must_use]
    pub fn rw_lock(&self, name: impl Into<String>) -> RwLock {
        RwLock {
            locks: self.clone(),
            name: name.into(),
        }
    }
}

impl RwLock {
    /// Holds it together with others who read.
    ///
    /// # Errors
    ///
    /// Those of [`Locks::acquire`]; `Config` if somebody holds the name as another kind of lock.
    ///
    /// # Cancel safety
    ///
    /// That of [`Locks::acquire`].
    pub async fn read(&self, options: LockOptions) -> Result<LockGuard, LockError> {
        self.acquire(Mode::Together, &options).await
    }

    /// Holds it alone.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// That of [`Locks::acquire`].
    pub async fn write(&self, options: LockOptions) -> Result<LockGuard, LockError> {
        self.acquire(Mode::Alone, &options).await
    }

    async fn acquire(&self, mode: Mode, options: &LockOptions) -> Result<LockGuard, LockError> {
        let kind = (mode, Seats::Any);
        self.locks.acquire_as(&self.name, kind, options).await
    }
}

impl fmt::Debug for RwLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
