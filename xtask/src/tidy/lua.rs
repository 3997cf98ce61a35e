//! The scripts that run inside Redis: invariants 8 and 10.

use super::Finding;
use super::sources::{Source, Sources};

/// The tests find this line, and put another clock in its place.
const TIME: &str = "local t = redis.call('TIME')";

pub(super) fn one_time_line(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is("lua")) {
        let mut seen = false;
        for (line, code) in code(source) {
            if !calls(code, &["TIME"]) {
                continue;
            }
            if code != TIME {
                findings.push(finding(
                    source,
                    line,
                    &format!("reads the time not by `{TIME}`"),
                ));
            } else if seen {
                findings.push(finding(source, line, "reads the time a second time"));
            }
            seen = true;
        }
    }
    findings
}

pub(super) fn no_scan_of_the_keyspace(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is("lua")) {
        for (line, code) in code(source) {
            if calls(code, &["KEYS", "SCAN"]) {
                findings.push(Finding {
                    rule: "invariant 8",
                    ..finding(source, line, "calls KEYS or SCAN")
                });
            }
        }
    }
    findings
}

fn finding(source: &Source, line: usize, what: &str) -> Finding {
    Finding {
        file: source.path.clone(),
        line,
        what: what.to_owned(),
        rule: "invariant 10",
    }
}

/// The lines without their comments.
fn code(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let code = source
        .text
        .lines()
        .map(|line| line.split("--").next().unwrap_or("").trim_end());
    (1..).zip(code)
}

/// Whether `code` has one of the `commands` in quotes, as `redis.call` and `redis.pcall` take it.
fn calls(code: &str, commands: &[&str]) -> bool {
    let code = code.to_ascii_uppercase();
    let quoted = |command: &&str| {
        code.contains(&format!("'{command}'")) || code.contains(&format!("\"{command}\""))
    };
    code.contains("CALL") && commands.iter().any(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&Sources) -> Vec<Finding>, text: &str) -> Vec<usize> {
        let findings = rule(&Sources::of(&[("lib/src/store/lua/a.lua", text)]));
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_second_or_other_time_line_is_found() {
        let good = "-- redis.call('TIME')\nlocal t = redis.call('TIME')\nreturn t[1]\n";
        assert!(lines(one_time_line, good).is_empty());
        assert_eq!(lines(one_time_line, &good.repeat(2)), [5]);
        assert_eq!(
            lines(one_time_line, "local now = redis.call(\"time\")\n"),
            [1]
        );
        assert_eq!(
            lines(one_time_line, "  local t = redis.call('TIME')\n"),
            [1]
        );
        assert!(lines(one_time_line, "return redis.call('GET', KEYS[1])\n").is_empty());
    }

    #[test]
    fn a_scan_is_found() {
        let text =
            "redis.call('GET', KEYS[1])\nredis.pcall('keys', '*')\nredis.call(\"SCAN\", 0)\n";
        assert_eq!(lines(no_scan_of_the_keyspace, text), [2, 3]);
    }
}
