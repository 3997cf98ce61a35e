//! What each algorithm is: its bytes, its clock, and one instant of it, on all three backends and on every topology of Redis.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::time::Duration;

use fixture::{Fixture, START, limiter};
use redis_conn::Audit;
use tower_ratelimit_redis::{Acquired, Algorithm, Decision, Limiter, Policy, WindowStart};

/// Long enough that no key of a frozen clock expires by the server's own.
const WINDOW: Duration = Duration::from_secs(3_600);
const HOUR: u64 = 3_600_000_000;
const HALF: u64 = HOUR / 2;

async fn check(limiter: &Limiter, policy: &Policy, cost: u64) -> Decision {
    limiter.check(policy, "a", cost).await.unwrap()
}

fn remaining(decision: &Decision) -> Vec<u64> {
    let limits = decision.limits().iter();
    limits.map(|limit| limit.remaining).collect()
}

/// An algorithm with the number under which it is stored.
const STORED: [(u8, Algorithm); 6] = [
    (1, Algorithm::StrictWindow),
    (2, Algorithm::SlidingCounter),
    (3, Algorithm::Gcra { burst: 9 }),
    (4, Algorithm::SlidingLog),
    (5, Algorithm::FixedWindow(WindowStart::Calendar)),
    (6, Algorithm::FixedWindow(WindowStart::FirstCall)),
];

/// How long one unit, or all, count.
fn span(kind: u8, window: u64) -> u64 {
    if kind == 3 { window / 9 } else { window }
}

/// What stands before the states of a counter of nine units in `window`.
fn of_limit(kind: u8, window: u64) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(span(kind, window).to_le_bytes());
    bytes
}

/// The state of that counter after two were charged at [`START`] and three more half an hour later, as version 1 stores it: later
/// versions have to read it.
fn state(kind: u8, window: u64) -> Vec<u8> {
    let later = START + HALF;
    let span = span(kind, window);
    let mut bytes = Vec::new();
    let number = |number: u64| number.to_le_bytes();
    let units = |units: u32| units.to_le_bytes();
    match kind {
        1 => {
            let bucket = |t: u64| t / window * 32 + t % window * 32 / window;
            bytes.extend(number(bucket(later)));
            // What was counted before the oldest bucket, and up to the end of each.
            bytes.extend(units(0));
            for slot in bucket(later) - 32..=bucket(later) + 1 {
                let sum =
                    u32::from(slot >= bucket(START)) * 2 + u32::from(slot >= bucket(later)) * 3;
                bytes.extend(units(sum));
            }
            bytes.extend(number(later));
        }
        2 => {
            let (first, last) = (START / window, later / window);
            bytes.extend(number(last));
            let (previous, current) = if first == last { (0, 5) } else { (2, 3) };
            bytes.extend([units(previous), units(current)].concat());
        }
        3 => {
            // Of what was spent at first, as much has refilled as fits into the time since.
            let full = (START + 2 * span).max(later) + 3 * span;
            bytes.extend([number(full), number(later)].concat());
        }
        4 => {
            bytes.extend(2_u16.to_le_bytes());
            bytes.extend(units(0));
            bytes.extend(number(START));
            bytes.extend(units(2));
            bytes.extend(number(later));
            bytes.extend(units(5));
        }
        5 => {
            assert_eq!(START / window, later / window);
            bytes.extend(number(later / window * window));
            bytes.extend(units(5));
        }
        _ => {
            bytes.extend(number(START));
            bytes.extend(units(5));
        }
    }
    bytes
}

/// What stands before the counters: nobody is blocked, and the policy is the first of its name.
fn head(counters: u8, keep: u64) -> Vec<u8> {
    let mut head = vec![1, counters, 0, 0, 0, 0];
    head.extend((keep.div_ceil(1_000) + 1).to_le_bytes());
    head.extend([0; 8]);
    head
}

/// The value of a policy with this one limit.
fn one(kind: u8, window: u64) -> Vec<u8> {
    let head = head(1, lifetime(kind, window));
    [head, of_limit(kind, window), state(kind, window)].concat()
}

/// For how long something may count.
fn lifetime(kind: u8, window: u64) -> u64 {
    match kind {
        1 => window + 2 * window.div_ceil(32),
        2 | 3 => 2 * window,
        _ => window,
    }
}

