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

use redis_conn::{Error, Subject};

use super::{Name, Table, lock, name};
use crate::{
    Decision, Policy, Source, Spending,
    counter::Charge,
    counters::Ask,
    shared::Shared,
    store::{Asked, micros},
};

/// What this process has admitted and the store does not know yet.
#[derive(Debug)]
pub(crate) struct Behind {
    counts: Table<Count>,
    writing: AtomicBool,
}

#[derive(Debug)]
struct Count {
    policy: Policy,
    /// What the store told last.
    told: Decision,
    /// How many units it had room for then.
    room: u32,
    /// What was admitted since.
    since: u32,
    /// When the store is told of it, in microseconds since boot.
    due: u64,
}

impl Behind {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            counts: Table::new(capacity),
            writing: AtomicBool::new(false),
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
        let cost = asked.charge.units;
        if asked.ask == Ask::All
            && let Some(decision) = self.admit(&name, policy, cost, limiter.now())
        {
            return Ok(decision);
        }
        // What is not written yet counts too.
        self.write(limiter, &name).await?;
        let told = limiter.ask(policy, subject, asked).await?;
        let now = limiter.now();
        let count = Count {
            policy: policy.clone(),
            room: room(&told),
            told: told.clone(),
            since: 0,
            due: now.saturating_add(micros(interval)),
        };
        // Where there is no room to remember it, the store goes on to decide.
        let is_over = |count: &Count| count.since == 0 && count.due <= now;
        if self.counts.insert(&name, count, is_over) {
            self.begin(limiter, interval);
        }
        Ok(told)
    }

    fn admit(&self, name: &Name, policy: &Policy, cost: u32, now: u64) -> Option<Decision> {
        let mut shard = self.counts.shard(name);
        let count = shard.get_mut(name)?;
        let since = count.since.checked_add(cost)?;
        if since > count.room || now >= count.due || count.policy != *policy {
            return None;
        }
        count.since = since;
        Some(count.told.admit_here(cost, Source::Behind))
    }

    /// Tells the store what was admitted since.
    async fn write(&self, limiter: &Shared, name: &Name) -> Result<(), Error> {
        let since = {
            let mut shard = self.counts.shard(name);
            shard.get_mut(name).map(|count| {
                let since = std::mem::take(&mut count.since);
                count.room -= since;
                (count.policy.clone(), since)
            })
        };
        let Some((policy, since @ 1..)) = since else {
            return Ok(());
        };
        let asked = Asked::new(Ask::Anyway, Charge::of(since));
        let told = limiter.ask(&policy, &name.1, asked).await;
        if let Some(count) = self.counts.shard(name).get_mut(name) {
            match &told {
                Ok(told) => count.hear(told, limiter.now()),
                // It may have been told: better once too few than twice.
                Err(error) if error.is_ambiguous() => {}
                Err(_) => {
                    count.since = count.since.saturating_add(since);
                    count.room = count.room.saturating_add(since);
                }
            }
        }
        told.map(drop)
    }

    /// Begins to write what is due, unless somebody does already.
    fn begin(&self, limiter: &Arc<Shared>, interval: Duration) {
        if self.writing.swap(true, Ordering::AcqRel) {
            return;
        }
        let limiter = Arc::downgrade(limiter);
        tokio::spawn(async move {
            let mut pause = interval;
            loop {
                tokio::time::sleep(pause).await;
                let Some(limiter) = limiter.upgrade() else {
                    return;
                };
                let behind = &limiter.behind;
                match behind.write_due(&limiter).await {
                    Some(next) => pause = next,
                    None => {
                        behind.writing.store(false, Ordering::Release);
                        // Somebody may have come just before.
                        if behind.is_empty() || behind.writing.swap(true, Ordering::AcqRel) {
                            return;
                        }
                        pause = interval;
                    }
                }
            }
        });
    }

    /// Writes what is due and forgets who did not call. Tells when it is to be done again; nothing if nobody is left.
    async fn write_due(&self, limiter: &Shared) -> Option<Duration> {
        let now = limiter.now();
        let mut due = Vec::new();
        for shard in &self.counts.shards {
            let mut shard = lock(shard);
            shard.retain(|_, count| count.since > 0 || count.due > now);
            let late = shard.iter().filter(|(_, count)| count.due <= now);
            due.extend(late.map(|(name, _)| name.clone()));
        }
        for name in &due {
            // Without an answer it is told later.
            if self.write(limiter, name).await.is_err()
                && let Some(count) = self.counts.shard(name).get_mut(name)
            {
                count.due = limiter.now().saturating_add(count.interval());
            }
        }
        let next = self.counts.shards.iter().filter_map(|shard| {
            let shard = lock(shard);
            shard.values().map(|count| count.due).min()
        });
        let next = next.min()?.saturating_sub(limiter.now());
        Some(Duration::from_micros(next.max(1_000)))
    }

    fn is_empty(&self) -> bool {
        self.counts
            .shards
            .iter()
            .all(|shard| lock(shard).is_empty())
    }

    /// Writes all that the store does not know yet.
    pub(crate) async fn drain(&self, limiter: &Shared) -> Result<(), Error> {
        for name in self.counts.names() {
            self.write(limiter, &name).await?;
        }
        Ok(())
    }
}

impl Count {
    fn hear(&mut self, told: &Decision, now: u64) {
        self.told = told.clone();
        self.room = room(told);
        self.due = now.saturating_add(self.interval());
    }

    fn interval(&self) -> u64 {
        match self.policy.spending() {
            Spending::WriteBehind(interval) => micros(interval),
            _ => 0,
        }
    }
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
