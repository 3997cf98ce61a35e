//! Why a request is refused, and what there is to say about it.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use http::{StatusCode, request::Parts};
use redis_conn::Error;

use crate::{Decision, LimitState, grpc::Framing, key::KeyError};

/// When to come back where nobody can tell when there will be room, as with a limit of concurrent requests.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why a request is refused.
///
/// A refusal has it in the extensions of its response, for the layers further out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// A limit is reached.
    Quota(Decision),
    /// A penalty, whatever is left of the limits.
    Blocked(Decision),
    /// The store did not decide, and the failure policy is to refuse; or the configuration is wrong.
    Undecided(Error),
    /// The request has no key, and needs one.
    MissingKey,
    /// What is in the place of the key is none.
    InvalidKey(KeyError),
    /// The request has no key, and the caller is to prove itself by one.
    Unauthorized {
        /// How: the field `WWW-Authenticate`.
        challenge: &'static str,
    },
    /// The layer [denies](crate::RateLimitLayer::deny) this caller.
    Denied,
    /// The request costs more than a limit ever admits at once.
    CostExceedsLimit {
        /// What it costs.
        cost: u64,
        /// The smallest limit of the policy.
        limit: u64,
    },
    /// Another layer of the stack has a policy of this name.
    DuplicatePolicy(Arc<str>),
}

/// A refused request, as a [`Reject`](crate::Reject) sees it.
pub struct Refusal<'a> {
    reason: &'a Reason,
    request: &'a Parts,
    framing: Option<Framing>,
    retry_after: Option<Duration>,
}

/// What a reason is in the terms of HTTP and of gRPC.
pub(crate) struct Terms {
    pub(crate) status: StatusCode,
    pub(crate) grpc_status: u8,
    pub(crate) problem_type: &'static str,
    pub(crate) title: &'static str,
}

impl Terms {
    const fn new(status: StatusCode, grpc_status: u8, title: &'static str) -> Self {
        Self {
            status,
            grpc_status,
            problem_type: "about:blank",
            title,
        }
    }

    const fn of_type(mut self, problem_type: &'static str) -> Self {
        self.problem_type = problem_type;
        self
    }
}

impl Reason {
    pub(crate) fn terms(&self) -> Terms {
        match self {
            // RESOURCE_EXHAUSTED
            Self::Quota(_) => {
                Terms::new(StatusCode::TOO_MANY_REQUESTS, 8, "request quota exceeded")
                    .of_type("https://iana.org/assignments/http-problem-types#quota-exceeded")
            }
            Self::CostExceedsLimit { .. } => Terms::new(
                StatusCode::TOO_MANY_REQUESTS,
                8,
                "request cost exceeds quota",
            )
            .of_type("https://iana.org/assignments/http-problem-types#quota-exceeded"),
            Self::Blocked(_) => Terms::new(
                StatusCode::TOO_MANY_REQUESTS,
                8,
                "blocked for abnormal usage",
            )
            .of_type("https://iana.org/assignments/http-problem-types#abnormal-usage-detected"),
            // UNAVAILABLE
            Self::Undecided(error) if error.kind().http_status() == 503 => Terms::new(
                StatusCode::SERVICE_UNAVAILABLE,
                14,
                "rate limit unavailable",
            )
            .of_type("https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"),
            // INTERNAL
            Self::Undecided(_) => Terms::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                13,
                "rate limit undecidable",
            ),
            Self::DuplicatePolicy(_) => Terms::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                13,
                "rate limit misconfigured",
            ),
            // UNAUTHENTICATED
            Self::Unauthorized { .. } => {
                Terms::new(StatusCode::UNAUTHORIZED, 16, "rate limit key missing")
            }
            // PERMISSION_DENIED
            Self::Denied => Terms::new(StatusCode::FORBIDDEN, 7, "caller denied"),
            // INVALID_ARGUMENT
            Self::MissingKey => Terms::new(StatusCode::BAD_REQUEST, 3, "rate limit key missing"),
            Self::InvalidKey(_) => Terms::new(StatusCode::BAD_REQUEST, 3, "rate limit key invalid"),
        }
    }

    /// What helps the client. The text of a store's error is for the operator.
    pub(crate) fn detail(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::MissingKey | Self::Unauthorized { .. } => {
                Some("the request has no key to be limited by".into())
            }
            Self::CostExceedsLimit { cost, limit } => Some(
                format!(
                    "the request costs {cost}, and the limit is {limit}: waiting does not help"
                )
                .into(),
            ),
            Self::InvalidKey(error) => Some(error.to_string().into()),
            Self::DuplicatePolicy(name) => {
                Some(format!("two layers have a policy named {name:?}").into())
            }
            Self::Quota(_) | Self::Blocked(_) | Self::Undecided(_) | Self::Denied => None,
        }
    }

    pub(crate) fn decision(&self) -> Option<&Decision> {
        match self {
            Self::Quota(decision) | Self::Blocked(decision) => Some(decision),
            _ => None,
        }
    }

    fn violated(&self) -> impl Iterator<Item = &LimitState> {
        self.decision().into_iter().flat_map(Decision::violated)
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Quota(decision) | Self::Blocked(decision) => {
                // Whoever comes back before a quota has ended is not let in. An end that nobody knows is zero.
                let ends = self.violated().map(|limit| limit.reset_after);
                let ends = ends.filter(|end| !end.is_zero()).max();
                Some(decision.retry_after().max(ends).unwrap_or(ASK_AGAIN))
            }
            Self::Undecided(error) => error.kind().retry_after(),
            Self::MissingKey
            | Self::InvalidKey(_)
            | Self::Unauthorized { .. }
            | Self::Denied
            | Self::CostExceedsLimit { .. }
            | Self::DuplicatePolicy(_) => None,
        }
    }
}

