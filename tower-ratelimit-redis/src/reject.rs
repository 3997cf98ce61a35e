//! The responses of requests that do not reach the service behind.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
};
use redis_conn::Error;

use crate::{Decision, HeaderStyle, headers::seconds, key::KeyError};

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A limit is reached.
    Quota(Decision),
    /// The store did not decide, and the failure policy is to refuse; or the configuration is wrong.
    Undecided(Error),
    /// The request has no key, and needs one.
    NoKey,
    /// What is in the place of the key is none.
    BadKey(KeyError),
    /// Another layer of the stack has a policy of this name.
    PolicyTwice(Arc<str>),
}

/// The language that the client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    pub(crate) fn of(request: &Parts) -> Self {
        let content = request.headers.get(CONTENT_TYPE);
        match content.and_then(|content| content.as_bytes().strip_prefix(b"application/grpc")) {
            // With anything else behind it, it is of another protocol: that of grpc-web wants its trailers in the body.
            Some([] | [b'+' | b';', ..]) if request.method == Method::POST => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// What there is to say, in either language.
struct Message {
    status: StatusCode,
    grpc_status: u16,
    problem_type: &'static str,
    title: &'static str,
    detail: Option<String>,
    violated: Vec<String>,
    retry_after: Option<Duration>,
}

impl Message {
    fn new(status: StatusCode, grpc_status: u16, title: &'static str) -> Self {
        Self {
            status,
            grpc_status,
            problem_type: "about:blank",
            title,
            detail: None,
            violated: Vec::new(),
            retry_after: None,
        }
    }

    fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Quota(decision) => Self {
                problem_type: "https://iana.org/assignments/http-problem-types#quota-exceeded",
                violated: decision.violated().map(str::to_owned).collect(),
                retry_after: decision.retry_after(),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, 8, "request quota exceeded")
            },
            Refusal::Undecided(error) => Self::undecided(error),
            Refusal::NoKey => Self {
                detail: Some("the request has no key to be limited by".to_owned()),
                ..Self::new(StatusCode::BAD_REQUEST, 3, "rate limit key missing")
            },
            Refusal::BadKey(error) => Self {
                detail: Some(error.to_string()),
                ..Self::new(StatusCode::BAD_REQUEST, 3, "rate limit key invalid")
            },
            Refusal::PolicyTwice(name) => Self {
                detail: Some(format!("two layers have a policy named {name:?}")),
                ..Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    13,
                    "rate limit misconfigured",
                )
            },
        }
    }

    /// The text of the error is for the operator, not for the client.
    fn undecided(error: &Error) -> Self {
        let kind = error.kind();
        if kind.http_status() == 503 {
            return Self {
                problem_type: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
                retry_after: kind.retry_after(),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    14,
                    "rate limit unavailable",
                )
            };
        }
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            13,
            "rate limit undecidable",
        )
    }

    fn into_http(self) -> Response<Bytes> {
        let body = self.problem_json();
        let mut response = Response::new(body.into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(CACHE_CONTROL, NO_STORE);
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, seconds(wait).max(1).into());
        }
        response
    }

    /// A response of trailers only: the status of the call is in the header fields.
    fn into_grpc(self) -> Response<Bytes> {
        let text = self.detail.as_deref().unwrap_or(self.title);
        let message = HeaderValue::try_from(percent_encode(text));
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, GRPC);
        headers.insert("grpc-status", self.grpc_status.into());
        if let Ok(message) = message {
            headers.insert("grpc-message", message);
        }
        response
    }

    fn problem_json(&self) -> String {
        let mut json = format!(
            r#"{{"type":"{}","title":"{}","status":{}"#,
            self.problem_type,
            self.title,
            self.status.as_u16()
        );
        if let Some(detail) = &self.detail {
            json += r#","detail":"#;
            push_json_string(&mut json, detail);
        }
        if !self.violated.is_empty() {
            // Names of limits need no escapes.
            let names = self.violated.join(r#"",""#);
            let _ = write!(json, r#","violated-policies":["{names}"]"#);
        }
        json.push('}');
        json
    }
}

impl Refusal {
    pub(crate) fn into_response(self, protocol: Protocol, style: HeaderStyle) -> Response<Bytes> {
        let message = Message::of(&self);
        let mut response = match protocol {
            Protocol::Http => message.into_http(),
            Protocol::Grpc => message.into_grpc(),
        };
        if let Self::Quota(decision) = self {
            let headers: &mut HeaderMap = response.headers_mut();
            style.write(&decision, headers);
            response.extensions_mut().insert(decision);
        }
        response
    }
}

fn push_json_string(json: &mut String, text: &str) {
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

/// As gRPC writes a status message: printable ASCII as it is, but for the percent sign.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_grpc_call_is_answered_as_one() {
        let protocol = |method: &Method, content: &'static str| {
            let request = http::Request::builder()
                .method(method)
                .header(CONTENT_TYPE, content);
            Protocol::of(&request.body(()).unwrap().into_parts().0)
        };
        for content in ["", "+proto", ";charset=utf-8", "+json; a=b"] {
            let content: &'static str = format!("application/grpc{content}").leak();
            assert_eq!(
                protocol(&Method::POST, content),
                Protocol::Grpc,
                "{content}"
            );
            assert_eq!(protocol(&Method::GET, content), Protocol::Http, "{content}");
        }
        for content in ["-web", "-web+proto", "-web-text", "x", " "] {
            let content: &'static str = format!("application/grpc{content}").leak();
            assert_eq!(
                protocol(&Method::POST, content),
                Protocol::Http,
                "{content}"
            );
        }
    }

    #[test]
    fn a_text_survives_json() {
        let text = "a \"b\" \\ \n ä";
        let mut json = String::new();
        push_json_string(&mut json, text);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        assert_eq!(percent_encode("50% of ä\n"), "50%25 of %C3%A4%0A");
    }
}
