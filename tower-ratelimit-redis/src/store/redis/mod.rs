//! The store of the Redis backend: one script call for each decision.

use std::{collections::HashMap, future::Future, iter, sync::Arc, time::Duration};

use redis_conn::{
    Backend, Error, Subject,
    raw::{Call, Class, Redis, Reply, Script},
};
use tokio::time::Instant;

use self::batch::{Gates, Request, Waiting};
use super::{Asked, Permits, Store};
use crate::{
    Decision, Policy, Revise,
    counter::{Charge, Charged, Kind, Now},
    counters::{Ask, Counters, corrupt},
    metrics,
};

mod batch;

/// A script of these files. It is one text for the life of the program, so that servers know it.
macro_rules! script {
    ($($file:literal)+) => {
        Script::new(concat!($(include_str!(concat!("../lua/", $file, ".lua"))),+))
    };
}

/// A script that decides by one algorithm: whether a value ends with the time, and whether its states are of one length.
macro_rules! one {
    ($name:literal, timed: $timed:literal, $length:literal) => {
        Script::new(concat!(
            include_str!("../lua/head.lua"),
            include_str!(concat!("../lua/", $name, ".lua")),
            "local sole, timed, count, ",
            $length,
            " = true, ",
            $timed,
            ", ",
            $name,
            ", ",
            $name,
            "_size\n",
            include_str!("../lua/check.lua"),
        ))
    };
}

/// A script that knows all algorithms.
macro_rules! all {
    ($($file:literal)+) => {
        script!("head" "strict" "sliding" "gcra" "log" "fixed" "leases" "all" $($file)+)
    };
}

// One for the policies of each algorithm, since a script that knows fewer is faster, and one that knows all.
static STRICT: Script = one!("strict", timed: true, "length, size");
static SLIDING: Script = one!("sliding", timed: false, "length, size");
static GCRA: Script = one!("gcra", timed: true, "length, size");
static LOG: Script = one!("log", timed: false, "size, length");
static FIXED: Script = one!("fixed", timed: false, "length, size");
static LEASES: Script = one!("leases", timed: false, "size, length");
static ALL: Script = all!("check");
static REFUND: Script = all!("walk" "refund");
static PERMITS: Script = all!("walk" "permits");
static BLOCK: Script = all!("walk" "block");
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
    server: Arc<Server>,
    /// None where each call is sent by itself.
    gates: Option<Arc<Gates>>,
}

/// What the scripts are called on.
#[derive(Debug)]
struct Server {
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
    /// The value has no layout of ours.
    Corrupt,
}

impl RedisStore {
    pub(crate) fn new(backend: &Backend, redis: &Redis, coalesce: bool) -> Self {
        let one_server = matches!(backend.kind(), "redis-single" | "redis-sentinel");
        Self {
            backend: backend.clone(),
            server: Arc::new(Server {
                redis: redis.clone(),
            }),
            gates: coalesce.then(|| Arc::new(Gates::new(one_server))),
        }
    }

    fn key(&self, policy: &Policy, subject: &Subject) -> String {
        super::key(&self.backend, policy, subject)
    }
}

