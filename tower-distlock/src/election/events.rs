//! What happens in an election, as one sees it.

use tokio::sync::watch;

use super::{Leader, State};
use crate::{Held, LostReason};

/// What has happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ElectionEvent {
    /// The candidate leads from now on, under this lease with its fence.
    Started(Held),
    /// It leads no more. What it has begun is to end; who goes on is refused where the fence is checked.
    Stopped(LostReason),
    /// This one leads: another one, or the candidate itself.
    NewLeader(Leader),
}

/// What happens in an election, made by [`Candidate::events`](crate::Candidate::events).
///
/// It tells what has changed since it was asked last: who is slow is not told of what is over already, but always of the
/// [stop](ElectionEvent::Stopped) before the next [start](ElectionEvent::Started).
#[derive(Debug)]
pub struct ElectionEvents {
    state: watch::Receiver<State>,
    leader: Option<Leader>,
    leading: Option<Held>,
}

impl ElectionEvents {
    pub(super) fn new(state: watch::Receiver<State>) -> Self {
        Self {
            state,
            leader: None,
            leading: None,
        }
    }

    /// The next event; none when the campaign is over.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Option<ElectionEvent> {
        loop {
            if let Some(event) = self.changed() {
                return Some(event);
            }
            let lost = async {
                match &self.leading {
                    Some(held) => held.lost().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() {
                    // Whoever ran the campaign is gone, and so is what it led.
                    return self.leading.take().map(|held| stopped(&held));
                },
                // The task may be late to say so.
                _ = lost => {}
            }
        }
    }

    /// What is different from what was told.
    fn changed(&mut self) -> Option<ElectionEvent> {
        let state = self.state.borrow_and_update();
        let fence = |held: Option<&Held>| held.and_then(Held::fence);
        let leads = state.leads();
        if fence(self.leading.as_ref()) != fence(leads) {
            if let Some(held) = self.leading.take() {
                return Some(stopped(&held));
            }
            self.leading = leads.cloned();
            return self.leading.clone().map(ElectionEvent::Started);
        }
        if self.leader != state.leader {
            self.leader.clone_from(&state.leader);
            return self.leader.clone().map(ElectionEvent::NewLeader);
        }
        None
    }
}

fn stopped(held: &Held) -> ElectionEvent {
    ElectionEvent::Stopped(held.token().reason().unwrap_or(LostReason::Resigned))
}
