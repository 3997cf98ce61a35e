//! The threads that run the jobs.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, mpsc},
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    Tx,
    condition::Condition,
    errors::{is_busy, sql_error},
    queue::{Call, Claim, Queue, Task},
    time::Time,
    turn::Turnstile,
};
use crate::{Error, ErrorKind, engine::closed};

/// How many jobs share one transaction at most, so that the writers of other processes get their turn.
const BATCH: usize = 256;

type Batch = VecDeque<Box<dyn Task>>;

/// The callers' side of one worker thread.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) queue: Arc<Queue>,
    /// What became of a job that began but did not end in time.
    unknown: ErrorKind,
}

impl Worker {
    pub(super) fn writer() -> Self {
        Self::new(ErrorKind::Ambiguous)
    }

    pub(super) fn reader() -> Self {
        Self::new(ErrorKind::Timeout)
    }

    fn new(unknown: ErrorKind) -> Self {
        let queue = Arc::default();
        Self { queue, unknown }
    }

    pub(super) async fn call<T: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (ticket, answer) = submit(&self.queue, job)?;
        let unknown = |text: String| Error::new(self.unknown.clone(), text);
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if ticket.0.cancel() => Err(closed()),
            Ok(Err(_)) => Err(unknown(
                "the backend was closed while the job ran".to_owned(),
            )),
            Err(_) if ticket.0.cancel() => {
                let text = format!("the job had not begun within {deadline:?}");
                Err(Error::new(ErrorKind::Timeout, text))
            }
            Err(_) => Err(unknown(format!(
                "the job had begun but not ended within {deadline:?}"
            ))),
        }
    }
}

/// Cancels the job when its caller goes.
#[derive(Debug)]
struct Ticket(Arc<Claim>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

type Submitted<T> = (Ticket, oneshot::Receiver<Result<T, Error>>);

fn submit<T: Send + 'static>(
    queue: &Queue,
    job: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
) -> Result<Submitted<T>, Error> {
    let (reply, answer) = oneshot::channel();
    let claim = Arc::new(Claim::default());
    let ticket = Ticket(Arc::clone(&claim));
    let (job, result) = (Some(job), None);
    queue.push(Box::new(Call {
        claim,
        job,
        result,
        reply,
    }))?;
    Ok((ticket, answer))
}

/// Runs a job from a thread that may block.
pub(super) fn call_blocking<T: Send + 'static>(
    queue: &Queue,
    job: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (_ticket, answer) = submit(queue, job)?;
    answer.blocking_recv().unwrap_or_else(|_| Err(closed()))
}

/// Refuses all jobs once the thread has ended, even by a panic.
struct Served<'a>(&'a Queue);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// The thread that writes: what waits goes into one transaction, which is what makes many small jobs cheap.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) queue: Arc<Queue>,
    pub(super) time: Arc<Time>,
    pub(super) turnstile: Turnstile,
    pub(super) condition: Arc<Condition>,
    /// Fails once all other connections of this process are closed.
    pub(super) others: mpsc::Receiver<Infallible>,
}

impl Writer {
    pub(super) fn run(self) {
        let served = Served(&self.queue);
        while let Some(mut batch) = self.queue.take(BATCH) {
            while !batch.is_empty() {
                self.transaction(&mut batch);
            }
        }
        drop(served);
        // Whoever is the last to close removes the -wal and -shm files, and only a connection that may write can.
        let _ = self.others.recv();
    }

    fn transaction(&self, batch: &mut Batch) {
        let mut begun = Vec::with_capacity(batch.len());
        let mut outcome = Ok(());
        let changes = self.connection.total_changes();
        match self.begin(batch) {
            Ok(Some(tx)) => {
                outcome = run_all(&tx, batch, &mut begun).and_then(|()| self.end("COMMIT"))
            }
            Ok(None) => batch.clear(),
            Err(error) => {
                outcome = Err(error);
                begun.extend(batch.drain(..).filter(|task| task.claim()));
            }
        }
        if !self.connection.is_autocommit() {
            // If even this fails, the next transaction cannot begin and says so.
            let _ = self.end("ROLLBACK");
        }
        self.note(&outcome, &begun, changes);
        for task in begun {
            task.answer(outcome.clone());
        }
    }

