//! The files that the rules read.

use std::fs;
use std::path::Path;

use crate::sh::{self, Result};

/// One text file of the workspace.
pub(super) struct Source {
    /// Relative to the root of the workspace, with `/` between the parts.
    pub(super) path: String,
    pub(super) text: String,
}

impl Source {
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    pub(super) fn is(&self, extension: &str) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|found| found == extension)
    }

    /// The folder at the root of the workspace that it is in.
    pub(super) fn top(&self) -> &str {
        self.path.split_once('/').map_or("", |(top, _)| top)
    }
}

/// All text files of the workspace.
pub(super) struct Sources(Vec<Source>);

impl Sources {
    pub(super) fn read() -> Result<Self> {
        let mut found = Vec::new();
        walk(sh::root(), "", &mut found)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self(found))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    pub(super) fn get(&self, path: &str) -> Option<&Source> {
        self.0.iter().find(|source| source.path == path)
    }

    /// The Rust files of the libraries, without their tests, benches and examples.
    pub(super) fn library_code(&self) -> impl Iterator<Item = &Source> {
        self.iter().filter(|source| {
            source.is("rs")
                && !super::manifests::UNPUBLISHED.contains(&source.top())
                && source.path.split('/').nth(1) == Some("src")
                && source.name() != "tests.rs"
        })
    }

    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let source = |(path, text): &(&str, &str)| Source {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
        };
        Self(files.iter().map(source).collect())
    }
}

const EXTENSIONS: &[&str] = &[
    "rs", "lua", "toml", "md", "sh", "yml", "yaml", "json", "conf", "env", "acl",
];

fn walk(dir: &Path, prefix: &str, found: &mut Vec<Source>) -> Result {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            if name != "target" && name != ".git" {
                walk(&entry.path(), &format!("{path}/"), found)?;
            }
        } else if wanted(&path) {
            let text = fs::read_to_string(entry.path()).map_err(|e| format!("{path}: {e}"))?;
            found.push(Source { path, text });
        }
    }
    Ok(())
}

fn wanted(path: &str) -> bool {
    let extension = Path::new(path)
        .extension()
        .and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) || path.starts_with(".ci/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_itself_is_read() {
        let sources = Sources::read().unwrap();
        for path in ["Cargo.toml", ".ci/run", "xtask/src/tidy/sources.rs"] {
            assert!(sources.get(path).is_some(), "{path}");
        }
        assert!(
            sources
                .iter()
                .all(|source| !source.path.contains("target/"))
        );
    }

    #[test]
    fn tests_and_tools_are_no_library_code() {
        let sources = Sources::of(&[
            ("lib/src/store/redis.rs", ""),
            ("lib/tests/redis.rs", ""),
            ("lib/src/store/tests.rs", ""),
            ("lib/src/store/check.lua", ""),
            ("xtask/src/redis.rs", ""),
        ]);
        let paths: Vec<&str> = sources.library_code().map(|source| &*source.path).collect();
        assert_eq!(paths, ["lib/src/store/redis.rs"]);
    }
}
