//! Notes in a table of this process.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis_conn::Error;

use super::MemoryStore;
use crate::{
    name::Name,
    store::notes::{Kind, Note, Notes},
    terms::micros,
};

/// The notes of this process.
#[derive(Debug, Default)]
pub(super) struct NoteTable(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    notes: HashMap<(Name, Kind), Timed>,
    /// How many there may be before those that are over are forgotten.
    sweep_at: usize,
}

#[derive(Debug)]
struct Timed {
    until: u64,
    note: Note,
}

impl Kept {
    fn get(&self, of: &(Name, Kind), now: u64) -> Option<&Note> {
        let timed = self.notes.get(of).filter(|timed| timed.until > now);
        timed.map(|timed| &timed.note)
    }

    fn put(&mut self, of: (Name, Kind), now: u64, note: &Note, keep: Duration) {
        const FEW: usize = 1_024;
        if self.notes.len() >= self.sweep_at.max(FEW) {
            self.notes.retain(|_, timed| timed.until > now);
            self.sweep_at = self.notes.len() * 2;
        }
        let (note, until) = (note.clone(), now.saturating_add(micros(keep)));
        self.notes.insert(of, Timed { until, note });
    }
}

impl MemoryStore {
    fn notes(&self) -> MutexGuard<'_, Kept> {
        self.table
            .notes
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes for MemoryStore {
    async fn advance(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        _: Duration,
    ) -> Result<Option<Note>, Error> {
        let (mut kept, now, of) = (self.notes(), self.now().at, (name.clone(), kind));
        match kept.get(&of, now) {
            Some(stored) if stored.slot >= note.slot => Ok(Some(stored.clone())),
            _ => {
                kept.put(of, now, note, keep);
                Ok(None)
            }
        }
    }

    async fn conclude(
        &self,
        name: &Name,
        kind: Kind,
        note: &Note,
        keep: Duration,
        _: Duration,
    ) -> Result<bool, Error> {
        let (mut kept, now, of) = (self.notes(), self.now().at, (name.clone(), kind));
        let same = kept
            .get(&of, now)
            .is_some_and(|stored| stored.slot == note.slot);
        if same {
            kept.put(of, now, note, keep);
        }
        Ok(same)
    }

    async fn note(&self, name: &Name, kind: Kind, _: Duration) -> Result<Option<Note>, Error> {
        let now = self.now().at;
        Ok(self.notes().get(&(name.clone(), kind), now).cloned())
    }
}
