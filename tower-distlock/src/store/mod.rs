//! Where locks live: one store for each backend, behind one trait.

use std::{sync::Arc, time::Duration};

use redis_conn::{Backend, Error, ErrorKind, raw::Engine};

use crate::{OwnerId, name::Name, terms::Terms};

#[cfg(feature = "sqlite")]
mod bytes;
pub(crate) mod memory;
pub(crate) mod notes;
pub(crate) mod record;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// For how long a grant lasts that was sent to a waiter, who confirms it by a renewal.
pub(crate) const CLAIM: Duration = Duration::from_secs(1);
/// A waiter that was not heard of for so long is passed over.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What came of asking for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// It is held by who asked.
    Granted(Grant),
    /// Somebody else holds it, or is next.
    Busy(Busy),
    /// Who asked had let go of it before: the question came late.
    #[cfg_attr(
        not(feature = "redis"),
        allow(
            dead_code,
            reason = "only on Redis does a question come after its release"
        )
    )]
    Abandoned,
}

/// That a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Greater than that of each grant of this lock before.
    pub(crate) fence: u64,
    /// When it was granted, by the clock of the store, in microseconds.
    pub(crate) at: u64,
}

/// That somebody else holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    /// After how long the lease of a holder ends, if none is renewed.
    pub(crate) remaining: Duration,
    /// Now, by the clock of the store, in microseconds.
    pub(crate) at: u64,
    /// The instance that holds it; empty where it is only waited for.
    pub(crate) instance: String,
}

/// What a release met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was held until now.
    Held,
    /// The lease had ended, and nobody has taken the lock since.
    Absent,
    /// Somebody else holds it.
    Other,
}

/// What is done with a lock that is let go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next<'a> {
    /// Whoever is next in line has it.
    InLine,
    /// This one has it, before all others.
    Pass(&'a Terms, &'a str),
    /// This one has it if nobody is in line, else it is the last there.
    Yield(&'a Terms, &'a str),
}

/// What is known of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// Those who hold it, the earliest first.
    pub(crate) holders: Vec<Holding>,
    /// How many wait in line; those of one process are often one.
    pub(crate) waiting: usize,
}

/// One who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) owner: OwnerId,
    pub(crate) instance: String,
    pub(crate) fence: u64,
    pub(crate) remaining: Duration,
}

/// What a store does, each atomically over all processes that share it.
///
/// `wake` is the channel (as the bus knows it) of who waits, on which a grant is sent: see [`crate::mail`].
pub(crate) trait Store {
    /// Asks for a lock; again by the same owner is granted the same. With `wake`, who does not get it stands in line, or is heard of
    /// again there.
    fn acquire(
        &self,
        name: &Name,
        terms: &Terms,
        wake: Option<&str>,
        deadline: Duration,
    ) -> impl Future<Output = Result<Acquired, Error>> + Send;

    /// Asks for several locks in one step: all are granted, or nothing is changed. `None` if one is not free, and where this store has no
    /// such step: then they are to be asked for one by one.
    fn acquire_all(
        &self,
        asked: &[(Name, Terms)],
        deadline: Duration,
    ) -> impl Future<Output = Result<Option<Vec<Grant>>, Error>> + Send;

    /// Lets go of a lock, or of a place in line, and has those who are next have it. With [`Next::Pass`] and [`Next::Yield`] it is
    /// told what came of that. What was `abandoned` before it was known to be held is not granted to this owner any more.
    fn release(
        &self,
        name: &Name,
        terms: &Terms,
        abandoned: bool,
        next: Next<'_>,
        deadline: Duration,
    ) -> impl Future<Output = Result<(Outcome, Option<Acquired>), Error>> + Send;

    /// Prolongs leases from now on by the ttl that they have, so that what was asked before an extension does not undo it. What has
    /// ended is not brought back.
    fn renew(
        &self,
        leases: &[(Name, Terms)],
        deadline: Duration,
    ) -> impl Future<Output = Result<Vec<Outcome>, Error>> + Send;

    /// Prolongs a lease from now on by the ttl of these terms, which it has from then on.
    fn extend(
        &self,
        name: &Name,
        terms: &Terms,
        deadline: Duration,
    ) -> impl Future<Output = Result<Outcome, Error>> + Send;

    /// Who holds it. Changes nothing.
    fn look(
        &self,
        name: &Name,
        deadline: Duration,
    ) -> impl Future<Output = Result<Seen, Error>> + Send;

    /// Takes it from all who hold it, and has those who are next have it. Tells from whom.
    fn force(
        &self,
        name: &Name,
        deadline: Duration,
    ) -> impl Future<Output = Result<Vec<OwnerId>, Error>> + Send;

    /// The names of the locks that are held and begin with this, in no order.
    fn list(
        &self,
        prefix: &str,
        deadline: Duration,
    ) -> impl Future<Output = Result<Vec<String>, Error>> + Send;
}

/// A run of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Birth {
    /// No other run of any server has it.
    pub(crate) run: String,
    /// For how long it has been up.
    pub(crate) up: Duration,
}

