//! Without the feature `metrics`: nothing is left of it.

#![allow(
    clippy::unused_self,
    reason = "the signatures are those of the feature"
)]

use std::time::Duration;

use redis_conn::Error;

use crate::{LockError, LostReason, lease::Lease, store::Outcome};

#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldSince;

impl HeldSince {
    pub(crate) fn none() -> Self {
        Self
    }

    pub(crate) fn lost(&mut self, _: LostReason) {}
}

#[derive(Debug)]
pub(crate) struct Holding;

impl Holding {
    pub(crate) fn none() -> Self {
        Self
    }

    pub(crate) fn of(_: &Lease) -> Self {
        Self
    }
}

#[derive(Debug)]
pub(crate) struct Leading;

impl Leading {
    pub(crate) fn of(_: &str) -> Self {
        Self
    }

    pub(crate) fn end(self) {}
}

pub(crate) fn begin() {}

pub(crate) struct Acquiring;

impl Acquiring {
    pub(crate) fn begin() -> Self {
        Self
    }

    pub(crate) fn end(self, _: Option<&LockError>) {}

    pub(crate) fn goes_on(self) {}
}

pub(crate) fn renewed(_: usize, _: &Result<Vec<Outcome>, Error>) {}

pub(crate) fn unprotected() {}

pub(crate) fn fence_refused() {}

pub(crate) fn cron_known(_: &str) {}

pub(crate) fn cron_ended(_: &str, _: &str, _: Duration, _: Duration) {}

pub(crate) fn cron_missed(_: &str) {}

pub(crate) fn election_known(_: &str) {}
