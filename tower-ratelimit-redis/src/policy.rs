//! What is allowed: a name and its limits.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    PolicyError, RateLimitError,
    counter::{self, Kind, leases, log},
};

/// The most limits of one policy: all of them are read and written at each decision.
pub(crate) const MAX_LIMITS: usize = 8;
const MAX_NAME: usize = 64;
const MIN_WINDOW: Duration = Duration::from_millis(1);
/// The longest window, in microseconds: 366 days. Far below the 2^53 that Redis' scripts count exactly, also after a
/// multiplication by 32.
pub(crate) const MAX_SPAN: u64 = 366 * 24 * 3_600 * 1_000_000;
const MAX_WINDOW: Duration = Duration::from_micros(MAX_SPAN);
/// The longest interval of writing behind.
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);

/// How a limit counts. What each admits at most, sustains and stores is told in the table of the [crate docs](crate#algorithms).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Never more than the limit in any interval of the window's length.
    #[default]
    StrictWindow,
    /// Two fixed windows, the older of which counts by its part that is still within reach. The least memory of those that slide.
    SlidingCounter,
    /// A bucket of `burst` units that refills evenly, by the limit in each window.
    Gcra {
        /// How many units the bucket holds, so how many may be spent at once.
        burst: u64,
    },
    /// The time of every unit. Exact, for limits up to 1,024.
    SlidingLog,
    /// A count that begins anew with each window.
    FixedWindow(WindowStart),
}

/// When the windows of a fixed window begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowStart {
    /// At multiples of the window since the Unix epoch: full minutes, hours and days of UTC.
    #[default]
    Calendar,
    /// With the first call that is admitted.
    FirstCall,
}

/// What becomes of the counts of a subject when it is first seen under a higher [revision](PolicyBuilder::revision).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Revise {
    /// They go on.
    #[default]
    Keep,
    /// They are forgotten, but for permits that are held.
    Reset,
    /// They are multiplied by the new maximum over the old one, so that everybody has used the same part of the limit as before.
    Proportional,
}

