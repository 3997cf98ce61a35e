//! All that is counted of one subject under the policies of one name. It is stored as one value and decided at once.
//!
//! The value is a head and the counters. A stored counter belongs to the limit of the same kind and span, and a limit without one
//! begins empty. Policies of one name but other limits meet where a deployment changes a policy while both versions serve, or where a
//! name is used twice. Each decides by its own limits, and what any of them admits is charged to the counters of all: were each to
//! drop those of the others, none would ever fill. A *foreign* counter, of a limit that the policy does not have, is kept behind its
//! own ones until nothing is counted in it any more.
//!
//! The head is the version of the layout (1 byte), the number of counters (1), the revision of the policy (4), for how many
//! milliseconds the value is kept after a charge, and as long as the last block at least (8), and until when the subject is blocked, in
//! microseconds (8); all little endian. The
//! heads of all counters follow, then their states: so whoever is told what stands before the states knows the value by that.

use std::time::Duration;

#[cfg(any(feature = "sqlite", feature = "redis"))]
use redis_conn::{Error, ErrorKind};

use crate::{
    Policy, Revise,
    counter::{Charge, Charged, Counter, Kind, Now, leases::Leases},
    policy::Limit,
};

/// The layout of the value; also a part of its key.
#[cfg(any(feature = "sqlite", feature = "redis"))]
pub(crate) const VERSION: u8 = 1;
/// So many foreign counters are charged and stored, the first ones: a value must not grow with every limit that ever was.
const MAX_FOREIGN: usize = 8;

/// One counter for each limit of a policy, in the same order, and the foreign ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    revision: u32,
    /// For how many milliseconds after a charge something may still count.
    keep: u64,
    /// Until when every call is refused, by the clock that decides.
    blocked: u64,
    list: Box<[Counter]>,
}

/// How a call is to be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Admitted as a whole or not at all.
    All,
    /// As many units as there is room for.
    AtMost,
    /// Charged whatever the limits: it has happened already.
    Anyway,
}

impl Counters {
    pub(crate) fn new(policy: &Policy, now: Now) -> Self {
        let empty = |limit: &Limit| Counter::new(limit, now);
        Self {
            revision: policy.revision(),
            keep: policy.keep(),
            blocked: 0,
            list: policy.limits().iter().map(empty).collect(),
        }
    }

