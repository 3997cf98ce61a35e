//! One command, and its reply.

use super::lane::{Attempt, Limits};
use crate::{Error, ErrorKind};

/// What may happen to a command whose reply is late or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Executing it twice does no harm: it is sent again on another connection while the deadline lasts.
    Idempotent,
    /// Executing it twice could do harm: it is sent again only where it cannot have been executed, and a lost reply is `Ambiguous`.
    AtMostOnce,
}

/// One command.
#[derive(Debug)]
pub struct Call {
    pub(super) command: ::redis::Cmd,
    pub(super) class: Class,
    /// Which argument is the key, the name of the command being the first.
    key: Option<usize>,
    replica: bool,
    ordered: bool,
}

impl Call {
    /// A command without arguments yet.
    pub fn new(name: &str, class: Class) -> Self {
        Self {
            command: ::redis::cmd(name),
            class,
            key: None,
            replica: false,
            ordered: false,
        }
    }

    /// The same with room for what scripts are given: growing bit by bit takes longer than all else here.
    pub(super) fn roomy(name: &str, class: Class) -> Self {
        let mut command = ::redis::Cmd::with_capacity(16, 512);
        command.arg(name);
        Self {
            command,
            ..Self::new(name, class)
        }
    }

    /// Adds a key. The first one decides which node of a cluster the command goes to; the others must have the same hash tag.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        if self.key.is_none() {
            self.key = Some(self.command.args_iter().count());
        }
        self.arg(key)
    }

    /// Lets a replica answer, if the configuration says so. What it answers may be older than what was written last.
    #[must_use]
    pub fn from_replica(mut self) -> Self {
        self.replica = self.class == Class::Idempotent;
        self
    }

    /// Sends it on the same connection as all others of this kind, in a cluster as those whose first key is in the same slot, so that the
    /// server has them in the order in which they were sent. Only while that connection is down do they take another.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Adds an argument of any bytes.
    #[must_use]
    pub fn arg(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.command.arg(bytes.as_ref());
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn int(mut self, number: u64) -> Self {
        self.command.arg(number);
        self
    }

    /// The same call of a script by its text instead of its digest.
    pub(super) fn with_text(&self, text: &str) -> Self {
        let arguments = self.command.args_iter().skip(2);
        let rest = arguments.filter_map(|argument| match argument {
            ::redis::Arg::Simple(bytes) => Some(bytes),
            _ => None,
        });
        Self {
            key: self.key,
            ordered: self.ordered,
            ..rest.fold(Self::new("EVAL", self.class).arg(text), Self::arg)
        }
    }

    /// The first key.
    pub(super) fn first_key(&self) -> Option<&[u8]> {
        match self.command.args_iter().nth(self.key?)? {
            ::redis::Arg::Simple(key) => Some(key),
            _ => None,
        }
    }

    /// The name of the command.
    #[cfg(feature = "tracing")]
    pub(super) fn name(&self) -> &str {
        match self.command.args_iter().next() {
            Some(::redis::Arg::Simple(name)) => std::str::from_utf8(name).unwrap_or_default(),
            _ => "",
        }
    }

    /// Whether a replica may answer.
    pub(super) fn is_for_replicas(&self) -> bool {
        self.replica
    }

    pub(super) fn command(&self) -> &::redis::Cmd {
        &self.command
    }

    pub(super) fn attempt(&self, limits: Limits) -> Attempt<'_> {
        Attempt {
            command: &self.command,
            class: self.class,
            asking: false,
            order: self.first_key().filter(|_| self.ordered),
            limits,
        }
    }
}

/// What the server answered.
#[derive(Debug, PartialEq)]
pub struct Reply(pub(crate) ::redis::Value);

impl Reply {
    /// Whether the answer is nil.
    pub fn is_nil(&self) -> bool {
        matches!(self.0, ::redis::Value::Nil)
    }

    /// Whether the answer is an array.
    pub fn is_list(&self) -> bool {
        matches!(self.0, ::redis::Value::Array(_))
    }

    /// An integer.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the answer is something else.
    pub fn int(&self) -> Result<i64, Error> {
        match self.0 {
            ::redis::Value::Int(number) => Ok(number),
            _ => Err(self.unexpected("an integer")),
        }
    }

    /// A string of bytes; nil is `None`.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the answer is something else.
    pub fn bytes(self) -> Result<Option<Vec<u8>>, Error> {
        match self.0 {
            ::redis::Value::Nil => Ok(None),
            ::redis::Value::BulkString(bytes) => Ok(Some(bytes)),
            ::redis::Value::SimpleString(text) => Ok(Some(text.into_bytes())),
            ::redis::Value::Okay => Ok(Some(b"OK".to_vec())),
            ::redis::Value::VerbatimString { text, .. } => Ok(Some(text.into_bytes())),
            _ => Err(self.unexpected("a string")),
        }
    }

    /// An array of any length.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the answer is something else.
    pub fn list(self) -> Result<Vec<Reply>, Error> {
        match self.0 {
            ::redis::Value::Array(items) => Ok(items.into_iter().map(Reply).collect()),
            _ => Err(self.unexpected("an array")),
        }
    }

    /// An array of exactly `N` replies.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the answer is something else.
    pub fn array<const N: usize>(self) -> Result<[Reply; N], Error> {
        let items = self.list()?;
        let found = items.len();
        items.try_into().map_err(|_| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the server answered {found} items, expected {N}"),
            )
        })
    }

    fn unexpected(&self, wanted: &str) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "the server answered {}, expected {wanted}",
                kind_of(&self.0)
            ),
        )
    }
}

/// The kind of an answer, never its content.
fn kind_of(value: &::redis::Value) -> &'static str {
    match value {
        ::redis::Value::Nil => "nil",
        ::redis::Value::Int(_) => "an integer",
        ::redis::Value::BulkString(_) | ::redis::Value::SimpleString(_) | ::redis::Value::Okay => {
            "a string"
        }
        ::redis::Value::Array(_) => "an array",
        ::redis::Value::Map(_) => "a map",
        _ => "another type",
    }
}
