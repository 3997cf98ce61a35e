//! Random schedules against an exact log of what was admitted, for every algorithm and for mixtures of them, on each backend and on
//! every topology of Redis.
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
use tower_ratelimit_redis::{
    Algorithm, Decision, Limiter, OnFailure, Policy, PolicyBuilder, PolicyError, Source,
    WindowStart,
};

/// What an algorithm documents.
trait Model {
    /// How many units count at `now`, at least and at most, where all of `log` was admitted.
    fn used(&self, log: &Log, now: u64) -> (u64, u64);

    /// How many times its limit it may admit in one interval of the length of its window, which excludes one end.
    fn peak(&self) -> u64 {
        2
    }
}

/// Those of the last window, both ends included; and none that are a 32nd older.
struct Strict {
    window: u64,
}

impl Model for Strict {
    fn used(&self, log: &Log, now: u64) -> (u64, u64) {
        let within = log.sum(|at| now - at <= self.window);
        let about = log.sum(|at| (now - at) * 32 < self.window * 33);
        (within, about)
    }

    fn peak(&self) -> u64 {
        1
    }
}

/// Those of this window, and of those before as large a part as is still within reach, rounded up.
struct Sliding {
    window: u64,
}

impl Model for Sliding {
    fn used(&self, log: &Log, now: u64) -> (u64, u64) {
        let index = now / self.window;
        let current = log.sum(|at| at / self.window == index);
        let previous = log.sum(|at| at / self.window + 1 == index);
        let left = self.window - now % self.window;
        let weighted = previous as f64 * (left as f64 / self.window as f64);
        exactly(current + weighted.ceil() as u64)
    }
}

/// For every earlier admission: those since, less what has refilled since.
struct Gcra {
    interval: u64,
}

impl Model for Gcra {
    fn used(&self, log: &Log, now: u64) -> (u64, u64) {
        let debt = |&(since, _): &(u64, u64)| {
            let units = log.sum(|at| at >= since);
            units.saturating_sub((now - since) / self.interval)
        };
        exactly(log.0.iter().map(debt).max().unwrap_or(0))
    }
}

/// Those of the last window, one end excluded.
struct Exact {
    window: u64,
}

impl Model for Exact {
    fn used(&self, log: &Log, now: u64) -> (u64, u64) {
        exactly(log.sum(|at| now - at < self.window))
    }

    fn peak(&self) -> u64 {
        1
    }
}

/// Those of the same window of the calendar.
struct Aligned {
    window: u64,
}

impl Model for Aligned {
    fn used(&self, log: &Log, now: u64) -> (u64, u64) {
        exactly(log.sum(|at| at / self.window == now / self.window))
    }
}

/// Those of a window that the first of them began.
struct FromFirst {
    window: u64,
}

impl Model for FromFirst {
    fn used(&self, log: &Log, now: u64) -> (u64, u64) {
        let mut begin = None;
        for (at, _) in &log.0 {
            if begin.is_none_or(|begin| *at - begin >= self.window) {
                begin = Some(*at);
            }
        }
        let present = begin.filter(|begin| now - begin < self.window);
        exactly(present.map_or(0, |begin| log.sum(|at| at >= begin)))
    }
}

const SCHEDULES: u32 = 2_000;
/// For servers that differ from others in how they are found, not in what they compute.
const FEWER: u32 = 300;

fn exactly(units: u64) -> (u64, u64) {
    (units, units)
}

/// Of which a limit has one, by its number.
const ALGORITHMS: usize = 6;

/// A limit of a schedule.
#[derive(Clone, Debug)]
struct Limit {
    number: usize,
    /// How many units it admits at once.
    max: u64,
    /// How many in each window; other than `max` for a bucket only.
    rate: u64,
    /// In microseconds. A long one, because Redis expires keys by its own clock, which does not stand still.
    window: u64,
}

impl Limit {
    fn algorithm(&self) -> Algorithm {
        match self.number {
            0 => Algorithm::StrictWindow,
            1 => Algorithm::SlidingCounter,
            2 => Algorithm::Gcra { burst: self.max },
            3 => Algorithm::SlidingLog,
            4 => Algorithm::FixedWindow(WindowStart::Calendar),
            _ => Algorithm::FixedWindow(WindowStart::FirstCall),
        }
    }

