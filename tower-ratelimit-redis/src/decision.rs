//! The outcome of a check.

use std::{sync::Arc, time::Duration};

use crate::{Policy, policy::Limit, ring::Ring, rings::Rings};

/// Whether a call is admitted, and how much is left. Cheap to clone.
///
/// [`RateLimitLayer`](crate::RateLimitLayer) puts it into the extensions of the request, for the handler, and of the response.
/// Where layers are nested it is that of the innermost one.
#[derive(Clone, Debug)]
pub struct Decision {
    allowed: bool,
    retry_after: Option<Duration>,
    limits: Arc<[LimitState]>,
    source: Source,
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The backend: the decision counts for all processes that share it.
    Store,
    /// The in-process fallback, because the backend did not answer: [`OnFailure::Local`](crate::OnFailure::Local).
    Local,
    /// Nobody: the backend did not answer and the limiter is set to [`OnFailure::Open`](crate::OnFailure::Open).
    Open,
}

/// One limit of the policy, after the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitState {
    /// Its name, such as `api-1s`.
    pub name: Arc<str>,
    /// How many units it admits in any interval of the length [`window`](Self::window).
    pub limit: u64,
    /// How many of them are left now.
    pub remaining: u64,
    /// The length of the window.
    pub window: Duration,
    /// How long until the next unit becomes free, so until `remaining` rises; zero if all are free.
    pub reset_after: Duration,
}

impl Decision {
    /// Whether the call is admitted, and was charged. After a [`peek`](crate::Limiter::peek): whether a call of cost 1 would be.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// For a refused call: how long until the same call would be admitted if nobody else were meanwhile.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The limits in the order of the policy; none if the [source](Self::source) is [`Source::Open`].
    #[must_use]
    pub fn limits(&self) -> &[LimitState] {
        &self.limits
    }

    /// Who decided.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// What `rings`, aged to `now`, say about a call of this cost.
    pub(crate) fn new(policy: &Policy, rings: &Rings, now: u64, cost: u32, allowed: bool) -> Self {
        let wait =
            |(ring, limit): (&Ring, &Limit)| ring.until_expired(ring.excess(cost, limit.max), now);
        let retry_after =
            (!allowed).then(|| rings.with(policy).map(wait).max().unwrap_or_default());
        let state = |(ring, limit): (&Ring, &Limit)| LimitState {
            name: Arc::clone(&limit.name),
            limit: limit.max.into(),
            remaining: ring.remaining(limit.max).into(),
            window: Duration::from_micros(limit.window),
            reset_after: ring.until_expired(1, now),
        };
        Self {
            allowed,
            retry_after,
            limits: rings.with(policy).map(state).collect(),
            source: Source::Store,
        }
    }

    /// Admitted because nobody could say otherwise.
    pub(crate) fn open() -> Self {
        Self {
            allowed: true,
            retry_after: None,
            limits: Arc::default(),
            source: Source::Open,
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

    /// The names of the limits that refuse a call of cost 1.
    pub(crate) fn violated(&self) -> impl Iterator<Item = &str> {
        let exhausted = self.limits.iter().filter(|limit| limit.remaining == 0);
        exhausted.map(|limit| &*limit.name)
    }
}
