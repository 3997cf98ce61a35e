//! What is counted by the name of a cron job or an election, which are fixed in code.

use std::{sync::LazyLock, time::Duration};

use metrics::{Counter, Gauge, Histogram};
use redis_conn::metrics::{ByLabel, Family, Few};

use super::table::{CRON_DURATION, CRON_LAG, CRON_RUNS, ELECTION_CHANGES, ELECTION_LEADER};

/// So many of each are told apart; the others are one. A program has a handful, unless it makes their names of its input.
const NAMES: usize = 64;
/// What the others are called.
const REST: &str = "other";

static JOBS: Few<Job, NAMES> = Few::new();
static OTHER_JOBS: LazyLock<Job> = LazyLock::new(|| Job::new(REST));
static ELECTIONS: Few<Ballot, NAMES> = Few::new();
static OTHER_ELECTIONS: LazyLock<Ballot> = LazyLock::new(|| Ballot::new(REST));

/// The handles of one cron job.
struct Job {
    runs: ByLabel<Counter>,
    duration: Histogram,
    lag: Histogram,
}

/// The handles of one election.
#[derive(Debug)]
struct Ballot {
    leader: Gauge,
    changes: Counter,
}

impl Job {
    fn new(name: &str) -> Self {
        Self {
            runs: CRON_RUNS.each(&[name], Family::counter),
            duration: CRON_DURATION.histogram(&[name]),
            lag: CRON_LAG.histogram(&[name]),
        }
    }

    fn of(name: &str) -> &'static Self {
        let found = JOBS.find(name, Self::new);
        found.map_or_else(|| &*OTHER_JOBS, |found| found.value)
    }

    fn count(&self, outcome: &str) {
        if let Some(counter) = self.runs.of(outcome) {
            counter.increment(1);
        }
    }
}

impl Ballot {
    fn new(name: &str) -> Self {
        Self {
            leader: ELECTION_LEADER.gauge(&[name]),
            changes: ELECTION_CHANGES.counter(&[name]),
        }
    }

    fn of(name: &str) -> &'static Self {
        let found = ELECTIONS.find(name, Self::new);
        found.map_or_else(|| &*OTHER_ELECTIONS, |found| found.value)
    }
}

/// A cron job that may run: its families show before it does.
pub(crate) fn cron_known(name: &str) {
    Job::of(name);
}

/// This came of a slot. How long it took, and how late it was, is told of those that ran here.
pub(crate) fn cron_ended(name: &str, outcome: &str, took: Duration, lag: Duration) {
    let job = Job::of(name);
    job.count(outcome);
    if matches!(outcome, "ran" | "failed" | "lost") {
        job.duration.record(took);
        job.lag.record(lag);
    }
}

/// It was too late for a slot, of which nobody was asked.
pub(crate) fn cron_missed(name: &str) {
    Job::of(name).count("missed");
}

/// An election that somebody of this process takes part in.
pub(crate) fn election_known(name: &str) {
    Ballot::of(name);
}

/// That somebody of this process leads, until this is dropped.
#[derive(Debug)]
pub(crate) struct Leading(&'static Ballot);

impl Leading {
    pub(crate) fn of(name: &str) -> Self {
        let ballot = Ballot::of(name);
        ballot.leader.increment(1.0);
        ballot.changes.increment(1);
        Self(ballot)
    }

    pub(crate) fn end(self) {
        drop(self);
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.leader.decrement(1.0);
    }
}
