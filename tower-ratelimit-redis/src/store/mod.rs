//! Where the counts live: one store for each backend, behind one trait.

use std::{sync::Arc, time::Duration};

use redis_conn::{Backend, Error, ErrorKind, Subject, raw::Engine};

pub(crate) use self::memory::MemoryStore;
use crate::{Decision, Policy};

pub(crate) mod memory;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// The one decision that a store makes: atomically over all processes that share it, and charged to all limits or to none.
pub(crate) trait Store {
    /// Decides about a call of this cost. A refusal writes nothing but new heads after the
    /// clock went back; a cost of 0 writes nothing.
    fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> impl Future<Output = Result<Decision, Error>> + Send;

    /// Tells what [`decide`](Self::decide) would say about a call of cost 1; it writes nothing.
    fn peek(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> impl Future<Output = Result<Decision, Error>> + Send;

    /// Forgets all that was charged to this subject under this policy.
    fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// The store of a backend. A match and not a box: an in-process decision is too short for a box.
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
    /// The store for the engine of this backend. Never another one in its place: limits that are meant to be shared must not
    /// become limits of each process because a feature is off.
    pub(crate) fn of(
        backend: &Backend,
        memory: impl FnOnce() -> Result<Arc<MemoryStore>, Error>,
    ) -> Result<Self, Error> {
        match backend.engine() {
            Engine::Memory(_) => memory().map(Self::Memory),
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

impl Store for AnyStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        each_store!(self, store => store.decide(policy, subject, cost, deadline))
    }

    async fn peek(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        each_store!(self, store => store.peek(policy, subject, deadline))
    }

    async fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<(), Error> {
        each_store!(self, store => store.reset(policy, subject, deadline))
    }
}

/// The key of the value in a store outside of this process. The subject is hashed: nobody can choose a key that another
/// subject has, and what is stored names no user.
#[cfg(any(feature = "sqlite", feature = "redis"))]
fn key(backend: &Backend, policy: &Policy, subject: &Subject) -> String {
    const LAYOUT: redis_conn::Layout = redis_conn::Layout {
        letter: 'r',
        version: crate::rings::VERSION,
    };
    backend.key(LAYOUT, &digest(subject), policy.name())
}

/// 128 bits in hexadecimal digits: names a subject to nobody who does not know it, and no two subjects alike.
pub(crate) fn digest(subject: &Subject) -> String {
    let mut digits = blake3::hash(subject.as_bytes()).to_hex().to_string();
    digits.truncate(32);
    digits
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