    /// Remembers for the health check whether the file could be written. A job's own errors say nothing about that, but for those of
    /// a full or broken disk.
    fn note(&self, outcome: &Result<(), Error>, begun: &[Box<dyn Task>], changes: u64) {
        let mut failures = begun.iter().filter_map(|task| task.failure());
        let failure = failures
            .find(|error| *error.kind() == ErrorKind::Unavailable)
            .or(outcome.as_ref().err());
        match failure {
            Some(error) => self.condition.failed(error),
            // Nothing is learned from a transaction that changed nothing.
            None if self.connection.total_changes() == changes => {}
            // The changes of a job that failed never reached the file.
            None if begun.iter().all(|task| task.failure().is_some()) => {}
            None => self.condition.wrote(),
        }
    }

    /// Takes the write lock; `None` if nobody waits for it any more.
    fn begin(&self, batch: &Batch) -> Result<Option<Tx<'_>>, Error> {
        let is_wanted = || batch.iter().any(|task| task.is_wanted()) && !self.queue.is_abandoned();
        let _turn = self.turnstile.wait();
        while is_wanted() {
            match execute(&self.connection, "BEGIN IMMEDIATE") {
                Ok(()) => {
                    let now = self.time.now(&self.connection).map_err(sql_error)?;
                    return Ok(Some(Tx::new(&self.connection, now)));
                }
                // Each attempt has slept already, in the busy handler.
                Err(error) if is_busy(&error) => {}
                Err(error) => return Err(sql_error(error)),
            }
        }
        Ok(None)
    }

    fn end(&self, sql: &str) -> Result<(), Error> {
        execute(&self.connection, sql).map_err(sql_error)
    }
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// Runs the jobs whose callers still wait, each in a savepoint of its own: one that fails leaves its neighbours alone. An error means
/// that the whole transaction is lost; the jobs that had not begun stay in the batch.
fn run_all(tx: &Tx<'_>, batch: &mut Batch, begun: &mut Vec<Box<dyn Task>>) -> Result<(), Error> {
    while let Some(mut task) = batch.pop_front() {
        if !task.claim() {
            continue;
        }
        let saved = execute(tx, "SAVEPOINT job");
        let keep = saved.is_ok() && task.run(tx);
        begun.push(task);
        saved
            .and_then(|()| {
                if keep {
                    Ok(())
                } else {
                    execute(tx, "ROLLBACK TO job")
                }
            })
            .and_then(|()| execute(tx, "RELEASE job"))
            .map_err(sql_error)?;
    }
    Ok(())
}

/// The thread that reads: WAL lets it go on while the writer writes.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) connection: Connection,
    pub(super) queue: Arc<Queue>,
    pub(super) time: Arc<Time>,
}

impl Reader {
    pub(super) fn run(self) {
        let _served = Served(&self.queue);
        while let Some(batch) = self.queue.take(1) {
            batch
                .into_iter()
                .filter(|task| task.claim())
                .for_each(|task| self.transaction(task));
        }
    }

    fn transaction(&self, mut task: Box<dyn Task>) {
        let outcome = snapshot(&self.connection, &self.time, |tx| {
            task.run(tx);
            Ok(())
        });
        task.answer(outcome);
    }
}

/// Runs `look` in a read transaction.
pub(super) fn snapshot<T>(
    connection: &Connection,
    time: &Time,
    look: impl FnOnce(&Tx<'_>) -> rusqlite::Result<T>,
) -> Result<T, Error> {
    let run = || {
        execute(connection, "BEGIN")?;
        look(&Tx::new(connection, time.now(connection)?))
    };
    let result = run();
    // There is nothing to commit, and an error has ended the transaction or will be met again at the next BEGIN.
    if !connection.is_autocommit() {
        let _ = execute(connection, "ROLLBACK");
    }
    result.map_err(sql_error)
}
