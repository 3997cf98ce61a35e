//! One node that is asked who has which slots.

use std::sync::Arc;

use tokio::{
    net::lookup_host,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{election::Testimony, survey::LIMIT, view::View};
use crate::{
    config::Endpoint,
    redis::{Call, Class, Context, dial::Purpose, fault::Failure, lane::Limits, node::Node},
};

/// A node that is asked; over its lanes if it has any.
pub(super) struct Witness {
    pub(super) endpoint: Endpoint,
    pub(super) node: Option<Arc<Node>>,
    /// Whether the configuration names its address.
    pub(super) is_configured: bool,
}

impl Witness {
    pub(super) async fn ask(self, context: Arc<Context>) -> Result<Testimony, Failure> {
        let call = Call::new("CLUSTER", Class::Idempotent).arg("SLOTS");
        let deadline = Instant::now() + LIMIT;
        let answer = match self.node {
            Some(node) => node.exchange(call.attempt(Limits::until(deadline))).await?,
            None => {
                let dialled = context.dialer.dial(&self.endpoint, Purpose::Survey, None);
                let connection = &mut dialled.await?.commands;
                let sent = connection.send_packed_command(call.command());
                let answer = timeout_at(deadline, sent).await;
                let answer = answer.map_err(|_| Failure::late(Class::Idempotent))?;
                let answer = answer.map_err(|error| Failure::lost(Class::Idempotent, error))?;
                if let ::redis::Value::ServerError(refusal) = &answer {
                    return Err(Failure::of_greeting(refusal));
                }
                answer
            }
        };
        let view = View::read(&answer, &self.endpoint)?;
        let id = timeout_at(deadline, identify(&view, &self.endpoint)).await;
        Ok(Testimony {
            id: id.ok().flatten(),
            view,
            is_configured: self.is_configured,
        })
    }
}

/// What the node at an address calls itself. It may be known by its number where it was asked by its name.
async fn identify(view: &View, endpoint: &Endpoint) -> Option<String> {
    if let Some(id) = view.id_at(endpoint) {
        return Some(id.to_owned());
    }
    let Endpoint::Tcp { host, port } = endpoint else {
        return None;
    };
    let mut addrs = lookup_host((host.as_str(), *port)).await.ok()?;
    addrs.find_map(|addr| view.id_at_addr(addr).map(str::to_owned))
}

/// Waits until the nodes are connected, or cannot be.
pub(super) async fn greet(nodes: &[Arc<Node>], deadline: Instant) {
    let mut greeted = JoinSet::new();
    for node in nodes.iter().filter(|node| node.version().is_none()) {
        let node = Arc::clone(node);
        greeted.spawn(async move {
            let ping = Call::new("PING", Class::Idempotent);
            // A refusal tells as much: it came over a connection.
            drop(node.exchange(ping.attempt(Limits::until(deadline))).await);
        });
    }
    greeted.join_all().await;
}
