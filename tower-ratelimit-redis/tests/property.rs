//! Random schedules against an exact log of what was admitted, on each backend and on every topology of Redis.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use fixture::{Fixture, START};
use proptest::{prelude::*, test_runner::TestRunner};
use tower_ratelimit_redis::{Decision, Limiter, OnFailure, Policy, Source};

const SCHEDULES: u32 = 2_000;
/// For servers that differ from others in how they are found, not in what they compute.
const FEWER: u32 = 300;

/// One subject, its limits, and its calls.
#[derive(Clone, Debug)]
struct Schedule {
    /// Maximum and window in microseconds. Long ones, because Redis expires keys by its own clock, which does not stand still.
    limits: Vec<(u64, u64)>,
    /// How long after the one before it begins.
    pause: u64,
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    step: Step,
    cost: u64,
}

/// How much time passes before a call.
#[derive(Clone, Debug)]
enum Step {
    None,
    /// So many millionths of the shortest window.
    Part(u64),
    /// The whole window, and so many microseconds.
    Window(u64),
    /// What the last refusal said, but for a microsecond.
    AlmostAsTold,
    AsTold,
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let limit = (1_u64..9, 20_000_000_u64..200_000_000);
    let divisible = (1_u64..9, 1_000_000_u64..6_000_000).prop_map(|(max, part)| (max, 32 * part));
    let limits = prop::collection::vec(prop_oneof![limit, divisible], 1..4).prop_filter(
        "one window each",
        |limits| {
            (1..limits.len()).all(|at| limits[..at].iter().all(|limit| limit.1 != limits[at].1))
        },
    );
    let step = prop_oneof![
        3 => Just(Step::None),
        6 => (0_u64..60_000).prop_map(Step::Part),
        3 => (0_u64..1_100_000).prop_map(Step::Part),
        1 => (0_u64..3).prop_map(Step::Window),
        1 => Just(Step::AlmostAsTold),
        1 => Just(Step::AsTold),
    ];
    let call = (step, prop_oneof![4 => Just(1_u64), 1 => 2_u64..4]);
    let call = call.prop_map(|(step, cost)| Call { step, cost });
    let pause = 0_u64..1_000_000_000;
    (limits, pause, prop::collection::vec(call, 1..40)).prop_map(|(limits, pause, calls)| {
        Schedule {
            limits,
            pause,
            calls,
        }
    })
}

impl Schedule {
    fn policy(&self) -> Policy {
        let add = |policy: tower_ratelimit_redis::PolicyBuilder, limit: &(u64, u64)| {
            policy.limit(limit.0, Duration::from_micros(limit.1))
        };
        let policy = self.limits.iter().fold(Policy::new("random"), add);
        policy.build().unwrap()
    }

    fn least(&self) -> u64 {
        self.limits.iter().map(|limit| limit.0).min().unwrap()
    }

    fn shortest(&self) -> u64 {
        self.limits.iter().map(|limit| limit.1).min().unwrap()
    }
}

/// The time and the cost of all that was admitted.
#[derive(Default)]
struct Log(Vec<(u64, u64)>);

impl Log {
    fn sum(&self, counts: impl Fn(u64) -> bool) -> u64 {
        let counted = self.0.iter().filter(|(at, _)| counts(*at));
        counted.map(|(_, cost)| cost).sum()
    }

    /// What the promise allows of a decision: never more than the limit in any interval of the window's length, both ends
    /// included, and never a refusal while the units of the last 33/32 of a window leave room.
    fn allows(&self, schedule: &Schedule, decision: &Decision, now: u64, cost: u64) -> bool {
        let within = |window: u64| self.sum(|at| now - at <= window) + cost;
        let about = |window: u64| self.sum(|at| (now - at) * 32 < window * 33) + cost;
        let limits = &schedule.limits;
        if decision.is_allowed() {
            limits.iter().all(|(max, window)| within(*window) <= *max)
        } else {
            limits.iter().any(|(max, window)| about(*window) > *max)
        }
    }
}

