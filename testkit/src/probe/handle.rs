//! What a probe saw, and what it does next.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use tokio::sync::watch;

use crate::bound::within;

/// What a [`Probe`](super::Probe) and its clones have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ProbeStats {
    /// Calls.
    pub calls: usize,
    /// Polls of readiness, whatever the answer.
    pub ready_polls: usize,
    /// Clones made.
    pub clones: usize,
    /// Instances alive, the first one included.
    pub live_instances: usize,
    /// Response futures alive, finished or not.
    pub live_futures: usize,
    /// Response futures that finished.
    pub completed_futures: usize,
    /// Response futures dropped before they finished.
    pub cancelled_futures: usize,
}

/// How a [`Probe`](super::Probe) answers `poll_ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Readiness {
    /// At once.
    #[default]
    Ready,
    /// Not until it is set otherwise.
    Pending,
    /// `Pending` this many times for each call of each instance, then ready.
    PendingTimes(usize),
}

/// Asks and steers a [`Probe`](super::Probe) and all its clones.
#[derive(Debug, Clone)]
pub struct ProbeHandle {
    ledger: Arc<Ledger>,
}

impl ProbeHandle {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger }
    }

    /// Everything that was counted.
    pub fn stats(&self) -> ProbeStats {
        *self.ledger.stats.borrow()
    }

    /// How often the probe was called.
    pub fn calls(&self) -> usize {
        self.stats().calls
    }

    /// How many response futures are alive.
    pub fn live_futures(&self) -> usize {
        self.stats().live_futures
    }

    /// How many instances are alive.
    pub fn live_instances(&self) -> usize {
        self.stats().live_instances
    }

    /// What was done against the contract.
    pub fn violations(&self) -> Vec<String> {
        self.ledger.state().violations.clone()
    }

    /// Changes how readiness is answered, and wakes who waits for it.
    pub fn set_readiness(&self, readiness: Readiness) {
        let wakers = {
            let mut state = self.ledger.state();
            state.readiness = readiness;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until the statistics satisfy `condition`, and returns those that did.
    ///
    /// # Panics
    ///
    /// If they do not within ten seconds.
    pub async fn wait_for(&self, condition: impl FnMut(&ProbeStats) -> bool) -> ProbeStats {
        let mut receiver = self.ledger.stats.subscribe();
        let found = within("the probe's statistics", receiver.wait_for(condition)).await;
        *found.expect("the ledger holds the sender")
    }

    /// Checks that the contract was kept and that no response future is left.
    ///
    /// # Panics
    ///
    /// Otherwise.
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "contract violated: {violations:?}");
        assert_eq!(
            self.live_futures(),
            0,
            "response futures are left: {:?}",
            self.stats()
        );
    }
}

/// What all instances of a probe share.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    stats: watch::Sender<ProbeStats>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    readiness: Readiness,
    wakers: Vec<Waker>,
    violations: Vec<String>,
}

impl Ledger {
    pub(super) fn count(&self, count: impl FnOnce(&mut ProbeStats)) {
        self.stats.send_modify(count);
    }

    pub(super) fn violated(&self, what: String) {
        self.state().violations.push(what);
    }

    /// Whether an instance that answered `Pending` `delayed` times is ready now; the waker is woken
    /// when it is worth asking again.
    pub(super) fn grants_readiness(&self, waker: &Waker, delayed: &mut usize) -> bool {
        let mut state = self.state();
        match state.readiness {
            Readiness::Ready => true,
            Readiness::Pending => {
                state.wakers.push(waker.clone());
                false
            }
            Readiness::PendingTimes(times) if *delayed >= times => true,
            Readiness::PendingTimes(_) => {
                *delayed += 1;
                waker.wake_by_ref();
                false
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
