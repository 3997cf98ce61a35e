//! Three primaries, each with a replica.

use super::files::{self, PROGRAM};
use super::resp::Client;
use super::server::{Plan, Server};
use super::{Home, Topology, ports};
use crate::sh::Result;

const PRIMARIES: usize = 3;
const NODES: usize = 2 * PRIMARIES;
const SLOTS: usize = 16_384;

pub(crate) struct Cluster {
    nodes: Vec<Server>,
    password: String,
    _home: Home,
}

impl Cluster {
    pub(crate) fn start(home: Home) -> Result<Self> {
        let mut nodes = Vec::new();
        for (number, port) in (1..).zip(ports::free(NODES)?) {
            let role = if number <= PRIMARIES {
                "primary"
            } else {
                "replica"
            };
            let name = format!("{role}-{number}");
            let plan = Plan::replicated(files::CLUSTER)?;
            nodes.push(Server::start(&home, name, port, plan)?);
        }
        for node in &nodes {
            node.wait_for_answer()?;
        }
        form(&nodes)?;
        Ok(Self {
            nodes,
            password: files::password(PROGRAM)?,
            _home: home,
        })
    }
}

/// Makes one cluster of empty nodes: the first half primaries, the second half their replicas.
fn form(nodes: &[Server]) -> Result {
    let mut clients = nodes
        .iter()
        .map(Server::client)
        .collect::<Result<Vec<Client>>>()?;
    for (number, client) in (0..).zip(&mut clients) {
        // Different ones, so that no two nodes claim the same slots in the same epoch.
        client.call(&["CLUSTER", "SET-CONFIG-EPOCH", &format!("{}", number + 1)])?;
        if number < PRIMARIES {
            let slots = slots(number).map(|slot| slot.to_string());
            let slots: Vec<String> = slots.collect();
            let mut words = vec!["CLUSTER", "ADDSLOTS"];
            words.extend(slots.iter().map(String::as_str));
            client.call(&words)?;
        }
    }
    for node in &nodes[1..] {
        let port = node.port().to_string();
        clients[0].call(&["CLUSTER", "MEET", "127.0.0.1", &port])?;
    }
    let known = format!("cluster_known_nodes:{NODES}");
    for (node, client) in nodes.iter().zip(&mut clients) {
        node.wait("the other nodes", || {
            Ok(client.call(&["CLUSTER", "INFO"])?.text().contains(&known))
        })?;
    }
    follow(nodes, &mut clients)?;
    for (node, client) in nodes.iter().zip(&mut clients) {
        node.wait("a cluster that is complete", || {
            let info = client.call(&["CLUSTER", "INFO"])?;
            let slots = format!("cluster_slots_ok:{SLOTS}");
            Ok(info.text().contains("cluster_state:ok") && info.text().contains(&slots))
        })?;
        node.wait("all replicas in the slots", || {
            let slots = client.call(&["CLUSTER", "NODES"])?;
            Ok(slots.text().matches("slave").count() == NODES - PRIMARIES)
        })?;
    }
    Ok(())
}

fn follow(nodes: &[Server], clients: &mut [Client]) -> Result {
    for replica in PRIMARIES..NODES {
        let primary = clients[replica - PRIMARIES].call(&["CLUSTER", "MYID"])?;
        let replicate = ["CLUSTER", "REPLICATE", primary.text()];
        // Until the primary is known under its final name.
        nodes[replica].wait("its primary", || {
            clients[replica].call(&replicate).map(|_| true)
        })?;
    }
    for (node, client) in nodes.iter().zip(clients).skip(PRIMARIES) {
        node.wait("the copy of its primary", || {
            let info = client.call(&["INFO", "replication"])?;
            Ok(info.text().contains("master_link_status:up"))
        })?;
    }
    Ok(())
}

/// The share of one primary.
fn slots(primary: usize) -> std::ops::Range<usize> {
    let start = |number: usize| number * SLOTS / PRIMARIES;
    start(primary)..start(primary + 1)
}

impl Topology for Cluster {
    fn servers(&self) -> Vec<String> {
        self.nodes.iter().map(Server::line).collect()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let nodes: Vec<String> = self.nodes.iter().map(Server::address).collect();
        [
            ("REDIS_NODES", nodes.join(",")),
            ("REDIS_USERNAME", PROGRAM.to_owned()),
            ("REDIS_PASSWORD", self.password.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_one_primary() {
        let all: Vec<usize> = (0..PRIMARIES).flat_map(slots).collect();
        assert_eq!(all, (0..SLOTS).collect::<Vec<_>>());
    }
}