/// Runs one schedule for a subject that nobody else has, from `begin` on. The clock never goes back: what the housekeeping of a
/// store takes for expired would be alive again.
async fn run(
    fixture: &impl Fixture,
    limiter: &Limiter,
    subject: &str,
    schedule: &Schedule,
    begin: u64,
) -> Tally {
    let policy = schedule.policy();
    let (mut log, mut now, mut told) = (Log::default(), begin + schedule.pause, 0);
    let mut refused = None;
    let mut tally = Tally::default();
    for Call { step, cost } in &schedule.calls {
        now += match step {
            Step::None => 0,
            Step::Part(millionths) => schedule.shortest() * millionths / 1_000_000,
            Step::Window(more) => schedule.shortest() + more,
            Step::AlmostAsTold => u64::saturating_sub(told, 1),
            Step::AsTold => told,
        };
        let cost = schedule.least().min(*cost);
        fixture.set(now).await;
        let decision = limiter.check(&policy, subject, cost).await.unwrap();
        assert_eq!(decision.source(), Source::Store);
        assert!(
            log.allows(schedule, &decision, now, cost),
            "{decision:?} after {:?} at {now}",
            log.0
        );
        told = decision
            .retry_after()
            .map_or(0, |wait| wait.as_micros() as u64);
        tally.count(&decision);
        if decision.is_allowed() {
            log.0.push((now, cost));
            refused = None;
        } else {
            refused = Some((now, cost, told));
        }
    }
    tally.end = now;
    if let Some((at, 1, told)) = refused {
        as_told(fixture, limiter, &policy, subject, at, told).await;
        tally.end = at + told;
    }
    tally
}

/// A refused call of cost 1 fits when the refusal said, and not a microsecond earlier.
async fn as_told(
    fixture: &impl Fixture,
    limiter: &Limiter,
    policy: &Policy,
    subject: &str,
    now: u64,
    told: u64,
) {
    for (wait, allowed) in [(told - 1, false), (told, true)] {
        fixture.set(now + wait).await;
        let seen = limiter.peek(policy, subject).await.unwrap();
        assert_eq!(seen.is_allowed(), allowed, "{wait} of {told}");
    }
}

/// Proves that the schedules try both outcomes.
#[derive(Clone, Copy, Default)]
struct Tally {
    admitted: u64,
    refused: u64,
    /// What the clock shows.
    end: u64,
}

impl Tally {
    fn count(&mut self, decision: &Decision) {
        if decision.is_allowed() {
            self.admitted += 1;
        } else {
            self.refused += 1;
        }
    }
}

async fn all(fixture: impl Fixture, cases: u32) {
    let limiter = Limiter::builder(fixture.backend())
        .on_failure(OnFailure::Closed)
        // The time of this process is not that of the store.
        .denied_capacity(0)
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let (number, total) = (Cell::new(0_u32), RefCell::new(Tally::default()));
    total.borrow_mut().end = START;
    tokio::task::block_in_place(|| {
        let handle = tokio::runtime::Handle::current();
        let tested = TestRunner::new(config).run(&schedules(), |schedule| {
            number.set(number.get() + 1);
            let subject = number.get().to_string();
            let begin = total.borrow().end;
            let tally = handle.block_on(run(&fixture, &limiter, &subject, &schedule, begin));
            let mut total = total.borrow_mut();
            total.admitted += tally.admitted;
            total.refused += tally.refused;
            total.end = tally.end;
            Ok(())
        });
        tested.unwrap_or_else(|error| panic!("{error}"));
    });
    let Tally {
        admitted, refused, ..
    } = *total.borrow();
    let many = u64::from(cases) * 5 / 2;
    assert!(
        admitted > many && refused > many,
        "{admitted} admitted, {refused} refused"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_promise() {
    all(fixture::Memory::start().await, SCHEDULES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_promise() {
    all(fixture::Sqlite::start().await, SCHEDULES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_promise() {
    all(fixture::Redis::start(&fixture::SINGLE).await, SCHEDULES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_keeps_the_promise() {
    all(fixture::Redis::start(&fixture::CLUSTER).await, FEWER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_behind_sentinels_keeps_the_promise() {
    all(fixture::Redis::start(&fixture::SENTINEL).await, FEWER).await;
}
