//! `cargo xtask bench`: the figures of the READMEs.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::redis::{Cluster, Home, Single, Topology};
use crate::sh::{self, Result, cargo, on_path};
use crate::{Flag, Flags, Value, setup};

const MANIFEST: &str = "bench/Cargo.toml";
/// Two counts of operations; their difference leaves out what the start costs.
const FEW: u64 = 2_000;
const MANY: u64 = 12_000;
/// Where the pages show the pictures.
const PICTURES: &str = "docs/images";

pub(crate) const COMMAND: crate::Command = crate::Command {
    name: "bench",
    about: "measures our crates and their peers, and what faults cost",
    flags: &[Flag {
        name: "--plot",
        value: Value::None,
        about: "only say what each algorithm admits, and draw the pictures in docs/images",
    }],
    details: "\
Runs the criterion benchmarks of bench/ (a workspace of its own), then what the scripts of the
limiter cost the server and how many bytes of it each algorithm takes, what each admits of the same
calls, how long decisions take while Redis is frozen or the network swallows everything and how long
a lane in a black hole is used, how soon writes go on when another server takes over, then, where
valgrind is installed, the client instructions of one GET through the bare client library and
through redis-conn, on a single server and on a cluster.
How often locks are granted twice takes ten minutes more and is left out: run it as docs/locks.md says.
Server and client share the machine: compare ratios, not absolute figures. What is admitted, and so
the pictures, is the same on every machine.",
    run,
};

fn run(flags: &Flags) -> Result {
    if flags.has("--plot") {
        return sh::run(&mut program("accuracy", &[PICTURES]));
    }
    let server = setup::redis_server()?;
    sh::run(&mut cargo(&["bench", "--manifest-path", MANIFEST]))?;
    for name in ["scripts", "memory", "accuracy", "faults", "failovers"] {
        sh::run(&mut program(name, &[]))?;
    }
    instructions(&server)
}

/// Builds a program of the benchmarks and runs it, in the root of the workspace.
fn program(name: &str, arguments: &[&str]) -> Command {
    let mut run = cargo(&["run", "--release", "--manifest-path", MANIFEST]);
    run.args(["--bin", name, "--"]).args(arguments);
    run
}

fn instructions(server: &Path) -> Result {
    let Some(valgrind) = on_path("valgrind") else {
        println!("LEFT OUT: instructions per GET; install valgrind to count them");
        return Ok(());
    };
    let build = ["build", "--release", "--manifest-path", MANIFEST];
    sh::run(cargo(&build).args(["--bin", "instructions"]))?;
    let single = Single::start(Home::temporary(server)?)?;
    compare(&valgrind, "a single server", single, &[])?;
    let cluster = Cluster::start(Home::temporary(server)?)?;
    compare(&valgrind, "a cluster", cluster, &["cluster-client"])
}

/// Counts the bare client library, redis-conn and `others` on these servers, which end with it: the next have their folder.
fn compare(valgrind: &Path, place: &str, servers: impl Topology, others: &[&str]) -> Result {
    let environment = servers.environment();
    let count = |peer: &str| -> Result<u64> {
        let few = counted(valgrind, peer, &environment, FEW)?;
        let many = counted(valgrind, peer, &environment, MANY)?;
        Ok((many - few) / (MANY - FEW))
    };
    let bare = count("bare")?;
    print!("instructions per GET on {place}: bare {bare}");
    for peer in ["redis-conn"].iter().chain(others) {
        let theirs = count(peer)?;
        print!(", {peer} {theirs} ({:.3})", theirs as f64 / bare as f64);
    }
    println!();
    Ok(())
}

/// All instructions of one run with these servers.
fn counted(
    valgrind: &Path,
    peer: &str,
    servers: &[(String, String)],
    operations: u64,
) -> Result<u64> {
    let program = sh::root().join("bench/target/release/instructions");
    let mut command = Command::new(valgrind);
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([peer, &operations.to_string()])
        .envs(servers.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null());
    let output = command.output()?;
    collected(&String::from_utf8_lossy(&output.stderr))
        .ok_or_else(|| format!("valgrind counted nothing for {peer}: {}", output.status).into())
}

fn collected(report: &str) -> Option<u64> {
    let line = report.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_the_report() {
        let report = "==1== Events    : Ir\n==1== Collected : 25503933\n==1== \n";
        assert_eq!(collected(report), Some(25_503_933));
        assert_eq!(collected("==1== aborted"), None);
    }
}
