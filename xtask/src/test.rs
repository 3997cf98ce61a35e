//! `test`: every test of the workspace, against a real Redis server.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::sh::{self, Result};
use crate::showcase::{self, Showcase};
use crate::{Command, Flags, demo, setup};

pub(crate) const COMMAND: Command = Command {
    name: "test",
    about: "set up, then run every test of the workspace",
    flags: &[],
    details: "
Runs `setup`, so that no Redis test is left out, then:
  1. the unit and integration tests, all features on
  2. the documentation tests, and the limiter with its stores left out
  3. examples/quickstart.rs of each crate, whose output must be what its first comment says
  4. the showcase: it starts, answers, and ends well on SIGTERM
  5. the demo, on SQLite and on Redis
The first failure ends it.",
    run: |_: &Flags| run(),
};

pub(crate) fn run() -> Result {
    let server = setup::redis_server()?;
    println!("The Redis tests use {}.", server.display());
    for kind in [&["--lib", "--bins", "--tests"][..], &["--doc"]] {
        sh::run(&mut cargo_test(kind, server.as_os_str()))?;
    }
    // What a backend means to a limiter that was built without its store can only be seen with the features off.
    let mut features = sh::cargo(&["test", "--package", "tower-ratelimit-redis"]);
    sh::run(features.args(["--no-default-features", "--test", "features"]))?;
    for package in quickstarts()? {
        smoke_quickstart(&package)?;
    }
    smoke_showcase()?;
    demo::on_sqlite()?;
    demo::on_redis()
}

fn cargo_test(kind: &[&str], server: &OsStr) -> std::process::Command {
    let mut command = sh::cargo(&["test", "--workspace", "--all-features"]);
    command.args(kind).env("REDIS_SERVER_BIN", server);
    command
}

/// The packages at the root of the workspace that have an `examples/quickstart.rs`.
fn quickstarts() -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(sh::root())? {
        let dir = entry?.path();
        if dir.join(QUICKSTART).is_file() {
            packages.extend(
                dir.file_name()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    packages.sort();
    Ok(packages)
}

const QUICKSTART: &str = "examples/quickstart.rs";

fn smoke_quickstart(package: &str) -> Result {
    let source = fs::read_to_string(sh::root().join(package).join(QUICKSTART))?;
    let expected = expected_output(&source).ok_or_else(|| {
        format!("{package}/{QUICKSTART} does not say `{MARK}` in its first comment")
    })?;
    let mut command = sh::cargo(&["run", "--quiet", "--all-features", "--package", package]);
    let printed = sh::output(command.args(["--example", "quickstart"]))?;
    if printed.trim_end() == expected {
        Ok(())
    } else {
        Err(format!("{package}/{QUICKSTART} printed\n{printed}\ninstead of\n{expected}").into())
    }
}

const MARK: &str = "//! expected output:";

/// The lines after the mark in the comment at the top, without the marks of comment, quote
/// and code block.
fn expected_output(source: &str) -> Option<String> {
    let lines = source
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .skip_while(|line| !line.eq_ignore_ascii_case(MARK));
    let text: Vec<&str> = lines
        .skip(1)
        .map(|line| line.trim_start_matches("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .map(|line| line.strip_prefix("> ").unwrap_or(line))
        .filter(|line| !line.starts_with("```"))
        .collect();
    let text = text.join("\n");
    let text = text.trim_matches('\n').trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

fn smoke_showcase() -> Result {
    let binary = showcase::build()?;
    println!("The showcase starts, answers, and ends well on SIGTERM:");
    let showcase = Showcase::start(Path::new(&binary), &[])?;
    for path in ["/health/live", "/limited"] {
        showcase.expect_ok(path)?;
        println!("  GET {path} answers 200");
    }
    showcase.stop()?;
    println!("  SIGTERM ends it with status 0");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_output_is_read_from_the_first_comment() {
        let source = "//! A quickstart.\n//!\n//! Expected output:\n//! ```text\n//! allowed\n//!\n\
                      //! refused\n//! ```\nuse a::b;\n//! later\n";
        assert_eq!(expected_output(source).unwrap(), "allowed\n\nrefused");
        let quote = "//! A quickstart.\n//!\n//! expected output:\n//! > allowed\n//! > refused\n";
        assert_eq!(expected_output(quote).unwrap(), "allowed\nrefused");
    }

    #[test]
    fn a_quickstart_without_the_mark_is_refused() {
        assert_eq!(expected_output("//! A quickstart.\nfn main() {}\n"), None);
        assert_eq!(
            expected_output("//! expected output:\n//!\nfn main() {}\n"),
            None
        );
    }
}
