//! What is counted, through the facade `metrics`.
//!
//! [`table`] is the one table of families; `metrics.md` is made of it. Handles are resolved when a backend is built: a recorder
//! that is installed later sees nothing of it.

mod bus;
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
