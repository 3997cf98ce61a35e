//! What all clones of a `Backend` share, and the one `match` over the kinds of backends.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Check, Clock, Error, ErrorKind, State, Status, bus::Hub, lifecycle::Parts, registry::Registry,
    tasks::Tasks,
};

/// What all clones of a [`Backend`] share.
pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) hub: Arc<Hub>,
    pub(crate) registry: Registry,
    pub(crate) parts: Parts,
    pub(crate) instance: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Cancelled by `close` and when the last handle goes; every background task ends with it.
    pub(crate) closed: CancellationToken,
    pub(crate) tasks: Tasks,
    pub(crate) born: Instant,
}

#[derive(Debug)]
pub(crate) enum Engine {
    Memory(watch::Sender<State>),
    #[cfg(feature = "sqlite")]
    Sqlite(crate::sqlite::Sqlite),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Redis),
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "")
}

fn embedded(name: &'static str, served_by: &str, state: State) -> Check {
    let status = match state {
        State::Connected => Status::Healthy,
        _ => Status::Unhealthy,
    };
    Check::new(name, status, format!("{served_by}: {state}"))
}

impl Core {
    pub(crate) fn new(
        engine: Engine,
        hub: Arc<Hub>,
        closed: CancellationToken,
        instance: String,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let core = Self {
            engine,
            hub,
            registry: Registry::default(),
            parts: Parts::default(),
            instance: instance.into(),
            clock,
            tasks: Tasks::new(closed.clone()),
            closed,
            born: Instant::now(),
        };
        #[cfg(feature = "metrics")]
        crate::metrics::follow(core.states());
        core
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn states(&self) -> watch::Receiver<State> {
        match &self.engine {
            Engine::Memory(state) => state.subscribe(),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => sqlite.states(),
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.states(),
        }
    }

    /// How the backend itself is; with the addresses of its nodes only where they are asked for.
    pub(crate) fn check(&self, detailed: bool) -> Check {
        let state = *self.states().borrow();
        let _ = detailed;
        match &self.engine {
            Engine::Memory(_) => embedded("memory", "in this process", state),
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => {
                let check = embedded("sqlite", "one file on this host", state);
                match sqlite.last_error() {
                    Some(error) => Check {
                        status: check.status.max(Status::Degraded),
                        message: format!("{}: {error}", check.message),
                        ..check
                    },
                    None => check,
                }
            }
            #[cfg(feature = "redis")]
            Engine::Redis(redis) => redis.check(detailed),
        }
    }

    /// What tells that the servers were asked how they are.
    #[cfg(feature = "redis")]
    pub(crate) fn probes(&self) -> Option<crate::redis::Probes> {
        match &self.engine {
            Engine::Redis(redis) => Some(redis.probes()),
            Engine::Memory(_) => None,
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(_) => None,
        }
    }

    pub(crate) fn unavailable(&self, deadline: Duration) -> Error {
        let error = Error::new(
            ErrorKind::Unavailable,
            format!("not connected within {deadline:?}"),
        );
        match &self.engine {
            Engine::Memory(_) => error,
            #[cfg(feature = "sqlite")]
            Engine::Sqlite(sqlite) => match sqlite.last_error() {
                Some(cause) => error.with_source(cause),
                None => error,
            },
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

    pub(crate) async fn close_engine(&self, end: Instant) {
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
