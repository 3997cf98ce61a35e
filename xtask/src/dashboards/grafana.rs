//! A dashboard as Grafana 10 and 11 import it.

use super::json::{Json, object, text};
use super::table::{Family, Kind};

/// Of the format, as Grafana 10.3 writes it; later ones read it.
const SCHEMA: usize = 39;
/// The grid is 24 wide.
const WIDTH: usize = 8;
const HEIGHT: usize = 8;
/// Whose processes are shown.
const SHOWN: &str = r#"job=~"$job",instance=~"$instance""#;

pub(super) fn dashboard(library: &str, families: &[Family]) -> Json {
    let panels = families.iter().enumerate();
    let panels = panels.map(|(n, family)| panel(library, n, family));
    object([
        ("title", text(format!("Towerkeep: {library}"))),
        ("uid", text(format!("towerkeep-{library}"))),
        ("tags", Json::List(vec![text("towerkeep")])),
        ("schemaVersion", Json::Number(SCHEMA)),
        ("editable", Json::Bool(true)),
        // One crosshair for all panels.
        ("graphTooltip", Json::Number(1)),
        ("refresh", text("30s")),
        (
            "time",
            object([("from", text("now-1h")), ("to", text("now"))]),
        ),
        ("templating", object([("list", variables(families))])),
        ("panels", Json::List(panels.collect())),
    ])
}

/// The data source, and whose processes are shown.
fn variables(families: &[Family]) -> Json {
    // A histogram has no series of its own name.
    let shown = families
        .iter()
        .find(|family| family.kind != Kind::Histogram);
    let shown = shown.map_or("up", |family| &family.name);
    Json::List(vec![
        object([
            ("name", text("datasource")),
            ("label", text("data source")),
            ("type", text("datasource")),
            ("query", text("prometheus")),
        ]),
        label_values("job", format!("label_values({shown}, job)")),
        label_values(
            "instance",
            format!("label_values({shown}{{job=~\"$job\"}}, instance)"),
        ),
    ])
}

fn label_values(name: &'static str, query: String) -> Json {
    object([
        ("name", text(name)),
        ("type", text("query")),
        ("datasource", source()),
        ("definition", text(query.clone())),
        (
            "query",
            object([("query", text(query)), ("refId", text(name))]),
        ),
        // When the shown time changes.
        ("refresh", Json::Number(2)),
        ("multi", Json::Bool(true)),
        ("includeAll", Json::Bool(true)),
        ("allValue", text(".*")),
        (
            "current",
            object([("text", text("All")), ("value", text("$__all"))]),
        ),
    ])
}

fn source() -> Json {
    object([("type", text("prometheus")), ("uid", text("${datasource}"))])
}

fn panel(library: &str, n: usize, family: &Family) -> Json {
    let unit = match family.kind {
        Kind::Counter => "cps",
        Kind::Gauge => "short",
        Kind::Histogram => "s",
    };
    let columns = 24 / WIDTH;
    let place = [
        ("x", n % columns * WIDTH),
        ("y", n / columns * HEIGHT),
        ("w", WIDTH),
        ("h", HEIGHT),
    ];
    object([
        ("id", Json::Number(n + 1)),
        ("type", text("timeseries")),
        ("title", text(title(library, &family.name))),
        ("description", text(&*family.meaning)),
        (
            "gridPos",
            object(place.map(|(name, number)| (name, Json::Number(number)))),
        ),
        ("datasource", source()),
        (
            "fieldConfig",
            object([
                (
                    "defaults",
                    object([("unit", text(unit)), ("min", Json::Number(0))]),
                ),
                ("overrides", Json::List(Vec::new())),
            ]),
        ),
        (
            "options",
            object([(
                "tooltip",
                object([("mode", text("multi")), ("sort", text("desc"))]),
            )]),
        ),
        ("targets", Json::List(targets(family))),
    ])
}

