//! A fence that most of the servers remember.
//!
//! A server stores a fence only if that is greater than the one it has stored, in one step; a grant counts when most of the servers have
//! stored its fence, and its leases last still. It begins with the greatest fence that one of the servers has given the grant, and
//! with one more than what it met where that was not enough.
//!
//! Each grant has a greater fence than all before for this reason. Of the majority that stored the fence of an earlier grant, and the
//! one that stored that of a later grant, one server is in both. It stored the earlier one first: the later grant was voted for by a
//! majority before it stored anything, one of those servers had voted for the earlier one too, and its lease had ended there by then,
//! which is after the earlier grant was counted, or never was. So that server has stored the later fence only as it is greater. Who votes
//! for whom is not asked for again: a server may store the fence of a grant that it did not vote for.

use std::time::Duration;

use redis_conn::{Error, ErrorKind};
use tokio::sync::mpsc;

use super::{
    Redlock, closed,
    votes::{Votes, too_late},
};
use crate::{LockError, LockOptions, OwnerId, name::Name, store::notes::Note};

/// For how long a fence is remembered after the last lease must have ended.
const WEEK: Duration = Duration::from_secs(7 * 24 * 3_600);
/// More, with the time, is no time of a server: some thirty years.
const LONGEST: Duration = Duration::from_secs(1_000_000_000);

/// The fence of a grant, as the servers remember it.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    pub(super) note: Note,
    pub(super) keep: Duration,
}

impl Fence {
    fn new(fence: u64, options: &LockOptions) -> Self {
        let held = options.longest().unwrap_or(LONGEST);
        Self {
            note: Note {
                slot: fence,
                // By this it is told that it is ours, if the answer to it was lost.
                value: OwnerId::new().to_string().into_bytes(),
            },
            keep: (WEEK.saturating_add(held).saturating_add(options.ttl)).min(LONGEST),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.note.slot
    }

    /// # Errors
    ///
    /// `Corrupt` if there is none.
    fn greater_than(mut self, seen: u64) -> Result<Self, Error> {
        let none = || {
            let text = format!("a server remembers the fence {seen}: expected a lesser one");
            Error::new(ErrorKind::Corrupt, text)
        };
        self.note.slot = seen.checked_add(1).ok_or_else(none)?;
        Ok(self)
    }
}

impl Redlock {
    /// Has most of the servers remember a fence for a grant, which is greater than each that they remember.
    pub(super) async fn fence(
        &self,
        votes: &Votes,
        name: &Name,
        options: &LockOptions,
    ) -> Result<Fence, LockError> {
        let mut fence = Fence::new(votes.fence(), options);
        loop {
            let seen = self.store(&fence, name, options.ttl).await?;
            // Else somebody else may have been granted it, and a greater fence, before this one was stored.
            if votes.quorum.why_lost().is_some() {
                return Err(too_late());
            }
            fence = match seen {
                None => return Ok(fence),
                Some(seen) => fence.greater_than(seen)?,
            };
        }
    }

    /// Has all servers store a fence, and waits for most of them. Tells the greatest that they remember if too few took this one.
    async fn store(
        &self,
        fence: &Fence,
        name: &Name,
        ttl: Duration,
    ) -> Result<Option<u64>, LockError> {
        let (answers, mut heard) = mpsc::unbounded_channel();
        for node in self.nodes.iter() {
            let (of, answers) = (node.clone(), answers.clone());
            let (name, fence) = (name.clone(), fence.clone());
            let storing = async move {
                let answer = of.remember(&name, &fence, ttl).await;
                // Who is not waited for any more knows of it all the same.
                let _ = answers.send(answer);
            };
            node.shared.tasks.spawn(storing).ok_or_else(closed)?;
        }
        drop(answers);
        let (all, required) = (self.nodes.len(), self.quorum());
        let (mut stored, mut refused, mut failed) = (0, 0, 0);
        let (mut greatest, mut cause) = (0, None);
        while failed <= all - required
            && let Some(answer) = heard.recv().await
        {
            match answer {
                Ok(None) => stored += 1,
                Ok(Some(seen)) => (refused, greatest) = (refused + 1, seen.max(greatest)),
                Err(error) => (failed, cause) = (failed + 1, cause.or(Some(error))),
            }
            if stored >= required {
                return Ok(None);
            }
            // A greater one is stored by all of these, and who is silent is not waited for.
            if refused > 0 && stored + refused >= required {
                return Ok(Some(greatest));
            }
        }
        match cause {
            Some(cause) => Err(LockError::FenceNotStored {
                stored,
                required,
                cause,
            }),
            None => Err(closed()),
        }
    }
}
