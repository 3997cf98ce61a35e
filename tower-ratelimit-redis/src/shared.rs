//! What all handles of one limiter share: the store, and what this process knows besides.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use redis_conn::{Backend, Check, Drain, Error, Part, Phase, Subject, raw::Tasks};
use tokio::time::Instant;

use crate::{
    Decision, Policy,
    away::Away,
    counter::{Charge, Charged},
    denied::Denied,
    fallback::Fallback,
    keeper::Keeper,
    metrics::{self, Meters},
    spend::{Behind, Leases},
    store::{AnyStore, Asked, Store},
};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) me: Weak<Self>,
    /// It is open for as long as there is a limiter on it.
    pub(crate) backend: Backend,
    pub(crate) store: AnyStore,
    pub(crate) fallback: Fallback,
    pub(crate) away: Away,
    /// None where the store is in this process.
    pub(crate) denied: Option<Arc<Denied>>,
    pub(crate) leases: Leases,
    pub(crate) behind: Behind,
    pub(crate) timeout: Duration,
    pub(crate) tasks: Tasks,
    pub(crate) keeper: Keeper,
    pub(crate) meters: Meters,
}

/// What is asked of the store, and what the fallback hears of it.
impl Shared {
    /// The time in this process.
    pub(crate) fn now(&self) -> u64 {
        self.backend.clock().boot_micros()
    }

    /// By when a call that begins now must be decided.
    pub(crate) fn until(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Has the store decide until then, and the fallback count what that admits.
    pub(crate) async fn ask(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        until: Instant,
    ) -> Result<Decision, Error> {
        let decision = self.put(policy, subject, asked, until).await?;
        let charge = Charge {
            units: decision.units(),
            ..asked.charge
        };
        self.fallback.charge(policy, subject, charge);
        Ok(decision)
    }

    /// Has the store decide about what the fallback counts by itself.
    pub(crate) async fn put(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        until: Instant,
    ) -> Result<Decision, Error> {
        self.away.may_ask(subject)?;
        let left = until.saturating_duration_since(Instant::now());
        let decided = self.store.decide(policy, subject, asked, left);
        self.heard(policy, subject, decided.await)
    }

    pub(crate) async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
    ) -> Result<Decision, Error> {
        self.away.may_ask(subject)?;
        let seen = self.store.look(policy, subject, cost, self.timeout);
        self.heard(policy, subject, seen.await)
    }

    /// Whether the store answers, is known from each answer.
    pub(crate) fn heard<T>(
        &self,
        policy: &Policy,
        subject: &Subject,
        answer: Result<T, Error>,
    ) -> Result<T, Error> {
        match &answer {
            Ok(_) => {
                self.away.answered(subject);
                self.fallback.store_answered();
            }
            Err(error) => {
                metrics::failed(policy, error);
                self.away.failed(subject, error);
            }
        }
        answer
    }

    pub(crate) async fn give_back(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
    ) -> Result<(), Error> {
        let refund = self
            .store
            .refund(policy, subject, units, charged, self.timeout);
        self.heard(policy, subject, refund.await)?;
        self.fallback.refund(policy, subject, units);
        Ok(())
    }

    /// Gives back what the fallback never counted, if the store answers.
    pub(crate) async fn take_back(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
    ) -> Result<(), Error> {
        self.away.may_ask(subject)?;
        let refund = self
            .store
            .refund(policy, subject, units, charged, self.timeout);
        self.heard(policy, subject, refund.await)
    }

    /// There may be room again.
    pub(crate) fn forget_refusal(&self, policy: &Policy, subject: &Subject) {
        if let Some(denied) = &self.denied {
            denied.forget(policy, subject);
        }
    }

    pub(crate) async fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
    ) -> Result<(), Error> {
        let blocked = self.store.block(policy, subject, time, self.timeout);
        self.heard(policy, subject, blocked.await)?;
        self.fallback.block(policy, subject, time);
        // What this process knew and had is not spent any more.
        self.leases.forget(policy, subject);
        self.behind.ask_again(policy, subject);
        self.forget_refusals(policy, subject).await
    }

    pub(crate) async fn reset(&self, policy: &Policy, subject: &Subject) -> Result<(), Error> {
        // After a failed reset the counts of the store are what they were, so those of the fallback are too.
        let reset = self.store.reset(policy, subject, self.timeout);
        self.heard(policy, subject, reset.await)?;
        self.fallback.reset(policy, subject);
        self.leases.forget(policy, subject);
        self.behind.forget(policy, subject);
        self.forget_refusals(policy, subject).await
    }

    async fn forget_refusals(&self, policy: &Policy, subject: &Subject) -> Result<(), Error> {
        match &self.denied {
            Some(denied) => denied.forget_everywhere(policy, subject).await,
            None => Ok(()),
        }
    }
}

impl Part for Shared {
    fn name(&self) -> &str {
        "rate-limit"
    }

    fn phase(&self) -> Phase {
        Phase::WriteBehind
    }

    fn check(&self) -> Check {
        self.fallback.check()
    }

    /// Writes what was admitted and not told yet, gives back what was reserved, releases what was let go, and ends what else is under
    /// way.
    fn drain(&self, _: Duration) -> Drain {
        let limiter = self.me.upgrade();
        Box::pin(async move {
            if let Some(limiter) = limiter {
                let told = limiter.behind.drain(&limiter).await;
                let given = limiter.leases.drain(&limiter).await;
                limiter.keeper.released().await;
                limiter.tasks.finished().await;
                told.and(given)?;
            }
            Ok(())
        })
    }
}
