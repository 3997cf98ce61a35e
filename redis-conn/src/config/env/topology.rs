//! Which servers the environment names.

use std::collections::BTreeSet;

use super::{Environment, names};
use crate::config::{
    Config, Endpoint, Topology, check,
    variables::{
        REDIS_CLUSTER, REDIS_DB, REDIS_HOST, REDIS_MASTER_NAME, REDIS_NODE_HOST, REDIS_NODE_PORT,
        REDIS_NODES, REDIS_PARTITIONS, REDIS_SENTINEL, REDIS_SENTINEL_HOST, REDIS_SENTINEL_PORT,
        REDIS_URL, Variable,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Single,
    Cluster,
    Sentinel,
}

/// Which topology it is, and the variables that say so, without the prefix.
pub(super) struct Choice {
    pub(super) kind: Kind,
    pub(super) named_by: Vec<String>,
}

impl Environment {
    /// What is switched on is chosen, or else what is named.
    pub(super) fn choose(&mut self) -> Choice {
        let cluster = self.read(REDIS_CLUSTER, check::flag);
        let sentinel = self.read(REDIS_SENTINEL, check::flag);
        if (cluster, sentinel) == (Some(true), Some(true)) {
            self.conflict(REDIS_CLUSTER.name, REDIS_SENTINEL.name);
        }
        let single = self.singles();
        let nodes = self.nodes_named();
        let sentinels = self.sentinels_named();
        let (kind, named_by) = if cluster == Some(true) {
            let servers = if nodes.is_empty() { single } else { nodes };
            (Kind::Cluster, chain(REDIS_CLUSTER, servers))
        } else if sentinel == Some(true) {
            (Kind::Sentinel, chain(REDIS_SENTINEL, sentinels))
        } else {
            // A switch that is off leaves the servers without effect that it is for.
            let nodes = nodes.into_iter().filter(|_| cluster.is_none());
            let sentinels = sentinels.into_iter().filter(|_| sentinel.is_none());
            self.choose_named([
                (Kind::Single, single),
                (Kind::Cluster, nodes.collect()),
                (Kind::Sentinel, sentinels.collect()),
            ])
        };
        let mut choice = Choice { kind, named_by };
        if self.texts.contains_key(REDIS_PARTITIONS) {
            choice.named_by.push(REDIS_PARTITIONS.to_owned());
        }
        choice
    }

    /// The last of those that are named; there should be one.
    fn choose_named(&mut self, all: [(Kind, Vec<String>); 3]) -> (Kind, Vec<String>) {
        let mut chosen = (Kind::None, Vec::<String>::new());
        for (kind, names) in all.into_iter().filter(|(_, names)| !names.is_empty()) {
            for former in &chosen.1 {
                self.conflict(former, &names[0]);
            }
            chosen = (kind, names);
        }
        chosen
    }

    fn singles(&self) -> Vec<String> {
        let set = |variable: &Variable| self.is_set(*variable);
        let set = [REDIS_URL, REDIS_HOST].into_iter().filter(set);
        set.map(|variable| variable.name.to_owned()).collect()
    }

    pub(super) fn nodes_named(&self) -> Vec<String> {
        let list = self.is_set(REDIS_NODES).then_some(REDIS_NODES.name);
        let first = self.first(REDIS_NODE_HOST);
        list.map(str::to_owned).into_iter().chain(first).collect()
    }

    fn sentinels_named(&self) -> Vec<String> {
        self.first(REDIS_SENTINEL_HOST).into_iter().collect()
    }

    /// The name with the lowest number that is set.
    fn first(&self, variable: Variable) -> Option<String> {
        let numbers = self.numbers(variable);
        let number = numbers.first()?;
        Some(names::numbered(variable.name, *number))
    }

    fn numbers(&self, variable: Variable) -> BTreeSet<u32> {
        let number = |name: &String| names::number(variable.name, name);
        self.texts.keys().filter_map(number).collect()
    }

    /// `single` is what `REDIS_URL` or `REDIS_HOST` says.
    pub(super) fn topology(&mut self, choice: &Choice, single: Topology) -> Topology {
        let (numbered, listed) = (self.nodes(), self.read(REDIS_NODES, check::nodes));
        let nodes = listed.unwrap_or(numbered);
        let sentinels = self.numbered(
            REDIS_SENTINEL_HOST,
            REDIS_SENTINEL_PORT,
            Endpoint::DEFAULT_SENTINEL_PORT,
        );
        let master = self.read(REDIS_MASTER_NAME, check::master);
        match choice.kind {
            Kind::None | Kind::Single => single,
            Kind::Cluster if self.nodes_named().is_empty() => self.cluster_of(single),
            Kind::Cluster => {
                self.not_by_url(&self.nodes_named());
                Topology::Cluster { nodes }
            }
            Kind::Sentinel => {
                let named = self.sentinels_named();
                self.not_by_url(&named);
                if named.is_empty() {
                    let host = self.prefixed(&names::numbered(REDIS_SENTINEL_HOST.name, 1));
                    let expected = format!("the sentinels to be named by {host}");
                    self.fault([REDIS_SENTINEL.name], &expected);
                }
                if !self.is_set(REDIS_MASTER_NAME) {
                    let expected = "the name under which the sentinels know the server";
                    self.fault([REDIS_MASTER_NAME.name], expected);
                }
                let master = master.unwrap_or_default();
                Topology::Sentinel { sentinels, master }
            }
        }
    }

    fn nodes(&mut self) -> Vec<Endpoint> {
        if let Some(first) = self
            .first(REDIS_NODE_HOST)
            .filter(|_| self.is_set(REDIS_NODES))
        {
            self.conflict(REDIS_NODES.name, &first);
        }
        self.numbered(REDIS_NODE_HOST, REDIS_NODE_PORT, Endpoint::DEFAULT_PORT)
    }

    /// A URL says more than where a server is, so that it cannot be without effect.
    fn not_by_url(&mut self, named: &[String]) {
        let choice_is_explicit = [REDIS_CLUSTER, REDIS_SENTINEL]
            .iter()
            .any(|switch| self.text(*switch).and_then(check::flag) == Some(true));
        // Otherwise both of them name the topology, which was reported.
        if let Some(first) = named.first()
            && choice_is_explicit
            && self.is_set(REDIS_URL)
        {
            self.conflict(REDIS_URL.name, first);
        }
    }

    /// A cluster is asked for the other nodes, so one will do.
    fn cluster_of(&mut self, seed: Topology) -> Topology {
        let nodes = match seed {
            _ if self.singles().is_empty() => {
                let [list, first] = [
                    REDIS_NODES.name.to_owned(),
                    names::numbered(REDIS_NODE_HOST.name, 1),
                ]
                .map(|name| self.prefixed(&name));
                let expected =
                    format!("a node to be named by {list}, {first}, {}", self.examples());
                self.fault([REDIS_CLUSTER.name], &expected);
                Vec::new()
            }
            Topology::Single(Endpoint::Unix(_)) => {
                let expected = "a host: the nodes of a cluster have no Unix sockets";
                self.fault([REDIS_CLUSTER.name, REDIS_URL.name], expected);
                Vec::new()
            }
            Topology::Single(seed) => vec![seed],
            other => return other,
        };
        Topology::Cluster { nodes }
    }

    fn numbered(&mut self, host: Variable, port: Variable, default_port: u16) -> Vec<Endpoint> {
        let mut numbers = self.numbers(host);
        let hosts = numbers.clone();
        numbers.extend(self.numbers(port));
        self.check_gaps(host, &hosts);
        let mut endpoints = Vec::new();
        for number in numbers {
            let name = names::numbered(host.name, number);
            let port_name = names::numbered(port.name, number);
            let found = self.read_as(&port_name, port, check::port);
            if !hosts.contains(&number) {
                self.fault(
                    [&*name, &*port_name],
                    "both or none of them: a port needs a host",
                );
            }
            if let Some(host) = self.read_as(&name, host, check::host) {
                endpoints.push(Endpoint::tcp(host, found.unwrap_or(default_port)));
            }
        }
        endpoints
    }

    /// Somebody who removed a number in the middle, or began with 0, did not mean to lose the rest.
    fn check_gaps(&mut self, host: Variable, numbers: &BTreeSet<u32>) {
        let mut expected = 1..;
        let after_gap = numbers
            .iter()
            .find(|number| expected.next() != Some(**number));
        let Some(after_gap) = after_gap else { return };
        let missing = (1..).find(|number| !numbers.contains(number)).unwrap_or(1);
        let names = [missing, *after_gap].map(|number| names::numbered(host.name, number));
        self.fault(
            names.iter().map(String::as_str),
            "numbers from 1 without a gap: the first of these is not set",
        );
    }

    pub(super) fn check_db(&mut self, choice: &Choice, config: &Config) {
        if choice.kind == Kind::Cluster && config.db != 0 {
            let by = if self.is_set(REDIS_DB) {
                REDIS_DB
            } else {
                REDIS_URL
            };
            self.fault([by.name], "database 0: a cluster has no other");
        }
    }
}

fn chain(switch: Variable, servers: Vec<String>) -> Vec<String> {
    let switch = switch.name.to_owned();
    std::iter::once(switch).chain(servers).collect()
}
