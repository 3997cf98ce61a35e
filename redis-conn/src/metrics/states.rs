//! The connection state as gauges.

use tokio::{runtime::Handle, sync::watch};

use super::{
    level::Level,
    table::{self, CONNECTION_STATE, STATE},
};
use crate::State;

/// Shows the state of a backend for as long as it has one. Without a runtime there is nobody to follow it.
pub(crate) fn follow(mut states: watch::Receiver<State>) {
    table::begin();
    let mut shown: Vec<_> = State::ALL
        .map(|state| (state, Level::new(STATE.gauge(&[state.as_str()]))))
        .into();
    let mut number = Level::new(CONNECTION_STATE.gauge(&[]));
    let following = async move {
        loop {
            let now = *states.borrow_and_update();
            for (state, level) in &mut shown {
                level.show(f64::from(u8::from(*state == now)));
            }
            number.show(as_number(now));
            if states.changed().await.is_err() {
                return;
            }
        }
    };
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(following);
    }
}

fn as_number(state: State) -> f64 {
    match state {
        State::Disconnected | State::Error => 0.0,
        State::Connecting | State::Reconnecting => 1.0,
        State::Connected => 2.0,
    }
}
