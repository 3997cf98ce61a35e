//! Locks.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod background;
mod body;
mod claim;
mod cron;
mod election;
mod error;
mod fence;
mod guard;
mod lease;
mod line;
mod locks;
mod mail;
mod multi;
mod name;
mod once;
mod options;
mod owner;
mod redlock;
mod reentrant;
mod rwlock;
mod semaphore;
mod shared;
mod store;
mod terms;
mod trace;
mod watchdog;
mod with_lock;

pub use crate::{
    body::ResponseBody,
    cron::{CronJob, CronLock, CronOutcome, CronRun, LastRun},
    election::{Candidate, Election, ElectionEvent, ElectionEvents, Leader},
    error::{LockError, WithLockError},
    fence::{Fence, FenceError, FenceFuture, FenceLayer},
    guard::{LockGuard, Released},
    lease::{LockToken, LostReason},
    locks::{HeldLock, Holder, Locks},
    multi::MultiGuard,
    once::OnceError,
    options::{Durability, FenceMode, LockOptions, OnBackendDown, OnLost},
    owner::OwnerId,
    redlock::{Redlock, RedlockBuilder, RedlockGuard},
    reentrant::Owner,
    rwlock::RwLock,
    semaphore::Semaphore,
    with_lock::Held,
};
