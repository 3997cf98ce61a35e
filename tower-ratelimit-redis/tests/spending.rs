//! What a process spends by itself: no window is exceeded by it, and nothing is lost or counted twice.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    convert::Infallible,
    future::Future,
    path::Path,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

use http::{Request, Response};
use redis_conn::{Audit, Backend, Clock as _, Config, ManualClock, State, SystemClock};
use testkit::{
    AfterDrop, Fault, FaultProxy, Fleet, Matching, RedisClock, RedisServer, process, until,
};
use tokio::task::JoinSet;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_ratelimit_redis::{
    Algorithm, Decision, Limiter, OnFailure, Policy, PolicyBuilder, PolicyError, RateLimitLayer,
    Source, Spending,
};

/// Long enough that no key of a frozen clock expires by the server's own.
const HOUR: Duration = Duration::from_secs(3_600);
const START: u64 = 1_700_000_000_123_457;
/// So that what is sent meanwhile waits.
const SLOW: Fault = Fault::Delay {
    base: Duration::from_millis(50),
    jitter: Duration::ZERO,
};
/// Reaching it means that what is awaited will not happen.
const HANG: Duration = Duration::from_secs(30);

/// Keeps the variables of the children from those of whoever runs the tests.
const PREFIX: &str = "TEST_";

/// A process as far as the store can tell: a backend and a limiter of its own. Time stands until it is set.
struct Process {
    clock: Arc<ManualClock>,
    backend: Backend,
    limiter: Limiter,
}

impl Process {
    async fn start(url: &str, time: &RedisClock) -> Self {
        Self::with(url, time, OnFailure::Closed).await
    }

    async fn with(url: &str, time: &RedisClock, on_failure: OnFailure) -> Self {
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        let backend = Backend::builder()
            .clock(Arc::clone(&clock) as _)
            .rewrite_scripts(time.rewriter())
            .redis(Config::from_url(url).unwrap())
            .unwrap();
        backend.ready(HANG).await.unwrap();
        let limiter = Limiter::builder(&backend)
            .on_failure(on_failure)
            .timeout(Duration::from_secs(10))
            // Each call is to be decided as it comes.
            .denied_capacity(0)
            .build()
            .unwrap();
        Self {
            clock,
            backend,
            limiter,
        }
    }

    async fn check(&self, policy: &Policy, cost: u64) -> Decision {
        self.limiter.check(policy, "a", cost).await.unwrap()
    }

    async fn left(&self, policy: &Policy) -> Vec<u64> {
        let seen = self.limiter.peek(policy, "a").await.unwrap();
        seen.limits().iter().map(|limit| limit.remaining).collect()
    }

    async fn close(&self) {
        self.backend.close(HANG).await.unwrap();
    }
}

struct Stand {
    server: RedisServer,
    time: RedisClock,
}

impl Stand {
    async fn start() -> Self {
        let time = RedisClock::new();
        time.set_micros(START);
        Self {
            server: RedisServer::start().await,
            time,
        }
    }

    async fn process(&self) -> Process {
        Process::start(&self.server.url(), &self.time).await
    }
}

fn named(max: u64) -> PolicyBuilder {
    Policy::new("test").limit(max, HOUR)
}

fn leased(max: u64, chunk: u64) -> Policy {
    named(max).spending(Spending::Lease(chunk)).build().unwrap()
}

fn behind(max: u64, interval: Duration) -> Policy {
    let spending = Spending::WriteBehind(interval);
    named(max).spending(spending).build().unwrap()
}

fn source(decision: &Decision) -> (Source, bool) {
    (decision.source(), decision.is_allowed())
}

async fn commands(server: &RedisServer) -> u64 {
    let calls = server.command_calls().await;
    let of = |name| calls.get(name).map_or(0, |stat| stat.calls);
    of("evalsha") + of("eval")
}

