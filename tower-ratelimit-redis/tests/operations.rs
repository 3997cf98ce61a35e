//! What can be done to a limit besides checking it, on all three backends and on every topology of Redis with the same assertions.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use fixture::{Fixture, START, limiter};
use redis_conn::{Audit, Backend, ManualClock, Subject};
use testkit::{Fleet, Servers, Topology, process, until};
use tokio::task::JoinSet;
use tower_ratelimit_redis::{
    Acquired, Algorithm, Decision, Limiter, OnFailure, Permit, Policy, PolicyBuilder,
    RateLimitError, Revise, Source, Unit, WindowStart,
};

/// Long enough that no key of a frozen clock expires by the server's own.
const WINDOW: Duration = Duration::from_secs(3_600);
const HOUR: u64 = 3_600_000_000;
/// Reaching it means that what is awaited will not happen.
const HANG: Duration = Duration::from_secs(20);

/// All that count what was spent. Each is refunded from the same moment, so the bucket of a GCRA must not refill within a test.
const RATES: [Algorithm; 6] = [
    Algorithm::StrictWindow,
    Algorithm::SlidingCounter,
    Algorithm::Gcra { burst: 10 },
    Algorithm::SlidingLog,
    Algorithm::FixedWindow(WindowStart::Calendar),
    Algorithm::FixedWindow(WindowStart::FirstCall),
];

fn audit() -> Audit {
    Audit::new("test", "to begin anew")
}

/// Ten units an hour.
fn ten(algorithm: Algorithm) -> Policy {
    Policy::new("test")
        .limit_by(algorithm, 10, WINDOW)
        .build()
        .unwrap()
}

async fn check(limiter: &Limiter, policy: &Policy, cost: u64) -> Decision {
    let decision = limiter.check(policy, "a", cost).await.unwrap();
    assert_eq!(decision.source(), Source::Store);
    decision
}

async fn left(limiter: &Limiter, policy: &Policy) -> Vec<u64> {
    let seen = limiter.peek(policy, "a").await.unwrap();
    seen.limits().iter().map(|limit| limit.remaining).collect()
}

async fn acquire(limiter: &Limiter, policy: &Policy, units: u64) -> Option<Permit> {
    let acquired = limiter.acquire(policy, "a", units).await.unwrap();
    assert_eq!(acquired.decision().source(), Source::Store);
    acquired.permit()
}

/// Ten units that are held.
fn held() -> PolicyBuilder {
    Policy::new("test").concurrency(10, WINDOW)
}

mod cases {
    use super::*;

    pub(super) async fn as_many_units_as_there_is_room_for(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for algorithm in RATES {
            let policy = ten(algorithm);
            limiter.reset(&policy, "a", &audit()).await.unwrap();
            for (asked, granted) in [(4, 4), (u64::MAX, 6), (3, 0), (0, 0)] {
                let decision = limiter.check_at_most(&policy, "a", asked).await.unwrap();
                assert_eq!(decision.granted(), granted, "{asked} by {algorithm:?}");
                assert_eq!(decision.is_allowed(), granted > 0 || asked == 0);
            }
            assert_eq!(left(&limiter, &policy).await, [0]);
        }
        // The limit with the least room says how many, and all are charged as many.
        let policy = Policy::new("other").limit(10, WINDOW);
        let policy = policy.limit(7, 2 * WINDOW).build().unwrap();
        let decision = limiter.check_at_most(&policy, "a", 9).await.unwrap();
        assert_eq!(decision.granted(), 7);
        assert_eq!(left(&limiter, &policy).await, [3, 0]);
    }

