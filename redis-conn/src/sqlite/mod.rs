//! The backend for the processes of one host: one SQLite file.
//!
//! A process has four connections to it, each on a thread of its own: one that writes, one that reads, one that polls the bus
//! while somebody listens, and one that keeps house. Next to the file stand SQLite's own `-wal` and `-shm` and our `-lock`, which is
//! empty and must stay: the processes that open the file, and those that write to it, queue up at it.

mod alarm;
mod boot;
mod bus;
mod condition;
mod connection;
mod errors;
mod identity;
mod keeper;
mod layout;
mod open;
mod queue;
mod time;
mod turn;
mod worker;

use std::{
    convert::Infallible,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rusqlite::Connection;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::errors::sql_error;
use self::{
    alarm::Alarm,
    bus::Poller,
    condition::Condition,
    connection::{Role, connect},
    keeper::Keeper,
    open::Opened,
    time::{Now, Time},
    turn::Turnstile,
    worker::{Reader, Worker, Writer},
};
use crate::{Clock, Error, ErrorKind, State, bus::Hub, engine::closed};

/// The deadline of what no caller gives one for: creating a table and listening happen once, at start.
const SETUP: Duration = Duration::from_secs(10);
/// The deadline of a message, which is no part of any decision: it may wait for a busy disk.
const PUBLISH: Duration = Duration::from_secs(5);

/// A table of a sibling crate: created when the crate's handle is made, swept by the housekeeping.
#[derive(Debug)]
pub struct Schema {
    /// The table, such as `tk_limit`.
    pub table: &'static str,
    /// Idempotent DDL that creates it.
    pub create: &'static str,
    /// The column with the time, in microseconds, from which on a row is garbage, and the clock it goes by. It gets an index.
    pub expiry: Expiry,
}

/// See [`Schema::expiry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// By the time since boot; a reboot voids all rows.
    Boot(&'static str),
    /// By the time since the Unix epoch.
    Wall(&'static str),
}

/// The open file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

/// What the handles share. The threads hold none of it: they end when the last handle goes.
#[derive(Debug)]
struct Inner {
    writer: Worker,
    reader: Worker,
    poller: Arc<Alarm>,
    heard: watch::Receiver<u64>,
    keeper: Arc<Alarm>,
    threads: TaskTracker,
    condition: Arc<Condition>,
    closed: CancellationToken,
}

/// One transaction. It derefs to the connection; use its cached statements.
#[derive(Debug)]
pub struct Tx<'a> {
    connection: &'a Connection,
    now: Now,
}

impl<'a> Tx<'a> {
    fn new(connection: &'a Connection, now: Now) -> Self {
        Self { connection, now }
    }

    /// Microseconds since boot, the same for all processes of the host; read once, when the transaction began.
    pub fn boot_micros(&self) -> u64 {
        self.now.boot
    }

    /// Microseconds since the Unix epoch; read once, when the transaction began. If the clock was set back, it stands still until
    /// the clock has caught up.
    pub fn wall_micros(&self) -> u64 {
        self.now.wall
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Self::Target {
        self.connection
    }
}

impl Sqlite {
    pub(crate) async fn open(
        path: &Path,
        clock: Arc<dyn Clock>,
        hub: Arc<Hub>,
        closed: CancellationToken,
    ) -> Result<Self, Error> {
        let path = path.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            let opened = open::open(&path)?;
            Inner::start(opened, clock, hub, closed)
        });
        match opening.await {
            Ok(inner) => Ok(Self {
                inner: Arc::new(inner?),
            }),
            Err(ended) => Err(crate::engine::closed().with_source(ended)),
        }
    }

    /// Creates a crate's table and has it swept.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if a name is not one of `[a-z0-9_]`, and those of [`write`](Self::write).
    pub async fn ensure(&self, schema: &'static Schema) -> Result<(), Error> {
        self.write(SETUP, |tx| layout::register(tx, schema)).await
    }

    /// Runs `job` on the writer, inside a transaction that has been committed when this returns `Ok`; an `Err` or a panic rolls the
    /// job back, and no other. Jobs that wait at the same time share a transaction. What is committed survives the death of the
    /// process; a power failure may take the last moments of the whole host, in order.
    ///
    /// # Errors
    ///
    /// Those of `job`; [`Saturated`](ErrorKind::Saturated) if too many jobs wait; [`Timeout`](ErrorKind::Timeout) if it had not begun
    /// at its deadline, and then never will; [`Ambiguous`](ErrorKind::Ambiguous) if it had; [`Unavailable`](ErrorKind::Unavailable)
    /// if the file cannot be written; [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// A job whose call is dropped before it began never runs; one that began is committed or not.
    pub async fn write<T: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.inner.open()?;
        self.inner.writer.call(deadline, job).await
    }

    /// Runs `job` on a reader, inside a read transaction; it never waits for the writer.
    ///
    /// # Errors
    ///
    /// Those of `job`; [`Saturated`](ErrorKind::Saturated), [`Timeout`](ErrorKind::Timeout), [`Unavailable`](ErrorKind::Unavailable),
    /// [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it changes nothing.
    pub async fn read<T: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.inner.open()?;
        self.inner.reader.call(deadline, job).await
    }

    pub(crate) fn states(&self) -> watch::Receiver<State> {
        self.inner.condition.states()
    }

    /// Why nothing can be done with the file, or why the last write failed.
    pub(crate) fn last_error(&self) -> Option<Error> {
        self.inner.condition.last_error()
    }

    pub(crate) async fn publish(&self, channel: &str, frame: Arc<[u8]>) -> Result<(), Error> {
        let channel = channel.to_owned();
        self.write(PUBLISH, move |tx| bus::append(tx, &channel, &frame))
            .await?;
        // Whoever subscribes in this process after this call must not get what was published before.
        let heard = self.inner.heard(self.inner.poller.ring());
        let _ = tokio::time::timeout(bus::POLL, heard).await;
        Ok(())
    }

    /// Wakes the poller; returns when everything published from now on will be seen.
    pub(crate) async fn listen(&self) -> Result<(), Error> {
        self.inner.open()?;
        let ring = self.inner.poller.ring();
        match tokio::time::timeout(SETUP, self.inner.heard(ring)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(closed()),
            Err(_) => {
                let text = format!("the log of the bus could not be read within {SETUP:?}");
                Err(Error::new(ErrorKind::Timeout, text))
            }
        }
    }

    /// Waits until all threads have ended, at most until `end`; then what still waits is dropped. The token given to `open` is
    /// cancelled already.
    pub(crate) async fn closed(&self, end: Instant) {
        self.inner.stop();
        let ended = self.inner.threads.wait();
        if tokio::time::timeout_at(end, ended).await.is_err() {
            self.inner.writer.queue.abandon();
            self.inner.reader.queue.abandon();
        }
        self.inner.condition.close();
    }
}

