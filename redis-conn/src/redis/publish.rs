//! Publishing, and who listens.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Call, Class, Redis, Topology,
    cluster::Cluster,
    retry::{Next, Retries},
};
use crate::{Error, deadline, engine::closed};

impl Redis {
    pub(crate) async fn publish(&self, channel: &str, frame: &[u8]) -> Result<(), Error> {
        let end = deadline::after(self.command_timeout());
        let name = self.publishing(end).await?;
        // Any node of an older cluster takes it, but two could pass it on in another order.
        let call = Call::new(name, Class::AtMostOnce).key(channel);
        self.call(call.arg(frame), end.duration_since(Instant::now()))
            .await
            .map(drop)
    }

    /// The command by which a script publishes so that those who listen hear it. A script of a cluster can do so on channels of its own
    /// slot only.
    ///
    /// # Errors
    ///
    /// `Unavailable` if no node of a cluster has answered before the deadline, `Closed`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn publish_command(&self, deadline: Duration) -> Result<&'static str, Error> {
        self.publishing(deadline::after(deadline)).await
    }

    async fn publishing(&self, deadline: Instant) -> Result<&'static str, Error> {
        match &self.inner.topology {
            Topology::Cluster(cluster) if self.is_sharded(cluster, deadline).await? => {
                Ok("SPUBLISH")
            }
            _ => Ok("PUBLISH"),
        }
    }

    /// Whether those who listen do so in the slot of their channel. Before that is known nothing can be published that they hear.
    async fn is_sharded(&self, cluster: &Cluster, deadline: Instant) -> Result<bool, Error> {
        if self.inner.context.closed.is_cancelled() {
            return Err(closed());
        }
        let config = self.inner.context.dialer.config();
        let mut retries = Retries::new(config, Class::AtMostOnce, deadline, true);
        loop {
            let failure = match cluster.map(deadline).await {
                Ok(map) => return Ok(map.is_sharded()),
                Err(failure) => failure,
            };
            match retries.after(&failure) {
                Next::After(pause) => sleep(pause).await,
                Next::Fail | Next::Follow(..) => return Err(failure.error),
            }
        }
    }

    pub(crate) async fn listen(&self, channel: &Arc<str>) -> Result<(), Error> {
        self.inner
            .pubsub
            .listen(channel, self.command_timeout())
            .await
    }

    pub(crate) fn unlisten(&self, channel: &Arc<str>) {
        self.inner.pubsub.unlisten(channel);
    }
}