    /// The policy's own counters with their limits.
    pub(crate) fn with<'a>(
        &'a self,
        policy: &'a Policy,
    ) -> impl Iterator<Item = (&'a Counter, &'a Limit)> {
        self.list.iter().zip(policy.limits())
    }

    /// Ages them to `now`. Tells whether the clock went back, so that this must be stored whatever else happens.
    pub(crate) fn age(&mut self, now: Now) -> bool {
        let mut back = self.age_block(now);
        for counter in &mut self.list {
            back |= counter.advance(now);
        }
        back
    }

    /// No block is longer than its value is kept: else the clock has gone back since.
    fn age_block(&mut self, now: Now) -> bool {
        let longest = now.at.saturating_add(self.keep.saturating_mul(1_000));
        let back = self.blocked > longest;
        self.blocked = self.blocked.min(longest);
        back
    }

    /// Ages them to `now` and puts the policy's own ones first; where the policy has a higher revision than what is stored, its
    /// change is applied. Tells whether this must be stored whatever else happens: the clock went back, or a revision changed them.
    pub(crate) fn advance(&mut self, policy: &Policy, now: Now) -> bool {
        let mut changed = self.age(now);
        if policy.revision() > self.revision {
            changed |= self.revise(policy, now);
        }
        let limits = policy.limits();
        let own = self.list.len() == limits.len()
            && self
                .with(policy)
                .all(|(counter, limit)| counter.belongs_to(limit));
        if !own {
            self.list = self.fitted(limits, now);
        }
        // What was charged under another maximum may count for longer than under this one.
        let ended = self.blocked > 0 && self.blocked <= now.at;
        // By it a block tells how long it was meant to be.
        let other = self.list.len() > limits.len() || (self.blocked > 0 && !ended);
        self.keep = match other || (own && !ended) {
            true => policy.keep().max(self.keep),
            false => policy.keep(),
        };
        if ended {
            self.blocked = 0;
        }
        changed
    }

    /// Begins the revision of the policy. One that keeps all begins with the first charge.
    fn revise(&mut self, policy: &Policy, now: Now) -> bool {
        match policy.on_revision() {
            Revise::Keep => return false,
            // A permit is held, whatever the revision.
            Revise::Reset => {
                let list = std::mem::take(&mut self.list).into_vec();
                self.list = list.into_iter().filter(Counter::is_leases).collect();
            }
            Revise::Proportional => {
                for counter in &mut self.list {
                    let mut own = policy.limits().iter();
                    if let Some(limit) = own.find(|limit| counter.belongs_to(limit)) {
                        counter.scale(limit.max, counter.max(), now);
                        // What is counted is a part of that from now on.
                        counter.set_max(limit.max);
                    }
                }
            }
        }
        self.revision = policy.revision();
        true
    }

    fn fitted(&self, limits: &[Limit], now: Now) -> Box<[Counter]> {
        let own = limits.iter().map(|limit| {
            let stored = self.list.iter().find(|counter| counter.belongs_to(limit));
            stored.map_or_else(|| Counter::new(limit, now), Counter::clone)
        });
        let is_own = |counter: &Counter| limits.iter().any(|limit| counter.belongs_to(limit));
        let foreign = self
            .list
            .iter()
            .filter(|counter| !is_own(counter) && !counter.is_empty(now));
        own.chain(foreign.cloned()).collect()
    }

    /// How many units every limit of the policy has room for.
    pub(crate) fn room(&self, policy: &Policy, now: Now) -> u32 {
        if self.blocked > now.at {
            return 0;
        }
        let room =
            |(counter, limit): (&Counter, &Limit)| limit.max.saturating_sub(counter.used(now));
        self.with(policy).map(room).min().unwrap_or(u32::MAX)
    }

    /// Whether a call of this cost would be admitted. One of cost 0 is where no more than the limit is in use.
    pub(crate) fn fit(&self, policy: &Policy, cost: u32, now: Now) -> bool {
        let fits = |(counter, limit): (&Counter, &Limit)| {
            u64::from(counter.used(now)) + u64::from(cost) <= u64::from(limit.max)
        };
        self.blocked <= now.at && self.with(policy).all(fits)
    }

    /// Decides, and charges what is granted to all counters. Tells how many units that are.
    pub(crate) fn decide(&mut self, policy: &Policy, ask: Ask, charge: Charge, now: Now) -> u32 {
        let granted = match (ask, self.room(policy, now)) {
            (Ask::All, room) if charge.units > room => 0,
            (Ask::AtMost, room) => charge.units.min(room),
            (Ask::All | Ask::Anyway, _) => charge.units,
        };
        if granted > 0 {
            let units = granted;
            self.charge(policy, Charge { units, ..charge }, now);
        }
        granted
    }

    /// Charges all counters without asking.
    pub(crate) fn charge(&mut self, policy: &Policy, charge: Charge, now: Now) {
        self.bound(policy);
        let revision = self.revision;
        self.revision = revision.max(policy.revision());
        for (at, counter) in self.list.iter_mut().enumerate() {
            match policy.limits().get(at) {
                // Whoever has an older revision leaves alone what the newer one goes by. Nobody goes by a counter of nothing.
                Some(limit) if policy.revision() >= revision || counter.is_empty(now) => {
                    counter.set_max(limit.max);
                }
                // Nobody releases a permit of a policy that has none.
                None if counter.is_leases() => continue,
                _ => {}
            }
            counter.charge(charge, now);
        }
    }

    /// Takes units back that were charged then.
    pub(crate) fn refund(&mut self, units: u32, charged: Charged, now: Now) {
        for counter in &mut self.list {
            counter.refund(units, charged, now);
        }
    }

    /// Refuses every call for so long; no time lifts that.
    pub(crate) fn block(&mut self, time: Duration, now: Now) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.blocked = match time {
            0 => 0,
            time => now.at.saturating_add(time),
        };
        self.keep = self.keep.max(time.div_ceil(1_000));
    }

    /// For how long every call is refused.
    pub(crate) fn blocked_for(&self, now: Now) -> Option<Duration> {
        let left = self.blocked.saturating_sub(now.at);
        (left > 0).then(|| Duration::from_micros(left))
    }

    /// The permits of the policy, if it has a limit of them and any was ever held.
    pub(crate) fn leases_mut(&mut self, policy: &Policy) -> Option<&mut Leases> {
        let limit = policy
            .limits()
            .iter()
            .find(|limit| limit.kind == Kind::Leases)?;
        let mut counters = self.list.iter_mut();
        counters
            .find(|counter| counter.belongs_to(limit))?
            .leases_mut()
    }

    /// Whether nothing was ever counted.
    #[cfg(feature = "sqlite")]
    pub(crate) fn is_new(&self) -> bool {
        self.list.is_empty()
    }

    /// Lets go of the foreign counters that are too many to be stored.
    pub(crate) fn bound(&mut self, policy: &Policy) {
        let most = policy.limits().len() + MAX_FOREIGN;
        if self.list.len() > most {
            self.list = self.list[..most].into();
        }
    }

    /// From when on nothing is counted any more, in microseconds of the clock that decides.
    pub(crate) fn expires(&self, now: Now) -> u64 {
        now.at
            .saturating_add(self.keep.saturating_mul(1_000))
            .max(self.blocked)
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
impl Counters {
    const MAX: usize = crate::policy::MAX_LIMITS + MAX_FOREIGN;

    /// The value to store; it is [bounded](Self::bound).
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(22 + 169 * self.list.len());
        out.extend_from_slice(&[VERSION, self.list.len() as u8]);
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.keep.to_le_bytes());
        out.extend_from_slice(&self.blocked.to_le_bytes());
        for counter in &self.list {
            counter.encode_head(&mut out);
        }
        for counter in &self.list {
            counter.encode_state(&mut out);
        }
        out
    }

    /// Reads a stored value; no bytes are nothing counted. To be [advanced](Self::advance) before use.
    pub(crate) fn decode(bytes: &[u8], policy: &Policy) -> Result<Self, Error> {
        if bytes.is_empty() {
            let revision = policy.revision();
            return Ok(Self {
                revision,
                keep: policy.keep(),
                ..Self::default()
            });
        }
        read(bytes).ok_or_else(corrupt)
    }
}

