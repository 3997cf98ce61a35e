//! All windows of one subject under one policy, which are stored as one value and decided together.
//!
//! The value is a version byte, the number of rings, and the rings. A stored ring belongs to the limit of the same window; a
//! limit without one begins empty, a ring without a limit goes with the next write.

#[cfg(any(feature = "sqlite", feature = "redis"))]
use redis_conn::{Error, ErrorKind};

use crate::{Policy, policy::Limit, ring::Ring};

/// The layout of the value; also a part of its key.
#[cfg(any(feature = "sqlite", feature = "redis"))]
pub(crate) const VERSION: u8 = 1;

/// One ring for each limit of a policy, in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rings(Box<[Ring]>);

impl Rings {
    /// Nothing counted yet.
    pub(crate) fn new(policy: &Policy, now: u64) -> Self {
        let empty = |limit: &Limit| Ring::new(limit.window, now);
        Self(policy.limits().iter().map(empty).collect())
    }

    /// The rings with their limits.
    pub(crate) fn with<'a>(
        &'a self,
        policy: &'a Policy,
    ) -> impl Iterator<Item = (&'a Ring, &'a Limit)> {
        self.0.iter().zip(policy.limits())
    }

    /// Ages them to `now` and, should they be of another policy of the same name, fits them to this one. Tells
    /// whether the clock went back, so that this is to be stored whatever else happens.
    pub(crate) fn advance(&mut self, policy: &Policy, now: u64) -> bool {
        let limits = policy.limits();
        let same = self.0.len() == limits.len()
            && self
                .with(policy)
                .all(|(ring, limit)| ring.window() == limit.window);
        if !same {
            let stored = |limit: &Limit| self.0.iter().find(|ring| ring.window() == limit.window);
            let fitted = limits.iter().map(|limit| match stored(limit) {
                Some(ring) => ring.clone(),
                None => Ring::new(limit.window, now),
            });
            self.0 = fitted.collect();
        }
        let mut back = false;
        for ring in &mut self.0 {
            back |= ring.advance(now);
        }
        back
    }

    /// Whether every limit has room for `cost`.
    pub(crate) fn fit(&self, policy: &Policy, cost: u32) -> bool {
        self.with(policy)
            .all(|(ring, limit)| ring.fits(cost, limit.max))
    }

    /// Charges `cost` to all rings if all of them have room.
    pub(crate) fn admit(&mut self, policy: &Policy, cost: u32) -> bool {
        let fit = self.fit(policy, cost);
        if fit {
            self.charge(cost);
        }
        fit
    }

    /// Charges `cost` to all rings without asking.
    pub(crate) fn charge(&mut self, cost: u32) {
        for ring in &mut self.0 {
            ring.charge(cost);
        }
    }

    /// The value to store.
    #[cfg(feature = "sqlite")]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + Ring::ENCODED * self.0.len());
        // A policy has at most eight limits.
        out.extend_from_slice(&[VERSION, self.0.len() as u8]);
        for ring in &self.0 {
            ring.encode(&mut out);
        }
        out
    }

    /// Reads a stored value; no bytes are no rings. To be [advanced](Self::advance) before use.
    #[cfg(any(feature = "sqlite", feature = "redis"))]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Ok(Self(Box::default()));
        }
        read(bytes).map(Self).ok_or_else(corrupt)
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
fn read(bytes: &[u8]) -> Option<Box<[Ring]>> {
    let (&[VERSION, count], rest) = bytes.split_first_chunk()? else {
        return None;
    };
    let (rings, rest) = rest.as_chunks::<{ Ring::ENCODED }>();
    if rings.len() != usize::from(count) || !rest.is_empty() {
        return None;
    }
    rings.iter().map(Ring::decode).collect()
}

/// What is stored has no layout of ours. It is never overwritten: whoever wrote it may need it.
#[cfg(any(feature = "sqlite", feature = "redis"))]
pub(crate) fn corrupt() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a rate limit in another layout than version {VERSION}"),
    )
}
