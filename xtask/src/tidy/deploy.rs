//! The files in deploy/ name only what the code knows, and the code only files that are there.

use std::collections::BTreeSet;

use super::sources::{Source, Sources};
use super::{Finding, code};

const DEPLOY: &str = "deploy/";
const RULE: &str = "deploy";

/// The files whose string literals are the names and the defaults of variables.
const TABLES: &[&str] = &[
    "redis-conn/src/config/variables.rs",
    "examples/showcase/src/settings.rs",
];

/// A variable that nothing would read: in an environment file, under `environment:`, or in a text.
pub(super) fn variables_are_known(sources: &Sources) -> Vec<Finding> {
    let known = known_variables(sources);
    let mut findings = Vec::new();
    for source in deployed(sources) {
        for (line, text) in (1..).zip(source.text.lines()) {
            let named: Vec<&str> = if is_compose(source) {
                variable(text).into_iter().collect()
            } else if source.is("env") {
                // A variable stays one while it is commented out.
                variable(text.trim_start_matches(['#', ' ']))
                    .into_iter()
                    .collect()
            } else if source.is("md") {
                words(text)
                    .filter(|word| word.starts_with("REDIS_"))
                    .collect()
            } else {
                Vec::new()
            };
            let unknown = named
                .into_iter()
                .filter(|name| !FOREIGN.contains(name))
                .filter(|name| !known.contains(&unnumbered(name)));
            findings.extend(unknown.map(|name| {
                finding(
                    source,
                    line,
                    &format!("no code reads the variable `{name}`"),
                )
            }));
        }
    }
    findings
}

/// Variables of other programs.
const FOREIGN: &[&str] = &["REDISCLI_AUTH"];

/// A file that a compose file, a directive or a text names, which is not in deploy/.
pub(super) fn named_files_exist(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in deployed(sources) {
        for (line, text) in uncommented(source) {
            let named: Vec<&str> = if is_compose(source) || source.is("md") {
                words(text).filter(|word| is_file(word)).collect()
            } else if source.is("conf") {
                included(text).into_iter().collect()
            } else {
                Vec::new()
            };
            for name in named.iter().map(|path| base(path)) {
                if sources.get(&format!("{DEPLOY}{name}")).is_none() {
                    findings.push(finding(source, line, &format!("{DEPLOY}{name} is missing")));
                }
            }
        }
    }
    findings
}

/// A port that the code does not know: in a directive, a variable, and every number of four or five digits in a compose file or in
/// a text.
pub(super) fn ports_are_known(sources: &Sources) -> Vec<Finding> {
    let tables: Vec<String> = TABLES.iter().map(|file| code_of(sources, file)).collect();
    let known: BTreeSet<&str> = tables
        .iter()
        .flat_map(|table| default_ports(table))
        .collect();
    let mut findings = Vec::new();
    for source in deployed(sources) {
        let text = (1..).zip(source.text.lines().map(str::trim));
        // In an environment file a variable stays one while it is commented out.
        for (line, text) in text.filter(|(_, text)| source.is("env") || !text.starts_with('#')) {
            let named: Vec<&str> = if is_compose(source) || source.is("md") {
                numbers(text).collect()
            } else if source.is("conf") {
                listened(text).into_iter().collect()
            } else if source.is("env") {
                assigned(text).into_iter().collect()
            } else {
                Vec::new()
            };
            for port in named.into_iter().filter(|port| !known.contains(port)) {
                findings.push(finding(
                    source,
                    line,
                    &format!("no code knows the port {port}"),
                ));
            }
        }
    }
    findings
}

/// A file in deploy/ that testkit or xtask starts servers from, and that is not there.
pub(super) fn started_files_exist(sources: &Sources) -> Vec<Finding> {
    let starters = sources.iter().filter(|source| {
        source.is("rs")
            && ["testkit", "xtask"].contains(&source.top())
            // The rules have to spell what they refuse.
            && !source.path.starts_with("xtask/src/tidy/")
    });
    let mut findings = Vec::new();
    for source in starters {
        for (line, text) in (1..).zip(source.text.lines()) {
            for name in words(text).filter_map(|word| word.split_once(DEPLOY)) {
                let file = format!("{DEPLOY}{}", name.1.trim_end_matches('.'));
                if is_file(&file) && sources.get(&file).is_none() {
                    findings.push(finding(source, line, &format!("{file} is missing")));
                }
            }
        }
    }
    findings
}

fn deployed(sources: &Sources) -> impl Iterator<Item = &Source> {
    sources
        .iter()
        .filter(|source| source.path.starts_with(DEPLOY))
}

fn is_compose(source: &Source) -> bool {
    source.is("yaml")
}

