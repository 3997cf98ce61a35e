//! What a failed attempt means: for the node's breaker, for the connection it was made on, and for the call itself.
//!
//! [`Fault::row`] is the one table. Everybody who meets a failure asks it; nobody else decides.
//!
//! A server may repeat the arguments of a command in its error, the password of `HELLO` among them. Of what it says only the code
//! is kept, and only if it looks like one; of the client library's errors only those of the socket.

use ::redis::{ErrorKind as Cause, RedisError, ServerError};

use super::{Class, cluster::Redirect};
use crate::{Error, ErrorKind};

/// The kinds of failures, each a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// There is no connection: refused, reset, no such host. Nothing was sent.
    Away,
    /// The connection ended, or what came was no RESP, while the command was in flight.
    Lost,
    /// TLS, authentication, permission, protocol: one of the two sides must be changed.
    Credentials,
    /// No reply before the deadline.
    Timeout,
    /// Too many commands wait already; this one was not sent.
    Saturated,
    /// The backend is closed.
    Closed,
    /// The server takes no further connection.
    MaxClients,
    Loading,
    MasterDown,
    ClusterDown,
    TryAgain,
    Moved,
    Ask,
    ReadOnly,
    /// A script runs for too long already.
    Busy,
    NoScript,
    OutOfMemory,
    NoReplicas,
    /// It cannot persist, and takes no writes until it can.
    Misconf,
    /// Any other refusal: it is the fault of the command.
    Refused,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// What it says of the node. A breaker reads this; nothing else does.
    pub(super) blame: Blame,
    /// What happens to the connection.
    pub(super) connection: Verdict,
    /// Whether an idempotent command is sent again.
    pub(super) idempotent: Again,
    /// Whether a command that must not be executed twice is sent again.
    pub(super) at_most_once: Again,
}

/// How much a failure says about the health of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    None,
    Soft,
    Failure,
    Hard,
}

/// What happens to the connection on which a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Replaced after three in a row without a word from the server between them.
    Suspect,
    Replace,
    /// It works but leads to the wrong server: kept until the right one is found.
    Misplaced,
}

/// Whether and when a command is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// On the next connection.
    Now,
    /// To the node that the server named.
    Follow,
    /// After a pause, for as long as the deadline allows.
    After(Pause),
}

/// Why a command waits before it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// Another server takes over.
    Failover,
    /// Another server has taken over, and is looked for.
    Rediscovery,
    /// Slots are without a server.
    ClusterDown,
    /// A slot is on its way.
    TryAgain,
    /// The server reads its data.
    Loading,
    /// Full jitter that grows.
    Backoff,
}

impl Fault {
    #[cfg(all(test, feature = "metrics"))]
    pub(super) const ALL: [Self; 20] = [
        Self::Away,
        Self::Lost,
        Self::Credentials,
        Self::Timeout,
        Self::Saturated,
        Self::Closed,
        Self::MaxClients,
        Self::Loading,
        Self::MasterDown,
        Self::ClusterDown,
        Self::TryAgain,
        Self::Moved,
        Self::Ask,
        Self::ReadOnly,
        Self::Busy,
        Self::NoScript,
        Self::OutOfMemory,
        Self::NoReplicas,
        Self::Misconf,
        Self::Refused,
    ];

