//! The tables of metrics, as their reference pages have them.

/// Everything of one name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) labels: Vec<Label>,
    pub(crate) meaning: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: String,
    /// All that it may say; empty if the program chooses that.
    pub(crate) values: Vec<String>,
}

/// The rows of a reference page.
pub(crate) fn families(page: &str) -> Vec<Family> {
    page.lines().filter_map(family).collect()
}

fn family(row: &str) -> Option<Family> {
    let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
    let [name, kind, labels, meaning] = cells.as_slice() else {
        return None;
    };
    // The heading is no row.
    let [name] = quoted(name).try_into().ok()?;
    Some(Family {
        name,
        kind: match kind.split(',').next() {
            Some("gauge") => Kind::Gauge,
            Some("histogram") => Kind::Histogram,
            _ => Kind::Counter,
        },
        labels: labels.split("; ").filter_map(label).collect(),
        meaning: (*meaning).to_owned(),
    })
}

fn label(text: &str) -> Option<Label> {
    let mut words = quoted(text).into_iter();
    words.next().map(|name| Label {
        name,
        values: words.collect(),
    })
}

/// What stands between backquotes.
fn quoted(text: &str) -> Vec<String> {
    let parts = text.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

#[cfg(test)]
pub(super) const PAGE: &str = "\
| family | kind | labels | meaning |
|---|---|---|---|
| `towerkeep_a_calls_total` | counter | `policy`; `outcome`: `good`, `bad` | Calls |
| `towerkeep_a_idle` | gauge |  | How many \"idle\" |
| `towerkeep_a_wait_seconds` | histogram, seconds | `store`: `x` | How long |
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_page_are_its_families() {
        let families = families(PAGE);
        let names: Vec<&str> = families.iter().map(|family| &*family.name).collect();
        let expected = ["calls_total", "idle", "wait_seconds"];
        assert_eq!(names, expected.map(|name| format!("towerkeep_a_{name}")));
        let kinds: Vec<Kind> = families.iter().map(|family| family.kind).collect();
        assert_eq!(kinds, [Kind::Counter, Kind::Gauge, Kind::Histogram]);
        assert_eq!(families[2].meaning, "How long");
    }

    #[test]
    fn labels_come_with_what_they_may_say() {
        let families = families(PAGE);
        let shown = |label: &Label| format!("{}={}", label.name, label.values.join("|"));
        let labels: Vec<String> = families[0].labels.iter().map(shown).collect();
        assert_eq!(labels, ["policy=", "outcome=good|bad"]);
        assert!(families[1].labels.is_empty());
    }
}
