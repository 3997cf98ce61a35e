//! What is counted, through the facade `metrics`; without the feature of that name nothing is.
//!
//! `table.rs` has the one table of families; `metrics.md` is made of it. Handles are resolved when the first locks of the process are
//! made, and those of a cron job or an election when it is: a recorder that is installed later sees nothing of it. After that nothing
//! here locks or allocates.

#[cfg(feature = "metrics")]
mod named;
#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;
#[cfg(feature = "metrics")]
mod table;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{
    Acquiring, HeldSince, Holding, Leading, begin, cron_ended, cron_known, cron_missed,
    election_known, fence_refused, renewed, unprotected,
};
#[cfg(feature = "metrics")]
pub(crate) use self::{
    named::{Leading, cron_ended, cron_known, cron_missed, election_known},
    on::{Acquiring, HeldSince, Holding, begin, fence_refused, renewed, unprotected},
};
