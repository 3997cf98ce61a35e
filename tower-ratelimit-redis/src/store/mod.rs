//! Where the counts live: one store for each backend, behind one trait.

use std::{sync::Arc, time::Duration};

use redis_conn::{Error, Subject};

pub(crate) use self::memory::MemoryStore;
use crate::{Decision, Policy};

pub(crate) mod memory;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// The one decision that a store makes: atomically over all processes that share it, and charged to all limits or to none.
pub(crate) trait Store {
    /// Decides about a call of this cost. A refusal and a cost of 0 write nothing.
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
fn key(backend: &redis_conn::Backend, policy: &Policy, subject: &Subject) -> String {
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