/// The name without the words that all names of the library have.
fn title(library: &str, family: &str) -> String {
    let name = family.trim_end_matches("_total");
    let name = name.trim_end_matches("_seconds");
    // `towerkeep_lock_` is of `tower-distlock`.
    let common =
        |word: &&str| *word == "towerkeep" || library.split('-').any(|part| part.ends_with(*word));
    let words: Vec<&str> = name.split('_').skip_while(common).collect();
    words.join(" ")
}

fn targets(family: &Family) -> Vec<Json> {
    let labels: Vec<&str> = family.labels.iter().map(|label| &*label.name).collect();
    // Where nothing else tells the lines apart, the processes do.
    let labels = if labels.is_empty() {
        vec!["instance"]
    } else {
        labels
    };
    let by = labels.join(", ");
    let legend: Vec<String> = labels.iter().map(|l| format!("{{{{{l}}}}}")).collect();
    let legend = legend.join(" ");
    let name = &family.name;
    let rate = |name: &str| format!("rate({name}{{{SHOWN}}}[$__rate_interval])");
    match family.kind {
        Kind::Counter => vec![target(
            "A",
            format!("sum by ({by}) ({})", rate(name)),
            legend,
        )],
        Kind::Gauge => vec![target(
            "A",
            format!("sum by ({by}) ({name}{{{SHOWN}}})"),
            legend,
        )],
        Kind::Histogram => {
            let buckets = format!("sum by (le, {by}) ({})", rate(&format!("{name}_bucket")));
            let quantile = |id, quantile: &str, shown: &str| {
                target(
                    id,
                    format!("histogram_quantile({quantile}, {buckets})"),
                    format!("{shown} {legend}"),
                )
            };
            vec![quantile("A", "0.5", "p50"), quantile("B", "0.99", "p99")]
        }
    }
}

fn target(id: &str, expression: String, legend: String) -> Json {
    object([
        ("refId", text(id)),
        ("datasource", source()),
        ("expr", text(expression)),
        ("legendFormat", text(legend)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::table::{PAGE, families};
    use super::*;

    fn expressions(family: &Family) -> Vec<String> {
        let lines = Json::List(targets(family)).to_string();
        let found = lines
            .lines()
            .filter_map(|line| line.trim().strip_prefix("\"expr\": "));
        found
            .map(|line| line.trim_matches([',', '"']).replace("\\\"", "\""))
            .collect()
    }

    #[test]
    fn each_kind_has_its_question() {
        let families = families(PAGE);
        let asked: Vec<_> = families.iter().flat_map(expressions).collect();
        let shown = r#"{job=~"$job",instance=~"$instance"}"#;
        let waited = format!(
            "sum by (le, store) (rate(towerkeep_a_wait_seconds_bucket{shown}[$__rate_interval]))"
        );
        assert_eq!(
            asked,
            [
                format!(
                    "sum by (policy, outcome) (rate(towerkeep_a_calls_total{shown}[$__rate_interval]))"
                ),
                format!("sum by (instance) (towerkeep_a_idle{shown})"),
                format!("histogram_quantile(0.5, {waited})"),
                format!("histogram_quantile(0.99, {waited})"),
            ]
        );
    }

    #[test]
    fn every_family_has_a_panel_in_its_place() {
        let text = dashboard("a", &families(PAGE)).to_string();
        assert_eq!(text.matches("\"timeseries\"").count(), 3);
        for part in ["\"x\": 0", "\"x\": 8", "\"x\": 16", "\"y\": 0"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(
            text.contains(r#""description": "How many \"idle\"""#),
            "{text}"
        );
    }

    #[test]
    fn a_title_leaves_out_what_all_have() {
        for (library, name, expected) in [
            ("redis-conn", "towerkeep_redis_conn_in_flight", "in flight"),
            ("redis-conn", "redis_connection_state", "connection state"),
            (
                "tower-ratelimit-redis",
                "towerkeep_ratelimit_near_limit_total",
                "near limit",
            ),
            ("tower-distlock", "towerkeep_lock_held", "held"),
        ] {
            assert_eq!(title(library, name), expected);
        }
    }
}
