//! What the scripts are told, and what they answer.

use std::{time::Duration, vec};

use redis_conn::{
    Error, ErrorKind,
    raw::{Reply, ScriptCall},
};

use crate::{
    FenceMode, OwnerId,
    store::{Acquired, Busy, Grant, Holding, Outcome, Seen, record::disagreement},
    terms::{Mode, Seats, Terms, micros},
};

/// Its length has two digits.
const LONGEST_INSTANCE: usize = 99;
/// More, with the time, would have too many digits: some thirty years.
const LONGEST: u64 = 1_000_000_000_000_000;

/// Milliseconds, of which a part counts as one.
fn millis(micros: u64) -> u64 {
    micros.min(LONGEST).div_ceil(1_000)
}

pub(super) fn ttl_millis(terms: &Terms) -> u64 {
    millis(terms.ttl_micros())
}

/// For how long the fence is remembered, in milliseconds.
pub(super) fn memory(terms: &Terms) -> u64 {
    millis(micros(terms.memory()))
}

/// Terms as they are stored: see lua/head.lua.
pub(super) fn packed(terms: &Terms) -> Vec<u8> {
    let seats = match terms.seats {
        Seats::Some(seats) => seats,
        Seats::Any => 0,
    };
    let mode = match terms.mode {
        Mode::Alone => b'x',
        Mode::Together => b's',
    };
    let instance = instance(terms);
    let mut packed = Vec::with_capacity(74 + instance.len());
    packed.extend(digits_of::<10>(seats.into()));
    packed.extend(digits_of::<13>(memory(terms)));
    packed.extend(terms.owner.digits());
    packed.extend(digits_of::<16>(terms.ttl_micros().min(LONGEST)));
    packed.push(mode);
    packed.extend(digits_of::<2>(instance.len() as u64));
    packed.extend(instance.as_bytes());
    packed
}

/// Whether this owner is among the holders of what is stored: see lua/head.lua. Who let go of it last is behind them.
pub(super) fn is_held_by(value: &[u8], owner: OwnerId) -> bool {
    let digits = owner.digits();
    let holders = value.len().checked_sub(digits.len());
    let holders = holders.map_or(&[][..], |end| &value[..end]);
    holders.windows(digits.len()).any(|some| some == digits)
}

/// A number of no more than `N` digits by so many. Each call packs terms, and formatting takes several times as long.
fn digits_of<const N: usize>(mut number: u64) -> [u8; N] {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    digits
}

fn instance(terms: &Terms) -> &str {
    let mut end = terms.instance.len().min(LONGEST_INSTANCE);
    while !terms.instance.is_char_boundary(end) {
        end -= 1;
    }
    terms.instance.get(..end).unwrap_or_default()
}

/// What a script takes of who asks.
pub(super) fn asking<'a>(call: ScriptCall<'a>, terms: &Terms) -> ScriptCall<'a> {
    call.arg(packed(terms))
        .int(memory(terms))
        .arg(match terms.fence {
            FenceMode::Clock => "c",
            FenceMode::Counter => "n",
        })
}

/// An answer as what it is made of.
pub(super) struct Answer(vec::IntoIter<Reply>);

impl Answer {
    pub(super) fn of(reply: Reply) -> Result<Self, Error> {
        match reply.is_list() {
            true => Ok(Self(reply.list()?.into_iter())),
            false => Err(corrupt()),
        }
    }

    fn next(&mut self) -> Result<Reply, Error> {
        self.0.next().ok_or_else(short)
    }

    pub(super) fn int(&mut self) -> Result<i64, Error> {
        self.next()?.int()
    }

    fn number(&mut self) -> Result<u64, Error> {
        u64::try_from(self.int()?).map_err(|_| short())
    }

