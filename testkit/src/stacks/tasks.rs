//! Finding tasks that are left.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::bound::HANG;

/// The runtime has no event for the end of a task, so its count is asked for repeatedly.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// How long tasks that are about to end get before they count as those that stay.
const SETTLE: Duration = Duration::from_secs(1);

/// How many tasks the runtime had at some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tasks(usize);

impl Tasks {
    pub(super) fn now() -> Self {
        Self(Handle::current().metrics().num_alive_tasks())
    }

    /// Waits until no more tasks are alive than at the time, or until those that are more seem to
    /// stay; returns how many there are then.
    pub(super) async fn settle(self) -> Self {
        self.fewest_within(SETTLE).await
    }

    /// Waits until no more tasks are alive than at the time.
    pub(super) async fn assert_none_left(self, stack: &str) {
        let left = self.fewest_within(HANG).await.0.saturating_sub(self.0);
        assert_eq!(left, 0, "{stack}: tasks are left of a cancelled request");
    }

    async fn fewest_within(self, bound: Duration) -> Self {
        let start = Instant::now();
        let mut fewest = Self::now().0;
        while fewest > self.0 && start.elapsed() < bound {
            sleep(ASK_AGAIN).await;
            fewest = fewest.min(Self::now().0);
        }
        Self(fewest)
    }
}
