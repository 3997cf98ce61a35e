//! Values as people write them in configuration files.

use std::time::Duration;

use serde::Deserialize;

use crate::config::{Family, ScaleReads, check, check::KeepAlive, secret::Secret};

/// What is written as a text, a number or a boolean. It becomes a text, which is read as that of a variable is.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a boolean or a number that is not negative"
)]
pub(in crate::config) enum Scalar {
    Bool(bool),
    Number(u64),
    Text(String),
}

impl Scalar {
    fn read<T>(self, expected: &str, parse: fn(&str) -> Option<T>) -> Result<T, String> {
        let text = match self {
            Self::Bool(on) => on.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        };
        parse(&text).ok_or_else(|| format!("expected {expected}"))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Timeout(pub(super) Duration);

impl TryFrom<Scalar> for Timeout {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::TIMEOUT, check::timeout).map(Self)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Delay(pub(super) Duration);

impl TryFrom<Scalar> for Delay {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::DELAY, check::delay).map(Self)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Reads(pub(super) ScaleReads);

impl TryFrom<Scalar> for Reads {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::READS, check::reads).map(Self)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Addresses(pub(super) Family);

impl TryFrom<Scalar> for Addresses {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::FAMILY, check::family).map(Self)
    }
}

impl TryFrom<Scalar> for KeepAlive {
    type Error = String;

    fn try_from(scalar: Scalar) -> Result<Self, String> {
        scalar.read(check::KEEP_ALIVE, check::keep_alive)
    }
}

/// Serde's own message for a number in place of a text would contain the number.
impl TryFrom<Scalar> for Secret {
    type Error = &'static str;

    fn try_from(scalar: Scalar) -> Result<Self, &'static str> {
        match scalar {
            Scalar::Text(text) => Ok(Self::new(text)),
            Scalar::Bool(_) | Scalar::Number(_) => Err("expected a text, in quotes"),
        }
    }
}