    /// The table. `NoScript` is answered where the text of the script is known.
    #[rustfmt::skip]
    pub(super) fn row(self) -> Row {
        use self::{Again::{After, Follow, Never, Now}, Pause::{Backoff, Failover, Loading, Rediscovery}, Verdict::{Keep, Misplaced, Replace, Suspect}};
        let (blame, connection, idempotent, at_most_once) = match self {
            Self::Away        => (Blame::Hard,    Replace,   After(Failover),           After(Failover)),
            Self::Lost        => (Blame::Hard,    Replace,   Now,                       Never),
            Self::Credentials => (Blame::None,    Replace,   Never,                     Never),
            Self::Timeout     => (Blame::Failure, Suspect,   Now,                       Never),
            Self::Saturated   => (Blame::None,    Keep,      Never,                     Never),
            Self::Closed      => (Blame::None,    Keep,      Never,                     Never),
            Self::MaxClients  => (Blame::Hard,    Replace,   After(Backoff),            After(Backoff)),
            Self::Loading     => (Blame::Soft,    Keep,      After(Loading),            After(Loading)),
            Self::MasterDown  => (Blame::Failure, Keep,      After(Pause::ClusterDown), After(Pause::ClusterDown)),
            Self::ClusterDown => (Blame::Failure, Keep,      After(Pause::ClusterDown), After(Pause::ClusterDown)),
            Self::TryAgain    => (Blame::None,    Keep,      After(Pause::TryAgain),    After(Pause::TryAgain)),
            Self::Moved       => (Blame::None,    Keep,      Follow,                    Follow),
            Self::Ask         => (Blame::None,    Keep,      Follow,                    Follow),
            Self::ReadOnly    => (Blame::Failure, Misplaced, After(Rediscovery),        After(Rediscovery)),
            Self::Busy        => (Blame::Failure, Keep,      After(Backoff),            Never),
            Self::NoScript | Self::OutOfMemory | Self::NoReplicas | Self::Misconf | Self::Refused
                              => (Blame::None,    Keep,      Never,                     Never),
        };
        Row { blame, connection, idempotent, at_most_once }
    }

    pub(super) fn again(self, class: Class) -> Again {
        match class {
            Class::Idempotent => self.row().idempotent,
            Class::AtMostOnce => self.row().at_most_once,
        }
    }

    /// The row of an error code that a server answers to a command.
    fn answered(code: &str) -> Self {
        match code {
            "LOADING" => Self::Loading,
            "MASTERDOWN" => Self::MasterDown,
            "CLUSTERDOWN" => Self::ClusterDown,
            "TRYAGAIN" => Self::TryAgain,
            "MOVED" => Self::Moved,
            "ASK" => Self::Ask,
            "READONLY" => Self::ReadOnly,
            "BUSY" | "UNKILLABLE" => Self::Busy,
            "NOSCRIPT" => Self::NoScript,
            "OOM" => Self::OutOfMemory,
            "NOREPLICAS" => Self::NoReplicas,
            "MISCONF" => Self::Misconf,
            // The connection itself has no rights any more. `NOPERM` is about one command: it says nothing of the others.
            "NOAUTH" | "WRONGPASS" => Self::Credentials,
            _ => Self::Refused,
        }
    }
}

/// A failed attempt.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    pub(super) error: Error,
    /// Where the server says that the key is.
    pub(super) redirect: Option<Box<Redirect>>,
}

impl Failure {
    pub(super) fn new(fault: Fault, error: Error) -> Self {
        Self {
            fault,
            error,
            redirect: None,
        }
    }

    pub(super) fn without_redirect(mut self) -> Self {
        self.redirect = None;
        self
    }

    /// Nothing was sent, because there is no connection.
    pub(super) fn away(text: impl Into<String>) -> Self {
        Self::new(Fault::Away, Error::new(ErrorKind::Unavailable, text))
    }

    /// Something must be changed on one of the two sides.
    pub(super) fn config(text: impl Into<String>) -> Self {
        Self::new(Fault::Credentials, Error::new(ErrorKind::Config, text))
    }

    /// As many wait already as may.
    pub(super) fn saturated(limit: usize) -> Self {
        let text = format!("{limit} commands are in flight already");
        Self::new(Fault::Saturated, Error::new(ErrorKind::Saturated, text))
    }

    pub(super) fn closed() -> Self {
        Self::new(Fault::Closed, crate::engine::closed())
    }

