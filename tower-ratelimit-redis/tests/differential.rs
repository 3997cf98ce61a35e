//! The same operations at the same moments on two stores have the same outcomes: the scripts and the Rust code mean the same.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use fixture::{Fixture, START};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use redis_conn::Audit;
use tower_ratelimit_redis::{
    Acquired, Algorithm, Decision, Limiter, Permit, Policy, PolicyError, RateLimitError, Revise,
    WindowStart,
};

const CASES: u32 = 600;
/// For servers that differ from others in how they are found, not in what they compute.
const FEWER: u32 = 100;

/// The shortest window, and half of the span of an interval: no key of a frozen clock expires by the server's own.
const SHORT: u64 = 30_000_000;
/// Longer than all steps together. A limit over it keeps a value where Redis, whose time stands, would keep it and SQLite would not.
const LONG: Duration = Duration::from_secs(100 * 24 * 3_600);

/// One of several, whatever their number.
#[derive(Clone, Copy, Debug)]
struct Choice(usize);

impl Choice {
    fn of<T>(self, all: &[T]) -> &T {
        &all[self.index(all)]
    }

    fn index<T>(self, all: &[T]) -> usize {
        self.0 % all.len()
    }
}

fn choice() -> impl Strategy<Value = Choice> {
    (0..12_usize).prop_map(Choice)
}

/// What one policy of the case allows.
#[derive(Clone, Debug)]
struct Version {
    /// Which of the case's limits it has, by their numbers, and under which maximum.
    limits: Vec<(Choice, u64)>,
    revision: u32,
    change: Revise,
}

/// What all policies of a case choose from: an algorithm by its number, and a window.
type Kind = (u8, u64);

#[derive(Clone, Debug)]
struct Case {
    kinds: Vec<Kind>,
    versions: Vec<Version>,
    steps: Vec<(Step, Op)>,
}

/// How the clock moves before an operation.
#[derive(Clone, Debug)]
enum Step {
    None,
    /// So many millionths of a window.
    Part(u64),
    /// A whole window, and so many microseconds.
    Window(u64),
    /// To the first moment of the next bucket of a window, of which it has so many; and so many microseconds less.
    Bucket(u64, u64),
    /// As long as was last told, and so many microseconds less.
    Told(u64),
    /// Back by so many millionths of a window.
    Back(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Check(Choice, Cost),
    AtMost(Choice, Cost),
    Peek(Choice),
    Refund(Choice, Cost),
    Settle(Choice, Cost),
    Block(Choice, u64),
    Reset(Choice),
    Release(Choice),
}

#[derive(Clone, Copy, Debug)]
enum Cost {
    Few(u64),
    /// All but so many of the least limit.
    Whole(u64),
    Huge,
}

impl Cost {
    fn of(self, least: u64) -> u64 {
        match self {
            Self::Few(units) => units,
            Self::Whole(less) => least.saturating_sub(less),
            Self::Huge => u32::MAX.into(),
        }
    }
}

const CALENDAR: u8 = 4;
const LEASES: u8 = 6;

fn cases(back: bool) -> impl Strategy<Value = Case> {
    let window = prop_oneof![
        SHORT..SHORT + 5_000_000,
        (SHORT / 32 + 1..SHORT / 16).prop_map(|part| 32 * part),
        Just(SHORT + 7),
    ];
    // In SQLite the wall clock, by which windows of the calendar count, does not step back.
    let number = (0..=LEASES).prop_filter("a clock that steps back", move |number| {
        !(back && *number == CALENDAR)
    });
    let kind = (number.clone(), window);
    let kinds = prop_oneof![
        1 => prop::collection::vec(kind.clone(), 1..4),
        // All of one algorithm, by the script that knows no other.
        1 => (number, prop::collection::vec(kind, 1..4)).prop_map(|(number, kinds)| {
            kinds.into_iter().map(|(_, window)| (number, window)).collect()
        }),
    ];
    let max = prop_oneof![6 => 1_u64..10, 1 => Just(1_000), 1 => Just(u64::from(u32::MAX))];
    let change = prop_oneof![
        Just(Revise::Keep),
        Just(Revise::Reset),
        Just(Revise::Proportional)
    ];
    let limits = prop::collection::vec((choice(), max), 1..4);
    let version = (limits, 0_u32..3, change).prop_map(|(limits, revision, change)| Version {
        limits,
        revision,
        change,
    });
    let versions = prop::collection::vec(version, 1..4);
    let steps = prop::collection::vec((step(back), op()), 1..40);
    (kinds, versions, steps).prop_map(|(kinds, versions, steps)| Case {
        kinds,
        versions,
        steps,
    })
}

fn step(back: bool) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::None),
        6 => (0_u64..100_000).prop_map(Step::Part),
        3 => (0_u64..1_200_000).prop_map(Step::Part),
        2 => (0_u64..3).prop_map(Step::Window),
        2 => (prop_oneof![Just(1_u64), Just(32)], 0_u64..2).prop_map(|(of, less)| Step::Bucket(of, less)),
        3 => (0_u64..2).prop_map(Step::Told),
        u32::from(back) => (0_u64..2_500_000).prop_map(Step::Back),
        u32::from(back) => (0_u64..50_000).prop_map(Step::Back),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let cost = prop_oneof![
        12 => (0_u64..5).prop_map(Cost::Few),
        4 => (0_u64..3).prop_map(Cost::Whole),
        1 => Just(Cost::Huge),
    ];
    let block = prop_oneof![Just(0), 1_u64..SHORT, Just(3 * SHORT)];

    prop_oneof![
        14 => (choice(), cost.clone()).prop_map(|(version, cost)| Op::Check(version, cost)),
        3 => (choice(), cost.clone()).prop_map(|(version, cost)| Op::AtMost(version, cost)),
        3 => choice().prop_map(Op::Peek),
        3 => (choice(), cost.clone()).prop_map(|(decision, cost)| Op::Refund(decision, cost)),
        3 => (choice(), cost).prop_map(|(decision, cost)| Op::Settle(decision, cost)),
        1 => (choice(), block).prop_map(|(version, time)| Op::Block(version, time)),
        1 => choice().prop_map(Op::Reset),
        4 => choice().prop_map(Op::Release),
    ]
}

