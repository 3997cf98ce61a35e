//! Making a backend.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[cfg(feature = "redis")]
use crate::trace::event;
use crate::{
    Backend, Clock, Error, ErrorKind, State, SystemClock,
    bus::Hub,
    config,
    engine::{Core, Engine},
    namespace::Namespace,
};

/// Options that do not depend on the kind of backend. Made by [`Backend::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct BackendBuilder {
    namespace: Result<Namespace, Error>,
    instance: Option<String>,
    clock: Arc<dyn Clock>,
    #[cfg(feature = "redis")]
    rewrite: Option<crate::redis::Rewrite>,
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

    /// The name of this instance in connection names, lock owners and health answers: 1 to 128 visible ASCII characters; `host:pid` if
    /// not set. It need not be unique.
    pub fn instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance = Some(id.into());
        self
    }

    /// The clock of the embedded backends, for tests.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Rewrites every script whenever it is called, for tests that hold the server's time: `rewrite` gets the text and returns
    /// another one, with the arguments that are added behind those of the call.
    #[doc(hidden)]
    #[cfg(feature = "redis")]
    pub fn rewrite_scripts(
        mut self,
        rewrite: impl Fn(&str) -> (String, Vec<String>) + Send + Sync + 'static,
    ) -> Self {
        self.rewrite = Some(crate::redis::Rewrite::new(rewrite));
        self
    }

    /// Everything in this process.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the namespace or the name of the instance is not valid.
    pub fn memory(self) -> Result<Backend, Error> {
        self.check()?;
        let engine = Engine::Memory(watch::Sender::new(State::Connected));
        self.finish(engine, Arc::default(), CancellationToken::new())
    }

    /// One SQLite file, shared by the processes of one host. It is created if absent.
    ///
    /// # Errors
    ///
    /// [`Config`](crate::ErrorKind::Config) if the namespace or the name of the instance is not valid, the path cannot be used or the
    /// feature `sqlite` is off;
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the file is no database of this crate; [`Timeout`](crate::ErrorKind::Timeout) if other processes
    /// kept it locked.
    pub async fn sqlite(self, path: impl AsRef<Path>) -> Result<Backend, Error> {
        self.check()?;
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
    /// [`Config`](crate::ErrorKind::Config) if the namespace or the name of the instance is not valid, if this is called outside of a
    /// Tokio runtime, or if the feature `redis` is off.
    pub fn redis(self, config: crate::Config) -> Result<Backend, Error> {
        self.check()?;
        #[cfg(feature = "redis")]
        {
            let (hub, closed) = (Arc::default(), CancellationToken::new());
            for warning in config.warnings() {
                event!(warn, "{warning}");
            }
            let name = config.connection_name().map(str::to_owned);
            let name = name.or_else(|| self.instance.clone());
            let options = crate::redis::Options {
                client_name: name.unwrap_or_else(default_instance),
                rewrite: self.rewrite.clone(),
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

    /// Refuses what is not valid before anything is opened or created.
    fn check(&self) -> Result<(), Error> {
        if let Err(error) = &self.namespace {
            return Err(error.clone());
        }
        match &self.instance {
            Some(id) if !config::is_instance(id) => {
                let text = format!("instance id {id:?}: expected {}", config::INSTANCE);
                Err(Error::new(ErrorKind::Config, text))
            }
            _ => Ok(()),
        }
    }

    fn finish(
        self,
        engine: Engine,
        hub: Arc<Hub>,
        closed: CancellationToken,
    ) -> Result<Backend, Error> {
        let namespace = self.namespace?;
        let instance = self.instance.unwrap_or_else(default_instance);
        let core = Core::new(engine, hub, closed, instance, self.clock);
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

pub(crate) fn default_instance() -> String {
    let host = rustix::system::uname();
    format!(
        "{}:{}",
        host.nodename().to_string_lossy(),
        std::process::id()
    )
}
