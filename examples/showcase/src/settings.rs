//! The variables of the showcase itself. Those of the backend are read by `Backend::from_env`.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use tower_ratelimit_redis::Policy;

/// A leap year: no policy takes a longer window.
const LONGEST_WINDOW_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// What the environment says, every value checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) instance: String,
    /// The limit on `/limited`.
    pub(crate) policy: Policy,
    /// The period of the cron job; none where it does not run.
    pub(crate) cron: Option<Duration>,
    /// Whether `/health/detailed` names the addresses of the servers.
    pub(crate) addresses: bool,
}

impl Settings {
    /// Reads the settings from `variable`, or returns everything that is wrong with them.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Vec<String>> {
        let mut reader = Reader {
            variable,
            errors: Vec::new(),
        };
        let port = reader.number("PORT", 3000, 0..=u16::MAX);
        let instance = reader.text("INSTANCE");
        let limit = reader.number("SHOWCASE_LIMIT", 100, 1..=u32::MAX);
        let window = reader.number("SHOWCASE_WINDOW_MS", 10_000, 1..=LONGEST_WINDOW_MS);
        let cron = reader.number("SHOWCASE_CRON_MS", 1_000, 0..=LONGEST_WINDOW_MS);
        let addresses = reader.flag("SHOWCASE_HEALTH_ADDRESSES");
        if !reader.errors.is_empty() {
            return Err(reader.errors);
        }
        let policy = Policy::new("limited")
            .limit(limit.into(), Duration::from_millis(window))
            .build()
            .map_err(|error| vec![format!("SHOWCASE_LIMIT, SHOWCASE_WINDOW_MS: {error}")])?;
        Ok(Self {
            port,
            instance: instance.unwrap_or_else(|| std::process::id().to_string()),
            policy,
            cron: (cron > 0).then(|| Duration::from_millis(cron)),
            addresses,
        })
    }
}

struct Reader<F> {
    variable: F,
    errors: Vec<String>,
}

impl<F: Fn(&str) -> Option<OsString>> Reader<F> {
    /// The value of `name`; an empty one counts as absent.
    fn text(&mut self, name: &str) -> Option<String> {
        let value = (self.variable)(name).filter(|value| !value.is_empty())?;
        match value.into_string() {
            Ok(text) => Some(text),
            Err(value) => {
                self.errors
                    .push(format!("{name}={value:?}: expected UTF-8"));
                None
            }
        }
    }

    /// Off unless set.
    fn flag(&mut self, name: &str) -> bool {
        match self.text(name).as_deref() {
            Some("true") => true,
            None | Some("false") => false,
            Some(text) => {
                self.errors
                    .push(format!("{name}={text:?}: expected true or false"));
                false
            }
        }
    }

    fn number<T: FromStr + PartialOrd + Display>(
        &mut self,
        name: &str,
        default: T,
        range: RangeInclusive<T>,
    ) -> T {
        let Some(text) = self.text(name) else {
            return default;
        };
        match text.parse().ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let (least, most) = range.into_inner();
                self.errors.push(format!(
                    "{name}={text:?}: expected a whole number from {least} to {most}"
                ));
                default
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        Settings::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[test]
    fn nothing_set_is_the_table_of_defaults() {
        for variables in [
            &[][..],
            &[("PORT", ""), ("INSTANCE", ""), ("SHOWCASE_LIMIT", "")],
        ] {
            let settings = read(variables).unwrap();
            assert_eq!(settings.port, 3000);
            assert_eq!(settings.instance, std::process::id().to_string());
            assert!(format!("{:?}", settings.policy).contains("100 in 10s"));
            assert!(!settings.addresses);
            assert_eq!(settings.cron, Some(Duration::from_secs(1)));
        }
    }

    #[test]
    fn values_replace_the_defaults() {
        let settings = read(&[
            ("PORT", "0"),
            ("INSTANCE", "one"),
            ("SHOWCASE_LIMIT", "4294967295"),
            ("SHOWCASE_WINDOW_MS", "31622400000"),
            ("SHOWCASE_CRON_MS", "0"),
            ("SHOWCASE_HEALTH_ADDRESSES", "true"),
        ])
        .unwrap();
        assert!(settings.addresses);
        assert_eq!(settings.cron, None);
        assert_eq!((settings.port, &*settings.instance), (0, "one"));
        assert!(format!("{:?}", settings.policy).contains("4294967295 in 31622400s"));
    }

    #[test]
    fn all_errors_come_at_once_and_name_their_variable() {
        let errors = read(&[
            ("PORT", "65536"),
            ("SHOWCASE_LIMIT", "0"),
            ("SHOWCASE_WINDOW_MS", "10s"),
            ("SHOWCASE_CRON_MS", "-1"),
            ("SHOWCASE_HEALTH_ADDRESSES", "yes"),
        ])
        .unwrap_err();
        assert_eq!(
            errors,
            [
                "PORT=\"65536\": expected a whole number from 0 to 65535",
                "SHOWCASE_LIMIT=\"0\": expected a whole number from 1 to 4294967295",
                "SHOWCASE_WINDOW_MS=\"10s\": expected a whole number from 1 to 31622400000",
                "SHOWCASE_CRON_MS=\"-1\": expected a whole number from 0 to 31622400000",
                "SHOWCASE_HEALTH_ADDRESSES=\"yes\": expected true or false",
            ]
        );
    }
}
