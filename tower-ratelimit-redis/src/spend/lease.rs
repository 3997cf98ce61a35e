//! Units that this process reserves in the store, many at once, and spends by itself.
//!
//! A chunk is charged to the bucket after that of now, in each window of the policy, and may be spent until that bucket ends: so each
//! of its units counts for at least a window after it was spent (see [`strict`](crate::counter::strict)). What is left then is given
//! back to the bucket that it was charged to. The time is that of the store, carried on by this process from the moment at which it
//! asked, so a chunk never lasts too long.

use std::{sync::Arc, time::Duration};

use redis_conn::{Error, Subject};
use tokio::sync::Mutex as AsyncMutex;

use super::{Name, Table, name};
use crate::{
    Decision, Policy, Source,
    counter::{Charge, Charged, strict},
    counters::Ask,
    shared::Shared,
    store::Asked,
};

/// The chunks of this process.
#[derive(Debug)]
pub(crate) struct Leases {
    chunks: Table<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    policy: Policy,
    left: u32,
    /// Until when it may be spent, in microseconds since boot.
    until: u64,
    charged: Charged,
    /// By which it was reserved.
    decision: Decision,
    /// One caller at a time reserves for all.
    reserving: Arc<AsyncMutex<()>>,
}

impl Leases {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            chunks: Table::new(capacity),
        }
    }

    /// Spends units of the chunk that there is, or reserves another.
    pub(crate) async fn decide(
        &self,
        limiter: &Arc<Shared>,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        chunk: u32,
    ) -> Result<Decision, Error> {
        let name = name(policy, subject);
        let reserving = match self.spend(&name, policy, cost, limiter.now()) {
            Spent::Here(decision) => return Ok(decision),
            Spent::Not(reserving) => reserving.unwrap_or_default(),
        };
        let _turn = reserving.lock().await;
        // Whoever had the turn before may have reserved enough.
        if let Spent::Here(decision) = self.spend(&name, policy, cost, limiter.now()) {
            return Ok(decision);
        }
        self.reserve(limiter, &name, policy, cost, chunk.max(cost), &reserving)
            .await
    }

    fn spend(&self, name: &Name, policy: &Policy, cost: u32, now: u64) -> Spent {
        let mut shard = self.chunks.shard(name);
        let Some(chunk) = shard.get_mut(name) else {
            return Spent::Not(None);
        };
        if now < chunk.until && chunk.left >= cost && chunk.policy == *policy {
            chunk.left -= cost;
            return Spent::Here(chunk.decision.admit_here(cost, Source::Leased));
        }
        Spent::Not(Some(Arc::clone(&chunk.reserving)))
    }

    async fn reserve(
        &self,
        limiter: &Arc<Shared>,
        name: &Name,
        policy: &Policy,
        cost: u32,
        units: u32,
        reserving: &Arc<AsyncMutex<()>>,
    ) -> Result<Decision, Error> {
        let subject = &name.1;
        // What is left of the last one fits no call, or came too late.
        self.give_back(limiter, name).await?;
        let asked_at = limiter.now();
        let charge = Charge {
            ahead: true,
            ..Charge::of(units)
        };
        let asked = Asked::new(Ask::AtMost, charge);
        let decision = limiter.ask(policy, subject, asked).await?.into_ahead();
        let Some(charged) = decision.charged() else {
            return limiter.look(policy, subject, cost).await;
        };
        let lasts = policy
            .limits()
            .iter()
            .map(|limit| strict::ahead_for(limit.span, charged.at.at))
            .min()
            .unwrap_or_default();
        let granted = decision.units();
        let fits = granted >= cost;
        let chunk = Chunk {
            policy: policy.clone(),
            left: if fits { granted - cost } else { granted },
            until: asked_at.saturating_add(lasts),
            charged,
            decision: decision.clone(),
            reserving: Arc::clone(reserving),
        };
        let (left, until) = (chunk.left, chunk.until);
        let now = limiter.now();
        if self.chunks.insert(name, chunk, |chunk| chunk.until <= now) {
            Self::lapse(limiter, name, until);
        } else if left > 0 {
            // There is no room to remember it.
            limiter.give_back(policy, subject, left, charged).await?;
        }
        if fits {
            return Ok(decision.admit_here(cost, Source::Store));
        }
        limiter.look(policy, subject, cost).await
    }

    /// Gives back what is left of a chunk.
    async fn give_back(&self, limiter: &Shared, name: &Name) -> Result<(), Error> {
        let left = {
            let mut shard = self.chunks.shard(name);
            shard.get_mut(name).map(|chunk| {
                let left = std::mem::take(&mut chunk.left);
                (chunk.policy.clone(), left, chunk.charged)
            })
        };
        match left {
            Some((policy, left @ 1.., charged)) => {
                limiter.give_back(&policy, &name.1, left, charged).await
            }
            _ => Ok(()),
        }
    }

    /// Gives back all that is left.
    pub(crate) async fn drain(&self, limiter: &Shared) -> Result<(), Error> {
        for name in self.chunks.names() {
            self.give_back(limiter, &name).await?;
        }
        Ok(())
    }

    /// Gives back what is left when the chunk has lapsed, and forgets it where no other came in its place.
    fn lapse(limiter: &Arc<Shared>, name: &Name, until: u64) {
        let (limiter, name) = (Arc::downgrade(limiter), name.clone());
        let wait = limiter
            .upgrade()
            .map(|limiter| until.saturating_sub(limiter.now()));
        let wait = Duration::from_micros(wait.unwrap_or_default());
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let Some(limiter) = limiter.upgrade() else {
                return;
            };
            let leases = &limiter.leases;
            let is_over = |chunk: &Chunk| chunk.until == until;
            if !leases.chunks.shard(&name).get(&name).is_some_and(is_over) {
                return;
            }
            // Without an answer they count until they expire.
            let _ = leases.give_back(&limiter, &name).await;
            let mut shard = leases.chunks.shard(&name);
            if shard.get(&name).is_some_and(is_over) {
                shard.remove(&name);
            }
        });
    }
}

enum Spent {
    Here(Decision),
    /// Somebody must reserve units; where there was a chunk, those who wait for that have one turn.
    Not(Option<Arc<AsyncMutex<()>>>),
}