impl Version {
    fn build(&self, kinds: &[Kind]) -> Result<Policy, PolicyError> {
        let mut policy = Policy::new("random").revision(self.revision, self.change);
        let mut chosen: Vec<&Kind> = Vec::new();
        for (choice, max) in &self.limits {
            let kind = choice.of(kinds);
            if chosen.contains(&kind) {
                continue;
            }
            chosen.push(kind);
            let (number, window) = *kind;
            let of = |micros| Duration::from_micros(micros);
            policy = match number {
                0..LEASES => {
                    let (algorithm, rate, window) = shape(number, *max, window);
                    policy.limit_by(algorithm, rate, of(window))
                }
                _ => policy.concurrency((*max).min(1_000), of(window)),
            };
        }
        let (number, _) = *chosen[0];
        let (algorithm, rate, window) = match number {
            0 | LEASES => (Algorithm::StrictWindow, u32::MAX.into(), LONG),
            2 => (
                Algorithm::Gcra { burst: 1 << 30 },
                1_000,
                Duration::from_secs(10),
            ),
            3 => (Algorithm::SlidingLog, 1_024, LONG),
            _ => (shape(number, 1, 1).0, u32::MAX.into(), LONG),
        };
        policy.limit_by(algorithm, rate, window).build()
    }

    fn least(&self) -> u64 {
        self.limits.iter().map(|(_, max)| *max).min().unwrap()
    }
}

/// An algorithm, and how many units it admits in which time.
fn shape(number: u8, max: u64, window: u64) -> (Algorithm, u64, u64) {
    match number {
        0 => (Algorithm::StrictWindow, max, window),
        1 => (Algorithm::SlidingCounter, max, window),
        // Of one rate, so that versions with other bursts share the counter.
        2 => (
            Algorithm::Gcra {
                burst: max.min(1_000),
            },
            7,
            7 * window,
        ),
        3 => (Algorithm::SlidingLog, max.min(1_000), window),
        CALENDAR => (Algorithm::FixedWindow(WindowStart::Calendar), max, window),
        _ => (Algorithm::FixedWindow(WindowStart::FirstCall), max, window),
    }
}

/// What an operation came to, as far as anybody can see it.
#[derive(Debug, PartialEq)]
enum Outcome {
    Decided(Seen),
    Held(bool),
    Done,
    Error(String),
}

#[derive(Debug, PartialEq)]
struct Seen {
    allowed: bool,
    granted: u64,
    blocked: bool,
    retry_after: Option<Duration>,
    limits: Vec<(u64, Duration)>,
}

impl Seen {
    fn new(decision: &Decision) -> Self {
        let limits = decision.limits().iter();
        Self {
            allowed: decision.is_allowed(),
            granted: decision.granted(),
            blocked: decision.is_blocked(),
            retry_after: decision.retry_after(),
            limits: limits
                .map(|limit| (limit.remaining, limit.reset_after))
                .collect(),
        }
    }
}

/// One of the two stores, and what it gave to one subject.
struct Side<'a, F> {
    fixture: &'a F,
    limiter: &'a Limiter,
    subject: &'a str,
    policies: &'a [(Policy, u64)],
    /// With the policy of each.
    decisions: Vec<(usize, Decision)>,
    permits: Vec<Permit>,
}

