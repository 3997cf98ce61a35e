//! Who is for it, and who is not.

use std::sync::Arc;

use redis_conn::{Error, ErrorKind};
use tokio::{sync::mpsc, time::Instant};

use super::node::Node;
use crate::{LockError, claim::Claim, quorum::Quorum};

/// An answer of a server, by its place.
pub(super) type Heard = (usize, Result<Claim, LockError>);

/// The answers of all servers. Dropping it lets go of what was granted.
pub(super) struct Votes {
    pub(super) nodes: Arc<[Arc<Node>]>,
    answers: Vec<Option<Result<Claim, LockError>>>,
    /// Those who answer after it was decided.
    late: Option<mpsc::UnboundedReceiver<Heard>>,
    /// When they were asked.
    pub(super) since: Instant,
    /// The leases of those who are for it, also of those who come late.
    pub(super) quorum: Arc<Quorum>,
}

impl Votes {
    pub(super) fn new(nodes: &Arc<[Arc<Node>]>) -> Self {
        Self {
            nodes: Arc::clone(nodes),
            answers: nodes.iter().map(|_| None).collect(),
            late: None,
            since: Instant::now(),
            quorum: Quorum::of(nodes.len()),
        }
    }

    pub(super) fn add(&mut self, place: usize, answer: Result<Claim, LockError>) {
        if let Some(slot) = self.answers.get_mut(place) {
            *slot = Some(answer);
        }
    }

    /// Hears those who come late, when it is asked for.
    pub(super) fn listen(&mut self, late: mpsc::UnboundedReceiver<Heard>) {
        self.late = Some(late);
    }

    /// Adds those who came late.
    pub(super) fn add_late(&mut self) {
        while let Some((place, answer)) = self.late.as_mut().and_then(|late| late.try_recv().ok()) {
            self.add(place, answer);
        }
    }

    pub(super) fn votes(&self) -> impl Iterator<Item = (usize, &Claim)> {
        let votes = self.answers.iter().enumerate();
        votes.filter_map(|(place, answer)| Some((place, answer.as_ref()?.as_ref().ok()?)))
    }

    /// Whether the rest changes nothing.
    pub(super) fn is_decided(&self, quorum: usize) -> bool {
        let granted = self.votes().count();
        let pending = self
            .answers
            .iter()
            .filter(|answer| answer.is_none())
            .count();
        granted >= quorum || granted + pending < quorum
    }

    /// # Errors
    ///
    /// Why it is not granted: by whom it is held, unless too many servers failed.
    pub(super) fn outcome(self, quorum: usize) -> Result<Self, LockError> {
        if self.votes().count() >= quorum && self.quorum.why_lost().is_none() {
            return Ok(self);
        }
        let refused = self.answers.iter().flatten();
        let errors = refused.filter_map(|answer| answer.as_ref().err());
        let (busy, failed): (Vec<_>, Vec<_>) = errors.partition(|error| error.is_busy());
        // Without those who hold it, would there be enough?
        let error = if self.answers.len() - failed.len() >= quorum {
            busy.first().or(failed.first())
        } else {
            failed.first()
        };
        Err(error.copied().cloned().unwrap_or_else(too_late))
    }

    /// The greatest fence that one of them has given it.
    pub(super) fn fence(&self) -> u64 {
        let held = self.votes().filter_map(|(_, claim)| claim.held());
        held.map(|(_, fence)| fence).max().unwrap_or_default()
    }

    /// The servers that are not for it.
    pub(super) fn missing(&mut self) -> Vec<(usize, Arc<Node>)> {
        self.add_late();
        let is_for = |place: usize| {
            let mut votes = self.votes().filter(|(its, _)| *its == place);
            votes.any(|(_, claim)| {
                let held = claim.held();
                held.is_some_and(|(lease, _)| lease.why_lost().is_none())
            })
        };
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(place, _)| !is_for(*place))
            .map(|(place, node)| (place, Arc::clone(node)))
            .collect()
    }

    /// All that was granted.
    pub(super) fn into_votes(mut self) -> Vec<(Arc<Node>, Claim)> {
        self.add_late();
        let answers = self.nodes.iter().cloned().zip(self.answers);
        answers
            .filter_map(|(node, answer)| Some((node, answer?.ok()?)))
            .collect()
    }
}

pub(super) fn too_late() -> LockError {
    Error::new(
        ErrorKind::Timeout,
        "the servers took longer than the lease lasts",
    )
    .into()
}
