//! Counts that this process keeps by itself, and tells the store of each so often.
//!
//! A call is admitted while what the store told last, and what this process has admitted since, leave room for it. The store hears of
//! that after the interval, whatever the limits: it has happened. Until then other processes know nothing of it, so more than the limit
//! is admitted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis_conn::{Clock, Error, ErrorKind, Subject};
use tokio::time::Instant;

use super::{
    Name, Turn, detached, for_each, name,
    rounds::Rounds,
    table::{Known, Table},
    turn,
};
use crate::{
    Decision, Policy, Source,
    counter::Charge,
    counters::Ask,
    shared::Shared,
    store::{Asked, micros},
};

/// After how many microseconds the store is told again of what it did not answer to.
const TELL_AGAIN: u64 = 100_000;

/// What this process has admitted and the store does not know yet.
#[derive(Debug)]
pub(crate) struct Behind {
    counts: Table<Count>,
    rounds: Arc<Rounds>,
    /// Nothing more is counted here.
    closed: AtomicBool,
}

struct Count {
    policy: Policy,
    interval: u64,
    /// What the store told last.
    told: Decision,
    /// How many units it had room for then.
    room: u32,
    /// What was admitted since.
    since: u32,
    /// When the store is told of it, in microseconds since boot.
    due: u64,
    /// When nothing of it counts any more, whether the store was told or not.
    expires: u64,
}

impl Known for Count {
    fn is_over(&self, now: u64) -> bool {
        let is_told = self.since == 0 && self.due <= now;
        is_told || self.expires <= now
    }

    fn due(&self) -> u64 {
        self.due
    }
}

impl Behind {
    pub(crate) fn new(clock: &Arc<dyn Clock>, capacity: usize) -> Self {
        Self {
            counts: Table::new(capacity),
            rounds: Rounds::new(clock),
            closed: AtomicBool::new(false),
        }
    }

    /// Decides by what is known; where nothing is, or nothing is left, the store does.
    pub(crate) async fn decide(
        &self,
        limiter: &Arc<Shared>,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        interval: Duration,
    ) -> Result<Decision, Error> {
        let name = name(policy, subject);
        if let Some(decision) = self.admit(limiter, &name, policy, asked) {
            return Ok(decision);
        }
        let until = Instant::now() + limiter.timeout;
        let Some(place) = self.counts.turn(&name, limiter.now()) else {
            // Where there is no room to remember it, the store decides.
            return limiter.ask(policy, subject, asked, until).await;
        };
        let mut turn = Some(turn(place, until).await?);
        // Whoever had it before may have asked.
        if let Some(decision) = self.admit(limiter, &name, policy, asked) {
            return Ok(decision);
        }
        // What the store does not know yet counts too.
        if self.counts.with(&name, |count| count.since) > Some(0)
            && let Some(has_turn) = turn.take()
        {
            let tell = tell(Arc::clone(limiter), name.clone(), has_turn);
            turn = Some(detached(&limiter.tasks, until, tell).await?);
            if let Some(decision) = self.admit(limiter, &name, policy, asked) {
                return Ok(decision);
            }
        }
        let now = limiter.now();
        let is_known = |count: &mut Count| now < count.due && count.policy == *policy;
        if self.counts.with(&name, is_known) == Some(true) {
            // Nothing is left, and others need not wait to hear that.
            turn = None;
        }
        let told = limiter.ask(policy, subject, asked, until).await?;
        self.learn(limiter, &name, policy, &told, micros(interval));
        drop(turn);
        Ok(told)
    }

    fn admit(
        &self,
        limiter: &Shared,
        name: &Name,
        policy: &Policy,
        asked: Asked,
    ) -> Option<Decision> {
        if asked.ask != Ask::All || self.closed.load(Ordering::Acquire) {
            return None;
        }
        let (now, cost) = (limiter.now(), asked.charge.units);
        let decision = self.counts.with(name, |count| {
            let since = count.since.checked_add(cost)?;
            if since > count.room || now >= count.due || count.policy != *policy {
                return None;
            }
            count.since = since;
            count.expires = expires(policy, now);
            Some(count.told.admit_here(cost, Source::Behind))
        })??;
        limiter.fallback.charge(policy, &name.1, asked.charge);
        Some(decision)
    }

    fn learn(
        &self,
        limiter: &Arc<Shared>,
        name: &Name,
        policy: &Policy,
        told: &Decision,
        interval: u64,
    ) {
        let now = limiter.now();
        let due = now.saturating_add(interval);
        self.counts.put(name, |known| {
            Some(Count {
                policy: policy.clone(),
                interval,
                told: told.clone(),
                room: room(told),
                // Others may have been admitted while this was asked.
                since: known.map_or(0, |count| count.since),
                due,
                expires: expires(policy, now).max(due),
            })
        });
        if self.rounds.at(due) {
            let rounds = Arc::clone(&self.rounds);
            // It holds the limiter, which nobody else may until the store has heard of all.
            let held = Arc::clone(limiter);
            let round = move || round(Arc::clone(&held));
            limiter.tasks.follow(rounds.run(round));
        }
    }

