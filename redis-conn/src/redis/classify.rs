//! What an error of the client library or of the server means to us.

use ::redis::{ErrorKind as Cause, RedisError, ServerError};

use crate::{Error, ErrorKind};

/// An error while connecting: the server is away, or it answers and refuses.
pub(super) fn dial(error: RedisError) -> Error {
    let kind = match error.kind() {
        Cause::AuthenticationFailed => {
            ErrorKind::Server(error.code().unwrap_or("WRONGPASS").into())
        }
        Cause::Server(_) | Cause::Extension => {
            ErrorKind::Server(error.code().unwrap_or("ERR").into())
        }
        Cause::RESP3NotSupported => ErrorKind::Server("NOPROTO".into()),
        _ => ErrorKind::Unavailable,
    };
    let text = match &kind {
        ErrorKind::Server(_) => "the server refused the connection or the subscription",
        _ => "the connection ended before the server confirmed",
    };
    Error::new(kind, text).with_source(error)
}

/// Whether a refusal while connecting needs a change on one of the two sides, so that hurrying is of no use.
pub(super) fn is_config_fault(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Server(prefix) => !matches!(&**prefix, "LOADING" | "MASTERDOWN" | "CLUSTERDOWN"),
        kind => *kind == ErrorKind::Config,
    }
}

/// An error that the server answered to a command: the command was refused, so it was not executed.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The connection leads to the wrong place and must be made anew.
    pub(super) misplaced: bool,
}

pub(super) fn refusal(answer: &ServerError) -> Refusal {
    let code = answer.code();
    let kind = match code {
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "READONLY" => ErrorKind::Unavailable,
        _ => ErrorKind::Server(code.into()),
    };
    Refusal {
        // The detail of some errors repeats arguments of the command; the code does not.
        error: Error::new(kind, format!("the server answered {code}")),
        misplaced: code == "READONLY",
    }
}

/// An error of the connection itself: what was in flight may have been executed.
pub(super) fn lost(error: RedisError) -> Error {
    Error::new(ErrorKind::Unavailable, "the connection was lost").with_source(error)
}
