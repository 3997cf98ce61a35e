//! What the listeners tell, and what they are told to do.

use std::{collections::HashSet, sync::Arc};

use super::{Condition, State, Switchboard, Work, not_subscribed};
use crate::{
    Error,
    redis::{
        fault::{Failure, Fault},
        pubsub::plan::Home,
    },
    trace::event,
};

impl Switchboard {
    /// Begins another session, in which everything is to be confirmed anew; returns its number.
    pub(in crate::redis::pubsub) fn begin(&self, home: &Home) -> u64 {
        let state = &mut *self.state();
        state.sessions += 1;
        if let Some(line) = state.lines.get_mut(home) {
            line.session = state.sessions;
            let here = state
                .places
                .iter()
                .filter(|(_, place)| place.lives_at(home));
            line.dirty = here.map(|(channel, _)| Arc::clone(channel)).collect();
        }
        state.sessions
    }

    /// What is to be done on a session that has these channels.
    pub(in crate::redis::pubsub) fn work(
        &self,
        home: &Home,
        session: u64,
        subscribed: &HashSet<Arc<str>>,
    ) -> Work {
        let state = &mut *self.state();
        let mut work = Work::default();
        let Some(line) = state.lines.get_mut(home) else {
            return work;
        };
        for channel in std::mem::take(&mut line.dirty) {
            let place = state
                .places
                .get_mut(&channel)
                .filter(|place| place.lives_at(home));
            match (place, subscribed.contains(&channel)) {
                (Some(_), false) => work.join.push(channel),
                (None, true) => work.leave.push(channel),
                // It went and came again before anybody had told the server.
                (Some(place), true) => self.confirmed(&channel, place, session),
                (None, false) => {}
            }
        }
        work
    }

    /// Everything that could be confirmed is.
    pub(in crate::redis::pubsub) fn fine(&self, home: &Home) {
        let state = &mut *self.state();
        if let Some(line) = state.lines.get_mut(home) {
            line.condition = Condition::Fine;
        }
        self.show(state);
    }

    /// The connection is lost.
    pub(in crate::redis::pubsub) fn lost(&self, home: &Home, error: &Error) {
        let state = &mut *self.state();
        self.interrupt(state, home);
        if let Some(line) = state.lines.get_mut(home) {
            line.condition = Condition::Lost(error.clone());
        }
        self.show(state);
    }

    /// There is no connection, and none can be made at present.
    pub(in crate::redis::pubsub) fn away(&self, home: &Home, failure: &Failure) {
        let state = &mut *self.state();
        self.interrupt(state, home);
        let error = failure.error.clone();
        let refusal = Err(not_subscribed(&error));
        if let Some(line) = state.lines.get_mut(home) {
            line.condition = match failure.fault {
                Fault::Credentials => Condition::Refused(error),
                _ => Condition::Away(error),
            };
        }
        self.show(state);
        let here = state
            .places
            .values_mut()
            .filter(|place| place.lives_at(home));
        here.for_each(|place| place.answer(&refusal));
    }

    fn interrupt(&self, state: &mut State, home: &Home) {
        if let Some(line) = state.lines.get_mut(home) {
            // Nothing that the old connection may still say counts.
            line.session = 0;
        }
        for (channel, place) in state
            .places
            .iter_mut()
            .filter(|(_, place)| place.lives_at(home))
        {
            if place.confirmed.take().is_some() {
                self.hub.interrupt(channel);
            }
        }
    }

    /// The server does not take a channel now; those who wait for it go on waiting.
    pub(in crate::redis::pubsub) fn astray(&self, home: &Home, channel: &Arc<str>, error: &Error) {
        let state = &mut *self.state();
        if state
            .places
            .get(channel)
            .is_some_and(|place| place.lives_at(home))
        {
            state.astray.insert(Arc::clone(channel), error.clone());
        }
    }

    /// The server does not take a channel now, and waiting would not help.
    pub(in crate::redis::pubsub) fn refuse(&self, home: &Home, channel: &Arc<str>, error: &Error) {
        self.astray(home, channel, error);
        let state = &mut *self.state();
        if let Some(place) = state
            .places
            .get_mut(channel)
            .filter(|place| place.lives_at(home))
        {
            place.answer(&Err(error.clone()));
        }
    }

    /// The user may not listen to a channel: its subscriptions end, for they must not believe that nothing is published.
    pub(in crate::redis::pubsub) fn forbid(&self, home: &Home, channel: &Arc<str>, error: &Error) {
        let state = &mut *self.state();
        if !state
            .places
            .get(channel)
            .is_some_and(|place| place.lives_at(home))
        {
            return;
        }
        state.astray.remove(channel);
        if let Some(mut place) = state.places.remove(channel) {
            state.leave(home, channel);
            if place.granted {
                event!(
                    error,
                    "a subscription has ended, the server refuses it: {error}"
                );
                state.forbidden.insert(channel, error);
                self.show(state);
            }
            place.answer(&Err(error.clone()));
        }
        self.hub.end(channel);
        #[cfg(feature = "metrics")]
        crate::metrics::refused();
    }

    /// Has channels asked for again.
    pub(in crate::redis::pubsub) fn again(
        &self,
        home: &Home,
        channels: impl IntoIterator<Item = Arc<str>>,
    ) {
        if let Some(line) = self.state().lines.get_mut(home) {
            line.dirty.extend(channels);
        }
    }

    /// Whether a channel has its home there.
    pub(in crate::redis::pubsub) fn is_used(&self, home: &Home) -> bool {
        self.state()
            .lines
            .get(home)
            .is_some_and(|line| line.channels > 0)
    }

    /// Ends a listener, unless a channel has its home there: then it returns `false`.
    pub(in crate::redis::pubsub) fn retire(&self, home: &Home) -> bool {
        let mut state = self.state();
        let unused = state.lines.get(home).is_none_or(|line| line.channels == 0);
        if unused {
            state.lines.remove(home);
        }
        unused
    }
}
