//! Delivery inside the process: from the one transport of a backend to the mailboxes of its subscriptions.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Event, Message};

/// How many messages wait for one slow subscriber; those beyond are counted, dropped, and reported as one gap.
pub(crate) const MAILBOX_CAPACITY: usize = 1024;

/// All mailboxes of one backend, by channel.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    channels: Mutex<HashMap<Arc<str>, Vec<Arc<Mailbox>>>>,
}

impl Hub {
    fn channels(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Arc<Mailbox>>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, channel: &Arc<str>) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        self.channels()
            .entry(Arc::clone(channel))
            .or_default()
            .push(Arc::clone(&mailbox));
        mailbox
    }

    /// Removes a mailbox; `true` if the channel has no subscriber any more.
    pub(crate) fn remove(&self, channel: &Arc<str>, mailbox: &Arc<Mailbox>) -> bool {
        match self.channels().entry(Arc::clone(channel)) {
            Entry::Vacant(_) => true,
            Entry::Occupied(mut subscribers) => {
                subscribers
                    .get_mut()
                    .retain(|other| !Arc::ptr_eq(other, mailbox));
                let last = subscribers.get().is_empty();
                if last {
                    subscribers.remove();
                }
                last
            }
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn has(&self, channel: &str) -> bool {
        self.channels().contains_key(channel)
    }

    #[cfg(any(feature = "redis", feature = "sqlite"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.channels().is_empty()
    }

    #[cfg(feature = "redis")]
    /// The channels that somebody listens to.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.channels().keys().cloned().collect()
    }

    /// Hands one frame to every subscriber of the channel. A frame that cannot be read counts as lost.
    pub(crate) fn deliver(&self, channel: &str, frame: &[u8]) {
        let channels = self.channels();
        let Some(subscribers) = channels.get(channel) else {
            return;
        };
        match Message::decode(frame) {
            Some(message) => subscribers
                .iter()
                .for_each(|mailbox| mailbox.put(message.clone())),
            None => subscribers.iter().for_each(|mailbox| mailbox.lose()),
        }
    }

    #[cfg(any(feature = "redis", feature = "sqlite"))]
    /// Tells every subscriber that messages may have been lost.
    pub(crate) fn gap(&self) {
        self.channels()
            .values()
            .flatten()
            .for_each(|mailbox| mailbox.gap());
    }

    /// Ends the subscriptions of one channel, after a gap.
    #[cfg(feature = "redis")]
    pub(crate) fn end(&self, channel: &Arc<str>) {
        let ended = self.channels().remove(channel);
        for mailbox in ended.iter().flatten() {
            mailbox.gap();
            mailbox.close();
        }
    }

    /// Ends every subscription.
    pub(crate) fn close(&self) {
        self.channels()
            .drain()
            .flat_map(|(_, subscribers)| subscribers)
            .for_each(|mailbox| mailbox.close());
    }
}

/// What waits for one subscriber.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    content: Mutex<Content>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Content {
    messages: VecDeque<Message>,
    /// A gap stands before everything in `messages` or, if it came later, behind: it is delivered first, which only makes a
    /// consumer forget sooner.
    gap: bool,
    lost: u64,
    closed: bool,
}

impl Mailbox {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: Message) {
        let mut content = self.content();
        if content.messages.len() < MAILBOX_CAPACITY {
            content.messages.push_back(message);
        } else {
            content.lost += 1;
            content.gap = true;
        }
        drop(content);
        self.changed.notify_one();
    }

    fn lose(&self) {
        let mut content = self.content();
        content.lost += 1;
        content.gap = true;
        drop(content);
        self.changed.notify_one();
    }

    #[cfg(any(feature = "redis", feature = "sqlite"))]
    fn gap(&self) {
        self.content().gap = true;
        self.changed.notify_one();
    }

    fn close(&self) {
        self.content().closed = true;
        self.changed.notify_one();
    }

    pub(crate) fn lost(&self) -> u64 {
        self.content().lost
    }

    /// The next event; `None` after the end. What came before the end is delivered before it.
    pub(crate) async fn next(&self) -> Option<Event> {
        loop {
            {
                let mut content = self.content();
                if std::mem::take(&mut content.gap) {
                    return Some(Event::Gap);
                }
                if let Some(message) = content.messages.pop_front() {
                    return Some(Event::Message(message));
                }
                if content.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }
}
