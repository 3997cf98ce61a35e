//! Whether a request is admitted.

use std::sync::Arc;

use bytes::Bytes;
use http::{Extensions, Response, request::Parts};
use redis_conn::Subject;

use crate::{
    Acquired, Decision, MissingKey, Permit, Policy, RateLimitError, Reason, Shadow,
    key::{Key, KeyExtractor},
    metrics::{self, Outcome},
    rules::Rules,
    settle::Charged,
};

/// How a request goes on.
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is received; boxing would allocate for each admitted request"
)]
pub(crate) enum Step {
    Admit { parts: Parts, admitted: Admitted },
    Refuse(Response<Bytes>),
}

/// What an admitted request leaves to do when its response comes.
#[derive(Default)]
pub(crate) struct Admitted {
    /// None if it passes uncounted.
    pub(crate) decision: Option<Decision>,
    /// In boxes: most layers have neither.
    pub(crate) shadow: Option<Box<Shadow>>,
    pub(crate) charged: Option<Box<Charged>>,
    pub(crate) permit: Option<Arc<Permit>>,
}

/// The names of the policies that a request has passed already. Most pass one, which needs no list.
#[derive(Clone)]
struct Passed {
    first: Arc<str>,
    more: Vec<Arc<str>>,
}

#[expect(
    clippy::manual_async_fn,
    reason = "an async fn has room for its arguments twice, and this one is boxed for each request"
)]
pub(crate) fn step<K: KeyExtractor>(
    rules: Arc<Rules>,
    key: Arc<K>,
    mut parts: Parts,
) -> impl Future<Output = Step> + Send {
    async move {
        let outcome = outcome(&rules, &*key, &mut parts).await;
        let admitted = match outcome {
            outcome if rules.shadow => Admitted::anyway(outcome),
            Ok(admitted) => admitted,
            Err(reason) => {
                return Step::Refuse(rules.refuse.response(reason, &parts, rules.headers));
            }
        };
        admitted.tell(&mut parts.extensions);
        Step::Admit { parts, admitted }
    }
}

async fn outcome<K: KeyExtractor>(
    rules: &Rules,
    key: &K,
    parts: &mut Parts,
) -> Result<Admitted, Reason> {
    let (policy, outcome) = if rules.deny.have_address_of(parts) {
        (rules.policies.only(), Err(Reason::Denied))
    } else {
        let policy = rules.policies.of(parts).await;
        let outcome = admit(rules, policy.as_ref(), key, parts).await;
        (policy, outcome)
    };
    if let Some(policy) = &policy {
        let route = if cfg!(feature = "metrics") {
            rules.route.of(parts)
        } else {
            None
        };
        let counted = counted_as(&outcome, rules.shadow);
        metrics::requested(policy, route.as_deref(), counted);
    }
    outcome
}

fn counted_as(outcome: &Result<Admitted, Reason>, shadow: bool) -> Outcome {
    match outcome {
        Ok(admitted) if admitted.decision.is_some() => Outcome::Allowed,
        Ok(_) => Outcome::Skipped,
        Err(_) if shadow => Outcome::Shadowed,
        Err(
            Reason::Quota(_)
            | Reason::Blocked(_)
            | Reason::CostExceedsLimit { .. }
            | Reason::Denied,
        ) => Outcome::Denied,
        Err(_) => Outcome::Failed,
    }
}

async fn admit<K: KeyExtractor>(
    rules: &Rules,
    policy: Option<&Policy>,
    key: &K,
    parts: &mut Parts,
) -> Result<Admitted, Reason> {
    if let Some(policy) = policy {
        pass(rules, policy, parts)?;
    } else if !rules.deny.name_subjects() {
        return Ok(Admitted::default());
    }
    let subject = key.extract(parts).await.map(|key| key.map(Subject::from));
    let known = subject.as_ref().ok().and_then(Option::as_ref);
    if known.is_some_and(|subject| rules.deny.have_subject(subject)) {
        return Err(Reason::Denied);
    }
    let Some(policy) = policy else {
        return Ok(Admitted::default());
    };
    if known.is_some_and(|subject| rules.allow.have_subject(subject))
        || rules.allow.have_address_of(parts)
    {
        return Ok(Admitted::default());
    }
    let subject = match (subject, rules.missing_key) {
        (Ok(Some(subject)), _) => subject,
        (Ok(None), MissingKey::Shared) => Key::anonymous().into(),
        (Ok(None), MissingKey::Skip) => return Ok(Admitted::default()),
        (Ok(None), MissingKey::Reject) => return Err(Reason::MissingKey),
        (Ok(None), MissingKey::Unauthorized { challenge }) => {
            return Err(Reason::Unauthorized { challenge });
        }
        (Err(error), _) => return Err(Reason::InvalidKey(error)),
    };
    let cost = rules.cost.of(parts);
    charge(rules, policy, subject, cost).await
}