    pub(super) async fn many_calls_at_once_are_decided_each_by_itself(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let of_many: Vec<Policy> = RATES.into_iter().map(ten).collect();
        for (number, policy) in of_many.iter().enumerate() {
            let subjects: Vec<Subject> = (0..40)
                .map(|n| Subject::from(format!("{number} {}", n % 4)))
                .collect();
            // Ten calls of each of four subjects: 1 + 2 + 3 fit, and 4 units more of what is left.
            let costs = (0..40_u64).map(|n| n / 4 % 3 + 1);
            let calls = subjects.iter().zip(costs.clone());
            let calls = calls.map(|(subject, cost)| (policy, subject.clone(), cost));
            let decisions = limiter.check_all(calls).await;
            assert_eq!(decisions.len(), 40);
            let mut granted = [0; 4];
            for (n, (decision, cost)) in decisions.into_iter().zip(costs).enumerate() {
                let decision = decision.unwrap();
                let units = if decision.is_allowed() { cost } else { 0 };
                assert_eq!(decision.granted(), units, "its own outcome");
                granted[n % 4] += units;
            }
            for (subject, granted) in subjects.iter().zip(granted) {
                let seen = limiter.peek(policy, subject.clone()).await.unwrap();
                assert_eq!(seen.limits()[0].remaining, 10 - granted);
                assert!(granted >= 8, "whoever fits is admitted");
            }
        }
        let [policy, ..] = &of_many[..] else {
            unreachable!()
        };
        let calls = [
            (policy, Subject::from("x"), 11),
            (policy, Subject::from("x"), 1),
        ];
        let decisions = limiter.check_all(calls).await;
        assert!(matches!(
            decisions[0],
            Err(RateLimitError::CostExceedsLimit { .. })
        ));
        assert!(decisions[1].as_ref().unwrap().is_allowed());
        assert!(limiter.check_all([]).await.is_empty());
    }

    pub(super) async fn a_refund_gives_back_what_counts_still(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for (round, algorithm) in (0..).zip(RATES) {
            // The wall clock of SQLite does not step back.
            let begin = START + round * 10 * HOUR;
            fixture.set(begin).await;
            let policy = ten(algorithm);
            limiter.reset(&policy, "a", &audit()).await.unwrap();
            let decision = check(&limiter, &policy, 6).await;
            let refund = |units| limiter.refund(&policy, "a", &decision, units);
            refund(2).await.unwrap();
            assert_eq!(left(&limiter, &policy).await, [6], "{algorithm:?}");
            // Not more than was granted, however often.
            refund(u64::MAX).await.unwrap();
            refund(u64::MAX).await.unwrap();
            assert_eq!(left(&limiter, &policy).await, [10], "{algorithm:?}");

            // Late: what is charged by then was charged by others.
            let decision = check(&limiter, &policy, 6).await;
            fixture.set(begin + 2 * HOUR + HOUR / 2).await;
            check(&limiter, &policy, 6).await;
            limiter.refund(&policy, "a", &decision, 6).await.unwrap();
            if !matches!(algorithm, Algorithm::Gcra { .. }) {
                assert_eq!(left(&limiter, &policy).await, [4], "{algorithm:?}");
            }
        }
    }

    /// More policies of one name than are kept of others.
    pub(super) async fn a_refund_keeps_the_count_of_its_own_policy(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let many = (1..=8).fold(Policy::new("test"), |policy, n| {
            policy.limit(100, n * WINDOW)
        });
        let many = many.build().unwrap();
        let other = |n| Policy::new("test").limit(5, n * WINDOW).build().unwrap();
        let (first, second) = (other(20), other(21));
        let charged = check(&limiter, &first, 5).await;
        check(&limiter, &second, 5).await;
        check(&limiter, &many, 1).await;
        limiter.refund(&first, "a", &charged, 1).await.unwrap();
        assert_eq!(left(&limiter, &first).await, [0]);
        assert_eq!(left(&limiter, &second).await, [0]);
    }

    pub(super) async fn what_many_tasks_charge_and_give_back_adds_up(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = Policy::new("test").limit(100, WINDOW);
        let policy = policy.limit_by(Algorithm::SlidingLog, 150, 2 * WINDOW);
        let policy = policy.build().unwrap();
        let mut tasks = JoinSet::new();
        for task in 0..16_u64 {
            let (limiter, policy) = (limiter.clone(), policy.clone());
            tasks.spawn(async move {
                let mut kept = 0;
                for step in 0..30_u64 {
                    let cost = (task + step) % 7;
                    let decision = match step % 2 {
                        0 => limiter.check(&policy, "a", cost).await.unwrap(),
                        _ => limiter.check_at_most(&policy, "a", cost).await.unwrap(),
                    };
                    let granted = decision.granted();
                    let back = (task * step) % (granted + 1);
                    let settled = match step % 2 {
                        0 => limiter.refund(&policy, "a", &decision, back).await,
                        _ => {
                            limiter
                                .settle(&policy, "a", &decision, granted - back)
                                .await
                        }
                    };
                    settled.unwrap();
                    kept += granted - back;
                }
                kept
            });
        }
        let kept: u64 = tasks.join_all().await.into_iter().sum();
        assert!(kept > 0);
        assert_eq!(left(&limiter, &policy).await, [100 - kept, 150 - kept]);
    }

