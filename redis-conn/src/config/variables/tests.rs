//! The table, its documentation and the example of an environment say the same.

use std::{fs, path::Path};

use super::*;

/// With `UPDATE_EXPECT=1` the file becomes what the table says.
fn expect(path: &str, rendered: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, rendered).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == rendered,
        "{path:?} is not what the table says: run this test with UPDATE_EXPECT=1"
    );
}

/// What is written about a variable without a default.
fn without(variable: Variable) -> &'static str {
    match variable.name {
        "REDIS_USERNAME" | "REDIS_SENTINEL_USERNAME" => "their default user",
        "REDIS_TLS_SERVERNAME" => "the host",
        "REDIS_TLS_CA_FILE" => "those of the system",
        "REDIS_CONNECTION_NAME" => "that of the process",
        "INSTANCE_ID" => "host name and process id",
        _ => "none",
    }
}

fn row(variable: &Variable) -> String {
    let Variable {
        name,
        meaning,
        expected,
        ..
    } = variable;
    let default = match variable.default() {
        Some(default) => format!("`{default}`"),
        None => without(*variable).to_owned(),
    };
    format!("| `{name}` | {meaning} | {expected} | {default} |\n")
}

#[test]
fn the_documentation_is_the_table() {
    let text = include_str!("../variables.md");
    let (before, rest) = text.split_once("|---|---|---|---|\n").unwrap();
    let after = rest.trim_start_matches(|c| c != '\n');
    let after = rest.find("\n\n").map_or(after, |end| &rest[end + 1..]);
    let rows: String = VARIABLES.iter().map(row).collect();
    let rendered = format!("{before}|---|---|---|---|\n{rows}{after}");
    expect("src/config/variables.md", &rendered);
}

#[test]
fn the_example_is_the_table() {
    let mut text = String::from(
        "# What Backend::from_env reads. A line shows what holds while it is not set, or else an example; an empty value counts as not\n\
         # set. Remove the # of what you need.\n",
    );
    let mut section = "";
    for variable in VARIABLES {
        if variable.section != section {
            section = variable.section;
            text.push_str(&format!("\n## {section}\n"));
        }
        let (Value::Default(value) | Value::Example(value)) = variable.value;
        let name = variable.name.replace("{n}", "1");
        let about = format!("{}: {}", variable.meaning, variable.expected).replace('`', "");
        text.push_str(&format!("\n# {about}\n#{name}={value}\n"));
    }
    expect("../deploy/redis.example.env", &text);
}

#[test]
fn the_documentation_names_what_is_refused() {
    let documentation = include_str!("../variables.md");
    assert!(documentation.contains(&format!("`{REDIS_PARTITIONS}`")));
}

#[test]
fn a_row_has_no_more_than_four_columns() {
    for variable in VARIABLES {
        let Variable {
            meaning, expected, ..
        } = variable;
        assert!(
            !meaning.contains('|') && !expected.contains('|'),
            "{variable:?}"
        );
        assert!(!meaning.is_empty() && !expected.is_empty(), "{variable:?}");
    }
}
