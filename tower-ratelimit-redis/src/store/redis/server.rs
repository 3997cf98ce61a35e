//! Decisions, one by one and many at once.

use std::{collections::HashMap, future::Future, iter, sync::Arc, time::Duration};

use redis_conn::{
    Error,
    raw::{Class, Redis},
};
use tokio::time::Instant;

use super::{
    batch::{Request, Waiting},
    scripts::{self, ALL, REPLACE},
    wire::{Answer, cost_of, read},
};
use crate::{
    Decision, Policy,
    counter::Now,
    counters::{Counters, corrupt},
    metrics,
};

/// What the scripts are called on.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) redis: Redis,
}

impl Server {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.redis.spawn(task);
    }

    pub(super) async fn decide(&self, request: &Request) -> Result<Decision, Error> {
        let Request { policy, asked, .. } = request;
        let (now, granted, counters) = self.check(request).await?;
        let cost = asked.least();
        Ok(Decision::new(policy, &counters, now, cost, granted))
    }

    /// Calls the script until it has decided: again where another script or another value was needed, by which nothing was charged.
    pub(super) async fn check(&self, request: &Request) -> Result<(Now, u32, Counters), Error> {
        let Request {
            policy, key, asked, ..
        } = request;
        let left = || request.until.saturating_duration_since(Instant::now());
        let mut script = scripts::deciding(policy);
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
    pub(super) async fn decide_all(self: &Arc<Self>, batch: Vec<Waiting>) {
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

    async fn decide_group(self: &Arc<Self>, group: Group) {
        let Group { subjects, .. } = group;
        let Some(first) = subjects.first().and_then(|subject| subject.calls.first()) else {
            return;
        };
        let (policy, asked) = (first.request.policy.clone(), first.request.asked);
        let keys: Vec<&str> = subjects.iter().map(|subject| &*subject.key).collect();
        let script = self
            .redis
            .script(scripts::deciding(&policy), Class::AtMostOnce, &keys);
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
            .map(|subject| Waiting::time_left(&subject.calls))
            .max();
        let reply = call.run(left.unwrap_or_default()).await;
        match reply.and_then(|reply| read(reply, asked.charge.units)) {
            Ok((now, answers)) => {
                for (subject, answer) in subjects.into_iter().zip(answers) {
                    self.deliver(&policy, subject, now, answer);
                }
            }
            Err(error) => {
                for waiting in subjects.into_iter().flat_map(|subject| subject.calls) {
                    waiting.answer(Err(error.clone()));
                }
            }
        }
    }

    fn deliver(self: &Arc<Self>, policy: &Policy, subject: Calls, now: Now, answer: Answer) {
        let (granted, counters) = match answer {
            Answer::Decided { granted, value } => (granted, Counters::decode(&value, policy)),
            Answer::Corrupt => (Vec::new(), Err(corrupt())),
            // Nothing was charged, and it is rare enough to be decided one by one. The other subjects do not wait for that.
            Answer::Unknown | Answer::Revise { .. } => {
                let server = Arc::clone(self);
                self.spawn(async move {
                    for waiting in subject.calls {
                        if waiting.has_given_up() {
                            continue;
                        }
                        let decided = server.decide(&waiting.request).await;
                        waiting.answer(decided);
                    }
                });
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
                    let cost = asked.least();
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