#[tokio::test]
async fn a_chunk_is_one_command_and_what_is_left_of_it_is_given_back_at_the_end() {
    let stand = Stand::start().await;
    let (one, other) = (stand.process().await, stand.process().await);
    let policy = named(100)
        .limit(1_000, 2 * HOUR)
        .spending(Spending::Lease(50))
        .build()
        .unwrap();
    assert_eq!(source(&one.check(&policy, 1).await), (Source::Store, true));
    stand.server.reset_stats().await;
    for _ in 0..9 {
        let decision = one.check(&policy, 2).await;
        assert_eq!(source(&decision), (Source::Leased, true));
        assert_eq!(decision.granted(), 2);
    }
    assert_eq!(commands(&stand.server).await, 0);
    assert_eq!(other.left(&policy).await, [50, 950], "31 are reserved");
    assert_eq!(
        source(&other.check(&policy, 50).await),
        (Source::Store, true)
    );
    assert!(!other.check(&policy, 1).await.is_allowed());

    one.close().await;
    assert_eq!(other.left(&policy).await, [31, 931]);
    assert!(other.check(&policy, 31).await.is_allowed());
    assert!(!other.check(&policy, 1).await.is_allowed());
}

/// Clients may choose them, and memory is bounded.
#[tokio::test]
async fn of_a_long_subject_nothing_is_spent_here() {
    let stand = Stand::start().await;
    let one = stand.process().await;
    for policy in [leased(100, 50), behind(100, HOUR)] {
        for (length, known) in [(256, true), (257, false)] {
            let subject = "a".repeat(length);
            for _ in 0..2 {
                one.limiter.check(&policy, &*subject, 1).await.unwrap();
            }
            let third = one.limiter.check(&policy, &*subject, 1).await.unwrap();
            assert_eq!(third.source() != Source::Store, known, "{length} bytes");
        }
    }
}

/// More than goes to the server at once.
#[tokio::test]
async fn what_is_let_go_is_released_before_the_end() {
    let stand = Stand::start().await;
    let proxy = FaultProxy::start(&stand.server).await;
    let one = Process::start(&proxy.url(), &stand.time).await;
    let other = stand.process().await;
    let held = Policy::new("held")
        .concurrency(1_000, HOUR)
        .build()
        .unwrap();
    let mut permits = Vec::new();
    for _ in 0..600 {
        let acquired = one.limiter.acquire(&held, "a", 1).await.unwrap();
        permits.push(acquired.permit().unwrap());
    }
    proxy.set(SLOW);
    drop(permits);
    one.close().await;
    assert_eq!(other.left(&held).await, [1_000]);
}

#[tokio::test]
async fn what_is_to_be_settled_is_settled_before_the_end() {
    let stand = Stand::start().await;
    let proxy = FaultProxy::start(&stand.server).await;
    let one = Process::start(&proxy.url(), &stand.time).await;
    let other = stand.process().await;
    let spent = Policy::new("spent").limit(1_000, HOUR).build().unwrap();
    let layer = RateLimitLayer::new(one.limiter.clone(), spent.clone()).settle(|_| Some(3));
    let answer = async |_: Request<String>| Ok::<_, Infallible>(Response::new(String::new()));
    let service = layer.layer(service_fn(answer));
    proxy.set(SLOW);
    let request = || service.clone().oneshot(Request::new(String::new()));
    let requests: JoinSet<_> = (0..20).map(|_| request()).collect();
    requests.join_all().await;
    one.close().await;
    // The subject of a request that nothing is known about.
    let seen = other.limiter.peek(&spent, "\0anonymous").await.unwrap();
    assert_eq!(seen.limits()[0].remaining, 1_000 - 20 * 3);
}

