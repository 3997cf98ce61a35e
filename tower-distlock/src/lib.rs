//! Locks over all processes of a service: jobs that must run once, migrations that must not overlap, a leader that must be alone.
//!
//! They live in Redis or Valkey, in one SQLite file for the processes of one host, or in the process: which of them is
//! configuration, and means the same.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use redis_conn::Backend;
//! use tower_distlock::{LockOptions, Locks};
//!
//! let backend = Backend::from_env().await?;
//! let locks = Locks::new(&backend)?;
//!
//! // A future that is dropped if the lock is lost.
//! let options = LockOptions::new().ttl(Duration::from_secs(600)).try_once();
//! locks.with_lock("cron:overdue-tasks", options, async |held| {
//!     println!("running under fence {:?}", held.fence());
//!     Ok::<_, std::io::Error>(())
//! }).await?;
//!
//! // A guard, which is waited for and released when it is dropped.
//! let guard = locks.acquire("migration:users", LockOptions::new().wait(Duration::from_secs(5))).await?;
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # A lock is a lease
//!
//! It lasts for its [ttl](LockOptions::ttl), and is renewed every third of it while its holder lives. Nothing that a client does can
//! promise more: a process that is stopped between its last look at the clock and a write goes on with the write when it is woken,
//! whoever has the lock by then. So:
//!
//! | what happens to a holder | what is promised |
//! |---|---|
//! | it is killed | the lock is free when the lease has ended, at once for who waits |
//! | it loses the store | [`lost`](LockGuard::lost) fires before the lease ends, by the clock of this process and without any answer; [`with_lock`](Locks::with_lock) drops its future |
//! | it is stopped and woken later, or the machine is suspended | a guarded future is not polled again; what was under way in that moment goes on: the [fence](LockGuard::fence) is for that |
//! | somebody takes its lock by [force](Locks::force_release) | it hears of it at once |
//! | the store is emptied, or loses its last writes in a failover | two may hold it until the first renewal, which tells; [`Durability`] makes that rarer, [`Redlock`] on independent servers excludes it as long as most of them live |
//!
//! A **fence** is a number that grows with each grant. What is written to under a lock refuses a fence that is less than one that it
//! has seen: a database in the statement that writes, anything else by [`Locks::check_fence`] or the [`FenceLayer`]. Where a second run
//! only wastes time no fence is needed. `docs/locks.md` of the repository tells more, with the statement.
//!
//! # Kinds
//!
//! | | held by | made by |
//! |---|---|---|
//! | mutex | one at a time; an [`Owner`] may take it again | [`Locks::acquire`] |
//! | fair | the same, in order of arrival over all processes | [`LockOptions::fair`] |
//! | read-write | many who read or one who writes | [`Locks::rw_lock`] |
//! | semaphore | up to n | [`Locks::semaphore`] |
//! | several at once | all of them or none | [`Locks::acquire_all`] |
//! | on independent servers | whoever has most of them | [`Redlock`] |
//! | a scheduled job | one process for each instant of its schedule | [`CronLock`] |
//! | leadership | one process until it dies or resigns | [`Election`] |
//! | a piece of work | one process; the others get its outcome | [`Locks::once`] |
//!
//! # Waiting
//!
//! Who waits does not poll: the release hands the lock to who is next, in one step, and tells it. The waiters of one process are one
//! in the eyes of the store; a few times in a row a process hands a lock to its own, then others have their turn. A lease that ends
//! tells nobody, so who waits asks when it would end, and once a second.
//!
//! # What it costs
//!
//! A lock and its release are two commands, a waiter is about one a second. Leases of one server are renewed together, 256 by one
//! command; on a cluster each by its own. What this crate does in the background is done on the runtime that built the backend:
//! callers that block theirs lose no lock if the backend was built on another.
//!
//! # Failure
//!
//! A lock that cannot be asked for is not held: [`LockError::Backend`]. Who waits goes on until its time is over, also while the store
//! does not answer. [`OnBackendDown::RunUnprotected`] runs a job without its lock, says so in the log, and there is no fence.
//! [`Backend::close`](redis_conn::Backend::close) releases what is held; the holders hear of it first.
//!
//! # Backends
//!
//! | backend | shared by | leases end by |
//! |---|---|---|
//! | memory | this process | time since boot |
//! | SQLite (feature `sqlite`) | the processes of one host | time since boot |
//! | Redis (feature `redis`, default) | everybody | the server's clock; if it goes back, no lease lasts longer than its ttl from then on |
//!
//! Redis 6.2 or Valkey 7.2 and later, with `noeviction`: a server that evicts forgets locks. What a user of the server needs is in
//! `deploy/README.md` of the repository, as the user `towerkeep-locks`.
//!
//! # Privacy
//!
//! Names of locks are readable in the store, and in no metric label; in logs they are a hash. Names of cron jobs and of elections
//! are fixed in code, and are both.
//!
//! # Metrics
//!
//! With the feature `metrics`, through the facade of that name. Install the recorder before the first [`Locks`] is made. No label
//! says the name of a lock; of more than 64 cron jobs or elections the later ones are `other`.
//!
#![doc = include_str!("metrics/metrics.md")]
//!
//! Who comes from names of another kind finds them here:
//!
//! | there | here |
//! |---|---|
//! | `skynetbot_distributed_locks_active` | `towerkeep_lock_held` |
//! | `skynetbot_distributed_lock_acquisitions_total`, by `resource` and `status` | `towerkeep_lock_acquisitions_total`, by `outcome` |
//!
//! # Features
//!
//! - `redis` (default), `sqlite`: the backends. Memory is always there.
//! - `metrics`: what is counted, see [Metrics](#metrics).
//! - `tracing`: events on the target `tower_distlock`. Without them it behaves the same.
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
mod metrics;
mod multi;
mod name;
mod once;
mod options;
mod owner;
mod quorum;
mod redlock;
mod reentrant;
mod rwlock;
mod semaphore;
mod shared;
mod store;
mod terms;
mod trace;
mod waiting;
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
