//! A reason to look up the slots again.

use tokio::sync::Notify;

/// Pulled by whoever notices that the slots may have moved. However often it is pulled, one look-up follows the last pull.
#[derive(Debug, Default)]
pub(in crate::redis) struct Trigger(Notify);

impl Trigger {
    pub(in crate::redis) fn pull(&self) {
        self.0.notify_one();
    }

    pub(super) async fn pulled(&self) {
        self.0.notified().await;
    }
}
