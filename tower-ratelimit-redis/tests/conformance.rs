//! What every store promises, on all three backends and on every topology of Redis with the same assertions.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::time::Duration;

use fixture::{Fixture, START};
use redis_conn::ErrorKind;
use tower_ratelimit_redis::{Decision, Limiter, OnFailure, Policy, RateLimitError, Source};

fn audit() -> redis_conn::Audit {
    redis_conn::Audit::new("test", "to begin anew")
}

/// Long enough that no key of a frozen clock expires by the server's own, and not divisible by 32.
const WINDOW: Duration = Duration::from_micros(3_600_000_007);
const HOUR: u64 = 3_600_000_007;

/// The length of what is stored before the counters, and of the counter of a strict window.
const HEAD: usize = 22;
const STRICT: usize = 156;
/// The head of a counter.
const COUNTER: usize = 13;

fn policy(max: u64) -> Policy {
    Policy::new("test").limit(max, WINDOW).build().unwrap()
}

/// A limiter that hides no failure of the store behind another decision.
fn limiter(fixture: &impl Fixture) -> Limiter {
    strict(fixture.backend())
}

fn strict(backend: &redis_conn::Backend) -> Limiter {
    Limiter::builder(backend)
        .on_failure(OnFailure::Closed)
        // The time of this process is not that of the store.
        .denied_capacity(0)
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap()
}

async fn check(limiter: &Limiter, policy: &Policy, subject: &str, cost: u64) -> Decision {
    let decision = limiter.check(policy, subject, cost).await.unwrap();
    assert_eq!(decision.source(), Source::Store);
    decision
}

