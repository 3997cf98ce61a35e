//! The quota fields of a response.

use std::{fmt::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Decision, LimitState};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");
const LEGACY_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const LEGACY_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LEGACY_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Which quota fields a response has, admitted or refused.
///
/// A decision that nobody made ([`Source::Open`](crate::Source::Open)) adds none: there is nothing true to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderStyle {
    /// `RateLimit-Policy: "api-1s";q=20;w=1` and `RateLimit: "api-1s";r=3;t=1`, as draft-ietf-httpapi-ratelimit-headers-11 has
    /// it: quota and window, what remains of it and in how many seconds more will. Nested layers add their own.
    #[default]
    Draft11,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (in seconds from now) of the limit that has the least left; among nested
    /// layers too.
    Legacy,
    /// Both.
    Both,
    /// Neither.
    None,
}

impl HeaderStyle {
    pub(crate) fn write(self, decision: &Decision, headers: &mut HeaderMap) {
        let limits = decision.limits();
        if limits.is_empty() {
            return;
        }
        if matches!(self, Self::Draft11 | Self::Both) {
            write_draft(limits, headers);
        }
        if matches!(self, Self::Legacy | Self::Both) {
            write_legacy(limits, headers);
        }
    }
}

/// Whole seconds, rounded up: whoever waits so long does not come too early.
pub(crate) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn write_draft(limits: &[LimitState], headers: &mut HeaderMap) {
    let (mut policy, mut state) = (String::new(), String::new());
    for limit in limits {
        if !policy.is_empty() {
            policy.push_str(", ");
            state.push_str(", ");
        }
        let LimitState {
            name,
            limit: quota,
            remaining,
            window,
            reset_after,
            ..
        } = limit;
        let (window, reset) = (seconds(*window), seconds(*reset_after));
        // Writing to a string cannot fail, and a name needs no quoting by what a policy's name may be.
        let _ = write!(policy, "\"{name}\";q={quota};w={window}");
        let _ = write!(state, "\"{name}\";r={remaining};t={reset}");
    }
    append(headers, POLICY, policy);
    append(headers, STATE, state);
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(name, value);
    }
}

fn write_legacy(limits: &[LimitState], headers: &mut HeaderMap) {
    let Some(least) = limits.iter().min_by_key(|limit| limit.remaining) else {
        return;
    };
    // These fields tell of one limit only; a layer further in may have told of a tighter one.
    let told = headers
        .get(LEGACY_REMAINING)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if told.is_some_and(|told: u64| told <= least.remaining) {
        return;
    }
    headers.insert(LEGACY_LIMIT, least.limit.into());
    headers.insert(LEGACY_REMAINING, least.remaining.into());
    headers.insert(LEGACY_RESET, seconds(least.reset_after).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_nanos(1)), 1);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
        assert_eq!(seconds(Duration::from_millis(2_001)), 3);
    }
}