/// Who counts first: the store, or this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spending {
    /// The store decides each call.
    #[default]
    Exact,
    /// This process reserves so many units at once and spends them by itself, so few calls wait for the store. They are charged to the
    /// part of the window that begins next and may be spent until that ends; then what is left is given back. So every window holds,
    /// over all processes; but units that one process has reserved are refused to others meanwhile. For strict windows.
    Lease(u64),
    /// This process admits by what it knows of the counts, and tells the store what it admitted each so often. Calls do not wait, and
    /// **more than the limit is admitted**: up to what all processes admit in one interval. Where counts must be roughly right and
    /// nothing else.
    WriteBehind(Duration),
}

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
        PolicyBuilder {
            name: name.into(),
            limits: Vec::new(),
            revision: 0,
            on_revision: Revise::Keep,
            spending: Spending::Exact,
        }
    }

    fn assemble(
        name: Arc<str>,
        limits: Box<[Limit]>,
        (revision, on_revision): (u32, Revise),
        spending: Spending,
    ) -> Self {
        let mut inner = Inner {
            name,
            limits,
            revision,
            on_revision,
            spending,
            #[cfg(feature = "redis")]
            packed: Box::default(),
            scaled: OnceLock::new(),
        };
        #[cfg(feature = "redis")]
        {
            inner.packed = pack(&inner).into();
        }
        Self(Arc::new(inner))
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
        keep(self.limits())
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
            let scaled = |limit: &Limit| Limit {
                max: u32::try_from(of(limit.max.into())).unwrap_or(limit.max),
                span: match limit.kind {
                    Kind::Gcra => (limit.span * 1_000_000).div_ceil(millionths),
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

/// What the scripts are told of a policy: the number of limits (1 byte), the revision (4), whether its change must be applied by
/// somebody else (1), for how many milliseconds a value is kept (8); and of each limit the kind (1), the maximum (4) and the span (8), as
/// in front of a stored counter.
#[cfg(feature = "redis")]
fn pack(inner: &Inner) -> Vec<u8> {
    let mut out = vec![inner.limits.len() as u8];
    out.extend_from_slice(&inner.revision.to_le_bytes());
    out.push(u8::from(inner.on_revision != Revise::Keep));
    out.extend_from_slice(&keep(&inner.limits).to_le_bytes());
    for limit in &inner.limits {
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

/// Collects the limits of a [`Policy`]. Made by [`Policy::new`].
#[derive(Clone, Debug)]
#[must_use = "a policy begins to exist with `build`"]
pub struct PolicyBuilder {
    name: String,
    limits: Vec<Wanted>,
    revision: u32,
    on_revision: Revise,
    spending: Spending,
}

/// A limit as it was said.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Rate(Algorithm, u64, Duration),
    Concurrency(u64, Duration),
}

impl PolicyBuilder {
    /// Adds a limit: never more than `max` units in any interval of the length `window`.
    ///
    /// It is named after both: `api-1s`, `api-3600s`, `api-500ms`.
    pub fn limit(self, max: u64, window: Duration) -> Self {
        self.limit_by(Algorithm::StrictWindow, max, window)
    }

    /// Adds a limit of `max` units in each `window`, by another algorithm.
    pub fn limit_by(mut self, algorithm: Algorithm, max: u64, window: Duration) -> Self {
        self.limits.push(Wanted::Rate(algorithm, max, window));
        self
    }

    /// Adds a limit of `max` units that are held at the same time, up to 1,024. They are held by a
    /// [`Permit`](crate::Permit) until it is dropped. It is renewed meanwhile; that of a process which dies ends after `lease`.
    ///
    /// It is named `api-concurrency`.
    pub fn concurrency(mut self, max: u64, lease: Duration) -> Self {
        self.limits.push(Wanted::Concurrency(max, lease));
        self
    }

    /// Says which version of the policy this is, 0 if not set, and what becomes of the counts of the versions before.
    ///
    /// The first call of a subject under a higher revision than its counts have applies `change` to them, once. A lower one decides
    /// by its own limits and what is counted, and changes nothing else; so two versions may serve side by side.
    pub fn revision(mut self, revision: u32, change: Revise) -> Self {
        (self.revision, self.on_revision) = (revision, change);
        self
    }

    /// Says who counts first; [`Spending::Exact`] if not set. In process, where the store is, it makes no difference.
    pub fn spending(mut self, spending: Spending) -> Self {
        self.spending = spending;
        self
    }

    /// Checks all that was said.
    ///
    /// # Errors
    ///
    /// A [`PolicyError`] that says what is wrong with the name or with one of the limits.
    pub fn build(self) -> Result<Policy, PolicyError> {
        check_name(&self.name)?;
        match self.limits.len() {
            0 => return Err(PolicyError::NoLimit),
            count if count > MAX_LIMITS => return Err(PolicyError::TooManyLimits { count }),
            _ => {}
        }
        let mut limits: Vec<Limit> = Vec::with_capacity(self.limits.len());
        for wanted in self.limits {
            let limit = wanted.limit(&self.name)?;
            let same = |other: &Limit| {
                other.name == limit.name || (other.kind, other.span) == (limit.kind, limit.span)
            };
            if limits.iter().any(same) {
                return Err(PolicyError::DuplicateWindow {
                    window: wanted.window(),
                });
            }
            limits.push(limit);
        }
        check_spending(self.spending, &limits)?;
        Ok(Policy::assemble(
            self.name.into(),
            limits.into(),
            (self.revision, self.on_revision),
            self.spending,
        ))
    }
}

impl Wanted {
    fn window(self) -> Duration {
        match self {
            Self::Rate(_, _, window) | Self::Concurrency(_, window) => window,
        }
    }

    fn limit(self, policy: &str) -> Result<Limit, PolicyError> {
        let micros = check_window(self.window())?;
        let (kind, max, span) = match self {
            Self::Concurrency(max, _) => (Kind::Leases, few(max, leases::MAX_LIMIT)?, micros),
            Self::Rate(Algorithm::StrictWindow, max, _) => (Kind::Strict, check_max(max)?, micros),
            Self::Rate(Algorithm::SlidingCounter, max, _) => {
                (Kind::Sliding, check_max(max)?, micros)
            }
            Self::Rate(Algorithm::SlidingLog, max, _) => {
                (Kind::Log, few(max, log::MAX_LIMIT)?, micros)
            }
            Self::Rate(Algorithm::FixedWindow(WindowStart::Calendar), max, _) => {
                (Kind::FixedAligned, check_max(max)?, micros)
            }
            Self::Rate(Algorithm::FixedWindow(WindowStart::FirstCall), max, _) => {
                (Kind::FixedFirst, check_max(max)?, micros)
            }
            Self::Rate(Algorithm::Gcra { burst }, max, window) => (
                Kind::Gcra,
                check_max(burst)?,
                interval(max, burst, window, micros)?,
            ),
        };
        let name = match kind {
            Kind::Leases => format!("{policy}-concurrency"),
            _ => limit_name(policy, micros),
        };
        Ok(Limit {
            name: name.into(),
            kind,
            max,
            span,
        })
    }
}

fn check_name(name: &str) -> Result<(), PolicyError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(PolicyError::InvalidName { name: name.into() });
    }
    Ok(())
}

fn check_spending(spending: Spending, limits: &[Limit]) -> Result<(), PolicyError> {
    let least = limits.iter().map(|limit| limit.max).min();
    let all = |kind| limits.iter().all(|limit| limit.kind == kind);
    let held = limits.iter().any(|limit| limit.kind == Kind::Leases);
    let wrong = |expected| Err(PolicyError::InvalidSpending { spending, expected });
    match spending {
        Spending::Exact => Ok(()),
        Spending::Lease(_) if !all(Kind::Strict) => wrong("strict windows only"),
        Spending::Lease(chunk) if chunk == 0 || chunk > least.unwrap_or_default().into() => {
            wrong("at least 1 and at most the smallest limit")
        }
        Spending::WriteBehind(_) if held => wrong("no concurrency limit"),
        Spending::WriteBehind(interval) if !(MIN_WINDOW..=MAX_INTERVAL).contains(&interval) => {
            wrong("1 ms to 1 h")
        }
        _ => Ok(()),
    }
}

fn check_max(max: u64) -> Result<u32, PolicyError> {
    match u32::try_from(max) {
        Ok(0) => Err(PolicyError::ZeroLimit),
        Ok(max) => Ok(max),
        Err(_) => Err(PolicyError::LimitTooLarge {
            limit: max,
            most: u32::MAX.into(),
        }),
    }
}

fn few(max: u64, most: u32) -> Result<u32, PolicyError> {
    match check_max(max)? {
        fitting if fitting <= most => Ok(fitting),
        _ => Err(PolicyError::LimitTooLarge {
            limit: max,
            most: most.into(),
        }),
    }
}

/// The time in which a bucket refills by one unit: rounded up to whole microseconds, which must not lose more than a hundredth of the
/// rate; and the whole bucket must be full again after a window that can be represented.
fn interval(max: u64, burst: u64, window: Duration, micros: u64) -> Result<u64, PolicyError> {
    check_max(max)?;
    let interval = micros.div_ceil(max);
    if u128::from(interval) * u128::from(max) * 100 > u128::from(micros) * 101 {
        return Err(PolicyError::RateNotRepresentable { limit: max, window });
    }
    match interval.checked_mul(burst) {
        Some(refill) if refill <= MAX_SPAN => Ok(interval),
        _ => Err(PolicyError::BurstTooLong { burst }),
    }
}

fn check_window(window: Duration) -> Result<u64, PolicyError> {
    if window.is_zero() {
        return Err(PolicyError::ZeroWindow);
    }
    let whole = window.subsec_nanos().is_multiple_of(1_000);
    if window < MIN_WINDOW || window > MAX_WINDOW || !whole {
        return Err(PolicyError::WindowNotRepresentable { window });
    }
    u64::try_from(window.as_micros()).map_err(|_| PolicyError::WindowNotRepresentable { window })
}

fn limit_name(policy: &str, micros: u64) -> String {
    if micros.is_multiple_of(1_000_000) {
        format!("{policy}-{}s", micros / 1_000_000)
    } else if micros.is_multiple_of(1_000) {
        format!("{policy}-{}ms", micros / 1_000)
    } else {
        format!("{policy}-{micros}us")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(builder: PolicyBuilder) -> PolicyError {
        builder.build().unwrap_err()
    }

    #[test]
    fn limits_are_named_after_policy_and_window() {
        let policy = Policy::new("api")
            .limit(1, SECOND)
            .limit(1, 3_600 * SECOND)
            .limit(1, Duration::from_millis(1_500))
            .limit(1, Duration::from_micros(2_001))
            .build()
            .unwrap();
        let names: Vec<&str> = policy.limits().iter().map(|limit| &*limit.name).collect();
        assert_eq!(names, ["api-1s", "api-3600s", "api-1500ms", "api-2001us"]);
    }

    #[test]
    fn a_zero_is_refused() {
        assert_eq!(
            error(Policy::new("api").limit(0, SECOND)),
            PolicyError::ZeroLimit
        );
        assert_eq!(
            error(Policy::new("api").limit(1, Duration::ZERO)),
            PolicyError::ZeroWindow
        );
        assert_eq!(error(Policy::new("api")), PolicyError::NoLimit);
    }

    #[test]
    fn what_cannot_be_counted_exactly_is_refused() {
        let limit = u64::from(u32::MAX) + 1;
        let too_large = Policy::new("api").limit(limit, SECOND);
        let most = limit - 1;
        assert_eq!(error(too_large), PolicyError::LimitTooLarge { limit, most });
        let last = Policy::new("api").limit(limit - 1, MAX_WINDOW).build();
        assert!(last.is_ok());

        let windows = [
            Duration::from_micros(999),
            Duration::from_nanos(1_500_001),
            MAX_WINDOW + Duration::from_micros(1),
            Duration::MAX,
        ];
        for window in windows {
            let found = error(Policy::new("api").limit(1, window));
            assert_eq!(found, PolicyError::WindowNotRepresentable { window });
        }
    }

    #[test]
    fn two_limits_of_one_name_are_refused() {
        let twice = Policy::new("api").limit(1, SECOND).limit(2, SECOND);
        assert_eq!(
            error(twice),
            PolicyError::DuplicateWindow { window: SECOND }
        );
    }

    #[test]
    fn more_limits_than_fit_are_refused() {
        let with = |count: u32| {
            (1..=count).fold(Policy::new("api"), |policy, n| policy.limit(1, n * SECOND))
        };
        assert!(with(8).build().is_ok());
        assert_eq!(error(with(9)), PolicyError::TooManyLimits { count: 9 });
    }

    #[test]
    fn a_name_that_would_need_quoting_is_refused() {
        for name in ["", "a b", "a\"b", "ä", "a:b", "{a}", &"x".repeat(65)] {
            let found = error(Policy::new(name).limit(1, SECOND));
            assert_eq!(found, PolicyError::InvalidName { name: name.into() });
        }
        assert!(Policy::new("a.B-c_9").limit(1, SECOND).build().is_ok());
        assert!(Policy::new("x".repeat(64)).limit(1, SECOND).build().is_ok());
    }

    #[test]
    fn a_cost_beyond_the_least_limit_is_refused() {
        let policy = Policy::new("api").limit(20, SECOND).limit(5, 2 * SECOND);
        let policy = policy.build().unwrap();
        assert_eq!(policy.admissible(5).unwrap(), 5);
        for cost in [6, u64::MAX] {
            let error = policy.admissible(cost).unwrap_err();
            assert!(
                matches!(error, RateLimitError::CostExceedsLimit { cost: c, limit: 5 } if c == cost)
            );
        }
    }
}
