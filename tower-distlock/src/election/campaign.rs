//! The task of a candidate.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{RwLock, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Election, Leader, State};
use crate::{
    Held, LockError, LockGuard, LostReason, background::Stop, lease::relied_upon, metrics::Leading,
    owner::random, store::CLAIM, trace::event,
};

pub(super) struct Campaign {
    pub(super) election: Election,
    pub(super) states: watch::Sender<State>,
    /// Written to when nobody works any more.
    pub(super) work: Arc<RwLock<()>>,
}

impl Campaign {
    pub(super) async fn run(self, mut stop: Stop) {
        while !stop.is_told() {
            let name = &self.election.name;
            let campaigned = tokio::select! {
                biased;
                () = stop.told() => return,
                campaigned = self.lock() => campaigned,
                () = self.observe() => return,
            };
            let guard = match campaigned {
                Ok(guard) => guard,
                Err(error) => {
                    event!(error, "election {name}: {error}");
                    tokio::select! {
                        () = stop.told() => return,
                        () = sleep(self.pause()) => continue,
                    }
                }
            };
            let leading = self.started(&guard);
            let why = self.lead(&guard, &mut stop).await;
            leading.end();
            self.stopped(guard, why).await;
        }
    }

    async fn lock(&self) -> Result<LockGuard, LockError> {
        // Who worked while it led the last time has noticed that it does not any more.
        drop(self.work.write().await);
        let election = &self.election;
        let locks = &election.locks;
        locks.acquire(&election.lock(), election.options()).await
    }

    /// Sees who leads, as long as it is somebody else.
    async fn observe(&self) {
        loop {
            match self.election.leader().await {
                Ok(leader) => {
                    self.states.send_if_modified(|state| {
                        let is_new = state.leader != leader;
                        state.leader = leader;
                        is_new
                    });
                }
                Err(error) => {
                    event!(
                        debug,
                        "election {}: who leads is not known: {error}",
                        self.election.name
                    );
                }
            }
            sleep(self.pause()).await;
        }
    }

    /// Candidates do not all ask at the same time.
    fn pause(&self) -> Duration {
        let percent = 80 + u32::try_from(random() % 21).unwrap_or_default();
        self.election.retry * percent / 100
    }

    /// One who has come to lead: the one place for figures about it.
    fn started(&self, guard: &LockGuard) -> Leading {
        let (name, fence) = (&self.election.name, guard.fence());
        event!(info, "election {name}: leads from now on, fence {fence}");
        self.states.send_modify(|state| {
            state.leader = Some(Leader {
                id: guard.owner(),
                instance: self.election.locks.shared.backend.instance_id().to_owned(),
                fence,
            });
            state.leading = Some(Held::of(guard));
        });
        Leading::of(name)
    }

    /// Waits until it does not lead any more, and tells why.
    async fn lead(&self, guard: &LockGuard, stop: &mut Stop) -> LostReason {
        let Election {
            lease,
            renew_deadline,
            ..
        } = self.election;
        // A grant that came by a message lasts for a moment only, until it is confirmed.
        let first = Instant::now() + CLAIM.min(renew_deadline);
        let deadline = || {
            let asked = guard.lease().until().checked_sub(relied_upon(lease));
            asked.map_or(first, |asked| first.max(asked + renew_deadline))
        };
        loop {
            let steps_down = deadline();
            tokio::select! {
                biased;
                reason = guard.lost() => return reason,
                () = stop.told() => return LostReason::Resigned,
                () = sleep_until(steps_down) => {
                    if deadline() <= Instant::now() {
                        return LostReason::Expired;
                    }
                }
            }
        }
    }

    /// One who leads no more: the one place for figures about it. It lets go of the lock when those who work have stopped, which they
    /// have until the lease ends to do.
    async fn stopped(&self, guard: LockGuard, why: LostReason) {
        let (name, left) = (&self.election.name, guard.valid_for());
        event!(info, "election {name}: leads no more: {why}");
        guard.lease().lose(why);
        self.states.send_modify(|state| {
            state.leading = None;
            if state
                .leader
                .as_ref()
                .is_some_and(|leader| leader.id == guard.owner())
            {
                state.leader = None;
            }
        });
        // Else the lease has ended by then.
        let _ = timeout(left, self.work.write()).await;
        if let Err(error) = guard.release().await {
            event!(warn, "election {name}: the lease ends by itself: {error}");
        }
    }
}