#[tokio::test]
async fn what_is_left_of_a_lapsed_chunk_is_given_back_by_itself() {
    let server = RedisServer::start().await;
    let connect = async || {
        let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
        backend.ready(HANG).await.unwrap();
        Limiter::builder(&backend)
            .timeout(Duration::from_secs(10))
            .build()
            .unwrap()
    };
    let (one, other) = (connect().await, connect().await);
    // A part of it is long enough for the first look, and short enough to wait for.
    let policy = Policy::new("test")
        .limit(100, Duration::from_secs(60))
        .limit(1_000, HOUR)
        .spending(Spending::Lease(50))
        .build()
        .unwrap();
    one.check(&policy, "a", 1).await.unwrap();
    let left = async || {
        let seen = other.peek(&policy, "a").await.unwrap();
        [0, 1].map(|limit: usize| seen.limits()[limit].remaining)
    };
    assert_eq!(left().await, [50, 950]);
    until(HANG, "the rest of the chunk", async || {
        left().await == [99, 999]
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_chunk_is_spent_no_longer_than_it_lasts() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let policy = leased(100, 10);
    process.check(&policy, 1).await;
    // The moment lies in a part of the window: this is the end of the next.
    let part = 3_600_000_000 / 32;
    let lasts = 2 * part - START % part;
    process.clock.advance(Duration::from_micros(lasts - 1));
    assert_eq!(
        source(&process.check(&policy, 1).await),
        (Source::Leased, true)
    );
    process.clock.advance(Duration::from_micros(1));
    stand.time.advance(Duration::from_micros(lasts));
    assert_eq!(
        source(&process.check(&policy, 1).await),
        (Source::Store, true)
    );
    assert_eq!(
        process.left(&policy).await,
        [100 - 2 - 10],
        "8 were given back"
    );
}

#[tokio::test]
async fn units_of_a_dead_process_count_for_a_window_and_two_parts_at_most() {
    let stand = Stand::start().await;
    let (url, time) = (stand.server.url(), stand.time.clone());
    let policy = leased(100, 50);
    let spent = policy.clone();
    // It ends with its runtime, and has no time to give anything back.
    let dying = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let process = Process::start(&url, &time).await;
            process.check(&spent, 1).await;
        });
    };
    tokio::task::spawn_blocking(dying).await.unwrap();
    let other = stand.process().await;
    assert_eq!(other.left(&policy).await, [50]);
    let (window, part) = (3_600_000_000, 3_600_000_000 / 32);
    let last_use = START + 2 * part - START % part - 1;
    stand.time.set_micros(last_use + window);
    assert_eq!(other.left(&policy).await, [50], "a window after that");
    stand.time.set_micros(START + window + 2 * part);
    assert_eq!(other.left(&policy).await, [100]);
}

#[tokio::test]
#[ignore = "the child of a_killed_process_gives_nothing_back"]
async fn reserving_child() {
    let backend = Backend::from_env_prefixed(PREFIX).await.unwrap();
    let limiter = Limiter::new(&backend);
    limiter.check(&leased(100, 50), "a", 1).await.unwrap();
    process::report("reserved");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_process_gives_nothing_back() {
    let stand = Stand::start().await;
    let fleet = Fleet::new("reserving_child").env("TEST_REDIS_URL", stand.server.url());
    let mut children = fleet.spawn(1).await;
    let mut child = children.remove(0);
    assert_eq!(child.next_result().await.as_deref(), Some("reserved"));
    child.kill();
    let backend = Backend::redis(Config::from_url(&stand.server.url()).unwrap()).unwrap();
    let seen = Limiter::new(&backend).peek(&leased(100, 50), "a").await;
    assert_eq!(seen.unwrap().limits()[0].remaining, 50);
}

#[tokio::test]
async fn policies_of_one_name_have_a_chunk_at_a_time() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let (wide, narrow) = (leased(100, 20), leased(30, 10));
    process.check(&wide, 1).await;
    let decision = process.check(&narrow, 1).await;
    assert_eq!(source(&decision), (Source::Store, true));
    assert_eq!(decision.limits()[0].limit, 30);
    assert_eq!(
        process.left(&wide).await,
        [100 - 1 - 10],
        "19 were given back"
    );
    for _ in 0..40 {
        process.check(&narrow, 1).await;
    }
    process.close().await;
    let other = stand.process().await;
    assert_eq!(
        (other.left(&wide).await, other.left(&narrow).await),
        (vec![70], vec![0])
    );
}

#[tokio::test]
async fn a_cost_that_no_chunk_has_is_reserved_or_decided_as_it_is() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let policy = leased(100, 10);
    // More than a chunk.
    let decision = process.check(&policy, 25).await;
    assert_eq!(
        (source(&decision), decision.granted()),
        ((Source::Store, true), 25)
    );
    assert_eq!(process.left(&policy).await, [75]);
    // More than what is left of one.
    process.check(&policy, 4).await;
    let decision = process.check(&policy, 7).await;
    assert_eq!(
        (source(&decision), decision.granted()),
        ((Source::Store, true), 7)
    );
    assert_eq!(process.left(&policy).await, [100 - 25 - 4 - 10]);
    // More than what is left of the limit: refused by the store, and nothing is reserved for nobody.
    let refused = process.check(&policy, 70).await;
    assert_eq!(source(&refused), (Source::Store, false));
    assert!(refused.retry_after() > Some(HOUR));
    // What this process has of it serves who asks for less.
    let decision = process.check(&policy, 64).await;
    assert_eq!(source(&decision), (Source::Leased, true));
    assert!(!process.check(&policy, 1).await.is_allowed());
    assert_eq!(process.left(&policy).await, [0]);
}

