//! What happens to subscriptions. All backends of the process share these handles: a mailbox knows of none.

use std::sync::LazyLock;

use metrics::Counter;

use super::table::{PUBSUB_GAPS, PUBSUB_LOST};

static GAPS: LazyLock<Counter> = LazyLock::new(|| PUBSUB_GAPS.counter(&[]));
static LOST: LazyLock<Counter> = LazyLock::new(|| PUBSUB_LOST.counter(&[]));

/// A subscriber is told that messages may have been lost.
pub(crate) fn gap() {
    GAPS.increment(1);
}

/// A mailbox was full, or was to hold what cannot be read.
pub(crate) fn lost() {
    LOST.increment(1);
}

/// The server does not let this user subscribe to a channel.
#[cfg(feature = "redis")]
pub(crate) fn refused() {
    static REFUSED: LazyLock<Counter> =
        LazyLock::new(|| super::table::SUBSCRIPTIONS_REFUSED.counter(&[]));
    REFUSED.increment(1);
}
