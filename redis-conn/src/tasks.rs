//! Background tasks of what lives on a backend.

use std::{future::Future, sync::Arc};

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tasks on the runtime that built the backend, whoever begins them: they outlive the runtime of a caller.
///
/// A memory backend can be built where there is no runtime, and can outlive the one that built it. Then its tasks are on the runtime
/// of whoever begins them.
#[derive(Clone, Debug)]
pub struct Tasks {
    home: Option<Home>,
    under_way: TaskTracker,
    closed: CancellationToken,
}

/// A runtime, and a task that ends with it: it cannot be asked whether it has ended.
#[derive(Clone, Debug)]
struct Home {
    runtime: Handle,
    alive: Arc<JoinHandle<()>>,
}

impl Tasks {
    pub(crate) fn new(closed: CancellationToken) -> Self {
        let home = Handle::try_current().ok().map(|runtime| Home {
            alive: Arc::new(runtime.spawn(closed.clone().cancelled_owned())),
            runtime,
        });
        Self {
            home,
            under_way: TaskTracker::new(),
            closed,
        }
    }

    /// The same runtime, and other tasks.
    pub(crate) fn another(&self) -> Self {
        Self {
            under_way: TaskTracker::new(),
            ..self.clone()
        }
    }

    /// Begins what is to be finished before the backend closes: see [`finished`](Self::finished). Nothing is begun if it has closed,
    /// or if there is no runtime.
    pub fn spawn<T>(&self, task: impl Future<Output = T> + Send + 'static) -> Option<JoinHandle<T>>
    where
        T: Send + 'static,
    {
        Some(self.under_way.spawn_on(task, &self.runtime()?))
    }

    /// Begins what goes on until the backend closes. Nothing is begun if it has closed,
    /// or if there is no runtime.
    pub fn follow(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let closed = self.closed.clone();
        let following = async move {
            closed.run_until_cancelled_owned(task).await;
        };
        Some(self.runtime()?.spawn(following))
    }

    /// Waits until everything that was [spawned](Self::spawn) has ended.
    pub async fn finished(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    fn runtime(&self) -> Option<Handle> {
        if self.closed.is_cancelled() {
            return None;
        }
        match &self.home {
            Some(home) if !home.alive.is_finished() => Some(home.runtime.clone()),
            _ => Handle::try_current().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Runtime, sync::oneshot};

    use super::*;

    fn runtime() -> Runtime {
        let builder = tokio::runtime::Builder::new_multi_thread();
        { builder }.worker_threads(1).build().unwrap()
    }

    fn tasks(runtime: &Runtime) -> (Tasks, CancellationToken) {
        let _context = runtime.enter();
        let closed = CancellationToken::new();
        (Tasks::new(closed.clone()), closed)
    }

    #[test]
    fn a_task_outlives_the_runtime_of_who_began_it() {
        let home = runtime();
        let (tasks, _closed) = tasks(&home);
        let (go, gone) = oneshot::channel::<()>();
        let caller = runtime();
        let spawned = caller.block_on(async { tasks.spawn(async move { gone.await.is_ok() }) });
        drop(caller);
        go.send(()).unwrap();
        assert!(home.block_on(spawned.unwrap()).unwrap());
        home.block_on(tasks.finished());
    }

    #[test]
    fn a_runtime_that_has_ended_is_followed_by_that_of_the_caller() {
        let home = runtime();
        let (tasks, closed) = tasks(&home);
        drop(home);
        assert!(tasks.spawn(async {}).is_none(), "there is none");
        let caller = runtime();
        let spawned = caller.block_on(async { tasks.spawn(async { 7 }) });
        assert_eq!(caller.block_on(spawned.unwrap()).unwrap(), 7);
        closed.cancel();
        assert!(caller.block_on(async { tasks.spawn(async {}) }).is_none());
    }

    #[test]
    fn what_follows_ends_when_the_backend_closes() {
        let home = runtime();
        let (tasks, closed) = tasks(&home);
        let (alive, ended) = oneshot::channel::<()>();
        tasks.follow(async move {
            let _alive = alive;
            std::future::pending().await
        });
        closed.cancel();
        assert!(home.block_on(ended).is_err());
    }

    #[test]
    fn without_a_runtime_nothing_is_begun() {
        let tasks = Tasks::new(CancellationToken::new());
        assert!(tasks.spawn(async {}).is_none());
        assert!(tasks.follow(async {}).is_none());
    }
}
