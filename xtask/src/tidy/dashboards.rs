//! The dashboards and the alerts: each is about metrics that are there.

use super::sources::{Source, Sources};
use super::{Finding, manifests};
use crate::dashboards::{self, Family, Kind};

const FOLDER: &str = "dashboards";
/// What a Prometheus adds to every series.
const ADDED: &[&str] = &["job", "instance", "le"];

pub(super) fn dashboards_are_made_of_the_tables(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut made = Vec::new();
    for (library, _) in manifests::libraries(sources) {
        let Some(page) = sources.get(&dashboards::page(&library)) else {
            continue;
        };
        let file = dashboards::file(&library);
        let found = sources.get(&file).map_or("", |source| &source.text);
        let expected = dashboards::render(&library, &page.text);
        if found != expected {
            let same = found.lines().zip(expected.lines());
            let same = same.take_while(|(found, expected)| found == expected);
            let what = "is not what `cargo xtask dashboards` makes of the table";
            findings.push(finding(&file, same.count() + 1, what.to_owned()));
        }
        made.push(file);
    }
    for source in ours(sources).filter(|source| source.is("json")) {
        if !made.contains(&source.path) {
            findings.push(finding(&source.path, 1, "has no table".to_owned()));
        }
    }
    findings
}

/// An alert on a name or a label's value that nothing has would never be heard.
pub(super) fn metrics_are_in_a_table(sources: &Sources) -> Vec<Finding> {
    let pages = manifests::libraries(sources).into_iter();
    let pages = pages.filter_map(|(library, _)| sources.get(&dashboards::page(&library)));
    let families: Vec<Family> = pages
        .flat_map(|page| dashboards::families(&page.text))
        .collect();
    let mut findings = Vec::new();
    for source in ours(sources) {
        for (line, text) in (1..).zip(source.text.lines()) {
            let unknown = named(text).filter_map(|(name, after)| unknown(&families, name, after));
            findings.extend(unknown.map(|what| finding(&source.path, line, what)));
        }
    }
    findings
}

fn ours(sources: &Sources) -> impl Iterator<Item = &Source> {
    sources.iter().filter(|source| source.top() == FOLDER)
}

fn finding(file: &str, line: usize, what: String) -> Finding {
    Finding {
        file: file.to_owned(),
        line,
        what,
        rule: "dashboards",
    }
}

/// The metrics in a line, and what follows each.
fn named(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = ["towerkeep_", "redis_connection_"];
    let starts = starts
        .into_iter()
        .flat_map(|start| line.match_indices(start));
    starts
        .filter(move |(at, _)| !line[..*at].ends_with(in_name))
        .map(move |(at, _)| {
            let end = line[at..].find(|c| !in_name(c));
            let end = end.map_or(line.len(), |length| at + length);
            (&line[at..end], &line[end..])
        })
}

/// What is wrong with a name and the matchers behind it.
fn unknown(families: &[Family], name: &str, after: &str) -> Option<String> {
    let Some(family) = families.iter().find(|family| is_of(family, name)) else {
        return Some(format!("names `{name}`, which no table has"));
    };
    let matchers = after.strip_prefix('{')?.split_once('}')?.0;
    matchers
        .split("\",")
        .filter_map(|matcher| matcher.split_once(['=', '!']))
        .find_map(|(label, values)| {
            let values = values.trim_start_matches(['=', '~']);
            let values = values.trim_matches(['"', '\\']);
            misses(family, label.trim(), values)
        })
}

/// Whether a series of this name is of the family.
fn is_of(family: &Family, name: &str) -> bool {
    let suffixes = match family.kind {
        Kind::Counter | Kind::Gauge => [""].as_slice(),
        Kind::Histogram => &["_bucket", "_sum", "_count"],
    };
    name.strip_prefix(&*family.name)
        .is_some_and(|suffix| suffixes.contains(&suffix))
}

/// What of a matcher the family does not have.
fn misses(family: &Family, label: &str, values: &str) -> Option<String> {
    if ADDED.contains(&label) {
        return None;
    }
    let name = &family.name;
    let Some(label) = family.labels.iter().find(|found| found.name == label) else {
        return Some(format!("`{name}` has no label `{label}`"));
    };
    let known = |value: &&str| label.values.is_empty() || label.values.iter().any(|v| v == value);
    let value = values.split('|').find(|value| !known(value))?;
    Some(format!("`{}` of `{name}` is never `{value}`", label.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: (&str, &str) = ("a/Cargo.toml", "");
    const PAGE: (&str, &str) = (
        "a/src/metrics/metrics.md",
        "| `towerkeep_a_calls_total` | counter | `policy`; `outcome`: `good`, `bad` | Calls |\n\
         | `towerkeep_a_wait_seconds` | histogram, seconds |  | How long |\n",
    );

    fn found(rule: fn(&Sources) -> Vec<Finding>, file: (&str, &str)) -> Vec<String> {
        let findings = rule(&Sources::of(&[MANIFEST, PAGE, file]));
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dashboard_that_is_missing_or_old_is_found() {
        let good = dashboards::render("a", PAGE.1);
        let rule = dashboards_are_made_of_the_tables;
        assert!(found(rule, ("dashboards/a.json", &good)).is_empty());
        let old = good.replace("\"calls\"", "\"callers\"");
        let findings = found(rule, ("dashboards/a.json", &old));
        let line = good.lines().position(|line| line.contains("\"calls\""));
        let place = format!("dashboards/a.json:{}: is not", line.unwrap() + 1);
        assert!(findings[0].starts_with(&place), "{findings:?}");
        let findings = found(rule, ("dashboards/b.json", &good));
        assert!(findings[0].starts_with("dashboards/a.json:1"));
        assert!(findings[1].starts_with("dashboards/b.json:1: has no table"));
    }

    fn wrong(line: &str) -> Vec<String> {
        found(metrics_are_in_a_table, ("dashboards/rules.yml", line))
    }

    #[test]
    fn a_name_that_no_table_has_is_found() {
        for good in [
            "rate(towerkeep_a_calls_total[5m]) > towerkeep_a_wait_seconds_count",
            "my_towerkeep_thing and the towerkeep-a dashboard",
        ] {
            assert!(wrong(good).is_empty(), "{good}");
        }
        for bad in [
            "towerkeep_a_calls",
            "1 > towerkeep_a_calls_total_count",
            "towerkeep_a_wait_seconds > 1",
            "redis_connection_status",
        ] {
            assert_eq!(wrong(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_label_or_a_value_that_is_never_there_is_found() {
        for good in [
            r#"{policy="x",outcome=~"good|bad"}"#,
            r#"{job=~"$job", outcome!="good"}"#,
            r#"{outcome!~\"good\"}"#,
            "{}",
        ] {
            let line = format!("towerkeep_a_calls_total{good}");
            assert!(wrong(&line).is_empty(), "{:?}", wrong(&line));
        }
        for (bad, what) in [
            (r#"{kind="x"}"#, "no label `kind`"),
            (r#"{job="x",outcome!="god"}"#, "never `god`"),
            (r#"{outcome=~"good|god"}"#, "never `god`"),
        ] {
            let findings = wrong(&format!("towerkeep_a_calls_total{bad}"));
            assert!(findings[0].contains(what), "{findings:?}");
        }
    }
}
