//! Units that this process reserves in the store, many at once, and spends by itself.
//!
//! A chunk is charged to the bucket after that of now, in each window of the policy, and may be spent until that bucket ends: so each
//! of its units counts for at least a window after it was spent (see [`strict`](crate::counter::strict)). What is left then is given
//! back to the bucket that it was charged to. The time is that of the store, carried on by this process from the moment at which it
//! asked, so a chunk never lasts too long.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use redis_conn::{Clock, Error, Subject};
use tokio::time::Instant;

use super::{
    Name, Turn, detached, for_each, name,
    rounds::Rounds,
    table::{Known, Table},
    turn,
};
use crate::{
    Decision, Policy, Source,
    counter::{Charge, Charged, strict},
    counters::Ask,
    shared::Shared,
    store::Asked,
};

/// After how many microseconds units that the store did not take back are offered again.
const OFFER_AGAIN: u64 = 100_000;

/// The chunks of this process.
#[derive(Debug)]
pub(crate) struct Leases {
    chunks: Table<Chunk>,
    rounds: Arc<Rounds>,
    /// Nothing more is reserved.
    closed: AtomicBool,
}

struct Chunk {
    policy: Policy,
    left: u32,
    /// Until when it may be spent, in microseconds since boot.
    until: u64,
    /// From when on the store counts none of it any more, whoever gives it back.
    expires: u64,
    charged: Charged,
    /// By which it was reserved.
    decision: Decision,
}

impl Chunk {
    fn has_lapsed(&self, now: u64) -> bool {
        self.until <= now
    }
}

impl Known for Chunk {
    fn is_over(&self, now: u64) -> bool {
        self.has_lapsed(now) && (self.left == 0 || self.expires <= now)
    }

    fn due(&self) -> u64 {
        self.until
    }
}