fn is_file(word: &str) -> bool {
    let kinds = [".conf", ".acl", ".env", ".yaml"];
    // What is left of `*.conf` names no file.
    kinds
        .iter()
        .any(|kind| word.ends_with(kind) && word != *kind)
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn uncommented(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(source.text.lines().map(str::trim));
    lines.filter(|(_, text)| !text.starts_with('#'))
}

/// What is left of `text` when everything that is in no path is a separator.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "._-/{}".contains(c)))
}

/// The file that a directive reads.
fn included(text: &str) -> Option<&str> {
    let (directive, file) = text.split_once(' ')?;
    ["include", "aclfile"]
        .contains(&directive)
        .then(|| file.trim().trim_matches('"'))
}

/// The port that a directive names.
fn listened(text: &str) -> Option<&str> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["port", port] | ["sentinel", "monitor", _, _, port, _] => Some(port),
        _ => None,
    }
}

/// The port that a variable is set to.
fn assigned(text: &str) -> Option<&str> {
    let (name, value) = text.trim_start_matches(['#', ' ']).split_once('=')?;
    (is_variable(name) && name.ends_with("PORT")).then_some(value)
}

/// The name in `NAME=value`, `NAME: value` and `- NAME=value`.
fn variable(text: &str) -> Option<&str> {
    let text = text.trim().trim_start_matches("- ");
    let (name, _) = text.split_once(['=', ':'])?;
    is_variable(name).then_some(name)
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.len() > 1
        && name
            .replace("{n}", "")
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// `REDIS_NODE2_HOST` as the table has it: `REDIS_NODE{n}_HOST`.
fn unnumbered(name: &str) -> String {
    let mut text = String::new();
    let mut digits = false;
    for c in name.chars() {
        if !c.is_ascii_digit() {
            text.push(c);
        } else if !digits {
            text += "{n}";
        }
        digits = c.is_ascii_digit();
    }
    text
}

/// The names in the tables, but for those that are there to be refused.
fn known_variables(sources: &Sources) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for table in TABLES {
        let code = code_of(sources, table);
        let parts: Vec<&str> = code.split('"').collect();
        for pair in parts.windows(2).filter(|pair| is_variable(pair[1])) {
            if !pair[0].trim_end().ends_with("refused(") {
                known.insert(unnumbered(pair[1]));
                known.insert(pair[1].to_owned());
            }
        }
    }
    known
}

fn code_of(sources: &Sources, file: &str) -> String {
    let text = sources.get(file).map_or("", |source| &*source.text);
    code::without_tests(text).to_owned()
}

/// The ports in a table of variables: what they are where nothing is set, which no example is.
fn default_ports(table: &str) -> impl Iterator<Item = &str> {
    let lines = table.lines().filter(|line| line.contains("PORT"));
    lines
        .filter(|line| !line.contains("Example("))
        .flat_map(numbers)
}

/// The numbers of four or five digits, each standing alone.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.bytes().all(|b| b.is_ascii_digit()))
        .filter(|word| matches!(word.len(), 4 | 5))
}

