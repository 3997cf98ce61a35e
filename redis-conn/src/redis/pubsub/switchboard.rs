//! Where each channel lives, and who waits for it.

mod forbidden;
mod listeners;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use self::forbidden::Forbidden;
use super::{
    Listener,
    plan::{Home, Plan, Spot},
};
use crate::{
    Error, ErrorKind,
    bus::Hub,
    redis::{Context, board::LightId, cluster::Sight},
};

/// Tells whether the server confirmed.
type Answer = oneshot::Sender<Result<(), Error>>;
type Confirmation = oneshot::Receiver<Result<(), Error>>;

/// Knows what is wanted of every listener, and what the servers have confirmed.
#[derive(Debug)]
pub(super) struct Switchboard {
    pub(super) context: Arc<Context>,
    hub: Arc<Hub>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    places: HashMap<Arc<str>, Place>,
    lines: HashMap<Home, Line>,
    sessions: u64,
    /// Channels that a server does not take at present, and why.
    astray: HashMap<Arc<str>, Error>,
    forbidden: Forbidden,
    /// Lit while a server refuses what somebody listens to, or listened to.
    light: Option<LightId>,
}

/// One channel that somebody listens to.
#[derive(Debug, Default)]
struct Place {
    home: Option<Home>,
    /// The session on which the server confirmed it.
    confirmed: Option<u64>,
    /// Whether it was ever confirmed.
    granted: bool,
    waiting: Vec<Answer>,
}

/// What a listener is told, and what it tells.
#[derive(Debug)]
struct Line {
    changed: Arc<Notify>,
    /// How many channels have their home there.
    channels: usize,
    /// Those that came or went since the listener last looked.
    dirty: HashSet<Arc<str>>,
    session: u64,
    condition: Condition,
}

#[derive(Debug)]
enum Condition {
    /// There is no reason to believe that it does not work.
    Fine,
    /// There was a connection, and another is being made: who wants to listen waits.
    Lost(Error),
    /// None can be made: who wants to listen need not wait.
    Away(Error),
    /// The same, and waiting does not help: one of the two sides must be changed.
    Refused(Error),
}

/// What a listener has to do.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) leave: Vec<Arc<str>>,
    pub(super) join: Vec<Arc<str>>,
}

