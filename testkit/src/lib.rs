//! Servers, faults, probes and clocks for the tests of the workspace.
//!
//! | module | what it is for | entry point |
//! |---|---|---|
//! | [`server`] | a real Redis of one's own, stopped whatever happens to the test | [`RedisServer::start`] |
//! | [`cluster`] | a Redis cluster of one's own, its failovers and its slots on the move | [`RedisCluster::start`] |
//! | [`sentinel`] | a master with replicas and the sentinels that replace it | [`RedisSentinel::start`] |
//! | [`topology`] | Redis in each of the ways that it is run | [`Topology::start`] |
//! | [`mock`] | a server that answers as scripted | [`RespMock::start`] |
//! | [`certs`] | an authority and certificates, also bad ones | [`Authority::new`] |
//! | [`clock`] | freezing and stepping the time that scripts read in Redis | [`RedisClock`] |
//! | [`proxy`] | a TCP proxy that loses, delays and tears what passes through | [`FaultProxy::start`] |
//! | [`probe`] | the Tower contract, seen from the inner service | [`Probe`], [`drop_at_every_await`] |
//! | [`stacks`] | one layer value mounted on axum, hyper and tonic | [`stacks::run`] |
//! | [`process`] | the current test binary again, several times, as child processes | [`Fleet`] |
//! | [`until`] | waiting for what no event tells | |
//!
//! ```no_run
//! use std::time::Duration;
//! use testkit::{Fault, FaultProxy, RedisClock, RedisServer};
//!
//! # async fn demo() {
//! let server = RedisServer::start().await;
//! let proxy = FaultProxy::start(&server).await;
//! // ... connect the code under test to `proxy.url()` ...
//!
//! proxy.set(Fault::drop_reply("EVALSHA"));
//! // ... the server executes the script, the client never hears of it ...
//! proxy.wait_for(|stats| stats.dropped_replies == 1).await;
//! assert_eq!(server.command_calls().await["evalsha"].calls, 1);
//!
//! server.freeze();
//! // ... decisions must come without Redis ...
//! server.thaw();
//!
//! let clock = RedisClock::new();
//! clock.advance(Duration::from_secs(60));
//! # }
//! ```
//!
//! # Failing
//!
//! These are fixtures: one that cannot do its job panics and says why. Nothing is skipped silently:
//! without a `redis-server` the panic names `cargo xtask setup`. Every wait inside has a bound of
//! at least ten seconds of real time, so do not use the fixtures on a runtime whose clock is paused.
//!
//! # Ending
//!
//! A server and a child process are children of a small guard process that reads a pipe held by the
//! test process. The pipe closes when the fixture is dropped, when the test panics and when the test
//! process is killed: in each case the guard kills its child and reaps it.

#![allow(
    clippy::missing_panics_doc,
    reason = "every fixture panics when it cannot do its job, see the crate docs"
)]

mod bound;
pub mod certs;
pub mod clock;
pub mod cluster;
mod guard;
pub mod mock;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod sentinel;
pub mod server;
pub mod stacks;
pub mod topology;

pub use bound::until;
pub use certs::{Authority, Certificate};
pub use clock::{RedisClock, frozen_time_script};
pub use cluster::RedisCluster;
pub use mock::{Answer, Request, RespMock};
pub use probe::{Probe, ProbeHandle, assert_auto_traits, drop_at_every_await};
pub use process::Fleet;
pub use proxy::{AfterDrop, Fault, FaultProxy, FaultProxyBuilder, Matching, ProxyStats};
pub use sentinel::RedisSentinel;
pub use server::{CommandStat, PASSWORD, RedisServer, USER};
pub use topology::{Servers, Topology};
