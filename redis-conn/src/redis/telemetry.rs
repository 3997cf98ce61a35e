//! What is remembered and counted of what happens to the connections.
//!
//! Without the features `metrics` and `tracing` a call that succeeds passes nothing of this.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

#[cfg(feature = "metrics")]
use super::fault::Fault;
use super::{
    Call,
    fault::{Blame, Failure, Verdict},
    target::Target,
};
#[cfg(feature = "metrics")]
use crate::metrics::Meters;
use crate::{Error, LastError};

/// With so many nodes their addresses are too many for labels and spans.
#[cfg(feature = "tracing")]
const MANY_NODES: usize = 64;

/// Shared by everything that connects.
#[derive(Debug)]
pub(super) struct Telemetry {
    reconnects: AtomicU64,
    last_error: Mutex<Option<LastError>>,
    /// As of the last probe.
    nodes: AtomicUsize,
    #[cfg(feature = "metrics")]
    meters: Meters,
}

#[allow(
    clippy::unused_self,
    reason = "where a feature is off there is nothing to do with it"
)]
impl Telemetry {
    pub(super) fn new() -> Self {
        Self {
            reconnects: AtomicU64::new(0),
            last_error: Mutex::default(),
            nodes: AtomicUsize::new(0),
            #[cfg(feature = "metrics")]
            meters: Meters::new(),
        }
    }

    /// Accompanies a call.
    #[cfg(not(any(feature = "metrics", feature = "tracing")))]
    pub(super) fn observe<F>(&self, _: &Call, calling: F) -> F {
        calling
    }

    /// Accompanies a call: measures it, and shows it as a span where somebody looks at those.
    #[cfg(any(feature = "metrics", feature = "tracing"))]
    pub(super) async fn observe<T>(
        &self,
        call: &Call,
        calling: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        #[cfg(feature = "metrics")]
        let began = tokio::time::Instant::now();
        #[cfg(feature = "tracing")]
        let answered = crate::trace::spanned(call.name(), calling).await;
        #[cfg(not(feature = "tracing"))]
        let answered = calling.await;
        let _ = call;
        #[cfg(feature = "metrics")]
        match &answered {
            Ok(_) => self.meters.succeeded(began.elapsed()),
            Err(error) => self.meters.failed(error.kind().as_str(), began.elapsed()),
        }
        answered
    }

    /// A command goes to this server.
    pub(super) fn sent_to(&self, target: &Target) {
        #[cfg(feature = "tracing")]
        if let Target::Single(endpoint) | Target::Member(endpoint, _) = target
            && self.nodes.load(Ordering::Relaxed) < MANY_NODES
        {
            crate::trace::server(endpoint);
        }
        let _ = target;
    }

    /// An attempt to connect, or to have a command answered, failed.
    pub(super) fn failed(&self, failure: &Failure) {
        let row = failure.fault.row();
        if row.blame != Blame::None || row.connection != Verdict::Keep {
            self.remember(&failure.error);
        }
        #[cfg(feature = "metrics")]
        {
            self.meters.fault(label(failure.fault));
            if failure.fault == Fault::Timeout {
                self.meters.timeouts.increment(1);
            }
            if failure.error.is_ambiguous() {
                self.meters.ambiguous.increment(1);
            }
        }
    }

    fn remember(&self, error: &Error) {
        let last = LastError::new(error.kind().as_str(), SystemTime::now());
        let mut held = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *held = Some(last);
    }

    pub(super) fn last_error(&self) -> Option<LastError> {
        let held = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// A shared connection took the place of another one.
    pub(super) fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.meters.reconnects.increment(1);
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    pub(super) fn has_nodes(&self, count: usize) {
        self.nodes.store(count, Ordering::Relaxed);
    }

    /// The slots of a cluster were looked up.
    pub(super) fn refreshed(&self, took: Duration) {
        let _ = took;
        #[cfg(feature = "metrics")]
        self.meters.refreshed(took);
    }
}

/// The row of the table of failures, as a label.
#[cfg(feature = "metrics")]
fn label(fault: Fault) -> &'static str {
    match fault {
        Fault::Away => "away",
        Fault::Lost => "lost",
        Fault::Credentials => "credentials",
        Fault::Timeout => "timeout",
        Fault::Saturated => "saturated",
        Fault::Closed => "closed",
        Fault::MaxClients => "max_clients",
        Fault::Loading => "loading",
        Fault::MasterDown => "master_down",
        Fault::ClusterDown => "cluster_down",
        Fault::TryAgain => "try_again",
        Fault::Moved => "moved",
        Fault::Ask => "ask",
        Fault::ReadOnly => "read_only",
        Fault::Busy => "busy",
        Fault::NoScript => "no_script",
        Fault::OutOfMemory => "out_of_memory",
        Fault::NoReplicas => "no_replicas",
        Fault::Misconf => "misconf",
        Fault::Refused => "refused",
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_of_failures_has_its_counter() {
        let page = include_str!("../metrics/metrics.md");
        let family = page
            .lines()
            .find(|line| line.contains("_failures_total"))
            .unwrap();
        for fault in Fault::ALL {
            assert!(family.contains(&format!("`{}`", label(fault))), "{fault:?}");
        }
    }
}
