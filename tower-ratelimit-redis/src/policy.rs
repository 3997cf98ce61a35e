//! What is allowed: a name and its limits.

use std::{fmt, sync::Arc, time::Duration};

use crate::{PolicyError, RateLimitError, ring};

/// The most limits of one policy: all of them are read and written at each decision.
pub(crate) const MAX_LIMITS: usize = 8;
const MAX_NAME: usize = 64;
const MIN_WINDOW: Duration = Duration::from_millis(1);
const MAX_WINDOW: Duration = Duration::from_micros(ring::MAX_WINDOW);

/// A named set of limits that are decided together: a call is admitted when every limit has room for it, and is charged to
/// all of them or to none.
///
/// The name is part of the stored key: policies of one name are charged with what any of them admits, each by its own windows,
/// and share the counts of the windows they have in common; those of different names share nothing.
/// Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use tower_ratelimit_redis::Policy;
///
/// let policy = Policy::new("api")
///     .limit(20, Duration::from_secs(1))
///     .limit(1_000, Duration::from_secs(3600))
///     .build()?;
/// assert_eq!(policy.name(), "api");
/// # Ok::<(), tower_ratelimit_redis::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct Policy(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    limits: Box<[Limit]>,
}

/// So many units in any interval of so many microseconds.
#[derive(Clone)]
pub(crate) struct Limit {
    pub(crate) name: Arc<str>,
    pub(crate) max: u32,
    pub(crate) window: u64,
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
        }
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.0.name
    }

    pub(crate) fn limits(&self) -> &[Limit] {
        &self.0.limits
    }

    /// After how many microseconds without a charge nothing is counted any more, whatever the limit.
    pub(crate) fn lifetime(&self) -> u64 {
        let lifetimes = self
            .limits()
            .iter()
            .map(|limit| ring::lifetime(limit.window));
        lifetimes.max().unwrap_or_default()
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

    /// The same policy with other maxima.
    pub(crate) fn map_limits(&self, max: impl Fn(u32) -> u32) -> Self {
        let scaled = |limit: &Limit| Limit {
            max: max(limit.max),
            ..limit.clone()
        };
        Self(Arc::new(Inner {
            name: Arc::clone(&self.0.name),
            limits: self.limits().iter().map(scaled).collect(),
        }))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name())
            .field("limits", &self.limits())
            .finish()
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {:?}",
            self.max,
            Duration::from_micros(self.window)
        )
    }
}

/// Collects the limits of a [`Policy`]. Made by [`Policy::new`].
#[derive(Clone, Debug)]
#[must_use = "a policy begins to exist with `build`"]
pub struct PolicyBuilder {
    name: String,
    limits: Vec<(u64, Duration)>,
}

impl PolicyBuilder {
    /// Adds a limit: never more than `max` units in any interval of the length `window`.
    ///
    /// It is named after both: `api-1s`, `api-3600s`, `api-500ms`.
    pub fn limit(mut self, max: u64, window: Duration) -> Self {
        self.limits.push((max, window));
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
        for (max, window) in self.limits {
            let micros = check_window(window)?;
            if limits.iter().any(|other| other.window == micros) {
                return Err(PolicyError::DuplicateWindow { window });
            }
            limits.push(Limit {
                name: limit_name(&self.name, micros).into(),
                max: check_max(max)?,
                window: micros,
            });
        }
        Ok(Policy(Arc::new(Inner {
            name: self.name.into(),
            limits: limits.into(),
        })))
    }
}

fn check_name(name: &str) -> Result<(), PolicyError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(PolicyError::InvalidName { name: name.into() });
    }
    Ok(())
}

fn check_max(max: u64) -> Result<u32, PolicyError> {
    match u32::try_from(max) {
        Ok(0) => Err(PolicyError::ZeroLimit),
        Ok(max) => Ok(max),
        Err(_) => Err(PolicyError::LimitTooLarge { limit: max }),
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
        assert_eq!(error(too_large), PolicyError::LimitTooLarge { limit });
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
