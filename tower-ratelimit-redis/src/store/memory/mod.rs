//! The in-process store: for the memory backend, and for the fallback of the others.

mod shard;

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis_conn::{Clock, Error, Subject};

use self::shard::{Counted, Key, Shard, goes_by_calendar};
use super::{Asked, Permits, Store};
use crate::{
    Decision, Policy,
    counter::{Charge, Charged, Now},
    counters::Counters,
};

const SHARDS: usize = 64;
/// The longest subject that is kept as it is.
const MAX_SUBJECT: usize = 64;
/// Counts by policy and subject, in shards with a lock each.
///
/// It holds a bounded number of subjects. None is forgotten before its counts have expired, or a refused client could make
/// room for itself by inventing others; so when a shard is full, newcomers share one entry for each policy.
pub(crate) struct MemoryStore {
    clock: Arc<dyn Clock>,
    capacity: usize,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
}

impl MemoryStore {
    /// A store for about `capacity` subjects.
    pub(crate) fn new(clock: Arc<dyn Clock>, capacity: usize) -> Self {
        Self {
            clock,
            capacity: capacity.div_ceil(SHARDS),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Decides at once. This is all of [`Store::decide`] but its being async.
    pub(crate) fn decide_now(&self, policy: &Policy, subject: &Subject, asked: Asked) -> Decision {
        let Asked { ask, charge } = asked;
        if charge.units == 0 {
            return self.look_now(policy, subject, 0);
        }
        self.with_entry(policy, subject, |counted, now| {
            counted.counters.advance(policy, now);
            let granted = counted.counters.decide(policy, ask, charge, now);
            Decision::new(policy, &counted.counters, now, asked.least(), granted)
        })
    }

    /// Counts a call that another store has admitted.
    pub(crate) fn charge(&self, policy: &Policy, subject: &Subject, charge: Charge) {
        if charge.units > 0 {
            self.with_entry(policy, subject, |counted, now| {
                counted.counters.advance(policy, now);
                counted.counters.charge(policy, charge, now);
            });
        }
    }

    /// Takes back what was charged lately, whenever that was: where another store decides, this one need not be exact.
    pub(crate) fn refund_now(&self, policy: &Policy, subject: &Subject, units: u32) {
        self.with_known(policy, subject, |counted, now| {
            counted.counters.age(now);
            counted.counters.refund(units, Charged::at(now), now);
        });
    }

    pub(crate) fn block_now(&self, policy: &Policy, subject: &Subject, time: Duration) {
        // In an entry of its own, also where there is no room: who shares one is not to be blocked with it.
        self.with_entry_within(usize::MAX, policy, subject, |counted, now| {
            counted.counters.block(time, now);
        });
    }

    pub(crate) fn permits_now(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
    ) -> Vec<bool> {
        let held = self.with_known(policy, subject, |counted, now| {
            counted.counters.age(now);
            let held = names
                .iter()
                .map(|name| counted.counters.hold(policy, what, *name, now));
            held.collect()
        });
        held.unwrap_or_else(|| vec![false; names.len()])
    }

    pub(crate) fn forget(&self, policy: &Policy, subject: &Subject) {
        self.with_key(subject, |key| {
            if let Some(table) = self.shard(key).table_mut(policy) {
                table.remove(key);
            }
        });
    }

    /// What a call of this cost would meet. It makes no entry.
    pub(crate) fn look_now(&self, policy: &Policy, subject: &Subject, cost: u32) -> Decision {
        self.with_key(subject, |key| {
            let shard = self.shard(key);
            let table = shard.table(policy);
            let calendar = goes_by_calendar(policy) || table.is_some_and(|table| table.calendar);
            let now = self.now(calendar);
            let stored = table.and_then(|table| table.find(key));
            let mut counters = match stored {
                Some(counted) => counted.counters.clone(),
                None => Counters::new(policy, now),
            };
            counters.advance(policy, now);
            Decision::look(policy, &counters, now, cost)
        })
    }

    /// The wall clock is read where something goes by it, which is rare.
    fn now(&self, calendar: bool) -> Now {
        let at = self.clock.boot_micros();
        let wall = if calendar {
            self.clock.wall_micros()
        } else {
            at
        };
        Now { at, wall }
    }

    fn with_entry<T>(
        &self,
        policy: &Policy,
        subject: &Subject,
        act: impl FnOnce(&mut Counted, Now) -> T,
    ) -> T {
        self.with_entry_within(self.capacity, policy, subject, act)
    }

    fn with_entry_within<T>(
        &self,
        capacity: usize,
        policy: &Policy,
        subject: &Subject,
        act: impl FnOnce(&mut Counted, Now) -> T,
    ) -> T {
        self.with_key(subject, |key| {
            let mut shard = self.shard(key);
            let place = shard.place(policy);
            // Read under the lock, or a later holder could see an earlier time and take it for a clock that went back.
            let now = self.now(shard.tables[place].calendar);
            shard.with_counted(place, policy, key, capacity, now, |counted| {
                let outcome = act(counted, now);
                counted.expires = counted.counters.expires(now);
                outcome
            })
        })
    }

    /// Acts on what is counted of a subject, if anything is.
    fn with_known<T>(
        &self,
        policy: &Policy,
        subject: &Subject,
        act: impl FnOnce(&mut Counted, Now) -> T,
    ) -> Option<T> {
        self.with_key(subject, |key| {
            let mut shard = self.shard(key);
            let table = shard.table_mut(policy)?;
            let now = self.now(table.calendar);
            let counted = table.find_mut(key)?;
            let outcome = act(counted, now);
            counted.expires = counted.counters.expires(now);
            Some(outcome)
        })
    }

    fn with_key<T>(&self, subject: &Subject, act: impl FnOnce(Key<'_>) -> T) -> T {
        short(subject, |name| {
            let hash = self.hasher.hash_one(name);
            act(Key { hash, name })
        })
    }

    fn shard(&self, key: Key<'_>) -> MutexGuard<'_, Shard> {
        // The tables go by the lowest and the highest bits.
        let shard = &self.shards[(key.hash >> 32) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on the bytes to file the subject under. Long ones become a digest, which is longer than any subject that is kept as
/// it is and so equals none of them: memory is bounded also where clients choose their keys.
fn short<T>(subject: &Subject, act: impl FnOnce(&[u8]) -> T) -> T {
    let bytes = subject.as_bytes();
    if bytes.len() <= MAX_SUBJECT {
        return act(bytes);
    }
    let mut digest = [0; MAX_SUBJECT + 1];
    blake3::Hasher::new()
        .update(bytes)
        .finalize_xof()
        .fill(&mut digest);
    act(&digest)
}

impl Store for MemoryStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        _: Duration,
    ) -> Result<Decision, Error> {
        Ok(self.decide_now(policy, subject, asked))
    }

    async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        _: Duration,
    ) -> Result<Decision, Error> {
        Ok(self.look_now(policy, subject, cost))
    }

    async fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
        _: Duration,
    ) -> Result<(), Error> {
        self.with_known(policy, subject, |counted, now| {
            counted.counters.age(now);
            counted.counters.refund(units, charged, now);
        });
        Ok(())
    }

    async fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
        _: Duration,
    ) -> Result<(), Error> {
        self.block_now(policy, subject, time);
        Ok(())
    }

    async fn permits(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
        _: Duration,
    ) -> Result<Vec<bool>, Error> {
        Ok(self.permits_now(policy, subject, what, names))
    }

    async fn reset(&self, policy: &Policy, subject: &Subject, _: Duration) -> Result<(), Error> {
        self.forget(policy, subject);
        Ok(())
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("capacity", &(self.capacity * SHARDS))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::ManualClock;

    use super::{shard::SWEEP_FROM, *};
    use crate::counters::Ask;

    fn policy(max: u64) -> Policy {
        let policy = Policy::new("test").limit(max, Duration::from_secs(1));
        policy.build().unwrap()
    }

    fn all(units: u32) -> Asked {
        Asked::new(Ask::All, Charge::of(units))
    }

    /// A store with one place in each shard.
    fn tiny() -> (MemoryStore, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        (MemoryStore::new(Arc::clone(&clock) as _, SHARDS), clock)
    }

    fn entries(store: &MemoryStore) -> usize {
        let held = |shard: &Mutex<Shard>| shard.lock().unwrap().held();
        store.shards.iter().map(held).sum()
    }

    /// The subjects of one shard: more of them than fit.
    fn crowd(store: &MemoryStore) -> Vec<Subject> {
        let shard = |name: &str| (store.hasher.hash_one(name.as_bytes()) >> 32) as usize % SHARDS;
        let names = (0..).map(|n| format!("subject {n}"));
        let crowd = names.filter(|name| shard(name) == 0).take(5);
        crowd.map(Subject::from).collect()
    }

    #[test]
    fn a_refused_subject_is_not_pushed_out_by_newcomers() {
        let (store, _) = tiny();
        let (policy, crowd) = (policy(1), crowd(&store));
        assert!(store.decide_now(&policy, &crowd[0], all(1)).is_allowed());
        for newcomer in &crowd[1..] {
            store.decide_now(&policy, newcomer, all(1));
            assert!(!store.decide_now(&policy, &crowd[0], all(1)).is_allowed());
        }
        assert!(entries(&store) <= SHARDS);
    }

    #[test]
    fn newcomers_of_a_full_shard_share_their_counts() {
        let (store, clock) = tiny();
        let (policy, crowd) = (policy(2), crowd(&store));
        for subject in &crowd[..3] {
            assert!(store.decide_now(&policy, subject, all(1)).is_allowed());
        }
        for subject in &crowd[1..] {
            assert!(!store.look_now(&policy, subject, 1).is_allowed());
        }

        // A place becomes free; what was charged together stays charged.
        store.forget(&policy, &crowd[0]);
        assert!(!store.decide_now(&policy, &crowd[1], all(1)).is_allowed());
        clock.advance(Duration::from_secs(2));
        assert!(store.decide_now(&policy, &crowd[1], all(2)).is_allowed());
    }

    #[test]
    fn a_block_where_there_is_no_room_blocks_nobody_else() {
        let (store, _) = tiny();
        let (policy, crowd) = (policy(5), crowd(&store));
        for subject in &crowd[..2] {
            store.decide_now(&policy, subject, all(1));
        }
        store.block_now(&policy, &crowd[1], Duration::from_secs(3_600));
        assert!(store.look_now(&policy, &crowd[1], 1).is_blocked());
        assert!(!store.look_now(&policy, &crowd[2], 1).is_blocked());
        store.forget(&policy, &crowd[1]);
        assert!(!store.look_now(&policy, &crowd[1], 1).is_blocked());
    }

    #[test]
    fn what_has_expired_makes_room() {
        let (store, clock) = tiny();
        let policy = policy(1);
        for round in 0..50 {
            for n in 0..1_000 {
                let subject = Subject::from(format!("{round} {n}"));
                store.decide_now(&policy, &subject, all(1));
            }
            clock.advance(Duration::from_secs(2));
            let own = Subject::from(format!("alone in round {round}"));
            assert!(store.decide_now(&policy, &own, all(1)).is_allowed());
        }
        assert!(entries(&store) <= SHARDS);
    }

    #[test]
    fn a_flood_on_one_policy_leaves_room_for_others_when_it_has_expired() {
        let (store, clock) = tiny();
        let (flooded, crowd) = (policy(1), crowd(&store));
        let other = Policy::new("other").limit(1, Duration::from_secs(1));
        let other = other.build().unwrap();
        store.decide_now(&flooded, &crowd[0], all(1));
        clock.advance(Duration::from_secs(2));
        assert!(store.decide_now(&other, &crowd[1], all(1)).is_allowed());
        clock.advance(Duration::from_secs(2));
        assert!(store.decide_now(&flooded, &crowd[2], all(1)).is_allowed());
        // An entry of its own, and not one that all newcomers share.
        assert!(store.look_now(&flooded, &crowd[3], 1).is_allowed());
        assert_eq!(entries(&store), 1);
    }

    #[test]
    fn who_is_charged_again_is_not_forgotten_with_the_first_charge() {
        let (store, clock) = tiny();
        let (policy, crowd) = (policy(2), crowd(&store));
        store.decide_now(&policy, &crowd[0], all(1));
        store.charge(&policy, &crowd[0], Charge::of(0));
        clock.advance(Duration::from_millis(900));
        store.decide_now(&policy, &crowd[0], all(1));
        clock.advance(Duration::from_millis(900));
        store.charge(&policy, &crowd[0], Charge::of(1));
        // Newcomers have the full shard swept.
        store.decide_now(&policy, &crowd[1], all(1));
        assert!(!store.look_now(&policy, &crowd[0], 1).is_allowed());
        clock.advance(Duration::from_millis(900));
        store.decide_now(&policy, &crowd[2], all(1));
        let left = store.look_now(&policy, &crowd[0], 1);
        assert_eq!(left.limits()[0].remaining, 1, "charged 0.9 s ago");
    }

    #[test]
    fn what_newcomers_share_expires_with_its_last_charge() {
        let (store, clock) = tiny();
        let (policy, crowd) = (policy(2), crowd(&store));
        let keep = || store.charge(&policy, &crowd[0], Charge::of(1));
        keep();
        store.decide_now(&policy, &crowd[1], all(1));
        clock.advance(Duration::from_millis(900));
        keep();
        store.decide_now(&policy, &crowd[2], all(1));
        clock.advance(Duration::from_millis(900));
        keep();
        assert!(store.decide_now(&policy, &crowd[3], all(1)).is_allowed());
        assert!(!store.decide_now(&policy, &crowd[4], all(1)).is_allowed());
        clock.advance(Duration::from_millis(1_100));
        store.forget(&policy, &crowd[0]);
        // A place is free, and nothing shared is left to begin with.
        assert!(store.decide_now(&policy, &crowd[4], all(2)).is_allowed());
        let shared = |key: Key<'_>| {
            let shard = store.shard(key);
            shard.table(&policy).unwrap().overflow.is_some()
        };
        assert!(!store.with_key(&crowd[4], shared));
    }

    /// Reads, before it tells the time, whether the shard of all of this is locked.
    #[derive(Debug, Default)]
    struct LockedClock {
        store: std::sync::OnceLock<std::sync::Weak<MemoryStore>>,
    }

    impl Clock for LockedClock {
        fn boot_micros(&self) -> u64 {
            let store = self.store.get().and_then(std::sync::Weak::upgrade);
            let free = |shard: &Mutex<Shard>| shard.try_lock().is_ok();
            if let Some(store) = store {
                assert!(!store.shards.iter().all(free), "read before the lock");
            }
            1_000_000_000
        }

        fn wall_micros(&self) -> u64 {
            0
        }
    }

    #[test]
    fn the_time_is_read_under_the_lock() {
        let clock = Arc::new(LockedClock::default());
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _, SHARDS));
        clock.store.set(Arc::downgrade(&store)).unwrap();
        store.decide_now(&policy(1), &Subject::from("a"), all(1));
        store.look_now(&policy(1), &Subject::from("a"), 1);
        store.charge(&policy(1), &Subject::from("a"), Charge::of(1));
    }

