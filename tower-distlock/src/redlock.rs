//! One lock on several independent servers: whoever has most of them has it.
//!
//! The algorithm is Redlock, as the documentation of Redis describes it, with what was said about it since: all servers are asked at
//! the same time and none is waited for beyond its deadline, the time that the question took is taken off the lease, a refusal leaves
//! nothing anywhere, and a server that was started lately has no vote.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use redis_conn::{Backend, Error, ErrorKind};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

pub use self::guard::RedlockGuard;
use self::{fence::Fence, node::Node, votes::Votes};
use crate::{
    Held, LockError, LockOptions, WithLockError,
    claim::Claim,
    name::Name,
    options::Wait,
    owner::random,
    with_lock::{under, without},
};

mod fence;
mod guard;
mod node;
mod votes;

/// Locks on several independent servers, none of which replicates another. Clones share everything.
///
/// It does one thing better than one server with a replica: a server may be gone for good, and no lock is granted twice for that. It
/// costs as many commands as there are servers, has no queue, and is no more than a lease either. A
/// [fence](crate::LockGuard::fence) is of one server, so there is none here, but for [one](RedlockBuilder::quorum_fence) that most of
/// them remember.
#[derive(Clone)]
pub struct Redlock {
    nodes: Arc<[Arc<Node>]>,
    fences: bool,
}

/// Makes a [`Redlock`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RedlockBuilder {
    nodes: Vec<Backend>,
    gate: Gate,
    fences: bool,
}

/// Whether a server votes that was started lately.
#[derive(Clone, Copy, Debug)]
enum Gate {
    /// When it has been up for as long as the lease that is asked for.
    Lease,
    /// When it has been up for so long.
    Longest(Duration),
    Open,
}

impl Gate {
    /// For how long a server must have been up.
    fn least(self, ttl: Duration) -> Option<Duration> {
        match self {
            Self::Lease => Some(ttl),
            Self::Longest(longest) => Some(longest.max(ttl)),
            Self::Open => None,
        }
    }
}

impl Redlock {
    /// Asks these servers, each of which is a backend of its own.
    pub fn builder<'a>(nodes: impl IntoIterator<Item = &'a Backend>) -> RedlockBuilder {
        RedlockBuilder {
            nodes: nodes.into_iter().cloned().collect(),
            gate: Gate::Lease,
            fences: false,
        }
    }

    /// How many servers must agree.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// Acquires a lock on most of the servers, and tries again after a random pause while the options let it wait.
    ///
    /// No server is waited for longer than a twentieth of the ttl (10 ms to 1 s).
    ///
    /// # Errors
    ///
    /// [`LockError::NotAcquired`] and [`LockError::TimedOut`] if others hold it on too many servers; [`LockError::Backend`] if too many
    /// did not answer, were started too lately, or two of them are the same server (`Config`); [`LockError::FenceNotStored`] if too
    /// few took its fence, where there is to be one. What was granted is released on all of them, also on those that answer late.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves nothing behind.
    pub async fn acquire(
        &self,
        name: &str,
        options: LockOptions,
    ) -> Result<RedlockGuard, LockError> {
        options.check()?;
        let (name, begun) = (Name::new(name)?, Instant::now());
        self.introduce(options.ttl).await?;
        loop {
            let error = match self.grant(&name, &options).await {
                Ok((votes, fence)) => return Ok(RedlockGuard::new(votes, name, options, fence)),
                Err(error) => error,
            };
            let waits = match options.wait {
                Wait::Once => false,
                Wait::For(wait) => begun.elapsed() < wait,
                Wait::Forever => true,
            };
            if !(error.is_busy() || error.is_outage()) || options.wait == Wait::Once {
                return Err(error);
            }
            if !waits {
                return Err(timed_out(error, begun.elapsed()));
            }
            // Those who divide the servers among themselves must not meet again.
            sleep(Duration::from_millis(20 + random() % 180)).await;
        }
    }

    /// Runs a future under a lock on most of the servers, and releases the lock before this returns.
    ///
    /// If most of the servers do not hold it any more while the future runs, the future is dropped at once, or as
    /// [`OnLost`](crate::OnLost) says; else it is as with [`Locks::with_lock`](crate::Locks::with_lock). [`Held::fence`] is the
    /// [fence](RedlockGuard::fence) of the guard.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use redis_conn::Backend;
    /// use tower_distlock::{LockOptions, Redlock};
    ///
    /// let servers = [Backend::memory(), Backend::memory(), Backend::memory()];
    /// let redlock = Redlock::builder(&servers).quorum_fence().build()?;
    /// let options = LockOptions::new().try_once();
    /// let fence = redlock
    ///     .with_lock("cron:overdue-tasks", options, async |held| {
    ///         Ok::<_, std::io::Error>(held.fence())
    ///     })
    ///     .await?;
    /// assert!(fence.is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`WithLockError::NotAcquired`]: the future did not run. [`WithLockError::Lost`], with its output if it had one: somebody else
    /// may have run at the same time. [`WithLockError::Inner`]: its own error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call drops the future and releases the lock.
    pub async fn with_lock<T, E, F>(
        &self,
        name: &str,
        options: LockOptions,
        body: F,
    ) -> Result<T, WithLockError<E, T>>
    where
        F: AsyncFnOnce(Held) -> Result<T, E>,
    {
        let guard = match self.acquire(name, options.clone()).await {
            Ok(guard) => guard,
            Err(error) => return without(error, &options, body).await,
        };
        let held = Held::of_most(&guard);
        under(guard, held, options.on_lost, body, RedlockGuard::release).await
    }

    /// Has servers say which they are, each until it has answered once.
    ///
    /// # Errors
    ///
    /// `Config` if two are the same.
    async fn introduce(&self, ttl: Duration) -> Result<(), Error> {
        let nodes = self.nodes.iter().map(|node| node.introduce(ttl));
        futures_util::future::join_all(nodes).await;
        let runs: Vec<_> = self.nodes.iter().filter_map(|node| node.run()).collect();
        let distinct: HashSet<_> = runs.iter().collect();
        if distinct.len() < runs.len() {
            return Err(Error::new(
                ErrorKind::Config,
                "two backends lead to the same server: expected each to be another one",
            ));
        }
        Ok(())
    }

    /// Asks all servers once, and has them remember a fence if there is to be one. What is granted is let go of if they do not.
    async fn grant(
        &self,
        name: &Name,
        options: &LockOptions,
    ) -> Result<(Votes, Option<Fence>), LockError> {
        let votes = self.round(name, options).await?;
        if !self.fences {
            return Ok((votes, None));
        }
        // In a box, as all that few locks come to.
        let fence = Box::pin(self.fence(&votes, name, options)).await?;
        Ok((votes, Some(fence)))
    }

    /// Asks all servers once.
    async fn round(&self, name: &Name, options: &LockOptions) -> Result<Votes, LockError> {
        let (votes, mut heard) = mpsc::unbounded_channel();
        let mut counted = Votes::new(&self.nodes);
        for (place, node) in self.nodes.iter().enumerate() {
            let (node, votes) = (Arc::clone(node), votes.clone());
            let (name, options) = (name.clone(), options.clone());
            let quorum = Arc::clone(&counted.quorum);
            let asking = async move {
                let vote = node.vote(&name, &options).await;
                if let Ok(Some((lease, _))) = vote.as_ref().map(Claim::held) {
                    quorum.add(place, lease);
                }
                // Who comes too late for the decision is let go of by being dropped, or is one more.
                let _ = votes.send((place, vote));
            };
            let tasks = &self.nodes[place].shared.tasks;
            tasks.spawn(asking).ok_or_else(closed)?;
        }
        drop(votes);
        while let Some((place, vote)) = heard.recv().await {
            counted.add(place, vote);
            if counted.is_decided(self.quorum()) {
                break;
            }
        }
        counted.listen(heard);
        counted.outcome(self.quorum())
    }
}