/// The store of a backend.
#[derive(Debug)]
pub(crate) enum AnyStore {
    Memory(memory::MemoryStore),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlite::SqliteStore),
    #[cfg(feature = "redis")]
    Redis(redis::RedisStore),
}

impl AnyStore {
    /// The store for the engine of this backend. Never another one in its place: a lock that is meant to be shared must not become one
    /// of each process because a feature is off.
    pub(crate) fn of(backend: &Backend) -> Result<Self, Error> {
        match backend.engine() {
            Engine::Memory(clock) => {
                let clock = Arc::clone(clock);
                let table = backend.shared('l', "table", memory::Table::default)?;
                let store = memory::MemoryStore::new(clock, table, backend.bus());
                Ok(Self::Memory(store))
            }
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => Ok(Self::Sqlite(sqlite::SqliteStore::new(backend, sqlite))),
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => Ok(Self::Redis(redis::RedisStore::new(backend, redis))),
            #[allow(
                unreachable_patterns,
                reason = "another crate of the program may have turned on more features of redis-conn than this one has"
            )]
            _ => Err(without_store(backend.kind())),
        }
    }
}

impl AnyStore {
    /// Since when the server has been up; none where there is no server.
    pub(crate) async fn birth(&self, deadline: Duration) -> Result<Option<Birth>, Error> {
        #[cfg(feature = "redis")]
        if let Self::Redis(store) = self {
            return store.birth(deadline).await.map(Some);
        }
        let _ = deadline;
        Ok(None)
    }
}

impl AnyStore {
    /// Waits until so many replicas know that this owner has a lock, and tells how many do.
    pub(crate) async fn replicated(
        &self,
        name: &Name,
        owner: OwnerId,
        replicas: (u32, Duration),
        deadline: Duration,
    ) -> Result<u32, Error> {
        #[cfg(feature = "redis")]
        if let Self::Redis(store) = self {
            return store.replicated(name, owner, replicas, deadline).await;
        }
        let _ = (name, owner, replicas, deadline);
        self.has_replicas().map(|()| 0)
    }

    /// # Errors
    ///
    /// `Config` where there can be none.
    pub(crate) fn has_replicas(&self) -> Result<(), Error> {
        let none = || {
            Err(Error::new(
                ErrorKind::Config,
                "durability Replicas: expected a Redis backend, the others have no replicas",
            ))
        };
        match self {
            Self::Memory(_) => none(),
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => none(),
            #[cfg(feature = "redis")]
            Self::Redis(_) => Ok(()),
        }
    }
}

/// What is wrong where this crate lacks the store of a kind of backend.
fn without_store(kind: &str) -> Error {
    let feature = kind.split('-').next().unwrap_or(kind);
    Error::new(
        ErrorKind::Config,
        format!("a {kind} backend: expected the feature {feature:?} of tower-distlock"),
    )
}

macro_rules! each_store {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            AnyStore::Memory($store) => $call.await,
            #[cfg(feature = "sqlite")]
            AnyStore::Sqlite($store) => $call.await,
            #[cfg(feature = "redis")]
            AnyStore::Redis($store) => $call.await,
        }
    };
}

use each_store;

impl Store for AnyStore {
    async fn acquire(
        &self,
        name: &Name,
        terms: &Terms,
        wake: Option<&str>,
        deadline: Duration,
    ) -> Result<Acquired, Error> {
        each_store!(self, store => store.acquire(name, terms, wake, deadline))
    }

    async fn acquire_all(
        &self,
        asked: &[(Name, Terms)],
        deadline: Duration,
    ) -> Result<Option<Vec<Grant>>, Error> {
        each_store!(self, store => store.acquire_all(asked, deadline))
    }

    async fn release(
        &self,
        name: &Name,
        terms: &Terms,
        abandoned: bool,
        next: Next<'_>,
        deadline: Duration,
    ) -> Result<(Outcome, Option<Acquired>), Error> {
        each_store!(self, store => store.release(name, terms, abandoned, next, deadline))
    }

    async fn renew(
        &self,
        leases: &[(Name, Terms)],
        deadline: Duration,
    ) -> Result<Vec<Outcome>, Error> {
        each_store!(self, store => store.renew(leases, deadline))
    }

    async fn extend(
        &self,
        name: &Name,
        terms: &Terms,
        deadline: Duration,
    ) -> Result<Outcome, Error> {
        each_store!(self, store => store.extend(name, terms, deadline))
    }

    async fn look(&self, name: &Name, deadline: Duration) -> Result<Seen, Error> {
        each_store!(self, store => store.look(name, deadline))
    }

    async fn force(&self, name: &Name, deadline: Duration) -> Result<Vec<OwnerId>, Error> {
        each_store!(self, store => store.force(name, deadline))
    }

    async fn list(&self, prefix: &str, deadline: Duration) -> Result<Vec<String>, Error> {
        each_store!(self, store => store.list(prefix, deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_without_its_store_is_an_error_that_names_the_feature() {
        for (kind, feature) in [("sqlite", "\"sqlite\""), ("redis-single", "\"redis\"")] {
            let error = without_store(kind);
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(feature), "{error}");
        }
    }
}
