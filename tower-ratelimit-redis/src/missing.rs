//! Requests without a key.

/// What happens to a request that has no key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissingKey {
    /// All of them share the limits of one key, which no request with a key has.
    #[default]
    Shared,
    /// It passes, uncounted.
    Skip,
    /// It is answered with 400.
    Reject,
    /// It is answered with 401: the key is what the caller proves itself by.
    Unauthorized {
        /// The field `WWW-Authenticate` of the answer, which tells how, such as `Bearer`.
        challenge: &'static str,
    },
}
