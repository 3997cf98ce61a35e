//! What the live sentinels agree on, and waiting until they do.

use std::{collections::BTreeMap, time::Duration};

use redis::RedisResult;

use super::RedisSentinel;
use crate::{
    RedisServer,
    bound::{ASK_AGAIN, HANG, within_at_most},
};

impl RedisSentinel {
    /// Waits until every live sentinel knows all other sentinels and servers, none of the live ones
    /// as down, and all live replicas copy from the one master.
    ///
    /// # Panics
    ///
    /// If that takes more than thirty seconds and five failover timeouts, as for the other waits.
    pub async fn wait_ok(&self) {
        self.wait_until("the sentinels to know the group", async || {
            let master = self.named_by_all().await?;
            let replicas = self.servers.iter().enumerate();
            for (index, server) in replicas.filter(|(_, server)| server.is_live()) {
                let in_step = index == master || self.copies(server, master).await;
                in_step.then_some(())?;
            }
            for sentinel in self.sentinels.iter().filter(|one| one.is_live()) {
                self.knows_all(sentinel).await.then_some(())?;
            }
            Some(())
        })
        .await;
    }

    /// The number of the server that more than half of all sentinels name as the master.
    pub async fn master(&self) -> usize {
        self.wait_until("a majority of the sentinels", async || {
            let mut votes = BTreeMap::<usize, usize>::new();
            for sentinel in self.sentinels.iter().filter(|one| one.is_live()) {
                *votes.entry(self.named_by(sentinel).await?).or_default() += 1;
            }
            let most = votes.into_iter().max_by_key(|(_, votes)| *votes);
            most.filter(|(_, votes)| *votes > self.sentinels.len() / 2)
                .map(|(index, _)| index)
        })
        .await
    }

    /// Waits until every live sentinel names the same master, which is not server `old` and knows
    /// that it is the master; returns its number.
    pub async fn wait_for_new_master(&self, old: usize) -> usize {
        self.wait_until("a new master", async || {
            let master = self.named_by_all().await?;
            let replication = self.servers[master].try_info("replication").await.ok()?;
            (master != old && replication["role"] == "master").then_some(master)
        })
        .await
    }

    /// Lets one of the sentinels replace the master, which may be well, and waits until every live
    /// sentinel names the new one; returns its number.
    pub async fn failover(&self) -> usize {
        let old = self.master().await;
        self.wait_until("a sentinel to begin a failover", async || {
            // Refused while another one ends, or while it has not heard from the replicas.
            let sentinel = self.sentinels.iter().find(|one| one.is_live())?;
            let words = ["SENTINEL", "FAILOVER", self.master_name()];
            sentinel.command::<()>(&words).await.ok()
        })
        .await;
        self.wait_for_new_master(old).await
    }

    /// The server that all live sentinels name, if it is live and there is a sentinel.
    async fn named_by_all(&self) -> Option<usize> {
        let mut named = None;
        for sentinel in self.sentinels.iter().filter(|one| one.is_live()) {
            let index = self.named_by(sentinel).await?;
            if *named.get_or_insert(index) != index {
                return None;
            }
        }
        named.filter(|index| self.servers[*index].is_live())
    }

    async fn named_by(&self, sentinel: &RedisServer) -> Option<usize> {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.master_name()];
        let (_, port): (String, u16) = sentinel.command(&words).await.ok()?;
        self.index_of(port)
    }

    async fn copies(&self, replica: &RedisServer, master: usize) -> bool {
        let Ok(info) = replica.try_info("replication").await else {
            return false;
        };
        let port = self.servers[master].group_port().to_string();
        info.get("master_port") == Some(&port)
            && info
                .get("master_link_status")
                .is_some_and(|link| link == "up")
    }

    /// Whether `sentinel` knows the whole group and its live members as such.
    async fn knows_all(&self, sentinel: &RedisServer) -> bool {
        let others = self.known(sentinel, "SENTINELS").await;
        let replicas = self.known(sentinel, "REPLICAS").await;
        let (Ok(others), Ok(replicas)) = (others, replicas) else {
            return false;
        };
        let follows = |replica: &BTreeMap<String, String>| {
            let port = replica.get("port").and_then(|port| port.parse().ok());
            let index = port.and_then(|port| self.index_of(port));
            let live = index.is_some_and(|index| self.servers[index].is_live());
            let up = replica
                .get("master-link-status")
                .is_some_and(|link| link == "ok");
            let flags = replica.get("flags").is_some_and(|flags| flags == "slave");
            !live || up && flags
        };
        others.len() + 1 == self.sentinels.len()
            && replicas.len() + 1 == self.servers.len()
            && replicas.iter().all(follows)
    }

    async fn known(
        &self,
        sentinel: &RedisServer,
        what: &str,
    ) -> RedisResult<Vec<BTreeMap<String, String>>> {
        let words = ["SENTINEL", what, self.master_name()];
        sentinel.command(&words).await
    }

    fn index_of(&self, port: u16) -> Option<usize> {
        self.servers
            .iter()
            .position(|server| server.group_port() == port)
    }

    /// Asks until `found` has an answer.
    async fn wait_until<T>(&self, what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
        let asking = async {
            loop {
                if let Some(found) = found().await {
                    return found;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        within_at_most(self.bound(), what, asking).await
    }

    fn bound(&self) -> Duration {
        // A sentinel that keeps its usual pace asks every ten seconds.
        3 * HANG + 5 * self.failover_timeout
    }
}
