//! A refusal in the terms of gRPC.

mod base64;
mod details;

use std::fmt::Write as _;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, header::CONTENT_TYPE, request::Parts,
};

use crate::Refusal;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// `RESOURCE_EXHAUSTED`
const QUOTA_EXCEEDED: u8 = 8;

/// Where a client looks for the status of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// In the trailers, or in the header fields of a response that has nothing else.
    Trailers,
    /// In the last frame of the body: grpc-web, since a browser shows no trailers.
    Web,
    /// In the last frame of the body, which is base64 as a whole: grpc-web-text.
    WebText,
}

impl Framing {
    /// That of the client, if it speaks gRPC.
    pub(crate) fn of(request: &Parts) -> Option<Self> {
        let content = request.headers.get(CONTENT_TYPE)?.as_bytes();
        let (mut variant, mut framing) =
            (content.strip_prefix(b"application/grpc")?, Self::Trailers);
        if let Some(rest) = variant.strip_prefix(b"-web") {
            (variant, framing) = (rest, Self::Web);
        }
        if let (Some(rest), Self::Web) = (variant.strip_prefix(b"-text"), framing) {
            (variant, framing) = (rest, Self::WebText);
        }
        let ends = matches!(variant, [] | [b'+' | b';', ..]);
        (ends && request.method == Method::POST).then_some(framing)
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Trailers => "application/grpc",
            Self::Web => "application/grpc-web+proto",
            Self::WebText => "application/grpc-web-text+proto",
        })
    }
}

pub(crate) fn response(refusal: &Refusal<'_>, framing: Framing) -> Response<Bytes> {
    let status = status(refusal);
    let (headers, body) = match framing {
        Framing::Trailers => (status, Bytes::new()),
        Framing::Web => (HeaderMap::new(), frame(&status)),
        Framing::WebText => (
            HeaderMap::new(),
            base64::encode_padded(&frame(&status)).into(),
        ),
    };
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, framing.content_type());
    response
}

/// The status of the call, as trailers.
fn status(refusal: &Refusal<'_>) -> HeaderMap {
    let reason = refusal.reason();
    let terms = reason.terms();
    let detail = reason.detail();
    let message = detail.as_deref().unwrap_or(terms.title);
    let mut status = HeaderMap::with_capacity(4);
    status.insert(STATUS, u16::from(terms.grpc_status).into());
    if let Ok(message) = HeaderValue::try_from(percent_encode(message)) {
        status.insert(MESSAGE, message);
    }
    let details = details::status(refusal, terms.grpc_status, message);
    let details = details.map(|details| HeaderValue::try_from(base64::encode(&details)));
    if let Some(Ok(details)) = details {
        status.insert(DETAILS, details);
    }
    status
}

/// The frame of grpc-web that has the trailers: a flag, the length, and lines as in HTTP/1.
fn frame(trailers: &HeaderMap) -> Bytes {
    const TRAILERS: u8 = 0x80;
    let mut lines = Vec::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.push(b':');
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(5 + lines.len());
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.put_slice(&lines);
    frame.freeze()
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
    use std::time::Duration;

    use super::*;
    use crate::{
        Reason,
        key::KeyError,
        refusal::tests::{limit, quota, request},
    };

    fn answer(reason: &Reason, content_type: &str) -> Response<Bytes> {
        let request = request(content_type);
        let refusal = Refusal::new(reason, &request, Duration::ZERO);
        response(&refusal, refusal.framing().unwrap())
    }

    #[test]
    fn only_a_grpc_call_is_answered_as_one() {
        let framing = |content: &str, method: Method| {
            let mut request = request(content);
            request.method = method;
            Framing::of(&request)
        };
        for (variant, expected) in [
            ("", Framing::Trailers),
            ("-web", Framing::Web),
            ("-web-text", Framing::WebText),
        ] {
            for format in ["", "+proto", ";charset=utf-8", "+json; a=b"] {
                let content = format!("application/grpc{variant}{format}");
                assert_eq!(framing(&content, Method::POST), Some(expected), "{content}");
                assert_eq!(framing(&content, Method::GET), None, "{content}");
            }
        }
        for other in [
            "x",
            " ",
            "-text",
            "-web-",
            "-webx",
            "-web-textx",
            "-web-web",
        ] {
            let content = format!("application/grpc{other}");
            assert_eq!(framing(&content, Method::POST), None, "{content}");
        }
        assert_eq!(framing("application/json", Method::POST), None);
    }

    #[test]
    fn a_call_is_answered_with_nothing_but_trailers() {
        let second = Duration::from_secs(1);
        let reason = quota(Some(second), &[limit("api-1s", 0, second)]);
        let response = answer(&reason, "application/grpc");
        assert_eq!(response.status(), 200);
        assert!(response.body().is_empty());
        let headers = response.headers();
        assert_eq!(headers.len(), 4);
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["grpc-status"], "8");
        assert_eq!(headers["grpc-message"], "request quota exceeded");
        let details = headers["grpc-status-details-bin"].to_str().unwrap();
        assert!(!details.ends_with('='), "gRPC wants no padding: {details}");
    }

    #[test]
    fn a_browser_finds_the_trailers_in_the_body() {
        let reason = Reason::InvalidKey(KeyError::new("100% wrong"));
        let lines = b"grpc-status:3\r\ngrpc-message:100%25 wrong\r\n";
        let mut expected = vec![0x80, 0, 0, 0, 42];
        expected.extend_from_slice(lines);

        let response = answer(&reason, "application/grpc-web");
        assert_eq!(response.headers().len(), 1);
        assert_eq!(
            response.headers()["content-type"],
            "application/grpc-web+proto"
        );
        assert_eq!(response.body(), &expected);

        let response = answer(&reason, "application/grpc-web-text");
        assert_eq!(
            response.headers()["content-type"],
            "application/grpc-web-text+proto"
        );
        assert_eq!(
            response.body(),
            "gAAAACpncnBjLXN0YXR1czozDQpncnBjLW1lc3NhZ2U6MTAwJTI1IHdyb25nDQo="
        );
    }

    #[test]
    fn a_grpc_message_is_percent_encoded() {
        assert_eq!(percent_encode("50% of ä\n"), "50%25 of %C3%A4%0A");
    }
}