fn remaining(decision: &Decision) -> Vec<u64> {
    decision
        .limits()
        .iter()
        .map(|limit| limit.remaining)
        .collect()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

mod cases {
    use super::*;

    pub(super) async fn a_subject_is_admitted_up_to_its_limit(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(3));
        for left in [2, 1, 0] {
            let decision = check(&limiter, &policy, "a", 1).await;
            assert!(decision.is_allowed());
            assert_eq!(decision.retry_after(), None);
            assert_eq!(remaining(&decision), [left]);
        }
        let refused = check(&limiter, &policy, "a", 1).await;
        assert!(!refused.is_allowed());
        assert_eq!(remaining(&refused), [0]);
        assert!(refused.retry_after() > Some(WINDOW));
    }

    pub(super) async fn subjects_and_policies_are_apart(fixture: &impl Fixture) {
        let (limiter, one) = (limiter(fixture), policy(1));
        let other = Policy::new("other").limit(1, WINDOW).build().unwrap();
        let long = "x".repeat(1_000);
        for subject in ["a", "b", "", "{a}", "a:test", &long] {
            for policy in [&one, &other] {
                assert!(check(&limiter, policy, subject, 1).await.is_allowed());
                assert!(!check(&limiter, policy, subject, 1).await.is_allowed());
            }
        }
    }

    pub(super) async fn handles_of_one_backend_share_their_counts(fixture: &impl Fixture) {
        let (first, second) = (limiter(fixture), limiter(fixture));
        assert!(check(&first, &policy(1), "a", 1).await.is_allowed());
        assert!(!check(&second, &policy(1), "a", 1).await.is_allowed());
        assert!(!check(&first.clone(), &policy(1), "a", 1).await.is_allowed());
    }

    pub(super) async fn all_limits_are_charged_or_none(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = Policy::new("test")
            .limit(2, WINDOW)
            .limit(3, 10 * WINDOW)
            .build()
            .unwrap();
        assert_eq!(remaining(&check(&limiter, &policy, "a", 2).await), [0, 1]);
        let before = fixture.stored().await;
        let refused = check(&limiter, &policy, "a", 1).await;
        assert!(!refused.is_allowed());
        assert_eq!(
            remaining(&refused),
            [0, 1],
            "the second had room and was not charged"
        );
        assert!(
            refused.retry_after() < Some(2 * WINDOW),
            "the first limit refused"
        );
        assert_eq!(fixture.stored().await, before);

        // Now the first has room again, and the second refuses two.
        fixture.set(START + 2 * HOUR).await;
        let refused = check(&limiter, &policy, "a", 2).await;
        assert!(!refused.is_allowed());
        assert_eq!(remaining(&refused), [2, 1]);
        assert!(
            refused.retry_after() > Some(8 * WINDOW),
            "the second limit refused"
        );
        assert_eq!(fixture.stored().await, before);
        assert_eq!(remaining(&check(&limiter, &policy, "a", 1).await), [1, 0]);
    }

    pub(super) async fn a_refusal_names_the_limits_without_room_for_the_cost(
        fixture: &impl Fixture,
    ) {
        let (limiter, short) = (limiter(fixture), Duration::from_secs(600));
        let limits = Policy::new("test").limit(5, short).limit(9, WINDOW);
        let policy = limits.build().unwrap();
        let names = |decision: &Decision| {
            let violated = decision.violated().map(|limit| limit.name.to_string());
            violated.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(&check(&limiter, &policy, "a", 2).await), "");
        let refused = check(&limiter, &policy, "a", 4).await;
        assert_eq!(
            (names(&refused).as_str(), remaining(&refused)),
            ("test-600s", vec![3, 7])
        );
        assert_eq!(names(&check(&limiter, &policy, "a", 3).await), "");
        assert_eq!(names(&check(&limiter, &policy, "a", 1).await), "test-600s");
        let refused = check(&limiter, &policy, "a", 5).await;
        assert_eq!(names(&refused).split(' ').count(), 2);
        assert_eq!(
            names(&limiter.peek(&policy, "a").await.unwrap()),
            "test-600s"
        );
        let some = limiter.check_at_most(&policy, "a", 9).await.unwrap();
        assert_eq!(names(&some), "test-600s");
        assert_eq!(
            names(&limiter.check_at_most(&policy, "b", 9).await.unwrap()),
            ""
        );
    }

    pub(super) async fn a_refusal_writes_nothing(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(1));
        check(&limiter, &policy, "a", 1).await;
        let before = fixture.stored().await;
        for step in 1..=33 {
            fixture.set(START + step * HOUR / 40).await;
            assert!(!check(&limiter, &policy, "a", 1).await.is_allowed());
        }
        assert_eq!(fixture.stored().await, before);
    }

    pub(super) async fn a_look_writes_nothing(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(2));
        let seen = limiter.peek(&policy, "a").await.unwrap();
        assert!(seen.is_allowed());
        assert_eq!(remaining(&seen), [2]);
        assert_eq!(seen.limits()[0].reset_after, Duration::ZERO);
        assert_eq!(remaining(&check(&limiter, &policy, "a", 0).await), [2]);
        assert!(
            fixture
                .stored()
                .await
                .is_none_or(|stored| stored.is_empty())
        );

        check(&limiter, &policy, "a", 2).await;
        let before = fixture.stored().await;
        let seen = limiter.peek(&policy, "a").await.unwrap();
        assert!(!seen.is_allowed() && seen.retry_after() > Some(WINDOW));
        assert_eq!(seen.source(), Source::Store);
        let nothing = check(&limiter, &policy, "a", 0).await;
        assert!(
            nothing.is_allowed(),
            "nothing fits even where nothing is left"
        );
        assert_eq!(fixture.stored().await, before);
    }

    pub(super) async fn a_reset_forgets_one_subject_under_one_policy(fixture: &impl Fixture) {
        let (limiter, one) = (limiter(fixture), policy(1));
        let other = Policy::new("other").limit(1, WINDOW).build().unwrap();
        for (policy, subject) in [(&one, "a"), (&one, "b"), (&other, "a")] {
            check(&limiter, policy, subject, 1).await;
        }
        limiter.reset(&one, "a", &audit()).await.unwrap();
        assert!(check(&limiter, &one, "a", 1).await.is_allowed());
        assert!(!check(&limiter, &one, "b", 1).await.is_allowed());
        assert!(!check(&limiter, &other, "a", 1).await.is_allowed());
        limiter.reset(&one, "never seen", &audit()).await.unwrap();
    }

    pub(super) async fn a_unit_expires_at_the_microsecond(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        for window in [HOUR, HOUR + 1, 3_200_000_000, 1_000_000_000_000] {
            let policy = Policy::new(format!("of-{window}"));
            let policy = policy
                .limit(1, Duration::from_micros(window))
                .build()
                .unwrap();
            for begin in [
                START,
                START + 1,
                START / window * window,
                START / window * window - 1,
            ] {
                fixture.set(begin).await;
                limiter.reset(&policy, "a", &audit()).await.unwrap();
                let admitted = check(&limiter, &policy, "a", 1).await;
                let wait = micros(admitted.limits()[0].reset_after);
                assert!(wait > window, "counted for the whole window");
                assert!((wait - 1) * 32 < window * 33, "and less than a 32nd more");

                for (after, admitted) in [(window, false), (wait - 1, false), (wait, true)] {
                    fixture.set(begin + after).await;
                    let seen = limiter.peek(&policy, "a").await.unwrap();
                    assert_eq!(seen.is_allowed(), admitted, "{after} of {window}");
                    let left = (!admitted).then(|| Duration::from_micros(wait - after));
                    assert_eq!(seen.retry_after(), left);
                    let decision = check(&limiter, &policy, "a", 1).await;
                    assert_eq!(decision.is_allowed(), admitted, "{after} of {window}");
                }
            }
        }
    }

    pub(super) async fn after_a_long_time_everything_is_free(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(4));
        for (round, after) in [0, 2 * HOUR, 100 * HOUR, 100_000 * HOUR]
            .into_iter()
            .enumerate()
        {
            fixture.set(START + after).await;
            let decision = check(&limiter, &policy, "a", 4).await;
            assert!(decision.is_allowed(), "round {round}");
        }
    }

    pub(super) async fn the_oldest_units_are_free_first(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(6));
        for (cost, after) in [(1, 0), (2, HOUR / 4), (3, HOUR / 2)] {
            fixture.set(START + after).await;
            assert!(check(&limiter, &policy, "a", cost).await.is_allowed());
        }
        let waits: Vec<Duration> = [
            check(&limiter, &policy, "a", 1).await,
            check(&limiter, &policy, "a", 2).await,
            check(&limiter, &policy, "a", 4).await,
        ]
        .iter()
        .map(|refused| refused.retry_after().unwrap())
        .collect();
        assert!(waits[0] > WINDOW / 2 && waits[0] < WINDOW * 3 / 4);
        assert!(waits[1] > WINDOW * 3 / 4 && waits[1] < WINDOW);
        assert!(waits[2] > WINDOW);
        fixture.set(START + HOUR / 2 + micros(waits[1])).await;
        assert_eq!(remaining(&check(&limiter, &policy, "a", 2).await), [1]);
    }

    pub(super) async fn a_clock_that_went_back_locks_nobody_out(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(2));
        check(&limiter, &policy, "a", 1).await;
        fixture.set(START + HOUR / 4).await;
        check(&limiter, &policy, "a", 1).await;

        let back = START - 1_000 * HOUR;
        fixture.set(back).await;
        let refused = check(&limiter, &policy, "a", 1).await;
        assert!(!refused.is_allowed(), "what was charged stays charged");
        let wait = micros(refused.retry_after().unwrap());
        assert!(wait < HOUR * 33 / 32, "but not longer than ever");
        assert!(wait > HOUR * 23 / 32, "and as old as it was");
        let before = fixture.stored().await;
        for step in 1..32 {
            fixture.set(back + step * wait / 32).await;
            let refused = check(&limiter, &policy, "a", 1).await;
            let left = Duration::from_micros(wait - step * wait / 32);
            assert_eq!(refused.retry_after(), Some(left), "refusals let it age");
        }
        assert_eq!(fixture.stored().await, before, "one refusal sets the clock");

        fixture.set(back + wait).await;
        assert!(check(&limiter, &policy, "a", 1).await.is_allowed());
        assert!(!check(&limiter, &policy, "a", 1).await.is_allowed());
    }

    pub(super) async fn a_cost_that_never_fits_is_an_error(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(5));
        for cost in [6, u64::from(u32::MAX) + 1, u64::MAX] {
            let error = limiter.check(&policy, "a", cost).await.unwrap_err();
            let RateLimitError::CostExceedsLimit { cost: found, limit } = error else {
                panic!("{error:?}");
            };
            assert_eq!((found, limit), (cost, 5));
        }
        assert_eq!(remaining(&check(&limiter, &policy, "a", 5).await), [0]);
    }

    pub(super) async fn the_largest_limit_is_counted(fixture: &impl Fixture) {
        let max = u64::from(u32::MAX);
        let (limiter, policy) = (limiter(fixture), policy(max));
        assert_eq!(
            remaining(&check(&limiter, &policy, "a", max - 1).await),
            [1]
        );
        fixture.set(START + HOUR / 2).await;
        assert!(!check(&limiter, &policy, "a", 2).await.is_allowed());
        assert!(check(&limiter, &policy, "a", 1).await.is_allowed());
        assert!(!check(&limiter, &policy, "a", max).await.is_allowed());
    }

    pub(super) async fn namespaces_are_apart(fixture: &impl Fixture) {
        let other = fixture.backend().namespace("other").unwrap();
        let (limiter, other) = (limiter(fixture), strict(&other));
        let policy = policy(1);
        assert!(check(&limiter, &policy, "a", 1).await.is_allowed());
        assert!(check(&other, &policy, "a", 1).await.is_allowed());
        other.reset(&policy, "a", &audit()).await.unwrap();
        assert!(!check(&limiter, &policy, "a", 1).await.is_allowed());
        assert!(check(&other, &policy, "a", 1).await.is_allowed());
    }

    pub(super) async fn another_policy_of_one_name_is_charged_too(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let old = Policy::new("test").limit(5, WINDOW).limit(9, 2 * WINDOW);
        let new = Policy::new("test").limit(100, 3 * WINDOW).limit(4, WINDOW);
        let (old, new) = (old.build().unwrap(), new.build().unwrap());
        check(&limiter, &old, "a", 3).await;
        assert_eq!(remaining(&limiter.peek(&new, "a").await.unwrap()), [100, 1]);
        let before = fixture.stored().await;
        assert!(!check(&limiter, &new, "a", 2).await.is_allowed());
        assert_eq!(fixture.stored().await, before);
        assert_eq!(remaining(&limiter.peek(&old, "a").await.unwrap()), [2, 6]);
        assert_eq!(remaining(&check(&limiter, &new, "a", 1).await), [99, 0]);
        assert_eq!(remaining(&check(&limiter, &old, "a", 1).await), [0, 4]);
        assert_eq!(remaining(&limiter.peek(&new, "a").await.unwrap()), [98, 0]);
    }

    /// As in a deployment that changes a window while both versions serve.
    pub(super) async fn policies_that_take_turns_keep_their_limits(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let old = Policy::new("test").limit(5, WINDOW).build().unwrap();
        let new = Policy::new("test").limit(7, 2 * WINDOW).build().unwrap();
        let mut admitted = [0, 0];
        for _ in 0..20 {
            for (policy, admitted) in [&old, &new].into_iter().zip(&mut admitted) {
                let decision = check(&limiter, policy, "a", 1).await;
                *admitted += u32::from(decision.is_allowed());
            }
        }
        // The first call of the old one found no ring of the new one to charge.
        assert_eq!(admitted, [3, 5], "5 by the old window, 8 - 1 by the new");

        // The old window is free again; what the new one counts was kept meanwhile, and decides.
        fixture.set(START + HOUR * 34 / 32).await;
        assert!(check(&limiter, &old, "a", 5).await.is_allowed());
        assert!(!check(&limiter, &new, "a", 1).await.is_allowed());
        fixture.set(START + 2 * HOUR * 34 / 32).await;
        assert_eq!(remaining(&check(&limiter, &new, "a", 1).await), [1]);
    }

    pub(super) async fn a_clock_that_went_back_locks_out_no_other_policy(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let old = Policy::new("test").limit(1, WINDOW).build().unwrap();
        let new = Policy::new("test").limit(1, 2 * WINDOW).build().unwrap();
        check(&limiter, &old, "a", 1).await;
        check(&limiter, &new, "a", 1).await;
        let back = START - 1_000 * HOUR;
        fixture.set(back).await;
        assert!(!check(&limiter, &old, "a", 1).await.is_allowed());
        fixture.set(back + HOUR * 34 / 32).await;
        assert!(limiter.peek(&old, "a").await.unwrap().is_allowed());
        assert!(!limiter.peek(&new, "a").await.unwrap().is_allowed());
        fixture.set(back + 2 * HOUR * 34 / 32).await;
        assert!(limiter.peek(&new, "a").await.unwrap().is_allowed());
    }

    pub(super) async fn a_bounded_number_of_other_windows_is_kept(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let of = |n: u32| Policy::new("test").limit(100, n * WINDOW).build().unwrap();
        for n in 1..=10 {
            assert!(check(&limiter, &of(n), "a", 1).await.is_allowed());
        }
        // Each came to the front, and the oldest fell off the end.
        if let Some(stored) = fixture.stored().await {
            assert_eq!(stored[0].1[..2], [1, 9]);
        }
        for n in 2..=10 {
            let left = u64::from(100 - (10 - n) - 1);
            assert_eq!(remaining(&limiter.peek(&of(n), "a").await.unwrap()), [left]);
        }
        assert_eq!(remaining(&limiter.peek(&of(1), "a").await.unwrap()), [100]);
        // What has expired is not kept.
        fixture.set(START + 9 * HOUR * 34 / 32).await;
        check(&limiter, &of(1), "a", 1).await;
        if let Some(stored) = fixture.stored().await {
            assert_eq!(stored[0].1[..2], [1, 2], "its own, and that of ten windows");
        }
    }

    pub(super) async fn another_window_counts_no_more_than_it_can(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let max = u64::from(u32::MAX);
        let old = Policy::new("test").limit(max, 2 * WINDOW).build().unwrap();
        let new = Policy::new("test").limit(max, WINDOW).build().unwrap();
        check(&limiter, &old, "a", max - 1).await;
        assert!(check(&limiter, &new, "a", 5).await.is_allowed());
        assert_eq!(remaining(&limiter.peek(&old, "a").await.unwrap()), [0]);
        fixture.set(START + 2 * HOUR * 34 / 32).await;
        assert!(check(&limiter, &old, "a", max).await.is_allowed());
    }

    pub(super) async fn a_permit_in_a_foreign_value_is_an_error(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = Policy::new("test").concurrency(5, WINDOW).build().unwrap();
        let acquired = limiter.acquire(&policy, "a", 1).await.unwrap();
        let permit = acquired.permit().unwrap();
        if fixture.stored().await.is_none() {
            return;
        }
        fixture.spoil(b"garbage").await;
        let before = fixture.stored().await;
        let released = permit.release().await;
        let Err(RateLimitError::Store(error)) = released else {
            panic!("{released:?}");
        };
        assert_eq!(*error.kind(), ErrorKind::Corrupt);
        assert_eq!(fixture.stored().await, before);
    }

    pub(super) async fn a_foreign_value_is_left_alone(fixture: &impl Fixture) {
        let (limiter, policy) = (limiter(fixture), policy(5));
        check(&limiter, &policy, "a", 1).await;
        let Some(good) = fixture.stored().await else {
            return;
        };
        let good = &good[0].1;
        let mut of_tomorrow = good.clone();
        of_tomorrow[0] = 2;
        let mut too_many = good.clone();
        too_many[1] = 2;
        let (short, long) = (&good[..good.len() - 1], [good, &[0][..]].concat());
        let head = &good[2..HEAD];
        let mut of_the_right_length = vec![0xAB; good.len()];
        of_the_right_length[..2].copy_from_slice(&[1, 1]);
        let span = HEAD + 5..HEAD + 13;
        let mut no_window = good.clone();
        no_window[span.clone()].fill(0);
        let mut too_long_a_window = good.clone();
        too_long_a_window[span].fill(0xFF);
        let (counter, state) = good[HEAD..].split_at(COUNTER);
        let mut twice = [&good[..HEAD], counter, counter, state, state].concat();
        twice[1] = 2;
        // Behind a ring of ours, one that is spoiled.
        let behind = |ring: &[u8]| {
            let (spoiled, behind) = ring[HEAD..].split_at(COUNTER);
            [&[1, 2], head, counter, spoiled, state, behind].concat()
        };
        let (spoiled_behind, empty_behind) = (behind(&of_the_right_length), behind(&no_window));
        let mut too_many_rings = [&[1, 17], head].concat();
        for n in 0..17 {
            let at = too_many_rings.len() + 5;
            too_many_rings.extend_from_slice(counter);
            too_many_rings[at] = too_many_rings[at].wrapping_add(n);
        }
        too_many_rings.extend_from_slice(&state.repeat(17));
        let values: [&[u8]; 14] = [
            &of_the_right_length,
            &no_window,
            &too_long_a_window,
            &twice,
            &spoiled_behind,
            &empty_behind,
            &too_many_rings,
            b"garbage",
            &[1],
            &[1, 0, 0],
            &of_tomorrow,
            &too_many,
            short,
            &long,
        ];
        for value in values {
            fixture.spoil(value).await;
            let before = fixture.stored().await;
            for found in [
                limiter.check(&policy, "a", 1).await,
                limiter.check(&policy, "a", 0).await,
                limiter.peek(&policy, "a").await,
            ] {
                let Err(RateLimitError::Store(error)) = found else {
                    panic!("{value:?} gave {found:?}");
                };
                assert_eq!(*error.kind(), ErrorKind::Corrupt);
            }
            assert_eq!(fixture.stored().await, before);
        }
        // The failure policy serves here too, and a reset repairs it.
        let local = Limiter::new(fixture.backend());
        let decision = local.check(&policy, "a", 1).await.unwrap();
        assert_eq!(decision.source(), Source::Local);
        limiter.reset(&policy, "a", &audit()).await.unwrap();
        assert_eq!(remaining(&check(&limiter, &policy, "a", 1).await), [4]);
    }

    /// The bytes that are stored by version 1: later versions have to read them.
    pub(super) async fn the_layout_is_that_of_version_1(fixture: &impl Fixture) {
        let limiter = limiter(fixture);
        let policy = Policy::new("test").limit(9, WINDOW).limit(9, 2 * WINDOW);
        let policy = policy.build().unwrap();
        let bucket = |window: u64, t: u64| t / window * 32 + t % window * 32 / window;
        check(&limiter, &policy, "user:42", 2).await;
        let later = START + HOUR / 2;
        fixture.set(later).await;
        check(&limiter, &policy, "user:42", 3).await;

        let Some(stored) = fixture.stored().await else {
            return;
        };
        let (mut heads, mut states) = (Vec::new(), Vec::new());
        for window in [HOUR, 2 * HOUR] {
            let (first, head) = (bucket(window, START), bucket(window, later));
            heads.push(1);
            heads.extend(9_u32.to_le_bytes());
            heads.extend(window.to_le_bytes());
            states.extend(head.to_le_bytes());
            // Nothing was counted before; then what was counted up to the end of each bucket, one of which lies ahead.
            states.extend(0_u32.to_le_bytes());
            for slot in (head - 32)..=head + 1 {
                let sum = u32::from(slot >= first) * 2 + u32::from(slot >= head) * 3;
                states.extend(sum.to_le_bytes());
            }
            states.extend(later.to_le_bytes());
        }
        // The revision, for how many milliseconds it is kept, and that nobody is blocked.
        let keep = 2 * HOUR + 2 * (2 * HOUR).div_ceil(32);
        let mut head = vec![1, 2, 0, 0, 0, 0];
        head.extend((keep.div_ceil(1_000) + 1).to_le_bytes());
        head.extend([0; 8]);
        let key = "tk:r1:{f49f43b3fe0e798d5e9998bc25e356f2}:test";
        let value = [&head[..], &heads, &states].concat();
        assert_eq!(stored, [(key.to_owned(), value)]);

        // Another policy of the name: its ring, and those behind it that it does not have.
        let other = Policy::new("test").limit(9, 2 * WINDOW).build().unwrap();
        check(&limiter, &other, "user:42", 1).await;
        let (first, second) = states.split_at_mut(STRICT);
        for ring in [&mut *first, &mut *second] {
            ring[STRICT - 16] += 1;
            ring[STRICT - 12] += 1;
        }
        let (head_of_first, head_of_second) = heads.split_at(COUNTER);
        let value = [&head[..], head_of_second, head_of_first, second, first].concat();
        let stored = fixture.stored().await.unwrap();
        assert_eq!(stored, [(key.to_owned(), value)]);

        // What has expired goes on to be a part of the sums: 2 and then 1, of 6 units of which 4 are counted.
        fixture.set(START + HOUR * 34 / 32).await;
        check(&limiter, &policy, "user:42", 1).await;
        let stored = &fixture.stored().await.unwrap()[0].1;
        let state = HEAD + 2 * COUNTER;
        assert_eq!((stored[state + 8], stored[state + STRICT - 12]), (2, 7));
    }
}

