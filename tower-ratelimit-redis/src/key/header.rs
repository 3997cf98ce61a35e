//! The value of a request header.

use http::{HeaderName, request::Parts};

use super::{Key, KeyError, KeyExtractor};

/// The value of a request header, such as an API key.
///
/// Anybody can send any value: put the layer behind whatever checks it, or combine it with [`PeerIp`](super::PeerIp).
/// The subject, for [`peek`](crate::Limiter::peek) and [`reset`](crate::Limiter::reset), is `header:x-api-key:VALUE`. An absent or
/// empty header is no key; one that is sent twice is refused, or the sender could choose whom this layer sees and whom another.
#[derive(Clone, Debug)]
pub struct Header {
    name: HeaderName,
}

impl Header {
    /// The key is in this header.
    ///
    /// # Panics
    ///
    /// If `name` is not a lower-case header name.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name: HeaderName::from_static(name),
        }
    }
}

impl KeyExtractor for Header {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let mut values = parts.headers.get_all(&self.name).iter();
        let (Some(value), more) = (values.next(), values.next()) else {
            return Ok(None);
        };
        if more.is_some() {
            let text = format!("the header {} was sent more than once", self.name);
            return Err(KeyError::new(text));
        }
        if value.is_empty() {
            return Ok(None);
        }
        let mut key = format!("header:{}:", self.name).into_bytes();
        key.extend_from_slice(value.as_bytes());
        Ok(Some(Key::new(key)))
    }
}