impl<F: Fixture> Side<'_, F> {
    async fn run(&mut self, op: &Op) -> Outcome {
        let done = |result: Result<(), RateLimitError>| match result {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Error(error.to_string()),
        };
        let Self {
            limiter, subject, ..
        } = *self;
        let audit = Audit::new("test", "to compare");
        match op {
            Op::Check(version, cost) => {
                let version = version.index(self.policies);
                let (policy, least) = &self.policies[version];
                let cost = cost.of(*least);
                match limiter.check(policy, subject, cost).await {
                    Err(RateLimitError::NeedsPermit) => {
                        let acquired = limiter.acquire(policy, subject, cost).await;
                        self.acquired(version, acquired)
                    }
                    found => self.decided(version, found),
                }
            }
            Op::AtMost(version, cost) => {
                let version = version.index(self.policies);
                let (policy, least) = &self.policies[version];
                let cost = cost.of(*least);
                let found = limiter.check_at_most(policy, subject, cost).await;
                self.decided(version, found)
            }
            Op::Peek(version) => {
                let (policy, _) = version.of(self.policies);
                let seen = limiter.peek(policy, subject).await.unwrap();
                Outcome::Decided(Seen::new(&seen))
            }
            Op::Refund(which, units) if !self.decisions.is_empty() => {
                let (version, decision) = which.of(&self.decisions);
                let (policy, _) = &self.policies[*version];
                let units = units.of(decision.granted());
                done(limiter.refund(policy, subject, decision, units).await)
            }
            Op::Settle(which, actual) if !self.decisions.is_empty() => {
                let (version, decision) = which.of(&self.decisions);
                let (policy, _) = &self.policies[*version];
                let actual = actual.of(decision.granted());
                done(limiter.settle(policy, subject, decision, actual).await)
            }
            Op::Block(version, micros) => {
                let (policy, _) = version.of(self.policies);
                let time = Duration::from_micros(*micros);
                done(limiter.block(policy, subject, time, &audit).await)
            }
            Op::Reset(version) => {
                let (policy, _) = version.of(self.policies);
                done(limiter.reset(policy, subject, &audit).await)
            }
            Op::Release(which) if !self.permits.is_empty() => {
                let which = which.index(&self.permits);
                let held = self.permits.swap_remove(which).release().await;
                Outcome::Held(held.unwrap())
            }
            Op::Refund(..) | Op::Settle(..) | Op::Release(_) => Outcome::Done,
        }
    }

    fn acquired(&mut self, version: usize, found: Result<Acquired, RateLimitError>) -> Outcome {
        let decision = found.map(|acquired| {
            let decision = acquired.decision().clone();
            self.permits.extend(acquired.permit());
            decision
        });
        self.decided(version, decision)
    }

    fn decided(&mut self, version: usize, found: Result<Decision, RateLimitError>) -> Outcome {
        match found {
            Ok(decision) => {
                let seen = Seen::new(&decision);
                if decision.granted() > 0 {
                    self.decisions.push((version, decision));
                }
                Outcome::Decided(seen)
            }
            Err(error) => Outcome::Error(error.to_string()),
        }
    }
}

/// How often a case was of interest.
type Tally = BTreeMap<&'static str, u64>;

fn note(tally: &mut Tally, op: &Op, outcome: &Outcome) {
    let what = match (op, outcome) {
        (Op::AtMost(_, cost), Outcome::Decided(seen))
            if seen.granted > 0 && seen.granted < cost.of(0) =>
        {
            "granted in part"
        }
        (_, Outcome::Decided(seen)) if seen.blocked => "blocked",
        (_, Outcome::Decided(seen)) if seen.allowed => "admitted",
        (_, Outcome::Decided(_)) => "refused",
        (_, Outcome::Held(true)) => "released",
        (_, Outcome::Held(false)) => "released late",
        (Op::Refund(..), _) => "refunded",
        (Op::Settle(..), _) => "settled",
        (_, Outcome::Error(_)) => "error",
        _ => "done",
    };
    *tally.entry(what).or_default() += 1;
}