    /// While connecting or subscribing: the server is away, or it answers and refuses.
    pub(super) fn of_dial(error: RedisError) -> Self {
        match error.kind() {
            Cause::AuthenticationFailed => refused_dial(error.code().unwrap_or("WRONGPASS"), None),
            Cause::Server(_) | Cause::Extension => {
                refused_dial(error.code().unwrap_or("ERR"), error.detail())
            }
            Cause::RESP3NotSupported => refused_dial("NOPROTO", None),
            _ => {
                let text = "the connection ended before the server confirmed";
                Self::new(Fault::Away, broken(text, error))
            }
        }
    }

    /// While connecting, by an answer of the server.
    pub(super) fn of_greeting(answer: &ServerError) -> Self {
        refused_dial(answer.code(), answer.details())
    }

    /// What the server answered to a command: it was refused, so it was not executed.
    pub(super) fn of_answer(answer: &ServerError) -> Self {
        let code = in_script(answer).unwrap_or(answer.code());
        let fault = Fault::answered(code);
        let redirect = match fault {
            Fault::Moved | Fault::Ask => Redirect::parse(fault, answer.details()).map(Box::new),
            _ => None,
        };
        Self {
            fault,
            error: refusal(fault, code),
            redirect,
        }
    }

    /// The connection ended while a command of this class was in flight.
    pub(super) fn lost(class: Class, error: RedisError) -> Self {
        let lost = broken("the connection was lost", error);
        let error = match class {
            Class::Idempotent => lost,
            Class::AtMostOnce => {
                let text = "the connection was lost while the command was in flight";
                Error::new(ErrorKind::Ambiguous, text).with_source(lost)
            }
        };
        Self::new(Fault::Lost, error)
    }

    /// No reply to a command of this class that was sent.
    pub(super) fn late(class: Class) -> Self {
        let error = match class {
            Class::Idempotent => Error::new(ErrorKind::Timeout, "no reply in time"),
            Class::AtMostOnce => Error::new(
                ErrorKind::Ambiguous,
                "no reply before the deadline; the command may have been executed",
            ),
        };
        Self::new(Fault::Timeout, error)
    }
}

/// The code that a command was refused with inside of a script. Before Redis 7 it is wrapped in an `ERR`:
/// `ERR Error running script (call to f_<sha1>): @user_script:1: @user_script: 1: -READONLY You can't write ...`.
fn in_script(answer: &ServerError) -> Option<&str> {
    let told = answer.details().filter(|_| answer.code() == "ERR")?;
    let error = told.strip_prefix("Error running script (call to f_")?;
    let (_, refusal) = error.split_once(": -")?;
    refusal.split(' ').next()
}

fn refused_dial(code: &str, detail: Option<&str>) -> Failure {
    let fault = match Fault::answered(code) {
        Fault::Refused if detail.is_some_and(|text| text.contains("max number of clients")) => {
            Fault::MaxClients
        }
        fault @ (Fault::Loading | Fault::MasterDown | Fault::ClusterDown) => fault,
        Fault::Busy => Fault::Away,
        _ => Fault::Credentials,
    };
    Failure::new(fault, refusal(fault, code))
}

fn refusal(fault: Fault, code: &str) -> Error {
    let kind = match fault {
        Fault::Loading
        | Fault::MasterDown
        | Fault::ClusterDown
        | Fault::TryAgain
        | Fault::Moved
        | Fault::Ask
        | Fault::ReadOnly
        | Fault::MaxClients => ErrorKind::Unavailable,
        _ => ErrorKind::Server(prefix(code)),
    };
    let text = match fault {
        Fault::MaxClients => "the server has as many clients as it takes".to_owned(),
        _ => format!("the server answered {}", prefix(code)),
    };
    Error::new(kind, text)
}

/// An error code: `WRONGTYPE`, `NOPERM`. Anything else is shown as `ERR`.
fn prefix(code: &str) -> Box<str> {
    let is_code = !code.is_empty()
        && code.len() <= 32
        && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    if is_code { code.into() } else { "ERR".into() }
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