fn finding(source: &Source, line: usize, what: &str) -> Finding {
    Finding {
        file: source.path.clone(),
        line,
        what: what.to_owned(),
        rule: RULE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: (&str, &str) = (
        "redis-conn/src/config/variables.rs",
        "const A: V = open(\"REDIS_HOST\", X, Example(\"h:7000\"));\nconst B: V = open(\"REDIS_PORT\",\n    \
         check::PORT; Default(\"6379\"));\nopen(\"REDIS_SENTINEL{n}_PORT\", check::PORT; Default(\"26379\"));\n\
         numbered(\n    \"REDIS_NODE{n}_HOST\", H);\n\
         refused(\"REDIS_PARTITIONS\", false);\n#[cfg(test)]\nmod tests { \"REDIS_TEST\" }\n",
    );
    const SHOWCASE: (&str, &str) = (
        "examples/showcase/src/settings.rs",
        "reader.number(\"PORT\", 3000, 0..=u16::MAX);\nconst LONGEST: u64 = 1234;\n",
    );

    fn found(rule: fn(&Sources) -> Vec<Finding>, files: &[(&str, &str)]) -> Vec<String> {
        let sources = Sources::of(&[&[TABLE, SHOWCASE], files].concat());
        let findings = rule(&sources);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_variable_that_nobody_reads_is_found() {
        let env = "# A text: with a colon\nREDIS_HOST=x\n# REDIS_NODE12_HOST=y\n#REDIS_HSOT=z\n\
                   REDIS_NODE_HOST=z\nPORT=80\n";
        assert_eq!(
            found(variables_are_known, &[("deploy/a.env", env)]),
            [
                "deploy/a.env:4: no code reads the variable `REDIS_HSOT` (deploy)",
                "deploy/a.env:5: no code reads the variable `REDIS_NODE_HOST` (deploy)",
            ]
        );
        let compose = "# REDIS_OLD: x\nenvironment:\n  REDIS_HOST: x\n  REDIS_PARTITIONS: y\n  - REDIS_TEST=z\n\
                       \x20 REDISCLI_AUTH: x\n  test: [\"CMD\"]\n";
        assert_eq!(
            found(variables_are_known, &[("deploy/compose.yaml", compose)]),
            [
                "deploy/compose.yaml:4: no code reads the variable `REDIS_PARTITIONS` (deploy)",
                "deploy/compose.yaml:5: no code reads the variable `REDIS_TEST` (deploy)",
            ]
        );
        let readme = "Set `REDIS_HOST`, or REDIS_HOTS=a.\nSay `ACL SETUSER`.\n";
        assert_eq!(
            found(variables_are_known, &[("deploy/README.md", readme)]),
            ["deploy/README.md:1: no code reads the variable `REDIS_HOTS` (deploy)"]
        );
    }

    #[test]
    fn a_file_that_is_named_and_missing_is_found() {
        let compose = "- ./redis.conf:/etc/towerkeep/redis.conf:ro\n# other.conf\nenv_file: ./a.env\n\
                       command: cp /etc/towerkeep/* . && redis-server gone.conf\n";
        let readme = "| `redis.conf` | for *.conf |\nthe base is `base.conf`\n";
        let conf = "include redis.conf\n# include other.conf\naclfile users.acl\ncluster-config-file nodes.conf\n";
        assert_eq!(
            found(
                named_files_exist,
                &[
                    ("deploy/README.md", readme),
                    ("deploy/c.yaml", compose),
                    ("deploy/redis.conf", conf)
                ]
            ),
            [
                "deploy/README.md:2: deploy/base.conf is missing (deploy)",
                "deploy/c.yaml:3: deploy/a.env is missing (deploy)",
                "deploy/c.yaml:4: deploy/gone.conf is missing (deploy)",
                "deploy/redis.conf:3: deploy/users.acl is missing (deploy)",
            ]
        );
    }

    #[test]
    fn a_port_that_the_code_does_not_know_is_found() {
        let conf = "port 26379\n# port 1234\nport 6380\nsentinel monitor main 127.0.0.1 6379 2\n\
                    sentinel monitor other 127.0.0.1 6381 2\nsentinel down-after-milliseconds main 5000\n";
        let compose = "- \"127.0.0.1:6379:6379\"\n- \"3000:3001\"\n# 9999\ntest: redis-cli -p 6380\n\
                       ports: [\"1234\"]\nsubnet: 172.30.1.0/24\nREDIS_NODES: 172.30.1.1:7000\n";
        let env = "# a port such as 1234\n#REDIS_PORT=6379\n#REDIS_SENTINEL1_PORT=26380\nREDIS_NODES=a:7000\n";
        let readme = "One server, on port 6379.\n`redis-cli -p 6378`, at noon of 24 h\n";
        assert_eq!(
            found(
                ports_are_known,
                &[
                    ("deploy/README.md", readme),
                    ("deploy/a.env", env),
                    ("deploy/c.yaml", compose),
                    ("deploy/s.conf", conf)
                ]
            ),
            [
                "deploy/README.md:2: no code knows the port 6378 (deploy)",
                "deploy/a.env:3: no code knows the port 26380 (deploy)",
                "deploy/c.yaml:2: no code knows the port 3001 (deploy)",
                "deploy/c.yaml:4: no code knows the port 6380 (deploy)",
                "deploy/c.yaml:5: no code knows the port 1234 (deploy)",
                "deploy/c.yaml:7: no code knows the port 7000 (deploy)",
                "deploy/s.conf:3: no code knows the port 6380 (deploy)",
                "deploy/s.conf:5: no code knows the port 6381 (deploy)",
            ]
        );
    }

    #[test]
    fn a_file_that_servers_are_started_from_must_be_there() {
        let text = "const A: &str = \"deploy/redis.conf\";\nconst B: &str = \"deploy/gone.conf\";\n\
                    // What deploy/ holds; see deploy/users.acl.\nformat!(\"../deploy/other.acl\")\n";
        let files = [("testkit/src/a.rs", text), ("deploy/redis.conf", "")];
        assert_eq!(
            found(started_files_exist, &files),
            [
                "testkit/src/a.rs:2: deploy/gone.conf is missing (deploy)",
                "testkit/src/a.rs:3: deploy/users.acl is missing (deploy)",
                "testkit/src/a.rs:4: deploy/other.acl is missing (deploy)",
            ]
        );
        assert!(found(started_files_exist, &[("redis-conn/src/a.rs", text)]).is_empty());
    }
}
