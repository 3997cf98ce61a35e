//! The handle that everything is built on.

use std::{any::Any, fmt, path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{
    BackendBuilder, Bus, Clock, Error, ErrorKind, FromEnvError, Layout, Part, State, StateWatch,
    SystemClock,
    builder::default_instance,
    config::{self, Selected},
    deadline,
    engine::{Core, Engine, closed},
    namespace::Namespace,
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
    pub(crate) core: Arc<Core>,
    pub(crate) namespace: Namespace,
}

impl Backend {
    /// Everything in this process: for one process, development and tests.
    #[must_use]
    pub fn memory() -> Self {
        let core = Core::new(
            Engine::Memory(watch::Sender::new(State::Connected)),
            Arc::default(),
            CancellationToken::new(),
            default_instance(),
            Arc::new(SystemClock),
        );
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
        Self::from_settings(config::Settings::from_vars(std::env::vars_os())?).await
    }

    /// The backend that the environment names by variables that begin with a prefix, for a process with more than one: with
    /// `CACHE_` these are `CACHE_REDIS_URL`, `CACHE_SQLITE_PATH`, `CACHE_NAMESPACE` and so on. Those without the prefix do not count.
    ///
    /// # Errors
    ///
    /// Those of [`from_env`](Self::from_env); [`FromEnvError::Config`] also if the prefix is not 1 to 32 characters of `[A-Z0-9_]` that end
    /// with `_`.
    pub async fn from_env_prefixed(prefix: &str) -> Result<Self, FromEnvError> {
        let vars = std::env::vars_os();
        Self::from_settings(config::Settings::from_vars_prefixed(prefix, vars)?).await
    }

    async fn from_settings(settings: config::Settings) -> Result<Self, FromEnvError> {
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
        if let Some(instance) = &settings.instance_id {
            builder = builder.instance_id(instance);
        }
        let path_variable = settings.name(config::SQLITE_PATH);
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
                opened.map_err(|error| FromEnvError::naming(&path_variable, error))
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
    /// [`Config`](crate::ErrorKind::Config) if the name is not 1 to 32 characters of `[a-z0-9-]`.
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

    /// Which backend this is: `memory`, `sqlite`, `redis-single`, `redis-cluster` or `redis-sentinel`.
    pub fn kind(&self) -> &'static str {
        match &self.core.engine {
            Engine::Memory(_) => "memory",
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => "sqlite",
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.kind(),
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

    /// Waits until the backend and every part on it can serve.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) with the last cause if it could not within `deadline`; [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self, deadline: Duration) -> Result<(), Error> {
        let end = deadline::after(deadline);
        #[cfg(feature = "redis")]
        if let Engine::Redis(redis) = &self.core.engine {
            redis.warm_up();
        }
        let mut states = self.core.states();
        let settled =
            states.wait_for(|state| matches!(state, State::Connected | State::Disconnected));
        match timeout_at(end, settled).await {
            Ok(Ok(state)) if *state == State::Connected => {}
            Ok(_) => return Err(closed()),
            Err(_) => return Err(self.core.unavailable(deadline)),
        }
        match timeout_at(end, self.core.parts.ready()).await {
            Ok(ready) => ready,
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("connected, but not all parts were ready within {deadline:?}"),
            )),
        }
    }

    /// Adds a part to [`health`](Self::health) and [`close`](Self::close). It is held weakly.
    pub fn register(&self, part: &Arc<dyn Part>) {
        self.core.parts.add(part);
    }

    /// Drains all parts in the order of their phases, then ends the connections. Every later call returns
    /// [`Closed`](crate::ErrorKind::Closed), on all clones.
    ///
    /// # Errors
    ///
    /// [`Timeout`](crate::ErrorKind::Timeout) names the parts that did not end in their share of `deadline`; the rest was closed all the same.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves the backend open or partly drained; call it again.
    pub async fn close(&self, deadline: Duration) -> Result<(), Error> {
        let end = deadline::after(deadline);
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
            Engine::Memory(_) => crate::raw::Engine::Memory(&self.core.clock),
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

    /// The channel that the bus of this namespace uses for a name, for a script that publishes.
    #[doc(hidden)]
    pub fn channel(&self, name: &str) -> String {
        self.namespace.channel(name)
    }

    /// State that all handles of this backend and namespace share in this process.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the place holds a value of another type.
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

    /// To begin background tasks.
    #[doc(hidden)]
    pub fn tasks(&self) -> crate::raw::Tasks {
        self.core.tasks.another()
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
