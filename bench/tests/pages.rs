//! The page about rate limits shows what this version admits.

use std::fs;

use bench::{accuracy, plot};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

#[test]
fn the_pictures_are_those_of_this_version() {
    for (file, picture) in plot::pictures() {
        let path = format!("{DOCS}/images/{file}");
        let drawn = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(
            drawn == picture,
            "{file} is stale: run cargo xtask bench --plot"
        );
    }
}

#[test]
fn the_table_is_that_of_this_version() {
    let page = fs::read_to_string(format!("{DOCS}/rate-limits.md")).expect("the page");
    let table = accuracy::table();
    assert!(page.contains(&table), "expected in the page:\n{table}");
}
