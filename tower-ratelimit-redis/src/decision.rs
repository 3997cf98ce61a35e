//! The outcome of a check.

use std::{sync::Arc, time::Duration};

use crate::{
    Policy,
    counter::{Charged, Counter, Kind, Now},
    counters::Counters,
    policy::Limit,
};

/// Whether a call is admitted, and how much is left. Cheap to clone.
///
/// [`RateLimitLayer`](crate::RateLimitLayer) puts it into the extensions of the request, for the handler, and of the response.
/// Where layers are nested it is that of the innermost one.
#[derive(Clone, Debug)]
pub struct Decision {
    allowed: bool,
    /// What an admitted call was charged, or a refused one needs room for.
    units: u32,
    blocked: bool,
    retry_after: Option<Duration>,
    limits: Limits,
    source: Source,
    /// When, by the clock that decided; none if nothing was charged that could be given back.
    charged: Option<Charged>,
}

/// Most policies have one limit, and need no allocation.
#[derive(Clone, Debug)]
enum Limits {
    One([LimitState; 1]),
    Many(Arc<[LimitState]>),
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The backend: the decision counts for all processes that share it.
    Store,
    /// What this process knows from the store's last answer: the refusal that was told then lasts still.
    Cached,
    /// Units that this process had reserved in the store: [`Spending::Lease`](crate::Spending::Lease).
    Leased,
    /// What this process knew of the counts of the store, which hears of the call later:
    /// [`Spending::WriteBehind`](crate::Spending::WriteBehind).
    Behind,
    /// The in-process fallback, because the backend did not answer: [`OnFailure::Local`](crate::OnFailure::Local).
    Local,
    /// Nobody: the backend did not answer and the limiter is set to [`OnFailure::Open`](crate::OnFailure::Open).
    Open,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// Calls, or what they cost, over a window.
    Requests,
    /// What is held at the same time.
    ConcurrentRequests,
}

/// One limit of the policy, after the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitState {
    /// Its name, such as `api-1s`.
    pub name: Arc<str>,
    /// How many units it admits in one [`window`](Self::window), or holds at the same time; the burst of a GCRA.
    pub limit: u64,
    /// How many of them are left now.
    pub remaining: u64,
    /// The length of the window; the time in which an empty bucket of a GCRA is full again; the lease of a permit.
    pub window: Duration,
    /// How long until the next unit becomes free, so until `remaining` rises; zero if all are free, and where nobody can tell.
    pub reset_after: Duration,
    /// What the units are.
    pub unit: Unit,
}

