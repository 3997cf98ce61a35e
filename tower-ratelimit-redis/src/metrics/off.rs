//! Without the feature `metrics`: nothing is left of it.

#![allow(
    clippy::unused_self,
    reason = "the signatures are those of the feature"
)]

use redis_conn::Error;

use super::Outcome;
use crate::{Decision, Policy};

#[derive(Debug)]
pub(crate) struct Meters;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Began;

impl Began {
    pub(crate) fn now() -> Self {
        Self
    }
}

impl Meters {
    pub(crate) fn new(_: &str) -> Self {
        Self
    }

    pub(crate) fn decided(&self, _: &Policy, _: &Decision, _: Began) {}
}

pub(crate) fn known(_: &Policy) {}

pub(crate) fn failed(_: &Policy, _: &Error) {}

#[cfg(feature = "redis")]
pub(crate) fn coalesced(_: &Policy, _: u64) {}

pub(crate) fn requested(_: &Policy, _: Option<&str>, _: Outcome) {}