mod cases {
    use super::*;

    pub(super) async fn the_layouts_are_those_of_version_1(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for (kind, algorithm) in STORED {
            let policy = Policy::new("test").limit_by(algorithm, 9, WINDOW);
            let policy = policy.build().unwrap();
            fixture.set(START).await;
            check(&limiter, &policy, 2).await;
            fixture.set(START + HALF).await;
            check(&limiter, &policy, 3).await;
            let Some(stored) = fixture.stored().await else {
                return;
            };
            let value = one(kind, HOUR);
            assert_eq!(stored[0].1, value, "{algorithm:?}");
            let audit = Audit::new("test", "the next one");
            limiter.reset(&policy, "a", &audit).await.unwrap();
        }
    }

    /// Those that one version wrote, read by the other, and by the script that knows all.
    pub(super) async fn a_value_of_version_1_is_read(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let windows = (1..).map(|n| 100 * n * HOUR);
        let limits: Vec<_> = windows.zip(STORED).collect();
        let (mut value, mut states) = (head(6, 1_300 * HOUR), Vec::new());
        let mut policy = Policy::new("test");
        for (window, (kind, algorithm)) in limits.iter().rev() {
            value.extend(of_limit(*kind, *window));
            states.extend(state(*kind, *window));
            policy = policy.limit_by(*algorithm, 9, Duration::from_micros(*window));
        }
        value.extend(states);
        let policy = policy.build().unwrap();
        fixture.set(START + HALF).await;
        check(&limiter, &policy, 1).await;
        if fixture.stored().await.is_none() {
            return;
        }
        fixture.spoil(&value).await;
        let seen = limiter.peek(&policy, "a").await.unwrap();
        assert_eq!(remaining(&seen), [4; 6]);
        assert!(!check(&limiter, &policy, 5).await.is_allowed());
        assert_eq!(remaining(&check(&limiter, &policy, 4).await), [0; 6]);

        // Each by its own script, and as a counter that the policy of another has behind its own.
        for (window, (kind, algorithm)) in limits {
            let own = Policy::new("test");
            let own = own.limit_by(algorithm, 9, Duration::from_micros(window));
            fixture.spoil(&one(kind, window)).await;
            let decision = check(&limiter, &own.build().unwrap(), 3).await;
            assert_eq!(remaining(&decision), [1], "{algorithm:?}");
            assert_eq!(
                remaining(&check(&limiter, &policy, 1).await).iter().min(),
                Some(&0)
            );
        }
    }

    pub(super) async fn the_layout_of_permits_is_that_of_version_1(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = Policy::new("test").concurrency(9, WINDOW).build().unwrap();
        let mut permits = Vec::new();
        for (at, units) in [(START, 2), (START + HALF, 3)] {
            fixture.set(at).await;
            let acquired = limiter.acquire(&policy, "a", units).await.unwrap();
            assert!(matches!(acquired, Acquired::Held(_)));
            permits.push(acquired);
        }
        let Some(stored) = fixture.stored().await else {
            return;
        };
        let value = &stored[0].1;
        // Their names are random.
        let names = [&value[37..45], &value[57..65]];
        let mut expected = head(1, HOUR);
        expected.extend([7]);
        expected.extend(9_u32.to_le_bytes());
        expected.extend(HOUR.to_le_bytes());
        expected.extend(2_u16.to_le_bytes());
        for (name, (end, units)) in names.into_iter().zip([(HOUR, 2_u32), (HOUR + HALF, 3)]) {
            expected.extend(name);
            expected.extend((START + end).to_le_bytes());
            expected.extend(units.to_le_bytes());
        }
        assert_eq!(*value, expected);

        // One that another process holds.
        let mut other = expected[..37].to_vec();
        other[35] = 1;
        other.extend(77_u64.to_le_bytes());
        other.extend((START + HOUR).to_le_bytes());
        other.extend(8_u32.to_le_bytes());
        fixture.spoil(&other).await;
        let refused = limiter.acquire(&policy, "a", 2).await.unwrap();
        assert_eq!(remaining(refused.decision()), [1]);
        fixture.set(START + HOUR).await;
        let acquired = limiter.acquire(&policy, "a", 9).await.unwrap();
        assert!(acquired.permit().is_some());
    }

