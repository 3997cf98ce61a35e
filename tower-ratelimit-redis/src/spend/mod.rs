//! Policies that this process counts first, before the store.

mod behind;
mod lease;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use redis_conn::Subject;

pub(crate) use self::{behind::Behind, lease::Leases};
use crate::Policy;

const SHARDS: usize = 64;

/// The name of a policy, and a subject.
type Name = (std::sync::Arc<str>, Subject);

/// What this process has of subjects: a bounded number of them.
#[derive(Debug)]
struct Table<T> {
    capacity: usize,
    hasher: RandomState,
    shards: Box<[Mutex<HashMap<Name, T>>]>,
}

impl<T> Table<T> {
    fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.div_ceil(SHARDS),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, HashMap<Name, T>> {
        let shard = self.hasher.hash_one(name) as usize % SHARDS;
        lock(&self.shards[shard])
    }

    fn names(&self) -> Vec<Name> {
        let mut names = Vec::new();
        for shard in &self.shards {
            names.extend(lock(shard).keys().cloned());
        }
        names
    }

    /// Stores it, unless there is no room even without those that `is_over`. Tells whether it did.
    fn insert(&self, name: &Name, value: T, is_over: impl Fn(&T) -> bool) -> bool {
        let mut shard = self.shard(name);
        if shard.len() >= self.capacity && !shard.contains_key(name) {
            shard.retain(|_, value| !is_over(value));
            if shard.len() >= self.capacity {
                return false;
            }
        }
        shard.insert(name.clone(), value);
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(policy: &Policy, subject: &Subject) -> Name {
    (std::sync::Arc::clone(policy.shared_name()), subject.clone())
}
