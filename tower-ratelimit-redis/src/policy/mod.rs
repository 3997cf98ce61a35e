//! What is allowed: a name and its limits.

mod algorithm;
mod builder;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

pub use self::{
    algorithm::{Algorithm, Revise, Spending, WindowStart},
    builder::PolicyBuilder,
};
use crate::{
    RateLimitError,
    counter::{self, Kind},
};

/// The most limits of one policy: all of them are read and written at each decision.
pub(crate) const MAX_LIMITS: usize = 8;
/// The longest window, in microseconds: 366 days. Far below the 2^53 that Redis' scripts count exactly, also after a
/// multiplication by 32.
pub(crate) const MAX_SPAN: u64 = 366 * 24 * 3_600 * 1_000_000;

/// A named set of limits that are decided together: a call is admitted when every limit has room for it, and is charged to
/// all of them or to none.
///
/// The name is part of the stored key: policies of one name are charged with what any of them admits, each by its own limits,
/// and share the counts of the limits they have in common; those of different names share nothing. So a subject may have a quota of
/// its own: decide it under a policy of the same name and windows with another maximum.
/// Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use tower_ratelimit_redis::{Algorithm, Policy};
///
/// let policy = Policy::new("api")
///     .limit(20, Duration::from_secs(1))
///     .limit_by(Algorithm::Gcra { burst: 200 }, 1_000, Duration::from_secs(3600))
///     .concurrency(5, Duration::from_secs(30))
///     .build()?;
/// assert_eq!(policy.name(), "api");
/// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct Policy(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    limits: Box<[Limit]>,
    revision: u32,
    on_revision: Revise,
    spending: Spending,
    /// See [`keep`](Policy::keep).
    keep: u64,
    /// What the scripts are told: made once.
    #[cfg(feature = "redis")]
    packed: Box<[u8]>,
    /// The part of it that a fallback admits, by the share in millionths.
    scaled: OnceLock<(u64, Policy)>,
}

/// So many units in so many microseconds, by some algorithm.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
    /// How many units may be in use at once.
    pub(crate) max: u32,
    /// The window; the interval of one unit of a GCRA; the lease of a permit. It tells counters of one kind apart.
    pub(crate) span: u64,
}

impl Limit {
    /// Over how many microseconds `max` units are admitted.
    pub(crate) fn window(&self) -> u64 {
        match self.kind {
            Kind::Gcra => self.span.saturating_mul(self.max.into()),
            _ => self.span,
        }
    }
}

