//! A master with two replicas, and three sentinels that watch them.

use super::files::{self, PROGRAM, SENTINEL_USER};
use super::server::{Plan, Server};
use super::{Home, Topology, ports};
use crate::sh::Result;

const REPLICAS: usize = 2;
const SENTINELS: usize = 3;

pub(super) struct Sentinels {
    servers: Vec<Server>,
    sentinels: Vec<Server>,
    master_name: String,
    password: String,
    _home: Home,
}

impl Sentinels {
    pub(super) fn start(home: Home) -> Result<Self> {
        let ports = ports::free(1 + REPLICAS + SENTINELS)?;
        let (data, watch) = ports.split_at(1 + REPLICAS);
        let servers = start_servers(&home, data)?;
        let template = files::read(files::SENTINEL)?;
        let (master_name, text) = watching(&template, data[0])
            .ok_or_else(|| format!("{}: expected `sentinel monitor`", files::SENTINEL))?;
        let mut sentinels = Vec::new();
        for (number, port) in (1..).zip(watch) {
            let plan = plan(&text, &master_name)?;
            sentinels.push(Server::start(
                &home,
                format!("sentinel-{number}"),
                *port,
                plan,
            )?);
        }
        for sentinel in &sentinels {
            sentinel.wait_for_answer()?;
            wait_for_quorum(sentinel, &master_name)?;
        }
        Ok(Self {
            servers,
            sentinels,
            master_name,
            password: files::password(PROGRAM)?,
            _home: home,
        })
    }
}

/// The master, and replicas that have copied it: a sentinel asks for them when it starts, and then not
/// for ten seconds.
fn start_servers(home: &Home, ports: &[u16]) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for (number, port) in (0..).zip(ports) {
        let mut plan = Plan::replicated(files::REDIS)?;
        let name = match number {
            0 => "master".to_owned(),
            number => {
                plan.add(&format!("replicaof 127.0.0.1 {}", ports[0]));
                format!("replica-{number}")
            }
        };
        servers.push(Server::start(home, name, *port, plan)?);
    }
    for server in &servers {
        server.wait_for_answer()?;
    }
    for replica in &servers[1..] {
        let mut client = replica.client()?;
        replica.wait("the copy of its master", || {
            let info = client.call(&["INFO", "replication"])?;
            Ok(info.text().contains("master_link_status:up"))
        })?;
    }
    Ok(servers)
}

/// The name of the master, and `template` with its port instead of the one in it.
fn watching(template: &str, port: u16) -> Option<(String, String)> {
    let line = template
        .lines()
        .find(|line| line.starts_with("sentinel monitor "))?;
    let [_, _, name, _, _, quorum] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return None;
    };
    let monitor = format!("sentinel monitor {name} 127.0.0.1 {port} {quorum}");
    Some((name.to_owned(), template.replace(line, &monitor)))
}

fn plan(text: &str, master: &str) -> Result<Plan> {
    let password = files::password(SENTINEL_USER)?;
    let mut plan = Plan {
        conf: files::SENTINEL,
        text: text.to_owned(),
        args: &["--sentinel"],
    };
    plan.add("aclfile sentinel.acl");
    plan.add(&format!("sentinel auth-user {master} {SENTINEL_USER}"));
    plan.add(&format!("sentinel auth-pass {master} {password}"));
    plan.add(&format!("sentinel sentinel-user {SENTINEL_USER}"));
    plan.add(&format!("sentinel sentinel-pass {password}"));
    Ok(plan)
}

fn wait_for_quorum(sentinel: &Server, master: &str) -> Result {
    let mut client = sentinel.client()?;
    sentinel.wait("the other sentinels and the replicas", || {
        let state = client.call(&["SENTINEL", "MASTER", master])?;
        Ok(state.field("flags") == "master"
            && state.field("num-slaves") == REPLICAS.to_string()
            && state.field("num-other-sentinels") == (SENTINELS - 1).to_string())
    })
}

impl Topology for Sentinels {
    fn servers(&self) -> Vec<String> {
        let all = self.servers.iter().chain(&self.sentinels);
        all.map(Server::line).collect()
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        for (number, sentinel) in (1..).zip(&self.sentinels) {
            let variable = |suffix| format!("REDIS_SENTINEL{number}_{suffix}");
            variables.push((variable("HOST"), "127.0.0.1".to_owned()));
            variables.push((variable("PORT"), sentinel.port().to_string()));
        }
        let named = [
            ("REDIS_MASTER_NAME", &*self.master_name),
            ("REDIS_USERNAME", PROGRAM),
            ("REDIS_PASSWORD", &self.password),
            ("REDIS_SENTINEL_USERNAME", PROGRAM),
            ("REDIS_SENTINEL_PASSWORD", &self.password),
        ];
        variables.extend(named.map(|(name, value)| (name.to_owned(), value.to_owned())));
        variables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_of_the_master_is_replaced() {
        let template = "port 26379\nsentinel monitor main 10.0.0.1 6379 2\nsentinel x main 5\n";
        let (name, text) = watching(template, 7).unwrap();
        assert_eq!(name, "main");
        assert_eq!(
            text,
            "port 26379\nsentinel monitor main 127.0.0.1 7 2\nsentinel x main 5\n"
        );
        assert_eq!(watching("port 26379\n", 7), None);
        assert_eq!(watching("sentinel monitor main\n", 7), None);
    }
}
