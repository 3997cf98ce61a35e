//! Who is served.

use std::fmt;

/// Who a request is served for: a user id, an API key, an address.
///
/// Layers hand it to each other in the request extensions. Its text is shown neither by `Debug` nor in logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Subject(Vec<u8>);

impl Subject {
    /// A subject of these bytes; any bytes are fine, and subjects of different bytes share nothing.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(bytes.as_ref().into())
    }

    /// The bytes that it was made of.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&str> for Subject {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Subject {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<Vec<u8>> for Subject {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subject")
            .field(&format_args!("{} bytes", self.0.len()))
            .finish()
    }
}
