//! Whose request it is.
//!
//! A [`KeyExtractor`] finds the [`Key`] of a request; requests of one key share the limits. [`PeerIp`] is the default.
//! A closure is an extractor too, and extractors combine:
//!
//! ```
//! use http::request::Parts;
//! use tower_ratelimit_redis::key::{self, Key, KeyExtractor as _};
//!
//! # #[derive(Clone)] struct User { id: u64 }
//! // The API key; without one, the address.
//! let _ = key::Header::new("x-api-key").or(key::PeerIp::default());
//! // Each API key on each of its addresses by itself.
//! let _ = (key::Header::new("x-api-key"), key::PeerIp::default());
//! // What a layer further out knows.
//! let _ = key::Extension::new(|user: &User| user.id.to_string());
//! // Anything else.
//! let _ = |parts: &mut Parts| {
//!     let host = parts.uri.host()?;
//!     Some(Key::from(format!("host:{host}")))
//! };
//! ```
//!
//! # Subjects
//!
//! [`peek`](crate::Limiter::peek), [`reset`](crate::Limiter::reset) and their like take the key that an extractor made:
//!
//! | extractor | subject |
//! |---|---|
//! | [`PeerIp`], [`ClientIp`] | `ip:192.0.2.1`, `ip:2001:db8::`; with another prefix than the default `ip:2001:db8::/48` |
//! | [`Header`] | `header:x-api-key:VALUE` |
//! | [`Path`] | `path:/users/42` |
//! | [`Extension`] | `extension:` and what the closure made |
//! | [`SubjectExtension`] | `subject:` and the [`Subject`] |
//! | a closure | what it returned |
//! | `a.or(b)` | that of `a` or that of `b` |
//! | `(a, b)` | [`Key::pair`] of both |
//! | `(a, b, c)` | that of `(a, (b, c))` |
//!
//! Up to the closures, no extractor makes a key that another makes, except that an address is the same key whoever found it.
//!
//! Take the name of a caller from what a layer further out has verified, not from the request: whoever can choose the key has no
//! limit.

use std::{borrow::Cow, fmt, future::Future};

use http::request::Parts;
use redis_conn::Subject;

mod cidr;
mod client;
mod extension;
mod forwarded;
mod header;
mod path;
mod peer;
mod prefix;

pub use self::{
    cidr::{Cidr, CidrError},
    client::ClientIp,
    extension::{Extension, SubjectExtension},
    forwarded::ForwardedFrom,
    header::Header,
    path::Path,
    peer::{PeerAddr, PeerIp},
};

/// Finds the key of a request.
///
/// Closures `Fn(&mut Parts) -> Option<K>`, where [`Key`] is made from `K`, implement it. So do tuples of two and three: `(a, b)` is the
/// key made of both, and missing if one of them is.
pub trait KeyExtractor: Send + Sync + 'static {
    /// The key, or `None` if this request has none; then [`MissingKey`](crate::MissingKey) says what happens.
    ///
    /// # Errors
    ///
    /// A [`KeyError`] if there is something in the place of the key that is none; the request is answered with 400.
    fn extract(
        &self,
        parts: &mut Parts,
    ) -> impl Future<Output = Result<Option<Key>, KeyError>> + Send;

    /// Where this finds no key, `other` is asked.
    fn or<K>(self, other: K) -> Or<Self, K>
    where
        Self: Sized,
        K: KeyExtractor,
    {
        Or { first: self, other }
    }
}

/// What tells the callers apart: bytes, shown neither by `Debug` nor in logs, and hashed before they leave the process.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key of these bytes; any bytes are fine.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The key that all requests without one share. No header value has its first byte.
    pub(crate) fn anonymous() -> Self {
        Self::new(*b"\0anonymous")
    }

    /// The key of two, as a tuple of extractors makes it. The length of the first goes ahead, so `a:b` with `c` is another key
    /// than `a` with `b:c`.
    ///
    /// ```
    /// use redis_conn::Subject;
    /// use tower_ratelimit_redis::key::Key;
    ///
    /// let subject = Subject::from(Key::pair("header:x-api-key:k1", "ip:192.0.2.1"));
    /// assert_eq!(subject, Subject::from("19:header:x-api-key:k1ip:192.0.2.1"));
    /// ```
    pub fn pair(first: impl Into<Self>, second: impl Into<Self>) -> Self {
        let (first, second) = (first.into(), second.into());
        let mut bytes = format!("{}:", first.0.len()).into_bytes();
        bytes.extend_from_slice(&first.0);
        bytes.extend_from_slice(&second.0);
        Self(bytes)
    }

    /// The key that an extractor of this kind makes, and none of another kind.
    fn of_kind(kind: &str, bytes: &[u8]) -> Self {
        let mut key = format!("{kind}:").into_bytes();
        key.extend_from_slice(bytes);
        Self(key)
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<Subject> for Key {
    fn from(subject: Subject) -> Self {
        Self::new(subject.as_bytes())
    }
}

impl From<Key> for Subject {
    fn from(key: Key) -> Self {
        key.0.into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key")
            .field(&format_args!("{} bytes", self.0.len()))
            .finish()
    }
}

/// What is in the place of the key is none. The text goes to the client: it must not repeat a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError(Cow<'static, str>);

impl KeyError {
    /// An error that tells the client what is wrong.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

impl<F, K> KeyExtractor for F
where
    F: Fn(&mut Parts) -> Option<K> + Send + Sync + 'static,
    K: Into<Key>,
{
    fn extract(
        &self,
        parts: &mut Parts,
    ) -> impl Future<Output = Result<Option<Key>, KeyError>> + Send {
        std::future::ready(Ok(self(parts).map(Into::into)))
    }
}

impl<A: KeyExtractor, B: KeyExtractor> KeyExtractor for (A, B) {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let Some(first) = self.0.extract(parts).await? else {
            return Ok(None);
        };
        let second = self.1.extract(parts).await?;
        Ok(second.map(|second| Key::pair(first, second)))
    }
}

impl<A: KeyExtractor, B: KeyExtractor, C: KeyExtractor> KeyExtractor for (A, B, C) {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let Some(first) = self.0.extract(parts).await? else {
            return Ok(None);
        };
        let Some(second) = self.1.extract(parts).await? else {
            return Ok(None);
        };
        let third = self.2.extract(parts).await?;
        Ok(third.map(|third| Key::pair(first, Key::pair(second, third))))
    }
}

/// Asks one extractor and then another. Made by [`KeyExtractor::or`].
#[derive(Clone, Copy, Debug)]
pub struct Or<A, B> {
    first: A,
    other: B,
}

impl<A: KeyExtractor, B: KeyExtractor> KeyExtractor for Or<A, B> {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        match self.first.extract(parts).await? {
            Some(key) => Ok(Some(key)),
            None => self.other.extract(parts).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_not_the_text_of_its_parts() {
        let pair = |first: &str, second: &str| Key::pair(first, second);
        assert_ne!(pair("a:b", "c"), pair("a", "b:c"));
        assert_ne!(pair("a", "1:b"), pair("a1:", "b"));
        assert_ne!(
            Key::pair(pair("a", "b"), "c"),
            Key::pair("a", pair("b", "c"))
        );
    }

    #[test]
    fn a_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", Key::from("secret")), "Key(6 bytes)");
    }
}