impl Decision {
    /// Whether the call is admitted, and was charged. After a [`peek`](crate::Limiter::peek): whether a call of cost 1 would be.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// How many units were charged: the cost of an admitted call, what
    /// [`check_at_most`](crate::Limiter::check_at_most) got, and nothing for a refused call.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.units().into()
    }

    /// Whether the subject is [blocked](crate::Limiter::block), whatever is left of its limits.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// For a refused call: how long until the same call would be admitted if nobody else were meanwhile. `None` also where that is
    /// for somebody else to decide, who holds a permit.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The limits in the order of the policy; none if the [source](Self::source) is [`Source::Open`].
    #[must_use]
    pub fn limits(&self) -> &[LimitState] {
        match &self.limits {
            Limits::One(limit) => limit,
            Limits::Many(limits) => limits,
        }
    }

    /// For a refused call: the limits that have no room for its cost, in the order of the policy.
    pub fn violated(&self) -> impl Iterator<Item = &LimitState> {
        let cost = match self.allowed {
            true => 0,
            // A cost of 0 is refused where more than the limit is in use.
            false => u64::from(self.units.max(1)),
        };
        let limits = self.limits().iter();
        limits.filter(move |limit| limit.remaining < cost)
    }

    /// Who decided.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// What `counters`, aged to `now`, say about a call of this cost of which `granted` units were charged.
    pub(crate) fn new(
        policy: &Policy,
        counters: &Counters,
        now: Now,
        cost: u32,
        granted: u32,
    ) -> Self {
        let allowed = granted > 0 || (cost == 0 && counters.fit(policy, 0, now));
        let units = if allowed { granted } else { cost };
        Self::with(policy, counters, now, allowed, units)
    }

    /// What a call of this cost would meet.
    pub(crate) fn look(policy: &Policy, counters: &Counters, now: Now, cost: u32) -> Self {
        let allowed = counters.fit(policy, cost, now);
        let units = if allowed { 0 } else { cost };
        Self::with(policy, counters, now, allowed, units)
    }

    fn with(policy: &Policy, counters: &Counters, now: Now, allowed: bool, units: u32) -> Self {
        let state = |(counter, limit): (&Counter, &Limit)| LimitState::new(counter, limit, now);
        let mut own = counters.with(policy);
        let limits = match (own.next(), policy.limits()) {
            (Some(first), [_]) => Limits::One([state(first)]),
            (first, _) => Limits::Many(first.into_iter().chain(own).map(state).collect()),
        };
        let blocked = counters.blocked_for(now);
        let retry_after = if allowed {
            None
        } else {
            let wait = wait(policy, counters, now, units);
            wait.map(|wait| wait.max(blocked.unwrap_or_default()))
        };
        Self {
            allowed,
            units,
            blocked: blocked.is_some(),
            retry_after,
            limits,
            source: Source::Store,
            charged: (allowed && units > 0).then(|| Charged::at(now)),
        }
    }

    /// Admitted because nobody could say otherwise.
    pub(crate) fn open() -> Self {
        Self {
            allowed: true,
            units: 0,
            blocked: false,
            retry_after: None,
            limits: Limits::Many(Arc::default()),
            source: Source::Open,
            charged: None,
        }
    }

    /// The same decision, made by the fallback.
    pub(crate) fn into_local(mut self) -> Self {
        /// When the store may be back, for a cost that the smaller limit never admits.
        const ASK_AGAIN: Duration = Duration::from_secs(1);
        self.source = Source::Local;
        if self.retry_after == Some(Duration::ZERO) {
            self.retry_after = Some(ASK_AGAIN);
        }
        self
    }

    /// The same refusal, told again after so long to a call that costs no less.
    pub(crate) fn again_after(&self, passed: Duration, cost: u32) -> Self {
        let mut again = self.clone();
        again.units = cost;
        again.source = Source::Cached;
        again.retry_after = again.retry_after.map(|wait| wait.saturating_sub(passed));
        let age = |limit: &LimitState| LimitState {
            reset_after: limit.reset_after.saturating_sub(passed),
            ..limit.clone()
        };
        again.limits = match self.limits() {
            [limit] => Limits::One([age(limit)]),
            limits => Limits::Many(limits.iter().map(age).collect()),
        };
        again
    }

    pub(crate) fn units(&self) -> u32 {
        if self.allowed { self.units } else { 0 }
    }

    /// When what was granted was charged, by the clock of the store.
    pub(crate) fn charged(&self) -> Option<Charged> {
        self.charged
    }

    /// What was granted was charged to the bucket ahead.
    pub(crate) fn into_ahead(mut self) -> Self {
        if let Some(charged) = &mut self.charged {
            charged.ahead = true;
        }
        self
    }

    /// A call of this cost is admitted by what this process has of what was granted then.
    pub(crate) fn admit_here(&self, cost: u32, source: Source) -> Self {
        Self {
            allowed: true,
            units: cost,
            retry_after: None,
            source,
            ..self.clone()
        }
    }

    /// A refusal as the layer meets it.
    #[cfg(test)]
    pub(crate) fn refused(
        blocked: bool,
        retry_after: Option<Duration>,
        limits: &[LimitState],
    ) -> Self {
        Self {
            allowed: false,
            units: 1,
            blocked,
            retry_after,
            limits: Limits::Many(limits.into()),
            source: Source::Store,
            ..Self::open()
        }
    }
}

/// How long until every limit has room for `cost`, or nothing counts any more if that is never.
fn wait(policy: &Policy, counters: &Counters, now: Now, cost: u32) -> Option<Duration> {
    let mut longest = Duration::ZERO;
    for (counter, limit) in counters.with(policy) {
        let most = limit.max.saturating_sub(cost);
        longest = longest.max(counter.until(most, now)?);
    }
    Some(longest)
}

impl LimitState {
    fn new(counter: &Counter, limit: &Limit, now: Now) -> Self {
        let used = counter.used(now);
        // The moment at which one unit less is in use.
        let next = used
            .checked_sub(1)
            .and_then(|fewer| counter.until(fewer, now));
        Self {
            name: Arc::clone(&limit.name),
            limit: limit.max.into(),
            remaining: limit.max.saturating_sub(used).into(),
            window: Duration::from_micros(limit.window()),
            reset_after: next.unwrap_or_default(),
            unit: match limit.kind {
                Kind::Leases => Unit::ConcurrentRequests,
                _ => Unit::Requests,
            },
        }
    }
}
