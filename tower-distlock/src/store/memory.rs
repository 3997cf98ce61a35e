//! The store of the memory backend: for one process.

mod notes;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis_conn::{Bus, Clock, Error};

use super::{
    Acquired, Grant, Next, Outcome, Seen, Store,
    record::{Now, Record, Sent},
};
use crate::{OwnerId, mail, name::Name, terms::Terms};

use self::notes::NoteTable;

/// The locks of this process and what is noted beside them, shared by all handles of a backend.
#[derive(Debug, Default)]
pub(crate) struct Table {
    records: Mutex<Records>,
    notes: NoteTable,
}

#[derive(Debug, Default)]
struct Records {
    by_name: HashMap<Name, Record>,
    /// How many there may be before those that are over are forgotten.
    sweep_at: usize,
}

/// Locks in a table of this process.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    clock: Arc<dyn Clock>,
    table: Arc<Table>,
    bus: Bus,
}

impl MemoryStore {
    pub(crate) fn new(clock: Arc<dyn Clock>, table: Arc<Table>, bus: Bus) -> Self {
        Self { clock, table, bus }
    }

    fn now(&self) -> Now {
        Now {
            at: self.clock.boot_micros(),
            wall: self.clock.wall_micros(),
        }
    }

    /// Changes what is known of a lock, and sends what is to be sent.
    fn change<T>(
        &self,
        name: &Name,
        change: impl FnOnce(&mut Record, Now, &mut Vec<Sent>) -> T,
    ) -> (T, Vec<Sent>) {
        let now = self.now();
        let mut sent = Vec::new();
        let mut records = self.table.records();
        records.sweep(now.at);
        let record = records.by_name.entry(name.clone()).or_default();
        let changed = change(record, now, &mut sent);
        if record.is_over(now.at) {
            records.by_name.remove(name);
        }
        (changed, sent)
    }

    /// Lets go where nobody can wait for it: where there is no runtime.
    pub(crate) fn release_now(&self, name: &Name, terms: &Terms) {
        use futures_util::FutureExt as _;
        let release = self.release(name, terms, false, Next::InLine, Duration::ZERO);
        // It never waits for anything.
        let _ = release.now_or_never();
    }
}

impl Table {
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    /// Forgets what is over, as soon as there is twice as much as was left the last time.
    fn sweep(&mut self, now: u64) {
        const FEW: usize = 1_024;
        if self.by_name.len() >= self.sweep_at.max(FEW) {
            self.by_name.retain(|_, record| {
                record.age(Now { at: now, wall: now });
                !record.is_over(now)
            });
            self.sweep_at = self.by_name.len() * 2;
        }
    }
}

impl Store for MemoryStore {
    async fn acquire(
        &self,
        name: &Name,
        terms: &Terms,
        wake: Option<&str>,
        _: Duration,
    ) -> Result<Acquired, Error> {
        let (acquired, sent) = self.change(name, |record, now, sent| {
            record.acquire(now, terms, wake, sent)
        });
        mail::send(&self.bus, sent).await;
        acquired
    }

    async fn acquire_all(
        &self,
        asked: &[(Name, Terms)],
        _: Duration,
    ) -> Result<Option<Vec<Grant>>, Error> {
        let now = self.now();
        let mut records = self.table.records();
        let before = |name| records.by_name.get(name).cloned().unwrap_or_default();
        let (mut after, mut grants) = (Vec::new(), Vec::new());
        for (name, terms) in asked {
            let mut record: Record = before(name);
            let Some(grant) = record.grant_if_free(now, terms)? else {
                return Ok(None);
            };
            after.push((name.clone(), record));
            grants.push(grant);
        }
        records.sweep(now.at);
        records.by_name.extend(after);
        Ok(Some(grants))
    }

    async fn release(
        &self,
        name: &Name,
        terms: &Terms,
        abandoned: bool,
        next: Next<'_>,
        _: Duration,
    ) -> Result<(Outcome, Option<Acquired>), Error> {
        let (released, sent) = self.change(name, |record, now, sent| {
            record.release(now, terms, abandoned, next, sent)
        });
        mail::send(&self.bus, sent).await;
        released
    }

    async fn renew(&self, leases: &[(Name, Terms)], _: Duration) -> Result<Vec<Outcome>, Error> {
        let renew = |(name, terms): &(Name, Terms)| {
            let (outcome, _) = self.change(name, |record, now, _| record.renew(now, terms));
            outcome
        };
        Ok(leases.iter().map(renew).collect())
    }

    async fn extend(&self, name: &Name, terms: &Terms, _: Duration) -> Result<Outcome, Error> {
        let (outcome, _) = self.change(name, |record, now, _| record.extend(now, terms));
        Ok(outcome)
    }

    async fn look(&self, name: &Name, _: Duration) -> Result<Seen, Error> {
        let records = self.table.records();
        let record = records.by_name.get(name);
        Ok(record.map_or_else(Seen::default, |record| record.look(self.now())))
    }

    async fn force(&self, name: &Name, _: Duration) -> Result<Vec<OwnerId>, Error> {
        let (taken, sent) = self.change(name, |record, now, sent| record.force(now, sent));
        mail::send(&self.bus, sent).await;
        Ok(taken)
    }

    async fn list(&self, prefix: &str, _: Duration) -> Result<Vec<String>, Error> {
        let now = self.now();
        let records = self.table.records();
        let held = records.by_name.iter().filter(|(name, record)| {
            name.as_str().starts_with(prefix) && !record.look(now).holders.is_empty()
        });
        Ok(held.map(|(name, _)| name.as_str().to_owned()).collect())
    }
}
