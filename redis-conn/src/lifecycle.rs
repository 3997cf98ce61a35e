//! What the handles of a backend have in common: a health check, and an orderly end.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use crate::{Check, Error, ErrorKind, engine::closed};

/// What [`Part::drain`] and [`Part::ready`] return.
pub type Drain = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// When a part is drained: phases end in this order, the parts of one phase at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Starts no new scheduled run.
    Cron,
    /// Gives up leadership.
    Election,
    /// Ends detached leaders of single flights.
    Leaders,
    /// Writes what is buffered.
    WriteBehind,
    /// Commits sessions.
    Sessions,
    /// Releases locks.
    Locks,
    /// Everything that needs nothing of the others.
    Last,
}

/// Something that lives on a backend and takes part in its health and its end. Register it with
/// [`Backend::register`](crate::Backend::register).
pub trait Part: Send + Sync + 'static {
    /// A name fixed in code, shown in health answers.
    fn name(&self) -> &str;

    /// When it is drained.
    fn phase(&self) -> Phase {
        Phase::Last
    }

    /// Waits until it can serve. [`Backend::ready`](crate::Backend::ready) bounds it by its own deadline.
    fn ready(&self) -> Drain {
        Box::pin(async { Ok(()) })
    }

    /// How it is now. Called by health requests: it must neither wait nor send a command.
    fn check(&self) -> Check;

    /// Finishes what it has begun, within `deadline`.
    fn drain(&self, deadline: Duration) -> Drain {
        let _ = deadline;
        Box::pin(async { Ok(()) })
    }
}

/// All parts of one backend. They are held weakly: a dropped handle is no part any more.
#[derive(Default)]
pub(crate) struct Parts {
    parts: Mutex<Vec<Weak<dyn Part>>>,
}

impl Parts {
    pub(crate) fn add(&self, part: &Arc<dyn Part>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|other| other.strong_count() > 0);
        parts.push(Arc::downgrade(part));
    }

    fn live(&self) -> Vec<Arc<dyn Part>> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn checks(&self) -> Vec<Check> {
        self.live().iter().map(|part| part.check()).collect()
    }

    /// Waits until all parts can serve.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let mut waiting: JoinSet<_> = self.live().iter().map(|part| part.ready()).collect();
        while let Some(ready) = waiting.join_next().await {
            ready.unwrap_or_else(|_| Err(closed()))?;
        }
        Ok(())
    }

    /// Drains phase after phase. Each phase gets an equal share of what time is left, so that a part that hangs costs the
    /// phases behind it no more than its own share.
    pub(crate) async fn drain(&self, deadline: Instant) -> Result<(), Error> {
        let mut parts = self.live();
        parts.sort_by_key(|part| part.phase());
        let mut phases: Vec<&[Arc<dyn Part>]> =
            parts.chunk_by(|a, b| a.phase() == b.phase()).collect();
        let mut failed = Vec::new();
        phases.reverse();
        while let Some(phase) = phases.pop() {
            // One share is kept for the end of the connections themselves.
            let shares = u32::try_from(phases.len())
                .unwrap_or(u32::MAX)
                .saturating_add(2);
            let share = deadline.saturating_duration_since(Instant::now()) / shares;
            drain_phase(phase, share, &mut failed).await;
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Timeout,
            format!("not drained in time: {}", failed.join(", ")),
        ))
    }
}

async fn drain_phase(phase: &[Arc<dyn Part>], share: Duration, failed: &mut Vec<String>) {
    let mut drains = JoinSet::new();
    for part in phase {
        let (name, drain) = (part.name().to_owned(), part.drain(share));
        drains.spawn(async move {
            match tokio::time::timeout(share, drain).await {
                Ok(Ok(())) => None,
                Ok(Err(_)) | Err(_) => Some(name),
            }
        });
    }
    failed.extend(drains.join_all().await.into_iter().flatten());
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .live()
            .iter()
            .map(|part| part.name().to_owned())
            .collect();
        f.debug_list().entries(names).finish()
    }
}
