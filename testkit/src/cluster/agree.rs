//! What the live nodes agree on, and waiting until they do.

use std::{collections::BTreeMap, time::Duration};

use super::{
    RedisCluster,
    slot::SLOTS,
    view::{Part, View},
};
use crate::bound::{ASK_AGAIN, HANG, within_at_most};

/// What each live node says, by its number.
type Views = BTreeMap<usize, View>;

impl RedisCluster {
    /// Waits until every live node serves, knows all other live nodes and agrees with them on the
    /// part of each, and every live replica copies from its primary. No slot may be left to a dead
    /// node.
    ///
    /// # Panics
    ///
    /// If that takes more than ten seconds and five node timeouts, as for the other waits.
    pub async fn wait_ok(&self) {
        self.wait_until("the cluster to be complete", |views| {
            let parts = self.agreed(views)?;
            let complete = views.values().all(|view| view.ok && view.in_step);
            let slots: usize = parts.values().map(Part::slot_count).sum();
            (complete && slots == usize::from(SLOTS)).then_some(())
        })
        .await;
    }

    /// The number of the primary of `slot`, as the first live node knows it.
    pub async fn primary_of(&self, slot: u16) -> usize {
        self.wait_until("a primary of the slot", |views| {
            let view = views.values().next()?;
            self.index_of(view.owner(slot)?)
        })
        .await
    }

    /// The numbers of the replicas of node `primary`, as the first live node knows them.
    pub async fn replicas_of(&self, primary: usize) -> Vec<usize> {
        let replicas = |view: &View| {
            let of = |part: &Part| part.primary.as_deref() == Some(self.node_id(primary));
            let members = view.members.iter().filter(|(_, node)| of(&node.part));
            let mut found: Vec<_> = members.filter_map(|(id, _)| self.index_of(id)).collect();
            found.sort_unstable();
            found
        };
        self.wait_until("a live node", |views| views.values().next().map(replicas))
            .await
    }

    /// Waits until all live nodes agree on a live primary of `slot` that is not node `old`, and it
    /// serves; returns its number.
    pub async fn wait_for_new_primary(&self, slot: u16, old: usize) -> usize {
        self.wait_until("a new primary", |views| {
            let mut owners = views.values().map(|view| view.owner(slot));
            let owner = owners.next()??;
            let index = self.index_of(owner)?;
            let agreed = owners.all(|other| other == Some(owner));
            let serves = views.get(&index)?.ok;
            (agreed && serves && index != old).then_some(index)
        })
        .await
    }

    /// Lets node `replica` take the place of its primary, which takes part in it, and waits until
    /// all live nodes agree on that and the old primary copies from the new one.
    ///
    /// # Panics
    ///
    /// If the node is no replica.
    pub async fn failover(&self, replica: usize) {
        let asked: redis::RedisResult<()> =
            self.nodes[replica].command(&["CLUSTER", "FAILOVER"]).await;
        asked.expect("a replica takes CLUSTER FAILOVER");
        self.wait_until("the manual failover", |views| {
            let parts = self.agreed(views)?;
            let new = parts.get(self.node_id(replica))?;
            let done = new.primary.is_none() && new.slot_count() > 0;
            (done && views.values().all(|view| view.in_step)).then_some(())
        })
        .await;
    }

    /// Waits until every node knows every other one.
    pub(super) async fn wait_until_acquainted(&self) {
        self.wait_until("the nodes to meet", |views| self.agreed(views).map(drop))
            .await;
    }

    /// Waits until node `primary` sends its writes to node `replica`.
    pub(super) async fn wait_for_replica(&self, replica: usize, primary: usize) {
        let online = async {
            loop {
                let info = self.nodes[primary].info("replication").await;
                // A replica tells its primary its own port, also if it announces a proxy's to others.
                let port = format!("port={},state=online", self.nodes[replica].group_port());
                if info.values().any(|value| value.contains(&port)) {
                    return;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        within_at_most(self.bound(), "a replica to be in step", online).await;
    }

    /// Asks all live nodes until `found` is satisfied with what they say.
    pub(super) async fn wait_until<T>(&self, what: &str, found: impl Fn(&Views) -> Option<T>) -> T {
        let asking = async {
            loop {
                if let Some(views) = self.views().await
                    && let Some(found) = found(&views)
                {
                    return found;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        within_at_most(self.bound(), what, asking).await
    }

    /// What all live nodes say, unless one does not answer.
    async fn views(&self) -> Option<Views> {
        let mut views = Views::new();
        for (index, node) in self.live() {
            views.insert(index, View::of(node).await.ok()?);
        }
        Some(views)
    }

    /// The parts of the live nodes, if all of them are well and agreed on by all.
    pub(super) fn agreed(&self, views: &Views) -> Option<BTreeMap<String, Part>> {
        let mut agreed = BTreeMap::new();
        for index in views.keys() {
            let id = self.node_id(*index);
            for view in views.values() {
                let member = view.members.get(id).filter(|member| member.well)?;
                let part = agreed.entry(id.to_owned()).or_insert(member.part.clone());
                if *part != member.part {
                    return None;
                }
            }
        }
        Some(agreed)
    }

    fn index_of(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|own| own == id)
    }

    fn bound(&self) -> Duration {
        HANG + 5 * self.node_timeout
    }
}
