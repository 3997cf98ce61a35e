//! Where the counts live: one store for each backend, behind one trait.

use std::{ops::Deref, sync::Arc, time::Duration};

use redis_conn::{Backend, Error, ErrorKind, Subject, raw::Engine};

pub(crate) use self::memory::MemoryStore;
use crate::{
    Decision, Policy,
    counter::{Charge, Charged, Now},
    counters::{Ask, Counters},
};

pub(crate) mod memory;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// What is asked of a store: how a call is to be decided, and what it is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    pub(crate) charge: Charge,
}

impl Asked {
    pub(crate) fn new(ask: Ask, charge: Charge) -> Self {
        Self { ask, charge }
    }

    /// What there must be room for, or it is refused.
    pub(crate) fn least(self) -> u32 {
        match self.ask {
            Ask::AtMost => self.charge.units.min(1),
            Ask::All | Ask::Anyway => self.charge.units,
        }
    }
}

/// What becomes of permits that are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permits {
    Renew,
    Release,
}

/// What a store does for one subject under one policy: each atomically over all processes that share it, and to all limits or to none.
pub(crate) trait Store {
    /// Decides about a call. A refusal writes nothing but new times after the clock went back; a cost of 0 writes nothing.
    fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        deadline: Duration,
    ) -> impl Future<Output = Result<Decision, Error>> + Send;

    /// Tells what [`decide`](Self::decide) would say about a call of this cost; it writes nothing.
    fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> impl Future<Output = Result<Decision, Error>> + Send;

    /// Takes units back that were `charged`, as far as they still count.
    fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Refuses every call for so long, from now on; no time lifts that.
    fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Renews or releases permits. Tells of each whether it was held until now.
    fn permits(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
        deadline: Duration,
    ) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// Forgets all that was charged to this subject under this policy, and that it is blocked.
    fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// The store of a backend.
#[derive(Debug)]
pub(crate) enum AnyStore {
    Memory(Arc<MemoryStore>),
    #[cfg(feature = "sqlite")]
    Sqlite(sqlite::SqliteStore),
    #[cfg(feature = "redis")]
    Redis(redis::RedisStore),
    /// There is none, and every operation says why.
    None(Error),
}

impl AnyStore {
    /// The one that decides at once, if it is that: nobody else can count there.
    pub(crate) fn in_process(&self) -> Option<&MemoryStore> {
        if let Self::Memory(store) = self {
            Some(store)
        } else {
            None
        }
    }

    /// The store for the engine of this backend. Never another one in its place: limits that are meant to be shared must not
    /// become limits of each process because a feature is off.
    pub(crate) fn of(
        backend: &Backend,
        coalesce: bool,
        memory: impl FnOnce() -> Result<Arc<MemoryStore>, Error>,
    ) -> Result<Self, Error> {
        #[cfg(not(feature = "redis"))]
        let _ = coalesce;
        match backend.engine() {
            Engine::Memory(_) => memory().map(Self::Memory),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => Ok(Self::Sqlite(sqlite::SqliteStore::new(backend, sqlite))),
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => Ok(Self::Redis(redis::RedisStore::new(
                backend, redis, coalesce,
            ))),
            #[allow(
                unreachable_patterns,
                reason = "another crate of the program may have turned on more features of redis-conn than this one has"
            )]
            _ => Err(without_store(backend.kind())),
        }
    }
}

/// What is wrong where this crate lacks the store of a kind of backend.
fn without_store(kind: &str) -> Error {
    let feature = kind.split('-').next().unwrap_or(kind);
    Error::new(
        ErrorKind::Config,
        format!("a {kind} backend: expected the feature {feature:?} of tower-ratelimit-redis"),
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
            AnyStore::None(error) => Err(error.clone()),
        }
    };
}

/// What is rare is boxed: it is large, and would make what holds it large too. The box of a decision is the
/// [limiter's](crate::Limiter).
impl Store for AnyStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        each_store!(self, store => store.decide(policy, subject, asked, deadline))
    }

    async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        each_store!(self, store => Box::pin(store.look(policy, subject, cost, deadline)))
    }

    async fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
        deadline: Duration,
    ) -> Result<(), Error> {
        each_store!(self, store => Box::pin(store.refund(policy, subject, units, charged, deadline)))
    }

    async fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
        deadline: Duration,
    ) -> Result<(), Error> {
        each_store!(self, store => Box::pin(store.block(policy, subject, time, deadline)))
    }

    async fn permits(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
        deadline: Duration,
    ) -> Result<Vec<bool>, Error> {
        each_store!(self, store => Box::pin(store.permits(policy, subject, what, names, deadline)))
    }

    async fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<(), Error> {
        each_store!(self, store => Box::pin(store.reset(policy, subject, deadline)))
    }
}

/// The key of the value in a store outside of this process. The subject is hashed: nobody can choose a key that another
/// subject has, and what is stored names no user.
#[cfg(any(feature = "sqlite", feature = "redis"))]
fn key(backend: &Backend, policy: &Policy, subject: &Subject) -> String {
    const LAYOUT: redis_conn::Layout = redis_conn::Layout {
        letter: 'r',
        version: crate::counters::VERSION,
    };
    backend.key(LAYOUT, &digits(subject)[..DIGITS], policy.name())
}

/// What an embedded store does to the counters of a subject, which are aged to now: as the scripts do.
impl Counters {
    fn hold(&mut self, policy: &Policy, what: Permits, name: u64, now: Now) -> bool {
        match (self.leases_mut(policy), what) {
            (Some(leases), Permits::Renew) => leases.renew(name, now.at),
            (Some(leases), Permits::Release) => leases.release(name),
            (None, _) => false,
        }
    }
}

/// In which slot of a cluster the counts of a subject are.
pub(crate) fn slot(subject: &Subject) -> usize {
    #[cfg(feature = "redis")]
    return redis_conn::raw::slot(digest(subject).as_bytes()).into();
    #[cfg(not(feature = "redis"))]
    return subject.as_bytes().len();
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// 128 bits in hexadecimal digits: names a subject to nobody who does not know it, and no two subjects alike.
pub(crate) fn digest(subject: &Subject) -> String {
    digits(subject)[..DIGITS].to_owned()
}

/// So many hexadecimal digits are 128 bits.
const DIGITS: usize = 32;

fn digits(subject: &Subject) -> impl Deref<Target = str> {
    blake3::hash(subject.as_bytes()).to_hex()
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