#[cfg(any(feature = "sqlite", feature = "redis"))]
fn read(bytes: &[u8]) -> Option<Counters> {
    let (&[VERSION, count], rest) = bytes.split_first_chunk()? else {
        return None;
    };
    let (revision, rest) = rest.split_first_chunk()?;
    let (keep, rest) = rest.split_first_chunk()?;
    let (blocked, rest) = rest.split_first_chunk()?;
    if usize::from(count) > Counters::MAX {
        return None;
    }
    let (heads, mut rest) = rest.split_at_checked(usize::from(count) * Counter::HEAD)?;
    let (heads, _) = heads.as_chunks();
    let mut list = Vec::with_capacity(heads.len());
    for head in heads {
        let counter = Counter::decode(*head, &mut rest)?;
        if list.iter().any(|other| counter.is_same_as(other)) {
            return None;
        }
        list.push(counter);
    }
    rest.is_empty().then(|| Counters {
        revision: u32::from_le_bytes(*revision),
        keep: u64::from_le_bytes(*keep),
        blocked: u64::from_le_bytes(*blocked),
        list: list.into(),
    })
}

/// What is stored has no layout of ours. It is never overwritten: whoever wrote it may need it.
#[cfg(any(feature = "sqlite", feature = "redis"))]
pub(crate) fn corrupt() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("a rate limit in another layout than version {VERSION}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Algorithm;

    /// A bucket that refills by one a second.
    fn bucket(burst: u64) -> Policy {
        let seconds = Duration::from_secs(burst);
        let policy = Policy::new("test").limit_by(Algorithm::Gcra { burst }, burst, seconds);
        policy.build().unwrap()
    }

    #[test]
    fn a_value_is_kept_for_as_long_as_the_greatest_maximum_needs() {
        let (small, large) = (bucket(10), bucket(1_000));
        let now = Now { at: 1, wall: 1 };
        let mut counters = Counters::new(&small, now);
        for policy in [&large, &small] {
            counters.advance(policy, now);
            counters.decide(policy, Ask::AtMost, Charge::of(900), now);
            let lasts = counters.expires(now) - now.at;
            assert!(lasts >= large.keep() * 1_000, "{lasts}");
        }
    }
}
