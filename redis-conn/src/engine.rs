//! What all clones of a `Backend` share, and the one `match` over the kinds of backends.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Check, Clock, Error, ErrorKind, State, Status, bus::Hub, lifecycle::Parts, registry::Registry,
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

impl Core {
    /// With a hub and an end of its own.
    pub(crate) fn new(engine: Engine, instance: String, clock: Arc<dyn Clock>) -> Self {
        Self {
            engine,
            hub: Arc::default(),
            registry: Registry::default(),
            parts: Parts::default(),
            instance: instance.into(),
            clock,
            closed: CancellationToken::new(),
        }
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

    pub(crate) fn check(&self) -> Check {
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
        let check = Check::new(name, status, format!("{served_by}: {state}"));
        #[cfg(feature = "sqlite")]
        if let Engine::Sqlite(sqlite) = &self.engine
            && let Some(error) = sqlite.last_error()
        {
            let message = format!("{served_by}: {state}: {error}");
            return Check::new(name, status.max(Status::Degraded), message);
        }
        #[cfg(feature = "redis")]
        if let Engine::Redis(redis) = &self.engine
            && let Some(error) = redis.bus_error()
            && status == Status::Healthy
        {
            let message = format!("{served_by}: {state}, but no message arrives: {error}");
            return Check::new(name, Status::Degraded, message);
        }
        check
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