impl Server {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.redis.spawn(task);
    }

    async fn decide(&self, request: &Request) -> Result<Decision, Error> {
        let Request { policy, asked, .. } = request;
        let (now, granted, counters) = self.check(request).await?;
        let cost = asked.charge.units;
        Ok(Decision::new(policy, &counters, now, cost, granted))
    }

    /// Calls the script until it has decided: again where another script or another value was needed, by which nothing was charged.
    async fn check(&self, request: &Request) -> Result<(Now, u32, Counters), Error> {
        let Request {
            policy, key, asked, ..
        } = request;
        let left = || request.until.saturating_duration_since(Instant::now());
        let mut script = script(policy);
        loop {
            let call = self.redis.script(script, asked.class(), &[key]);
            let call = call.arg(policy.packed()).int(policy.keep());
            let mut call = call.arg(cost_of(policy, asked.charge));
            if let Some(number) = asked.number(policy) {
                call = call.int(number);
            }
            let (now, mut answers) = read(call.run(left()).await?, asked.charge.units)?;
            match answers.pop().unwrap_or(Answer::Corrupt) {
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
                    // A look changes nothing.
                    if asked.charge.units == 0 {
                        return Ok((now, 0, counters));
                    }
                    let revised = (counters, now);
                    self.replace(policy, key, &value, revised, left()).await?;
                }
                Answer::Corrupt => return Err(corrupt()),
            }
        }
    }

    /// Stores `counters` if `value` is still stored; else somebody else was faster, and that is as good.
    async fn replace(
        &self,
        policy: &Policy,
        key: &str,
        value: &[u8],
        (mut counters, now): (Counters, Now),
        deadline: Duration,
    ) -> Result<(), Error> {
        counters.bound(policy);
        let keep = (counters.expires(now) - now.at).div_ceil(1_000) + 1;
        let call = self.redis.script(&REPLACE, Class::Idempotent, &[key]);
        let call = call.arg(value).arg(counters.encode()).int(keep);
        call.run(deadline).await.map(drop)
    }

    /// Decides calls that gathered: those of one policy by one script call.
    async fn decide_all(self: &Arc<Self>, batch: Vec<Waiting>) {
        let mut groups: Vec<Group> = Vec::new();
        for waiting in batch {
            match groups.iter_mut().find(|group| group.takes(&waiting)) {
                Some(group) => group.add(waiting),
                None => groups.push(Group::of(waiting)),
            }
        }
        let last = groups.pop();
        for group in groups {
            let server = Arc::clone(self);
            self.spawn(async move { server.decide_group(group).await });
        }
        if let Some(group) = last {
            self.decide_group(group).await;
        }
    }

    async fn decide_group(&self, group: Group) {
        let Group { subjects, .. } = group;
        let Some(first) = subjects.first().and_then(|subject| subject.calls.first()) else {
            return;
        };
        let (policy, asked) = (first.request.policy.clone(), first.request.asked);
        let keys: Vec<&str> = subjects.iter().map(|subject| &*subject.key).collect();
        let script = self.redis.script(script(&policy), Class::AtMostOnce, &keys);
        let mut call = script.arg(policy.packed()).int(policy.keep());
        for subject in &subjects {
            call = call.arg(&subject.costs);
        }
        // The first one would have been sent anyway.
        let others = subjects
            .iter()
            .map(|subject| subject.calls.len())
            .sum::<usize>()
            - 1;
        metrics::coalesced(&policy, others as u64);
        if let Some(number) = asked.number(&policy) {
            call = call.int(number);
        }
        let left = subjects
            .iter()
            .map(|subject| batch::time_left(&subject.calls))
            .max();
        let reply = call.run(left.unwrap_or_default()).await;
        match reply.and_then(|reply| read(reply, asked.charge.units)) {
            Ok((now, answers)) => {
                for (subject, answer) in subjects.into_iter().zip(answers) {
                    self.deliver(&policy, subject, now, answer).await;
                }
            }
            Err(error) => {
                for waiting in subjects.into_iter().flat_map(|subject| subject.calls) {
                    waiting.answer(Err(error.clone()));
                }
            }
        }
    }

    async fn deliver(&self, policy: &Policy, subject: Calls, now: Now, answer: Answer) {
        let (granted, counters) = match answer {
            Answer::Decided { granted, value } => (granted, Counters::decode(&value, policy)),
            Answer::Corrupt => (Vec::new(), Err(corrupt())),
            // Nothing was charged, and it is rare enough to be decided one by one.
            Answer::Unknown | Answer::Revise { .. } => {
                for waiting in subject.calls {
                    let decided = self.decide(&waiting.request).await;
                    waiting.answer(decided);
                }
                return;
            }
        };
        let counters = counters.map(|mut counters| {
            counters.advance(policy, now);
            counters
        });
        for (waiting, granted) in subject
            .calls
            .into_iter()
            .zip(granted.into_iter().chain(iter::repeat(0)))
        {
            let decided = match &counters {
                Ok(counters) => {
                    let Request { policy, asked, .. } = &waiting.request;
                    let cost = asked.charge.units;
                    Ok(Decision::new(policy, counters, now, cost, granted))
                }
                Err(error) => Err(error.clone()),
            };
            waiting.answer(decided);
        }
    }
}

/// Calls under one policy that are decided in one way.
struct Group {
    policy: Policy,
    number: Option<u64>,
    subjects: Vec<Calls>,
    places: HashMap<Arc<str>, usize>,
}

/// The calls of one subject, in the order in which they came.
struct Calls {
    key: Arc<str>,
    costs: Vec<u8>,
    calls: Vec<Waiting>,
}

impl Group {
    fn of(waiting: Waiting) -> Self {
        let mut group = Self {
            policy: waiting.request.policy.clone(),
            number: waiting.request.asked.number(&waiting.request.policy),
            subjects: Vec::new(),
            places: HashMap::new(),
        };
        group.add(waiting);
        group
    }

    fn takes(&self, waiting: &Waiting) -> bool {
        self.policy.is_decided_as(&waiting.request.policy)
            && self.number == waiting.request.asked.number(&waiting.request.policy)
    }