    pub(super) async fn a_refusal_has_nothing_to_refund(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = ten(Algorithm::StrictWindow);
        check(&limiter, &policy, 10).await;
        let refused = check(&limiter, &policy, 5).await;
        let before = fixture.stored().await;
        limiter.refund(&policy, "a", &refused, 5).await.unwrap();
        assert_eq!(left(&limiter, &policy).await, [0]);
        assert_eq!(fixture.stored().await, before);
        // Neither has what was reset meanwhile.
        limiter.reset(&policy, "a", &audit()).await.unwrap();
        let decision = check(&limiter, &policy, 5).await;
        limiter.reset(&policy, "a", &audit()).await.unwrap();
        limiter.refund(&policy, "a", &decision, 5).await.unwrap();
        assert_eq!(fixture.stored().await.unwrap_or_default(), []);
    }

    pub(super) async fn a_cost_is_settled_both_ways(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for algorithm in RATES {
            let policy = ten(algorithm);
            for (actual, remaining, allowed) in
                [(0, 10, true), (3, 7, true), (5, 5, true), (25, 0, false)]
            {
                limiter.reset(&policy, "a", &audit()).await.unwrap();
                let decision = check(&limiter, &policy, 5).await;
                limiter
                    .settle(&policy, "a", &decision, actual)
                    .await
                    .unwrap();
                let seen = limiter.peek(&policy, "a").await.unwrap();
                assert_eq!(seen.limits()[0].remaining, remaining, "{algorithm:?}");
                assert_eq!(seen.is_allowed(), allowed);
            }
            // What was used beyond the limit has to expire, or to refill, too.
            let refused = check(&limiter, &policy, 1).await;
            let wait = refused.retry_after().unwrap();
            assert!(wait > Duration::ZERO && wait <= 2 * WINDOW, "{algorithm:?}");
        }
    }

    pub(super) async fn a_block_refuses_every_call(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for algorithm in RATES {
            fixture.set(START).await;
            let policy = ten(algorithm);
            limiter.reset(&policy, "a", &audit()).await.unwrap();
            check(&limiter, &policy, 1).await;
            let block = |time| {
                let audit = audit();
                let limiter = &limiter;
                let policy = &policy;
                async move { limiter.block(policy, "a", time, &audit).await.unwrap() }
            };
            block(5 * WINDOW).await;
            let blocked = check(&limiter, &policy, 1).await;
            assert!(blocked.is_blocked() && !blocked.is_allowed());
            assert_eq!(blocked.retry_after(), Some(5 * WINDOW));
            assert_eq!(blocked.limits()[0].remaining, 9, "{algorithm:?}");
            assert!(!check(&limiter, &policy, 0).await.is_allowed());
            let most = limiter.check_at_most(&policy, "a", 1).await.unwrap();
            assert_eq!((most.granted(), most.is_allowed()), (0, false));
            assert!(limiter.check(&policy, "b", 1).await.unwrap().is_allowed());

            // To the microsecond, also where nothing else is counted any more.
            for (after, allowed) in [(5 * HOUR - 1, false), (5 * HOUR, true)] {
                fixture.set(START + after).await;
                let seen = limiter.peek(&policy, "a").await.unwrap();
                assert_eq!((seen.is_allowed(), seen.is_blocked()), (allowed, !allowed));
            }
            fixture.set(START).await;
            block(Duration::ZERO).await;
            assert!(check(&limiter, &policy, 1).await.is_allowed(), "lifted");
            block(WINDOW).await;
            limiter.reset(&policy, "a", &audit()).await.unwrap();
            assert!(check(&limiter, &policy, 1).await.is_allowed(), "forgotten");
        }
    }

