//! Every entry of the users in deploy/ is needed: something real fails without it.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod cluster;
mod files;
mod needed;
mod raw;
mod server;