    /// Takes back units: those that the store does not know yet it never will, and of the rest as many as it was told of last.
    pub(crate) async fn refund(
        &self,
        limiter: &Shared,
        policy: &Policy,
        subject: &Subject,
        units: u32,
    ) -> Result<(), Error> {
        let known = self.counts.with(&name(policy, subject), |count| {
            let here = units.min(count.since);
            count.since -= here;
            (here, count.told.charged())
        });
        let (here, charged) = known.unwrap_or_default();
        limiter.fallback.refund(policy, subject, here);
        match charged {
            Some(charged) if units > here => {
                let rest = units - here;
                limiter.give_back(policy, subject, rest, charged).await
            }
            _ => Ok(()),
        }
    }

    /// Forgets what is known of a subject, and what was admitted since.
    pub(crate) fn forget(&self, policy: &Policy, subject: &Subject) {
        self.counts.forget(&name(policy, subject));
    }

    /// Admits nothing more by what is known of a subject.
    pub(crate) fn ask_again(&self, policy: &Policy, subject: &Subject) {
        let stop = |count: &mut Count| count.room = 0;
        self.counts.with(&name(policy, subject), stop);
    }

    /// Writes all that the store does not know yet, and has it decide from now on.
    pub(crate) async fn drain(&self, limiter: &Arc<Shared>) -> Result<(), Error> {
        self.closed.store(true, Ordering::Release);
        tell_all(limiter, self.counts.names()).await
    }
}

/// Tells the store what was admitted since it was told last.
async fn tell(limiter: Arc<Shared>, name: Name, turn: Turn) -> Result<Turn, Error> {
    let counts = &limiter.behind.counts;
    let taken = counts.with(&name, |count| {
        let since = std::mem::take(&mut count.since);
        count.room = count.room.saturating_sub(since);
        (count.policy.clone(), since)
    });
    let Some((policy, since @ 1..)) = taken else {
        return Ok(turn);
    };
    let asked = Asked::new(Ask::Anyway, Charge::of(since));
    let until = Instant::now() + limiter.timeout;
    let told = limiter.put(&policy, &name.1, asked, until).await;
    let now = limiter.now();
    counts.with(&name, |count| match &told {
        Ok(told) => count.hear(&policy, told, now),
        // It may have been told: better once too few than twice.
        Err(error) if error.is_ambiguous() => {}
        // Nobody hears of it any more.
        Err(error) if *error.kind() == ErrorKind::Closed => {}
        Err(_) => {
            count.since = count.since.saturating_add(since);
            count.room = count.room.saturating_add(since);
        }
    });
    told.map(|_| turn)
}

/// Tells what is due. Tells when it is to be done again; nothing if nobody is left.
async fn round(limiter: Arc<Shared>) -> Option<u64> {
    let counts = &limiter.behind.counts;
    let told = tell_all(&limiter, counts.due(limiter.now())).await;
    let again = match told {
        Ok(()) => 0,
        Err(_) => limiter.now().saturating_add(TELL_AGAIN),
    };
    Some(counts.next()?.max(again))
}

async fn tell_all(limiter: &Arc<Shared>, names: Vec<Name>) -> Result<(), Error> {
    let tell = |name| {
        let limiter = Arc::clone(limiter);
        async move {
            let Some(place) = limiter.behind.counts.turn(&name, limiter.now()) else {
                return Ok(());
            };
            let turn = place.lock_owned().await;
            tell(limiter, name, turn).await.map(drop)
        }
    };
    for_each(names, tell).await
}

impl Count {
    fn hear(&mut self, policy: &Policy, told: &Decision, now: u64) {
        // Another version of the policy may have come in its place.
        if self.policy == *policy {
            self.told = told.clone();
            self.room = room(told);
            self.due = now.saturating_add(self.interval);
        }
    }
}

/// When nothing counts any more that is charged now.
fn expires(policy: &Policy, now: u64) -> u64 {
    now.saturating_add(policy.keep().saturating_mul(1_000))
}

/// How many units all limits have room for.
fn room(told: &Decision) -> u32 {
    let left = told.limits().iter().map(|limit| limit.remaining).min();
    let left = left.unwrap_or_default();
    if told.is_blocked() {
        return 0;
    }
    u32::try_from(left).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_was_never_told_is_forgotten_when_it_counts_no_more() {
        let policy = Policy::new("test").limit(1, Duration::from_secs(1));
        let policy = policy.build().unwrap();
        let count = |since| Count {
            expires: expires(&policy, 0),
            told: Decision::open(),
            policy: policy.clone(),
            interval: 100,
            room: 1,
            since,
            due: 100,
        };
        assert!(!count(0).is_over(99) && count(0).is_over(100));
        assert!(!count(1).is_over(1_000_000) && count(1).is_over(1_100_000));
    }
}
