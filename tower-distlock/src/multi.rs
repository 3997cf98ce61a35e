//! Several locks at once.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    LockError, LockGuard, LockOptions, Locks, LostReason, Released, claim::Claim, name::Name,
    options::Wait,
};

/// Several locks that are held together, made by [`Locks::acquire_all`]. Dropping it releases all of them.
#[must_use = "the locks are released when this is dropped"]
pub struct MultiGuard {
    guards: Vec<LockGuard>,
}

impl Locks {
    /// Acquires all of these locks or none, within one wait.
    ///
    /// If all are free they are taken in one step, which on Redis is one call: up to 128 of them, with
    /// [`FenceMode::Clock`](crate::FenceMode::Clock), not on a cluster, where each is on a server of its own, and without `fair`, an owner
    /// or replicas in the options. Else they are taken one after the other in an order that is the same for everybody, so two who want the same locks never wait
    /// for each other. A name that is given twice counts once.
    ///
    /// # Errors
    ///
    /// Those of [`acquire`](Self::acquire), of the first lock that could not be had. None is held then.
    ///
    /// # Cancel safety
    ///
    /// That of [`acquire`](Self::acquire).
    pub async fn acquire_all<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = N>,
        options: LockOptions,
    ) -> Result<MultiGuard, LockError> {
        let names = names.into_iter().map(|name| Name::new(name.as_ref()));
        let mut names = names.collect::<Result<Vec<_>, _>>()?;
        names.sort_unstable();
        names.dedup();
        let begun = Instant::now();
        if let Some(claims) = Claim::acquire_all(&self.shared, &names, &options).await? {
            let guards = claims.into_iter().map(Arc::new).map(LockGuard::new);
            let guards: Option<Vec<_>> = guards.collect();
            // They are held, or that was an error.
            let guards = guards.ok_or(LockError::Lost(LostReason::Expired))?;
            return MultiGuard { guards }.checked();
        }
        let mut guards = Vec::with_capacity(names.len());
        for name in &names {
            let mut options = options.clone();
            if let Wait::For(wait) = options.wait {
                options.wait = Wait::For(wait.saturating_sub(begun.elapsed()));
            }
            guards.push(self.acquire(name.as_str(), options).await?);
        }
        // The first may be lost while the last is waited for.
        MultiGuard { guards }.checked()
    }
}

impl MultiGuard {
    fn checked(self) -> Result<Self, LockError> {
        match self.why_lost() {
            Some(reason) => Err(LockError::Lost(reason)),
            None => Ok(self),
        }
    }

    /// The locks, in the order in which they were taken.
    pub fn guards(&self) -> &[LockGuard] {
        &self.guards
    }

    /// The fence of one of them.
    #[must_use]
    pub fn fence(&self, name: &str) -> Option<u64> {
        let mut guards = self.guards.iter();
        let guard = guards.find(|guard| guard.name() == name)?;
        Some(guard.fence())
    }

    /// For how long all of them are held without another renewal.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        let each = self.guards.iter().map(LockGuard::valid_for);
        each.min().unwrap_or_default()
    }

    /// Waits until one of them is lost.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn lost(&self) -> LostReason {
        let each = self.guards.iter().map(|guard| Box::pin(guard.lost()));
        let mut each = each.collect::<futures_util::stream::FuturesUnordered<_>>();
        match futures_util::StreamExt::next(&mut each).await {
            Some(reason) => reason,
            // Of no locks none is lost.
            None => std::future::pending().await,
        }
    }

    /// Releases all of them, and tells of each whether it was held until then.
    ///
    /// # Errors
    ///
    /// Those of [`LockGuard::release`], of the first that failed; all are released all the same.
    ///
    /// # Cancel safety
    ///
    /// A dropped call releases them too.
    pub async fn release(self) -> Result<Vec<(String, Released)>, LockError> {
        // In the reverse order: whoever waits for the first then mostly finds the others free.
        let releases = self.guards.into_iter().rev().map(async |guard| {
            let name = guard.name().to_owned();
            guard.release().await.map(|released| (name, released))
        });
        let released = futures_util::future::join_all(releases).await;
        released.into_iter().collect()
    }

    fn why_lost(&self) -> Option<LostReason> {
        let mut each = self.guards.iter().map(|guard| guard.lease().why_lost());
        each.find_map(|reason| reason)
    }
}

impl fmt::Debug for MultiGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.guards).finish()
    }
}
