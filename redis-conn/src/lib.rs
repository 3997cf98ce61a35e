//! One handle for what the processes of a service share: a Redis or Valkey server, one SQLite file, or nothing but this process.
//!
//! A [`Backend`] is made once, at the start, and cloned into everything that needs it. The crates on
//! top of it (`tower-ratelimit-redis` is the first) never ask which kind it is, so that a program
//! which runs on a laptop with nothing installed runs on a fleet by configuration alone.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use redis_conn::{Backend, State};
//!
//! // Nothing set: in process. SQLITE_PATH: one file. REDIS_URL or REDIS_HOST: a server. REDIS_NODES: a cluster.
//! let backend = Backend::from_env().await?;
//! backend.ready(Duration::from_secs(10)).await?;
//! assert_eq!(backend.state(), State::Connected);
//!
//! // ... serve ...
//!
//! backend.close(Duration::from_secs(5)).await?;
//! # Ok(()) }
//! ```
//!
//! # Backends
//!
//! | | in process | SQLite | Redis, Valkey |
//! |---|---|---|---|
//! | shared by | the clones of one `Backend` | the processes of one host | everybody who reaches the server |
//! | time that decides | the boot clock | the boot clock; a reboot voids limits and leases | the server's, read inside the script |
//! | delay of the bus | none | up to 20 ms | one hop |
//! | while it is away | never is | a locked file costs the deadline, then an error | see below |
//!
//! # While Redis is away
//!
//! Building succeeds, and so does everything that needs no answer. Every operation has a deadline
//! and one of two classes:
//!
//! - *idempotent*: executing it twice does no harm. After a lost connection, and where no reply comes
//!   within `REDIS_COMMAND_TIMEOUT`, it is sent again, inside its deadline.
//! - *at most once*: it is sent again only where the server refused it or it was never sent. If its
//!   reply is late or lost the error is [`ErrorKind::Ambiguous`]: it may have happened, once.
//!
//! Callers wait for a connection only while the first attempt to make it is under way; after an
//! attempt has failed they get [`ErrorKind::Unavailable`] at once. A connection on which three
//! operations time out without a word from the server between is replaced, because a peer that vanished says nothing. No more than
//! 4,096 operations wait on one connection; the next is refused with [`ErrorKind::Saturated`].
//!
//! # Clusters and sentinels
//!
//! | | a cluster | behind sentinels |
//! |---|---|---|
//! | configured by | `REDIS_NODES`: any of its nodes | `REDIS_SENTINEL1_HOST`, ...: any of the sentinels |
//! | connections | one set to each primary, and to each replica that may be read from | one set to the primary |
//! | what is followed | `MOVED`, `ASK`, `TRYAGAIN`; three nodes are asked for the slots every 30 s and when something is odd, and the majority is believed | `+switch-master`, and a question to each sentinel every 2 s or when something is odd |
//! | another server takes over | calls to its slots wait or fail until then; other shards see nothing | what was refused with `READONLY` was not executed, and is sent again to the next primary |
//! | keys of one operation | one hash tag | any |
//! | pub/sub | sharded from Redis 7 on | as on a single server |
//!
//! A call is sent again only inside its deadline, and an at-most-once call only if it cannot have been executed.
//! `cargo xtask redis up --mode cluster` (or `single`, `sentinel`) in the repository starts servers to try this on.
//!
#![doc = include_str!("config/variables.md")]
//! # Health
//!
//! [`Backend::health`] says how the backend and the handles on it are, and sends no command: a task in the background asks the
//! servers every five seconds, and every second while something is wrong. [`Health`] serialises itself and knows the
//! [status](Health::http_status) of its answer, so that an endpoint is one line in every framework;
//! [`Backend::watch_health`] tells of changes.
//!
//! # Metrics
//!
//! With the feature `metrics`, through the facade of that name. Install the recorder before the backend is built.
//!
#![doc = include_str!("metrics/metrics.md")]
//!
//! # Traces
//!
//! With the feature `tracing` every command is a span at `TRACE`, on the target `redis_conn::command`, with the fields that
//! OpenTelemetry gives to a database client. It never contains a key.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `redis` | yes | [`Backend::redis`]: Redis (6.2 or newer) or Valkey (7.2 or newer): a single server, a cluster, or a primary that sentinels name |
//! | `tls` | | TLS to a server, by `rediss://`, `REDIS_TLS=true` or [`Tls`] |
//! | `sqlite` | | [`Backend::sqlite`] |
//! | `metrics` | | what the connection manager counts, see [Metrics](#metrics) |
//! | `tracing` | | events of the connection manager, on the target `redis_conn`, and [command spans](#traces) |
//!
//! Asking for something whose feature is off is an error that names the feature.
//!
//! # Minimum supported Rust version
//!
//! 1.89.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod audit;
mod backend;
mod builder;
mod bus;
mod clock;
mod config;

mod deadline;
mod engine;
mod error;
mod health;
mod lifecycle;
mod namespace;
mod random;
mod registry;
mod state;
mod subject;
mod tasks;
mod trace;

#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(feature = "metrics")]
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod raw;

pub use crate::{
    audit::Audit,
    backend::Backend,
    builder::BackendBuilder,
    bus::{Bus, Event, Message, Subscription},
    clock::{Clock, ManualClock, SystemClock},
    config::{
        Config, ConfigBuilder, ConfigError, ConfigErrors, Credentials, Endpoint, Family,
        FromEnvError, Login, ScaleReads, Tls, Topology,
    },
    error::{Error, ErrorKind},
    health::{
        Check, Connection, Details, Health, HealthWatch, LastError, NodeDetails, PoolDetails,
        Status, Summary,
    },
    lifecycle::{Drain, Part, Phase},
    namespace::Layout,
    state::{State, StateWatch},
    subject::Subject,
};
