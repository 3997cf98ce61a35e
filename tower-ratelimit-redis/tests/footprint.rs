//! What is left behind: nothing in Redis once it has expired, and no more than the capacity in process.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

mod fixture;

use std::time::Duration;

use fixture::SINGLE;
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use redis_conn::{Audit, Backend, Subject};
use testkit::{Fleet, Servers, process, until};
use tower_ratelimit_redis::{
    Algorithm, Limiter, OnFailure, Permit, Policy, RateLimitError, Revise, WindowStart,
};

const HANG: Duration = Duration::from_secs(20);
const OPERATIONS: usize = 10_000;
/// So often all keys are looked at.
const LOOK_EVERY: usize = 100;
/// The longest time in which anything counts: twice this window.
const LONGEST: Duration = Duration::from_millis(400);

/// Of every algorithm alone, and of some together; of one name, so that their counters meet.
fn policies() -> Vec<Policy> {
    let of = |millis| Duration::from_millis(millis);
    let algorithms = [
        Algorithm::StrictWindow,
        Algorithm::SlidingCounter,
        Algorithm::Gcra { burst: 5 },
        Algorithm::SlidingLog,
        Algorithm::FixedWindow(WindowStart::Calendar),
        Algorithm::FixedWindow(WindowStart::FirstCall),
    ];
    let alone = algorithms.map(|by| Policy::new("test").limit_by(by, 5, of(200)));
    let together = Policy::new("test")
        .limit(9, LONGEST)
        .concurrency(4, of(300));
    let together = algorithms
        .into_iter()
        .zip(1..)
        .fold(together, |policy, (by, n)| {
            policy.limit_by(by, 9, of(30 * n))
        });
    let held = Policy::new("test").concurrency(3, of(100));
    let revised = Policy::new("test").limit(7, of(200));
    let others = [
        together,
        held,
        revised.clone().revision(1, Revise::Proportional),
        revised.revision(2, Revise::Reset),
    ];
    let all = alone.into_iter().chain(others);
    all.map(|policy| policy.build().unwrap()).collect()
}

/// Keys that would never expire.
async fn eternal(server: &testkit::RedisServer) -> Vec<String> {
    let mut connection = server.connection().await;
    let mut eternal = Vec::new();
    for key in server.keys().await {
        let ttl = redis::cmd("PTTL").arg(&key).to_owned();
        let left: i64 = ttl.query_async(&mut connection).await.unwrap();
        // One that has expired since has another number.
        if left == -1 {
            eternal.push(key);
        }
    }
    eternal
}

/// One operation of a random kind; what it holds is held for a while.
async fn operate(
    limiter: &Limiter,
    policy: &Policy,
    (kind, subject, units): (u8, u8, u64),
    permits: &mut Vec<Permit>,
) -> Result<(), RateLimitError> {
    let subject = subject.to_string();
    let subject = subject.as_str();
    let audit = Audit::new("test", "at random");
    let decision = match limiter.check_at_most(policy, subject, units).await {
        Err(RateLimitError::NeedsPermit) => {
            let acquired = limiter.acquire(policy, subject, units.min(3)).await?;
            let decision = acquired.decision().clone();
            permits.extend(acquired.permit());
            decision
        }
        decision => decision?,
    };
    match kind {
        0 => limiter.refund(policy, subject, &decision, units).await,
        1 => limiter.settle(policy, subject, &decision, units / 2).await,
        2 => limiter.settle(policy, subject, &decision, units * 3).await,
        3 => limiter.block(policy, subject, LONGEST, &audit).await,
        4 => {
            let lift = Duration::ZERO;
            limiter.block(policy, subject, lift, &audit).await
        }
        5 => limiter.reset(policy, subject, &audit).await,
        6..12 if !permits.is_empty() => {
            let which = units as usize % permits.len();
            permits.swap_remove(which).release().await.map(drop)
        }
        _ => limiter.peek(policy, subject).await.map(drop),
    }
}

#[tokio::test]
async fn no_key_of_redis_stays() {
    let servers = SINGLE.take().await;
    let Servers::Single(server) = &*servers else {
        panic!("expected one server");
    };
    let backend = Backend::redis(fixture::config(&servers)).unwrap();
    backend.ready(HANG).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .on_failure(OnFailure::Closed)
        // The time of this process is not that of the store.
        .denied_capacity(0)
        .timeout(HANG)
        .build()
        .unwrap();
    let policies = policies();
    let random = (0..policies.len(), (0..30_u8, 0..50_u8, 1..9_u64));
    let mut runner = TestRunner::default();
    let (mut permits, mut most) = (Vec::new(), 0);
    for number in 0..OPERATIONS {
        let (policy, what) = random.new_tree(&mut runner).unwrap().current();
        operate(&limiter, &policies[policy], what, &mut permits)
            .await
            .unwrap();
        if number % LOOK_EVERY == 0 {
            assert_eq!(eternal(server).await, [""; 0], "after {number}");
            most = most.max(server.keys().await.len());
        }
    }
    assert!(most > 20, "{most} keys at once");
    drop(permits);
    let empty = async || server.keys().await.is_empty();
    until(HANG, "the end of all windows", empty).await.unwrap();
}

/// The most memory that this process ever had, in KiB.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

const CAPACITY: usize = 10_000;
/// Fewer where each takes ten times as long.
const DISTINCT: u64 = if cfg!(debug_assertions) {
    2_000_000
} else {
    10_000_000
};

/// Reports how much memory the first subjects took, so many as fit, and how much all others together.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "the child of the test below"]
async fn crowd() {
    let backend = Backend::memory();
    let limiter = Limiter::builder(&backend).local_capacity(CAPACITY);
    let limiter = limiter.build().unwrap();
    let policy = Policy::new("test").limit(5, Duration::from_secs(3_600));
    let policy = policy.build().unwrap();
    let come = async |subjects: std::ops::Range<u64>| {
        for subject in subjects {
            let subject = Subject::new(subject.to_le_bytes());
            limiter.check(&policy, subject, 1).await.unwrap();
        }
    };
    let full = 2 * CAPACITY as u64;
    let before = peak();
    come(0..full).await;
    let filled = peak();
    come(full..DISTINCT).await;
    process::report(filled - before);
    process::report(peak() - filled);
}

/// In a process of its own, since this one has other tests.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn millions_of_subjects_take_no_more_memory_than_fit() {
    let results = Fleet::new("crowd").run(1).await.remove(0);
    let kib: Vec<u64> = results.iter().map(|kib| kib.parse().unwrap()).collect();
    let [filled, more] = kib[..] else {
        panic!("two numbers: {results:?}");
    };
    assert!(filled < 16 * 1_024, "{filled} KiB for {CAPACITY} subjects");
    assert!(more < 1_024, "{more} KiB for those that do not fit");
}
