//! The handle.

use std::{fmt, sync::Arc, time::Duration};

use redis_conn::{Audit, Backend, Error};
use tokio::time::{Instant, timeout};

use crate::{
    LockError, LockGuard, LockOptions, Owner, OwnerId,
    claim::Claim,
    mail,
    name::Name,
    options::Wait,
    owner::process_of,
    shared::Shared,
    store::Store as _,
    terms::{Mode, Seats},
};

/// Locks on a backend: in process, in one SQLite file, or in Redis. Clones share everything.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redis_conn::Backend;
/// use tower_distlock::{LockOptions, Locks};
///
/// let locks = Locks::new(&Backend::memory())?;
/// let guard = locks.acquire("migration:users", LockOptions::new()).await?;
/// assert!(locks.is_locked("migration:users").await?);
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Locks {
    pub(crate) shared: Arc<Shared>,
}

/// One who holds a lock, as the store says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The acquisition.
    pub owner: OwnerId,
    /// The instance that holds it.
    pub instance: String,
    /// The fence of the grant.
    pub fence: u64,
    /// When the lease ends, if it is not renewed.
    pub remaining: Duration,
}

/// A lock that this process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldLock {
    /// The name of the lock.
    pub name: String,
    /// The acquisition.
    pub owner: OwnerId,
    /// The fence of the grant.
    pub fence: u64,
    /// For how long it has been held.
    pub held_for: Duration,
    /// When the lease ends, if it is not renewed.
    pub valid_for: Duration,
}

impl Locks {
    /// Locks with a timeout of 500 ms for each call of the store.
    ///
    /// # Errors
    ///
    /// `Config` if this crate was built without the feature of that backend.
    pub fn new(backend: &Backend) -> Result<Self, Error> {
        Self::with_timeout(backend, Duration::from_millis(500))
    }