    fn add(&mut self, waiting: Waiting) {
        let Request { key, asked, .. } = &waiting.request;
        let cost = asked.charge.units.to_le_bytes();
        match self.places.get(key) {
            Some(place) => {
                let subject = &mut self.subjects[*place];
                subject.costs.extend_from_slice(&cost);
                subject.calls.push(waiting);
            }
            None => {
                let key = Arc::clone(key);
                self.places.insert(Arc::clone(&key), self.subjects.len());
                self.subjects.push(Calls {
                    key,
                    costs: cost.to_vec(),
                    calls: vec![waiting],
                });
            }
        }
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

/// The time, and the answer for each subject. The value alone is the answer where a single call was admitted that costs so much.
fn read(reply: Reply, cost: u32) -> Result<(Now, Vec<Answer>), Error> {
    if !reply.is_list() {
        let value = reply.bytes()?.unwrap_or_default();
        let at = value.last_chunk().ok_or_else(corrupt)?;
        let at = u64::from_le_bytes(*at);
        let granted = vec![cost];
        return Ok((
            Now { at, wall: at },
            vec![Answer::Decided { granted, value }],
        ));
    }
    let mut items = reply.list()?.into_iter();
    let at = items.next().map_or(Err(corrupt()), |now| now.int())?;
    let at = at.unsigned_abs();
    let mut answers = Vec::with_capacity(items.len() / 2);
    while let (Some(outcome), Some(value)) = (items.next(), items.next()) {
        answers.push(answer(outcome, value)?);
    }
    Ok((Now { at, wall: at }, answers))
}

fn answer(outcome: Reply, value: Reply) -> Result<Answer, Error> {
    let value = value.bytes()?.unwrap_or_default();
    Ok(match outcome.int() {
        Ok(-3) => Answer::Revise { value },
        Ok(-2) => Answer::Unknown,
        Ok(-1) => Answer::Corrupt,
        Ok(granted) => {
            let granted = u32::try_from(granted).map_err(|_| corrupt())?;
            let granted = vec![granted];
            Answer::Decided { granted, value }
        }
        Err(_) => {
            let granted = outcome.bytes()?.unwrap_or_default();
            let (granted, _) = granted.as_chunks::<4>();
            let granted = granted.iter().copied().map(u32::from_le_bytes).collect();
            Answer::Decided { granted, value }
        }
    })
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

    /// How it is decided, as the script takes it; none if in no special way.
    fn number(self, policy: &Policy) -> Option<u64> {
        let mut number = match self.ask {
            Ask::All => 0,
            Ask::AtMost => 1,
            Ask::Anyway => 2,
        };
        let special = [
            (self.charge.ahead, 4),
            (policy.on_revision() != Revise::Keep, 8),
            (policy.has_leases(), 16),
        ];
        number += special
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, bit)| bit)
            .sum::<u64>();
        (number > 0).then_some(number)
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
        let request = Request {
            policy: policy.clone(),
            key: self.key(policy, subject).into(),
            asked,
            until: Instant::now() + deadline,
        };
        match &self.gates {
            // Each permit has a name of its own, and a look may be sent twice.
            Some(gates) if !policy.has_leases() && asked.charge.units > 0 => {
                batch::decide(&self.server, gates, request).await
            }
            _ => self.server.decide(&request).await,
        }
    }

    async fn look(
        &self,
        policy: &Policy,
        subject: &Subject,
        cost: u32,
        deadline: Duration,
    ) -> Result<Decision, Error> {
        let request = Request {
            policy: policy.clone(),
            key: self.key(policy, subject).into(),
            asked: Asked::new(Ask::All, Charge::of(0)),
            until: Instant::now() + deadline,
        };
        let (now, _, counters) = self.server.check(&request).await?;
        Ok(Decision::look(policy, &counters, now, cost))
    }

    async fn refund(
        &self,
        policy: &Policy,
        subject: &Subject,
        units: u32,
        charged: Charged,
        deadline: Duration,
    ) -> Result<(), Error> {
        let key = self.key(policy, subject);
        let call = self
            .server
            .redis
            .script(&REFUND, Class::AtMostOnce, &[&key]);
        let reply = call
            .int(units.into())
            .int(charged.at.at)
            .int(charged.ahead.into())
            .run(deadline)
            .await?;
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
        let call = self.server.redis.script(&BLOCK, Class::Idempotent, &[&key]);
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
        let call = self
            .server
            .redis
            .script(&PERMITS, Class::Idempotent, &[&key]);
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
        self.server.redis.call(delete, deadline).await.map(drop)
    }
}
