//! What is counted, through the facade `metrics`.
//!
//! `table.rs` has the one table of families; `metrics.md` is made of it. Handles are resolved when a backend is built: a recorder
//! that is installed later sees nothing of it.
//!
//! What is public is for the tables of the sibling crates, and outside of the version promise, as `raw` is.

mod bus;
mod family;
mod few;
mod kinds;
mod level;
#[cfg(feature = "redis")]
mod meters;
mod states;
mod table;

#[cfg(feature = "redis")]
pub(crate) use self::{
    bus::refused,
    meters::{Levels, Meters},
};
pub(crate) use self::{
    bus::{gap, lost},
    states::follow,
};
pub use self::{
    family::{ByLabel, Family, page},
    few::{Few, Found},
    kinds::{KINDS, kind},
};
