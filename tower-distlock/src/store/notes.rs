//! Notes beside a lock: which slot came last, and what came of it. They outlive the lock, and nobody has to hold it to read them.

use std::time::Duration;

use redis_conn::Error;

use super::AnyStore;
use crate::name::Name;

/// What a note is of. A lock has one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// The last slot that somebody has claimed.
    Claim,
    /// The last run, and its outcome.
    Run,
    /// The greatest fence that was seen.
    Fence,
    /// The greatest fence of a grant by several servers.
    Quorum,
}

impl Kind {
    /// The end of its key.
    #[cfg(any(feature = "redis", feature = "sqlite"))]
    pub(super) fn rest(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Run => "run",
            Self::Fence => "fence",
            Self::Quorum => "quorum",
        }
    }
}

/// What is noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// A number that only grows.
    pub(crate) slot: u64,
    pub(crate) value: Vec<u8>,
}

/// What a store does with notes, each atomically over all processes that share it. A note that is read by nobody's layout is
/// `Corrupt`, and stays as it is.
pub(crate) trait Notes {
    /// Stores this one if none of this slot or a later one is stored; else tells what is. Kept for so long from now on.
    fn advance(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> impl Future<Output = Result<Option<Note>, Error>> + Send;

    /// Stores this one in place of one of the same slot. Tells whether there was one.
    fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// What is noted.
    fn note(
        &self,
        name: &Name,
        kind: Kind,
        deadline: Duration,
    ) -> impl Future<Output = Result<Option<Note>, Error>> + Send;
}

#[cfg(any(feature = "redis", feature = "sqlite"))]
pub(super) mod bytes {
    //! A version (1 byte), the slot (20 digits, so that a script can compare it as a text), the value.

    use redis_conn::{Error, ErrorKind};

    use super::Note;

    pub(in crate::store) const VERSION: u8 = b'1';
    const DIGITS: usize = 20;

    pub(in crate::store) fn digits(slot: u64) -> String {
        format!("{slot:020}")
    }

    pub(in crate::store) fn encode(note: &Note) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(digits(note.slot).as_bytes());
        bytes.extend_from_slice(&note.value);
        bytes
    }

    /// # Errors
    ///
    /// `Corrupt` if it is not what [`encode`] has made.
    pub(in crate::store) fn decode(bytes: &[u8]) -> Result<Note, Error> {
        let read = || {
            let (slot, value) = bytes.strip_prefix(&[VERSION])?.split_at_checked(DIGITS)?;
            let slot = std::str::from_utf8(slot).ok()?;
            slot.bytes()
                .all(|digit| digit.is_ascii_digit())
                .then_some(())?;
            Some(Note {
                slot: slot.parse().ok()?,
                value: value.to_vec(),
            })
        };
        read().ok_or_else(corrupt)
    }

    pub(in crate::store) fn corrupt() -> Error {
        let text = "what is noted beside the lock is in a layout that this version does not know";
        Error::new(ErrorKind::Corrupt, text)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_written_is_read() {
            for (slot, value) in [(0, &b""[..]), (u64::MAX, b"{}")] {
                let value = value.to_vec();
                let note = Note { slot, value };
                assert_eq!(decode(&encode(&note)).unwrap(), note);
            }
            // As it is stored by this version, for those that come after it.
            let stored = b"100001700000000000000{\"outcome\":\"done\"}";
            assert_eq!(decode(stored).unwrap().slot, 1_700_000_000_000_000);
        }

        #[test]
        fn anything_else_is_corrupt() {
            let later = b"200001700000000000000";
            let long = b"199999999999999999999";
            for wrong in [
                &b""[..],
                b"1",
                b"10000170000000000000",
                later,
                long,
                b"1+0001700000000000000",
            ] {
                let error = decode(wrong).unwrap_err();
                assert_eq!(*error.kind(), ErrorKind::Corrupt, "{wrong:?}");
            }
        }
    }
}

impl Notes for AnyStore {
    async fn advance(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> Result<Option<Note>, Error> {
        super::each_store!(self, store => store.advance(name, kind, note, keep, deadline))
    }

    async fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        deadline: Duration,
    ) -> Result<bool, Error> {
        super::each_store!(self, store => store.conclude(name, kind, note, keep, deadline))
    }

    async fn note(
        &self,
        name: &Name,
        kind: Kind,
        deadline: Duration,
    ) -> Result<Option<Note>, Error> {
        super::each_store!(self, store => store.note(name, kind, deadline))
    }
}
