//! What is counted of one subject under one limit, for each algorithm in a file of its own.
//!
//! All of them answer one question: how many units are [`used`](Counter::used) at this moment? A call is admitted if the limit has
//! room for its cost besides. So limits of different algorithms are decided together, and many calls of one moment at once.
//!
//! Stored, a counter is a head and a state, all numbers little endian. The head is its kind (1 byte), the maximum that it was last
//! charged under (4) and its span in microseconds (8). Kind and span say which limit it belongs to. The scripts read and write the same
//! bytes.

pub(crate) mod fixed;
pub(crate) mod gcra;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod sliding;
pub(crate) mod strict;

use std::time::Duration;

use self::{fixed::Fixed, gcra::Gcra, leases::Leases, log::Log, sliding::Sliding, strict::Ring};
use crate::policy::Limit;

/// By which algorithm a limit counts. The number is the one that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    Strict = 1,
    Sliding = 2,
    Gcra = 3,
    Log = 4,
    FixedAligned = 5,
    FixedFirst = 6,
    Leases = 7,
}

impl Kind {
    #[cfg(any(feature = "sqlite", feature = "redis"))]
    const ALL: [Self; 7] = [
        Self::Strict,
        Self::Sliding,
        Self::Gcra,
        Self::Log,
        Self::FixedAligned,
        Self::FixedFirst,
        Self::Leases,
    ];

    #[cfg(any(feature = "sqlite", feature = "redis"))]
    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// The present moment, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// By the clock that decides: that of the store, or the time since boot.
    pub(crate) at: u64,
    /// Since the Unix epoch, which windows of the calendar are aligned to.
    pub(crate) wall: u64,
}

impl Now {
    /// The moment by which a limit of this kind counts.
    fn of(self, kind: Kind) -> u64 {
        match kind {
            Kind::FixedAligned => self.wall,
            _ => self.at,
        }
    }
}

/// What is counted, and by which algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counter {
    kind: Kind,
    /// The maximum when it was last charged under a policy that has this limit.
    max: u32,
    /// The window; the interval of one unit of a GCRA; the lease of a permit.
    span: u64,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Strict(Ring),
    Sliding(Sliding),
    Gcra(Gcra),
    Log(Log),
    Fixed(Fixed),
    Leases(Leases),
}

macro_rules! each_state {
    ($state:expr, $counter:ident => $call:expr) => {
        match $state {
            State::Strict($counter) => $call,
            State::Sliding($counter) => $call,
            State::Gcra($counter) => $call,
            State::Log($counter) => $call,
            State::Fixed($counter) => $call,
            State::Leases($counter) => $call,
        }
    };
}

/// What one charge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) units: u32,
    /// The name of the permit, where units are held.
    pub(crate) permit: u64,
    /// For units that are used later: they count as if charged in the next bucket of a strict window.
    pub(crate) ahead: bool,
}

/// When units were charged, and whether that was to the bucket ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charged {
    pub(crate) at: Now,
    pub(crate) ahead: bool,
}

impl Charged {
    pub(crate) fn at(at: Now) -> Self {
        Self { at, ahead: false }
    }
}

impl Charge {
    pub(crate) fn of(units: u32) -> Self {
        Self {
            units,
            permit: 0,
            ahead: false,
        }
    }
}

impl Counter {
    /// Nothing counted yet.
    pub(crate) fn new(limit: &Limit, now: Now) -> Self {
        let (kind, span) = (limit.kind, limit.span);
        let at = now.of(kind);
        let state = match kind {
            Kind::Strict => State::Strict(Ring::new(span, at)),
            Kind::Sliding => State::Sliding(Sliding::new(span, at)),
            Kind::Gcra => State::Gcra(Gcra::new(span, at)),
            Kind::Log => State::Log(Log::new(span)),
            Kind::FixedAligned => State::Fixed(Fixed::aligned(span, at)),
            Kind::FixedFirst => State::Fixed(Fixed::from_first(span, at)),
            Kind::Leases => State::Leases(Leases::new(span)),
        };
        Self {
            kind,
            max: limit.max,
            span,
            state,
        }
    }