    pub(super) async fn a_block_outlasts_what_else_is_done(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let (day, long) = (24 * WINDOW, 24 * HOUR);
        let of = |revision| {
            let policy = held().limit(10, WINDOW);
            policy.revision(revision, Revise::Reset).build().unwrap()
        };
        let permit = acquire(&limiter, &of(0), 3).await.unwrap();
        limiter.block(&of(0), "a", day, &audit()).await.unwrap();
        // Each writes the value again.
        assert!(permit.release().await.unwrap());
        assert!(fixture.lasts(long).await, "after a release");
        assert!(acquire(&limiter, &of(1), 1).await.is_none());
        assert!(fixture.lasts(long).await, "after a revision");
        let rate = Policy::new("test").limit(10, 2 * WINDOW).build().unwrap();
        fixture.set(START - HOUR / 2).await;
        assert!(check(&limiter, &rate, 1).await.is_blocked());
        assert!(fixture.lasts(long).await, "after the clock went back");
    }

    pub(super) async fn a_clock_that_went_back_prolongs_no_block(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = ten(Algorithm::StrictWindow);
        fixture.set(START + 100 * HOUR).await;
        check(&limiter, &policy, 1).await;
        let audit = audit();
        let block = limiter.block(&policy, "a", 2 * WINDOW, &audit);
        block.await.unwrap();
        for passed in [0, HOUR, 2 * HOUR - 1] {
            fixture.set(START + passed).await;
            let refused = check(&limiter, &policy, 1).await;
            assert!(refused.is_blocked());
            let left = Duration::from_micros(2 * HOUR - passed);
            assert_eq!(refused.retry_after(), Some(left));
        }
        fixture.set(START + 2 * HOUR).await;
        assert!(check(&limiter, &policy, 10).await.is_allowed());
    }

    pub(super) async fn a_block_does_not_prolong_what_is_counted(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = ten(Algorithm::StrictWindow);
        let decision = check(&limiter, &policy, 1).await;
        let keep = |stored: fixture::Stored| stored[0].1[6..14].to_vec();
        let before = fixture.stored().await.map(keep);
        let day = 24 * WINDOW;
        limiter.block(&policy, "a", day, &audit()).await.unwrap();
        limiter.settle(&policy, "a", &decision, 2).await.unwrap();
        assert!(fixture.lasts(24 * HOUR).await);
        fixture.set(START + 24 * HOUR).await;
        check(&limiter, &policy, 1).await;
        assert_eq!(fixture.stored().await.map(keep), before, "as it was");
    }

    pub(super) async fn a_quota_of_ones_own(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for algorithm in RATES {
            let more = match algorithm {
                Algorithm::Gcra { .. } => Algorithm::Gcra { burst: 15 },
                other => other,
            };
            // A bucket refills at the rate of the limit, so that is the same.
            let rate = if more == algorithm { 15 } else { 10 };
            let quota = Policy::new("test").limit_by(more, rate, WINDOW);
            let (usual, quota) = (ten(algorithm), quota.build().unwrap());
            limiter.reset(&usual, "a", &audit()).await.unwrap();
            assert!(check(&limiter, &quota, 12).await.is_allowed());
            assert_eq!(left(&limiter, &usual).await, [0], "{algorithm:?}");
            assert!(!check(&limiter, &usual, 1).await.is_allowed());
            assert_eq!(left(&limiter, &quota).await, [3], "{algorithm:?}");
            assert!(check(&limiter, &quota, 3).await.is_allowed());
        }
    }

    pub(super) async fn a_higher_revision_applies_its_change_once(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for algorithm in RATES {
            for (change, remaining) in [
                (Revise::Keep, 14),
                (Revise::Reset, 20),
                (Revise::Proportional, 8),
            ] {
                let wide = match algorithm {
                    Algorithm::Gcra { .. } => Algorithm::Gcra { burst: 20 },
                    other => other,
                };
                let rate = if wide == algorithm { 20 } else { 10 };
                let old = ten(algorithm);
                let new = Policy::new("test").limit_by(wide, rate, WINDOW);
                let new = new.revision(1, change).build().unwrap();
                limiter.reset(&old, "a", &audit()).await.unwrap();
                check(&limiter, &old, 6).await;

                // A look changes nothing.
                assert_eq!(left(&limiter, &new).await, [remaining], "{algorithm:?}");
                assert_eq!(left(&limiter, &old).await, [4], "{algorithm:?}");
                let first = check(&limiter, &new, 1).await;
                assert_eq!(first.limits()[0].remaining, remaining - 1, "{algorithm:?}");
                // The old one decides by its own limit, and rewrites nothing; the new one does not begin again.
                let used = 20 - remaining + 1;
                for round in 1..=3 {
                    let before = left(&limiter, &new).await;
                    assert_eq!(before, [20 - used - 2 * (round - 1)], "{algorithm:?}");
                    let old = limiter.check_at_most(&old, "a", 1).await.unwrap();
                    let new = limiter.check_at_most(&new, "a", 2 - old.granted()).await;
                    assert_eq!(old.granted() + new.unwrap().granted(), 2);
                }
            }
        }
    }