#[tokio::test]
async fn a_refusal_is_decided_and_charged_by_the_store() {
    let stand = Stand::start().await;
    let (one, other) = (stand.process().await, stand.process().await);
    let policy = leased(10, 10);
    one.check(&policy, 1).await;
    assert!(!other.check(&policy, 1).await.is_allowed());
    // No order of admissions and refusals may add up to more than the limit.
    let mut admitted = 1;
    for _ in 0..20 {
        for process in [&one, &other] {
            admitted += process.check(&policy, 1).await.granted();
        }
    }
    assert_eq!(admitted, 10);
}

#[tokio::test]
async fn leased_units_are_refunded_and_settled_where_they_were_charged() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let policy = leased(100, 20);
    process.check(&policy, 1).await;
    let decision = process.check(&policy, 10).await;
    assert_eq!(source(&decision), (Source::Leased, true));
    let limiter = &process.limiter;
    limiter.refund(&policy, "a", &decision, 4).await.unwrap();
    assert_eq!(process.left(&policy).await, [84]);
    let decision = process.check(&policy, 5).await;
    limiter.settle(&policy, "a", &decision, 2).await.unwrap();
    assert_eq!(process.left(&policy).await, [87]);
    let decision = process.check(&policy, 1).await;
    assert_eq!(source(&decision), (Source::Leased, true));
    limiter.settle(&policy, "a", &decision, 6).await.unwrap();
    assert_eq!(process.left(&policy).await, [82]);
    process.close().await;
    let other = stand.process().await;
    // 1 + 10 - 4 + 5 - 3 + 1 + 5
    assert_eq!(other.left(&policy).await, [85]);
}

#[tokio::test]
async fn who_comes_at_the_same_time_shares_one_chunk() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let policy = leased(1_000, 100);
    process.limiter.peek(&policy, "a").await.unwrap();
    stand.server.reset_stats().await;
    let mut asking = JoinSet::new();
    for _ in 0..100 {
        let (limiter, policy) = (process.limiter.clone(), policy.clone());
        asking.spawn(async move { limiter.check(&policy, "a", 1).await.unwrap() });
    }
    let decisions = asking.join_all().await;
    assert!(decisions.iter().all(Decision::is_allowed));
    let from_store = decisions.iter().filter(|d| d.source() == Source::Store);
    assert_eq!(from_store.count(), 1);
    assert_eq!(process.left(&policy).await, [900]);
}

/// Polls a call once, by which its commands are on their way, and gives it up.
fn give_up(call: impl Future) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(pin!(call).poll(&mut context).is_pending());
}

#[tokio::test]
async fn who_gives_up_loses_no_chunk_and_blocks_nobody() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let policy = leased(1_000, 100);
    give_up(process.limiter.check(&policy, "a", 1));
    // Two more wait for their turn, of whom one gives up.
    give_up(process.limiter.check(&policy, "a", 1));
    for _ in 0..99 {
        let decision = process.check(&policy, 1).await;
        assert_eq!(source(&decision), (Source::Leased, true));
    }
    assert_eq!(process.left(&policy).await, [900], "one chunk was reserved");
    // What another call left over fits no other, and is on its way back as the caller gives up.
    process.check(&policy, 50).await;
    give_up(process.limiter.check(&policy, "a", 60));
    process.check(&policy, 1).await;
    process.close().await;
    let other = stand.process().await;
    assert_eq!(other.left(&policy).await, [1_000 - 100 - 50 - 60 - 1]);
}

#[tokio::test]
async fn a_reset_and_a_block_end_what_this_process_has() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let audit = Audit::new("test", "to begin anew");
    for policy in [leased(100, 50), behind(100, HOUR)] {
        for _ in 0..10 {
            process.check(&policy, 1).await;
        }
        process.limiter.reset(&policy, "a", &audit).await.unwrap();
        assert_eq!(process.left(&policy).await, [100]);
        assert_eq!(
            source(&process.check(&policy, 1).await),
            (Source::Store, true)
        );
        assert_eq!(process.check(&policy, 1).await.granted(), 1);

        let block = process.limiter.block(&policy, "a", HOUR, &audit);
        block.await.unwrap();
        assert!(process.check(&policy, 1).await.is_blocked());
        process.limiter.reset(&policy, "a", &audit).await.unwrap();
    }
}

