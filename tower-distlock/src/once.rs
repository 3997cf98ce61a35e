//! What runs once for each key, and whose outcome the others get.

use std::{error::Error as StdError, fmt, future::Future, time::Duration};

use redis_conn::{Error, ErrorKind};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::sleep;

use crate::{
    Held, LockError, LockGuard, LockOptions, Locks, LostReason, WithLockError,
    error::is_outage,
    name::Name,
    shared::PAUSE,
    store::notes::{Kind, Note, Notes as _},
    with_lock::under,
};

/// Why [`once`](Locks::once) has no outcome.
#[derive(Debug)]
#[non_exhaustive]
pub enum OnceError<E, T = ()> {
    /// Somebody else ran it for as long as was waited, or the store did not answer: nothing ran here.
    NotAcquired(LockError),
    /// The lock was lost while it ran here: somebody else may run it too. Its outcome was not stored.
    Lost {
        /// Why.
        reason: LostReason,
        /// What came of it, if it was not dropped.
        output: Option<T>,
    },
    /// It ran here and failed. That is not stored: who comes next runs it again.
    Inner(E),
    /// It ran here, but its outcome could not be stored: who comes next runs it again.
    NotStored {
        /// What came of it.
        output: T,
        /// Why it is not stored.
        error: Error,
    },
    /// What is stored is no outcome of this type.
    Unreadable(Error),
}

impl<E, T> OnceError<E, T> {
    /// Whether somebody else runs it: nothing is wrong.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::NotAcquired(error) if error.is_busy())
    }
}

/// What may come of a run under the lock, but its output.
enum Failed<E, T> {
    Inner(E),
    NotStored(T, Error),
}