    pub(super) async fn a_refused_call_begins_a_revision_too(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let old = ten(Algorithm::StrictWindow);
        let new = Policy::new("test").limit(5, WINDOW);
        let new = new.revision(7, Revise::Proportional).build().unwrap();
        check(&limiter, &old, 10).await;
        // Half of the limit is all of the new one.
        assert!(!check(&limiter, &new, 1).await.is_allowed());
        assert_eq!(left(&limiter, &old).await, [5]);
        assert!(!check(&limiter, &new, 1).await.is_allowed());
        assert_eq!(left(&limiter, &old).await, [5], "once");
    }

    pub(super) async fn revisions_that_take_turns_keep_the_larger_limit(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for change in [Revise::Keep, Revise::Reset, Revise::Proportional] {
            for (first, second) in [(10, 25), (25, 10)] {
                fixture.set(START).await;
                let old = Policy::new("test").limit(first, WINDOW).build().unwrap();
                let new = Policy::new("test").limit(second, WINDOW);
                let new = new.revision(1, change).build().unwrap();
                limiter.reset(&old, "a", &audit()).await.unwrap();
                check(&limiter, &new, 1).await;
                let mut log = vec![START];
                for step in 0..400 {
                    let now = START + step * HOUR / 100;
                    fixture.set(now).await;
                    let policy = if step % 2 == 0 { &old } else { &new };
                    if check(&limiter, policy, 1).await.is_allowed() {
                        log.push(now);
                    }
                    let within = log.iter().filter(|at| now - **at <= HOUR).count();
                    assert!(within <= 25, "{within} by {change:?}");
                }
                assert!(log.len() > 80, "{} by {change:?}", log.len());
            }
        }
    }

    pub(super) async fn a_permit_is_needed_where_units_are_held(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = held().limit(20, WINDOW).build().unwrap();
        let check = limiter.check(&policy, "a", 1).await;
        let most = limiter.check_at_most(&policy, "a", 1).await;
        for found in [check, most] {
            assert!(matches!(found, Err(RateLimitError::NeedsPermit)));
        }
        assert_eq!(left(&limiter, &policy).await, [10, 20]);
    }

    pub(super) async fn units_are_held_until_they_are_released(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = held().build().unwrap();
        let seven = acquire(&limiter, &policy, 7).await.unwrap();
        let state = &seven.decision().limits()[0];
        assert_eq!((state.limit, state.remaining), (10, 3));
        assert_eq!(state.unit, Unit::ConcurrentRequests);
        assert_eq!(&*state.name, "test-concurrency");

        let refused = limiter.acquire(&policy, "a", 4).await.unwrap();
        let Acquired::Refused(refused) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refused.retry_after(), None, "nobody can tell");
        let three = acquire(&limiter, &policy, 3).await.unwrap();
        assert!(acquire(&limiter, &policy, 1).await.is_none());
        let other = limiter.acquire(&policy, "b", 10).await.unwrap();
        assert!(other.permit().is_some(), "of another subject");