#[tokio::test]
async fn a_hundred_thousand_checks_cost_a_hundred_commands() {
    let server = RedisServer::start().await;
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(HANG).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    let policy = leased(1_000_000, 1_000);
    limiter.check(&policy, "b", 1).await.unwrap();
    server.reset_stats().await;
    for _ in 0..100_000 {
        assert!(limiter.check(&policy, "a", 1).await.unwrap().is_allowed());
    }
    let commands = commands(&server).await;
    // A chunk lasts for minutes, so one of them may lapse before it is spent.
    assert!((100..=103).contains(&commands), "{commands}");
}

#[test]
fn spending_that_cannot_be_is_refused() {
    let refused = |builder: PolicyBuilder, spending| {
        let built = builder.spending(spending).build();
        matches!(built, Err(PolicyError::InvalidSpending { .. }))
    };
    for chunk in [0, 101, u64::MAX] {
        assert!(refused(named(100), Spending::Lease(chunk)), "{chunk}");
    }
    assert!(refused(named(100).limit(9, 2 * HOUR), Spending::Lease(10)));
    for algorithm in [
        Algorithm::SlidingCounter,
        Algorithm::SlidingLog,
        Algorithm::Gcra { burst: 5 },
    ] {
        let policy = named(100).limit_by(algorithm, 100, 2 * HOUR);
        assert!(refused(policy, Spending::Lease(1)), "{algorithm:?}");
    }
    assert!(refused(named(100).concurrency(9, HOUR), Spending::Lease(1)));
    let written = Spending::WriteBehind;
    for interval in [
        Duration::ZERO,
        Duration::from_micros(999),
        HOUR + Duration::from_nanos(1),
    ] {
        assert!(refused(named(100), written(interval)), "{interval:?}");
    }
    assert!(refused(named(100).concurrency(9, HOUR), written(HOUR)));
    for allowed in [
        Spending::Exact,
        Spending::Lease(1),
        Spending::Lease(100),
        written(Duration::from_millis(1)),
        written(HOUR),
    ] {
        assert!(!refused(named(100), allowed), "{allowed:?}");
    }
}

#[tokio::test]
async fn what_is_written_behind_costs_no_command_and_is_told_at_the_end() {
    let stand = Stand::start().await;
    let (one, other) = (stand.process().await, stand.process().await);
    let policy = behind(100, HOUR);
    assert_eq!(source(&one.check(&policy, 1).await), (Source::Store, true));
    stand.server.reset_stats().await;
    for _ in 0..30 {
        let decision = one.check(&policy, 2).await;
        assert_eq!(source(&decision), (Source::Behind, true));
    }
    assert_eq!(commands(&stand.server).await, 0);
    assert_eq!(other.left(&policy).await, [99]);
    one.close().await;
    assert_eq!(other.left(&policy).await, [39]);
}

#[tokio::test]
async fn the_store_hears_after_the_interval_whoever_lives() {
    let stand = Stand::start().await;
    let (one, other) = (stand.process().await, stand.process().await);
    // The task sleeps for an hour already when somebody wants it sooner.
    let seldom = Policy::new("seldom")
        .limit(100, HOUR)
        .spending(Spending::WriteBehind(HOUR));
    let seldom = seldom.build().unwrap();
    one.check(&seldom, 1).await;
    let interval = Duration::from_millis(20);
    let policy = behind(100, interval);
    one.check(&policy, 1).await;
    for _ in 0..10 {
        one.check(&policy, 1).await;
    }
    one.clock.advance(interval);
    // Nobody calls any more, and nobody has the limiter.
    let Process { backend, .. } = one;
    until(HANG, "the counts", async || {
        other.left(&policy).await == [89]
    })
    .await
    .unwrap();
    drop(backend);
}

#[tokio::test]
async fn room_that_is_spent_is_refused_by_the_store() {
    let stand = Stand::start().await;
    let process = stand.process().await;
    let policy = behind(20, HOUR);
    for _ in 0..20 {
        assert!(process.check(&policy, 1).await.is_allowed());
    }
    let refused = process.check(&policy, 1).await;
    assert_eq!(source(&refused), (Source::Store, false));
    assert!(refused.retry_after() > Some(HOUR));
    assert_eq!(process.left(&policy).await, [0], "it was told of all first");
    // As many as there is room for, and units that are given back.
    let limiter = &process.limiter;
    let audit = Audit::new("test", "to begin anew");
    limiter.reset(&policy, "a", &audit).await.unwrap();
    process.check(&policy, 1).await;
    let decision = process.check(&policy, 9).await;
    limiter.refund(&policy, "a", &decision, 4).await.unwrap();
    let most = limiter.check_at_most(&policy, "a", 99).await.unwrap();
    assert_eq!(most.granted(), 20 - 1 - 5);
    assert_eq!(process.left(&policy).await, [0]);
}

