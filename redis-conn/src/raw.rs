//! What the stores of the sibling crates speak to. Outside of the version promise: it changes with any release.
#![allow(missing_docs)]

#[cfg(feature = "redis")]
pub use crate::redis::{
    Call, Class, Courier, Dedicated, Gather, Redis, Reply, Script, ScriptCall, Waiting, slot,
};
#[cfg(feature = "sqlite")]
pub use crate::sqlite::{Expiry, Schema, Sqlite, Tx, sql_error};
#[cfg(feature = "sqlite")]
pub use rusqlite as sql;

pub use crate::tasks::Tasks;

/// The backend itself.
#[derive(Debug)]
pub enum Engine<'a> {
    /// There is nothing to speak to but this clock.
    Memory(&'a std::sync::Arc<dyn crate::Clock>),
    #[cfg(feature = "sqlite")]
    Sqlite(&'a Sqlite),
    #[cfg(feature = "redis")]
    Redis(&'a Redis),
}
