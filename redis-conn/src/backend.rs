//! The handle that everything is built on.

use std::{any::Any, fmt, path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, Check, Clock, Error, ErrorKind, FromEnvError, Health, Layout, Part, State, StateWatch,
    Status, SystemClock,
    bus::Hub,
    config::{self, Selected},
    lifecycle::Parts,
    namespace::Namespace,
    registry::Registry,
    trace::event,
};

/// One backend for everything that the processes of a service share: in process, one SQLite file, or Redis.
///
/// Clones are cheap and share everything. The handles of the sibling crates are made from it, and none of them knows which
/// backend it is: going from one process to a fleet is a matter of configuration.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redis_conn::Error> {
/// use redis_conn::{Backend, Event};
///
/// let backend = Backend::memory();
/// let bus = backend.bus();
/// let mut news = bus.subscribe("news").await?;
/// bus.publish("news", b"hello").await?;
/// let Some(Event::Message(message)) = news.recv().await else { panic!("no message") };
/// assert_eq!(message.payload(), b"hello");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Backend {
    core: Arc<Core>,
    namespace: Namespace,
}

/// What all clones of a [`Backend`] share.
pub(crate) struct Core {
    engine: Engine,
    hub: Arc<Hub>,
    registry: Registry,
    parts: Parts,
    instance: Arc<str>,
    clock: Arc<dyn Clock>,
    /// Cancelled by `close` and when the last handle goes; every background task ends with it.
    closed: CancellationToken,
}

#[derive(Debug)]
enum Engine {
    Memory(watch::Sender<State>),
    #[cfg(feature = "sqlite")]
    Sqlite(crate::sqlite::Sqlite),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Redis),
}

/// Options that do not depend on the kind of backend. Made by [`Backend::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct BackendBuilder {
    namespace: Result<Namespace, Error>,
    instance: Option<String>,
    clock: Arc<dyn Clock>,
    #[cfg(feature = "redis")]
    rewrite: Option<fn(&str) -> String>,
}

impl Default for BackendBuilder {
    fn default() -> Self {
        Self {
            namespace: Ok(Namespace::default()),
            instance: None,
            clock: Arc::new(SystemClock),
            #[cfg(feature = "redis")]
            rewrite: None,
        }
    }
}

impl BackendBuilder {
    /// The prefix of every key, channel and row: 1 to 32 characters of `[a-z0-9-]`; `tk` if not set.
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespace = Namespace::new(name);
        self
    }

    /// The name of this instance in connection names, lock owners and health answers; `host:pid` if not set. It need not be unique.
    pub fn instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// The clock of the embedded backends, for tests.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Rewrites every script before it is sent, for tests that hold the server's time.
    #[doc(hidden)]
    #[cfg(feature = "redis")]
    pub fn rewrite_scripts(mut self, rewrite: fn(&str) -> String) -> Self {
        self.rewrite = Some(rewrite);
        self
    }

    /// Everything in this process.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the namespace is not valid.
    pub fn memory(self) -> Result<Backend, Error> {
        let engine = Engine::Memory(watch::Sender::new(State::Connected));
        self.finish(engine, Arc::default(), CancellationToken::new())
    }

    /// One SQLite file, shared by the processes of one host. It is created if absent.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the namespace is not valid, the path cannot be used or the feature `sqlite` is off;
    /// [`Corrupt`](ErrorKind::Corrupt) if the file is no database of this crate; [`Timeout`](ErrorKind::Timeout) if other processes
    /// kept it locked.
    pub async fn sqlite(self, path: impl AsRef<Path>) -> Result<Backend, Error> {
        #[cfg(feature = "sqlite")]
        {
            let (hub, closed) = (Arc::default(), CancellationToken::new());
            let clock = Arc::clone(&self.clock);
            let sqlite =
                crate::sqlite::Sqlite::open(path.as_ref(), clock, Arc::clone(&hub), closed.clone())
                    .await?;
            self.finish(Engine::Sqlite(sqlite), hub, closed)
        }
        #[cfg(not(feature = "sqlite"))]
        {
            let _ = path;
            Err(feature_off("sqlite"))
        }
    }

    /// A Redis or Valkey server. This connects in the background and succeeds also while the server is away.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the namespace is not valid, if this is called outside of a Tokio runtime, or if the
    /// feature `redis` is off.
    pub fn redis(self, config: crate::Config) -> Result<Backend, Error> {
        #[cfg(feature = "redis")]
        {
            let (hub, closed) = (Arc::default(), CancellationToken::new());
            let instance = self.instance.clone().unwrap_or_else(default_instance);
            let options = crate::redis::Options {
                client_name: instance,
                rewrite: self.rewrite,
            };
            let redis =
                crate::redis::Redis::start(config, options, Arc::clone(&hub), closed.clone())?;
            self.finish(Engine::Redis(redis), hub, closed)
        }
        #[cfg(not(feature = "redis"))]
        {
            let _ = config;
            Err(feature_off("redis"))
        }
    }

    fn finish(
        self,
        engine: Engine,
        hub: Arc<Hub>,
        closed: CancellationToken,
    ) -> Result<Backend, Error> {
        let namespace = self.namespace?;
        let instance = self.instance.unwrap_or_else(default_instance).into();
        let core = Core {
            engine,
            hub,
            registry: Registry::default(),
            parts: Parts::default(),
            instance,
            clock: self.clock,
            closed,
        };
        Ok(Backend {
            core: Arc::new(core),
            namespace,
        })
    }
}

