//! What an error of the client library or of the server means to us.
//!
//! A server may repeat the arguments of a command in its error, the password of `HELLO` among them. Of what it says only the code
//! is kept, and only if it looks like one; of the client library's errors only those of the socket.

use ::redis::{ErrorKind as Cause, RedisError, ServerError};

use crate::{Error, ErrorKind};

/// An error while connecting or subscribing: the server is away, or it answers and refuses.
pub(super) fn dial(error: RedisError) -> Error {
    match error.kind() {
        Cause::AuthenticationFailed => refused(error.code().unwrap_or("WRONGPASS")),
        Cause::Server(_) | Cause::Extension => refused(error.code().unwrap_or("ERR")),
        Cause::RESP3NotSupported => refused("NOPROTO"),
        _ => broken("the connection ended before the server confirmed", error),
    }
}

fn refused(code: &str) -> Error {
    let kind = match code {
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" => ErrorKind::Unavailable,
        code => ErrorKind::Server(prefix(code)),
    };
    Error::new(kind, format!("the server answered {}", prefix(code)))
}

/// An error code: `WRONGTYPE`, `NOPERM`. Anything else is shown as `ERR`.
fn prefix(code: &str) -> Box<str> {
    let is_code = !code.is_empty()
        && code.len() <= 32
        && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if is_code { code.into() } else { "ERR".into() }
}

/// Whether a refusal while connecting needs a change on one of the two sides, so that hurrying is of no use.
pub(super) fn is_config_fault(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Config)
}

/// An error that the server answered to a command: the command was refused, so it was not executed.
pub(super) struct Refusal {
    pub(super) error: Error,
    /// The connection leads to the wrong place and must be made anew.
    pub(super) misplaced: bool,
}

pub(super) fn refusal(answer: &ServerError) -> Refusal {
    let misplaced = answer.code() == "READONLY";
    let error = if misplaced {
        Error::new(ErrorKind::Unavailable, "the server answered READONLY")
    } else {
        refused(answer.code())
    };
    Refusal { error, misplaced }
}

/// An error of the connection itself: what was in flight may have been executed.
pub(super) fn lost(error: RedisError) -> Error {
    broken("the connection was lost", error)
}

fn broken(text: &str, error: RedisError) -> Error {
    if error.is_io_error() {
        return Error::new(ErrorKind::Unavailable, text).with_source(error);
    }
    Error::new(
        ErrorKind::Unavailable,
        format!("{text} ({})", error.category()),
    )
}
