//! Pictures of what the algorithms admit, as SVG.

use std::fmt::Write as _;

use crate::accuracy::{self, CONTENDERS, Contender, LIMIT, WINDOW};

/// What a picture shows of the schedule, in microseconds, and in steps of how many.
const SHOWN: u64 = 5 * WINDOW;
const STEP: u64 = 20_000;
/// Where the axes are.
const LEFT: u64 = 34;
const TOP: u64 = 26;
const BOTTOM: u64 = 156;
const PER_STEP: f64 = 1.5;
const PER_UNIT: f64 = 0.6;

const STYLE: &str = "\
text { font: 11px sans-serif; fill: #57606a }
.title { font-size: 13px; font-weight: bold }
.axis { stroke: #8c959f; fill: none }
.limit { stroke: #9a6700; stroke-dasharray: 5 3 }
.calls { fill: #8c959f }
.within { fill: #2da44e; fill-opacity: .55 }
.beyond { fill: #cf222e; fill-opacity: .75 }
@media (prefers-color-scheme: dark) {
text { fill: #9ea7b3 }
.limit { stroke: #d29922 }
.within { fill: #3fb950; fill-opacity: .55 }
.beyond { fill: #f85149; fill-opacity: .8 }
}";

/// The name of the file and the picture, for each algorithm under one schedule.
pub fn pictures() -> Vec<(String, String)> {
    let calls = accuracy::burst_then_flood();
    let picture = |contender: &Contender| {
        let admitted = accuracy::admitted(contender.algorithm, &calls);
        let file = contender.name.replace(", ", "-").replace(' ', "-");
        let file = format!("{}.svg", file.to_lowercase());
        (file, picture(contender.name, &calls, &admitted))
    };
    CONTENDERS.iter().map(picture).collect()
}

fn picture(name: &str, calls: &[u64], admitted: &[u64]) -> String {
    let most = accuracy::most(admitted);
    let title = format!("{name}: up to {most} in a second");
    let right = across(SHOWN / STEP);
    let limit = height(LIMIT);
    let area = area(&last_second(admitted));
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 430 190" role="img">
<title>{title}, where {LIMIT} are allowed</title>
<style>
{STYLE}
</style>
<clipPath id="w"><rect x="{LEFT}" y="{limit}" width="{width}" height="{BOTTOM}"/></clipPath>
<clipPath id="b"><rect x="{LEFT}" y="0" width="{width}" height="{limit}"/></clipPath>
<text class="title" x="{LEFT}" y="16">{title}</text>
<path class="within" clip-path="url(#w)" d="{area}"/>
<path class="beyond" clip-path="url(#b)" d="{area}"/>
<path class="limit" d="M{LEFT} {limit}H{right}"/>
<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{right}"/>
"#,
        width = right - LEFT as f64,
    );
    for units in [0, LIMIT, 2 * LIMIT] {
        let (x, y) = (LEFT - 4, height(units) + 4.0);
        let _ = writeln!(
            svg,
            r#"<text x="{x}" y="{y}" text-anchor="end">{units}</text>"#
        );
    }
    for second in 0..=SHOWN / WINDOW {
        let (x, y) = (across(second * WINDOW / STEP), BOTTOM + 28);
        let _ = writeln!(
            svg,
            r#"<text x="{x}" y="{y}" text-anchor="middle">{second} s</text>"#
        );
    }
    let _ = writeln!(
        svg,
        r#"<path class="calls" d="{}"/>
</svg>"#,
        strip(calls)
    );
    svg
}

fn across(step: u64) -> f64 {
    LEFT as f64 + step as f64 * PER_STEP
}

fn height(units: u64) -> f64 {
    BOTTOM as f64 - units as f64 * PER_UNIT
}

/// The most that were admitted in the second before, in each step.
fn last_second(admitted: &[u64]) -> Vec<u64> {
    let until = |at: u64| {
        let first = admitted.partition_point(|then| then + WINDOW <= at);
        let last = admitted.partition_point(|then| *then <= at);
        (last - first) as u64
    };
    let most = |begin: u64| {
        let first = admitted.partition_point(|then| *then < begin);
        let last = admitted.partition_point(|then| *then < begin + STEP);
        let within = admitted[first..last].iter().map(|at| until(*at));
        within.chain([until(begin)]).max().unwrap_or_default()
    };
    (0..SHOWN).step_by(STEP as usize).map(most).collect()
}

/// The area below the counts.
fn area(counts: &[u64]) -> String {
    let mut path = format!("M{LEFT} {BOTTOM}");
    let mut before = 0;
    for (step, &count) in (0..).zip(counts) {
        if count != before {
            let _ = write!(path, "H{}V{:.1}", across(step), height(count));
            before = count;
        }
    }
    let _ = write!(path, "H{}V{BOTTOM}Z", across(SHOWN / STEP));
    path
}

/// When calls come: a strip below the axis.
fn strip(calls: &[u64]) -> String {
    let mut path = String::new();
    let mut open = None;
    for step in 0..=SHOWN / STEP {
        let (begin, end) = (step * STEP, (step + 1) * STEP);
        let comes = begin < SHOWN && calls.iter().any(|at| (begin..end).contains(at));
        match (comes, open) {
            (true, None) => open = Some(step),
            (false, Some(first)) => {
                let (y, width) = (BOTTOM + 4, across(step) - across(first));
                let _ = write!(path, "M{} {y}h{width}v6h-{width}z", across(first));
                open = None;
            }
            _ => {}
        }
    }
    path
}
