//! Grants that are sent to those who wait, and word of locks that were taken by force.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use redis_conn::{Bus, Error, Event, raw::Tasks};
use tokio::{sync::OnceCell, sync::mpsc, task::AbortHandle};

use crate::{
    OwnerId,
    lease::Moment,
    line::Word,
    name::Name,
    owner::process,
    store::{Grant, record::Sent},
};

/// A grant as it is sent: the fence, the time of the grant and the owner, in digits that a script can write.
fn frame(owner: OwnerId, grant: Grant) -> Vec<u8> {
    format!("1{:016}{:016}{owner}", grant.fence, grant.at).into_bytes()
}

/// Sends grants. Who is not reached asks again before long.
pub(crate) async fn send(bus: &Bus, grants: Vec<Sent>) {
    for Sent { wake, owner, grant } in grants {
        // In a box, as few locks come to it: every future that acquires or releases has the room for it.
        let _ = Box::pin(bus.publish(&wake, &frame(owner, grant))).await;
    }
}

/// That a lock was taken from this owner by force.
pub(crate) fn forced(owner: OwnerId) -> Vec<u8> {
    format!("f{owner}").into_bytes()
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    Grant(OwnerId, Grant),
    Forced(OwnerId),
}

/// What was sent, unless a later version sent it.
pub(crate) fn read(payload: &[u8]) -> Option<Letter> {
    let text = std::str::from_utf8(payload).ok()?;
    if let Some(owner) = text.strip_prefix('f') {
        return OwnerId::parse(owner).map(Letter::Forced);
    }
    let text = text.strip_prefix('1')?;
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse().ok();
    let grant = Grant {
        fence: number(0..16)?,
        at: number(16..32)?,
    };
    let owner = OwnerId::parse(text.get(32..)?)?;
    Some(Letter::Grant(owner, grant))
}

/// The channel of a process.
pub(crate) fn channel_of(process: u64) -> String {
    format!("locks:{process:016x}")
}

/// Who is told that a lock was taken by force.
type OnForced = dyn Fn(OwnerId) + Send + Sync;

/// What this process is sent.
pub(crate) struct Mail {
    bus: Bus,
    tasks: Tasks,
    letters: Arc<Letters>,
    /// Where all channels of a process lead to one server, one is for all of its locks.
    one_channel: bool,
    own: Arc<Room>,
    rooms: Mutex<HashMap<Arc<str>, Weak<Room>>>,
}

/// Those whom letters are for.
struct Letters {
    waiting: Mutex<HashMap<OwnerId, mpsc::UnboundedSender<Word>>>,
    on_forced: Box<OnForced>,
    now: Box<dyn Fn() -> Moment + Send + Sync>,
}

/// A channel that is listened to while somebody needs it.
struct Room {
    channel: Arc<str>,
    listening: OnceCell<AbortOnDrop>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One who waits for a letter, until this is dropped.
pub(crate) struct Addressee<'a> {
    mail: &'a Mail,
    owner: OwnerId,
    room: Arc<Room>,
}

impl Mail {
    pub(crate) fn new(
        bus: Bus,
        tasks: Tasks,
        one_channel: bool,
        on_forced: impl Fn(OwnerId) + Send + Sync + 'static,
        now: impl Fn() -> Moment + Send + Sync + 'static,
    ) -> Self {
        Self {
            bus,
            tasks,
            one_channel,
            letters: Arc::new(Letters {
                waiting: Mutex::default(),
                on_forced: Box::new(on_forced),
                now: Box::new(now),
            }),
            own: Room::new(channel_of(process()).into()),
            rooms: Mutex::default(),
        }
    }

    /// Says where a grant for this owner is to be sent to, and what is done with it.
    pub(crate) fn expect(
        &self,
        name: &Name,
        owner: OwnerId,
        words: mpsc::UnboundedSender<Word>,
    ) -> Addressee<'_> {
        self.letters.waiting().insert(owner, words);
        Addressee {
            mail: self,
            owner,
            room: self.room(name),
        }
    }

    /// Has all who wait look again.
    pub(crate) fn ask_all(&self) {
        self.letters.ask_all();
    }

    /// Listens to what is sent to this process itself.
    pub(crate) async fn listen(&self) -> Result<(), Error> {
        self.open(&self.own).await
    }

    /// On a cluster a channel must be where the lock is.
    fn room(&self, name: &Name) -> Arc<Room> {
        if self.one_channel {
            return Arc::clone(&self.own);
        }
        let channel: Arc<str> = format!("locks:{{{}}}:{:016x}", name.tag(), process()).into();
        let mut rooms = lock(&self.rooms);
        if let Some(room) = rooms.get(&channel).and_then(Weak::upgrade) {
            return room;
        }
        rooms.retain(|_, room| room.strong_count() > 0);
        let room = Room::new(Arc::clone(&channel));
        rooms.insert(channel, Arc::downgrade(&room));
        room
    }

    async fn open(&self, room: &Room) -> Result<(), Error> {
        let begin = || async {
            let mut subscription = self.bus.subscribe(&room.channel).await?;
            let letters = Arc::clone(&self.letters);
            let listening = self.tasks.follow(async move {
                while let Some(event) = subscription.recv().await {
                    match event {
                        Event::Message(message) => letters.deliver(message.payload()),
                        // Who was sent a grant meanwhile is told of it when asking.
                        _ => letters.ask_all(),
                    }
                }
                letters.ask_all();
            });
            let closed = || Error::new(redis_conn::ErrorKind::Closed, "no runtime to listen on");
            let task = listening.ok_or_else(closed)?;
            Ok(AbortOnDrop(task.abort_handle()))
        };
        room.listening.get_or_try_init(begin).await.map(drop)
    }
}

impl Room {
    fn new(channel: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            channel,
            listening: OnceCell::new(),
        })
    }
}

impl Addressee<'_> {
    /// The channel, as the bus knows it.
    pub(crate) fn channel(&self) -> &Arc<str> {
        &self.room.channel
    }

    /// Listens, if nobody has before.
    pub(crate) async fn listen(&self) -> Result<(), Error> {
        self.mail.open(&self.room).await
    }
}

impl Drop for Addressee<'_> {
    fn drop(&mut self) {
        self.mail.letters.waiting().remove(&self.owner);
    }
}

impl Letters {
    fn waiting(&self) -> MutexGuard<'_, HashMap<OwnerId, mpsc::UnboundedSender<Word>>> {
        lock(&self.waiting)
    }

    fn deliver(&self, payload: &[u8]) {
        match read(payload) {
            Some(Letter::Grant(owner, grant)) => {
                if let Some(words) = self.waiting().get(&owner) {
                    // Who does not listen any more has let go of it.
                    let _ = words.send(Word::Sent(grant, (self.now)()));
                }
            }
            Some(Letter::Forced(owner)) => (self.on_forced)(owner),
            None => {}
        }
    }

    fn ask_all(&self) {
        for words in self.waiting().values() {
            let _ = words.send(Word::Ask);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail")
            .field("waiting", &self.letters.waiting().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read() {
        let (owner, grant) = (
            OwnerId::new(),
            Grant {
                fence: 7,
                at: 1 << 50,
            },
        );
        assert_eq!(
            read(&frame(owner, grant)),
            Some(Letter::Grant(owner, grant))
        );
        assert_eq!(read(&forced(owner)), Some(Letter::Forced(owner)));
        for unknown in ["2", "", "1", "f", "f0", "é"] {
            assert_eq!(read(unknown.as_bytes()), None, "{unknown:?}");
        }
    }
}
