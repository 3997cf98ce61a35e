//! The path of a request.

use http::request::Parts;

use super::{Key, KeyError, KeyExtractor};

/// The path of the request as it was sent, without the query: all callers of one path share the limits.
///
/// The subject, for [`peek`](crate::Limiter::peek) and [`reset`](crate::Limiter::reset), is `path:/users/42`; a request for no
/// path, such as a `CONNECT`, has no key. In a router nested in another it is the path that is left.
///
/// `/users/42` and `/users/43` are two subjects, and so are `/a` and `/%61`: who may ask for any path has as many limits as
/// there are paths. Where the route is meant and not the path, use a closure that knows it, such as one that reads the matched
/// path from the request extensions of axum, or mount a layer on each route.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Path {}

impl KeyExtractor for Path {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let path = parts.uri.path();
        Ok((!path.is_empty()).then(|| Key::of_kind("path", path.as_bytes())))
    }
}
