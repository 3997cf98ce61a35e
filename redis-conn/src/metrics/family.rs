//! A family of metrics: what the tables are made of, here and in the sibling crates.

use std::fmt::Write as _;

use metrics::{Counter, Gauge, Histogram, Unit};

/// More are never needed, and each multiplies the series.
const MAX_LABELS: usize = 3;

/// Everything of one name.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    name: &'static str,
    kind: Kind,
    unit: Option<Unit>,
    /// Those that are not used have no name.
    labels: [Label; MAX_LABELS],
    help: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Copy, Debug)]
struct Label {
    name: &'static str,
    /// All that it may say; empty if the program chooses that.
    values: &'static [&'static str],
}

impl Family {
    /// A number that only grows.
    #[must_use]
    pub const fn counter_of(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Counter, None, help)
    }

    /// A number that goes up and down.
    #[must_use]
    pub const fn gauge_of(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Gauge, None, help)
    }

    /// How long something took.
    #[must_use]
    pub const fn seconds_of(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Histogram, Some(Unit::Seconds), help)
    }

    const fn new(name: &'static str, kind: Kind, unit: Option<Unit>, help: &'static str) -> Self {
        const UNUSED: Label = Label {
            name: "",
            values: &[],
        };
        Self {
            name,
            kind,
            unit,
            labels: [UNUSED; MAX_LABELS],
            help,
        }
    }

    /// With one more label, and all that it may say.
    ///
    /// # Panics
    ///
    /// Where the table is compiled, if there are too many.
    #[must_use]
    pub const fn by(mut self, name: &'static str, values: &'static [&'static str]) -> Self {
        let mut unused = 0;
        while !self.labels[unused].name.is_empty() {
            unused += 1;
        }
        self.labels[unused] = Label { name, values };
        self
    }

    /// With one more label, whose few values the program chooses: names that are fixed in its code. They come before the labels
    /// whose values are known here.
    ///
    /// # Panics
    ///
    /// Where the table is compiled, if there are too many.
    #[must_use]
    pub const fn by_name(self, name: &'static str) -> Self {
        self.by(name, &[])
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The counter whose labels say this. One that says nothing is left out.
    pub fn counter(&self, says: &[&str]) -> Counter {
        metrics::counter!(self.name, self.labelled(says))
    }

    /// The gauge whose labels say this.
    pub fn gauge(&self, says: &[&str]) -> Gauge {
        metrics::gauge!(self.name, self.labelled(says))
    }

    /// The histogram whose labels say this.
    pub fn histogram(&self, says: &[&str]) -> Histogram {
        metrics::histogram!(self.name, self.labelled(says))
    }

    /// A handle for each value of the last label, where those before it say `first`.
    pub fn each<T>(&self, first: &[&str], handle: impl Fn(&Self, &[&str]) -> T) -> ByLabel<T> {
        let values = self.labels().nth(first.len()).map(|label| label.values);
        let handles = values.unwrap_or_default().iter();
        let handles = handles.map(|value| (*value, handle(self, &[first, &[*value]].concat())));
        ByLabel(handles.collect())
    }

    /// Has the family shown before anything happened: what is absent cannot be told from what is zero.
    pub(super) fn begin(&self) {
        for says in self.series() {
            match self.kind {
                Kind::Counter => self.counter(&says).increment(0),
                Kind::Gauge => self.gauge(&says).increment(0.0),
                Kind::Histogram => {
                    drop(self.histogram(&says));
                    // Each is many lines of text: one shows that the family is there.
                    return;
                }
            }
        }
    }

    /// Tells the recorder what it means.
    pub fn describe(&self) {
        // A number of things has no unit.
        let unit = self.unit.unwrap_or(Unit::Count);
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, unit, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, unit, self.help),
            Kind::Histogram => metrics::describe_histogram!(self.name, unit, self.help),
        }
    }

    fn labels(&self) -> impl Iterator<Item = &Label> {
        self.labels.iter().filter(|label| !label.name.is_empty())
    }

    fn labelled(&self, says: &[&str]) -> Vec<metrics::Label> {
        let said = self.labels().zip(says).filter(|(_, says)| !says.is_empty());
        said.map(|(label, says)| metrics::Label::new(label.name, (*says).to_owned()))
            .collect()
    }

    /// All that the labels can say together; nothing where the program chooses what one says.
    fn series(&self) -> Vec<Vec<&'static str>> {
        self.labels().fold(vec![Vec::new()], |series, label| {
            let longer = |says: Vec<&'static str>| {
                let values = label.values.iter();
                values.map(move |value| [says.as_slice(), &[*value]].concat())
            };
            series.into_iter().flat_map(longer).collect()
        })
    }
}

/// The handles of one family, by what its last label says.
#[derive(Debug)]
pub struct ByLabel<T>(Vec<(&'static str, T)>);

impl<T> ByLabel<T> {
    /// The one whose label says this; none if the table does not know it.
    pub fn of(&self, says: &str) -> Option<&T> {
        let mut handles = self.0.iter();
        handles.find_map(|(name, handle)| (*name == says).then_some(handle))
    }
}

/// The reference page of a table.
#[must_use]
pub fn page(families: &[Family]) -> String {
    let mut page = "| family | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for family in families {
        let kind = match (family.kind, family.unit) {
            (Kind::Counter, _) => "counter",
            (Kind::Gauge, _) => "gauge",
            (Kind::Histogram, Some(Unit::Seconds)) => "histogram, seconds",
            (Kind::Histogram, _) => "histogram",
        };
        let labels: Vec<_> = family.labels().map(Label::shown).collect();
        let labels = labels.join("; ");
        let Family { name, help, .. } = family;
        // Text takes whatever is written to it.
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {help} |");
    }
    page
}

impl Label {
    fn shown(&self) -> String {
        match self.values {
            [] => format!("`{}`", self.name),
            values => format!("`{}`: `{}`", self.name, values.join("`, `")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: Family = Family::counter_of("a_total", "What it is")
        .by_name("policy")
        .by("store", &["x", "y"])
        .by("outcome", &["good", "bad"]);

    #[test]
    fn series_are_what_the_labels_can_say_together() {
        let family = Family::counter_of("a_total", "")
            .by("store", &["x", "y"])
            .by("outcome", &["good", "bad"]);
        let said: Vec<_> = family.series().iter().map(|says| says.join(" ")).collect();
        assert_eq!(said, ["x good", "x bad", "y good", "y bad"]);
        let one = Family::counter_of("a_total", "").series();
        assert_eq!(one, [Vec::<&str>::new()]);
        assert!(FAMILY.series().is_empty());
    }

    #[test]
    fn a_label_that_says_nothing_is_left_out() {
        let labels = FAMILY.labelled(&["api", "", "bad"]);
        let shown: Vec<_> = labels
            .iter()
            .map(|label| (label.key(), label.value()))
            .collect();
        assert_eq!(shown, [("policy", "api"), ("outcome", "bad")]);
    }

    #[test]
    fn handles_are_found_by_the_last_label() {
        let said = FAMILY.each(&["api", "x"], |_, says| says.join(" "));
        assert_eq!(said.of("bad").map(String::as_str), Some("api x bad"));
        assert_eq!(said.of("ugly"), None);
    }

    #[test]
    fn the_page_has_a_row_for_each_family() {
        let page = page(&[FAMILY, Family::seconds_of("b_seconds", "How long")]);
        let rows: Vec<_> = page.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `a_total` | counter | `policy`; `store`: `x`, `y`; `outcome`: `good`, `bad` | What it is |",
                "| `b_seconds` | histogram, seconds |  | How long |",
            ]
        );
    }
}
