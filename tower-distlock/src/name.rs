//! What a lock is called, and what its keys are made of.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use redis_conn::{Error, ErrorKind};

/// The longest name that is kept as it is in a key.
const PLAIN: usize = 200;
/// The longest name that is taken at all.
const LONGEST: usize = 4_096;
/// So much of a longer name is kept for whoever looks at the keys.
const READABLE: usize = 64;

/// The name of a lock. Clones share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    name: Arc<str>,
    tag: Arc<str>,
}

impl Name {
    /// # Errors
    ///
    /// `Config` if it is empty or longer than 4 KiB.
    pub(crate) fn new(name: &str) -> Result<Self, Error> {
        if name.is_empty() || name.len() > LONGEST {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "a lock name of {} bytes: expected 1 to {LONGEST}",
                    name.len()
                ),
            ));
        }
        Ok(Self {
            name: name.into(),
            tag: tag(name).into(),
        })
    }

    /// As it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.name
    }

    /// What stands for it in logs: a name may be of a user.
    pub(crate) fn digest(&self) -> String {
        let hash = blake3::hash(self.name.as_bytes()).to_hex();
        hash.get(..16).unwrap_or_default().to_owned()
    }

    /// What stands for it in keys: no two names have the same, and none has a brace or a wildcard.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The tag follows from the name.
        self.name.hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.name, f)
    }
}

/// Escaped by percent signs; of what would be too long the beginning, and a hash of all of it.
fn tag(name: &str) -> String {
    let escaped = escape(name.as_bytes());
    if escaped.len() <= PLAIN {
        return escaped;
    }
    // A tilde is escaped in a name, so no short one looks like this.
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let hash = hash.get(..32).unwrap_or_default();
    let readable = escaped.get(..READABLE).unwrap_or_default();
    format!("{readable}~{hash}")
}

/// Escapes a name, or the beginning of one.
pub(crate) fn escape(name: &[u8]) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':' | b'/' | b'@' => {
                escaped.push(char::from(*byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The name that a tag stands for, as far as it is told there.
#[cfg(any(feature = "redis", feature = "sqlite"))]
pub(crate) fn unescape(tag: &str) -> String {
    let mut bytes = Vec::with_capacity(tag.len());
    let mut rest = tag.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = after.first_chunk::<2>().filter(|_| *byte == b'%');
        let digits = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(meant) => {
                bytes.push(meant);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag_of(name: &str) -> String {
        Name::new(name).unwrap().tag().to_owned()
    }

    #[test]
    fn no_name_is_out_of_bounds_but_none_and_too_much() {
        for name in ["", &"x".repeat(4_097)] {
            let error = Name::new(name).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("1 to 4096"), "{error}");
        }
        assert!(Name::new(&"x".repeat(4_096)).is_ok());
    }

    #[test]
    fn a_tag_can_be_read_and_has_neither_braces_nor_wildcards() {
        assert_eq!(tag_of("cron:overdue-tasks"), "cron:overdue-tasks");
        assert_eq!(tag_of("{a}*?[b] ~%"), "%7Ba%7D%2A%3F%5Bb%5D%20%7E%25");
        assert_eq!(tag_of("é"), "%C3%A9");
        for name in ["cron:overdue-tasks", "{a}*?[b] ~%", "é", "%41"] {
            #[cfg(any(feature = "redis", feature = "sqlite"))]
            assert_eq!(unescape(&tag_of(name)), name);
            assert!(!tag_of(name).contains(['{', '}', '*']));
        }
    }

    #[test]
    fn long_names_are_told_apart_by_their_end() {
        let (one, two) = ("x".repeat(4_095) + "1", "x".repeat(4_095) + "2");
        assert_ne!(tag_of(&one), tag_of(&two));
        assert!(tag_of(&one).len() < PLAIN);
        assert!(tag_of(&one).starts_with(&"x".repeat(READABLE)));
        // And a short name cannot look like a long one.
        assert_ne!(tag_of(&tag_of(&one)), tag_of(&one));
    }
}
