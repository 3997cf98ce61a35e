//! Those of this process who wait for a lock, in the order in which they came.
//!
//! Only the first of them asks the store; the others cost it nothing. A lock that is let go of in this process is handed to the first
//! of its own in the same step, a few times; then those of other processes have their turn.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use crate::{OwnerId, lease::Moment, name::Name, store::Grant, terms::Terms};

/// So often in a row a process hands a lock to its own at most, and for so long.
const STREAK: u32 = 8;
const STREAK_TIME: Duration = Duration::from_millis(50);

/// What somebody who waits is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// It is theirs since this moment: somebody of this process handed it over, by a call that was sent then.
    Handed(Grant, Moment),
    /// It is theirs, as a message says that came at this moment.
    Sent(Grant, Moment),
    /// It stands in line since this moment, which was so many microseconds by the store's clock.
    InLine(Moment, u64),
    /// Something may have changed: ask.
    Ask,
}

/// Somebody who waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) terms: Terms,
    /// Where a grant is sent to.
    pub(crate) wake: Arc<str>,
    pub(crate) words: mpsc::UnboundedSender<Word>,
}

/// All lines of this process.
#[derive(Debug, Default)]
pub(crate) struct Lines(Mutex<HashMap<Name, Line>>);

#[derive(Debug)]
struct Line {
    waiters: VecDeque<Waiter>,
    /// How many guards of this lock live in this process, and on how many ways from one to the next it is.
    held: usize,
    streak: u32,
    since: Instant,
}

/// To whom a lock goes that is let go of. Until this is dropped it is on its way, and nobody here asks for it.
#[derive(Debug)]
pub(crate) struct Heir<'a> {
    lines: &'a Lines,
    name: &'a Name,
    pub(crate) waiter: Waiter,
    /// Those of other processes come first.
    pub(crate) yields: bool,
    told: bool,
}

/// A place in a line, left when it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    lines: &'a Lines,
    name: &'a Name,
    owner: OwnerId,
}

impl Lines {
    fn lines(&self) -> MutexGuard<'_, HashMap<Name, Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all who wait look again.
    pub(crate) fn ask_all(&self) {
        let lines = self.lines();
        for waiter in lines.values().flat_map(|line| &line.waiters) {
            let _ = waiter.words.send(Word::Ask);
        }
    }

    /// Whether somebody waits.
    pub(crate) fn has_waiters(&self, name: &Name) -> bool {
        let lines = self.lines();
        lines.get(name).is_some_and(|line| !line.waiters.is_empty())
    }

    /// Whether somebody of this process holds it, or is about to.
    pub(crate) fn is_held(&self, name: &Name) -> bool {
        self.lines().get(name).is_some_and(|line| line.held > 0)
    }

    pub(crate) fn join<'a>(&'a self, name: &'a Name, waiter: Waiter) -> Place<'a> {
        let owner = waiter.terms.owner;
        let mut lines = self.lines();
        let line = lines.entry(name.clone()).or_insert_with(Line::new);
        line.waiters.push_back(waiter);
        Place {
            lines: self,
            name,
            owner,
        }
    }

    /// Somebody of this process holds it from now on.
    pub(crate) fn hold(&self, name: &Name) {
        let mut lines = self.lines();
        lines.entry(name.clone()).or_insert_with(Line::new).held += 1;
    }

    /// Somebody of this process lets go of it. Tells who has it next, if somebody here waits.
    pub(crate) fn let_go<'a>(&'a self, name: &'a Name) -> Option<Heir<'a>> {
        let next = self.lines().get_mut(name).and_then(Line::next);
        let Some((waiter, yields)) = next else {
            self.leave(name);
            return None;
        };
        Some(Heir {
            lines: self,
            name,
            waiter,
            yields,
            told: false,
        })
    }

    fn leave(&self, name: &Name) {
        let mut lines = self.lines();
        if let Some(line) = lines.get_mut(name) {
            line.held = line.held.saturating_sub(1);
            if line.is_over() {
                lines.remove(name);
            }
        }
    }
}

impl Line {
    fn new() -> Self {
        Self {
            waiters: VecDeque::new(),
            held: 0,
            streak: 0,
            since: Instant::now(),
        }
    }

