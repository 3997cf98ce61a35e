//! Elections: of all candidates one leads, until it resigns or dies.

mod campaign;
mod events;

use std::{fmt, future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use redis_conn::{Error, ErrorKind, Phase};
use tokio::sync::{RwLock, watch};

use self::campaign::Campaign;
pub use self::events::{ElectionEvent, ElectionEvents};
use crate::{
    Held, Holder, LockError, LockOptions, Locks, OwnerId, background::Background, metrics,
    name::Name,
};

/// An election: of all processes that [campaign](Self::campaign) under a name one leads. The lock is `election:` and the name.
///
/// Leading is a lease. Who leads renews it, and steps down on its own if that did not succeed for the [renew
/// deadline](Self::renew_deadline), before the lease ends and somebody else leads. A process that is stopped for longer than that leads
/// no more when it goes on, but may not have noticed yet: have what is written to check the [fence](Held::fence).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redis_conn::Backend;
/// use tower_distlock::{Election, Locks};
///
/// let locks = Locks::new(&Backend::memory())?;
/// let candidate = Election::new(&locks, "reports").campaign()?;
/// let fence = candidate.lead(|held| async move { held.fence() }).await;
/// assert!(fence.is_some() && candidate.is_leader());
/// candidate.resign().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Election {
    locks: Locks,
    name: Arc<str>,
    lease: Duration,
    renew_deadline: Duration,
    retry: Duration,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// This leadership, which no other one is.
    pub id: OwnerId,
    /// The instance.
    pub instance: String,
    /// The fence of the leadership, greater than that of each one before.
    pub fence: u64,
}

impl Leader {
    fn of(holder: Holder) -> Self {
        Self {
            id: holder.owner,
            instance: holder.instance,
            fence: holder.fence,
        }
    }
}

/// What a candidate knows.
#[derive(Clone, Debug, Default)]
struct State {
    leader: Option<Leader>,
    /// That it leads itself.
    leading: Option<Held>,
}

impl State {
    /// The leadership of this candidate, if it has not lost it: whoever is to write that down may be late.
    fn leads(&self) -> Option<&Held> {
        let leading = self.leading.as_ref();
        leading.filter(|held| !held.token().is_lost())
    }
}

/// One who campaigns, as long as this lives: in the background, on the runtime that built the backend. Dropping it resigns; closing the
/// backend does too.
#[must_use = "it resigns when this is dropped"]
pub struct Candidate {
    name: Arc<str>,
    state: watch::Receiver<State>,
    /// Read by those who work as long as it leads.
    work: Arc<RwLock<()>>,
    background: Arc<Background>,
}

