//! The one state of a backend, made of the phases of its lanes, of what is known of its topology, and of what its subscriptions are
//! refused.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{
    fault::{Failure, Fault},
    lane::Phase,
};
use crate::{Error, State};

/// What each lane shows, and what follows for all of them.
#[derive(Debug)]
pub(super) struct Board {
    lights: Mutex<Lights>,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct Lights {
    next: usize,
    by_id: BTreeMap<usize, Light>,
}

#[derive(Debug)]
struct Light {
    state: State,
    error: Option<Error>,
}

/// One light of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LightId(usize);

impl Board {
    pub(super) fn new() -> Self {
        Self {
            lights: Mutex::default(),
            state: watch::Sender::new(State::Connecting),
        }
    }

    fn lights(&self) -> MutexGuard<'_, Lights> {
        self.lights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a light, for something that is not connected yet.
    pub(super) fn add(&self, state: State) -> LightId {
        let mut lights = self.lights();
        let id = lights.next;
        lights.next += 1;
        lights.by_id.insert(id, Light { state, error: None });
        self.decide(&lights);
        LightId(id)
    }

    pub(super) fn remove(&self, id: LightId) {
        let mut lights = self.lights();
        lights.by_id.remove(&id.0);
        self.decide(&lights);
    }

    /// What a lane is at.
    pub(super) fn show(&self, id: LightId, phase: &Phase) {
        match phase {
            Phase::Dialing => self.set(id, State::Reconnecting, None),
            Phase::Up(_) => self.set(id, State::Connected, None),
            Phase::Down(failure) => self.fail(id, failure),
            Phase::Closed => self.set(id, State::Disconnected, None),
        }
    }

    /// Adds a light for something that a server refuses, until it is removed.
    pub(super) fn refuse(&self, error: Error) -> LightId {
        let id = self.add(State::Error);
        self.set(id, State::Error, Some(error));
        id
    }

    /// Something works.
    pub(super) fn pass(&self, id: LightId) {
        self.set(id, State::Connected, None);
    }

    /// Something does not work, and is tried again.
    pub(super) fn fail(&self, id: LightId, failure: &Failure) {
        let state = match failure.fault {
            Fault::Credentials => State::Error,
            _ => State::Reconnecting,
        };
        self.set(id, state, Some(failure.error.clone()));
    }

    /// The error of before stays until something works.
    fn set(&self, id: LightId, state: State, error: Option<Error>) {
        let mut lights = self.lights();
        if let Some(light) = lights.by_id.get_mut(&id.0) {
            light.state = state;
            if error.is_some() || state == State::Connected {
                light.error = error;
            }
        }
        self.decide(&lights);
    }

    /// The worst light decides. Called with the lock held, so that states are shown in the order in which they came.
    fn decide(&self, lights: &Lights) {
        let states = lights.by_id.values().map(|light| light.state);
        let worst = states.max_by_key(severity).unwrap_or(State::Disconnected);
        self.state
            .send_if_modified(|state| std::mem::replace(state, worst) != worst);
    }

    pub(super) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn last_error(&self) -> Option<Error> {
        let lights = self.lights();
        lights.by_id.values().find_map(|light| light.error.clone())
    }
}

fn severity(state: &State) -> u8 {
    match state {
        State::Connected => 0,
        State::Connecting => 1,
        State::Reconnecting => 2,
        State::Error => 3,
        State::Disconnected => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_light_decides() {
        let board = Board::new();
        let (first, second) = (board.add(State::Connecting), board.add(State::Connecting));
        let states = board.states();
        assert_eq!(*states.borrow(), State::Connecting);

        board.show(first, &Phase::Down(Failure::away("")));
        assert_eq!(*states.borrow(), State::Reconnecting);
        board.show(second, &Phase::Down(Failure::config("")));
        assert_eq!(*states.borrow(), State::Error);
        assert!(board.last_error().is_some());

        board.remove(second);
        assert_eq!(*states.borrow(), State::Reconnecting);
        board.pass(first);
        assert_eq!(*states.borrow(), State::Connected);
        assert!(board.last_error().is_none());

        let refused = board.refuse(Failure::config("").error);
        assert_eq!(*states.borrow(), State::Error);
        assert!(board.last_error().is_some());
        board.remove(refused);
        assert_eq!(*states.borrow(), State::Connected);

        board.show(first, &Phase::Closed);
        board.refuse(Failure::config("").error);
        assert_eq!(*states.borrow(), State::Disconnected);
    }
}
