//! A task that goes on until it is told to stop, or the backend is closed.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis_conn::{Check, Drain, Error, ErrorKind, Part, Phase, Status};
use tokio::{sync::watch, task::AbortHandle};

use crate::Locks;

/// The task, as others see it. It is a part of the backend, which waits for its end.
#[derive(Debug)]
pub(crate) struct Background {
    name: &'static str,
    phase: Phase,
    stop: watch::Sender<bool>,
    /// Its other side ends with the task, however that ends.
    ended: watch::Receiver<()>,
    task: OnceLock<AbortHandle>,
}

/// What the task knows of it.
#[derive(Debug)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Waits until the task is to stop.
    pub(crate) async fn told(&mut self) {
        // Whoever could tell is gone: no more than when it was told.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    pub(crate) fn is_told(&self) -> bool {
        *self.0.borrow()
    }
}

impl Background {
    /// # Errors
    ///
    /// `Closed` if the backend is, or if there is no runtime.
    pub(crate) fn start<F>(
        locks: &Locks,
        name: &'static str,
        phase: Phase,
        task: impl FnOnce(Stop) -> F,
    ) -> Result<Arc<Self>, Error>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, told) = watch::channel(false);
        let (end, ended) = watch::channel(());
        let background = Arc::new(Self {
            name,
            phase,
            stop,
            ended,
            task: OnceLock::new(),
        });
        let (task, kept) = (task(Stop(told)), Arc::clone(&background));
        let running = async move {
            task.await;
            drop((kept, end));
        };
        let closed = || Error::new(ErrorKind::Closed, format!("{name}: no runtime to go on"));
        let shared = &locks.shared;
        if shared.is_closed() {
            return Err(closed());
        }
        let part: Arc<dyn Part> = Arc::clone(&background) as _;
        shared.backend.register(&part);
        let task = shared.tasks.follow(running).ok_or_else(closed)?;
        // It is set once only.
        let _ = background.task.set(task.abort_handle());
        Ok(background)
    }

    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn abort(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.has_changed().is_err()
    }

    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Part for Background {
    fn name(&self) -> &str {
        self.name
    }

    fn phase(&self) -> Phase {
        self.phase
    }

    fn check(&self) -> Check {
        let text = match self.has_ended() {
            true => "has ended",
            false => "goes on",
        };
        Check::new(self.name, Status::Healthy, text)
    }

    fn drain(&self, _: Duration) -> Drain {
        self.stop();
        let mut ended = self.ended.clone();
        Box::pin(async move {
            while ended.changed().await.is_ok() {}
            Ok(())
        })
    }
}
