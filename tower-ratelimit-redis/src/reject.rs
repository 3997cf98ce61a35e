//! The responses of requests that do not reach the service behind.

use std::{any::type_name, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response,
    header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE},
    request::Parts,
};

use crate::{
    Reason, Refusal, grpc,
    headers::{Fields, seconds},
    problem,
};

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Makes the response of a refused request.
///
/// Closures `Fn(&Refusal) -> Response<B>`, where `Bytes` are made from `B`, implement it: a text, bytes, or nothing. What such a
/// response does not have is added: the fields of [`HeaderStyle`](crate::HeaderStyle), `Retry-After`, and
/// `Cache-Control: no-store`. It is also asked about calls of gRPC, which it should leave to [`DefaultReject`]:
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_ratelimit_redis::{DefaultReject, Reason, Refusal, Reject as _};
///
/// let reject = |refusal: &Refusal<'_>| match refusal.reason() {
///     Reason::Quota(_) if !refusal.is_grpc() => Response::builder()
///         .status(StatusCode::TOO_MANY_REQUESTS)
///         .header("content-type", "text/plain")
///         .body("slow down".into())
///         .expect("all parts are valid"),
///     _ => DefaultReject.reject(refusal),
/// };
/// # fn is_reject(_: impl tower_ratelimit_redis::Reject) {}
/// # is_reject(reject);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` makes no response of a refusal",
    note = "a closure does if its argument has a type and its body becomes `Bytes`: `|refusal: &Refusal<'_>| Response::new(\"slow down\")`"
)]
pub trait Reject: Send + Sync + 'static {
    /// The whole response.
    fn reject(&self, refusal: &Refusal<'_>) -> Response<Bytes>;
}

impl<F, B> Reject for F
where
    F: Fn(&Refusal<'_>) -> Response<B> + Send + Sync + 'static,
    B: Into<Bytes>,
{
    fn reject(&self, refusal: &Refusal<'_>) -> Response<Bytes> {
        self(refusal).map(Into::into)
    }
}

/// Answers as the [crate](crate#responses) says: a problem document in HTTP, a status with its details in gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DefaultReject;

impl Reject for DefaultReject {
    fn reject(&self, refusal: &Refusal<'_>) -> Response<Bytes> {
        match refusal.framing() {
            Some(framing) => grpc::response(refusal, framing),
            None => problem::response(refusal),
        }
    }
}

/// How a layer refuses.
#[derive(Clone)]
pub(crate) struct Refuse {
    reject: Arc<dyn Reject>,
    name: &'static str,
    pub(crate) jitter: Duration,
}

impl Refuse {
    pub(crate) fn by<R: Reject>(&mut self, reject: R) {
        self.reject = Arc::new(reject);
        self.name = type_name::<R>();
    }

    /// The response to `request`, with all that a refusal must have.
    pub(crate) fn response(
        &self,
        reason: Reason,
        request: &Parts,
        fields: Fields,
    ) -> Response<Bytes> {
        let refusal = Refusal::new(&reason, request, self.jitter);
        let mut response = self.reject.reject(&refusal);
        complete(response.headers_mut(), &refusal, fields);
        if let Some(decision) = refusal.decision() {
            response.extensions_mut().insert(decision.clone());
        }
        response.extensions_mut().insert(reason);
        response
    }
}

impl Default for Refuse {
    fn default() -> Self {
        Self {
            reject: Arc::new(DefaultReject),
            name: type_name::<DefaultReject>(),
            jitter: Duration::ZERO,
        }
    }
}

impl fmt::Debug for Refuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refuse")
            .field("reject", &format_args!("{}", self.name))
            .field("jitter", &self.jitter)
            .finish()
    }
}

