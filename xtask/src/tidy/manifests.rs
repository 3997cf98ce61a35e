//! What every Cargo.toml says, and what none says.

use super::Finding;
use super::sources::{Source, Sources};

/// The folders whose crates are never published.
pub(super) const UNPUBLISHED: &[&str] = &["testkit", "xtask", "examples", "bench"];

const REFUSED: &[&str] = &["async-trait", "lazy_static", "bincode"];
const PROTOCOLS: &[&str] = &["http", "hyper", "tower", "axum", "tonic"];

/// The crates at the root that are published, with the names of their features.
pub(super) fn libraries(sources: &Sources) -> Vec<(String, Vec<String>)> {
    manifests(sources)
        .filter(|manifest| is_library(manifest))
        .map(|manifest| {
            let features = entries(&manifest.text, |section| section == "features");
            let names = features.map(|(_, name)| name.to_owned());
            (manifest.top().to_owned(), names.collect())
        })
        .collect()
}

pub(super) fn no_refused_dependency(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in manifests(sources) {
        for (line, name) in entries(&manifest.text, |section| section.ends_with("dependencies")) {
            if REFUSED.contains(&name) {
                findings.push(finding(
                    manifest,
                    line,
                    &format!("depends on `{name}`"),
                    "dependencies",
                ));
            }
        }
    }
    findings
}

/// Its tests may use what they like.
pub(super) fn connection_depends_on_no_tower(sources: &Sources) -> Vec<Finding> {
    let Some(manifest) = sources.get("redis-conn/Cargo.toml") else {
        return Vec::new();
    };
    let normal =
        |section: &str| section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
    entries(&manifest.text, normal)
        .filter(|(_, name)| {
            PROTOCOLS
                .iter()
                .any(|word| name.split(['-', '_']).next() == Some(word))
        })
        .map(|(line, name)| {
            finding(
                manifest,
                line,
                &format!("depends on `{name}`"),
                "invariant 3",
            )
        })
        .collect()
}

/// A workspace of its own has nobody to inherit from.
pub(super) fn lints_are_inherited(sources: &Sources) -> Vec<Finding> {
    manifests(sources)
        .filter(|manifest| !manifest.text.contains("[workspace]"))
        .filter(|manifest| !manifest.text.contains("[lints]\nworkspace = true"))
        .map(|manifest| {
            finding(
                manifest,
                1,
                "does not inherit the lints of the workspace",
                "lints",
            )
        })
        .collect()
}

pub(super) fn libraries_have_a_changelog(sources: &Sources) -> Vec<Finding> {
    manifests(sources)
        .filter(|manifest| is_library(manifest))
        .filter(|manifest| {
            sources
                .get(&format!("{}/CHANGELOG.md", manifest.top()))
                .is_none()
        })
        .map(|manifest| finding(manifest, 1, "a library without a CHANGELOG.md", "changelog"))
        .collect()
}

fn manifests(sources: &Sources) -> impl Iterator<Item = &Source> {
    sources
        .iter()
        .filter(|source| source.name() == "Cargo.toml")
}

fn is_library(manifest: &Source) -> bool {
    manifest.path.split('/').count() == 2 && !UNPUBLISHED.contains(&manifest.top())
}

fn finding(manifest: &Source, line: usize, what: &str, rule: &'static str) -> Finding {
    Finding {
        file: manifest.path.clone(),
        line,
        what: what.to_owned(),
        rule,
    }
}

/// The keys of the wanted sections, `[dependencies.name]` included, with their lines.
fn entries(text: &str, wanted: fn(&str) -> bool) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    (1..).zip(text.lines()).filter_map(move |(line, text)| {
        if let Some(header) = text.strip_prefix('[') {
            let section = header.trim_end_matches([']', ' ']);
            inside = wanted(section);
            let (parent, name) = section.rsplit_once('.')?;
            return wanted(parent).then_some((line, name));
        }
        let key = text.split(['=', '.', ' ']).next().filter(|_| inside)?;
        let is_key = key.starts_with(|c: char| c.is_alphanumeric());
        is_key.then_some((line, key))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"a\"\n\n[features]\n# Why.\ndefault = [\"b\"]\nb = []\n\n\
                        [dependencies]\nhttp.workspace = true\n\n[lints]\nworkspace = true\n";

    #[test]
    fn libraries_are_listed_with_their_features() {
        let sources = Sources::of(&[("a/Cargo.toml", GOOD), ("xtask/Cargo.toml", GOOD)]);
        let features = vec!["default".to_owned(), "b".to_owned()];
        assert_eq!(libraries(&sources), [("a".to_owned(), features)]);
    }

    #[test]
    fn a_refused_dependency_is_found() {
        let text = "[workspace.dependencies]\nbincode = \"1\"\n[dependencies.async-trait]\n\
                    version = \"1\"\n[features]\nlazy_static = []\n";
        let findings = no_refused_dependency(&Sources::of(&[("Cargo.toml", text)]));
        let lines: Vec<usize> = findings.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [2, 3]);
    }

    #[test]
    fn a_connection_on_http_is_found() {
        let dev = GOOD.replace("[dependencies]", "[dev-dependencies]");
        for (text, count) in [(GOOD, 1), (&dev, 0)] {
            let sources = Sources::of(&[("redis-conn/Cargo.toml", text)]);
            assert_eq!(connection_depends_on_no_tower(&sources).len(), count);
        }
    }

    #[test]
    fn a_crate_with_its_own_lints_is_found() {
        let own = "[package]\nname = \"a\"\n[lints.rust]\nunsafe_code = \"allow\"\n";
        assert_eq!(
            lints_are_inherited(&Sources::of(&[("a/Cargo.toml", own)])).len(),
            1
        );
        let good = [
            ("a/Cargo.toml", GOOD),
            ("bench/Cargo.toml", "[workspace]\n"),
        ];
        assert!(lints_are_inherited(&Sources::of(&good)).is_empty());
    }

    #[test]
    fn a_library_without_a_changelog_is_found() {
        let mut files = vec![("a/Cargo.toml", GOOD), ("testkit/Cargo.toml", GOOD)];
        assert_eq!(libraries_have_a_changelog(&Sources::of(&files)).len(), 1);
        files.push(("a/CHANGELOG.md", "# Changelog"));
        assert!(libraries_have_a_changelog(&Sources::of(&files)).is_empty());
    }
}
