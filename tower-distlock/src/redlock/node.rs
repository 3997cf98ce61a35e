//! One of the servers of a Redlock.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis_conn::{Backend, Error, ErrorKind};
use tokio::time::timeout;

use super::Gate;
use crate::{
    LockError, LockOptions,
    claim::Claim,
    name::Name,
    shared::Shared,
    store::Birth,
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
        let patience = Self::patience(options.ttl);
        let asking = async {
            let (shared, options) = (&self.shared, options.clone().try_once());
            let kind = (Mode::Alone, Seats::Some(1));
            // Both at once, on one connection: they tell of the same run of the server.
            let (birth, claim) = tokio::join!(
                shared.store.birth(patience),
                Claim::acquire(shared, name.clone(), kind, &options),
            );
            let (birth, claim) = (birth?, claim?);
            self.admits(birth.as_ref(), options.ttl)?;
            Ok(claim)
        };
        let late = |_| Error::new(ErrorKind::Timeout, "a server had no answer in its time");
        timeout(patience, asking).await.map_err(late)?
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
