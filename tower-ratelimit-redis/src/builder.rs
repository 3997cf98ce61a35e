//! The options of the handle.

use std::{sync::Arc, time::Duration};

use redis_conn::{Backend, Error, ErrorKind, Part};

use crate::{
    Limiter, OnFailure,
    away::Away,
    denied::Denied,
    fallback::Fallback,
    keeper::Keeper,
    metrics::Meters,
    shared::Shared,
    spend::{Behind, Leases},
    store::{AnyStore, MemoryStore},
};

const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);
/// Whoever waits longer has no use for a decision; and a point in time so far away can always be told.
const MAX_TIMEOUT: Duration = Duration::from_secs(3_600);
const DEFAULT_CAPACITY: usize = 1_000_000;
/// How long nobody finds out whether the store is back, at the most.
const PROBE_AT_LEAST: Duration = Duration::from_secs(1);
const DEFAULT_DENIED: usize = 10_000;

/// Options of a [`Limiter`]. Made by [`Limiter::builder`].
#[derive(Clone, Debug)]
#[must_use = "a limiter begins to exist with `build`"]
pub struct LimiterBuilder {
    backend: Backend,
    timeout: Duration,
    on_failure: OnFailure,
    capacity: usize,
    coalesce: bool,
    denied: usize,
}

impl LimiterBuilder {
    pub(crate) fn new(backend: &Backend) -> Self {
        Self {
            backend: backend.clone(),
            timeout: DEFAULT_TIMEOUT,
            on_failure: OnFailure::default(),
            capacity: DEFAULT_CAPACITY,
            coalesce: true,
            denied: DEFAULT_DENIED,
        }
    }

    pub(crate) fn with_defaults(self) -> Limiter {
        let store = self.store().unwrap_or_else(AnyStore::None);
        self.assemble(store)
    }

    /// How long the store may take for a decision before the failure policy decides, up to an hour; 100 ms if not set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What happens while the store does not decide; `Local { share: 0.5 }` if not set.
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }

    /// How many subjects the in-process store holds, be it the fallback's or that of the memory backend, which belongs to the
    /// first limiter of a namespace; 1,000,000 if not set. Beyond it newcomers share their counts.
    pub fn local_capacity(mut self, subjects: usize) -> Self {
        self.capacity = subjects;
        self
    }

    /// How many refusals are remembered in this process, so that nobody asks the store again before the wait is over that it told;
    /// 10,000 if not set, none for 0.
    pub fn denied_capacity(mut self, refusals: usize) -> Self {
        self.denied = refusals;
        self
    }

    /// Whether calls that come while others are under way are sent together, when one of these returns; they are if not set. It costs
    /// a call no time where nobody else calls, and the server less work where many do.
    pub fn coalesce(mut self, coalesce: bool) -> Self {
        self.coalesce = coalesce;
        self
    }

    /// Makes the limiter. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Config`](ErrorKind::Config) if the timeout is zero or above an hour, the capacity is zero, the share is not above 0 and at
    /// most 1, or this crate's feature for the kind of backend is off.
    pub fn build(self) -> Result<Limiter, Error> {
        self.on_failure.validate()?;
        let wrong = |text| Err(Error::new(ErrorKind::Config, text));
        if self.timeout.is_zero() || self.timeout > MAX_TIMEOUT {
            let found = self.timeout;
            return wrong(format!(
                "timeout {found:?}: expected more than 0 and at most 1 h"
            ));
        }
        if self.capacity == 0 {
            return wrong("local capacity 0: expected at least 1".to_owned());
        }
        let store = self.store()?;
        Ok(self.assemble(store))
    }

    fn assemble(self, store: AnyStore) -> Limiter {
        let on_failure = if store.in_process().is_some() {
            // It never fails, so nothing need be counted twice for it.
            OnFailure::Closed
        } else {
            self.on_failure
        };
        let tasks = self.backend.tasks();
        let fallback = Fallback::new(on_failure, self.backend.clock(), self.capacity);
        let denied = store
            .in_process()
            .is_none()
            .then(|| Denied::new(&self.backend, &tasks, self.denied));
        let inner = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            backend: self.backend.clone(),
            store,
            fallback,
            away: Away::new(&self.backend, self.timeout.min(PROBE_AT_LEAST)),
            denied,
            leases: Leases::new(self.backend.clock(), self.capacity),
            behind: Behind::new(self.backend.clock(), self.capacity),
            timeout: self.timeout,
            tasks,
            keeper: Keeper::new(),
            meters: Meters::new(self.backend.kind()),
        });
        let part: Arc<dyn Part> = Arc::clone(&inner) as _;
        self.backend.register(&part);
        Limiter(inner)
    }

    fn store(&self) -> Result<AnyStore, Error> {
        AnyStore::of(&self.backend, self.coalesce, || self.shared_memory())
    }

    /// The counts of the memory backend are one for all limiters of a namespace (and of one version of this crate: a program may
    /// contain two, whose stores are different types).
    fn shared_memory(&self) -> Result<Arc<MemoryStore>, Error> {
        const PLACE: &str = concat!("limits ", env!("CARGO_PKG_VERSION"));
        self.backend.shared('r', PLACE, || {
            MemoryStore::new(Arc::clone(self.backend.clock()), self.capacity)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_that_is_none_is_refused() {
        let with = |timeout| {
            Limiter::builder(&Backend::memory())
                .timeout(timeout)
                .build()
        };
        for timeout in [
            Duration::ZERO,
            MAX_TIMEOUT + Duration::from_nanos(1),
            Duration::MAX,
        ] {
            let error = with(timeout).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config, "{timeout:?}");
        }
        assert!(with(MAX_TIMEOUT).is_ok());
    }
}
