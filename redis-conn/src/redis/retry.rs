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
/// Many may wait for the next primary, and they ask the server that those who read need.
const LONGEST_REDISCOVERY: Duration = Duration::from_millis(500);

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
    rediscovery: Duration,
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
            rediscovery: config.retry_delay_on_failover().max(FIRST_BACKOFF),
        }
    }

    /// Whether a reply that does not come is not asked for again.
    pub(super) fn are_used_up(&self) -> bool {
        self.retries >= self.config.max_retries()
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
                    match self.is_in_time(pause) {
                        true => Next::Follow(redirect.clone(), pause),
                        false => Next::Fail,
                    }
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
            Pause::Rediscovery => (true, self.next_rediscovery()),
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

    /// The first is as configured; the others grow, each between half of its ceiling and all of it.
    fn next_rediscovery(&mut self) -> Duration {
        let ceiling = self.rediscovery;
        self.rediscovery = (ceiling * 2).min(LONGEST_REDISCOVERY.max(ceiling));
        ceiling / 2 + jitter(ceiling / 2)
    }

    fn next_backoff(&mut self) -> Duration {
        let ceiling = self.backoff;
        self.backoff = (ceiling * 2).min(LONGEST_BACKOFF);
        jitter(ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Endpoint;

    fn moved() -> Failure {
        let answer = "1 127.0.0.1:6379";
        let error = crate::Error::new(crate::ErrorKind::Unavailable, "the server answered MOVED");
        Failure {
            redirect: Redirect::parse(Fault::Moved, Some(answer)).map(Box::new),
            ..Failure::new(Fault::Moved, error)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn redirections_back_and_forth_are_paced_and_end_with_the_deadline() {
        let config = Config::cluster([Endpoint::tcp("127.0.0.1", 6379)]);
        let config = config.build().unwrap();
        let deadline = Instant::now() + 3 * TRY_AGAIN;
        let mut retries = Retries::new(&config, Class::AtMostOnce, deadline, true);
        let mut pauses = Vec::new();
        while let Next::Follow(_, pause) = retries.after(&moved()) {
            tokio::time::advance(pause).await;
            pauses.push(pause);
        }
        let at_once = Duration::ZERO;
        assert_eq!(pauses, [at_once, at_once, at_once, TRY_AGAIN, TRY_AGAIN]);
    }
}
