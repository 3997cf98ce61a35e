//! The pages about rate limits show what this version admits.

use std::fs;

use bench::{accuracy, plot};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn read(path: &str) -> String {
    let path = format!("{ROOT}/{path}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_pictures_are_those_of_this_version() {
    for (file, picture) in plot::pictures() {
        let path = format!("docs/images/{file}");
        assert!(
            read(&path) == picture,
            "{path} is stale: run cargo xtask bench --plot"
        );
    }
}

#[test]
fn the_tables_are_that_of_this_version() {
    let table = accuracy::table();
    for page in ["docs/rate-limits.md", "tower-ratelimit-redis/README.md"] {
        assert!(read(page).contains(&table), "expected in {page}:\n{table}");
    }
}
