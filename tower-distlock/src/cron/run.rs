//! One run, and what is written down of it.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep};

use super::{
    CronLock,
    record::{Ended, Recorded},
};
use crate::{
    error::is_outage,
    metrics,
    name::Name,
    shared::PAUSE,
    store::notes::{Kind, Note, Notes as _},
    terms::micros,
    trace::event,
};

/// For how long it is told what came of the last run: some more than a month.
const RECORDED: Duration = Duration::from_secs(35 * 24 * 3_600);

/// One run, from when its lock is held.
pub(super) struct Run<'a> {
    pub(super) cron: &'a CronLock,
    pub(super) name: &'a Name,
    pub(super) slot: u64,
    pub(super) fence: u64,
    pub(super) started: u64,
    pub(super) since: Instant,
}

impl Run<'_> {
    fn note(&self, ended: Option<Ended>) -> Note {
        let instance = self.cron.locks.shared.backend.instance_id().to_owned();
        let took = ended.map(|_| micros(self.since.elapsed()));
        Recorded {
            ended,
            instance,
            fence: self.fence,
            started: self.started,
            took,
        }
        .write(self.slot)
    }

    /// Writes down that it begins. Whether a later one has begun before.
    pub(super) async fn begins(&self) -> bool {
        let (shared, note) = (&self.cron.locks.shared, self.note(None));
        let noted = shared
            .store
            .advance(self.name, Kind::Run, &note, RECORDED, shared.timeout);
        match noted.await {
            Ok(stored) => stored.is_some_and(|stored| stored.slot > self.slot),
            Err(error) => {
                // It is for those who look only; the claim says whose it is.
                event!(
                    warn,
                    "job {}: its run is not on record: {error}",
                    self.cron.name
                );
                false
            }
        }
    }

    /// Writes down how it ended, unless a later one has begun.
    pub(super) async fn ends(&self, ended: Ended) {
        const TRIES: u32 = 3;
        let (shared, note) = (&self.cron.locks.shared, self.note(Some(ended)));
        for left in (0..TRIES).rev() {
            let noted =
                shared
                    .store
                    .conclude(self.name, Kind::Run, &note, RECORDED, shared.timeout);
            match noted.await {
                Ok(_) => return,
                Err(error) if is_outage(&error) && left > 0 => sleep(PAUSE).await,
                Err(error) => {
                    let name = &self.cron.name;
                    event!(warn, "job {name}: its outcome is not on record: {error}");
                    return;
                }
            }
        }
    }

    pub(super) async fn recorded<T, E>(
        &self,
        job: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match AssertUnwindSafe(job).catch_unwind().await {
            Ok(output) => {
                let ended = match &output {
                    Ok(_) => Ended::Done,
                    Err(_) => Ended::Failed,
                };
                self.ends(ended).await;
                output
            }
            Err(panic) => {
                self.ends(Ended::Panicked).await;
                // It goes past whoever counts the others.
                let lag = Duration::from_micros(self.started.saturating_sub(self.slot));
                metrics::cron_ended(&self.cron.name, "failed", self.since.elapsed(), lag);
                resume_unwind(panic)
            }
        }
    }
}
