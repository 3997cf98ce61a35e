//! What this process knows of subjects: a bounded number of them.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Mutex as AsyncMutex;

use super::Name;

const SHARDS: usize = 64;
/// How long, in microseconds, a full shard is not swept again: it may be in vain.
const SWEEP_PAUSE: u64 = 1_000_000;

pub(super) struct Table<T> {
    capacity: usize,
    hasher: RandomState,
    shards: Box<[Mutex<Shard<T>>]>,
}

struct Shard<T> {
    slots: HashMap<Name, Slot<T>>,
    swept: u64,
}

struct Slot<T> {
    /// One at a time asks the store.
    turn: Arc<AsyncMutex<()>>,
    known: Option<T>,
    /// How often it was forgotten.
    forgotten: u64,
}

/// What is known of a subject.
pub(super) trait Known {
    /// Whether there is no more use for it.
    fn is_over(&self, now: u64) -> bool;

    /// When the store is to hear of it, in microseconds since boot.
    fn due(&self) -> u64;
}

impl<T: Known> Table<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let shard = || Shard {
            slots: HashMap::new(),
            swept: 0,
        };
        Self {
            capacity: capacity.div_ceil(SHARDS),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
        }
    }

    /// Acts on what is known of a subject.
    pub(super) fn with<R>(&self, name: &Name, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.slot(name, |slot| slot.known.as_mut().map(act))?
    }

    /// Changes what is known of a subject that somebody has the turn of.
    pub(super) fn put(&self, name: &Name, change: impl FnOnce(Option<T>) -> Option<T>) {
        self.slot(name, |slot| slot.known = change(slot.known.take()));
    }

    /// Forgets what is known of a subject, and what somebody who has its turn is about to know.
    pub(super) fn forget(&self, name: &Name) {
        self.slot(name, |slot| {
            slot.known = None;
            slot.forgotten += 1;
        });
    }

    /// How often a subject was forgotten.
    pub(super) fn forgotten(&self, name: &Name) -> u64 {
        self.slot(name, |slot| slot.forgotten).unwrap_or_default()
    }

    /// Knows this of a subject, unless it was forgotten since then. Tells whether it does.
    pub(super) fn learn(&self, name: &Name, forgotten: u64, known: T) -> bool {
        let learn = |slot: &mut Slot<T>| {
            let is_so = slot.forgotten == forgotten;
            if is_so {
                slot.known = Some(known);
            }
            is_so
        };
        self.slot(name, learn).unwrap_or_default()
    }

    fn slot<R>(&self, name: &Name, act: impl FnOnce(&mut Slot<T>) -> R) -> Option<R> {
        self.shard(name).slots.get_mut(name).map(act)
    }

    /// The turn of a subject; none if there is no room for another subject.
    pub(super) fn turn(&self, name: &Name, now: u64) -> Option<Arc<AsyncMutex<()>>> {
        let mut shard = self.shard(name);
        if let Some(slot) = shard.slots.get(name) {
            return Some(Arc::clone(&slot.turn));
        }
        if shard.slots.len() >= self.capacity && now.saturating_sub(shard.swept) >= SWEEP_PAUSE {
            shard.sweep(now);
        }
        if shard.slots.len() >= self.capacity {
            return None;
        }
        let slot = Slot {
            turn: Arc::default(),
            known: None,
            forgotten: 0,
        };
        let turn = Arc::clone(&slot.turn);
        shard.slots.insert(name.clone(), slot);
        Some(turn)
    }

    /// Forgets what is over, and tells of whom the store is to hear by now.
    pub(super) fn due(&self, now: u64) -> Vec<Name> {
        let mut due = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.sweep(now);
            let is_due =
                |slot: &Slot<T>| slot.known.as_ref().is_some_and(|known| known.due() <= now);
            let names = shard.slots.iter().filter(|(_, slot)| is_due(slot));
            due.extend(names.map(|(name, _)| name.clone()));
        }
        due
    }

    /// When the store is to hear of the next.
    pub(super) fn next(&self) -> Option<u64> {
        let of = |slot: &Slot<T>| slot.known.as_ref().map(Known::due);
        let next = |shard: &Mutex<Shard<T>>| lock(shard).slots.values().filter_map(of).min();
        self.shards.iter().filter_map(next).min()
    }

    pub(super) fn names(&self) -> Vec<Name> {
        let shards = self.shards.iter().map(lock);
        shards
            .flat_map(|shard| shard.slots.keys().cloned().collect::<Vec<_>>())
            .collect()
    }

    fn shard(&self, name: &Name) -> MutexGuard<'_, Shard<T>> {
        lock(self.place(name))
    }

    fn place(&self, name: &Name) -> &Mutex<Shard<T>> {
        let shard = self.hasher.hash_one(name) as usize % SHARDS;
        &self.shards[shard]
    }
}

impl<T: Known> Shard<T> {
    /// Whoever waits for a turn, or has it, would not find the place again.
    fn sweep(&mut self, now: u64) {
        self.slots.retain(|_, slot| {
            let is_over = slot.known.as_ref().is_none_or(|known| known.is_over(now));
            !is_over || Arc::strong_count(&slot.turn) > 1
        });
        self.swept = now;
    }
}

/// Without the subjects: they name people.
impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("capacity", &(self.capacity * SHARDS))
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use redis_conn::Subject;

    use super::*;

    /// What is of use until then.
    impl Known for u64 {
        fn is_over(&self, now: u64) -> bool {
            *self <= now
        }

        fn due(&self) -> u64 {
            *self
        }
    }

    fn name(number: usize) -> Name {
        (Arc::from("api"), Subject::from(number.to_string()))
    }

    #[test]
    fn it_holds_so_many_subjects_and_forgets_who_is_over_and_not_waited_for() {
        // One place in each shard.
        let table = Table::<u64>::new(SHARDS);
        let first = name(0);
        let turn = table.turn(&first, 0).unwrap();
        table.put(&first, |_| Some(10));
        let same_shard = |other: &Name| std::ptr::eq(table.place(other), table.place(&first));
        let newcomer = (1..).map(name).find(same_shard).unwrap();
        assert!(
            table.turn(&newcomer, SWEEP_PAUSE).is_none(),
            "it has its turn"
        );
        drop(turn);
        assert!(
            table.turn(&newcomer, SWEEP_PAUSE).is_none(),
            "swept just now"
        );
        assert!(table.turn(&newcomer, 2 * SWEEP_PAUSE).is_some());
        assert!(table.with(&first, |_| ()).is_none());
    }

    #[test]
    fn what_was_asked_before_a_subject_was_forgotten_is_not_known() {
        let table = Table::<u64>::new(1_000);
        let name = name(0);
        let _turn = table.turn(&name, 0).unwrap();
        let asked = table.forgotten(&name);
        assert!(table.learn(&name, asked, 10));
        table.forget(&name);
        assert!(table.with(&name, |_| ()).is_none());
        assert!(!table.learn(&name, asked, 20));
        assert!(table.with(&name, |_| ()).is_none());
    }

    #[test]
    fn it_tells_who_is_due_and_when_the_next_is() {
        let table = Table::<u64>::new(1_000);
        let turns: Vec<_> = (1..=3).map(|number| table.turn(&name(number), 0)).collect();
        for number in 1..=3 {
            table.put(&name(number), |_| Some(10 * number as u64));
        }
        assert_eq!(table.next(), Some(10));
        assert_eq!(table.due(20).len(), 2, "somebody has their turns");
        drop(turns);
        assert!(table.due(20).is_empty(), "they are over");
        assert_eq!(table.next(), Some(30));
    }
}
