//! `ci`: everything that must hold before a change is merged.

use std::time::{Duration, Instant};

use crate::sh::{self, Result, cargo};
use crate::{Command, Flags, test, tidy};

pub(crate) const COMMAND: Command = Command {
    name: "ci",
    about: "everything that a merge requires: format, lints, tidy, docs, licences, tests",
    flags: &[],
    details: "
Runs, in the order of their cost: cargo fmt --check, tidy, clippy with warnings denied (the
workspace with all features, each library with its default features, with none and with each
alone), the documentation with warnings denied, cargo deny where it is installed, and `test`.
The first failure ends it.",
    run: |_: &Flags| run(),
};

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
    ]))
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

fn lint_library(library: &str, features: &[&str]) -> std::process::Command {
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
    if sh::on_path("cargo-deny").is_none() {
        println!("LEFT OUT: cargo-deny is not installed, so licences, bans and sources were NOT");
        println!("checked. To check them: cargo install --locked cargo-deny");
        return Ok(());
    }
    sh::run(&mut cargo(&[
        "deny", "check", "licenses", "bans", "sources",
    ]))
}