#[cfg(not(all(feature = "redis", feature = "sqlite")))]
fn feature_off(name: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("the {name} backend was asked for, but the feature `{name}` of redis-conn is off"),
    )
}

fn default_instance() -> String {
    let host = rustix::system::uname();
    format!(
        "{}:{}",
        host.nodename().to_string_lossy(),
        std::process::id()
    )
}

impl Backend {
    /// Everything in this process: for one process, development and tests.
    #[must_use]
    pub fn memory() -> Self {
        let core = Core {
            engine: Engine::Memory(watch::Sender::new(State::Connected)),
            hub: Arc::default(),
            registry: Registry::default(),
            parts: Parts::default(),
            instance: default_instance().into(),
            clock: Arc::new(SystemClock),
            closed: CancellationToken::new(),
        };
        Self {
            core: Arc::new(core),
            namespace: Namespace::default(),
        }
    }

    /// One SQLite file, shared by the processes of one host; see [`BackendBuilder::sqlite`].
    ///
    /// # Errors
    ///
    /// Those of [`BackendBuilder::sqlite`].
    pub async fn sqlite(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder().sqlite(path).await
    }

    /// A Redis or Valkey server; see [`BackendBuilder::redis`].
    ///
    /// # Errors
    ///
    /// Those of [`BackendBuilder::redis`].
    pub fn redis(config: crate::Config) -> Result<Self, Error> {
        Self::builder().redis(config)
    }

    /// Starts with options that do not depend on the kind of backend.
    pub fn builder() -> BackendBuilder {
        BackendBuilder::default()
    }

    /// The backend that the environment names; nothing set means in process. The table of variables is in the crate docs.
    ///
    /// # Errors
    ///
    /// [`FromEnvError::Config`] lists everything that is wrong, [`FromEnvError::Unreachable`] says that `REDIS_REQUIRED` is set
    /// and the server did not answer within `REDIS_CONNECT_TIMEOUT`.
    pub async fn from_env() -> Result<Self, FromEnvError> {
        let settings = config::Settings::from_vars(std::env::vars_os())?;
        for note in &settings.notes {
            event!(info, "{note}");
        }
        for warning in &settings.warnings {
            event!(warn, "{warning}");
        }
        let mut builder = Self::builder();
        if let Some(namespace) = &settings.namespace {
            builder = builder.namespace(namespace);
        }
        if let Some(instance) = settings.instance_id {
            builder = builder.instance_id(instance);
        }
        match settings.selected {
            Selected::Memory => {
                event!(
                    info,
                    "no shared backend is configured: limits, sessions, locks and caches live in this process only"
                );
                Ok(builder.memory()?)
            }
            Selected::Sqlite(path) => {
                let opened = builder.sqlite(path).await;
                opened.map_err(|error| FromEnvError::naming(config::SQLITE_PATH, error))
            }
            Selected::Redis(config) => {
                let (required, budget) = (config.is_required(), config.connect_timeout());
                let backend = builder.redis(*config)?;
                if required {
                    backend
                        .ready(budget)
                        .await
                        .map_err(FromEnvError::Unreachable)?;
                }
                Ok(backend)
            }
        }
    }

    /// The same backend under another namespace: handles of different namespaces never meet.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the name is not 1 to 32 characters of `[a-z0-9-]`.
    pub fn namespace(&self, name: &str) -> Result<Self, Error> {
        Ok(Self {
            core: Arc::clone(&self.core),
            namespace: Namespace::new(name)?,
        })
    }

    /// The name of this instance.
    pub fn instance_id(&self) -> &str {
        &self.core.instance
    }