/// Runs one case on both stores and compares all that they say. Tells the latest moment of it.
async fn run<A: Fixture, B: Fixture>(
    (one, other): (&mut Side<'_, A>, &mut Side<'_, B>),
    case: &Case,
    begin: u64,
    tally: &mut Tally,
) -> u64 {
    let (mut now, mut latest, mut told) = (begin, begin, 0);
    for (number, (step, op)) in case.steps.iter().enumerate() {
        let window = case.kinds[0].1;
        let then = match step {
            Step::None => now,
            Step::Part(millionths) => now + window * millionths / 1_000_000,
            Step::Window(more) => now + window + more,
            Step::Bucket(of, less) => {
                let next = (now % window * of / window + 1) * window;
                now - now % window + next.div_ceil(*of) - less
            }
            Step::Told(less) => now + u64::saturating_sub(told, *less),
            Step::Back(millionths) => now - window * millionths / 1_000_000,
        };
        for (what, is_so) in [
            ("at a boundary", matches!(step, Step::Bucket(_, 0))),
            ("as told", matches!(step, Step::Told(0)) && told > 0),
            ("back", then < now),
        ] {
            *tally.entry(what).or_default() += u64::from(is_so);
        }
        (now, latest) = (then, latest.max(then));
        one.fixture.set(now).await;
        other.fixture.set(now).await;
        let (expected, found) = (one.run(op).await, other.run(op).await);
        assert_eq!(expected, found, "step {number} of {case:?}");
        note(tally, op, &expected);
        if let Outcome::Decided(seen) = &expected {
            // Less than in which a value is forgotten.
            let wait = seen.retry_after.filter(|wait| *wait < LONG / 100);
            told = wait.map_or(0, |wait| wait.as_micros() as u64);
        }
    }
    latest
}

async fn compare(one: impl Fixture, other: impl Fixture, number: u32, back: bool) {
    let limiters = (fixture::limiter(&one), fixture::limiter(&other));
    let config = ProptestConfig {
        cases: number,
        failure_persistence: None,
        max_shrink_iters: 4_000,
        ..ProptestConfig::default()
    };
    let (subjects, tally) = (Cell::new(0_u32), RefCell::new(Tally::new()));
    // The wall clock of SQLite never goes back for good.
    let begin = Cell::new(START);
    tokio::task::block_in_place(|| {
        let handle = tokio::runtime::Handle::current();
        // The same cases each time: what fails once fails again. Others by another seed, by hand.
        let seed = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(config, seed);
        let tested = runner.run(&cases(back), |case| {
            subjects.set(subjects.get() + 1);
            let subject = subjects.get().to_string();
            let built = case.versions.iter();
            let built = built.map(|version| Ok((version.build(&case.kinds)?, version.least())));
            let policies = built.collect::<Result<Vec<_>, PolicyError>>();
            // Two limits of one window, or two of permits.
            let policies = policies.map_err(|error| TestCaseError::reject(error.to_string()))?;
            let mut one = Side {
                fixture: &one,
                limiter: &limiters.0,
                subject: &subject,
                policies: &policies,
                decisions: Vec::new(),
                permits: Vec::new(),
            };
            let mut other = Side {
                fixture: &other,
                limiter: &limiters.1,
                subject: &subject,
                policies: &policies,
                decisions: Vec::new(),
                permits: Vec::new(),
            };
            let tally = &mut *tally.borrow_mut();
            let latest = handle.block_on(run((&mut one, &mut other), &case, begin.get(), tally));
            begin.set(latest);
            Ok(())
        });
        tested.unwrap_or_else(|error| panic!("{error}"));
    });
    let tally = tally.into_inner();
    let often = |what: &str, least: u32| {
        let found = tally.get(what).copied().unwrap_or_default();
        assert!(found >= u64::from(least), "{what}: {tally:?}");
    };
    for what in ["admitted", "refused", "settled", "refunded"] {
        often(what, number);
    }
    for what in [
        "blocked",
        "granted in part",
        "released",
        "released late",
        "at a boundary",
        "as told",
    ] {
        often(what, number / 20);
    }
    if back {
        often("back", number);
    }
}

/// What ages in memory ages also where a call is refused, so it has no common past with the others once the clock steps back.
#[tokio::test(flavor = "multi_thread")]
async fn memory_decides_as_sqlite() {
    let (memory, sqlite) = (fixture::Memory::start(), fixture::Sqlite::start());
    compare(memory.await, sqlite.await, CASES, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_decides_as_memory() {
    let redis = fixture::Redis::start(&fixture::SINGLE).await;
    compare(fixture::Memory::start().await, redis, CASES, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_decides_as_sqlite() {
    let redis = fixture::Redis::start(&fixture::SINGLE).await;
    compare(fixture::Sqlite::start().await, redis, CASES, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_decides_as_sqlite() {
    let redis = fixture::Redis::start(&fixture::CLUSTER).await;
    compare(fixture::Sqlite::start().await, redis, FEWER, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_behind_sentinels_decides_as_sqlite() {
    let redis = fixture::Redis::start(&fixture::SENTINEL).await;
    compare(fixture::Sqlite::start().await, redis, FEWER, true).await;
}
