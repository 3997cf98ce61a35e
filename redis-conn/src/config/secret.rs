//! What must never be printed.

use std::fmt;

use serde::Deserialize;

use super::de::Scalar;

/// A password. It has no `Display` and no `Serialize`, and its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) struct Secret(Box<str>);

impl Secret {
    pub(super) const MASK: &'static str = "***";

    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into().into_boxed_str())
    }

    /// For the handshake, and for nothing else.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MASK)
    }
}
