//! `ci`: everything that must hold before a change is merged.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::sh::{self, Result, cargo};
use crate::{Flags, test, tidy};

pub(crate) const COMMAND: crate::Command = crate::Command {
    name: "ci",
    about: "everything that a merge requires: format, lints, tidy, docs, licences, tests",
    flags: &[],
    details: "
Runs, in the order of their cost: cargo fmt --check, tidy, clippy with warnings denied (the
workspace with all features and bench/, each library with its default features, with none and with each
alone), the documentation with warnings denied, cargo deny (installed below target/
if it is missing), and `test`.
The first failure ends it.",
    run: |_: &Flags| run(),
};

/// The version of cargo-deny that is installed where there is none.
const DENY: &str = "0.20.2";

type Step = (&'static str, fn() -> Result);

const STEPS: &[Step] = &[
    ("format", format),
    ("tidy", tidy::run),
    ("clippy", clippy),
    ("features", features),
    ("docs", docs),
    ("deny", deny),
    ("test", test::run),
];

fn run() -> Result {
    let mut durations = Vec::new();
    for (name, step) in STEPS {
        println!("\n== {name}");
        let start = Instant::now();
        step().map_err(|error| format!("the step `{name}` failed: {error}"))?;
        println!("== {name}: {}", seconds(start.elapsed()));
        durations.push((name, start.elapsed()));
    }
    println!();
    for (name, duration) in &durations {
        println!("{name:<9}{:>10}", seconds(*duration));
    }
    let total = durations.iter().map(|(_, duration)| *duration).sum();
    println!("{:<9}{:>10}", "total", seconds(total));
    Ok(())
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn format() -> Result {
    sh::run(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result {
    sh::run(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "--deny=warnings",
    ]))?;
    // A workspace of its own; it shares what is built already.
    let bench = ["clippy", "--locked", "--manifest-path", "bench/Cargo.toml"];
    let mut bench = cargo(&bench);
    bench.args(["--all-targets", "--target-dir", "target"]);
    sh::run(bench.args(["--", "--deny=warnings"]))
}

/// Each library with its default features, with none, and with each alone: code that compiles only
/// together with another crate's features is found here. Tests are left out, they need all.
fn features() -> Result {
    for (library, features) in tidy::libraries()? {
        sh::run(&mut lint_library(&library, &[]))?;
        sh::run(&mut lint_library(&library, &["--no-default-features"]))?;
        for feature in features.iter().filter(|feature| *feature != "default") {
            let alone = ["--no-default-features", "--features", feature];
            sh::run(&mut lint_library(&library, &alone))?;
        }
    }
    Ok(())
}

fn lint_library(library: &str, features: &[&str]) -> Command {
    let mut command = cargo(&["clippy", "--package", library]);
    command.args(features).args(["--", "--deny=warnings"]);
    command
}

fn docs() -> Result {
    let mut command = cargo(&["doc", "--workspace", "--all-features", "--no-deps"]);
    sh::run(command.env("RUSTDOCFLAGS", "--deny=warnings"))
}

/// Advisories are left out: their database comes from a host that not every machine may reach.
fn deny() -> Result {
    let check = ["deny", "check", "licenses", "bans", "sources"];
    if sh::on_path("cargo-deny").is_some() {
        return sh::run(&mut cargo(&check));
    }
    // Built once for this checkout: a machine without it checks all the same.
    let tools = sh::root().join("target/tools");
    let deny = tools.join("bin/cargo-deny");
    if !deny.is_file() {
        let mut install = cargo(&["install", "cargo-deny", "--locked", "--version", DENY]);
        sh::run(install.arg("--root").arg(&tools))?;
    }
    // As a cargo subcommand it would be looked for on PATH.
    sh::run(Command::new(deny).args(&check[1..]).current_dir(sh::root()))
}
