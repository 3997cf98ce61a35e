//! What the proxy counts, and waiting for it.

use std::sync::Arc;

use tokio::sync::watch;

/// What a [`FaultProxy`](crate::FaultProxy) has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProxyStats {
    /// Client connections accepted, refused ones included.
    pub accepted: usize,
    /// Client connections open now.
    pub live: usize,
    /// Client connections reset as soon as they were accepted.
    pub refused: usize,
    /// Live connections reset.
    pub reset: usize,
    /// Bytes swallowed, in both directions.
    pub swallowed_bytes: u64,
    /// Times a connection had bytes for its client and was not allowed to deliver more.
    pub frozen: usize,
    /// Chunks of bytes that waited before they were delivered.
    pub delayed: usize,
    /// Writes that were cut short.
    pub slices: usize,
    /// Replies dropped.
    pub dropped_replies: usize,
    /// Messages of subscriptions dropped.
    pub dropped_pushes: usize,
}

/// Where the connections count.
#[derive(Debug, Default)]
pub(super) struct Meter(watch::Sender<ProxyStats>);

impl Meter {
    pub(super) fn add(&self, count: impl FnOnce(&mut ProxyStats)) {
        self.0.send_modify(count);
    }

    pub(super) fn read(&self) -> ProxyStats {
        *self.0.borrow()
    }

    pub(super) async fn wait_for(&self, condition: impl FnMut(&ProxyStats) -> bool) -> ProxyStats {
        let mut receiver = self.0.subscribe();
        *receiver
            .wait_for(condition)
            .await
            .expect("the meter holds the sender")
    }

    /// Counts one more live connection until the guard is dropped.
    pub(super) fn live(meter: &Arc<Self>) -> Live {
        meter.add(|stats| stats.live += 1);
        Live(Arc::clone(meter))
    }
}

/// A live connection's share of the statistics.
#[derive(Debug)]
pub(super) struct Live(Arc<Meter>);

impl Live {
    pub(super) fn add(&self, count: impl FnOnce(&mut ProxyStats)) {
        self.0.add(count);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.add(|stats| stats.live -= 1);
    }
}
