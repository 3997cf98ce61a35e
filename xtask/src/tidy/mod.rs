//! `tidy`: the invariants of ARCHITECTURE.md that a tool can check.
//!
//! Each rule is a function from the sources to its findings, and has a test that shows a source it
//! refuses.

mod boundaries;
mod code;
mod dashboards;
mod deploy;
mod lua;
mod manifests;
mod size;
mod sources;
mod words;

use std::fmt;

use crate::sh::Result;
use crate::{Command, Flags};
use sources::Sources;

pub(crate) const COMMAND: Command = Command {
    name: "tidy",
    about: "check the invariants of ARCHITECTURE.md that a tool can check",
    flags: &[],
    details: "
Reads the sources and prints what breaks a rule as `file:line: what (which rule)`.",
    run: |_: &Flags| run(),
};

/// One place that breaks a rule.
#[derive(Debug)]
struct Finding {
    file: String,
    line: usize,
    what: String,
    /// The invariant by its number, or the convention by its name.
    rule: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            what,
            rule,
        } = self;
        write!(f, "{file}:{line}: {what} ({rule})")
    }
}

type Rule = fn(&Sources) -> Vec<Finding>;

const RULES: &[Rule] = &[
    boundaries::layers_name_no_store,
    boundaries::stores_name_no_http,
    boundaries::connection_names_no_tower,
    boundaries::signatures_name_no_driver,
    boundaries::inner_is_replaced,
    lua::one_time_line,
    lua::no_scan_of_the_keyspace,
    size::short_files,
    manifests::no_refused_dependency,
    manifests::connection_depends_on_no_tower,
    manifests::lints_are_inherited,
    manifests::libraries_have_a_changelog,
    deploy::variables_are_known,
    deploy::named_files_exist,
    deploy::ports_are_known,
    deploy::started_files_exist,
    dashboards::dashboards_are_made_of_the_tables,
    dashboards::metrics_are_in_a_table,
    words::no_registry_host,
    words::no_path_of_one_machine,
    words::no_unfinished_work,
];

pub(crate) fn run() -> Result {
    let sources = Sources::read()?;
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(&sources)).collect();
    findings.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("{} rules hold in {} files", RULES.len(), sources.len());
            Ok(())
        }
        1 => Err("1 place breaks a rule".into()),
        n => Err(format!("{n} places break a rule").into()),
    }
}

/// The published crates with the names of their features.
pub(crate) fn libraries() -> Result<Vec<(String, Vec<String>)>> {
    Ok(manifests::libraries(&Sources::read()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_place_an_editor_can_open() {
        let finding = Finding {
            file: "a/src/layer.rs".to_owned(),
            line: 7,
            what: "names `redis`".to_owned(),
            rule: "invariant 1",
        };
        assert_eq!(
            finding.to_string(),
            "a/src/layer.rs:7: names `redis` (invariant 1)"
        );
    }
}
