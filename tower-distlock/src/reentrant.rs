//! Owners that may take a lock again that they hold.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{claim::Claim, name::Name, shared::Shared};

/// Somebody who may take a lock again while holding it, given to [`LockOptions::owner`](crate::LockOptions::owner). Clones are the same
/// one; it is of this process, and no task or thread is one by itself.
#[derive(Clone, Default)]
pub struct Owner {
    /// By the backend, which is told by the lines of this process, and the name.
    holds: Arc<Mutex<HashMap<(usize, Name), Hold>>>,
}

/// What an owner holds under one name. Who finds none there acquires it, while the others of this owner wait.
pub(crate) type Hold = Arc<tokio::sync::Mutex<Weak<Claim>>>;

impl Owner {
    /// Nobody else.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn hold(&self, shared: &Shared, name: &Name) -> Hold {
        let place = (Arc::as_ptr(&shared.lines).addr(), name.clone());
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has, and nobody is about to.
        holds.retain(|_, hold| {
            Arc::strong_count(hold) > 1
                || hold.try_lock().is_ok_and(|claim| claim.strong_count() > 0)
        });
        Arc::clone(holds.entry(place).or_default())
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").finish_non_exhaustive()
    }
}
