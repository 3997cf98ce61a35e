//! What the layer under test protects.

use std::{future::pending, sync::Arc};

use tokio::sync::watch;

use crate::bound::within;

/// The innermost service of every stack: it answers, or waits until it is cancelled.
#[derive(Debug, Clone, Default)]
pub struct Handler {
    stats: Arc<watch::Sender<HandlerStats>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HandlerStats {
    pub(super) calls: usize,
    /// Calls that wait now; a dropped one does not any more.
    pub(super) waiting: usize,
}

impl Handler {
    /// Returns at once, or never for a path that ends in `Wait`.
    pub(super) async fn handle(self, path: String) {
        self.stats.send_modify(|stats| stats.calls += 1);
        if path.ends_with("/Wait") {
            let _waiting = Waiting::new(&self.stats);
            pending::<()>().await;
        }
    }

    pub(super) fn stats(&self) -> HandlerStats {
        *self.stats.borrow()
    }

    pub(super) async fn wait_for(
        &self,
        condition: impl FnMut(&HandlerStats) -> bool,
    ) -> HandlerStats {
        let mut receiver = self.stats.subscribe();
        let found = within("the handler", receiver.wait_for(condition)).await;
        *found.expect("the handler holds the sender")
    }
}

/// Counts as waiting until it is dropped.
struct Waiting<'a>(&'a watch::Sender<HandlerStats>);

impl<'a> Waiting<'a> {
    fn new(stats: &'a watch::Sender<HandlerStats>) -> Self {
        stats.send_modify(|stats| stats.waiting += 1);
        Self(stats)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|stats| stats.waiting -= 1);
    }
}
