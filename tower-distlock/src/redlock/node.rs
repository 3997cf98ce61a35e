//! One of the servers of a Redlock.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis_conn::{Backend, Error, ErrorKind};
use tokio::time::timeout;

use super::{Gate, fence::Fence};
use crate::{
    LockError, LockOptions,
    claim::Claim,
    name::Name,
    shared::Shared,
    store::{
        Birth,
        notes::{Kind, Notes as _},
    },
    terms::{Mode, Seats},
};

/// How long one call may take that nobody waits for: a release, say.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A server, and those of its locks that this process holds.
pub(super) struct Node {
    pub(super) shared: Arc<Shared>,
    gate: Gate,
    /// Which run of which server answered first, by which it is told apart from the others.
    run: OnceLock<String>,
}

impl Node {
    pub(super) fn new(backend: &Backend, gate: Gate) -> Result<Arc<Self>, Error> {
        let shared = Shared::new(backend, TIMEOUT)?;
        Ok(Arc::new(Self {
            shared,
            gate,
            run: OnceLock::new(),
        }))
    }

    /// Whether both have the same connections.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared.lines, &other.shared.lines)
    }

    /// Which server it is, once it has answered.
    pub(super) fn run(&self) -> Option<&String> {
        self.run.get()
    }

    /// Finds out which server it is, if that is not known.
    pub(super) async fn introduce(&self, ttl: Duration) {
        if self.run.get().is_none() {
            let asking = self.shared.store.birth(Self::patience(ttl));
            // One that does not answer is asked the next time.
            if let Ok(Ok(Some(birth))) = timeout(Self::patience(ttl), asking).await {
                let _ = self.run.set(birth.run);
            }
        }
    }

    /// How long this server is waited for.
    pub(super) fn patience(ttl: Duration) -> Duration {
        (ttl / 20).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Asks for the lock here. What is granted too late is let go of.
    pub(super) async fn vote(
        &self,
        name: &Name,
        options: &LockOptions,
    ) -> Result<Claim, LockError> {
        let once = options.clone().try_once();
        let kind = (Mode::Alone, Seats::Some(1));
        let asking = Claim::acquire(&self.shared, name.clone(), kind, &once);
        self.admitted(options.ttl, asking).await
    }

    /// Has this server remember a fence. Tells what it remembers if that is no less.
    pub(super) async fn remember(
        &self,
        name: &Name,
        fence: &Fence,
        ttl: Duration,
    ) -> Result<Option<u64>, Error> {
        let (store, patience) = (&self.shared.store, Self::patience(ttl));
        let storing = store.advance(name, Kind::Quorum, &fence.note, fence.keep, patience);
        let stored = self.admitted(ttl, storing).await?;
        // Sent twice, it finds itself there.
        Ok(stored
            .filter(|stored| *stored != fence.note)
            .map(|stored| stored.slot))
    }

    /// An answer of this server in its time, if it has a vote.
    async fn admitted<T, E: From<Error>>(
        &self,
        ttl: Duration,
        asking: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let patience = Self::patience(ttl);
        let both = async {
            let answer = asking.await?;
            // Not before: the server may be started anew in between, and that must be seen.
            let birth = self.shared.store.birth(patience).await?;
            self.admits(birth.as_ref(), ttl)?;
            Ok(answer)
        };
        let late = |_| Error::new(ErrorKind::Timeout, "a server had no answer in its time");
        timeout(patience, both).await.map_err(late)?
    }

    /// Whether this server has been up for long enough to know of all leases.
    fn admits(&self, birth: Option<&Birth>, ttl: Duration) -> Result<(), Error> {
        match (birth, self.gate.least(ttl)) {
            (Some(birth), Some(least)) if birth.up < least => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "a server was started {:?} ago: expected {least:?}, after which no lease is left that it may have lost",
                    birth.up
                ),
            )),
            _ => Ok(()),
        }
    }
}
