//! The details of a status: messages of `google/rpc/status.proto` and `google/rpc/error_details.proto`.
//!
//! They are few and fixed, so they are written by hand, field by field; the numbers are those of the `.proto` files.

use std::time::Duration;

use super::QUOTA_EXCEEDED;
use crate::{LimitState, Refusal, Unit};

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const QUOTA_FAILURE: &str = "type.googleapis.com/google.rpc.QuotaFailure";

/// The `google.rpc.Status` of a refusal; `None` if it would say no more than the status itself.
pub(super) fn status(refusal: &Refusal<'_>, code: u8, message: &str) -> Option<Vec<u8>> {
    let mut details = Vec::new();
    if let Some(wait) = refusal.retry_after() {
        details.push(any(RETRY_INFO, &retry_info(wait)));
    }
    if code == QUOTA_EXCEEDED && refusal.violated().next().is_some() {
        details.push(any(QUOTA_FAILURE, &quota_failure(refusal)));
    }
    if details.is_empty() {
        return None;
    }
    let status = Message::default()
        .number(1, code.into()) // int32 code
        .bytes(2, message.as_bytes()); // string message
    let status = details
        .iter()
        .fold(status, |status, detail| status.bytes(3, detail)); // repeated Any details
    Some(status.0)
}

/// A `google.protobuf.Any`.
fn any(type_url: &str, message: &[u8]) -> Vec<u8> {
    Message::default()
        .bytes(1, type_url.as_bytes()) // string type_url
        .bytes(2, message) // bytes value
        .0
}

/// A `google.rpc.RetryInfo`. Its delay is never zero, which a client would take for "at once".
fn retry_info(wait: Duration) -> Vec<u8> {
    let millis = wait.as_nanos().div_ceil(1_000_000).max(1);
    let wait = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
    let delay = Message::default()
        .number(1, wait.as_secs()) // int64 seconds
        .number(2, wait.subsec_nanos().into()); // int32 nanos
    Message::default().bytes(1, &delay.0).0 // Duration retry_delay
}

/// A `google.rpc.QuotaFailure`. Its subjects are the limits: whose quota it is, is not for everybody on the way.
fn quota_failure(refusal: &Refusal<'_>) -> Vec<u8> {
    let violations = refusal.violated().map(|limit| {
        Message::default()
            .bytes(1, limit.name.as_bytes()) // string subject
            .bytes(2, describe(limit).as_bytes()) // string description
    });
    violations
        .fold(Message::default(), |failure, violation| {
            failure.bytes(1, &violation.0) // repeated Violation violations
        })
        .0
}

fn describe(limit: &LimitState) -> String {
    let LimitState {
        limit: max, window, ..
    } = limit;
    match limit.unit {
        Unit::Requests => format!("limit of {max} in {window:?}"),
        Unit::ConcurrentRequests => format!("limit of {max} at a time"),
    }
}

/// A message in the making. In proto3 a number that is zero is not written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// Wire type 0: a number that is not negative.
    fn number(mut self, field: u8, value: u64) -> Self {
        if value > 0 {
            self.tag(field, 0);
            self.varint(value);
        }
        self
    }

    /// Wire type 2: a string, bytes or a message, with its length ahead.
    fn bytes(mut self, field: u8, value: &[u8]) -> Self {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn tag(&mut self, field: u8, wire_type: u8) {
        self.varint((field << 3 | wire_type).into());
    }

    /// Seven bits a byte, the lowest ones first; all but the last byte have the eighth bit set.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use redis_conn::ErrorKind;
    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;
    use crate::{
        Reason,
        refusal::tests::{blocked, concurrency, limit, quota, request, undecided},
    };

    fn written(reason: &Reason, code: u8) -> Option<Vec<u8>> {
        let request = request("application/grpc");
        let refusal = Refusal::new(reason, &request, Duration::ZERO);
        status(&refusal, code, "text")
    }

    /// The same, made by somebody who knows the `.proto` files.
    fn expected(code: Code, details: ErrorDetails) -> Option<Vec<u8>> {
        let status = Status::with_error_details(code, "text", details);
        Some(status.details().to_vec())
    }

    #[test]
    fn it_is_what_a_compiler_of_protocol_buffers_makes_of_it() {
        // One and more bytes of a length and of a number.
        let waits = [1, 127, 128, 999, 1_000, 300_000, 31_622_400_000].map(Duration::from_millis);
        for wait in waits {
            let limits = [
                limit("api-1s", 0, wait),
                limit("other", 1, wait),
                limit(&"x".repeat(200), 0, wait),
                concurrency(0),
            ];
            let mut details = ErrorDetails::with_retry_info(Some(wait));
            details
                .add_quota_failure_violation("api-1s", "limit of 20 in 1s")
                .add_quota_failure_violation("x".repeat(200), "limit of 20 in 1s")
                .add_quota_failure_violation("api-concurrency", "limit of 10 at a time");
            assert_eq!(
                written(&quota(Some(wait), &limits), 8),
                expected(Code::ResourceExhausted, details)
            );
        }
    }

    #[test]
    fn a_penalty_and_an_outage_tell_when_to_come_back() {
        let minute = Duration::from_secs(60);
        assert_eq!(
            written(&blocked(minute, &[limit("a", 1, minute)]), 8),
            expected(
                Code::ResourceExhausted,
                ErrorDetails::with_retry_info(Some(minute))
            )
        );
        let second = Duration::from_secs(1);
        assert_eq!(
            written(&undecided(ErrorKind::Timeout), 14),
            expected(
                Code::Unavailable,
                ErrorDetails::with_retry_info(Some(second))
            )
        );
        assert_eq!(written(&Reason::MissingKey, 3), None);
    }

    #[test]
    fn a_delay_is_whole_milliseconds_and_never_zero() {
        for (wait, told) in [(0, 1), (1, 1), (1_000_000, 1), (1_000_001, 2)] {
            let reason = quota(Some(Duration::from_nanos(wait)), &[]);
            let told = Some(Duration::from_millis(told));
            assert_eq!(
                written(&reason, 8),
                expected(Code::ResourceExhausted, ErrorDetails::with_retry_info(told)),
                "{wait} ns"
            );
        }
    }
}