/// Redis forgets by itself.
#[tokio::test]
async fn an_expired_row_is_none_whatever_is_in_it() {
    let fixture = fixture::Sqlite::start().await;
    let (limiter, policy) = (limiter(&fixture), policy(5));
    check(&limiter, &policy, "a", 1).await;
    fixture.spoil(b"garbage").await;
    assert!(limiter.check(&policy, "a", 1).await.is_err());
    fixture.set(START + 2 * HOUR).await;
    assert_eq!(remaining(&check(&limiter, &policy, "a", 1).await), [4]);
}

/// The counts of a subject under a policy are one key, and the keys are on all nodes alike.
#[tokio::test]
async fn a_cluster_has_its_subjects_on_every_primary() {
    let fixture = fixture::Redis::start(&fixture::CLUSTER).await;
    let (limiter, policy) = (limiter(&fixture), policy(2));
    for subject in 0..90 {
        for left in [1, 0] {
            let decision = check(&limiter, &policy, &subject.to_string(), 1).await;
            assert_eq!(remaining(&decision), [left]);
        }
    }
    let spread = fixture.spread().await;
    assert_eq!((spread.len(), spread.iter().sum()), (3, 90_usize));
    assert!(spread.iter().all(|keys| *keys > 10), "{spread:?}");
}

backends::on_each_backend! {
    a_subject_is_admitted_up_to_its_limit
    subjects_and_policies_are_apart
    handles_of_one_backend_share_their_counts
    all_limits_are_charged_or_none
    a_refusal_names_the_limits_without_room_for_the_cost
    a_refusal_writes_nothing
    a_look_writes_nothing
    a_reset_forgets_one_subject_under_one_policy
    a_unit_expires_at_the_microsecond
    after_a_long_time_everything_is_free
    the_oldest_units_are_free_first
    a_clock_that_went_back_locks_nobody_out
    a_cost_that_never_fits_is_an_error
    the_largest_limit_is_counted
    namespaces_are_apart
    another_policy_of_one_name_is_charged_too
    policies_that_take_turns_keep_their_limits
    a_clock_that_went_back_locks_out_no_other_policy
    a_bounded_number_of_other_windows_is_kept
    another_window_counts_no_more_than_it_can
    a_permit_in_a_foreign_value_is_an_error
    a_foreign_value_is_left_alone
    the_layout_is_that_of_version_1
}
