//! Policies that this process counts first, before the store.

mod behind;
mod lease;
mod rounds;
mod table;

use std::{future::Future, sync::Arc};

use redis_conn::{Error, ErrorKind, Subject, raw::Tasks};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::JoinSet,
    time::{Instant, timeout_at},
};

pub(crate) use self::{behind::Behind, lease::Leases};
use crate::Policy;

/// How many subjects the store is told of at the same time, so that they go together.
const AT_ONCE: usize = 64;

/// The name of a policy, and a subject.
type Name = (Arc<str>, Subject);

/// Whoever has it asks the store for all that this process knows of one subject. It is kept by a task and not by a caller where
/// something would be lost with that.
type Turn = OwnedMutexGuard<()>;

fn name(policy: &Policy, subject: &Subject) -> Name {
    (Arc::clone(policy.shared_name()), subject.clone())
}

/// Waits for the turn of a subject, or until there is no time left.
async fn turn(of: Arc<Mutex<()>>, until: Instant) -> Result<Turn, Error> {
    in_time(until, of.lock_owned()).await
}

async fn in_time<T>(until: Instant, what: impl Future<Output = T>) -> Result<T, Error> {
    let waited = timeout_at(until, what).await;
    waited.map_err(|_| {
        Error::new(
            ErrorKind::Timeout,
            "waiting for what others ask of the store",
        )
    })
}

/// Does what must not end with the caller.
async fn detached<T: Send + 'static>(
    tasks: &Tasks,
    until: Instant,
    task: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let ended = || Error::new(ErrorKind::Closed, "the runtime has ended");
    let task = tasks.spawn(task).ok_or_else(ended)?;
    match in_time(until, task).await? {
        Ok(outcome) => outcome,
        Err(cause) => Err(ended().with_source(cause)),
    }
}

/// Does it for all subjects, whatever becomes of one, and returns what failed first.
async fn for_each<F>(names: Vec<Name>, act: impl Fn(Name) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut names = names.into_iter();
    let mut acting: JoinSet<_> = names.by_ref().take(AT_ONCE).map(&act).collect();
    let mut all = Ok(());
    while let Some(one) = acting.join_next().await {
        all = all.and(one.unwrap_or(Ok(())));
        if let Some(name) = names.next() {
            acting.spawn(act(name));
        }
    }
    all
}