        assert!(seven.release().await.unwrap());
        assert_eq!(left(&limiter, &policy).await, [7]);
        drop(three);
        let free = async || left(&limiter, &policy).await == [10];
        until(HANG, "the release of what was dropped", free)
            .await
            .unwrap();
    }

    pub(super) async fn what_is_held_is_neither_refunded_nor_settled(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = held().limit(20, WINDOW).build().unwrap();
        let permit = acquire(&limiter, &policy, 4).await.unwrap();
        let decision = permit.decision().clone();
        limiter.refund(&policy, "a", &decision, 1).await.unwrap();
        assert_eq!(left(&limiter, &policy).await, [6, 17]);
        limiter.settle(&policy, "a", &decision, 9).await.unwrap();
        assert_eq!(left(&limiter, &policy).await, [6, 12]);
        assert!(permit.release().await.unwrap());
        assert_eq!(left(&limiter, &policy).await, [10, 12]);
    }

    pub(super) async fn a_permit_and_a_window_are_had_together(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = held().limit(12, 2 * WINDOW).build().unwrap();
        let ten = acquire(&limiter, &policy, 10).await.unwrap();
        assert_eq!(left(&limiter, &policy).await, [0, 2]);
        assert!(acquire(&limiter, &policy, 1).await.is_none());
        assert_eq!(left(&limiter, &policy).await, [0, 2], "neither is charged");
        assert!(ten.release().await.unwrap());
        assert!(acquire(&limiter, &policy, 3).await.is_none());
        assert_eq!(left(&limiter, &policy).await, [10, 2], "neither is charged");
        let two = acquire(&limiter, &policy, 2).await.unwrap();
        assert!(two.release().await.unwrap());
        assert_eq!(left(&limiter, &policy).await, [10, 0], "a window goes on");
    }

    /// Renewals are an hour away, so to the store the holder is gone.
    pub(super) async fn a_lease_ends_and_a_late_release_does_nothing(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = held().build().unwrap();
        let gone = acquire(&limiter, &policy, 10).await.unwrap();
        fixture.set(START + HOUR - 1).await;
        assert!(acquire(&limiter, &policy, 1).await.is_none());
        fixture.set(START + HOUR).await;
        let next = acquire(&limiter, &policy, 10).await.unwrap();
        assert!(!gone.release().await.unwrap(), "it was lost");
        assert_eq!(
            left(&limiter, &policy).await,
            [0],
            "nobody else's is released"
        );
        assert!(next.release().await.unwrap());
    }

    pub(super) async fn a_clock_that_went_back_prolongs_no_lease(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = held().build().unwrap();
        let gone = acquire(&limiter, &policy, 10).await.unwrap();
        fixture.set(START - 100 * HOUR).await;
        assert!(acquire(&limiter, &policy, 1).await.is_none());
        fixture.set(START - 99 * HOUR).await;
        assert!(acquire(&limiter, &policy, 10).await.is_some());
        drop(gone);
    }

    /// The clock of this process, by which permits are renewed, goes on; that of the store stands.
    pub(super) async fn a_renewal_prolongs_and_does_not_resurrect(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        // Renewed 20 times a second. The window keeps the value where the server's own clock would let it expire.
        let lease = Duration::from_millis(150);
        let policy = Policy::new("test").concurrency(10, lease);
        let policy = policy.limit(1_000, WINDOW).build().unwrap();
        let permit = acquire(&limiter, &policy, 4).await.unwrap();
        // In memory that is for the test with a clock that both go by.
        if fixture.stored().await.is_some() {
            for round in 1..=3 {
                let before = fixture.stored().await;
                fixture.set(START + round * 100_000).await;
                let renewed = async || fixture.stored().await != before;
                until(HANG, "a renewal", renewed).await.unwrap();
            }
            assert_eq!(left(&limiter, &policy).await[0], 6);
            // On a slow machine a renewal may come late, and says then that it is held.
            let held = async || !permit.is_lost();
            until(HANG, "a permit that is held", held).await.unwrap();
        }

        fixture.set(START + HOUR / 2).await;
        let lost = async || permit.is_lost();
        until(HANG, "a renewal that comes late", lost)
            .await
            .unwrap();
        assert_eq!(left(&limiter, &policy).await[0], 10);
        let all = acquire(&limiter, &policy, 10).await.unwrap();
        assert!(!permit.release().await.unwrap());
        assert_eq!(left(&limiter, &policy).await[0], 0);
        drop(all);
    }

    /// Acquired, given up, dropped and released in turns.
    pub(super) async fn permits_of_many_tasks_are_never_too_many_and_none_is_left(
        fixture: &impl Fixture,
    ) {
        let limiter = limiter(fixture);
        let policy = held().build().unwrap();
        let held = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for task in 0..16_u64 {
            let (limiter, policy, held) = (limiter.clone(), policy.clone(), Arc::clone(&held));
            tasks.spawn(async move {
                for step in 0..30 {
                    let units = 1 + (task + step) % 3;
                    let acquire = limiter.acquire(&policy, "a", units);
                    let permit = if (task + step) % 4 == 0 {
                        // Given up at its first await point, if it has any.
                        let mut acquire = std::pin::pin!(acquire);
                        let first =
                            std::future::poll_fn(|cx| Poll::Ready(acquire.as_mut().poll(cx)));
                        match first.await {
                            Poll::Ready(acquired) => acquired.unwrap().permit(),
                            Poll::Pending => None,
                        }
                    } else {
                        acquire.await.unwrap().permit()
                    };
                    let Some(permit) = permit else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    assert!(held.fetch_add(units, Ordering::SeqCst) + units <= 10);
                    tokio::task::yield_now().await;
                    held.fetch_sub(units, Ordering::SeqCst);
                    if step % 2 == 0 {
                        assert!(permit.release().await.unwrap(), "released before");
                    }
                }
            });
        }
        tasks.join_all().await;
        let free = async || left(&limiter, &policy).await == [10];
        until(HANG, "all places", free).await.unwrap();
    }

    pub(super) async fn a_permit_outlives_the_handles_of_its_limiter(fixture: &impl Fixture) {
        let (its, limiter) = (limiter(fixture), limiter(fixture));
        let policy = Policy::new("test").concurrency(10, Duration::from_millis(150));
        let policy = policy.limit(1_000, WINDOW).build().unwrap();
        let permit = acquire(&its, &policy, 4).await.unwrap();
        drop(its);
        if fixture.stored().await.is_some() {
            for round in 1..=2 {
                let before = fixture.stored().await;
                fixture.set(START + round * 100_000).await;
                let renewed = async || fixture.stored().await != before;
                until(HANG, "a renewal", renewed).await.unwrap();
            }
        }
        assert_eq!(left(&limiter, &policy).await[0], 6);
        drop(permit);
        let free = async || left(&limiter, &policy).await[0] == 10;
        until(HANG, "the release of what was dropped", free)
            .await
            .unwrap();
    }

    pub(super) async fn a_call_waits_until_it_is_admitted(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = Policy::new("test").limit(1, Duration::from_millis(20));
        // The window keeps the value where the server's own clock would let it expire.
        let policy = policy.limit(100, WINDOW).build().unwrap();
        check(&limiter, &policy, 1).await;
        // At once where the deadline comes first.
        let short = Duration::from_millis(5);
        let refused = limiter.until_ready(&policy, "a", 1, short).await.unwrap();
        assert!(!refused.is_allowed());
        let mut waiting = std::pin::pin!(limiter.until_ready(&policy, "a", 1, HANG));
        let (pace, mut now) = (Duration::from_millis(5), START);
        let admitted = loop {
            match tokio::time::timeout(pace, &mut waiting).await {
                Ok(admitted) => break admitted,
                Err(_) => now += 5_000,
            }
            fixture.set(now).await;
        };
        assert!(now > START + 20_000, "not before there is room");
        assert!(admitted.unwrap().is_allowed());
        assert_eq!(left(&limiter, &policy).await, [0, 98]);
        let never = limiter.until_ready(&policy, "a", 2, HANG).await;
        assert!(matches!(
            never,
            Err(RateLimitError::CostExceedsLimit { .. })
        ));
    }
}

