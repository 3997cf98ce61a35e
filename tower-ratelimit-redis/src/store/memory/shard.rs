//! A part of the in-process store: a table for each policy, and who shares an entry where there is no room.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::{
    Policy,
    counter::{Kind, Now},
    counters::Counters,
};

/// Below this a table is not worth a sweep.
pub(super) const SWEEP_FROM: usize = 64;
/// How long, in microseconds, a full shard is not swept again: it may be in vain.
const SWEEP_PAUSE: u64 = 1_000_000;
/// The longest one that is kept in the table itself, where finding it reads no memory besides.
const MAX_INLINE: usize = 30;

/// One table for each policy; a program has few. They share the capacity of the shard.
#[derive(Default)]
pub(super) struct Shard {
    pub(super) tables: Vec<Table>,
    /// When all tables were swept because the shard was full.
    pub(super) swept: u64,
}

pub(super) struct Table {
    pub(super) policy: Arc<str>,
    /// Whether a counter may go by the wall clock.
    pub(super) calendar: bool,
    entries: HashTable<Entry>,
    /// Who came when the shard was full.
    pub(super) overflow: Option<Counted>,
    /// The number of entries at which the next sweep pays.
    sweep_at: usize,
}

struct Entry {
    hash: u64,
    name: Name,
    counted: Counted,
}

/// The bytes that a subject is filed under.
enum Name {
    Short { length: u8, bytes: [u8; MAX_INLINE] },
    Long(Box<[u8]>),
}

/// Such bytes and their hash, which chooses the shard and the place in its tables.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) hash: u64,
    pub(super) name: &'a [u8],
}

#[derive(Clone)]
pub(super) struct Counted {
    pub(super) counters: Counters,
    /// From then on nothing is counted any more.
    pub(super) expires: u64,
}

pub(super) fn goes_by_calendar(policy: &Policy) -> bool {
    policy
        .limits()
        .iter()
        .any(|limit| limit.kind == Kind::FixedAligned)
}

impl<'a> Key<'a> {
    fn is_of(self) -> impl Fn(&Entry) -> bool + 'a {
        move |entry| entry.hash == self.hash && entry.name.as_bytes() == self.name
    }
}

impl Name {
    fn new(name: &[u8]) -> Self {
        let mut bytes = [0; MAX_INLINE];
        match bytes.get_mut(..name.len()) {
            Some(start) => {
                start.copy_from_slice(name);
                Self::Short {
                    length: name.len() as u8,
                    bytes,
                }
            }
            None => Self::Long(name.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl Shard {
    pub(super) fn table(&self, policy: &Policy) -> Option<&Table> {
        self.tables.iter().find(|table| table.is_of(policy))
    }

    pub(super) fn table_mut(&mut self, policy: &Policy) -> Option<&mut Table> {
        self.tables.iter_mut().find(|table| table.is_of(policy))
    }

    /// Where the table of a policy is.
    pub(super) fn place(&mut self, policy: &Policy) -> usize {
        let place = self.tables.iter().position(|table| table.is_of(policy));
        let place = place.unwrap_or_else(|| {
            self.tables.push(Table::new(policy));
            self.tables.len() - 1
        });
        // Whoever comes later meets its counters.
        self.tables[place].calendar |= goes_by_calendar(policy);
        place
    }

    /// Acts on what is counted of a subject, or of those that share an entry.
    pub(super) fn with_counted<T>(
        &mut self,
        place: usize,
        policy: &Policy,
        key: Key<'_>,
        capacity: usize,
        now: Now,
        act: impl FnOnce(&mut Counted) -> T,
    ) -> T {
        let entries = &mut self.tables[place].entries;
        if let Some(entry) = entries.find_mut(key.hash, key.is_of()) {
            return act(&mut entry.counted);
        }
        let full = self.is_full(capacity, now);
        act(self.tables[place].newcomer(policy, key, full, now))
    }

    /// Whether there is no room, also when what has expired is gone: under whatever policy, or one that is flooded would leave
    /// the others none.
    fn is_full(&mut self, capacity: usize, now: Now) -> bool {
        if self.held() >= capacity && now.at.abs_diff(self.swept) >= SWEEP_PAUSE {
            self.tables.iter_mut().for_each(|table| table.sweep(now));
            self.swept = now.at;
        }
        self.held() >= capacity
    }

    pub(super) fn held(&self) -> usize {
        self.tables.iter().map(|table| table.entries.len()).sum()
    }
}

impl Table {
    fn new(policy: &Policy) -> Self {
        Self {
            policy: Arc::clone(policy.shared_name()),
            calendar: false,
            entries: HashTable::new(),
            overflow: None,
            sweep_at: SWEEP_FROM,
        }
    }

    pub(super) fn is_of(&self, policy: &Policy) -> bool {
        Arc::ptr_eq(&self.policy, policy.shared_name()) || *self.policy == *policy.name()
    }

    /// An entry for a subject that has none; the shared one if the shard is full.
    fn newcomer(&mut self, policy: &Policy, key: Key<'_>, full: bool, now: Now) -> &mut Counted {
        self.overflow.take_if(|shared| shared.expires <= now.at);
        if full {
            return self
                .overflow
                .get_or_insert_with(|| Counted::new(policy, now));
        }
        // When their number has doubled: an insertion pays for a few others.
        if self.entries.len() >= self.sweep_at {
            self.sweep(now);
        }
        // What it may have been charged while it shared an entry stays charged.
        let counted = match &self.overflow {
            Some(shared) => shared.clone(),
            None => Counted::new(policy, now),
        };
        let Key { hash, name } = key;
        let name = Name::new(name);
        let entry = Entry {
            hash,
            name,
            counted,
        };
        let entry = self.entries.insert_unique(hash, entry, |entry| entry.hash);
        &mut entry.into_mut().counted
    }

    pub(super) fn remove(&mut self, key: Key<'_>) {
        if let Ok(entry) = self.entries.find_entry(key.hash, key.is_of()) {
            entry.remove();
        }
    }

    /// Drops what has expired.
    fn sweep(&mut self, now: Now) {
        self.entries.retain(|entry| entry.counted.expires > now.at);
        let kept = self.entries.len();
        self.sweep_at = SWEEP_FROM.max(2 * kept);
        self.entries.shrink_to(self.sweep_at, |entry| entry.hash);
    }

    pub(super) fn find(&self, key: Key<'_>) -> Option<&Counted> {
        let own = self.entries.find(key.hash, key.is_of());
        // Whoever has no entry might be counted in the shared one.
        own.map(|entry| &entry.counted).or(self.overflow.as_ref())
    }

    pub(super) fn find_mut(&mut self, key: Key<'_>) -> Option<&mut Counted> {
        let own = self.entries.find_mut(key.hash, key.is_of());
        own.map(|entry| &mut entry.counted)
            .or(self.overflow.as_mut())
    }
}

impl Counted {
    fn new(policy: &Policy, now: Now) -> Self {
        let counters = Counters::new(policy, now);
        Self {
            expires: counters.expires(now),
            counters,
        }
    }
}
