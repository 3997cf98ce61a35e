//! What is counted, through the facade `metrics`; without the feature of that name nothing is.
//!
//! `table.rs` has the one table of families; `metrics.md` is made of it. Handles are resolved when a limiter is built and when a
//! policy is first used: a recorder that is installed later sees nothing of it. After that nothing here locks or allocates.

#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod on;
#[cfg(feature = "metrics")]
mod policies;
#[cfg(feature = "metrics")]
mod routes;
#[cfg(feature = "metrics")]
mod table;

#[cfg(not(feature = "metrics"))]
pub(crate) use self::off::{Began, Meters, failed, known, requested};
#[cfg(feature = "metrics")]
pub(crate) use self::on::{Began, Meters, failed, known, requested};

#[cfg(all(feature = "redis", not(feature = "metrics")))]
pub(crate) use self::off::coalesced;
#[cfg(all(feature = "redis", feature = "metrics"))]
pub(crate) use self::on::coalesced;

/// What became of a request that reached a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    Denied,
    /// It would have been denied if the layer did not merely watch.
    Shadowed,
    /// It passed without a decision, as one without a key may.
    Skipped,
    /// It was answered with an error that is no denial: nobody could decide, or it had no key.
    Failed,
}

#[cfg(feature = "metrics")]
impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Shadowed => "shadowed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}
