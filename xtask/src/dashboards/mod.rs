//! `dashboards`: a Grafana dashboard for each table of metrics.

mod grafana;
mod json;
mod table;

use std::fs;

use crate::sh::{self, Result};
use crate::{Flags, tidy};

pub(crate) use table::{Family, Kind, families};

pub(crate) const COMMAND: crate::Command = crate::Command {
    name: "dashboards",
    about: "makes the Grafana dashboards of the tables of metrics",
    flags: &[],
    details: "
Each library with a table of metrics has one file in dashboards/, with a panel for each family.
Run it after the table has changed; `tidy` fails where that was forgotten.",
    run: |_: &Flags| run(),
};

fn run() -> Result {
    for (library, _) in tidy::libraries()? {
        let Ok(page) = fs::read_to_string(sh::root().join(page(&library))) else {
            continue;
        };
        let file = file(&library);
        let text = render(&library, &page);
        fs::write(sh::root().join(&file), text).map_err(|error| format!("{file}: {error}"))?;
        println!("{file}");
    }
    Ok(())
}

/// Where the reference page of a library's metrics is.
pub(crate) fn page(library: &str) -> String {
    format!("{library}/src/metrics/metrics.md")
}

/// Where the dashboard of a library is.
pub(crate) fn file(library: &str) -> String {
    format!("dashboards/{library}.json")
}

/// The dashboard of the library with this reference page.
pub(crate) fn render(library: &str, page: &str) -> String {
    grafana::dashboard(library, &families(page)).to_string()
}
