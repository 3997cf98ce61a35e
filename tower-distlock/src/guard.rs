//! A lock that is held.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    LockError, LostReason, OwnerId,
    claim::Claim,
    lease::{Lease, LockToken},
    store::Outcome,
};

/// A lock that is held. Dropping it releases it, also where no runtime is and nobody can wait; [`release`](Self::release) tells besides
/// whether it was held until then.
///
/// It is a lease: while this process lives and the store answers, it is renewed. Check [`valid_for`](Self::valid_for) or wait for
/// [`lost`](Self::lost) before what must not be done twice, and have what is written to check the [`fence`](Self::fence).
#[must_use = "the lock is released when this is dropped"]
pub struct LockGuard {
    claim: Arc<Claim>,
    lease: Lease,
    fence: u64,
}

/// What a lock was when it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Released {
    /// It was held until now.
    Released,
    /// Its lease had ended before, and nobody has it now.
    AlreadyExpired,
    /// Its lease had ended before, and somebody else has it now.
    Stolen,
    /// Another guard of the same [`Owner`](crate::Owner) holds it still.
    HeldStill,
}

impl LockGuard {
    pub(crate) fn new(claim: Arc<Claim>) -> Option<Self> {
        let (lease, fence) = claim.held()?;
        Some(Self {
            lease: lease.clone(),
            fence,
            claim,
        })
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The name of the lock.
    #[must_use]
    pub fn name(&self) -> &str {
        self.claim.name().as_str()
    }

    /// Who holds it.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.claim.terms().owner
    }

    /// A number greater than that of each grant of this lock before. What is written to under the lock refuses a fence that is less
    /// than one that it has seen: then a holder that was stopped for longer than its lease does no harm.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// For how long it is held without another renewal, by what this process knows: no question, and no answer needed.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        self.lease.valid_for()
    }

    /// Waits until the lock is lost, which needs no answer of the store.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn lost(&self) -> LostReason {
        self.lease.lost().await
    }

    /// Tells whether it is lost, also to what outlives this guard.
    #[must_use]
    pub fn token(&self) -> LockToken {
        LockToken::new(&self.lease)
    }

    /// Has it last so long from now on, and be renewed accordingly.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is not held any more; [`LockError::Backend`] with `Config` if the ttl is not 10 ms to 365 days, and if
    /// the store does not answer: then it lasts as long as before, or if it was to be shorter, for as long as that.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have prolonged it, and has it last no longer than that if it was to be shorter.
    pub async fn extend(&self, ttl: Duration) -> Result<(), LockError> {
        crate::LockOptions::new().ttl(ttl).check()?;
        if let Some(reason) = self.lease.why_lost() {
            return Err(LockError::Lost(reason));
        }
        let reason = match self.claim.extend(ttl).await? {
            Outcome::Held => return Ok(()),
            Outcome::Absent => LostReason::Vanished,
            Outcome::Other => LostReason::Stolen,
        };
        self.lease.lose(reason);
        Err(LockError::Lost(reason))
    }

    /// Releases it, and tells whether it was held until then. A lock that had expired is no error.
    ///
    /// # Errors
    ///
    /// [`LockError::Backend`] if the store does not answer. It is released when the store answers again, or when its lease ends.
    ///
    /// # Cancel safety
    ///
    /// A dropped call releases it too.
    pub async fn release(self) -> Result<Released, LockError> {
        let Some(claim) = Arc::into_inner(self.claim) else {
            return Ok(Released::HeldStill);
        };
        Ok(match claim.release().await? {
            Outcome::Held => Released::Released,
            Outcome::Absent => Released::AlreadyExpired,
            Outcome::Other => Released::Stolen,
        })
    }

    /// Lets go of it so that it is held for so long still, whatever becomes of this process; without any time left at once.
    pub(crate) async fn release_after(self, rest: Duration) -> Result<Released, LockError> {
        if rest.is_zero() {
            return self.release().await;
        }
        let Some(claim) = Arc::into_inner(self.claim) else {
            return Ok(Released::HeldStill);
        };
        Ok(match claim.leave(rest).await? {
            Outcome::Held => Released::Released,
            Outcome::Absent => Released::AlreadyExpired,
            Outcome::Other => Released::Stolen,
        })
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &self.name())
            .field("owner", &self.owner())
            .field("fence", &self.fence)
            .field("valid_for", &self.valid_for())
            .finish_non_exhaustive()
    }
}
