//! A refusal as a problem document, RFC 9457.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderValue, Response, header::CONTENT_TYPE};

use crate::Refusal;

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

pub(crate) fn response(refusal: &Refusal<'_>) -> Response<Bytes> {
    let mut response = Response::new(document(refusal).into());
    *response.status_mut() = refusal.status();
    response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
    response
}

fn document(refusal: &Refusal<'_>) -> String {
    let terms = refusal.reason().terms();
    let mut json = format!(
        r#"{{"type":"{}","title":"{}","status":{}"#,
        terms.problem_type,
        terms.title,
        terms.status.as_u16()
    );
    if let Some(detail) = refusal.reason().detail() {
        json += r#","detail":"#;
        push_string(&mut json, &detail);
    }
    let violated: Vec<&str> = refusal.violated().map(|limit| &*limit.name).collect();
    if !violated.is_empty() {
        // Names of limits need no escapes.
        let names = violated.join(r#"",""#);
        let _ = write!(json, r#","violated-policies":["{names}"]"#);
    }
    json.push('}');
    json
}

fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            c => json.push(c),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redis_conn::ErrorKind;

    use super::*;
    use crate::{
        Reason,
        key::KeyError,
        refusal::tests::{blocked, limit, quota, request, undecided},
    };

    fn written(reason: &Reason) -> String {
        let request = request("application/json");
        let response = response(&Refusal::new(reason, &request, Duration::ZERO));
        assert_eq!(
            response.headers()["content-type"],
            "application/problem+json"
        );
        assert_eq!(response.status(), reason.terms().status);
        String::from_utf8(response.into_body().to_vec()).unwrap()
    }

    #[test]
    fn the_documents() {
        let hour = Duration::from_secs(3_600);
        let limits = [
            limit("api-1s", 0, hour),
            limit("api-60s", 3, hour),
            limit("api-3600s", 0, hour),
        ];
        let key = KeyError::new("the field \"x\" is twice there");
        for (reason, expected) in [
            (
                quota(None, &limits),
                r#"{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"request quota exceeded","status":429,"violated-policies":["api-1s","api-3600s"]}"#,
            ),
            (
                blocked(hour, &limits[1..2]),
                r#"{"type":"https://iana.org/assignments/http-problem-types#abnormal-usage-detected","title":"blocked for abnormal usage","status":429}"#,
            ),
            (
                undecided(ErrorKind::Unavailable),
                r#"{"type":"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity","title":"rate limit unavailable","status":503}"#,
            ),
            (
                undecided(ErrorKind::Config),
                r#"{"type":"about:blank","title":"rate limit undecidable","status":500}"#,
            ),
            (
                Reason::MissingKey,
                r#"{"type":"about:blank","title":"rate limit key missing","status":400,"detail":"the request has no key to be limited by"}"#,
            ),
            (
                Reason::InvalidKey(key),
                r#"{"type":"about:blank","title":"rate limit key invalid","status":400,"detail":"the field \"x\" is twice there"}"#,
            ),
            (
                Reason::DuplicatePolicy("api".into()),
                r#"{"type":"about:blank","title":"rate limit misconfigured","status":500,"detail":"two layers have a policy named \"api\""}"#,
            ),
        ] {
            let json = written(&reason);
            assert_eq!(json, expected);
            assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
        }
    }

    #[test]
    fn a_text_survives_json() {
        let text = "a \"b\" \\ \n ä";
        let mut json = String::new();
        push_string(&mut json, text);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
