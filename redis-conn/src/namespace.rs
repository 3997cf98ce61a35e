//! Namespaces and keys: two services on one backend never meet.

use std::{fmt, sync::Arc};

use crate::{Error, ErrorKind};

/// A validated namespace: 1 to 32 characters of `[a-z0-9-]`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Namespace(Arc<str>);

impl Namespace {
    pub(crate) const MAX_LEN: usize = 32;

    pub(crate) fn new(name: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > Self::MAX_LEN || !name.chars().all(allowed) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "namespace {name:?}: expected 1 to {} characters of [a-z0-9-]",
                    Self::MAX_LEN
                ),
            ));
        }
        Ok(Self(name.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("tk".into())
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Which crate a key belongs to, and the layout version of what is stored under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The letter of the crate: `b` bus, `c` cache, `l` locks, `r` rate limits, `s` sessions.
    pub letter: char,
    /// The layout version.
    pub version: u8,
}

impl Namespace {
    /// `<namespace>:<letter><version>:{tag}:<rest>`. The tag chooses the cluster slot; it and the rest must be hashed or fixed in code.
    pub(crate) fn key(&self, layout: Layout, tag: &str, rest: &str) -> String {
        debug_assert!(
            !tag.contains(['{', '}']),
            "a hash tag must not contain braces"
        );
        let Layout { letter, version } = layout;
        let version = version.to_string();
        let mut key = String::with_capacity(self.0.len() + tag.len() + rest.len() + 8);
        // Piece by piece: every call makes keys, and formatting takes several times as long.
        for piece in [
            &*self.0,
            ":",
            letter.encode_utf8(&mut [0; 4]),
            &version,
            ":{",
            tag,
            "}:",
            rest,
        ] {
            key.push_str(piece);
        }
        key
    }

    pub(crate) fn channel(&self, name: &str) -> String {
        format!("{}:b1:{name}", self.0)
    }
}
