//! The store of the Redis backend: one script call for each decision.

use std::time::{Duration, Instant};

use redis_conn::{
    Backend, Error, Subject,
    raw::{Call, Class, Redis, Reply, Script},
};

use super::{Asked, Permits, Store};
use crate::{
    Decision, Policy,
    counter::{Charge, Kind, Now},
    counters::{Ask, Counters, corrupt},
};

/// A script of these files. It is one text for the life of the program, so that servers know it.
macro_rules! script {
    ($($file:literal)+) => {
        Script::new(concat!($(include_str!(concat!("lua/", $file, ".lua"))),+))
    };
}

// One for the policies of each algorithm, since a script that knows fewer is faster, and one that knows all.
static STRICT: Script = script!("head" "strict" "check");
static SLIDING: Script = script!("head" "sliding" "check");
static GCRA: Script = script!("head" "gcra" "check");
static LOG: Script = script!("head" "log" "check");
static FIXED: Script = script!("head" "fixed" "check");
static LEASES: Script = script!("head" "leases" "check");
static ALL: Script = script!("head" "strict" "sliding" "gcra" "log" "fixed" "leases" "check");
static REFUND: Script =
    script!("head" "strict" "sliding" "gcra" "log" "fixed" "leases" "walk" "refund");
static PERMITS: Script =
    script!("head" "strict" "sliding" "gcra" "log" "fixed" "leases" "walk" "permits");
static BLOCK: Script =
    script!("head" "strict" "sliding" "gcra" "log" "fixed" "leases" "walk" "block");
static REPLACE: Script = script!("replace");

/// The script for the algorithms of this policy.
fn script(policy: &Policy) -> &'static Script {
    let mut kinds = policy.limits().iter().map(|limit| limit.kind);
    let first = kinds.next();
    match first.filter(|first| kinds.all(|kind| kind == *first)) {
        Some(Kind::Strict) => &STRICT,
        Some(Kind::Sliding) => &SLIDING,
        Some(Kind::Gcra) => &GCRA,
        Some(Kind::Log) => &LOG,
        Some(Kind::FixedAligned | Kind::FixedFirst) => &FIXED,
        Some(Kind::Leases) => &LEASES,
        None => &ALL,
    }
}

/// Counts under one key for each policy and subject. The server's clock decides.
#[derive(Debug)]
pub(crate) struct RedisStore {
    backend: Backend,
    redis: Redis,
}

/// What a script that checks answers of one subject.
enum Answer {
    /// The units granted to each call, and the value as it is stored now.
    Decided { granted: Vec<u32>, value: Vec<u8> },
    /// An algorithm is stored that the script does not know.
    Unknown,
    /// The policy's revision changes what is stored.
    Revise { value: Vec<u8> },
}

impl RedisStore {
    pub(crate) fn new(backend: &Backend, redis: &Redis) -> Self {
        Self {
            backend: backend.clone(),
            redis: redis.clone(),
        }
    }

    /// Calls `script` until it has decided: again where another script or another value was needed, by which nothing was charged.
    async fn check(
        &self,
        policy: &Policy,
        key: &str,
        asked: Asked,
        deadline: Duration,
    ) -> Result<(Now, u32, Counters), Error> {
        let begun = Instant::now();
        let mut script = script(policy);
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            let call = self.redis.script(script, asked.class(), &[key]);
            let call = call.arg(policy.packed()).int(asked.number());
            let reply = call.arg(cost_of(policy, asked.charge)).run(left).await?;
            let (now, answer) = read(reply)?;
            match answer {
                Answer::Decided { granted, value } => {
                    let mut counters = Counters::decode(&value, policy)?;
                    counters.advance(policy, now);
                    let granted = granted.first().copied().unwrap_or_default();
                    return Ok((now, granted, counters));
                }
                Answer::Unknown => script = &ALL,
                Answer::Revise { value } => {
                    let mut counters = Counters::decode(&value, policy)?;
                    counters.advance(policy, now);
                    let left = deadline.saturating_sub(begun.elapsed());
                    self.replace(policy, key, &value, counters, left).await?;
                }
            }
        }
    }

    /// Stores `counters` if `value` is still stored; else somebody else was faster, and that is as good.
    async fn replace(
        &self,
        policy: &Policy,
        key: &str,
        value: &[u8],
        mut counters: Counters,
        deadline: Duration,
    ) -> Result<(), Error> {
        counters.bound(policy);
        let keep = counters.keep();
        let call = self.redis.script(&REPLACE, Class::Idempotent, &[key]);
        let call = call.arg(value).arg(counters.encode()).int(keep);
        call.run(deadline).await.map(drop)
    }

    fn key(&self, policy: &Policy, subject: &Subject) -> String {
        super::key(&self.backend, policy, subject)
    }
}

