//! Where a connection leads to.

use std::{future::pending, sync::Arc};

use super::{
    cluster::Trigger,
    dial::{Connection, Dialer, Purpose, Pushes},
    fault::Failure,
    greeting::Role,
    sentinel::Sentinels,
};
use crate::config::Endpoint;

/// What a lane, a pool or a subscription connects to.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// One address, whoever answers there.
    Single(Endpoint),
    /// A node of a cluster; doubts about it have the slots looked up again.
    Member(Endpoint, Arc<Trigger>),
    /// The primary that the sentinels name.
    Primary(Arc<Sentinels>),
}

/// A connection, and where it leads.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) connection: Connection,
    pub(super) endpoint: Endpoint,
}

impl Target {
    /// One attempt to connect.
    pub(super) async fn dial(
        &self,
        dialer: &Dialer,
        purpose: Purpose,
        pushes: Pushes,
    ) -> Result<Found, Failure> {
        let endpoint = self.locate().await?;
        let connection = dialer.dial(&endpoint, purpose, pushes).await?;
        // The sentinels may name a server that does not know of its promotion yet, or not of its demotion.
        if matches!(self, Self::Primary(_)) && connection.greeting.role != Role::Primary {
            return Err(Failure::away(
                "the server that the sentinels name is a replica",
            ));
        }
        Ok(Found {
            connection,
            endpoint,
        })
    }

    async fn locate(&self) -> Result<Endpoint, Failure> {
        match self {
            Self::Single(endpoint) | Self::Member(endpoint, _) => Ok(endpoint.clone()),
            Self::Primary(sentinels) => sentinels.locate().await,
        }
    }

    /// Whether connections still lead to `endpoint`.
    pub(super) fn is_at(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Single(_) | Self::Member(..) => true,
            Self::Primary(sentinels) => sentinels.is_at(endpoint),
        }
    }

    /// Ends when connections must lead elsewhere than to `endpoint`.
    pub(super) async fn left(&self, endpoint: &Endpoint) {
        match self {
            Self::Single(_) | Self::Member(..) => pending().await,
            Self::Primary(sentinels) => sentinels.left(endpoint).await,
        }
    }

    /// Whether a connection that leads elsewhere is of use when a server refuses a write.
    pub(super) fn may_lead_elsewhere(&self) -> bool {
        !matches!(self, Self::Member(..))
    }

    /// Something about the server is odd: it is silent, or it refuses what it should take.
    pub(super) fn doubt(&self) {
        match self {
            Self::Single(_) => {}
            Self::Member(_, trigger) => trigger.pull(),
            Self::Primary(sentinels) => sentinels.doubt(),
        }
    }
}