impl Policy {
    /// Begins a policy. Its name, 1 to 64 characters of `[A-Za-z0-9_.-]`, appears in quota headers, problem documents and logs.
    #[expect(
        clippy::new_ret_no_self,
        reason = "a policy without limits is none, so the way to one is a builder"
    )]
    pub fn new(name: impl Into<String>) -> PolicyBuilder {
        PolicyBuilder::new(name.into())
    }

    fn assemble(
        name: Arc<str>,
        limits: Box<[Limit]>,
        (revision, on_revision): (u32, Revise),
        spending: Spending,
    ) -> Self {
        let keep = keep(&limits);
        Self(Arc::new(Inner {
            keep,
            #[cfg(feature = "redis")]
            packed: pack(&limits, revision, keep).into(),
            name,
            limits,
            revision,
            on_revision,
            spending,
            scaled: OnceLock::new(),
        }))
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether a script is told the same of both.
    #[cfg(feature = "redis")]
    pub(crate) fn is_decided_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.packed() == other.packed()
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.0.name
    }

    pub(crate) fn limits(&self) -> &[Limit] {
        &self.0.limits
    }

    pub(crate) fn revision(&self) -> u32 {
        self.0.revision
    }

    pub(crate) fn on_revision(&self) -> Revise {
        self.0.on_revision
    }

    pub(crate) fn spending(&self) -> Spending {
        self.0.spending
    }

    #[cfg(feature = "redis")]
    pub(crate) fn packed(&self) -> &[u8] {
        &self.0.packed
    }

    /// Whether a call holds something until it ends.
    pub(crate) fn has_leases(&self) -> bool {
        self.limits().iter().any(|limit| limit.kind == Kind::Leases)
    }

    /// Refuses where a call must hold something.
    pub(crate) fn needs_no_permit(&self) -> Result<(), RateLimitError> {
        match self.has_leases() {
            true => Err(RateLimitError::NeedsPermit),
            false => Ok(()),
        }
    }

    /// For how long a permit is held if nobody renews it.
    pub(crate) fn lease(&self) -> Option<Duration> {
        let leases = self
            .limits()
            .iter()
            .find(|limit| limit.kind == Kind::Leases);
        leases.map(|limit| Duration::from_micros(limit.span))
    }

    /// After how many milliseconds without a charge nothing is counted any more, whatever the limit.
    pub(crate) fn keep(&self) -> u64 {
        self.0.keep
    }

    /// Refuses a cost that could never be admitted, however long one waits.
    pub(crate) fn admissible(&self, cost: u64) -> Result<u32, RateLimitError> {
        let least = self.limits().iter().map(|limit| limit.max).min();
        let limit = least.unwrap_or_default();
        match u32::try_from(cost) {
            Ok(fitting) if fitting <= limit => Ok(fitting),
            _ => Err(RateLimitError::CostExceedsLimit {
                cost,
                limit: limit.into(),
            }),
        }
    }

    /// The same policy with maxima of so many millionths, rounded up. A bucket refills so much slower too.
    pub(crate) fn scaled(&self, millionths: u64) -> Self {
        let scale = || {
            let of =
                |number: u64| (u128::from(number) * u128::from(millionths)).div_ceil(1_000_000);
            let slower = |interval: u64| {
                let slower = (u128::from(interval) * 1_000_000).div_ceil(millionths.into());
                u64::try_from(slower).unwrap_or(MAX_SPAN).min(MAX_SPAN)
            };
            let scaled = |limit: &Limit| Limit {
                max: u32::try_from(of(limit.max.into())).unwrap_or(limit.max),
                span: match limit.kind {
                    Kind::Gcra => slower(limit.span),
                    _ => limit.span,
                },
                ..limit.clone()
            };
            let limits = self.limits().iter().map(scaled).collect();
            let name = Arc::clone(&self.0.name);
            let revision = (self.0.revision, self.0.on_revision);
            Self::assemble(name, limits, revision, self.0.spending)
        };
        let (share, policy) = self.0.scaled.get_or_init(|| (millionths, scale()));
        // Limiters with different shares of one policy are rare; the first one has it ready.
        if *share == millionths {
            policy.clone()
        } else {
            scale()
        }
    }
}

fn keep(limits: &[Limit]) -> u64 {
    let lifetimes = limits
        .iter()
        .map(|limit| counter::lifetime(limit.kind, limit.span, limit.max));
    // One more: a value must not expire before its counts do.
    lifetimes.max().unwrap_or_default().div_ceil(1_000) + 1
}

/// What the scripts are told of a policy: what stands before the states in a value that it alone was charged under, and nobody is
/// blocked.
#[cfg(feature = "redis")]
fn pack(limits: &[Limit], revision: u32, keep: u64) -> Vec<u8> {
    let mut out = vec![crate::counters::VERSION, limits.len() as u8];
    out.extend_from_slice(&revision.to_le_bytes());
    out.extend_from_slice(&keep.to_le_bytes());
    out.extend_from_slice(&0_u64.to_le_bytes());
    for limit in limits {
        out.push(limit.kind as u8);
        out.extend_from_slice(&limit.max.to_le_bytes());
        out.extend_from_slice(&limit.span.to_le_bytes());
    }
    out
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        let Inner {
            name,
            limits,
            revision,
            on_revision,
            ..
        } = &*self.0;
        Arc::ptr_eq(&self.0, &other.0)
            || (name, limits, revision, on_revision)
                == (
                    &other.0.name,
                    &other.0.limits,
                    &other.0.revision,
                    &other.0.on_revision,
                )
    }
}

impl Eq for Policy {}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name())
            .field("limits", &self.limits())
            .field("revision", &self.0.revision)
            .finish()
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = Duration::from_micros(self.window());
        write!(f, "{} in {window:?} ({:?})", self.max, self.kind)
    }
}