    pub(super) async fn a_bucket_holds_its_burst_at_one_instant(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for interval in [1, 3] {
            // The second one keeps the value where the server's own clock would let it expire.
            let policy = Policy::new(format!("every-{interval}"))
                .limit_by(
                    Algorithm::Gcra { burst: 1_000 },
                    1_000,
                    Duration::from_micros(1_000 * interval),
                )
                .limit_by(
                    Algorithm::Gcra { burst: 1 << 30 },
                    1_000,
                    Duration::from_secs(10),
                )
                .build()
                .unwrap();
            fixture.set(START).await;
            let mut admitted = 0;
            for _ in 0..1_100 {
                let decision = check(&limiter, &policy, 1).await;
                admitted += u64::from(decision.is_allowed());
                let wait = (!decision.is_allowed()).then(|| Duration::from_micros(interval));
                assert_eq!(decision.retry_after(), wait);
            }
            assert_eq!(admitted, 1_000, "one every {interval} us");
            for later in 1..=12 {
                fixture.set(START + later).await;
                let decision = check(&limiter, &policy, 1).await;
                assert_eq!(decision.is_allowed(), later % interval == 0, "{later}");
            }
        }
    }

    /// A step that only the finer of two counters can see, stored by a call that is refused.
    pub(super) async fn a_refusal_ages_what_other_policies_count(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let coarse = Policy::new("test").limit(1, 100 * WINDOW).build().unwrap();
        let fine = Policy::new("test").limit_by(Algorithm::SlidingLog, 5, WINDOW);
        let fine = fine.build().unwrap();
        check(&limiter, &coarse, 1).await;
        check(&limiter, &fine, 5).await;
        fixture.set(START - 10_000_000).await;
        assert!(!check(&limiter, &coarse, 1).await.is_allowed());
        fixture.set(START).await;
        let refused = check(&limiter, &fine, 1).await;
        let wait = WINDOW - Duration::from_secs(10);
        assert_eq!(refused.retry_after(), Some(wait), "ten seconds have passed");
    }

    pub(super) async fn a_clock_that_went_back_an_hour_locks_nobody_out(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let window = HOUR / 6;
        for (round, (kind, algorithm)) in (1..).zip(STORED) {
            // The wall clock of SQLite stands until it is as late as it was.
            if kind == 5 && fixture.backend().kind() == "sqlite" {
                continue;
            }
            let begin = START + round * 10 * HOUR;
            fixture.set(begin).await;
            let policy = Policy::new("test");
            let policy = policy.limit_by(algorithm, 9, Duration::from_micros(window));
            let policy = policy.build().unwrap();
            check(&limiter, &policy, 9).await;
            let back = begin - HOUR;
            fixture.set(back).await;
            let refused = check(&limiter, &policy, 1).await;
            assert!(!refused.is_allowed(), "what was charged stays charged");
            let wait = refused.retry_after().unwrap().as_micros() as u64;
            let most = match kind {
                1 => window * 33 / 32,
                // This window, and as the one before the next.
                2 => 2 * window,
                3 => window / 9 + 1,
                _ => window,
            };
            assert!(wait <= most, "{wait} by {algorithm:?}");
            // Refused calls do not prolong it.
            for part in 1..8 {
                fixture.set(back + wait * part / 8).await;
                let refused = check(&limiter, &policy, 1).await;
                let left = refused.retry_after().unwrap().as_micros() as u64;
                assert_eq!(left, wait - wait * part / 8, "{algorithm:?}");
            }
            fixture.set(back + wait).await;
            assert!(check(&limiter, &policy, 1).await.is_allowed());
            fixture.set(back + 2 * window + most).await;
            assert!(check(&limiter, &policy, 9).await.is_allowed());
            let audit = Audit::new("test", "the next one");
            limiter.reset(&policy, "a", &audit).await.unwrap();
        }
    }
}

backends::on_each_backend! {
    the_layouts_are_those_of_version_1
    a_value_of_version_1_is_read
    the_layout_of_permits_is_that_of_version_1
    a_bucket_holds_its_burst_at_one_instant
    a_refusal_ages_what_other_policies_count
    a_clock_that_went_back_an_hour_locks_nobody_out
}