backends::on_each_backend! {
    as_many_units_as_there_is_room_for
    many_calls_at_once_are_decided_each_by_itself
    a_refund_gives_back_what_counts_still
    a_refund_keeps_the_count_of_its_own_policy
    what_many_tasks_charge_and_give_back_adds_up
    a_refusal_has_nothing_to_refund
    a_cost_is_settled_both_ways
    a_block_refuses_every_call
    a_block_outlasts_what_else_is_done
    a_clock_that_went_back_prolongs_no_block
    a_block_does_not_prolong_what_is_counted
    a_quota_of_ones_own
    a_higher_revision_applies_its_change_once
    a_refused_call_begins_a_revision_too
    revisions_that_take_turns_keep_the_larger_limit
    a_permit_is_needed_where_units_are_held
    units_are_held_until_they_are_released
    what_is_held_is_neither_refunded_nor_settled
    a_permit_and_a_window_are_had_together
    a_lease_ends_and_a_late_release_does_nothing
    a_clock_that_went_back_prolongs_no_lease
    a_renewal_prolongs_and_does_not_resurrect
    permits_of_many_tasks_are_never_too_many_and_none_is_left
    a_permit_outlives_the_handles_of_its_limiter
    a_call_waits_until_it_is_admitted
}

#[tokio::test(start_paused = true)]
async fn a_permit_in_memory_is_renewed_while_it_lives() {
    let clock = Arc::new(ManualClock::new(START));
    let backend = Backend::builder().clock(Arc::clone(&clock) as _);
    let limiter = strict(&backend.memory().unwrap());
    let (lease, step) = (Duration::from_millis(150), Duration::from_millis(10));
    let policy = held_for(lease);
    let permit = acquire(&limiter, &policy, 4).await.unwrap();
    for _ in 0..100 {
        clock.advance(step);
        tokio::time::sleep(step).await;
        assert_eq!(left(&limiter, &policy).await, [6]);
    }
    // On a slow machine a renewal may come late, and says then that it is held.
    let held = async || !permit.is_lost();
    until(HANG, "a permit that is held", held).await.unwrap();
    assert!(permit.release().await.unwrap());
}

