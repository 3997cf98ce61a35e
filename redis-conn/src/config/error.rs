//! What is wrong with a configuration: everything at once, and no secret.

use std::{borrow::Cow, error::Error as StdError, fmt};

use super::url;
use crate::{Error, ErrorKind};

/// Longer values are cut.
const SHOWN_CHARS: usize = 64;

/// One thing that is wrong with a configuration.
///
/// It displays as `REDIS_PORT="70000": expected a port from 1 to 65535`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    variables: Vec<String>,
    value: Option<String>,
    expected: String,
}

impl ConfigError {
    /// The value is to blame. The caller has masked it.
    pub(super) fn new(
        variable: impl Into<String>,
        shown: &str,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            variables: vec![variable.into()],
            value: Some(shorten(shown)),
            expected: expected.into(),
        }
    }

    /// No single value is to blame.
    pub(super) fn about(
        variables: impl IntoIterator<Item = impl Into<String>>,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            variables: variables.into_iter().map(Into::into).collect(),
            value: None,
            expected: expected.into(),
        }
    }

    pub(super) fn conflict(one: impl Into<String>, other: impl Into<String>) -> Self {
        Self::about([one.into(), other.into()], "only one of them")
    }

    /// The variables or fields that are wrong, or contradict each other.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(String::as_str)
    }

    /// The value, if one value is to blame: secrets are masked, long values are cut.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// What was expected instead.
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.variables.is_empty() {
            return f.write_str(&self.expected);
        }
        f.write_str(&self.variables.join(" and "))?;
        if let Some(value) = &self.value {
            // `Debug` escapes control characters, so that a value cannot forge a line of a log.
            write!(f, "={value:?}")?;
        }
        write!(f, ": expected {}", self.expected)
    }
}

impl StdError for ConfigError {}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A value that need not be secret, as it may be shown: somebody may have put a URL where none belongs.
pub(super) fn shown(value: &str) -> Cow<'_, str> {
    if value.contains("://") || value.contains('@') {
        url::masked(value).into()
    } else {
        value.into()
    }
}

/// Everything that is wrong with a configuration; at least one thing. It displays one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// The value, unless something was wrong with it.
    pub(super) fn unless_empty<T>(errors: Vec<ConfigError>, value: T) -> Result<T, Self> {
        if errors.is_empty() {
            Ok(value)
        } else {
            Err(Self(errors))
        }
    }

    /// One after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl IntoIterator for ConfigErrors {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl StdError for ConfigErrors {}

impl From<ConfigErrors> for Error {
    fn from(errors: ConfigErrors) -> Self {
        Self::new(ErrorKind::Config, errors.to_string())
    }
}

/// Why [`Backend::from_env`](crate::Backend::from_env) failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum FromEnvError {
    /// The environment is wrong, or names something that cannot be used; everything that is wrong at once.
    Config(ConfigErrors),
    /// What the environment names is needed and did not answer in time.
    Unreachable(Error),
}

impl FromEnvError {
    /// What became of the thing that this variable names. Waiting mends some failures; only a change of the configuration the others.
    pub(crate) fn naming(variable: &str, error: Error) -> Self {
        if waiting_may_help(&error) {
            return Self::Unreachable(error);
        }
        let expected = format!("something that can be used: {}", with_causes(&error));
        Self::Config(ConfigError::about([variable], expected).into())
    }
}

impl From<ConfigErrors> for FromEnvError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

/// For failures that no single variable is to blame for.
impl From<Error> for FromEnvError {
    fn from(error: Error) -> Self {
        if waiting_may_help(&error) {
            return Self::Unreachable(error);
        }
        Self::Config(ConfigError::about([""; 0], with_causes(&error)).into())
    }
}

fn waiting_may_help(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Config | ErrorKind::Corrupt)
}

impl fmt::Display for FromEnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(errors) => fmt::Display::fmt(errors, f),
            Self::Unreachable(_) => {
                f.write_str("the backend that the environment names cannot be reached")
            }
        }
    }
}

impl StdError for FromEnvError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            // Its text is the text of the errors already.
            Self::Config(_) => None,
            Self::Unreachable(error) => Some(error),
        }
    }
}

/// The list that is made of it keeps no source.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