    #[inline]
    pub(crate) fn belongs_to(&self, limit: &Limit) -> bool {
        self.kind == limit.kind && self.span == limit.span
    }

    #[cfg(any(feature = "sqlite", feature = "redis"))]
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.kind == other.kind && self.span == other.span
    }

    pub(crate) fn is_leases(&self) -> bool {
        self.kind == Kind::Leases
    }

    pub(crate) fn max(&self) -> u32 {
        self.max
    }

    pub(crate) fn set_max(&mut self, max: u32) {
        self.max = max;
    }

    /// Forgets what is too old. Tells whether the clock went back, so that this must be stored.
    #[inline]
    pub(crate) fn advance(&mut self, now: Now) -> bool {
        let now = now.of(self.kind);
        each_state!(&mut self.state, counter => counter.advance(now))
    }

    /// How many units count at this moment, to which the counter has been advanced.
    #[inline]
    pub(crate) fn used(&self, now: Now) -> u32 {
        let now = now.of(self.kind);
        each_state!(&self.state, counter => counter.used(now))
    }

    pub(crate) fn is_empty(&self, now: Now) -> bool {
        self.used(now) == 0
    }

    /// Counts without asking.
    #[inline]
    pub(crate) fn charge(&mut self, charge: Charge, now: Now) {
        let now = now.of(self.kind);
        each_state!(&mut self.state, counter => counter.charge(charge, now));
        if let State::Gcra(bucket) = &mut self.state {
            bucket.bound(self.max, now);
        }
    }

    /// Takes units back that were charged then, as far as they still count.
    pub(crate) fn refund(&mut self, units: u32, charged: Charged, now: Now) {
        let (at, now) = (charged.at.of(self.kind), now.of(self.kind));
        match &mut self.state {
            State::Strict(ring) => ring.refund(units, at, charged.ahead),
            State::Sliding(sliding) => sliding.refund(units, at),
            State::Gcra(gcra) => gcra.refund(units, now),
            State::Log(log) => log.refund(units, at),
            State::Fixed(fixed) => fixed.refund(units, at),
            // What is held is released, not refunded.
            State::Leases(_) => {}
        }
    }

    /// How long until at most `most` units count; `None` if nobody can tell.
    #[inline]
    pub(crate) fn until(&self, most: u32, now: Now) -> Option<Duration> {
        let now = now.of(self.kind);
        let until = each_state!(&self.state, counter => counter.until(most, now));
        until.map(Duration::from_micros)
    }

    /// Multiplies what counts by `to` / `from`.
    pub(crate) fn scale(&mut self, to: u32, from: u32, now: Now) {
        let now = now.of(self.kind);
        let scale = |units: u32| {
            let scaled = u64::from(units) * u64::from(to) / u64::from(from.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX)
        };
        match &mut self.state {
            State::Strict(ring) => ring.scale(scale),
            State::Sliding(sliding) => sliding.scale(scale),
            State::Gcra(gcra) => gcra.scale(scale, now),
            State::Log(log) => log.scale(scale),
            State::Fixed(fixed) => fixed.scale(scale, now),
            // A permit is held as a whole.
            State::Leases(_) => {}
        }
    }

    pub(crate) fn leases_mut(&mut self) -> Option<&mut Leases> {
        match &mut self.state {
            State::Leases(leases) => Some(leases),
            _ => None,
        }
    }
}