fn held_for(lease: Duration) -> Policy {
    Policy::new("test").concurrency(10, lease).build().unwrap()
}

/// Keeps the variables of the children from those of whoever runs the tests.
const PREFIX: &str = "TEST_";
const LEASE: Duration = Duration::from_secs(1);

fn of_processes() -> Policy {
    held_for(LEASE)
}

fn strict(backend: &Backend) -> Limiter {
    Limiter::builder(backend)
        .on_failure(OnFailure::Closed)
        // The time of this process is not that of the store.
        .denied_capacity(0)
        .timeout(HANG)
        .build()
        .unwrap()
}

/// Holds five units, which it renews, until it is killed.
#[tokio::test]
#[ignore = "the child of the tests below"]
async fn holder() {
    let backend = Backend::from_env_prefixed(PREFIX).await.unwrap();
    backend.ready(HANG).await.unwrap();
    let permit = acquire(&strict(&backend), &of_processes(), 5).await;
    assert!(permit.is_some());
    process::report("holds");
    std::future::pending::<()>().await;
}

/// All units are free after one lease, and not before the holder was killed.
async fn killed(backend: Backend, fleet: Fleet) {
    let (limiter, policy) = (strict(&backend), of_processes());
    let mut holder = fleet.spawn(1).await.remove(0);
    assert_eq!(holder.next_result().await.as_deref(), Some("holds"));
    let five = acquire(&limiter, &policy, 5).await.unwrap();
    assert!(acquire(&limiter, &policy, 1).await.is_none());
    drop(five);
    holder.kill();
    let killed = tokio::time::Instant::now();
    let mut ten = None;
    let free = async || {
        ten = acquire(&limiter, &policy, 10).await;
        ten.is_some()
    };
    until(HANG, "the end of the lease", free).await.unwrap();
    // No bound on a busy machine, but by then nothing else than the lease can have ended it.
    println!("free after {:?}", killed.elapsed());
}

#[tokio::test]
async fn what_a_killed_process_held_on_redis_is_free_after_a_lease() {
    let servers: Servers = Topology::Single.start().await;
    let variables = servers.env().into_iter();
    let fleet = variables.fold(Fleet::new("holder"), |fleet, (name, value)| {
        fleet.env(format!("{PREFIX}{name}"), value)
    });
    let backend = Backend::redis(fixture::config(&servers)).unwrap();
    backend.ready(HANG).await.unwrap();
    killed(backend, fleet).await;
}

#[tokio::test]
async fn what_a_killed_process_held_on_one_file_is_free_after_a_lease() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.db");
    let fleet = Fleet::new("holder").env("TEST_SQLITE_PATH", path.display());
    killed(Backend::sqlite(&path).await.unwrap(), fleet).await;
}