/// Adds what is missing. A call of gRPC has its waiting time in the details of its status.
fn complete(headers: &mut HeaderMap, refusal: &Refusal<'_>, fields: Fields) {
    if !refusal.is_grpc() {
        headers.entry(CACHE_CONTROL).or_insert(NO_STORE);
        if let Some(wait) = refusal.retry_after() {
            let wait = seconds(wait).max(1).into();
            headers.entry(RETRY_AFTER).or_insert(wait);
        }
        if let Reason::Unauthorized { challenge } = refusal.reason() {
            let challenge = HeaderValue::from_static(challenge);
            headers.entry(WWW_AUTHENTICATE).or_insert(challenge);
        }
    }
    if let Some(decision) = refusal.decision() {
        fields.write_missing(decision.limits(), headers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Decision,
        refusal::tests::{limit, quota, request},
    };

    const WAIT: Duration = Duration::from_millis(1_500);

    fn exhausted() -> Reason {
        quota(Some(WAIT), &[limit("api-1s", 0, WAIT)])
    }

    fn refused_by(reject: impl Reject, content_type: &str) -> Response<Bytes> {
        let mut refuse = Refuse::default();
        refuse.by(reject);
        refuse.response(exhausted(), &request(content_type), Fields::default())
    }

    fn texts<const N: usize>(headers: &HeaderMap, names: [&str; N]) -> [Vec<String>; N] {
        names.map(|name| {
            let values = headers.get_all(name).iter();
            values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect()
        })
    }

    const ADDED: [&str; 4] = [
        "cache-control",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
    ];

    #[test]
    fn what_a_response_does_not_have_is_added() {
        let response = refused_by(|_: &Refusal<'_>| Response::new("slow down"), "text/html");
        assert_eq!(response.status(), 200, "the user's is the last word");
        assert_eq!(response.body(), "slow down");
        assert_eq!(
            texts(response.headers(), ADDED).concat(),
            [
                "no-store",
                "2",
                r#""api-1s";r=0;t=2"#,
                r#""api-1s";q=20;w=1"#
            ]
        );
    }

    #[test]
    fn what_a_response_has_stays() {
        let own = |_: &Refusal<'_>| {
            let response = ADDED[..3]
                .iter()
                .fold(Response::builder(), |response, field| {
                    response.header(*field, "own")
                });
            response.body(Vec::new()).unwrap()
        };
        let response = refused_by(own, "text/html");
        assert_eq!(
            texts(response.headers(), ADDED).concat(),
            ["own"; 3],
            "one of the quota fields is not written without the other"
        );
    }

    #[test]
    fn a_call_of_grpc_is_told_in_its_own_place_when_to_come_back() {
        for content_type in ["application/grpc", "application/grpc-web"] {
            let response = refused_by(DefaultReject, content_type);
            let [cache, retry, state, policy] = texts(response.headers(), ADDED);
            assert!(cache.is_empty() && retry.is_empty(), "{content_type}");
            assert_eq!((state.len(), policy.len()), (1, 1), "{content_type}");
        }
    }

    #[test]
    fn the_extensions_tell_why() {
        let response = refused_by(|_: &Refusal<'_>| Response::new(""), "text/html");
        let extensions = response.extensions();
        assert!(matches!(extensions.get(), Some(Reason::Quota(_))));
        assert!(extensions.get::<Decision>().is_some());
    }

    #[test]
    fn the_refusal_tells_all_that_a_response_needs() {
        let reject = |refusal: &Refusal<'_>| {
            let names: Vec<&str> = refusal.violated().map(|limit| &*limit.name).collect();
            let text = format!(
                "{} {:?} {} {} {:?}",
                refusal.status(),
                refusal.retry_after(),
                refusal.request().method,
                refusal.is_grpc(),
                names
            );
            assert!(refusal.decision().is_some());
            Response::new(text)
        };
        let response = refused_by(reject, "application/grpc+proto");
        assert_eq!(
            response.body(),
            r#"429 Too Many Requests Some(1.5s) POST true ["api-1s"]"#
        );
    }

    #[test]
    fn it_shows_which_it_is() {
        let mut refuse = Refuse::default();
        assert!(format!("{refuse:?}").contains("DefaultReject"));
        refuse.by(|_: &Refusal<'_>| Response::new(""));
        assert!(format!("{refuse:?}").contains("closure"));
    }
}