impl<'a> Refusal<'a> {
    pub(crate) fn new(reason: &'a Reason, request: &'a Parts, jitter: Duration) -> Self {
        Self {
            reason,
            request,
            framing: Framing::of(request),
            retry_after: reason
                .retry_after()
                .map(|wait| wait.saturating_add(random_part(jitter))),
        }
    }

    /// Why it is refused.
    #[must_use]
    pub fn reason(&self) -> &'a Reason {
        self.reason
    }

    /// The decision, if one was made: that of [`Reason::Quota`] and of [`Reason::Blocked`].
    #[must_use]
    pub fn decision(&self) -> Option<&'a Decision> {
        self.reason.decision()
    }

    /// The limits that have no room for what the request costs.
    pub fn violated(&self) -> impl Iterator<Item = &'a LimitState> {
        self.reason.violated()
    }

    /// The request, without its body.
    #[must_use]
    pub fn request(&self) -> &'a Parts {
        self.request
    }

    /// The status for a client of HTTP: 429, 503, 500, 403, 401 or 400. That of a gRPC call is 200, whatever happened.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.reason.terms().status
    }

    /// When the client may come back, with the [jitter](crate::RateLimitLayer::retry_jitter); `None` where waiting cannot help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the client speaks gRPC, or grpc-web, and understands nothing else.
    #[must_use]
    pub fn is_grpc(&self) -> bool {
        self.framing.is_some()
    }

    pub(crate) fn framing(&self) -> Option<Framing> {
        self.framing
    }
}

impl fmt::Debug for Refusal<'_> {
    /// Without the request, whose header fields may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal")
            .field("reason", &self.reason)
            .field("is_grpc", &self.is_grpc())
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

/// Each [`RandomState`] hashes nothing to another number: good enough to spread clients.
fn random_part(whole: Duration) -> Duration {
    if whole.is_zero() {
        return whole;
    }
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    Duration::try_from_secs_f64(whole.as_secs_f64() * random).unwrap_or(whole)
}

#[cfg(test)]
pub(crate) mod tests {
    use redis_conn::ErrorKind;

    use super::*;
    use crate::Unit;

    const SECOND: Duration = Duration::from_secs(1);

    pub(crate) fn limit(name: &str, remaining: u64, reset_after: Duration) -> LimitState {
        LimitState {
            name: name.into(),
            limit: 20,
            remaining,
            window: SECOND,
            reset_after,
            unit: Unit::Requests,
        }
    }

    pub(crate) fn concurrency(remaining: u64) -> LimitState {
        LimitState {
            limit: 10,
            window: Duration::ZERO,
            unit: Unit::ConcurrentRequests,
            ..limit("api-concurrency", remaining, Duration::ZERO)
        }
    }

