//! Words that have no place in sources and docs.

use super::Finding;
use super::sources::Sources;

/// The rules have to spell what they refuse.
const EXEMPT: &str = "xtask/src/tidy/";

/// A mirror or a vendored copy must do: no host of a package registry is named.
pub(super) fn no_registry_host(sources: &Sources) -> Vec<Finding> {
    let hosts = ["crates.io/", "index.crates.io", "static.crates.io"];
    find(sources, "registry host", |line| {
        hosts.into_iter().find(|host| line.contains(host))
    })
}

/// An absolute path that exists on somebody's machine only.
pub(super) fn no_path_of_one_machine(sources: &Sources) -> Vec<Finding> {
    let roots = ["/work/", "/tmp/", "/home/", "/Users/"];
    let starts_a_path = |line: &str, root: &str| {
        let before = |at: usize| line[..at].chars().next_back();
        line.match_indices(root)
            .any(|(at, _)| !before(at).is_some_and(|c| c.is_alphanumeric() || "._-}*".contains(c)))
    };
    find(sources, "path", |line| {
        roots.into_iter().find(|root| starts_a_path(line, root))
    })
}

pub(super) fn no_unfinished_work(sources: &Sources) -> Vec<Finding> {
    let marks = ["FIXME", "XXX", "TODO", "todo!"];
    find(sources, "unfinished work", |line| {
        let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '!'));
        words.find_map(|word| marks.into_iter().find(|mark| word == *mark))
    })
}

fn find(
    sources: &Sources,
    rule: &'static str,
    word: impl Fn(&str) -> Option<&'static str>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources
        .iter()
        .filter(|source| !source.path.starts_with(EXEMPT))
    {
        for (line, text) in (1..).zip(source.text.lines()) {
            if let Some(word) = word(text) {
                findings.push(Finding {
                    file: source.path.clone(),
                    line,
                    what: format!("says `{word}`"),
                    rule,
                });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&Sources) -> Vec<Finding>, text: &str) -> Vec<usize> {
        let findings = rule(&Sources::of(&[("README.md", text)]));
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_registry_host_is_found() {
        let text = "cargo add redis-conn\n[redis-conn](https://crates.io/crates/redis-conn)\n";
        assert_eq!(lines(no_registry_host, text), [2]);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        let text = "cd /work/main\nunix:///tmp/redis.sock\nuse src/work/a.rs\n\"/home/me/x\"\n";
        assert_eq!(lines(no_path_of_one_machine, text), [1, 2, 4]);
    }

    #[test]
    fn unfinished_work_is_found() {
        let text = "// TODO: more\ntodo!()\nmktemp XXXXXX\n// XXX\nmy_TODO_list\n";
        assert_eq!(lines(no_unfinished_work, text), [1, 2, 4]);
    }

    #[test]
    fn the_rules_may_spell_what_they_refuse() {
        let sources = Sources::of(&[("xtask/src/tidy/words.rs", "FIXME /tmp/")]);
        assert!(no_unfinished_work(&sources).is_empty());
        assert!(no_path_of_one_machine(&sources).is_empty());
    }
}