impl Inner {
    fn start(
        opened: Opened,
        clock: Arc<dyn Clock>,
        hub: Arc<Hub>,
        closed: CancellationToken,
    ) -> Result<Self, Error> {
        let Opened {
            path,
            identity,
            writer,
            sidecar,
        } = opened;
        let time = Arc::new(Time::new(clock));
        let reader = connect(&path, Role::Reader).map_err(sql_error)?;
        let poller = connect(&path, Role::Reader).map_err(sql_error)?;
        let keeper = connect(&path, Role::Keeper).map_err(sql_error)?;
        let (heard, heard_by) = watch::channel(0);
        // Dropping it, also half started, ends the threads.
        let inner = Self {
            writer: Worker::writer(),
            reader: Worker::reader(),
            poller: Arc::default(),
            heard: heard_by,
            keeper: Arc::default(),
            threads: TaskTracker::new(),
            condition: Arc::default(),
            closed: closed.clone(),
        };
        // Each thread but the writer holds a clone until its connection is closed.
        let (open, others) = mpsc::channel::<Infallible>();
        let writer = Writer {
            connection: writer,
            queue: Arc::clone(&inner.writer.queue),
            time: Arc::clone(&time),
            turnstile: Turnstile(sidecar),
            condition: Arc::clone(&inner.condition),
            others,
        };
        inner.spawn("sqlite-writer", || writer.run())?;
        let reader = Reader {
            connection: reader,
            queue: Arc::clone(&inner.reader.queue),
            time: Arc::clone(&time),
        };
        inner.spawn("sqlite-reader", holding(&open, || reader.run()))?;
        let poller = Poller {
            connection: poller,
            hub,
            time: Arc::clone(&time),
            alarm: Arc::clone(&inner.poller),
            closed: closed.clone(),
            condition: Arc::clone(&inner.condition),
            heard,
        };
        inner.spawn("sqlite-bus", holding(&open, || poller.run()))?;
        let keeper = Keeper {
            connection: keeper,
            writer: Arc::clone(&inner.writer.queue),
            time,
            alarm: Arc::clone(&inner.keeper),
            closed,
            wal: wal(&path),
            file: identity,
            condition: Arc::clone(&inner.condition),
            id: crate::random::id().cast_signed(),
        };
        inner.spawn("sqlite-keeper", holding(&open, || keeper.run()))?;
        Ok(inner)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let token = self.threads.token();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(|| {
            let _token = token;
            run();
        });
        // It is not joined but counted: waiting for a thread would block the runtime.
        thread.map(drop).map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("no thread {name}")).with_source(error)
        })
    }

    fn open(&self) -> Result<(), Error> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        self.condition.lost().map_or(Ok(()), Err)
    }

    /// Waits until the poller has answered a ring; `false` if it has ended.
    async fn heard(&self, ring: u64) -> bool {
        let mut heard = self.heard.clone();
        heard.wait_for(|heard| *heard >= ring).await.is_ok()
    }

    fn stop(&self) {
        self.threads.close();
        self.keeper.stop();
        self.poller.stop();
        self.writer.queue.close();
        self.reader.queue.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a thread and then, when its connection is closed, lets go.
fn holding(
    open: &mpsc::Sender<Infallible>,
    run: impl FnOnce() + Send + 'static,
) -> impl FnOnce() + Send + 'static {
    let open = open.clone();
    move || {
        let _open = open;
        run();
    }
}

fn wal(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