    pub(crate) fn quota(retry_after: Option<Duration>, limits: &[LimitState]) -> Reason {
        Reason::Quota(Decision::refused(false, retry_after, limits))
    }

    pub(crate) fn blocked(retry_after: Duration, limits: &[LimitState]) -> Reason {
        Reason::Blocked(Decision::refused(true, Some(retry_after), limits))
    }

    pub(crate) fn undecided(kind: ErrorKind) -> Reason {
        Reason::Undecided(Error::new(kind, "for the operator"))
    }

    /// A request with this content type.
    pub(crate) fn request(content_type: &str) -> Parts {
        let request = http::Request::post("/").header("content-type", content_type);
        request.body(()).unwrap().into_parts().0
    }

    fn retry_after(reason: &Reason) -> Option<Duration> {
        Refusal::new(reason, &request(""), Duration::ZERO).retry_after()
    }

    #[test]
    fn nobody_is_asked_to_come_back_before_the_quota_has_ended() {
        let limits = [
            limit("a", 0, 5 * SECOND),
            limit("b", 0, 3 * SECOND),
            limit("c", 1, 9 * SECOND),
        ];
        let wait = |wait| retry_after(&quota(wait, &limits));
        assert_eq!(wait(Some(2 * SECOND)), Some(5 * SECOND));
        assert_eq!(wait(Some(7 * SECOND)), Some(7 * SECOND));
        assert_eq!(wait(None), Some(5 * SECOND));
        assert_eq!(
            retry_after(&blocked(60 * SECOND, &limits)),
            Some(60 * SECOND)
        );
    }

    #[test]
    fn where_nobody_can_tell_it_is_a_second_and_where_it_cannot_help_nothing() {
        assert_eq!(retry_after(&quota(None, &[])), Some(SECOND));
        // Nobody can tell when somebody releases.
        assert_eq!(retry_after(&quota(None, &[concurrency(0)])), Some(SECOND));
        assert_eq!(retry_after(&undecided(ErrorKind::Timeout)), Some(SECOND));
        for reason in [
            undecided(ErrorKind::Config),
            Reason::MissingKey,
            Reason::InvalidKey(KeyError::new("no")),
            Reason::DuplicatePolicy("api".into()),
        ] {
            assert_eq!(retry_after(&reason), None, "{reason:?}");
        }
    }

    #[test]
    fn jitter_only_adds_and_not_always_the_same() {
        let reason = quota(Some(SECOND), &[]);
        let request = request("");
        let mut waits = Vec::new();
        for _ in 0..64 {
            let wait = Refusal::new(&reason, &request, SECOND).retry_after();
            assert!((Some(SECOND)..=Some(2 * SECOND)).contains(&wait));
            waits.push(wait);
        }
        waits.dedup();
        assert!(waits.len() > 1, "{waits:?}");

        let long = Refusal::new(&reason, &request, Duration::MAX).retry_after();
        assert!(long >= Some(SECOND));
        let none = Refusal::new(&Reason::MissingKey, &request, SECOND).retry_after();
        assert_eq!(none, None, "there is nothing to spread");
    }

    #[test]
    fn each_reason_has_its_status() {
        let limits = [limit("a", 0, SECOND)];
        for (reason, status, grpc) in [
            (quota(None, &limits), 429, 8),
            (blocked(SECOND, &limits), 429, 8),
            (undecided(ErrorKind::Timeout), 503, 14),
            (undecided(ErrorKind::Saturated), 503, 14),
            (undecided(ErrorKind::Config), 500, 13),
            (Reason::DuplicatePolicy("api".into()), 500, 13),
            (Reason::MissingKey, 400, 3),
            (Reason::InvalidKey(KeyError::new("no")), 400, 3),
        ] {
            let terms = reason.terms();
            assert_eq!(
                (terms.status.as_u16(), terms.grpc_status),
                (status, grpc),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn what_is_shown_names_nothing_of_the_request() {
        let mut request = request("secret");
        request.uri = "/secret".parse().unwrap();
        let reason = quota(None, &[]);
        let shown = format!("{:?}", Refusal::new(&reason, &request, SECOND));
        assert!(
            shown.contains("Quota") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
