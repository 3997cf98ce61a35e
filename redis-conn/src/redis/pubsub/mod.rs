//! Subscriptions: which channel is listened to over which connection, and what its subscribers are told when it is lost.
//!
//! All channels of one server share a connection. The [`Switchboard`] knows where each channel lives and whether the server has
//! confirmed it; a [`Listener`] per server keeps the subscriptions of its connection as the switchboard wants them. Both look at
//! what is wanted now, never at a list of what happened: however comings, goings and moves follow each other, the server ends up
//! with exactly the channels that somebody listens to.

mod listener;
mod plan;
mod session;
mod switchboard;

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::yield_now, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{listener::Listener, plan::Plan, switchboard::Switchboard};
use super::{
    Context,
    cluster::{Cluster, Sight},
    target::Target,
};
use crate::{Error, ErrorKind, bus::Hub, engine::closed};

/// The subscriptions of one backend.
#[derive(Debug)]
pub(super) struct PubSub {
    switchboard: Arc<Switchboard>,
    closed: CancellationToken,
}

impl PubSub {
    /// On one server. It is connected to when the first channel is asked for.
    pub(super) fn on_one(target: Target, hub: Arc<Hub>, context: &Arc<Context>) -> Self {
        Self::new(Plan::one(target), hub, context)
    }

    /// On the nodes of a cluster, each channel on the node that has its slot.
    pub(super) fn on_cluster(
        cluster: &Arc<Cluster>,
        hub: Arc<Hub>,
        context: &Arc<Context>,
    ) -> Self {
        let pubsub = Self::new(Plan::cluster(Arc::clone(cluster.trigger())), hub, context);
        let follows = follow(cluster.watch(), Arc::clone(&pubsub.switchboard));
        let closed = context.closed.clone();
        context.tasks.spawn_on(
            async move { closed.run_until_cancelled(follows).await },
            &context.runtime,
        );
        pubsub
    }

    fn new(plan: Plan, hub: Arc<Hub>, context: &Arc<Context>) -> Self {
        Self {
            switchboard: Switchboard::new(plan, hub, Arc::clone(context)),
            closed: context.closed.clone(),
        }
    }

    /// Returns when the server has confirmed the subscription.
    pub(super) async fn listen(&self, channel: &Arc<str>, deadline: Duration) -> Result<(), Error> {
        let confirmation = match self.switchboard.listen(channel) {
            Ok(Some(confirmation)) => confirmation,
            Ok(None) => return Ok(()),
            Err(refused) => {
                // Who asks again and again must not keep the listener from connecting.
                yield_now().await;
                return Err(refused);
            }
        };
        let confirmed = self
            .closed
            .run_until_cancelled(timeout(deadline, confirmation));
        match confirmed.await {
            Some(Ok(answer)) => answer.unwrap_or_else(|_| Err(closed())),
            Some(Err(_)) => Err(Error::new(
                ErrorKind::Timeout,
                "the subscription was not confirmed before the deadline",
            )),
            None => Err(closed()),
        }
    }

    /// Ends the subscription, unless somebody listens to the channel.
    pub(super) fn unlisten(&self, channel: &Arc<str>) {
        self.switchboard.unlisten(channel);
    }

    /// Why somebody who listens hears nothing now, or was refused what had been granted before.
    pub(super) fn error(&self) -> Option<Error> {
        self.switchboard.error()
    }
}

/// Moves the channels whenever the nodes of the cluster have changed places.
async fn follow(mut sight: watch::Receiver<Sight>, switchboard: Arc<Switchboard>) {
    loop {
        let seen = sight.borrow_and_update().clone();
        switchboard.adopt(seen);
        if sight.changed().await.is_err() {
            return;
        }
    }
}
