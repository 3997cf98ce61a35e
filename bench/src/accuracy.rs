//! What each algorithm admits of the same calls, by a clock that is set: against the exact log.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use redis_conn::{Backend, Clock, ManualClock};
use tower_ratelimit_redis::{Algorithm, Limiter, Policy, WindowStart};

/// So many units in a second; the window, and the length of a schedule, in microseconds.
pub const LIMIT: u64 = 100;
pub const WINDOW: u64 = 1_000_000;
const LENGTH: u64 = 12 * WINDOW;
const MILLI: u64 = 1_000;
/// When a schedule begins: at a full second, so that the windows of the calendar begin with it.
const START: u64 = 3_600 * WINDOW;

/// Whose admissions are counted.
pub struct Contender {
    pub name: &'static str,
    pub algorithm: Algorithm,
    /// The most that it may admit in any interval of the length of the window.
    pub bound: u64,
}

pub const CONTENDERS: [Contender; 6] = [
    contender("strict window", Algorithm::StrictWindow, LIMIT),
    contender("sliding log", Algorithm::SlidingLog, LIMIT),
    contender("sliding counter", Algorithm::SlidingCounter, 2 * LIMIT),
    contender("GCRA", Algorithm::Gcra { burst: LIMIT }, 2 * LIMIT),
    contender(
        "fixed window, first call",
        Algorithm::FixedWindow(WindowStart::FirstCall),
        2 * LIMIT,
    ),
    contender(
        "fixed window, calendar",
        Algorithm::FixedWindow(WindowStart::Calendar),
        2 * LIMIT,
    ),
];

const fn contender(name: &'static str, algorithm: Algorithm, bound: u64) -> Contender {
    Contender {
        name,
        algorithm,
        bound,
    }
}

/// When calls come, in microseconds after the beginning, oldest first.
pub struct Schedule {
    pub name: &'static str,
    pub calls: Vec<u64>,
}

/// All that the algorithms are compared by.
pub fn schedules() -> Vec<Schedule> {
    let of = |name, calls| Schedule { name, calls };
    vec![
        of("boundary burst", boundary_burst()),
        of("burst, then flood", burst_then_flood()),
        of("steady, 0.5 x", steady(LIMIT / 2)),
        of("steady, 1 x", steady(LIMIT)),
        of("steady, 2 x", steady(2 * LIMIT)),
        of("saw-tooth, to 4 x", saw_tooth()),
        of("random", random()),
    ]
}

/// In each three seconds: one call at first, 150 at 0.9 s and as many at 1.05 s.
fn boundary_burst() -> Vec<u64> {
    let each = |begin| {
        let burst = |at| std::iter::repeat_n(begin + at * MILLI, 150);
        std::iter::once(begin).chain(burst(900)).chain(burst(1_050))
    };
    (0..LENGTH).step_by(3_000_000).flat_map(each).collect()
}

/// In each four seconds: one call at 50 ms, 150 at 0.95 s, and from then on to 3 s one each 2 ms. The windows of the calendar and
/// those that a first call begins end within the flood or before it.
pub fn burst_then_flood() -> Vec<u64> {
    let each = |begin: u64| {
        let burst = std::iter::repeat_n(begin + 950 * MILLI, 150);
        let flood = (952..3_000).step_by(2).map(move |at| begin + at * MILLI);
        std::iter::once(begin + 50 * MILLI)
            .chain(burst)
            .chain(flood)
    };
    (0..LENGTH).step_by(4_000_000).flat_map(each).collect()
}

fn steady(per_second: u64) -> Vec<u64> {
    let calls = LENGTH / WINDOW * per_second;
    (0..calls).map(|n| n * WINDOW / per_second).collect()
}

/// In each three seconds the rate rises from nothing to four times the limit.
fn saw_tooth() -> Vec<u64> {
    const TOOTH: u64 = 3;
    let calls = 4 * LIMIT * TOOTH / 2;
    let at = |n: u64| (n * WINDOW * WINDOW * 2 * TOOTH / (4 * LIMIT)).isqrt();
    let each = |begin| (0..calls).map(move |n| begin + at(n));
    let teeth = (0..LENGTH).step_by((TOOTH * WINDOW) as usize);
    teeth.flat_map(each).collect()
}

/// Gaps of up to 20 ms; after one of 32 come 60 calls at once.
fn random() -> Vec<u64> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    let (mut calls, mut at) = (Vec::new(), 0);
    loop {
        at += next(20 * MILLI);
        if at >= LENGTH {
            return calls;
        }
        let together = if next(32) == 0 { 60 } else { 1 };
        calls.extend(std::iter::repeat_n(at, together));
    }
}

/// Which of these calls an algorithm admits.
pub fn admitted(algorithm: Algorithm, calls: &[u64]) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().expect("a runtime");
    let clock = Arc::new(ManualClock::new(START));
    let backend = Backend::builder().clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let limiter = Limiter::new(&backend.memory().expect("a backend"));
    let policy = Policy::new("accuracy")
        .limit_by(algorithm, LIMIT, Duration::from_micros(WINDOW))
        .build()
        .expect("a policy");
    runtime.block_on(async {
        let mut admitted = Vec::new();
        for &at in calls {
            clock.set(START + at);
            let decision = limiter.check(&policy, "a", 1).await.expect("a decision");
            if decision.is_allowed() {
                admitted.push(at);
            }
        }
        admitted
    })
}

/// Which of them the exact log admits, written down a second time, in the simplest way.
pub fn exact_log(calls: &[u64]) -> Vec<u64> {
    let mut admitted: Vec<u64> = Vec::new();
    for &at in calls {
        let recent = admitted.iter().rev().take_while(|then| *then + WINDOW > at);
        if (recent.count() as u64) < LIMIT {
            admitted.push(at);
        }
    }
    admitted
}

/// The most admissions in any interval of the length of the window, which excludes one of its ends.
pub fn most(admitted: &[u64]) -> u64 {
    let since = |(n, at): (usize, &u64)| {
        let first = admitted.partition_point(|then| then + WINDOW <= *at);
        n + 1 - first
    };
    let most = admitted.iter().enumerate().map(since).max();
    most.unwrap_or_default() as u64
}

/// The most in any second and the total, for each schedule and algorithm, in Markdown.
///
/// # Panics
///
/// If an algorithm admits more than its bound, or the sliding log is not exact.
pub fn table() -> String {
    let names = CONTENDERS.iter().map(|contender| contender.name);
    let head: Vec<&str> = ["schedule", "calls", "exact log"]
        .into_iter()
        .chain(names)
        .collect();
    let mut table = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    let cell = |admitted: &[u64]| format!(" {} / {} |", most(admitted), admitted.len());
    for Schedule { name, calls } in schedules() {
        let exact = exact_log(&calls);
        let _ = write!(table, "| {name} | {} |{}", calls.len(), cell(&exact));
        for contender in &CONTENDERS {
            let admitted = admitted(contender.algorithm, &calls);
            assert!(
                most(&admitted) <= contender.bound,
                "{name}: {} admitted {} in a second, expected at most {}",
                contender.name,
                most(&admitted),
                contender.bound
            );
            if contender.algorithm == Algorithm::SlidingLog {
                assert_eq!(admitted, exact, "{name}: the sliding log is not exact");
            }
            table.push_str(&cell(&admitted));
        }
        table.push('\n');
    }
    table
}