    /// Which backend this is: `memory`, `sqlite` or `redis-single`.
    pub fn kind(&self) -> &'static str {
        match &self.core.engine {
            Engine::Memory(_) => "memory",
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => "sqlite",
            #[cfg(feature = "redis")]
            Engine::Redis(_) => "redis-single",
        }
    }

    /// A handle to publish and subscribe in this namespace. Each call makes another origin.
    pub fn bus(&self) -> Bus {
        Bus::new(Arc::clone(&self.core), self.namespace.clone())
    }

    /// The connection state now.
    pub fn state(&self) -> State {
        *self.core.states().borrow()
    }

    /// Follows the connection state.
    pub fn watch_state(&self) -> StateWatch {
        StateWatch::new(self.core.states())
    }

    /// Waits until the backend can serve.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) with the last cause if it could not within `deadline`; [`Closed`](ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self, deadline: Duration) -> Result<(), Error> {
        let mut states = self.watch_state();
        tokio::select! {
            () = self.core.closed.cancelled() => Err(closed()),
            connected = tokio::time::timeout(deadline, states.wait_for(State::Connected)) => match connected {
                Ok(true) => Ok(()),
                Ok(false) => Err(closed()),
                Err(_) => Err(self.core.unavailable(deadline)),
            },
        }
    }

    /// How the backend and all handles on it are. It reads what is known and sends no command.
    pub fn health(&self) -> Health {
        let mut checks = vec![self.core.check()];
        checks.extend(self.core.parts.checks());
        Health::of(checks)
    }

    /// Adds a part to [`health`](Self::health) and [`close`](Self::close). It is held weakly.
    pub fn register(&self, part: &Arc<dyn Part>) {
        self.core.parts.add(part);
    }

    /// Drains all parts in the order of their phases, then ends the connections. Every later call returns
    /// [`Closed`](ErrorKind::Closed), on all clones.
    ///
    /// # Errors
    ///
    /// [`Timeout`](ErrorKind::Timeout) names the parts that did not end in their share of `deadline`; the rest was closed all the same.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves the backend open or partly drained; call it again.
    pub async fn close(&self, deadline: Duration) -> Result<(), Error> {
        let end = Instant::now() + deadline;
        let drained = self.core.parts.drain(end).await;
        self.core.close_engine(end).await;
        drained
    }
}

/// For the stores of the sibling crates.
impl Backend {
    /// The backend itself, for a store that speaks to it.
    #[doc(hidden)]
    pub fn engine(&self) -> crate::raw::Engine<'_> {
        match &self.core.engine {
            Engine::Memory(_) => crate::raw::Engine::Memory,
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => crate::raw::Engine::Sqlite(sqlite),
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => crate::raw::Engine::Redis(redis),
        }
    }

    /// A key or row name of this namespace. The tag chooses the cluster slot; user-supplied parts must be hashed.
    #[doc(hidden)]
    pub fn key(&self, layout: Layout, tag: &str, rest: &str) -> String {
        self.namespace.key(layout, tag, rest)
    }

    /// State that all handles of this backend and namespace share in this process.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the place holds a value of another type.
    #[doc(hidden)]
    pub fn shared<T: Any + Send + Sync>(
        &self,
        letter: char,
        name: &str,
        make: impl FnOnce() -> T,
    ) -> Result<Arc<T>, Error> {
        self.core
            .registry
            .get_or_insert(self.namespace.as_str(), letter, name, make)
    }

    /// The clock of the embedded backends.
    #[doc(hidden)]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.core.clock
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("kind", &self.kind())
            .field("namespace", &self.namespace)
            .field("state", &self.state())
            .field("parts", &self.core.parts)
            .finish_non_exhaustive()
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "")
}

impl Core {
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    fn states(&self) -> watch::Receiver<State> {
        match &self.engine {
            Engine::Memory(state) => state.subscribe(),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => sqlite.states(),
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.states(),
        }
    }

    fn check(&self) -> Check {
        let state = *self.states().borrow();
        let status = if state == State::Connected {
            Status::Healthy
        } else {
            Status::Unhealthy
        };
        let (name, served_by) = match &self.engine {
            Engine::Memory(_) => ("memory", "in this process"),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => ("sqlite", "one file on this host"),
            #[cfg(feature = "redis")]
            Engine::Redis(_) => ("redis", "a single server"),
        };
        Check::new(name, status, format!("{served_by}: {state}"))
    }

    fn unavailable(&self, deadline: Duration) -> Error {
        let error = Error::new(
            ErrorKind::Unavailable,
            format!("not connected within {deadline:?}"),
        );
        match &self.engine {
            Engine::Memory(_) => error,
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => error,
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => match redis.last_error() {
                Some(cause) => error.with_source(cause),
                None => error,
            },
        }
    }

    pub(crate) async fn publish(&self, channel: &str, frame: Arc<[u8]>) -> Result<(), Error> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        match &self.engine {
            Engine::Memory(_) => {
                self.hub.deliver(channel, &frame);
                Ok(())
            }
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => sqlite.publish(channel, frame).await,
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.publish(channel, &frame).await,
        }
    }

    pub(crate) async fn listen(&self, channel: &Arc<str>) -> Result<(), Error> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        match &self.engine {
            Engine::Memory(_) => {
                let _ = channel;
                Ok(())
            }
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => sqlite.listen().await,
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.listen(channel).await,
        }
    }

    /// Called by `Drop`: it only enqueues.
    pub(crate) fn unlisten(&self, channel: &Arc<str>) {
        match &self.engine {
            Engine::Memory(_) => {
                let _ = channel;
            }
            // The poller reads all channels; the hub drops what nobody wants.
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => {}
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.unlisten(channel),
        }
    }

    async fn close_engine(&self, end: Instant) {
        let _ = end;
        self.closed.cancel();
        match &self.engine {
            Engine::Memory(state) => {
                state.send_replace(State::Disconnected);
            }
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => sqlite.closed(end).await,
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.closed(end).await,
        }
        self.hub.close();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}
