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

    #[cfg(feature = "sqlite")]
    pub(crate) fn is_empty(&self) -> bool {
        self.channels().is_empty()
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

    #[cfg(feature = "sqlite")]
    /// Tells every subscriber that messages may have been lost.
    pub(crate) fn gap(&self) {
        self.channels()
            .values()
            .flatten()
            .for_each(|mailbox| mailbox.gap());
    }

    /// From now on the subscribers of a channel may miss messages, until [`resume`](Self::resume).
    #[cfg(feature = "redis")]
    pub(crate) fn interrupt(&self, channel: &str) {
        let channels = self.channels();
        let subscribers = channels.get(channel).into_iter().flatten();
        subscribers.for_each(|mailbox| mailbox.interrupt());
    }

    /// Messages of a channel arrive again: those subscribers who may have missed some are told so, once.
    #[cfg(feature = "redis")]
    pub(crate) fn resume(&self, channel: &str) {
        let channels = self.channels();
        let subscribers = channels.get(channel).into_iter().flatten();
        subscribers.for_each(|mailbox| mailbox.resume());
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
    /// A gap is due once messages arrive again.
    #[cfg(feature = "redis")]
    interrupted: bool,
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
            #[cfg(feature = "metrics")]
            crate::metrics::lost();
        }
        drop(content);
        self.changed.notify_one();
    }

    fn lose(&self) {
        let mut content = self.content();
        content.lost += 1;
        content.gap = true;
        drop(content);
        #[cfg(feature = "metrics")]
        crate::metrics::lost();
        self.changed.notify_one();
    }

    #[cfg(any(feature = "redis", feature = "sqlite"))]
    fn gap(&self) {
        self.content().gap = true;
        self.changed.notify_one();
    }

    #[cfg(feature = "redis")]
    fn interrupt(&self) {
        self.content().interrupted = true;
    }

    #[cfg(feature = "redis")]
    fn resume(&self) {
        if std::mem::take(&mut self.content().interrupted) {
            self.gap();
        }
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
                    #[cfg(feature = "metrics")]
                    crate::metrics::gap();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mailbox: &Mailbox) -> Vec<Event> {
        let mut content = mailbox.content();
        let gap = std::mem::take(&mut content.gap).then_some(Event::Gap);
        let messages = content.messages.drain(..).map(Event::Message);
        gap.into_iter().chain(messages).collect()
    }

    #[test]
    fn of_a_million_messages_a_mailbox_keeps_a_bounded_number_and_counts_the_rest() {
        const SENT: u64 = 1_000_000;
        let (hub, channel) = (Hub::default(), Arc::from("flood"));
        let mailbox = hub.add(&channel);
        let frame = Message::encode(1, b"");
        for _ in 0..SENT {
            hub.deliver(&channel, &frame);
        }
        assert!(mailbox.content().messages.capacity() <= 2 * MAILBOX_CAPACITY);
        let events = drain(&mailbox);
        assert_eq!(events[0], Event::Gap);
        let received = events.iter().skip(1).filter(|event| **event != Event::Gap);
        assert_eq!(received.count() as u64 + mailbox.lost(), SENT);
        assert_eq!(events.len(), MAILBOX_CAPACITY + 1);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn only_those_who_listened_at_the_time_of_a_loss_are_told_and_only_once() {
        let (hub, lost, kept) = (Hub::default(), Arc::from("lost"), Arc::from("kept"));
        let (early, other) = (hub.add(&lost), hub.add(&kept));
        hub.interrupt(&lost);
        hub.interrupt(&lost);
        let late = hub.add(&lost);
        assert_eq!(drain(&early), [], "it is told when messages arrive again");
        hub.resume(&lost);
        hub.resume(&kept);
        assert_eq!(drain(&early), [Event::Gap]);
        assert_eq!(drain(&late), []);
        assert_eq!(drain(&other), []);
        hub.resume(&lost);
        assert_eq!(drain(&early), []);
    }
}
