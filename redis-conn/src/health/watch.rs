//! Following the health.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::{Health, Status};
use crate::{State, engine::Core};

/// Follows the overall health. Made by [`Backend::watch_health`](crate::Backend::watch_health). It does not keep the backend alive.
#[derive(Clone, Debug)]
pub struct HealthWatch {
    core: Weak<Core>,
    states: watch::Receiver<State>,
    #[cfg(feature = "redis")]
    probes: Option<crate::redis::Probes>,
    seen: Status,
}

impl HealthWatch {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self {
            core: Arc::downgrade(core),
            states: core.states(),
            #[cfg(feature = "redis")]
            probes: core.probes(),
            seen: core.health(false).overall,
        }
    }

    /// The health now; `None` once the backend is gone.
    pub fn get(&self) -> Option<Health> {
        Some(self.core.upgrade()?.health(false))
    }

    /// Waits until the overall health differs from the one last seen here; `None` once the backend is gone. What only a handle
    /// knows of is seen with the next probe.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change is reported by the next call.
    pub async fn changed(&mut self) -> Option<Health> {
        loop {
            let health = self.get()?;
            if health.overall != self.seen {
                self.seen = health.overall;
                return Some(health);
            }
            self.news().await?;
        }
    }

    /// Ends when something was learned that may change the health.
    #[cfg(feature = "redis")]
    async fn news(&mut self) -> Option<()> {
        let Some(probes) = &mut self.probes else {
            return self.states.changed().await.ok();
        };
        tokio::select! {
            changed = self.states.changed() => changed.ok(),
            probed = probes.changed() => probed.ok(),
        }
    }

    #[cfg(not(feature = "redis"))]
    async fn news(&mut self) -> Option<()> {
        self.states.changed().await.ok()
    }
}