    fn text(&mut self) -> Result<String, Error> {
        let bytes = self.next()?.bytes()?.ok_or_else(short)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn owner(&mut self) -> Result<OwnerId, Error> {
        OwnerId::parse(&self.text()?).ok_or_else(corrupt)
    }

    /// What came of asking by these terms.
    pub(super) fn acquired(reply: Reply, terms: &Terms) -> Result<Acquired, Error> {
        if !reply.is_list() {
            // The time, which is the fence too.
            let at = digits(reply)?;
            return Ok(Acquired::Granted(Grant { fence: at, at }));
        }
        let mut answer = Self::of(reply)?;
        let kind = answer.int()?;
        answer.rest(kind, terms)
    }

    /// The same, behind what the release met.
    pub(super) fn released(mut self, heir: &Terms) -> Result<(Outcome, Acquired), Error> {
        let first = self.int()?;
        if first < 0 {
            return Err(self.refusal(first, heir));
        }
        let kind = self.int()?;
        Ok((outcome(first)?, self.rest(kind, heir)?))
    }

    fn rest(&mut self, kind: i64, terms: &Terms) -> Result<Acquired, Error> {
        match kind {
            0 => Ok(Acquired::Abandoned),
            1 => Ok(Acquired::Granted(Grant {
                fence: self.number()?,
                at: self.number()?,
            })),
            2 => Ok(Acquired::Busy(Busy {
                remaining: Duration::from_micros(self.number()?),
                at: self.number()?,
                instance: self.text()?,
            })),
            _ => Err(self.refusal(kind, terms)),
        }
    }

    fn refusal(&mut self, kind: i64, terms: &Terms) -> Error {
        match (kind, self.int()) {
            (-2, Ok(held)) => disagreement(seats_of(held), terms.seats),
            _ => corrupt(),
        }
    }

    pub(super) fn seen(mut self) -> Result<Seen, Error> {
        let waiting = usize::try_from(self.int()?).map_err(|_| corrupt())?;
        let mut holders = Vec::new();
        while self.0.len() > 0 {
            holders.push(Holding {
                owner: self.owner()?,
                instance: self.text()?,
                fence: self.number()?,
                remaining: Duration::from_micros(self.number()?),
            });
        }
        Ok(Seen { holders, waiting })
    }

    pub(super) fn owners(mut self) -> Result<Vec<OwnerId>, Error> {
        (0..self.0.len()).map(|_| self.owner()).collect()
    }
}

fn digits(reply: Reply) -> Result<u64, Error> {
    let bytes = reply.bytes()?.ok_or_else(short)?;
    let text = std::str::from_utf8(&bytes).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(short)
}

/// What those were granted that are granted together, if they were.
pub(super) fn granted(reply: Reply) -> Result<Option<Grant>, Error> {
    if reply.is_nil() {
        return Ok(None);
    }
    digits(reply).map(|at| Some(Grant { fence: at, at }))
}

fn seats_of(number: i64) -> Seats {
    match u32::try_from(number) {
        Ok(0) | Err(_) => Seats::Any,
        Ok(seats) => Seats::Some(seats),
    }
}

pub(super) fn outcome(number: i64) -> Result<Outcome, Error> {
    match number {
        0 => Ok(Outcome::Absent),
        1 => Ok(Outcome::Held),
        2 => Ok(Outcome::Other),
        _ => Err(corrupt()),
    }
}

/// When so many were asked together, and of each whether it is done.
pub(super) fn done(reply: Reply, count: usize) -> Result<(u64, Vec<bool>), Error> {
    let [at, done] = reply.array()?;
    let at = digits(at)?;
    let done = done.bytes()?.filter(|done| done.len() == count);
    let done = done.ok_or_else(short)?.into_iter();
    Ok((at, done.map(|letter| letter == b'1').collect()))
}

pub(super) fn corrupt() -> Error {
    let text = "the lock is stored in a layout that this version does not know";
    Error::new(ErrorKind::Corrupt, text)
}

fn short() -> Error {
    let text = "a script of the locks answered less than it should";
    Error::new(ErrorKind::Corrupt, text)
}
