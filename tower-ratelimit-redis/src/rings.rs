//! All windows of one subject under the policies of one name, which are stored as one value and decided together.
//!
//! The value is a version byte, the number of rings, and the rings. A stored ring belongs to the limit of the same window, and a
//! limit without one begins empty. Policies of one name but other windows meet where a deployment changes a policy while both
//! versions serve, or where a name is used twice. Each decides by its own windows, and what any of them admits is charged to the
//! rings of all: were each to drop the rings of the others, none would ever fill. A *foreign* ring, of a window that the policy
//! does not have, is kept behind its own ones until nothing is counted in it any more.

#[cfg(any(feature = "sqlite", feature = "redis"))]
use redis_conn::{Error, ErrorKind};

use crate::{
    Policy,
    policy::Limit,
    ring::{self, Ring},
};

/// The layout of the value; also a part of its key.
#[cfg(any(feature = "sqlite", feature = "redis"))]
pub(crate) const VERSION: u8 = 1;
/// So many foreign rings are charged and stored, the first ones: a value must not grow with every window that ever was.
const MAX_FOREIGN: usize = 8;
#[cfg(any(feature = "sqlite", feature = "redis"))]
const MAX_RINGS: usize = crate::policy::MAX_LIMITS + MAX_FOREIGN;

/// One ring for each limit of a policy, in the same order, and the foreign ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rings(Box<[Ring]>);

impl Rings {
    /// Nothing counted yet.
    pub(crate) fn new(policy: &Policy, now: u64) -> Self {
        let empty = |limit: &Limit| Ring::new(limit.window, now);
        Self(policy.limits().iter().map(empty).collect())
    }

    /// The policy's own rings with their limits.
    pub(crate) fn with<'a>(
        &'a self,
        policy: &'a Policy,
    ) -> impl Iterator<Item = (&'a Ring, &'a Limit)> {
        self.0.iter().zip(policy.limits())
    }

    /// Ages them to `now` and puts the policy's own ones first. No count is lost by that, also if it is all that happens. Tells
    /// whether the clock went back, so that this is to be stored whatever else happens.
    pub(crate) fn advance(&mut self, policy: &Policy, now: u64) -> bool {
        let mut back = false;
        for ring in &mut self.0 {
            back |= ring.advance(now);
        }
        let limits = policy.limits();
        let own = self.0.len() == limits.len()
            && self
                .with(policy)
                .all(|(ring, limit)| ring.window() == limit.window);
        if !own {
            self.0 = self.fitted(limits, now);
        }
        back
    }

    fn fitted(&self, limits: &[Limit], now: u64) -> Box<[Ring]> {
        let stored = |limit: &Limit| self.0.iter().find(|ring| ring.window() == limit.window);
        let own = limits.iter().map(|limit| match stored(limit) {
            Some(ring) => ring.clone(),
            None => Ring::new(limit.window, now),
        });
        let is_own = |ring: &Ring| limits.iter().any(|limit| limit.window == ring.window());
        let foreign = self
            .0
            .iter()
            .filter(|ring| !ring.is_empty() && !is_own(ring));
        own.chain(foreign.cloned()).collect()
    }

    /// Whether every limit of the policy has room for `cost`.
    pub(crate) fn fit(&self, policy: &Policy, cost: u32) -> bool {
        self.with(policy)
            .all(|(ring, limit)| ring.fits(cost, limit.max))
    }

    /// Charges `cost` to all rings if the policy's own ones have room.
    pub(crate) fn admit(&mut self, policy: &Policy, cost: u32) -> bool {
        let fit = self.fit(policy, cost);
        if fit {
            self.charge(policy, cost);
        }
        fit
    }

    /// Charges `cost` to all rings without asking.
    pub(crate) fn charge(&mut self, policy: &Policy, cost: u32) {
        self.bound(policy);
        for ring in &mut self.0 {
            ring.charge(cost);
        }
    }

    /// Lets go of the foreign rings that are too many to be stored.
    pub(crate) fn bound(&mut self, policy: &Policy) {
        let most = policy.limits().len() + MAX_FOREIGN;
        if self.0.len() > most {
            self.0 = self.0[..most].into();
        }
    }

    /// After how many microseconds without a charge nothing is counted any more, whatever the limits.
    pub(crate) fn lifetime(&self) -> u64 {
        let lifetimes = self.0.iter().map(|ring| ring::lifetime(ring.window()));
        lifetimes.max().unwrap_or_default()
    }

    /// The value to store; they are [bounded](Self::bound).
    #[cfg(feature = "sqlite")]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 + Ring::ENCODED * self.0.len());
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
    let count = usize::from(count);
    if !(1..=MAX_RINGS).contains(&count) || rings.len() != count || !rest.is_empty() {
        return None;
    }
    let rings: Box<[Ring]> = rings.iter().map(Ring::decode).collect::<Option<_>>()?;
    let twice = |at: usize| {
        rings[..at]
            .iter()
            .any(|ring| ring.window() == rings[at].window())
    };
    (!(1..count).any(twice)).then_some(rings)
}

/// What is stored has no layout of ours. It is never overwritten: whoever wrote it may need it.
#[cfg(any(feature = "sqlite", feature = "redis"))]
pub(crate) fn corrupt() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a rate limit in another layout than version {VERSION}"),
    )
}