impl Locks {
    /// Runs a future once for each key, over all processes, and returns its outcome: to whoever comes while it runs, and for so long
    /// afterwards. For queue workers, who may be given the same message twice.
    ///
    /// Who comes while somebody else runs it waits up to 10 s; [`once_with`](Self::once_with) takes other options. A failure is not
    /// stored: the next one who waits or comes runs its own future. So does the next one after the lease of a runner that died: then
    /// it has run more than once, if not to its end. The lock is `once:` and the key.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::time::Duration;
    /// # use redis_conn::Backend;
    /// # use tower_distlock::Locks;
    /// let locks = Locks::new(&Backend::memory())?;
    /// let day = Duration::from_secs(86_400);
    /// let charge = async |receipt: u32| Ok::<_, std::io::Error>(receipt);
    /// assert_eq!(locks.once("order:17", day, charge(1)).await?, 1);
    /// assert_eq!(locks.once("order:17", day, charge(2)).await?, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`OnceError`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the future, and who comes next runs it again.
    pub async fn once<T, E, F>(
        &self,
        key: &str,
        ttl: Duration,
        future: F,
    ) -> Result<T, OnceError<E, T>>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        self.once_with(key, ttl, LockOptions::new(), async |_| future.await)
            .await
    }

    /// The same with options for the lock, and with what a future needs to know of it: how long is waited, how soon another one runs it
    /// when a runner dies, the fence.
    ///
    /// # Errors
    ///
    /// See [`OnceError`].
    ///
    /// # Cancel safety
    ///
    /// That of [`once`](Self::once).
    pub async fn once_with<T, E, F>(
        &self,
        key: &str,
        ttl: Duration,
        options: LockOptions,
        body: F,
    ) -> Result<T, OnceError<E, T>>
    where
        T: Serialize + DeserializeOwned,
        F: AsyncFnOnce(Held) -> Result<T, E>,
    {
        let refused = |error: Error| OnceError::NotAcquired(error.into());
        if ttl.is_zero() {
            let error = Error::new(ErrorKind::Config, "ttl 0: expected some time");
            return Err(refused(error));
        }
        let lock = format!("once:{key}");
        let name = Name::new(&lock).map_err(refused)?;
        if let Some(output) = self.outcome(&name).await? {
            return Ok(output);
        }
        let on_lost = options.on_lost;
        let guard = self.acquire(&lock, options).await;
        let guard = guard.map_err(OnceError::NotAcquired)?;
        // Whoever held it before may have stored something.
        if let Some(output) = self.outcome(&name).await? {
            // Without an answer the lease ends it; the outcome is known.
            let _ = guard.release().await;
            return Ok(output);
        }
        // A runner that lost its lock must not replace what a later one has stored.
        let slot = guard.fence();
        let held = Held::of(&guard);
        let job = async |held: Held| {
            let token = held.token();
            let output = body(held).await.map_err(Failed::Inner)?;
            let stored = self.keep(&name, slot, ttl, &output, || token.valid_for());
            match stored.await {
                Ok(()) => Ok(output),
                Err(error) => Err(Failed::NotStored(output, error)),
            }
        };
        let ran = under(guard, held, on_lost, job, LockGuard::release);
        ran.await.map_err(|error| match error {
            WithLockError::NotAcquired(error) => OnceError::NotAcquired(error),
            WithLockError::Inner(Failed::Inner(error))
            | WithLockError::Lost {
                output: Some(Err(Failed::Inner(error))),
                ..
            } => OnceError::Inner(error),
            WithLockError::Inner(Failed::NotStored(output, error)) => {
                OnceError::NotStored { output, error }
            }
            WithLockError::Lost { reason, output } => OnceError::Lost {
                reason,
                output: output.and_then(|output| match output {
                    Ok(output) | Err(Failed::NotStored(output, _)) => Some(output),
                    Err(Failed::Inner(_)) => None,
                }),
            },
        })
    }

    async fn outcome<T: DeserializeOwned, E>(
        &self,
        name: &Name,
    ) -> Result<Option<T>, OnceError<E, T>> {
        let shared = &self.shared;
        let noted = shared.store.note(name, Kind::Run, shared.timeout).await;
        let noted = noted.map_err(|error| match error.kind() {
            ErrorKind::Corrupt => OnceError::Unreadable(error),
            _ => OnceError::NotAcquired(error.into()),
        })?;
        let read = |note: Note| {
            serde_json::from_slice(&note.value).map_err(|error| {
                let text = "the stored outcome is none of the type that is expected here";
                OnceError::Unreadable(Error::new(ErrorKind::Corrupt, text).with_source(error))
            })
        };
        noted.map(read).transpose()
    }

    /// Stores an outcome, as long as the lock is held.
    async fn keep<T: Serialize>(
        &self,
        name: &Name,
        slot: u64,
        ttl: Duration,
        output: &T,
        valid_for: impl Fn() -> Duration,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let value = serde_json::to_vec(output).map_err(|error| {
            let text = "an outcome: expected what can be written as JSON";
            Error::new(ErrorKind::Config, text).with_source(error)
        })?;
        let note = Note { slot, value };
        loop {
            let noted = shared
                .store
                .advance(name, Kind::Run, &note, ttl, shared.timeout);
            match noted.await {
                // That of this very grant, of which the answer was lost, or that of a later one.
                Ok(_) => return Ok(()),
                Err(error) if is_outage(&error) && valid_for() > shared.timeout + PAUSE => {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl<E, T> fmt::Display for OnceError<E, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAcquired(_) => f.write_str("it did not run here"),
            Self::Lost { reason, .. } => write!(f, "the lock was lost while it ran: {reason}"),
            Self::Inner(_) => f.write_str("what was to run once failed"),
            Self::NotStored { .. } => f.write_str("its outcome could not be stored"),
            Self::Unreadable(_) => f.write_str("its outcome could not be read"),
        }
    }
}

impl<E: StdError + 'static, T: fmt::Debug> StdError for OnceError<E, T> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::NotAcquired(error) => Some(error),
            Self::Inner(error) => Some(error),
            Self::NotStored { error, .. } | Self::Unreadable(error) => Some(error),
            Self::Lost { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of_val;

    use redis_conn::Backend;

    use super::*;

    /// They stand in the futures of handlers, where each is moved again and again.
    #[tokio::test]
    async fn futures_are_small() {
        const MOST: usize = 6 * 1_024;
        let locks = Locks::new(&Backend::memory()).unwrap();
        let (options, ttl) = (LockOptions::new(), Duration::from_secs(1));
        let acquire = locks.acquire("a", options.clone());
        assert!(size_of_val(&acquire) <= MOST, "{}", size_of_val(&acquire));
        let run = locks.with_lock("a", options, async |_| Ok::<_, ()>(1));
        assert!(size_of_val(&run) <= MOST, "{}", size_of_val(&run));
        let once = locks.once("a", ttl, async { Ok::<_, ()>(1) });
        assert!(size_of_val(&once) <= MOST, "{}", size_of_val(&once));
    }
}