#[tokio::test]
async fn each_process_admits_too_much_by_no_more_than_it_knew_to_be_left() {
    let stand = Stand::start().await;
    let (one, other) = (stand.process().await, stand.process().await);
    let policy = behind(20, HOUR);
    let mut admitted = [0, 0];
    for _ in 0..30 {
        for (process, admitted) in [&one, &other].into_iter().zip(&mut admitted) {
            *admitted += process.check(&policy, 1).await.granted();
        }
    }
    // The first call of the one was known to the other.
    assert!(admitted.iter().sum::<u64>() <= 39, "{admitted:?}");
    assert!(admitted.iter().all(|own| *own <= 20), "{admitted:?}");
    let told = other.limiter.check(&policy, "a", 1).await.unwrap();
    assert!(!told.is_allowed());
    one.close().await;
    other.close().await;
    let third = stand.process().await;
    let wide = behind(1_000, HOUR);
    let used = 1_000 - third.left(&wide).await[0];
    assert_eq!(used, admitted.iter().sum::<u64>(), "all of it is counted");
}

#[tokio::test]
async fn nothing_that_is_admitted_while_the_store_is_told_is_lost() {
    const TASKS: u64 = 16;
    const CHECKS: u64 = 500;
    let server = RedisServer::start().await;
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(HANG).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .timeout(Duration::from_secs(10))
        .on_failure(OnFailure::Closed)
        .build()
        .unwrap();
    let policy = behind(1_000_000, Duration::from_millis(1));
    let mut asking = JoinSet::new();
    for _ in 0..TASKS {
        let (limiter, policy) = (limiter.clone(), policy.clone());
        asking.spawn(async move {
            for number in 0..CHECKS {
                assert!(limiter.check(&policy, "a", 1).await.unwrap().is_allowed());
                // Those that cost more than what is left go to the store, while the others go on.
                if number % 50 == 0 {
                    let most = limiter.check_at_most(&policy, "a", 1).await;
                    assert_eq!(most.unwrap().granted(), 1);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    asking.join_all().await;
    backend.close(HANG).await.unwrap();
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    let seen = Limiter::new(&backend).peek(&policy, "a").await.unwrap();
    let used = 1_000_000 - seen.limits()[0].remaining;
    assert_eq!(used, TASKS * (CHECKS + CHECKS / 50));
}

#[tokio::test]
async fn who_gives_up_does_not_take_along_what_others_were_admitted() {
    let stand = Stand::start().await;
    let (one, other) = (stand.process().await, stand.process().await);
    let policy = behind(100, HOUR);
    let exact = Policy::new("exact").limit(100, HOUR).build().unwrap();
    for _ in 0..10 {
        one.check(&policy, 1).await;
    }
    // What is sent now waits for others first.
    stand.server.freeze();
    let mut holding = JoinSet::new();
    for number in 0..4 {
        let (limiter, exact) = (one.limiter.clone(), exact.clone());
        holding.spawn(async move { limiter.check(&exact, number.to_string(), 1).await });
    }
    tokio::task::yield_now().await;
    one.clock.advance(HOUR);
    give_up(one.limiter.check(&policy, "a", 1));
    stand.server.thaw();
    let decision = one.check(&policy, 1).await;
    assert_eq!(source(&decision), (Source::Behind, true));
    assert_eq!(other.left(&policy).await, [90]);
    one.close().await;
    assert_eq!(other.left(&policy).await, [89]);
}

#[tokio::test]
async fn what_may_have_been_told_is_not_told_again() {
    let stand = Stand::start().await;
    let proxy = FaultProxy::start(&stand.server).await;
    let on_failure = OnFailure::Local { share: 1.0 };
    let one = Process::with(&proxy.url(), &stand.time, on_failure).await;
    let other = stand.process().await;
    let interval = Duration::from_millis(20);
    let policy = behind(100, interval);
    for _ in 0..10 {
        assert!(one.check(&policy, 1).await.is_allowed());
    }
    // The server charges it, and nobody hears of that.
    proxy.set(Fault::DropReply {
        matching: Matching::Command("EVALSHA".to_owned()),
        after: AfterDrop::Close,
    });
    one.clock.advance(interval);
    proxy.wait_for(|stats| stats.dropped_replies > 0).await;
    proxy.set(Fault::Pass);
    one.backend.ready(HANG).await.unwrap();
    one.clock.advance(HOUR);
    until(HANG, "the store to decide", async || {
        one.check(&policy, 1).await.source() == Source::Store
    })
    .await
    .unwrap();
    one.close().await;
    let used = 100 - other.left(&policy).await[0];
    assert!((11..=12).contains(&used), "told once: {used}");
}

#[tokio::test]
async fn what_could_not_be_told_is_told_later_and_once() {
    let stand = Stand::start().await;
    let proxy = FaultProxy::start(&stand.server).await;
    let on_failure = OnFailure::Local { share: 0.2 };
    let one = Process::with(&proxy.url(), &stand.time, on_failure).await;
    let other = stand.process().await;
    let interval = Duration::from_millis(20);
    let policy = behind(100, interval);
    for _ in 0..15 {
        assert!(one.check(&policy, 1).await.is_allowed());
    }
    proxy.set(Fault::Refuse);
    proxy.reset_live();
    // What is sent on a connection that has ended may have been charged.
    let ended = async || one.backend.state() != State::Connected;
    until(HANG, "the end of the connection", ended)
        .await
        .unwrap();
    one.clock.advance(interval);
    // Of the share of 20 there are 15 gone.
    let mut local = 0;
    for _ in 0..20 {
        let decision = one.check(&policy, 1).await;
        assert_eq!(decision.source(), Source::Local);
        local += decision.granted();
    }
    assert_eq!(local, 5);
    assert_eq!(other.left(&policy).await, [99]);
    proxy.set(Fault::Pass);
    one.backend.ready(HANG).await.unwrap();
    one.clock.advance(HOUR);
    until(HANG, "the counts", async || {
        other.left(&policy).await == [85]
    })
    .await
    .unwrap();
    one.close().await;
    assert_eq!(other.left(&policy).await, [85]);
}

/// The limit of the processes that spend by themselves, and what each of them has at most.
const SHARED: u64 = 10_000;
const CHUNK: u64 = 50;
const PROCESSES: usize = 4;
const WINDOW: Duration = Duration::from_secs(3);

fn shared() -> Policy {
    Policy::new("shared")
        .limit(SHARED, WINDOW)
        .spending(Spending::Lease(CHUNK))
        .build()
        .unwrap()
}

/// When a call began and when it was decided, by the one clock of the host.
type Span = (u64, u64);

/// Asks without a pause over three windows at least, and until it was refused in each.
#[tokio::test]
#[ignore = "the child of the tests below"]
async fn spending_child() {
    let backend = Backend::from_env_prefixed(PREFIX).await.unwrap();
    backend.ready(HANG).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .on_failure(OnFailure::Closed)
        .timeout(HANG)
        .build()
        .unwrap();
    let policy = shared();
    process::report("ready");
    let begin = std::env::var("TEST_BEGIN").unwrap();
    // The parent creates it when all are ready.
    while !Path::new(&begin).exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let window = u64::try_from(WINDOW.as_micros()).unwrap();
    let (mut admitted, mut refused) = (Vec::new(), Vec::new());
    let begun = SystemClock.boot_micros();
    let mut windows = 0;
    loop {
        let before = SystemClock.boot_micros();
        assert!(before < begun + 20 * window, "it is never refused");
        let decision = limiter.check(&policy, "everybody", 1).await.unwrap();
        let after = SystemClock.boot_micros();
        if decision.is_allowed() {
            admitted.push((before, after));
            continue;
        }
        if decision.source() == Source::Store {
            refused.push((before, after));
            if before > begun + windows * window {
                windows += 1;
            }
        }
        if windows > 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let log = std::env::var("TEST_LOG").unwrap();
    for (kind, spans) in [("admitted", admitted), ("refused", refused)] {
        let lines: String = spans.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
        let number = std::env::var("TESTKIT_CHILD").unwrap();
        std::fs::write(Path::new(&log).join(format!("{kind}-{number}")), lines).unwrap();
    }
}

/// Lets all children begin at once and reads what they wrote.
async fn spent(fleet: Fleet) -> (Vec<Span>, Vec<Span>) {
    let dir = tempfile::tempdir().unwrap();
    let begin = dir.path().join("begin");
    let fleet = fleet.env("TEST_BEGIN", begin.display());
    let fleet = fleet.env("TEST_LOG", dir.path().display());
    let mut children = fleet.spawn(PROCESSES).await;
    for child in &mut children {
        assert_eq!(child.next_result().await.as_deref(), Some("ready"));
    }
    std::fs::write(&begin, []).unwrap();
    for child in children {
        child.finish().await;
    }
    let read = |kind: &str| {
        let files = (0..PROCESSES).map(|number| dir.path().join(format!("{kind}-{number}")));
        let text: String = files
            .map(|file| std::fs::read_to_string(file).unwrap())
            .collect();
        let span = |line: &str| {
            let (before, after) = line.split_once(' ').unwrap();
            (before.parse().unwrap(), after.parse().unwrap())
        };
        text.lines().map(span).collect()
    };
    (read("admitted"), read("refused"))
}

/// Whatever the machine does meanwhile: a call that has both of its times within an interval was decided in it.
fn assert_every_window_holds(admitted: &[Span]) {
    // The clocks of the host and of the server need not run at the same speed.
    let window = u64::try_from(WINDOW.as_micros()).unwrap() * 999 / 1_000;
    let mut spans = admitted.to_vec();
    spans.sort_unstable();
    let mut ends: Vec<u64> = spans.iter().map(|(_, after)| *after).collect();
    ends.sort_unstable();
    for (begin, end) in &spans {
        let within = ends.partition_point(|after| *after <= begin + window);
        assert!(within <= 10_000, "{within} in {window} us from {begin} on");
        // What began before the next does is not in its interval.
        let first = ends.binary_search(end).unwrap();
        ends.remove(first);
    }
}

/// A refusal means that so many are counted: all but what some process has of it was spent in a window and two parts.
fn assert_no_refusal_while_much_is_left(admitted: &[Span], refused: &[Span]) {
    let reach = u64::try_from(WINDOW.as_micros()).unwrap() * 35 / 32;
    let mut ends: Vec<u64> = admitted.iter().map(|(_, after)| *after).collect();
    let mut begins: Vec<u64> = admitted.iter().map(|(before, _)| *before).collect();
    ends.sort_unstable();
    begins.sort_unstable();
    assert!(!refused.is_empty());
    for (before, after) in refused {
        let too_early = ends.partition_point(|end| *end < before.saturating_sub(reach));
        let too_late = begins.len() - begins.partition_point(|begin| begin <= after);
        let used = admitted.len() - too_early - too_late;
        assert!(used >= 9_500, "refused when {used} were used");
    }
}

fn assert_spent_well((admitted, refused): (Vec<Span>, Vec<Span>)) {
    assert!(admitted.len() as u64 > 2 * SHARED);
    assert_every_window_holds(&admitted);
    assert_no_refusal_while_much_is_left(&admitted, &refused);
}

#[tokio::test]
async fn processes_that_lease_share_one_limit_on_redis() {
    let server = RedisServer::start().await;
    let fleet = Fleet::new("spending_child").env("TEST_REDIS_URL", server.url());
    assert_spent_well(spent(fleet).await);
}

#[tokio::test]
async fn processes_that_lease_share_one_limit_on_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.db");
    let fleet = Fleet::new("spending_child").env("TEST_SQLITE_PATH", path.display());
    assert_spent_well(spent(fleet).await);
}

#[test]
fn the_log_of_admissions_tells_a_window_that_is_exceeded() {
    let window = u64::try_from(WINDOW.as_micros()).unwrap();
    let full: Vec<Span> = (0..SHARED).map(|n| (n * 200, n * 200 + 50)).collect();
    assert_every_window_holds(&full);
    // Decided somewhere in a time that began before the window or ended after it: no proof.
    assert_every_window_holds(&[&full[..], &[(1, window * 2)]].concat());
    let exceeded = [&full[..], &[(window / 2, window / 2 + 1)]].concat();
    assert!(std::panic::catch_unwind(|| assert_every_window_holds(&exceeded)).is_err());
    let early = [(window / 4, window / 4)];
    let unused = std::panic::catch_unwind(|| assert_no_refusal_while_much_is_left(&full, &early));
    assert!(unused.is_err());
    assert_no_refusal_while_much_is_left(&full, &[(window - 1, window)]);
}