    #[test]
    fn expired_entries_do_not_pile_up_below_the_capacity() {
        let clock = Arc::new(ManualClock::new(0));
        let store = MemoryStore::new(Arc::clone(&clock) as _, 1_000_000);
        let policy = policy(1);
        for n in 0..100_000_u32 {
            store.decide_now(&policy, &Subject::new(n.to_le_bytes()), all(1));
            clock.advance(Duration::from_millis(1));
        }
        // About a thousand are live at any time.
        assert!(entries(&store) < 4 * SWEEP_FROM * SHARDS);
    }

    #[test]
    fn a_look_makes_no_entry() {
        let (store, _) = tiny();
        store.look_now(&policy(1), &Subject::from("a"), 1);
        store.decide_now(&policy(1), &Subject::from("a"), all(0));
        assert_eq!(entries(&store), 0);
    }

    #[test]
    fn long_subjects_are_apart_and_stored_short() {
        let (store, _) = tiny();
        let long = |last: char| Subject::from(format!("{}{last}", "x".repeat(10_000)));
        let policy = policy(1);
        assert!(store.decide_now(&policy, &long('a'), all(1)).is_allowed());
        assert!(!store.decide_now(&policy, &long('a'), all(1)).is_allowed());
        assert!(short(&long('a'), |name| name.to_owned()) != short(&long('b'), <[u8]>::to_owned));
        assert_eq!(short(&long('a'), <[u8]>::len), 65);
    }
}
