//! What can go wrong, and how the connections learn of it.

use std::time::Duration;

/// How a [`FaultProxy`](crate::FaultProxy) treats its connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fault {
    /// Carries everything.
    #[default]
    Pass,
    /// Resets every new connection as soon as it is accepted. Live ones go on.
    Refuse,
    /// Resets the connections that are live now; from then on everything passes.
    Reset,
    /// Accepts, reads and carries nothing, and closes nothing.
    ///
    /// A connection that has lost bytes stays so until its client closes it, whatever is set later:
    /// a stream with a hole in it would be a fault that no network has.
    Blackhole,
    /// Delivers this many more bytes to the client of each connection, then holds the rest back
    /// until another fault is set. Requests go on reaching the server.
    FreezeAfter(u64),
    /// Delivers what the server sends `base` later, and up to `jitter` more, in order.
    Delay {
        /// The least delay.
        base: Duration,
        /// The most that is added to it.
        jitter: Duration,
    },
    /// Writes at most this many bytes at a time, in both directions.
    Slice(usize),
    /// Lets the server execute each matching request, and withholds its one reply.
    DropReply {
        /// Which requests.
        matching: Matching,
        /// What becomes of the connection.
        after: AfterDrop,
    },
    /// Swallows each message of a subscription that contains these bytes. Replies pass, and so does
    /// the news that a subscription was made.
    DropPushes(Vec<u8>),
}

impl Fault {
    /// Swallows the messages that contain `text`: a channel's name, or what is said there.
    pub fn drop_pushes(text: impl Into<Vec<u8>>) -> Self {
        Self::DropPushes(text.into())
    }

    /// Drops the replies to `command`, with [`AfterDrop::Continue`].
    pub fn drop_reply(command: impl Into<String>) -> Self {
        let matching = Matching::Command(command.into());
        Self::DropReply {
            matching,
            after: AfterDrop::Continue,
        }
    }

    /// Drops the reply to `command` and closes the connection in its place, as a server does that
    /// dies between executing and answering.
    pub fn close_instead_of_reply(command: impl Into<String>) -> Self {
        let matching = Matching::Command(command.into());
        Self::DropReply {
            matching,
            after: AfterDrop::Close,
        }
    }
}

/// Which requests a [`Fault::DropReply`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Matching {
    /// Those of this command, whatever its case.
    Command(String),
    /// Those with these bytes anywhere in their RESP encoding: a key, a script's SHA-1.
    Bytes(Vec<u8>),
}

/// What becomes of a connection whose reply was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AfterDrop {
    /// All other replies are delivered.
    ///
    /// RESP matches replies to requests by their order alone: once a later request has been sent on
    /// this connection, its client takes each reply for that of the request before.
    #[default]
    Continue,
    /// Nothing more is delivered to the client; the connection stays open.
    Stall,
    /// The connection is closed where the reply would have begun.
    Close,
}

/// What the connections are told.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) fault: Fault,
    /// Counts the faults set, so that setting an equal one starts anew.
    pub(super) version: u64,
    /// Counts the resets; a connection that is older than the latest must go.
    pub(super) resets: u64,
    /// Counts the calls of [`blackhole_live`](Self::blackhole_live); a connection that is older than the latest carries nothing.
    pub(super) holes: u64,
}

impl Control {
    pub(super) fn set(&mut self, fault: Fault) {
        self.version += 1;
        if fault == Fault::Reset {
            self.reset_live();
            self.fault = Fault::Pass;
        } else {
            self.fault = fault;
        }
    }

    pub(super) fn reset_live(&mut self) {
        self.resets += 1;
    }

    pub(super) fn blackhole_live(&mut self) {
        self.holes += 1;
    }
}