impl RedlockBuilder {
    /// The longest lease that anybody asks for. A server that was started more lately than that has no vote: it may have lost a lock
    /// that is held still. The ttl that is asked for if not set; the lock cannot be had so long after most servers were started.
    pub fn longest_lease(mut self, longest: Duration) -> Self {
        self.gate = Gate::Longest(longest);
        self
    }

    /// Lets servers vote that were started just now: two may hold a lock then, after a server lost it by a restart.
    pub fn without_gate(mut self) -> Self {
        self.gate = Gate::Open;
        self
    }

    /// Gives each grant a [fence](RedlockGuard::fence) that most of the servers remember: greater than that of each grant of the same name
    /// before, whichever servers granted it. It is written to all of them before [`acquire`](Redlock::acquire) returns, which takes one
    /// more round trip, and one more each time that a server remembers a greater one. All who acquire a lock for its fence must set
    /// this.
    ///
    /// It rests on each two majorities having a server in common that remembers. A server that was started lately is not counted on,
    /// and has what it forgot by the next grant that it hears of, or from the holder that [takes the lock again](RedlockGuard) there.
    /// What is not promised: a fence that only two of three servers had heard of is forgotten if one of them loses its memory, no
    /// grant tells it in time, and the other one is away. Then a fence is greater by the clocks of the servers with
    /// [`FenceMode::Clock`](crate::FenceMode::Clock), and may be less with [`FenceMode::Counter`](crate::FenceMode::Counter). Nobody
    /// remembers it for longer than a week after the lock can have been held at the latest: again a matter of the clocks.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use redis_conn::Backend;
    /// use tower_distlock::{LockOptions, Redlock};
    ///
    /// let servers = [Backend::memory(), Backend::memory(), Backend::memory()];
    /// let redlock = Redlock::builder(&servers).quorum_fence().build()?;
    /// let first = redlock.acquire("migration:users", LockOptions::new()).await?;
    /// let before = first.fence();
    /// first.release().await?;
    /// let second = redlock.acquire("migration:users", LockOptions::new()).await?;
    /// assert!(before.is_some() && second.fence() > before);
    /// # Ok(()) }
    /// ```
    pub fn quorum_fence(mut self) -> Self {
        self.fences = true;
        self
    }

    /// # Errors
    ///
    /// `Config` if there is no server, if one of them is given twice, or if this crate was built without the feature of a backend.
    /// Whether two backends lead to one server is known only when both have answered: see [`Redlock::acquire`].
    pub fn build(self) -> Result<Redlock, Error> {
        let wrong = |what: &str| Err(Error::new(ErrorKind::Config, what));
        if self.nodes.is_empty() {
            return wrong("no servers: expected an odd number of them, from 3 on");
        }
        let nodes = self.nodes.iter().map(|node| Node::new(node, self.gate));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        for (place, node) in nodes.iter().enumerate() {
            if nodes[..place].iter().any(|other| other.is(node)) {
                return wrong("a server is given twice: expected each to be another one");
            }
        }
        Ok(Redlock {
            nodes: nodes.into(),
            fences: self.fences,
        })
    }
}

fn timed_out(error: LockError, waited: Duration) -> LockError {
    match error {
        LockError::NotAcquired { owner, .. } => LockError::TimedOut { waited, owner },
        other => other,
    }
}

fn late() -> LockError {
    let text = "too few servers had an answer in their time";
    Error::new(ErrorKind::Timeout, text).into()
}

fn closed() -> LockError {
    Error::new(ErrorKind::Closed, "no runtime to ask a server on").into()
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redlock")
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}