impl Election {
    /// An election of this name, fixed in code, with a lease of 15 s that must be renewed within 10 s; who does not lead looks who does
    /// each 2 s.
    pub fn new(locks: &Locks, name: &str) -> Self {
        Self {
            locks: locks.clone(),
            name: name.into(),
            lease: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }

    /// How soon another one leads when the process of the leader dies. It is renewed every third of it.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// For how long a leader that cannot renew its lease goes on: less than the lease, so that it has stopped when another one starts,
    /// and at least half of it, so that one renewal may fail.
    pub fn renew_deadline(mut self, renew_deadline: Duration) -> Self {
        self.renew_deadline = renew_deadline;
        self
    }

    /// How often those who do not lead look who does, and how long is waited after an error.
    pub fn retry(mut self, retry: Duration) -> Self {
        self.retry = retry;
        self
    }

    /// Becomes a candidate.
    ///
    /// # Errors
    ///
    /// `Config` that names what cannot be: a name, or times that contradict each other. `Closed` if the backend is closed or there is
    /// no runtime.
    pub fn campaign(&self) -> Result<Candidate, Error> {
        self.check()?;
        metrics::election_known(&self.name);
        let (states, state) = watch::channel(State::default());
        let work = Arc::new(RwLock::new(()));
        let campaign = Campaign {
            election: self.clone(),
            states,
            work: Arc::clone(&work),
        };
        let start = |stop| campaign.run(stop);
        Ok(Candidate {
            name: Arc::clone(&self.name),
            state,
            work,
            background: Background::start(&self.locks, "election", Phase::Election, start)?,
        })
    }

    /// Who leads now, without being a candidate.
    ///
    /// # Errors
    ///
    /// [`LockError::Backend`] if the store does not answer or the name cannot be one.
    pub async fn leader(&self) -> Result<Option<Leader>, LockError> {
        let holders = self.locks.holders(&self.lock()).await?;
        Ok(holders.into_iter().next().map(Leader::of))
    }

    fn lock(&self) -> String {
        format!("election:{}", self.name)
    }

    fn options(&self) -> LockOptions {
        LockOptions::new()
            .ttl(self.lease)
            .wait_forever()
            .warn_after(Duration::MAX)
            .endless()
    }

    fn check(&self) -> Result<(), Error> {
        Name::new(&self.lock())?;
        self.options().check()?;
        let wrong = |text| Err(Error::new(ErrorKind::Config, text));
        if self.renew_deadline >= self.lease || self.renew_deadline < self.lease / 2 {
            return wrong(format!(
                "renew_deadline {:?}: expected less than the lease of {:?}, and at least half of it",
                self.renew_deadline, self.lease
            ));
        }
        if self.retry.is_zero() || self.retry > self.renew_deadline {
            return wrong(format!(
                "retry {:?}: expected some time up to the renew_deadline of {:?}",
                self.retry, self.renew_deadline
            ));
        }
        Ok(())
    }
}

impl Candidate {
    /// Whether it leads, by what this process knows: no question, and no answer needed.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.state.borrow().leads().is_some()
    }

    /// What is known of its own leadership, to be given to what works under it; none if it does not lead.
    #[must_use]
    pub fn leadership(&self) -> Option<Held> {
        self.state.borrow().leads().cloned()
    }

    /// Who leads, as far as this process has seen.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        self.state.borrow().leader.clone()
    }

    /// What happens from now on, beginning with what is so now.
    #[must_use]
    pub fn events(&self) -> ElectionEvents {
        ElectionEvents::new(self.state.clone())
    }

    /// Waits until it leads and runs the body then. If it stops leading, the body is dropped, and begun anew when it leads the next
    /// time; nobody of this process leads before it was dropped. Returns the output of the body, or none if the campaign is over.
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the body. The candidate goes on leading.
    pub async fn lead<T, F>(&self, mut body: impl FnMut(Held) -> F) -> Option<T>
    where
        F: Future<Output = T>,
    {
        let mut state = self.state.clone();
        loop {
            state.wait_for(|state| state.leads().is_some()).await.ok()?;
            let working = self.work.read().await;
            // It may have stopped while this waited.
            let Some(held) = self.leadership() else {
                drop(working);
                state.changed().await.ok()?;
                continue;
            };
            if let Some(output) = while_held(&held, body(held.clone())).await {
                return Some(output);
            }
        }
    }

    /// Stops to lead and to campaign, and waits until that is done: what [`lead`](Self::lead) runs was dropped then, and another one
    /// may lead.
    ///
    /// # Cancel safety
    ///
    /// A dropped call resigns too.
    pub async fn resign(self) {
        self.background.stop();
        self.background.ended().await;
    }
}

/// Polls a future as long as the lock is held.
async fn while_held<F: Future>(held: &Held, running: F) -> Option<F::Output> {
    let (mut running, mut lost) = (pin!(running), pin!(held.lost()));
    poll_fn(|context| {
        // First of all: a process that was stopped must not go on by one step.
        if lost.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        running.as_mut().poll(context).map(Some)
    })
    .await
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.background.stop();
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election")
            .field("name", &self.name)
            .field("lease", &self.lease)
            .field("renew_deadline", &self.renew_deadline)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("name", &self.name)
            .field("is_leader", &self.is_leader())
            .field("leader", &self.leader())
            .finish_non_exhaustive()
    }
}
