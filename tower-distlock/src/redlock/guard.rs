//! A lock that most of the servers have granted.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, timeout};

use super::{fence::Fence, node::Node, votes::Votes};
use crate::{
    LockError, LockOptions, LockToken, LostReason, Released, name::Name, quorum::Quorum,
    store::Outcome,
};

/// A lock that most of the servers have granted. Dropping it releases it on all of them.
///
/// While this process lives it is renewed on each server, and taken again on those that have lost it, until it has been held for
/// [`max_hold`](LockOptions::max_hold).
#[must_use = "the lock is released when this is dropped"]
pub struct RedlockGuard {
    held: Arc<Held>,
}

struct Held {
    name: Name,
    options: LockOptions,
    votes: Mutex<Option<Votes>>,
    quorum: Arc<Quorum>,
    fence: Option<Fence>,
    /// By when it is lost, whichever servers have granted it again.
    most: Option<Instant>,
}

impl RedlockGuard {
    pub(super) fn new(
        votes: Votes,
        name: Name,
        options: LockOptions,
        fence: Option<Fence>,
    ) -> Self {
        let nodes = Arc::clone(&votes.nodes);
        let held = Arc::new(Held {
            name,
            quorum: Arc::clone(&votes.quorum),
            most: options
                .longest()
                .and_then(|most| votes.since.checked_add(most)),
            options,
            votes: Mutex::new(Some(votes)),
            fence,
        });
        if held.options.renew
            && let Some(first) = nodes.first()
        {
            first.shared.tasks.follow(repair(Arc::downgrade(&held)));
        }
        Self { held }
    }

    /// The name of the lock.
    #[must_use]
    pub fn name(&self) -> &str {
        self.held.name.as_str()
    }

    /// A number greater than that of each grant of this lock before, which most of the servers remember; none unless
    /// [asked for](crate::RedlockBuilder::quorum_fence). What is written to under the lock refuses a fence that is less than one that it
    /// has seen.
    #[must_use]
    pub fn fence(&self) -> Option<u64> {
        self.held.fence.as_ref().map(Fence::number)
    }

    /// For how long most of the servers hold it without another renewal, by what this process knows.
    #[must_use]
    pub fn valid_for(&self) -> Duration {
        self.held.quorum.valid_for()
    }

    /// How many of the servers hold it, by what this process knows.
    #[must_use]
    pub fn votes(&self) -> usize {
        self.held.quorum.count()
    }

    /// Waits until fewer than most of the servers hold it, which needs no answer of any.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn lost(&self) -> LostReason {
        self.held.quorum.lost().await
    }

    /// Tells whether it is lost, also to what outlives this guard.
    #[must_use]
    pub fn token(&self) -> LockToken {
        LockToken::of_most(&self.held.quorum)
    }

    /// Releases it on all servers, and tells whether most of them held it until then. A server that does not answer in its time is
    /// not waited for.
    ///
    /// # Errors
    ///
    /// [`LockError::Backend`] if too few servers answered to tell. It is released on each when that answers, or when its lease ends.
    ///
    /// # Cancel safety
    ///
    /// A dropped call releases it too.
    pub async fn release(self) -> Result<Released, LockError> {
        let Some(votes) = self.held.votes().take() else {
            return Ok(Released::AlreadyExpired);
        };
        let (mut held, mut other, mut error) = (0, 0, None);
        let patience = Node::patience(self.held.options.ttl);
        let most = self.held.quorum.most();
        let releases = votes.into_votes().into_iter().filter_map(|(node, claim)| {
            // Each goes on when this does not wait any more.
            node.shared.tasks.spawn(claim.release())
        });
        let mut releases: FuturesUnordered<_> = releases.collect();
        let count = async {
            while let Some(released) = releases.next().await {
                match released {
                    Ok(Ok(Outcome::Held)) => held += 1,
                    Ok(Ok(Outcome::Other)) => other += 1,
                    Ok(Ok(Outcome::Absent)) | Err(_) => {}
                    Ok(Err(failed)) => error = Some(failed),
                }
                if held >= most {
                    return;
                }
            }
        };
        let in_time = timeout(patience, count).await.is_ok();
        match error {
            _ if held >= most => Ok(Released::Released),
            Some(error) => Err(error.into()),
            None if !in_time => Err(super::late()),
            None if other > 0 => Ok(Released::Stolen),
            None => Ok(Released::AlreadyExpired),
        }
    }
}

impl Held {
    fn votes(&self) -> MutexGuard<'_, Option<Votes>> {
        self.votes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lock again on servers that have lost it, while most hold it.
async fn repair(held: Weak<Held>) {
    loop {
        let Some(pause) = held.upgrade().map(|held| held.options.ttl / 3) else {
            return;
        };
        sleep(pause).await;
        let Some(held) = held.upgrade() else {
            return;
        };
        if held.quorum.why_lost().is_some() {
            return;
        }
        let mut options = held.options.clone();
        if let Some(most) = held.most {
            // Counted from the first grant: else it would be held for good by servers that lose it one after the other.
            let rest = most.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return;
            }
            options = options.max_hold(rest);
        }
        let missing = held.votes().as_mut().map(Votes::missing);
        let missing = missing.unwrap_or_default();
        let asking = missing.into_iter().map(async |(place, node)| {
            let vote = node.vote(&held.name, &options).await;
            if let (Ok(_), Some(fence)) = (&vote, &held.fence) {
                // It may have lost that too. Whether it takes it changes nothing for this grant.
                let _ = node.remember(&held.name, fence, held.options.ttl).await;
            }
            (place, vote)
        });
        for (place, vote) in futures_util::future::join_all(asking).await {
            // One that refuses still has no vote; one that is released meanwhile is let go of.
            if let (Ok(claim), Some(votes)) = (vote, held.votes().as_mut()) {
                if let Some((lease, _)) = claim.held() {
                    held.quorum.add(place, lease);
                }
                votes.add(place, Ok(claim));
            }
        }
    }
}

impl fmt::Debug for RedlockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedlockGuard")
            .field("name", &self.name())
            .field("votes", &self.votes())
            .field("valid_for", &self.valid_for())
            .finish_non_exhaustive()
    }
}