impl Leases {
    pub(crate) fn new(clock: &Arc<dyn Clock>, capacity: usize) -> Self {
        Self {
            chunks: Table::new(capacity),
            rounds: Rounds::new(clock),
            closed: AtomicBool::new(false),
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
        if let Some(decision) = self.spend(limiter, &name, policy, cost) {
            return Ok(decision);
        }
        let until = Instant::now() + limiter.timeout;
        if !self.closed.load(Ordering::Acquire)
            && let Some(place) = self.chunks.turn(&name, limiter.now())
        {
            let turn = turn(place, until).await?;
            // Whoever had it before may have reserved enough.
            if let Some(decision) = self.spend(limiter, &name, policy, cost) {
                return Ok(decision);
            }
            let reserve = reserve(Arc::clone(limiter), name, policy.clone(), cost, chunk, turn);
            if let Some(decision) = detached(&limiter.tasks, until, reserve).await? {
                return Ok(decision);
            }
        }
        // A chunk might not be granted where this is, and nobody would remember one where there is no room.
        let asked = Asked::new(Ask::All, Charge::of(cost));
        limiter.ask(policy, subject, asked, until).await
    }

    fn spend(&self, limiter: &Shared, name: &Name, policy: &Policy, cost: u32) -> Option<Decision> {
        let now = limiter.now();
        let spent = self.chunks.with(name, |chunk| {
            let fits = now < chunk.until && chunk.left >= cost && chunk.policy == *policy;
            fits.then(|| {
                chunk.left -= cost;
                chunk.decision.admit_here(cost, Source::Leased)
            })
        })??;
        limiter.fallback.charge(policy, &name.1, Charge::of(cost));
        Some(spent)
    }

    /// Gives back what is left of a chunk. Whoever does has its turn.
    async fn give_back(&self, limiter: &Shared, name: &Name) -> Result<(), Error> {
        let left = self.chunks.with(name, |chunk| {
            let left = std::mem::take(&mut chunk.left);
            (chunk.policy.clone(), left, chunk.charged)
        });
        let Some((policy, left @ 1.., charged)) = left else {
            return Ok(());
        };
        let given = limiter.take_back(&policy, &name.1, left, charged).await;
        match &given {
            Ok(()) => limiter.forget_refusal(&policy, &name.1),
            // It may have been taken back: better too few units than some twice.
            Err(error) if error.is_ambiguous() => {}
            Err(_) => drop(self.chunks.with(name, |chunk| chunk.left += left)),
        }
        given
    }

    /// Forgets a chunk whose units count no more, or are not to be spent.
    pub(crate) fn forget(&self, policy: &Policy, subject: &Subject) {
        self.chunks.forget(&name(policy, subject));
    }

    /// Gives back all that is left, and reserves nothing more.
    pub(crate) async fn drain(&self, limiter: &Arc<Shared>) -> Result<(), Error> {
        self.closed.store(true, Ordering::Release);
        give_back_all(limiter, self.chunks.names(), |_, _| true).await
    }

    fn come_by(&self, limiter: &Arc<Shared>, until: u64) {
        if self.rounds.at(until) {
            let rounds = Arc::clone(&self.rounds);
            let weak = Arc::downgrade(limiter);
            let round = move || {
                let limiter = weak.upgrade();
                async move { round(&limiter?).await }
            };
            limiter.tasks.follow(rounds.run(round));
        }
    }
}

/// Reserves units and spends of them what a call costs; nothing if that is more than was granted.
async fn reserve(
    limiter: Arc<Shared>,
    name: Name,
    policy: Policy,
    cost: u32,
    chunk: u32,
    _turn: Turn,
) -> Result<Option<Decision>, Error> {
    let leases = &limiter.leases;
    // What is left of the last one fits no call, or came too late. If the store does not answer to that, it will not to the next.
    let _ = leases.give_back(&limiter, &name).await;
    let (asked_at, forgotten) = (limiter.now(), leases.chunks.forgotten(&name));
    let charge = Charge {
        ahead: true,
        ..Charge::of(chunk.max(cost))
    };
    let asked = Asked::new(Ask::AtMost, charge);
    let until = Instant::now() + limiter.timeout;
    let decision = limiter.put(&policy, &name.1, asked, until).await?;
    let decision = decision.into_ahead();
    let Some(charged) = decision.charged() else {
        return Ok(None);
    };
    let granted = decision.units();
    let fits = granted >= cost;
    let spent = fits.then(|| decision.admit_here(cost, Source::Store));
    let spans = || policy.limits().iter().map(|limit| limit.span);
    let lasts = spans()
        .map(|span| strict::ahead_for(span, charged.at.at))
        .min();
    let counts = spans().map(strict::lifetime).max();
    let until = asked_at.saturating_add(lasts.unwrap_or_default());
    let chunk = Chunk {
        policy: policy.clone(),
        left: if fits { granted - cost } else { granted },
        until,
        expires: asked_at.saturating_add(counts.unwrap_or_default()),
        charged,
        decision,
    };
    let left = chunk.left;
    if leases.chunks.learn(&name, forgotten, chunk) {
        leases.come_by(&limiter, until);
    } else {
        // It was reserved before a reset or a block, and is not to be spent after that.
        let _ = limiter.take_back(&policy, &name.1, left, charged).await;
    }
    if fits {
        let charge = Charge::of(cost);
        limiter.fallback.charge(&policy, &name.1, charge);
    }
    Ok(spent)
}

/// Gives back what is left of the chunks that have lapsed. Tells when the next will.
async fn round(limiter: &Arc<Shared>) -> Option<u64> {
    let chunks = &limiter.leases.chunks;
    let lapsed = chunks.due(limiter.now());
    let given = give_back_all(limiter, lapsed, Chunk::has_lapsed).await;
    let again = match given {
        Ok(()) => 0,
        Err(_) => limiter.now().saturating_add(OFFER_AGAIN),
    };
    Some(chunks.next()?.max(again))
}

async fn give_back_all(
    limiter: &Arc<Shared>,
    names: Vec<Name>,
    which: fn(&Chunk, u64) -> bool,
) -> Result<(), Error> {
    let give_back = |name| {
        let limiter = Arc::clone(limiter);
        async move {
            let leases = &limiter.leases;
            let Some(place) = leases.chunks.turn(&name, limiter.now()) else {
                return Ok(());
            };
            let _turn = place.lock_owned().await;
            // Another may have come in its place.
            let now = limiter.now();
            match leases.chunks.with(&name, |chunk| which(chunk, now)) {
                Some(true) => leases.give_back(&limiter, &name).await,
                _ => Ok(()),
            }
        }
    };
    for_each(names, give_back).await
}
