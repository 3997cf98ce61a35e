//! What a layer further out put into the request extensions.

use std::{
    any::{Any, type_name},
    fmt,
    marker::PhantomData,
};

use http::request::Parts;
use redis_conn::Subject;

use super::{Key, KeyError, KeyExtractor};

/// A key made from a value of the request extensions, such as the user whom a layer further out identified.
///
/// ```
/// use tower_ratelimit_redis::key;
///
/// #[derive(Clone)]
/// struct User {
///     id: u64,
/// }
///
/// let _ = key::Extension::new(|user: &User| user.id.to_string());
/// ```
///
/// The subject, for [`peek`](crate::Limiter::peek) and [`reset`](crate::Limiter::reset), is `extension:` and what the closure
/// made. A request without the value has no key.
#[derive(Clone, Copy)]
pub struct Extension<T, F> {
    key: F,
    value: PhantomData<fn(&T)>,
}

impl<T, F> Extension<T, F> {
    /// The key is what `key` makes of the `T` in the extensions.
    #[must_use]
    pub fn new<K>(key: F) -> Self
    where
        F: Fn(&T) -> K,
        K: Into<Key>,
    {
        let value = PhantomData;
        Self { key, value }
    }
}

impl<T, F, K> KeyExtractor for Extension<T, F>
where
    T: Any + Send + Sync,
    F: Fn(&T) -> K + Send + Sync + 'static,
    K: Into<Key>,
{
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let value = parts.extensions.get::<T>();
        let key = value.map(|value| (self.key)(value).into());
        Ok(key.map(|Key(bytes)| Key::of_kind("extension", &bytes)))
    }
}

impl<T, F> fmt::Debug for Extension<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extension")
            .field("value", &format_args!("{}", type_name::<T>()))
            .finish_non_exhaustive()
    }
}

/// The [`Subject`] in the request extensions, where layers that know who is served put it.
///
/// The subject, for [`peek`](crate::Limiter::peek) and [`reset`](crate::Limiter::reset), is `subject:` and the one in the
/// extensions, such as `subject:user-42`. A request without one has no key.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SubjectExtension {}

impl KeyExtractor for SubjectExtension {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let subject = parts.extensions.get::<Subject>();
        Ok(subject.map(|subject| Key::of_kind("subject", subject.as_bytes())))
    }
}
