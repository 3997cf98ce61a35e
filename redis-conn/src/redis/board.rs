//! The one state of a backend, made of the phases of its lanes.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::{classify, lane::Phase};
use crate::{Error, State};

/// What each lane shows, and what follows for all of them.
#[derive(Debug)]
pub(super) struct Board {
    lanes: Mutex<Vec<Light>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug)]
struct Light {
    state: State,
    error: Option<Error>,
}

impl Board {
    pub(super) fn new(lanes: usize) -> Self {
        let light = Light {
            state: State::Connecting,
            error: None,
        };
        Self {
            lanes: Mutex::new(vec![light; lanes]),
            state: watch::Sender::new(State::Connecting),
        }
    }

    pub(super) fn show(&self, lane: usize, phase: &Phase) {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(light) = lanes.get_mut(lane) else {
            return;
        };
        match phase {
            Phase::Dialing => light.state = State::Reconnecting,
            Phase::Up(_) => {
                light.state = State::Connected;
                light.error = None;
            }
            Phase::Down(error) => {
                light.state = if classify::is_config_fault(error) {
                    State::Error
                } else {
                    State::Reconnecting
                };
                light.error = Some(error.clone());
            }
            Phase::Closed => light.state = State::Disconnected,
        }
        let worst = lanes
            .iter()
            .map(|light| light.state)
            .max_by_key(severity)
            .unwrap_or(State::Disconnected);
        drop(lanes);
        self.state
            .send_if_modified(|state| std::mem::replace(state, worst) != worst);
    }

    pub(super) fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn last_error(&self) -> Option<Error> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.iter().find_map(|light| light.error.clone())
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
    use crate::ErrorKind;

    #[test]
    fn the_worst_lane_decides() {
        let board = Board::new(2);
        let states = board.states();
        assert_eq!(*states.borrow(), State::Connecting);

        board.show(0, &Phase::Down(Error::new(ErrorKind::Unavailable, "")));
        assert_eq!(*states.borrow(), State::Reconnecting);
        board.show(
            1,
            &Phase::Down(Error::new(ErrorKind::Server("WRONGPASS".into()), "")),
        );
        assert_eq!(*states.borrow(), State::Error);
        assert!(board.last_error().is_some());

        board.show(0, &Phase::Closed);
        assert_eq!(*states.borrow(), State::Disconnected);
    }
}
