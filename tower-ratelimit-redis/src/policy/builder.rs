//! What may be said of a policy.

use std::time::Duration;

use super::{Algorithm, Limit, MAX_LIMITS, MAX_SPAN, Policy, Revise, Spending, WindowStart};
use crate::{
    PolicyError,
    counter::{Kind, leases, log},
};

const MAX_NAME: usize = 64;
const MIN_WINDOW: Duration = Duration::from_millis(1);
const MAX_WINDOW: Duration = Duration::from_micros(MAX_SPAN);
/// The longest interval of writing behind.
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);

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
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            limits: Vec::new(),
            revision: 0,
            on_revision: Revise::Keep,
            spending: Spending::Exact,
        }
    }

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
    use crate::RateLimitError;

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
    fn the_longest_interval_of_a_bucket_has_a_share() {
        let policy = Policy::new("api").limit_by(Algorithm::Gcra { burst: 1 }, 1, MAX_WINDOW);
        let share = policy.build().unwrap().scaled(500_000);
        assert_eq!(share.limits()[0].span, MAX_SPAN);
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
