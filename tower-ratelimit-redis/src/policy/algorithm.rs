//! How the limits of a policy count, and who counts first.

use std::time::Duration;

/// How a limit counts. What each admits at most, sustains and stores is told in the table of the [crate docs](crate#algorithms).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Never more than the limit in any interval of the window's length.
    #[default]
    StrictWindow,
    /// Two fixed windows, the older of which counts by its part that is still within reach. The least memory of those that slide.
    SlidingCounter,
    /// A bucket of `burst` units that refills evenly, by the limit in each window.
    Gcra {
        /// How many units the bucket holds, so how many may be spent at once.
        burst: u64,
    },
    /// The time of every unit. Exact, for limits up to 1,024.
    SlidingLog,
    /// A count that begins anew with each window.
    FixedWindow(WindowStart),
}

/// When the windows of a fixed window begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowStart {
    /// At multiples of the window since the Unix epoch: full minutes, hours and days of UTC.
    #[default]
    Calendar,
    /// With the first call that is admitted.
    FirstCall,
}

/// What becomes of the counts of a subject when it is first seen under a higher [revision](crate::PolicyBuilder::revision).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Revise {
    /// They go on.
    #[default]
    Keep,
    /// They are forgotten, but for permits that are held. A version before that still serves has room again too.
    Reset,
    /// They are multiplied by the new maximum over the old one, so that everybody has used the same part of the limit as before.
    Proportional,
}

/// Who counts first: the store, or this process. Subjects of more than 256 bytes are counted [exactly](Self::Exact) in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spending {
    /// The store decides each call.
    #[default]
    Exact,
    /// This process reserves so many units at once and spends them by itself, so few calls wait for the store. They are charged to the
    /// part of the window that begins next and may be spent until that ends; then what is left is given back. So every window holds,
    /// over all processes; but units that one process has reserved are refused to others meanwhile. A block or a reset ends what the
    /// process has that calls it; others spend what they have reserved until it lapses. For strict windows.
    Lease(u64),
    /// This process admits by what it knows of the counts, and tells the store what it admitted each so often. Calls do not wait, and
    /// **more than the limit is admitted**: up to what all processes admit in one interval. Where counts must be roughly right and
    /// nothing else.
    WriteBehind(Duration),
}
