//! The bytes by which an embedded store keeps a record outside of the process.
//!
//! A version (1 byte), then all numbers little endian: the last fence (8), until when it is kept (8), whether it was the first (1),
//! the seats (5: whether they are known and bounded, and how many), and the number of holders and of waiters (4 each). A holder is
//! its owner (32 digits), until when and for how long it lasts and its fence (8 each), its mode (1), and the instance. A waiter is
//! the same with a byte for where its fence comes from and its seats in place of the fence, and the channel behind. A text has its
//! length before it (4).

use redis_conn::{Error, ErrorKind};

use super::record::{Holder, Record, Waiter};
use crate::{
    FenceMode, OwnerId,
    terms::{Mode, Seats},
};

pub(super) const VERSION: u8 = 1;

pub(super) fn corrupt() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("what is stored of the lock is no record of layout {VERSION}"),
    )
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    number(&mut bytes, record.fence);
    number(&mut bytes, record.kept);
    bytes.push(record.fresh.into());
    seats(&mut bytes, record.seats);
    count(&mut bytes, record.holders.len());
    count(&mut bytes, record.waiters.len());
    for holder in &record.holders {
        bytes.extend_from_slice(holder.owner.to_string().as_bytes());
        number(&mut bytes, holder.until);
        number(&mut bytes, holder.ttl);
        number(&mut bytes, holder.fence);
        bytes.push(u8::from(holder.mode == Mode::Together));
        text(&mut bytes, &holder.instance);
    }
    for waiter in &record.waiters {
        bytes.extend_from_slice(waiter.owner.to_string().as_bytes());
        number(&mut bytes, waiter.until);
        number(&mut bytes, waiter.ttl);
        bytes.push(u8::from(waiter.fence == FenceMode::Counter));
        bytes.push(u8::from(waiter.mode == Mode::Together));
        seats(&mut bytes, Some(waiter.seats));
        text(&mut bytes, &waiter.instance);
        text(&mut bytes, &waiter.wake);
    }
    bytes
}

fn number(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn count(bytes: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&count.to_le_bytes());
}

fn seats(bytes: &mut Vec<u8>, seats: Option<Seats>) {
    let (known, seats) = match seats {
        None => (0, 0),
        Some(Seats::Some(seats)) => (1, seats),
        Some(Seats::Any) => (2, 0),
    };
    bytes.push(known);
    bytes.extend_from_slice(&seats.to_le_bytes());
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    count(bytes, text.len());
    bytes.extend_from_slice(text.as_bytes());
}

/// # Errors
///
/// `Corrupt` if it is not what [`encode`] has made.
pub(super) fn decode(bytes: &[u8]) -> Result<Record, Error> {
    let mut rest = Rest(bytes);
    let record = rest.record().filter(|_| rest.0.is_empty());
    record.ok_or_else(corrupt)
}

/// What is not read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn record(&mut self) -> Option<Record> {
        if self.byte()? != VERSION {
            return None;
        }
        let (fence, kept) = (self.number()?, self.number()?);
        let (fresh, seats) = (self.flag()?, self.seats()?);
        let (holders, waiters) = (self.count()?, self.count()?);
        Some(Record {
            fence,
            kept,
            fresh,
            seats: seats.known(),
            holders: (0..holders).map(|_| self.holder()).collect::<Option<_>>()?,
            waiters: (0..waiters).map(|_| self.waiter()).collect::<Option<_>>()?,
        })
    }

    fn holder(&mut self) -> Option<Holder> {
        Some(Holder {
            owner: self.owner()?,
            until: self.number()?,
            ttl: self.number()?,
            fence: self.number()?,
            mode: self.mode()?,
            instance: self.text()?,
        })
    }

    fn waiter(&mut self) -> Option<Waiter> {
        Some(Waiter {
            owner: self.owner()?,
            until: self.number()?,
            ttl: self.number()?,
            fence: if self.flag()? {
                FenceMode::Counter
            } else {
                FenceMode::Clock
            },
            mode: self.mode()?,
            seats: self.seats()?.known()?,
            instance: self.text()?,
            wake: self.text()?,
        })
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().copied().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Option<usize> {
        let count = self
            .take(4)?
            .first_chunk()
            .copied()
            .map(u32::from_le_bytes)?;
        // Each is longer than a byte: no more than there are bytes.
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= self.0.len())
    }

    fn mode(&mut self) -> Option<Mode> {
        Some(if self.flag()? {
            Mode::Together
        } else {
            Mode::Alone
        })
    }

    fn seats(&mut self) -> Option<StoredSeats> {
        let known = self.byte()?;
        let seats = self
            .take(4)?
            .first_chunk()
            .copied()
            .map(u32::from_le_bytes)?;
        match known {
            0 => Some(StoredSeats(None)),
            1 => Some(StoredSeats(Some(Seats::Some(seats)))),
            2 => Some(StoredSeats(Some(Seats::Any))),
            _ => None,
        }
    }

    fn owner(&mut self) -> Option<OwnerId> {
        OwnerId::parse(std::str::from_utf8(self.take(32)?).ok()?)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.count()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

/// Seats, if they are known.
struct StoredSeats(Option<Seats>);

impl StoredSeats {
    fn known(self) -> Option<Seats> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let (one, two) = (OwnerId::new(), OwnerId::new());
        Record {
            fence: 1 << 50,
            kept: 7,
            fresh: true,
            seats: Some(Seats::Any),
            holders: vec![Holder {
                owner: one,
                until: 5,
                ttl: 4,
                fence: 3,
                mode: Mode::Together,
                instance: "a:1".to_owned(),
            }],
            waiters: vec![Waiter {
                owner: two,
                until: 9,
                ttl: 8,
                mode: Mode::Alone,
                seats: Seats::Some(3),
                fence: FenceMode::Counter,
                instance: String::new(),
                wake: "locks:0".to_owned(),
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for record in [record(), Record::default()] {
            assert_eq!(decode(&encode(&record)).unwrap(), record);
        }
    }

    #[test]
    fn anything_else_is_corrupt() {
        let bytes = encode(&record());
        for length in 0..bytes.len() {
            let error = decode(&bytes[..length]).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Corrupt);
        }
        let longer = [&*bytes, b"x"].concat();
        assert!(decode(&longer).is_err());
        let mut newer = bytes;
        newer[0] = VERSION + 1;
        assert!(decode(&newer).is_err());
    }
}
