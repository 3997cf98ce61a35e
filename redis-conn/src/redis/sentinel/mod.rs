//! Following the primary that sentinels name.
//!
//! Each sentinel is followed over a connection of its own: it announces a switch, and it is asked every two seconds in case the
//! announcement was lost. Of what they say the latest failover counts, so that a sentinel that was cut off leads nobody back.
//! Whoever is about to connect asks all of them anew, since there is no hurry then and a wrong server is worse.

mod answer;
mod lookup;
mod roster;
mod watch;

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch as channel, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use self::{answer::Answer, lookup::Lookup, roster::Roster, watch::Watcher};
use super::{Context, dial::Dialer, fault::Failure};
use crate::{config::Endpoint, trace::event};

/// What the sentinels say.
#[derive(Debug)]
pub(super) struct Sentinels {
    /// That of the primary.
    name: String,
    dialer: Dialer,
    roster: Mutex<Roster>,
    /// What the roster has elected.
    announced: channel::Sender<Option<Endpoint>>,
    doubts: channel::Sender<()>,
    /// The last one; the lock is held while one is made.
    lookup: tokio::sync::Mutex<Option<Lookup>>,
    context: Arc<Context>,
}

impl Sentinels {
    /// Begins to follow the primary called `name`.
    pub(super) fn start(
        seeds: &[Endpoint],
        name: &str,
        dialer: Dialer,
        context: &Arc<Context>,
    ) -> Arc<Self> {
        let sentinels = Arc::new(Self {
            name: name.to_owned(),
            dialer,
            roster: Mutex::new(Roster::new(seeds)),
            announced: channel::Sender::new(None),
            doubts: channel::Sender::new(()),
            lookup: tokio::sync::Mutex::default(),
            context: Arc::clone(context),
        });
        if !context.dialer.config().lazy_connect() {
            sentinels.watch_all();
        }
        sentinels
    }

    /// Where the primary is, asked now. Those who ask at the same time share one look-up.
    pub(super) async fn locate(self: &Arc<Self>) -> Result<Endpoint, Failure> {
        let called = Instant::now();
        let mut last = self.lookup.lock().await;
        match &*last {
            Some(lookup) if lookup.began >= called => lookup.found.clone(),
            _ => {
                self.watch_all();
                let lookup = last.insert(Lookup::make(self).await);
                lookup.found.clone()
            }
        }
    }

    /// Ends when the primary is known to be elsewhere than at `endpoint`.
    pub(super) async fn left(&self, endpoint: &Endpoint) {
        let mut announced = self.announced.subscribe();
        let elsewhere = |announced: &Option<Endpoint>| {
            announced
                .as_ref()
                .is_some_and(|announced| announced != endpoint)
        };
        if announced.wait_for(elsewhere).await.is_err() {
            pending().await
        }
    }

    /// Whether the primary is at `endpoint`, as far as is known.
    pub(super) fn is_at(&self, endpoint: &Endpoint) -> bool {
        let announced = self.announced.borrow();
        announced
            .as_ref()
            .is_none_or(|announced| announced == endpoint)
    }

    /// Has the sentinels asked soon.
    pub(super) fn doubt(&self) {
        self.doubts.send_replace(());
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, sentinel: &Endpoint, answer: Answer) {
        let mut roster = self.roster();
        roster.hear(sentinel, answer);
        self.announce(&mut roster);
    }

    fn silence(&self, sentinel: &Endpoint) -> bool {
        let mut roster = self.roster();
        let is_news = roster.silence(sentinel);
        self.announce(&mut roster);
        is_news
    }

    /// Called with the lock held, so that announcements follow each other as the answers did.
    fn announce(&self, roster: &mut Roster) {
        let elected = roster.elect();
        self.announced.send_if_modified(|announced| {
            let moved = elected != announced.as_ref();
            if let Some(elected) = elected.filter(|_| moved) {
                event!(info, "the sentinels name {elected} as the primary");
                *announced = Some(elected.clone());
            }
            moved
        });
    }

    fn learn(self: &Arc<Self>, peers: Vec<Endpoint>) {
        let mut roster = self.roster();
        peers.into_iter().for_each(|peer| roster.learn(peer));
        drop(roster);
        self.watch_all();
    }

    fn watch_all(self: &Arc<Self>) {
        self.roster().watch(|endpoint| {
            let watcher = Watcher {
                sentinels: Arc::clone(self),
                endpoint,
            };
            let closed = self.context.closed.clone();
            let watching = async move {
                closed.run_until_cancelled(watcher.run()).await;
            };
            let Context { tasks, runtime, .. } = &*self.context;
            AbortOnDropHandle::new(tasks.spawn_on(watching, runtime))
        });
    }
}
