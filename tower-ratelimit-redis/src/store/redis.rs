//! The store of the Redis backend: one script call for each decision.

use std::time::Duration;

use redis_conn::{
    Backend, Error, Subject,
    raw::{Call, Class, Redis, Reply, Script},
};

use super::Store;
use crate::{
    Decision, Policy,
    rings::{Rings, corrupt},
};

static STRICT_WINDOW: Script = Script::new(include_str!("lua/strict_window.lua"));

/// Counts under one key for each policy and subject. The server's clock decides.
#[derive(Debug)]
pub(crate) struct RedisStore {
    backend: Backend,
    redis: Redis,
}

/// What the script answers. The rings are aged to `now`.
struct Answer {
    admitted: bool,
    now: u64,
    rings: Rings,
}

impl RedisStore {
    pub(crate) fn new(backend: &Backend, redis: &Redis) -> Self {
        Self {
            backend: backend.clone(),
            redis: redis.clone(),
        }
    }

    async fn run(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let class = if cost == 0 {
            Class::Idempotent
        } else {
            Class::AtMostOnce
        };
        let key = super::key(&self.backend, policy, subject);
        let mut call = self.redis.script(&STRICT_WINDOW, class, &[&key]);
        call = call.int(cost.into()).int(ttl_millis(policy));
        for limit in policy.limits() {
            call = call.int(limit.window).int(limit.max.into());
        }
        Answer::read(call.run(deadline).await?, policy)
    }
}

/// Rounded up, and one more: a key must not expire before its counts do.
fn ttl_millis(policy: &Policy) -> u64 {
    policy.lifetime().div_ceil(1_000) + 1
}

impl Answer {
    fn read(reply: Reply, policy: &Policy) -> Result<Self, Error> {
        let [outcome, now, value] = reply.array()?;
        let (outcome, now) = (outcome.int()?, now.int()?.unsigned_abs());
        let value = value.bytes()?.unwrap_or_default();
        if !matches!(outcome, 0 | 1) {
            return Err(corrupt());
        }
        let mut rings = Rings::decode(&value)?;
        rings.advance(policy, now);
        Ok(Self {
            admitted: outcome == 1,
            now,
            rings,
        })
    }
}

impl Store for RedisStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let answer = self.run(policy, subject, cost, deadline).await?;
        let allowed = answer.admitted && (cost > 0 || answer.rings.fit(policy, 0));
        Ok(Decision::new(
            policy,
            &answer.rings,
            answer.now,
            cost,
            allowed,
        ))
    }

    async fn peek(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let Answer { now, rings, .. } = self.run(policy, subject, 0, deadline).await?;
        Ok(Decision::new(policy, &rings, now, 1, rings.fit(policy, 1)))
    }

    async fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<(), Error> {
        let key = super::key(&self.backend, policy, subject);
        let delete = Call::new("DEL", Class::Idempotent).key(key);
        self.redis.call(delete, deadline).await.map(drop)
    }
}