    fn model(&self) -> Box<dyn Model> {
        let (window, interval) = (self.window, self.window.div_ceil(self.rate));
        match self.number {
            0 => Box::new(Strict { window }),
            1 => Box::new(Sliding { window }),
            2 => Box::new(Gcra { interval }),
            3 => Box::new(Exact { window }),
            4 => Box::new(Aligned { window }),
            _ => Box::new(FromFirst { window }),
        }
    }

    /// In which time it admits its maximum again.
    fn span(&self) -> u64 {
        match self.number {
            2 => self.window.div_ceil(self.rate) * self.max,
            _ => self.window,
        }
    }
}

/// One subject, its limits, and its calls.
#[derive(Clone, Debug)]
struct Schedule {
    limits: Vec<Limit>,
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
    /// To the end of the present window of the calendar, and so many microseconds.
    Boundary(u64),
    /// What the last refusal said, but for a microsecond.
    AlmostAsTold,
    AsTold,
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let window = prop_oneof![
        20_000_000_u64..200_000_000,
        (1_000_000_u64..6_000_000).prop_map(|part| 32 * part)
    ];
    // One algorithm for all limits, whose script knows no other; or any.
    let numbers = prop_oneof![
        ALGORITHMS as u32 => (0..ALGORITHMS).prop_map(|number| [number; 3]),
        2 => [0..ALGORITHMS, 0..ALGORITHMS, 0..ALGORITHMS],
    ];
    let limits = prop::collection::vec((1_u64..9, 1_u64..9, window), 1..4);
    let limits = (numbers, limits).prop_map(|(numbers, limits)| {
        let limit = |(number, (max, rate, window))| Limit {
            number,
            max,
            rate: if number == 2 { rate } else { max },
            window,
        };
        let limits = numbers.into_iter().zip(limits).map(limit);
        limits.collect::<Vec<_>>()
    });
    let limits = limits.prop_filter("one window each", |limits| build(limits).is_ok());
    let step = prop_oneof![
        6 => Just(Step::None),
        10 => (0_u64..60_000).prop_map(Step::Part),
        6 => (0_u64..1_100_000).prop_map(Step::Part),
        2 => (0_u64..3).prop_map(Step::Window),
        1 => (0_u64..3).prop_map(Step::Boundary),
        2 => Just(Step::AlmostAsTold),
        2 => Just(Step::AsTold),
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

fn build(limits: &[Limit]) -> Result<Policy, PolicyError> {
    let add = |policy: PolicyBuilder, limit: &Limit| {
        let window = Duration::from_micros(limit.window);
        policy.limit_by(limit.algorithm(), limit.rate, window)
    };
    limits.iter().fold(Policy::new("random"), add).build()
}

impl Schedule {
    fn least(&self) -> u64 {
        self.limits.iter().map(|limit| limit.max).min().unwrap()
    }

    fn shortest(&self) -> u64 {
        self.limits.iter().map(|limit| limit.window).min().unwrap()
    }

    /// Among the counts of one algorithm, or of several.
    fn group(&self) -> usize {
        let first = self.limits[0].number;
        let same = self.limits.iter().all(|limit| limit.number == first);
        if same { first } else { ALGORITHMS }
    }

    /// How long a step takes that begins at `now`, after a refusal that told how long to wait.
    fn time(&self, step: &Step, now: u64, told: u64) -> u64 {
        let shortest = self.shortest();
        match step {
            Step::None => 0,
            Step::Part(millionths) => shortest * millionths / 1_000_000,
            Step::Window(more) => shortest + more,
            Step::Boundary(more) => shortest - now % shortest + more,
            Step::AlmostAsTold => told.saturating_sub(1),
            Step::AsTold => told,
        }
    }
}

/// The time and the cost of all that was admitted.
#[derive(Debug, Default)]
struct Log(Vec<(u64, u64)>);

impl Log {
    fn sum(&self, counts: impl Fn(u64) -> bool) -> u64 {
        let counted = self.0.iter().filter(|(at, _)| counts(*at));
        counted.map(|(_, cost)| cost).sum()
    }

    /// Whether each limit, or one of them, is the reason for what was decided; and whether what is left is what this log leaves.
    fn explains(&self, schedule: &Schedule, decision: &Decision, now: u64, cost: u64) -> bool {
        let used = |limit: &Limit| limit.model().used(self, now);
        let mut limits = schedule.limits.iter();
        let reason = if decision.is_allowed() {
            limits.all(|limit| used(limit).0 + cost <= limit.max)
        } else {
            limits.any(|limit| used(limit).1 + cost > limit.max)
        };
        let charged = if decision.is_allowed() { cost } else { 0 };
        let mut states = schedule.limits.iter().zip(decision.limits());
        reason
            && states.all(|(limit, state)| {
                let ((least, most), left) = (used(limit), state.remaining + charged);
                limit.max.saturating_sub(most) <= left && left <= limit.max.saturating_sub(least)
            })
    }

    /// Whether no limit has admitted more around `now` than it ever does.
    fn is_within(&self, schedule: &Schedule, now: u64) -> bool {
        schedule.limits.iter().all(|limit| {
            let recent = self.sum(|at| now - at < limit.span());
            recent <= limit.model().peak() * limit.max
        })
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
    let policy = build(&schedule.limits).unwrap();
    let (mut log, mut now, mut told) = (Log::default(), begin + schedule.pause, 0);
    let mut refused = None;
    let mut tally = Tally::default();
    for Call { step, cost } in &schedule.calls {
        now += schedule.time(step, now, told);
        let cost = schedule.least().min(*cost);
        fixture.set(now).await;
        let decision = limiter.check(&policy, subject, cost).await.unwrap();
        assert_eq!(decision.source(), Source::Store);
        assert!(
            log.explains(schedule, &decision, now, cost),
            "{decision:?} after {:?} at {now}",
            log.0
        );
        let wait = decision.retry_after();
        told = wait.map_or(0, |wait| wait.as_micros() as u64);
        tally.count(&decision);
        if decision.is_allowed() {
            log.0.push((now, cost));
            assert!(log.is_within(schedule, now), "{log:?}");
            refused = None;
        } else {
            refused = Some((now, cost, told));
        }
    }
    tally.end = now;
    if let Some((at, cost, told)) = refused {
        as_told(fixture, limiter, &policy, (subject, cost), at, told).await;
        tally.end = at + told;
    }
    tally
}

/// A refused call fits when the refusal said, and not a microsecond earlier.
async fn as_told(
    fixture: &impl Fixture,
    limiter: &Limiter,
    policy: &Policy,
    (subject, cost): (&str, u64),
    now: u64,
    told: u64,
) {
    for (wait, allowed) in [(told - 1, false), (told, true)] {
        fixture.set(now + wait).await;
        let seen = limiter.check(policy, subject, cost).await.unwrap();
        assert_eq!(seen.is_allowed(), allowed, "{wait} of {told}");
    }
}

/// Proves that the schedules try both outcomes.
#[derive(Clone, Copy, Debug, Default)]
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
    let (number, end) = (Cell::new(0_u32), Cell::new(START));
    let totals = RefCell::new([Tally::default(); ALGORITHMS + 1]);
    tokio::task::block_in_place(|| {
        let handle = tokio::runtime::Handle::current();
        let tested = TestRunner::new(config).run(&schedules(), |schedule| {
            number.set(number.get() + 1);
            let subject = number.get().to_string();
            let tally = handle.block_on(run(&fixture, &limiter, &subject, &schedule, end.get()));
            end.set(tally.end);
            let total = &mut totals.borrow_mut()[schedule.group()];
            total.admitted += tally.admitted;
            total.refused += tally.refused;
            Ok(())
        });
        tested.unwrap_or_else(|error| panic!("{error}"));
    });
    let many = u64::from(cases) / 4;
    for total in *totals.borrow() {
        assert!(total.admitted > many && total.refused > many, "{totals:?}");
    }
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