/// What a call costs, as the script takes it.
fn cost_of(policy: &Policy, charge: Charge) -> Vec<u8> {
    let mut cost = charge.units.to_le_bytes().to_vec();
    if policy.has_leases() {
        cost.extend_from_slice(&charge.permit.to_le_bytes());
    }
    cost
}

fn read(reply: Reply) -> Result<(Now, Answer), Error> {
    let [now, outcome, value] = reply.array()?;
    let at = now.int()?.unsigned_abs();
    let now = Now { at, wall: at };
    let value = value.bytes()?.unwrap_or_default();
    let answer = match outcome.int() {
        Ok(1) => Answer::Unknown,
        Ok(2) => Answer::Revise { value },
        Ok(_) => return Err(corrupt()),
        Err(_) => {
            let granted = outcome.bytes()?.unwrap_or_default();
            let (granted, _) = granted.as_chunks::<4>();
            let granted = granted.iter().copied().map(u32::from_le_bytes).collect();
            Answer::Decided { granted, value }
        }
    };
    Ok((now, answer))
}

impl Asked {
    /// A look may be sent twice.
    fn class(self) -> Class {
        if self.charge.units == 0 {
            Class::Idempotent
        } else {
            Class::AtMostOnce
        }
    }

    fn number(self) -> u64 {
        let ask = match self.ask {
            Ask::All => 0,
            Ask::AtMost => 1,
            Ask::Anyway => 2,
        };
        ask + if self.charge.ahead { 4 } else { 0 }
    }
}

impl Store for RedisStore {
    async fn decide(
        &self,
        policy: &Policy,
        subject: &Subject,
        asked: Asked,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let key = self.key(policy, subject);
        let (now, granted, counters) = self.check(policy, &key, asked, deadline).await?;
        let cost = asked.charge.units;
        Ok(Decision::new(policy, &counters, now, cost, granted))
    }

    async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let key = self.key(policy, subject);
        let nothing = Asked::new(Ask::All, Charge::of(0));
        let (now, _, counters) = self.check(policy, &key, nothing, deadline).await?;
        Ok(Decision::look(policy, &counters, now, cost))
    }

    async fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        at: Now,
        deadline: Duration,
    ) -> Result<(), Error> {
        let key = self.key(policy, subject);
        let call = self.redis.script(&REFUND, Class::AtMostOnce, &[&key]);
        let reply = call.int(units.into()).int(at.at).run(deadline).await?;
        let [_, value] = reply.array()?;
        match value.int() {
            Ok(_) => Err(corrupt()),
            Err(_) => Ok(()),
        }
    }

    async fn block(
        &self,
        policy: &Policy,
        subject: &Subject,
        time: Duration,
        deadline: Duration,
    ) -> Result<(), Error> {
        let key = self.key(policy, subject);
        let call = self.redis.script(&BLOCK, Class::Idempotent, &[&key]);
        let call = call
            .int(super::micros(time))
            .int(policy.revision().into())
            .int(policy.keep());
        match call.run(deadline).await?.int()? {
            1 => Ok(()),
            _ => Err(corrupt()),
        }
    }

    async fn permits(
        &self,
        policy: &Policy,
        subject: &Subject,
        what: Permits,
        names: &[u64],
        deadline: Duration,
    ) -> Result<Vec<bool>, Error> {
        let key = self.key(policy, subject);
        let lease = policy.lease().unwrap_or_default();
        let names: Vec<u8> = names.iter().flat_map(|name| name.to_le_bytes()).collect();
        let call = self.redis.script(&PERMITS, Class::Idempotent, &[&key]);
        let call = call
            .int(u64::from(what == Permits::Renew))
            .int(super::micros(lease))
            .arg(names);
        let held = call.run(deadline).await?.list()?;
        held.iter().map(|held| Ok(held.int()? == 1)).collect()
    }

    async fn reset(
        &self,
        policy: &Policy,
        subject: &Subject,
        deadline: Duration,
    ) -> Result<(), Error> {
        let delete = Call::new("DEL", Class::Idempotent).key(self.key(policy, subject));
        self.redis.call(delete, deadline).await.map(drop)
    }
}