impl Switchboard {
    pub(super) fn new(plan: Plan, hub: Arc<Hub>, context: Arc<Context>) -> Arc<Self> {
        let state = State {
            plan,
            places: HashMap::new(),
            lines: HashMap::new(),
            sessions: 0,
            astray: HashMap::new(),
            forbidden: Forbidden::default(),
            light: None,
        };
        Arc::new(Self {
            context,
            hub,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a channel listened to. `None` if it is already, else what tells when.
    pub(super) fn listen(
        self: &Arc<Self>,
        channel: &Arc<str>,
    ) -> Result<Option<Confirmation>, Error> {
        let mut state = self.state();
        let (home, spot) = match state.places.get(channel) {
            Some(place) if place.confirmed.is_some() => return Ok(None),
            Some(place) => (place.home.clone(), None),
            None => {
                let spot = state
                    .plan
                    .spot(channel)
                    .map_err(|cause| not_subscribed(&cause))?;
                (spot.as_ref().map(|spot| spot.home.clone()), spot)
            }
        };
        match &home {
            Some(home) => state.check(home)?,
            None => state.plan.doubt(),
        }
        let (answer, confirmation) = oneshot::channel();
        let place = state.places.entry(Arc::clone(channel)).or_default();
        place.waiting.retain(|other| !other.is_closed());
        place.waiting.push(answer);
        if let Some(spot) = spot {
            self.settle(&mut state, channel, spot);
        }
        Ok(Some(confirmation))
    }

    /// Ends the subscription to a channel, unless somebody listens: another subscriber may have come meanwhile.
    pub(super) fn unlisten(&self, channel: &Arc<str>) {
        let mut state = self.state();
        if self.hub.has(channel) {
            return;
        }
        state.astray.remove(channel);
        if let Some(home) = state.places.remove(channel).and_then(|place| place.home) {
            state.leave(&home, channel);
        }
        self.show(&mut state);
    }

    /// Takes over what is known of the nodes, and has every channel move whose home is elsewhere now.
    pub(super) fn adopt(self: &Arc<Self>, sight: Sight) {
        let mut state = self.state();
        state.plan.adopt(sight);
        let channels: Vec<Arc<str>> = state.places.keys().cloned().collect();
        for channel in channels {
            match state.plan.spot(&channel) {
                Ok(Some(spot)) => self.settle(&mut state, &channel, spot),
                // As long as nobody has it, it stays where it was.
                Ok(None) => {}
                Err(cause) => {
                    if let Some(place) = state.places.get_mut(&channel) {
                        place.answer(&Err(not_subscribed(&cause)));
                    }
                }
            }
        }
    }

    /// Gives a channel this home, and takes it from the one that it had.
    fn settle(self: &Arc<Self>, state: &mut State, channel: &Arc<str>, spot: Spot) {
        let Some(place) = state.places.get_mut(channel) else {
            return;
        };
        let Spot { home, target } = spot;
        if place.home.as_ref() == Some(&home) {
            return;
        }
        if place.confirmed.take().is_some() {
            self.hub.interrupt(channel);
        }
        if let Some(old) = place.home.replace(home.clone()) {
            state.leave(&old, channel);
        }
        let line = state.lines.entry(home.clone()).or_insert_with(|| {
            let line = Line::new();
            Listener::start(self, home, target, Arc::clone(&line.changed));
            line
        });
        line.channels += 1;
        line.touch(channel);
    }

    /// Why somebody who listens hears nothing, or was refused what had been granted before.
    pub(super) fn error(&self) -> Option<Error> {
        let state = self.state();
        let mut lines = state.lines.values();
        let lost = lines.find_map(|line| match &line.condition {
            Condition::Lost(error) | Condition::Away(error) | Condition::Refused(error)
                if line.channels > 0 =>
            {
                Some(error)
            }
            _ => None,
        });
        let channel = || {
            let astray = state.astray.values().next();
            astray.or_else(|| state.forbidden.error())
        };
        lost.or_else(channel).cloned()
    }

    /// Shows on the board whether a server refuses something. A connection that is being made again is nothing that the state of
    /// the backend tells: commands go on.
    fn show(&self, state: &mut State) {
        let board = &self.context.board;
        match (state.refusal().cloned(), state.light) {
            (Some(error), None) => state.light = Some(board.refuse(error)),
            (None, Some(light)) => {
                board.remove(light);
                state.light = None;
            }
            _ => {}
        }
    }
}

/// For the sessions.
impl Switchboard {
    /// Hands over a message, unless the channel lives elsewhere.
    pub(super) fn deliver(&self, session: u64, channel: &str, frame: &[u8]) {
        let place = self
            .state()
            .places
            .get(channel)
            .and_then(|place| place.confirmed);
        if place == Some(session) {
            self.hub.deliver(channel, frame);
        }
    }

    /// The server has confirmed a channel.
    pub(super) fn confirm(&self, home: &Home, session: u64, channel: &str) {
        let state = &mut *self.state();
        let current = state
            .lines
            .get(home)
            .is_some_and(|line| line.session == session);
        if current
            && let Some(place) = state.places.get_mut(channel)
            && place.lives_at(home)
        {
            state.astray.remove(channel);
            state.forbidden.remove(channel);
            let answers = std::mem::take(&mut place.waiting);
            self.confirmed(channel, place, session);
            self.show(state);
            // In this order: who is told finds the state as it is.
            answer(answers, &Ok(()));
        }
    }

    fn confirmed(&self, channel: &str, place: &mut Place, session: u64) {
        place.confirmed = Some(session);
        place.granted = true;
        self.hub.resume(channel);
        place.answer(&Ok(()));
    }
}

impl State {
    /// Whether there is a prospect of a subscription.
    fn check(&self, home: &Home) -> Result<(), Error> {
        match self.lines.get(home).map(|line| &line.condition) {
            Some(Condition::Away(cause) | Condition::Refused(cause)) => Err(not_subscribed(cause)),
            _ => Ok(()),
        }
    }

    /// Why a server does not let this user listen.
    fn refusal(&self) -> Option<&Error> {
        let mut lines = self.lines.values();
        let refused = lines.find_map(|line| match &line.condition {
            Condition::Refused(error) if line.channels > 0 => Some(error),
            _ => None,
        });
        refused.or_else(|| self.forbidden.error())
    }

    fn leave(&mut self, home: &Home, channel: &Arc<str>) {
        if let Some(line) = self.lines.get_mut(home) {
            line.channels -= 1;
            line.touch(channel);
        }
    }
}

impl Place {
    fn lives_at(&self, home: &Home) -> bool {
        self.home.as_ref() == Some(home)
    }

    fn answer(&mut self, outcome: &Result<(), Error>) {
        answer(std::mem::take(&mut self.waiting), outcome);
    }
}

fn answer(answers: Vec<Answer>, outcome: &Result<(), Error>) {
    for waiting in answers {
        // Who has given up needs no answer.
        let _ = waiting.send(outcome.clone());
    }
}

impl Line {
    fn new() -> Self {
        Self {
            changed: Arc::default(),
            channels: 0,
            dirty: HashSet::new(),
            session: 0,
            condition: Condition::Fine,
        }
    }

    fn touch(&mut self, channel: &Arc<str>) {
        self.dirty.insert(Arc::clone(channel));
        self.changed.notify_one();
    }
}

fn not_subscribed(cause: &Error) -> Error {
    if *cause.kind() == ErrorKind::Closed {
        return cause.clone();
    }
    Error::new(ErrorKind::Unavailable, "not subscribed").with_source(cause.clone())
}