    /// The same with another timeout: how long one call of the store may take, which is not how long is waited for a lock.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn with_timeout(backend: &Backend, timeout: Duration) -> Result<Self, Error> {
        Ok(Self {
            shared: Shared::new(backend, timeout)?,
        })
    }

    /// Acquires a lock, and waits for it as the options say.
    ///
    /// # Errors
    ///
    /// [`LockError::NotAcquired`] and [`LockError::TimedOut`] if somebody else holds it, [`LockError::TtlTooShort`], and
    /// [`LockError::Backend`] if the store did not answer for all of the time, or refused; nothing is left behind then.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves nothing behind: what it may have acquired is released.
    pub async fn acquire(&self, name: &str, options: LockOptions) -> Result<LockGuard, LockError> {
        self.acquire_as(name, (Mode::Alone, Seats::Some(1)), &options)
            .await
    }

    /// Acquires a lock if nobody holds it, and does not wait.
    ///
    /// # Errors
    ///
    /// Those of [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// That of [`acquire`](Self::acquire).
    pub async fn try_acquire(
        &self,
        name: &str,
        options: LockOptions,
    ) -> Result<LockGuard, LockError> {
        self.acquire(name, options.try_once()).await
    }

    pub(crate) async fn acquire_as(
        &self,
        name: &str,
        kind: (Mode, Seats),
        options: &LockOptions,
    ) -> Result<LockGuard, LockError> {
        let name = Name::new(name)?;
        let claim = match &options.owner {
            Some(owner) => self.acquire_again(owner, name, kind, options).await?,
            None => {
                let claim = Claim::acquire(&self.shared, name, kind, options);
                Arc::new(claim.await?)
            }
        };
        // It is held, or that was an error.
        LockGuard::new(claim).ok_or(LockError::Lost(crate::LostReason::Expired))
    }

    /// What this owner holds already, or a new one.
    async fn acquire_again(
        &self,
        owner: &Owner,
        name: Name,
        kind: (Mode, Seats),
        options: &LockOptions,
    ) -> Result<Arc<Claim>, LockError> {
        let (hold, begun) = (owner.hold(&self.shared, &name), Instant::now());
        let busy = || LockError::NotAcquired {
            owner: String::new(),
            remaining: Duration::ZERO,
        };
        // Somebody else of this owner may be about to acquire it.
        let mut hold = match options.wait {
            Wait::Once => hold.try_lock().map_err(|_| busy())?,
            Wait::For(wait) => timeout(wait, hold.lock()).await.map_err(|_| busy())?,
            Wait::Forever => hold.lock().await,
        };
        if let Some(claim) = hold.upgrade()
            && claim
                .held()
                .is_some_and(|(lease, _)| lease.why_lost().is_none())
        {
            claim.covers(kind)?;
            return Ok(claim);
        }
        let mut options = options.clone();
        if let Wait::For(wait) = options.wait {
            options.wait = Wait::For(wait.saturating_sub(begun.elapsed()));
        }
        let claim = Claim::acquire(&self.shared, name, kind, &options);
        let claim = Arc::new(claim.await?);
        *hold = Arc::downgrade(&claim);
        Ok(claim)
    }

    /// Whether somebody holds a lock now. Advice, no more: it may be otherwise before the answer is read.
    ///
    /// # Errors
    ///
    /// [`LockError::Backend`] if the store does not answer or the name cannot be one.
    pub async fn is_locked(&self, name: &str) -> Result<bool, LockError> {
        Ok(!self.holders(name).await?.is_empty())
    }

    /// Who holds a lock now: one for a mutex, several for a semaphore or for readers.
    ///
    /// # Errors
    ///
    /// Those of [`is_locked`](Self::is_locked).
    pub async fn holders(&self, name: &str) -> Result<Vec<Holder>, LockError> {
        let shared = &self.shared;
        let seen = shared.store.look(&Name::new(name)?, shared.timeout).await?;
        let holders = seen.holders.into_iter().map(|holding| Holder {
            owner: holding.owner,
            instance: holding.instance,
            fence: holding.fence,
            remaining: holding.remaining,
        });
        Ok(holders.collect())
    }

    /// The instance that holds a lock now.
    ///
    /// # Errors
    ///
    /// Those of [`is_locked`](Self::is_locked).
    pub async fn owner(&self, name: &str) -> Result<Option<String>, LockError> {
        let holder = self.holders(name).await?.into_iter().next();
        Ok(holder.map(|holder| holder.instance))
    }

    /// For how long a lock is held if it is not renewed.
    ///
    /// # Errors
    ///
    /// Those of [`is_locked`](Self::is_locked).
    pub async fn ttl(&self, name: &str) -> Result<Option<Duration>, LockError> {
        let holders = self.holders(name).await?;
        Ok(holders.iter().map(|holder| holder.remaining).max())
    }

    /// What this process holds by this handle, in the order of names.
    #[must_use]
    pub fn held(&self) -> Vec<HeldLock> {
        let held = self.shared.watchdog.held().into_iter();
        let mut held: Vec<_> = held
            .map(|watched| HeldLock {
                name: watched.name.as_str().to_owned(),
                owner: watched.terms.owner,
                fence: watched.fence,
                held_for: watched.since.elapsed(),
                valid_for: watched.lease.valid_for(),
            })
            .collect();
        held.sort_by(|a, b| (&a.name, a.fence).cmp(&(&b.name, b.fence)));
        held
    }

    /// The names of all locks that somebody holds and that begin with this, in order. A name of more than about 200 bytes is told by
    /// its beginning and a hash. It goes through all keys of the servers a part at a time: for people, not for requests.
    ///
    /// # Errors
    ///
    /// Those of [`is_locked`](Self::is_locked).
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, LockError> {
        const LONG: Duration = Duration::from_secs(30);
        let mut names = self.shared.store.list(prefix, LONG).await?;
        names.sort_unstable();
        Ok(names)
    }

    /// Takes a lock from whoever holds it, who hears of it and is cancelled. Tells whether anybody held it. Audited.
    ///
    /// # Errors
    ///
    /// Those of [`is_locked`](Self::is_locked).
    ///
    /// # Cancel safety
    ///
    /// A dropped call may have taken it; the holder hears of it at its next renewal then.
    pub async fn force_release(&self, name: &str, audit: &Audit) -> Result<bool, LockError> {
        let name = Name::new(name)?;
        let taken = self.shared.force(&name).await;
        let object = format!("lock {}", name.digest());
        audit.record("force_release", object, &taken);
        Ok(taken? > 0)
    }
}

impl Shared {
    async fn force(&self, name: &Name) -> Result<usize, Error> {
        let taken = self.store.force(name, self.timeout).await?;
        let bus = self.backend.bus();
        for owner in &taken {
            let channel = mail::channel_of(process_of(*owner));
            // A holder that is not reached hears it when it renews.
            let _ = bus.publish(&channel, &mail::forced(*owner)).await;
        }
        Ok(taken.len())
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("backend", &self.shared.backend)
            .finish_non_exhaustive()
    }
}