    fn is_over(&self) -> bool {
        self.held == 0 && self.waiters.is_empty()
    }

    /// Who has it next, and whether those of other processes come first.
    fn next(&mut self) -> Option<(Waiter, bool)> {
        let waiter = self.waiters.front()?.clone();
        if self.streak == 0 {
            self.since = Instant::now();
        }
        let yields = self.streak >= STREAK || self.since.elapsed() >= STREAK_TIME;
        self.streak = if yields { 0 } else { self.streak + 1 };
        Some((waiter, yields))
    }
}

impl Heir<'_> {
    pub(crate) fn name(&self) -> &Name {
        self.name
    }

    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    /// Tells what came of it. Whether anybody heard: who has got it by a question of its own does too.
    pub(crate) fn tell(&mut self, word: Word) -> bool {
        self.told = true;
        self.waiter.words.send(word).is_ok()
    }
}

impl Drop for Heir<'_> {
    fn drop(&mut self) {
        self.lines.leave(self.name);
        if !self.told {
            // Whoever does not listen any more has left the line.
            let _ = self.waiter.words.send(Word::Ask);
        }
    }
}

impl Place<'_> {
    pub(crate) fn is_first(&self) -> bool {
        let lines = self.lines.lines();
        let first = lines.get(self.name).and_then(|line| line.waiters.front());
        first.is_some_and(|waiter| waiter.terms.owner == self.owner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut lines = self.lines.lines();
        let Entry::Occupied(mut line) = lines.entry(self.name.clone()) else {
            return;
        };
        let its = line.get_mut();
        let was_first = its.waiters.front().map(|first| first.terms.owner) == Some(self.owner);
        its.waiters
            .retain(|waiter| waiter.terms.owner != self.owner);
        if was_first && let Some(first) = its.waiters.front() {
            // Whoever does not listen any more is about to leave too.
            let _ = first.words.send(Word::Ask);
        }
        if its.is_over() {
            line.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        FenceMode,
        terms::{Mode, Seats},
    };

    fn waiter() -> (Waiter, mpsc::UnboundedReceiver<Word>) {
        let (words, heard) = mpsc::unbounded_channel();
        let terms = Terms {
            owner: OwnerId::new(),
            ttl: Duration::from_secs(10),
            mode: Mode::Alone,
            seats: Seats::Some(1),
            fence: FenceMode::Clock,
            instance: "a".into(),
        };
        let wake = "locks".into();
        (Waiter { terms, wake, words }, heard)
    }

    #[tokio::test(start_paused = true)]
    async fn others_have_their_turn_after_a_while() {
        let (lines, name) = (Lines::default(), Name::new("a").unwrap());
        let (waiter, _heard) = waiter();
        let place = lines.join(&name, waiter);
        assert!(place.is_first());
        let yields = || lines.let_go(&name).unwrap().yields;
        for _ in 0..2 {
            assert!((0..STREAK).all(|_| !yields()));
            assert!(yields(), "after {STREAK} in a row");
        }
        assert!(!yields());
        tokio::time::advance(STREAK_TIME).await;
        assert!(yields(), "after {STREAK_TIME:?}");
    }

    #[test]
    fn who_is_next_hears_when_the_first_leaves_and_nothing_is_left_behind() {
        let (lines, name) = (Lines::default(), Name::new("a").unwrap());
        let ((one, _), (two, mut heard)) = (waiter(), waiter());
        let (first, second) = (lines.join(&name, one), lines.join(&name, two));
        assert!(!second.is_first());
        drop(first);
        assert!(second.is_first());
        assert!(matches!(heard.try_recv(), Ok(Word::Ask)));
        lines.hold(&name);
        let heir = lines.let_go(&name).unwrap();
        assert!(lines.is_held(&name), "it is on its way");
        drop(heir);
        assert!(!lines.is_held(&name));
        assert!(matches!(heard.try_recv(), Ok(Word::Ask)), "untold");
        lines.hold(&name);
        drop(second);
        assert!(lines.is_held(&name) && !lines.has_waiters(&name));
        assert!(lines.let_go(&name).is_none());
        assert!(lines.lines().is_empty());
    }
}
