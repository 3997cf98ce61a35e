//! Whether a failed attempt is followed by another, and when.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Class,
    cluster::Redirect,
    fault::{Again, Failure, Fault, Pause},
};
use crate::{Config, random::jitter};

const TRY_AGAIN: Duration = Duration::from_millis(100);
/// A key is found by so many redirections in a cluster that agrees; who is sent on more often waits until it does.
const AT_ONCE: u32 = 3;
const LOADING: Duration = Duration::from_millis(100);
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_millis(300);

/// What one call has been through.
#[derive(Debug)]
pub(super) struct Retries<'a> {
    config: &'a Config,
    class: Class,
    deadline: Instant,
    /// Whether the place of a server that is away may be taken by another one while the call waits.
    elsewhere: bool,
    redirections: u32,
    retries: u32,
    backoff: Duration,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The call has failed.
    Fail,
    /// The same once more, wherever its key is then.
    After(Duration),
    Follow(Box<Redirect>, Duration),
}

impl<'a> Retries<'a> {
    pub(super) fn new(
        config: &'a Config,
        class: Class,
        deadline: Instant,
        elsewhere: bool,
    ) -> Self {
        Self {
            config,
            class,
            deadline,
            elsewhere,
            redirections: 0,
            retries: 0,
            backoff: FIRST_BACKOFF,
        }
    }

    pub(super) fn after(&mut self, failure: &Failure) -> Next {
        match failure.fault.again(self.class) {
            Again::Never => Next::Fail,
            Again::Now if self.retry() && self.is_in_time(Duration::ZERO) => {
                Next::After(Duration::ZERO)
            }
            Again::Now => Next::Fail,
            Again::Follow => match &failure.redirect {
                Some(redirect) if self.redirect() => {
                    let pause = match self.redirections {
                        ..=AT_ONCE => Duration::ZERO,
                        _ => TRY_AGAIN,
                    };
                    Next::Follow(redirect.clone(), pause)
                }
                _ => Next::Fail,
            },
            // Nobody takes the place of a server that is alone: those who can do without it must not wait.
            Again::After(_) if failure.fault == Fault::Away && !self.elsewhere => Next::Fail,
            Again::After(pause) => self.pause(pause),
        }
    }

    fn pause(&mut self, pause: Pause) -> Next {
        let (allowed, length) = match pause {
            Pause::Failover => (self.retry(), self.config.retry_delay_on_failover()),
            Pause::ClusterDown => (self.redirect(), self.config.retry_delay_on_cluster_down()),
            Pause::TryAgain => (self.redirect(), TRY_AGAIN),
            // Bounded by the deadline: how long it takes is known to nobody.
            Pause::Loading => (true, LOADING),
            Pause::Rediscovery => (true, self.config.retry_delay_on_failover()),
            Pause::Backoff => (self.retry(), self.next_backoff()),
        };
        if allowed && self.is_in_time(length) {
            Next::After(length)
        } else {
            Next::Fail
        }
    }

    fn is_in_time(&self, pause: Duration) -> bool {
        Instant::now() + pause < self.deadline
    }

    fn redirect(&mut self) -> bool {
        self.redirections += 1;
        self.redirections <= self.config.max_redirections()
    }

    fn retry(&mut self) -> bool {
        self.retries += 1;
        self.retries <= self.config.max_retries()
    }

    fn next_backoff(&mut self) -> Duration {
        let ceiling = self.backoff;
        self.backoff = (ceiling * 2).min(LONGEST_BACKOFF);
        jitter(ceiling)
    }
}