/// After how many microseconds without a charge nothing is counted any more.
pub(crate) fn lifetime(kind: Kind, span: u64, max: u32) -> u64 {
    match kind {
        Kind::Strict => strict::lifetime(span),
        Kind::Sliding => 2 * span,
        Kind::Gcra => gcra::lifetime(span, max),
        Kind::Log | Kind::FixedAligned | Kind::FixedFirst | Kind::Leases => span,
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
mod stored {
    use super::*;

    impl Counter {
        /// The length of a head.
        pub(crate) const HEAD: usize = 1 + 4 + 8;

        /// Appends the head as it is stored.
        pub(crate) fn encode_head(&self, out: &mut Vec<u8>) {
            out.push(self.kind as u8);
            out.extend_from_slice(&self.max.to_le_bytes());
            out.extend_from_slice(&self.span.to_le_bytes());
        }

        /// Appends the state.
        pub(crate) fn encode_state(&self, out: &mut Vec<u8>) {
            each_state!(&self.state, counter => counter.encode(out));
        }

        /// The counter with this head, whose state it takes off the front of `bytes`; nothing if there cannot be one.
        pub(crate) fn decode(head: [u8; Self::HEAD], bytes: &mut &[u8]) -> Option<Self> {
            let (&[kind], numbers) = head.split_first_chunk()?;
            let (max, span) = numbers.split_first_chunk()?;
            let (kind, max) = (Kind::of(kind)?, u32::from_le_bytes(*max));
            let span = u64::from_le_bytes(span.try_into().ok()?);
            if !(1..=crate::policy::MAX_SPAN).contains(&span) {
                return None;
            }
            let state = match kind {
                Kind::Strict => State::Strict(Ring::decode(span, bytes)?),
                Kind::Sliding => State::Sliding(Sliding::decode(span, bytes)?),
                Kind::Gcra => State::Gcra(Gcra::decode(span, bytes)?),
                Kind::Log => State::Log(Log::decode(span, bytes)?),
                Kind::FixedAligned => State::Fixed(Fixed::decode(span, true, bytes)?),
                Kind::FixedFirst => State::Fixed(Fixed::decode(span, false, bytes)?),
                Kind::Leases => State::Leases(Leases::decode(span, bytes)?),
            };
            Some(Self {
                kind,
                max,
                span,
                state,
            })
        }
    }

    /// Takes a number off the front.
    pub(super) fn u64_of(bytes: &mut &[u8]) -> Option<u64> {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(u64::from_le_bytes(*number))
    }

    pub(super) fn u32_of(bytes: &mut &[u8]) -> Option<u32> {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(u32::from_le_bytes(*number))
    }

    pub(super) fn u16_of(bytes: &mut &[u8]) -> Option<u16> {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(u16::from_le_bytes(*number))
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    /// A state of this kind that is full of such bytes.
    fn any(kind: Kind, fill: u8) -> Vec<u8> {
        match kind {
            Kind::Strict => vec![fill; 156],
            Kind::Sliding | Kind::Gcra => vec![fill; 16],
            // Sums of which none is that of the entry before.
            Kind::Log => [&[2, 0][..], &[fill; 12], &[fill ^ 1; 4], &[fill; 12]].concat(),
            Kind::FixedAligned | Kind::FixedFirst => vec![fill; 12],
            Kind::Leases => [&[2, 0][..], &[fill; 40]].concat(),
        }
    }

    #[test]
    fn any_state_that_can_be_read_can_be_aged_charged_and_given_back() {
        for kind in Kind::ALL {
            for (fill, span) in [(0x00, 1_000), (0x01, 32_007), (0xAB, 1), (0xFF, 60_000_000)] {
                let mut head = [0; Counter::HEAD];
                head[0] = kind as u8;
                head[1..5].copy_from_slice(&9_u32.to_le_bytes());
                head[5..].copy_from_slice(&u64::to_le_bytes(span));
                let state = any(kind, fill);
                let counter = Counter::decode(head, &mut state.as_slice()).unwrap();
                for at in [0, 5_000_000, 1 << 53] {
                    let now = Now { at, wall: at };
                    let mut counter = counter.clone();
                    // Also before it is aged: whoever only looks must not fall either.
                    counter.until(0, now);
                    counter.advance(now);
                    for most in [0, 3, u32::MAX] {
                        counter.until(most, now);
                    }
                    counter.charge(Charge::of(5), now);
                    counter.refund(2, Charged::at(now), now);
                    counter.scale(3, 2, now);
                    counter.encode_state(&mut Vec::new());
                    assert!(
                        counter.until(u32::MAX, now) == Some(Duration::ZERO)
                            || kind == Kind::Leases
                    );
                }
            }
        }
    }
}