async fn charge(
    rules: &Rules,
    policy: &Policy,
    subject: Subject,
    cost: u64,
) -> Result<Admitted, Reason> {
    let limiter = &rules.limiter;
    let kept = rules.settle.is_set().then(|| subject.clone());
    let (decided, permit) = match cost {
        0 => (limiter.peek(policy, subject).await, None),
        _ if policy.has_leases() => match limiter.acquire(policy, subject, cost).await {
            Ok(Acquired::Held(permit)) => (Ok(permit.decision().clone()), Some(Arc::new(permit))),
            Ok(Acquired::Refused(decision)) => (Ok(decision), None),
            Err(error) => (Err(error), None),
        },
        _ => (limiter.check(policy, subject, cost).await, None),
    };
    match decided {
        Ok(decision) if decision.is_allowed() => Ok(Admitted {
            charged: kept.map(|subject| rules.settle.later(limiter, policy, subject, &decision)),
            decision: Some(decision),
            shadow: None,
            permit,
        }),
        Ok(decision) if decision.is_blocked() => Err(Reason::Blocked(decision)),
        Ok(decision) => Err(Reason::Quota(decision)),
        Err(RateLimitError::Store(error)) => Err(Reason::Undecided(error)),
        Err(RateLimitError::CostExceedsLimit { cost, limit }) => {
            Err(Reason::CostExceedsLimit { cost, limit })
        }
        Err(RateLimitError::NeedsPermit) => unreachable!("where one is needed, it is acquired"),
    }
}

/// Two layers with policies of one name would charge each request twice, and their quota fields could not be told apart.
fn pass(rules: &Rules, policy: &Policy, parts: &mut Parts) -> Result<(), Reason> {
    let name = policy.shared_name();
    match parts.extensions.get_mut::<Passed>() {
        None => {
            parts.extensions.insert(Passed {
                first: Arc::clone(name),
                more: Vec::new(),
            });
        }
        Some(passed) if passed.first == *name || passed.more.contains(name) => {
            rules.report_twice(policy);
            return Err(Reason::DuplicatePolicy(Arc::clone(name)));
        }
        Some(passed) => passed.more.push(Arc::clone(name)),
    }
    Ok(())
}

impl Admitted {
    /// Whatever came out, noted but not enforced.
    fn anyway(outcome: Result<Self, Reason>) -> Self {
        match outcome {
            Ok(admitted) => Self {
                shadow: Some(Shadow::new(Ok(admitted.decision.clone())).into()),
                ..admitted
            },
            Err(reason) => Self {
                // A handler finds one wherever it would with an enforced limit.
                decision: reason
                    .decision()
                    .cloned()
                    .or_else(|| Some(Decision::open())),
                shadow: Some(Shadow::new(Err(reason)).into()),
                ..Self::default()
            },
        }
    }

    /// Tells those further in.
    fn tell(&self, extensions: &mut Extensions) {
        if let Some(shadow) = &self.shadow {
            extensions.insert(Shadow::clone(shadow));
        }
        if let Some(decision) = &self.decision {
            let enforced = self.shadow.is_none();
            // What is not enforced hides nothing that is.
            if enforced || extensions.get::<Decision>().is_none() {
                extensions.insert(decision.clone());
            }
        }
        if let Some(permit) = &self.permit {
            extensions.insert(Arc::clone(permit));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redis_conn::ErrorKind;

    use super::*;
    use crate::refusal::tests::{blocked, quota, undecided};

    #[test]
    fn each_outcome_is_counted_as_what_it_is() {
        let decided = || {
            Ok(Admitted {
                decision: Some(Decision::open()),
                ..Admitted::default()
            })
        };
        let exceeds = Reason::CostExceedsLimit { cost: 2, limit: 1 };
        let cases = [
            (decided(), Outcome::Allowed, Outcome::Allowed),
            (Ok(Admitted::default()), Outcome::Skipped, Outcome::Skipped),
            (Err(quota(None, &[])), Outcome::Denied, Outcome::Shadowed),
            (
                Err(blocked(Duration::ZERO, &[])),
                Outcome::Denied,
                Outcome::Shadowed,
            ),
            (Err(exceeds), Outcome::Denied, Outcome::Shadowed),
            (Err(Reason::Denied), Outcome::Denied, Outcome::Shadowed),
            (
                Err(undecided(ErrorKind::Timeout)),
                Outcome::Failed,
                Outcome::Shadowed,
            ),
            (Err(Reason::MissingKey), Outcome::Failed, Outcome::Shadowed),
        ];
        for (outcome, enforced, shadow) in cases {
            let found = [false, true].map(|shadow| counted_as(&outcome, shadow));
            assert_eq!(found, [enforced, shadow]);
        }
    }
}
