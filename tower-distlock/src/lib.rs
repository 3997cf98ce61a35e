//! Locks.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod claim;
mod error;
mod guard;
mod lease;
mod line;
mod locks;
mod mail;
mod name;
mod options;
mod owner;
mod reentrant;
mod shared;
mod store;
mod terms;
mod trace;
mod watchdog;
mod with_lock;

pub use crate::{
    error::{LockError, WithLockError},
    guard::{LockGuard, Released},
    lease::{LockToken, LostReason},
    locks::{HeldLock, Holder, Locks},
    options::{FenceMode, LockOptions, OnBackendDown, OnLost},
    owner::OwnerId,
    reentrant::Owner,
    with_lock::Held,
};
