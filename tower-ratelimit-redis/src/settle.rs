//! What a request has cost, once its response tells.

use std::{
    fmt,
    num::NonZeroU64,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
};

use http::response;
use redis_conn::Subject;
use tokio::sync::Semaphore;

use crate::{Decision, Limiter, Policy, trace::event};

/// So many may be under way at once in one layer.
const MOST: usize = 4_096;

type ByHead = dyn Fn(&response::Parts) -> Option<u64> + Send + Sync;

/// How a layer finds out.
#[derive(Clone)]
pub(crate) struct Settle {
    pub(crate) by_head: Option<Arc<ByHead>>,
    pub(crate) bytes_per_unit: Option<NonZeroU64>,
    under_way: Arc<Semaphore>,
}

impl Settle {
    /// Whether anybody finds out.
    pub(crate) fn is_set(&self) -> bool {
        self.by_head.is_some() || self.bytes_per_unit.is_some()
    }

    /// What `decision` has charged, until it turns out how much it should have been.
    pub(crate) fn later(
        &self,
        limiter: &Limiter,
        policy: &Policy,
        subject: Subject,
        decision: &Decision,
    ) -> Box<Charged> {
        Box::new(Charged {
            settle: self.clone(),
            limiter: limiter.clone(),
            policy: policy.clone(),
            subject,
            decision: decision.clone(),
        })
    }
}

impl Default for Settle {
    fn default() -> Self {
        Self {
            by_head: None,
            bytes_per_unit: None,
            under_way: Arc::new(Semaphore::new(MOST)),
        }
    }
}

impl fmt::Debug for Settle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settle")
            .field("by_head", &self.by_head.is_some())
            .field("bytes_per_unit", &self.bytes_per_unit)
            .finish_non_exhaustive()
    }
}

/// A request that was charged, and may turn out to have cost something else.
pub(crate) struct Charged {
    settle: Settle,
    limiter: Limiter,
    policy: Policy,
    subject: Subject,
    decision: Decision,
}

impl Charged {
    /// Settles by the head of the response, or tells by what to settle when its body ends.
    pub(crate) fn at_head(self: Box<Self>, head: &response::Parts) -> Option<Metered> {
        let by_head = self.settle.by_head.as_ref();
        if let Some(actual) = by_head.and_then(|cost_of| cost_of(head)) {
            self.settle(actual);
            return None;
        }
        self.settle.bytes_per_unit.map(|bytes_per_unit| Metered {
            charged: Some(self),
            bytes_per_unit,
            bytes: AtomicU64::new(0),
        })
    }

    /// In a task of its own: nobody waits for the store any more.
    fn settle(self: Box<Self>, actual: u64) {
        let granted = self.decision.granted();
        if actual == granted {
            return;
        }
        let slot = Arc::clone(&self.settle.under_way).try_acquire_owned();
        let Ok(slot) = slot else {
            report_unsettled();
            return;
        };
        // A body may be dropped where there is no runtime.
        let tasks = self.limiter.0.tasks.clone();
        let begun = tasks.spawn(async move {
            let settled = self
                .limiter
                .settle(&self.policy, self.subject, &self.decision, actual);
            if let Err(error) = settled.await {
                event!(
                    debug,
                    "a request under {:?} stays charged as it was: {error}",
                    self.policy.name()
                );
            }
            drop(slot);
        });
        if begun.is_none() {
            report_unsettled();
        }
    }
}

/// Says once that there are more than can be settled.
fn report_unsettled() {
    static REPORTED: Once = Once::new();
    REPORTED.call_once(|| {
        event!(
            warn,
            "requests stay charged as they were: there is no runtime, or {MOST} of a layer wait for the store already"
        );
    });
}

/// A request that costs what the bytes of its response body do. It is settled when this is dropped.
pub(crate) struct Metered {
    charged: Option<Box<Charged>>,
    bytes_per_unit: NonZeroU64,
    bytes: AtomicU64,
}

impl Metered {
    pub(crate) fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if let Some(charged) = self.charged.take() {
            charged.settle(self.bytes.get_mut().div_ceil(self.bytes_per_unit.get()));
        }
    }
}
