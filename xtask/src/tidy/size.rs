//! Invariant 11: files that can be read in one sitting.

use super::sources::Sources;
use super::{Finding, code};

const LIMIT: usize = 400;
const TESTS: &[&str] = &["tests", "tests.rs", "benches"];

/// Files under `tests` and `benches`, and the modules `tests.rs`, are tests throughout.
pub(super) fn short_files(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is("rs")) {
        if source.path.split('/').any(|part| TESTS.contains(&part)) {
            continue;
        }
        let lines = code::without_tests(&source.text).lines().count();
        if lines > LIMIT {
            findings.push(Finding {
                file: source.path.clone(),
                line: LIMIT + 1,
                what: format!("{lines} lines without the tests, more than {LIMIT}"),
                rule: "invariant 11",
            });
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_found_and_tests_are_not_counted() {
        let fits = "//\n".repeat(LIMIT) + "#[cfg(test)]\nmod tests {\n}\n";
        let long = "//\n".repeat(LIMIT + 1);
        let sources = Sources::of(&[
            ("a/src/fits.rs", &fits),
            ("a/src/long.rs", &long),
            ("a/tests/long.rs", &long),
            ("a/src/long/tests.rs", &long),
            ("a/long.md", &long),
        ]);
        let findings = short_files(&sources);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].file, "a/src/long.rs");
    }
}
