//! The one error type of the family.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

type Source = Arc<dyn StdError + Send + Sync + 'static>;

/// What went wrong between a process and its backend.
///
/// The sibling crates wrap this type, so that one `match` on [`Error::kind`] serves a whole service.
/// The text names what was asked for and what was found; it never contains a password, a session id or a user's key.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    detail: Arc<str>,
    source: Option<Source>,
}

/// The kinds of [`Error`], and what a caller may conclude from each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting is wrong or contradicts another one. Nothing was sent; only a change of the configuration helps.
    Config,
    /// The backend cannot be reached at the moment. The operation was not executed.
    Unavailable,
    /// The deadline passed. The operation was not executed, or executing it again does no harm.
    Timeout,
    /// The operation was sent, its outcome is unknown, and executing it again could do harm: it may have happened once.
    Ambiguous,
    /// The circuit breaker of the node is open; no call was sent.
    CircuitOpen {
        /// When the next probe is due.
        retry_after: Duration,
    },
    /// Too many operations wait for the backend already; this one was not sent.
    Saturated,
    /// The server refused the operation, with this error prefix (such as `OOM`, `NOPERM`, `WRONGTYPE`).
    Server(Box<str>),
    /// What is stored does not have a layout that this version knows. It was left as it is.
    Corrupt,
    /// The backend was closed. For Redis also: the runtime that drives its connections has ended. The embedded backends need none.
    Closed,
}

impl Error {
    /// An error of this kind, with a text that names what was wrong and what was expected.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into().into(),
            source: None,
        }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Whether the operation may have been executed although it failed.
    pub fn is_ambiguous(&self) -> bool {
        self.kind == ErrorKind::Ambiguous
    }
}

impl ErrorKind {
    /// The HTTP status for a route that cannot do without the backend.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Config | Self::Corrupt => 500,
            _ => 503,
        }
    }

    /// The gRPC status code that says the same as [`http_status`](Self::http_status).
    pub fn grpc_code(&self) -> u8 {
        match self {
            Self::Config => 13,   // INTERNAL
            Self::Corrupt => 15,  // DATA_LOSS
            Self::Timeout => 4,   // DEADLINE_EXCEEDED
            Self::Saturated => 8, // RESOURCE_EXHAUSTED
            Self::Ambiguous => 2, // UNKNOWN
            _ => 14,              // UNAVAILABLE
        }
    }

    /// After which time a client may try again; `None` where trying again cannot help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Config | Self::Corrupt => None,
            Self::CircuitOpen { retry_after } => Some((*retry_after).max(Duration::from_secs(1))),
            _ => Some(Duration::from_secs(1)),
        }
    }

    /// The kind as one word, for health answers and metrics.
    #[cfg(any(feature = "redis", feature = "metrics"))]
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Ambiguous => "ambiguous",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::Saturated => "saturated",
            Self::Server(_) => "refused",
            Self::Corrupt => "corrupt",
            Self::Closed => "closed",
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Config => "wrong configuration",
            Self::Unavailable => "backend unavailable",
            Self::Timeout => "deadline passed",
            Self::Ambiguous => "outcome unknown",
            Self::CircuitOpen { .. } => "circuit open",
            Self::Saturated => "too many operations in flight",
            Self::Server(_) => "refused by the server",
            Self::Corrupt => "unknown stored layout",
            Self::Closed => "backend closed",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.text())?;
        if let ErrorKind::Server(prefix) = &self.kind {
            write!(f, " ({prefix})")?;
        }
        if self.detail.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.detail)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("detail", &self.detail)
            .field("source", &self.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}
