//! Publish and subscribe between all handles of one backend, in this process and in others.

mod hub;

use std::{fmt, sync::Arc};

pub(crate) use hub::Hub;
use hub::Mailbox;

use crate::{Error, engine::Core, namespace::Namespace};

/// The first byte of every frame.
const FRAME_VERSION: u8 = 1;
const HEADER_LEN: usize = 9;

/// Publishes and subscribes on channels of one namespace.
///
/// Delivery is at most once: what is published while nobody listens, or while a connection is down, is gone. A loss is never
/// silent: every subscription that may have missed something gets one [`Event::Gap`].
#[derive(Clone)]
pub struct Bus {
    core: Arc<Core>,
    namespace: Namespace,
    origin: u64,
}

/// One thing that a [`Subscription`] receives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A message.
    Message(Message),
    /// Messages may have been lost, before this point or among those that are delivered next; whatever was derived from
    /// messages must be checked anew.
    Gap,
}

/// A published message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    origin: u64,
    frame: Arc<[u8]>,
}

impl Message {
    /// The published bytes.
    pub fn payload(&self) -> &[u8] {
        &self.frame[HEADER_LEN..]
    }

    /// The [`Bus`] handle that published it.
    pub fn origin(&self) -> u64 {
        self.origin
    }

    fn encode(origin: u64, payload: &[u8]) -> Arc<[u8]> {
        let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
        frame.push(FRAME_VERSION);
        frame.extend_from_slice(&origin.to_le_bytes());
        frame.extend_from_slice(payload);
        frame.into()
    }

    fn decode(frame: &[u8]) -> Option<Self> {
        let (&version, rest) = frame.split_first()?;
        let origin = rest.first_chunk::<8>()?;
        (version == FRAME_VERSION).then(|| Self {
            origin: u64::from_le_bytes(*origin),
            frame: frame.into(),
        })
    }
}

impl Bus {
    pub(crate) fn new(core: Arc<Core>, namespace: Namespace) -> Self {
        Self {
            core,
            namespace,
            origin: crate::random::id(),
        }
    }

    /// Identifies this handle and its clones in [`Message::origin`].
    pub fn origin(&self) -> u64 {
        self.origin
    }

    /// Publishes to everybody who listens now, this process included.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) and [`Timeout`](crate::ErrorKind::Timeout) when the message was not sent,
    /// [`Ambiguous`](crate::ErrorKind::Ambiguous) when it may have been, [`Closed`](crate::ErrorKind::Closed) after the backend was closed.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have published.
    pub async fn publish(&self, channel: &str, payload: &[u8]) -> Result<(), Error> {
        let channel = self.namespace.channel(channel);
        let frame = Message::encode(self.origin, payload);
        self.core.publish(&channel, frame).await
    }

    /// Listens to a channel. When this returns, everything published from now on arrives or is reported as a gap.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) or [`Timeout`](crate::ErrorKind::Timeout) when the backend did not confirm the
    /// subscription, [`Server`](crate::ErrorKind::Server) when it refused it, [`Closed`](crate::ErrorKind::Closed) after the backend was closed.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves no subscription.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, Error> {
        let channel: Arc<str> = self.namespace.channel(channel).into();
        // The mailbox comes first: nothing that the transport delivers after its confirmation can be missed.
        let subscription = Subscription {
            mailbox: self.core.hub().add(&channel),
            core: Arc::clone(&self.core),
            channel,
        };
        self.core.listen(&subscription.channel).await?;
        Ok(subscription)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("namespace", &self.namespace)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Receives what is published on one channel. Dropping it ends the subscription.
pub struct Subscription {
    core: Arc<Core>,
    channel: Arc<str>,
    mailbox: Arc<Mailbox>,
}

impl Subscription {
    /// The next event; `None` when the subscription has ended: the backend was closed, the server does not allow the channel
    /// any more, or the SQLite file was removed; subscribing again tells which.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no event is lost when this future is dropped.
    pub async fn recv(&mut self) -> Option<Event> {
        self.mailbox.next().await
    }

    /// How many messages were dropped because this subscriber was too slow. Each run of losses is also one [`Event::Gap`].
    pub fn lost(&self) -> u64 {
        self.mailbox.lost()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.core.hub().remove(&self.channel, &self.mailbox) {
            self.core.unlisten(&self.channel);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("channel", &self.channel)
            .field("lost", &self.lost())
            .finish_non_exhaustive()
    }
}
