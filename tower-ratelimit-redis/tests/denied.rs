//! Refusals that a process remembers: what it does not ask the store meanwhile, and what makes it ask again.
#![cfg(all(feature = "redis", feature = "sqlite"))]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod fixture;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use fixture::{CLUSTER, SINGLE, Shared, config};
use redis_conn::{
    Audit, Backend, BackendBuilder, Config, ErrorKind, ManualClock, State, raw::sql::Connection,
};
use tempfile::TempDir;
use testkit::{Fault, FaultProxy, RedisServer, Servers, USER, until};
use tokio::sync::MutexGuard;
use tower_ratelimit_redis::{Decision, Limiter, OnFailure, Policy, RateLimitError, Source};

/// Longer than anything that works takes, so that it decides no test.
const LONG: Duration = Duration::from_secs(20);
/// No test takes as long, so a refusal is over before only where somebody tells.
const DAY: Duration = Duration::from_secs(24 * 3_600);
const MICRO: Duration = Duration::from_micros(1);
/// For how long a refusal is remembered where nobody could tell.
const DEAF: Duration = Duration::from_secs(1);

fn audit() -> Audit {
    Audit::new("test", "to begin anew")
}

fn limit(max: u64) -> Policy {
    Policy::new("api").limit(max, DAY).build().unwrap()
}

/// Nobody but the store decides.
fn limiter(backend: &Backend) -> Limiter {
    let limiter = Limiter::builder(backend).timeout(LONG);
    limiter.on_failure(OnFailure::Closed).build().unwrap()
}

/// It remembers nothing, and tells others all the same.
fn forgetful(backend: &Backend) -> Limiter {
    let limiter = Limiter::builder(backend).timeout(LONG).denied_capacity(0);
    limiter.on_failure(OnFailure::Closed).build().unwrap()
}

async fn on(builder: BackendBuilder, config: Config) -> Backend {
    let backend = builder.redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

/// A process that remembers, whose time stands until it is moved, and another one that tells it.
struct Two {
    clock: Arc<ManualClock>,
    backend: Backend,
    here: Limiter,
    there: Limiter,
    subjects: AtomicU32,
}

impl Two {
    fn of(clock: Arc<ManualClock>, here: Backend, there: &Backend) -> Self {
        Self {
            clock,
            here: limiter(&here),
            there: forgetful(there),
            backend: here,
            subjects: AtomicU32::new(0),
        }
    }

    async fn on_redis(here: Config, there: Config) -> Self {
        let clock = Arc::new(ManualClock::new(1));
        let own = Backend::builder().clock(Arc::clone(&clock) as _);
        let (here, there) = (on(own, here).await, on(Backend::builder(), there).await);
        Self::of(clock, here, &there)
    }

    /// Somebody of whom nothing was counted yet.
    fn somebody(&self) -> String {
        format!("user:{}", self.subjects.fetch_add(1, Ordering::Relaxed))
    }

    async fn try_check(&self, subject: &str, cost: u64) -> Result<Decision, RateLimitError> {
        self.here.check(&limit(3), subject, cost).await
    }

    async fn check(&self, subject: &str, cost: u64) -> Decision {
        self.try_check(subject, cost).await.unwrap()
    }

    /// Whether a refusal of this cost is remembered; if not, the store was asked.
    async fn is_remembered(&self, subject: &str, cost: u64) -> bool {
        let decision = self.check(subject, cost).await;
        match decision.source() {
            Source::Cached => true,
            Source::Store => false,
            other => panic!("expected the store or what it said, found {other:?}"),
        }
    }

    /// Somebody of whose three units two are spent, so that the two that are asked for were refused.
    async fn refused(&self) -> String {
        let subject = self.somebody();
        assert!(self.check(&subject, 2).await.is_allowed());
        let refused = self.check(&subject, 2).await;
        assert!(!refused.is_allowed());
        assert_eq!(refused.source(), Source::Store);
        assert!(self.is_remembered(&subject, 2).await);
        subject
    }

    async fn reset_there(&self, subject: &str) {
        let reset = self.there.reset(&limit(3), subject, &audit()).await;
        reset.unwrap();
    }

    async fn block_there(&self, subject: &str, time: Duration) {
        let block = self.there.block(&limit(3), subject, time, &audit()).await;
        block.unwrap();
    }

    /// Waits until it remembers for longer than it does where nobody could tell.
    async fn hears(&self) {
        let subject = self.somebody();
        self.check(&subject, 3).await;
        let hears = until(LONG, "a refusal that lasts", async || {
            self.clock.advance(2 * DEAF);
            self.is_remembered(&subject, 1).await
        });
        hears.await.unwrap();
    }

    async fn is_told(&self, subject: &str) {
        let told = until(LONG, "what the other one tells", async || {
            // Whoever found the store away asks it again after a while.
            self.clock.advance(Duration::from_millis(100));
            let decision = self.try_check(subject, 2).await;
            decision.is_ok_and(|decision| decision.is_allowed())
        });
        told.await.unwrap();
    }
}

/// Two processes on a store, and how to see whether they ask it.
trait Place {
    fn two(&self) -> &Two;

    async fn without_the_store(&self, calls: impl AsyncFnOnce());
}

struct OnServers {
    two: Two,
    servers: MutexGuard<'static, Servers>,
}

impl OnServers {
    async fn start(shared: &'static Shared) -> Self {
        let servers = shared.take().await;
        let two = Two::on_redis(config(&servers), config(&servers)).await;
        Self { two, servers }
    }

    async fn asked(&self) -> u64 {
        let mut asked = 0;
        for primary in self.servers.primaries().await {
            let calls = primary.command_calls().await;
            let scripts = ["evalsha", "eval"].map(|name| calls.get(name));
            asked += scripts.iter().flatten().map(|stat| stat.calls).sum::<u64>();
        }
        asked
    }
}

impl Place for OnServers {
    fn two(&self) -> &Two {
        &self.two
    }

    async fn without_the_store(&self, calls: impl AsyncFnOnce()) {
        let before = self.asked().await;
        assert!(before > 0, "whoever asks is counted");
        calls().await;
        assert_eq!(self.asked().await, before);
    }
}

/// Time is the clock's here, for both.
struct OnFile {
    two: Two,
    dir: TempDir,
}

impl OnFile {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(fixture::START));
        let process = async || {
            let builder = Backend::builder().clock(Arc::clone(&clock) as _);
            builder.sqlite(dir.path().join("test.db")).await.unwrap()
        };
        let (here, there) = (process().await, process().await);
        let two = Two::of(clock, here, &there);
        Self { two, dir }
    }
}

impl Place for OnFile {
    fn two(&self) -> &Two {
        &self.two
    }

    /// Nobody else decides while a transaction is under way.
    async fn without_the_store(&self, calls: impl AsyncFnOnce()) {
        let file = Connection::open(self.dir.path().join("test.db")).unwrap();
        file.busy_timeout(LONG).unwrap();
        file.execute_batch("BEGIN IMMEDIATE").unwrap();
        calls().await;
    }
}

mod cases {
    use super::*;

    pub(super) async fn a_refusal_is_remembered_until_its_wait_is_over(place: impl Place) {
        let two = place.two();
        two.hears().await;
        let subject = two.somebody();
        assert!(two.check(&subject, 2).await.is_allowed());
        let wait = two.check(&subject, 2).await.retry_after();
        place
            .without_the_store(async || {
                for cost in [2, 3] {
                    let again = two.check(&subject, cost).await;
                    assert!(!again.is_allowed());
                    assert_eq!(
                        (again.source(), again.retry_after()),
                        (Source::Cached, wait)
                    );
                }
            })
            .await;

        let less = two.check(&subject, 1).await;
        assert!(less.is_allowed(), "what costs less fits");
        assert_eq!(less.source(), Source::Store);

        two.clock.advance(wait.unwrap() - MICRO);
        let last = two.check(&subject, 2).await;
        let expected = (Source::Cached, Some(MICRO));
        assert_eq!((last.source(), last.retry_after()), expected);
        two.clock.advance(MICRO);
        assert!(!two.is_remembered(&subject, 2).await);
    }

    pub(super) async fn a_reset_elsewhere_is_heard(place: impl Place) {
        let two = place.two();
        two.hears().await;
        let (subject, other) = (two.refused().await, two.refused().await);
        two.reset_there(&subject).await;
        two.is_told(&subject).await;
        assert!(two.is_remembered(&other, 2).await, "who was not named");
    }

    pub(super) async fn the_end_of_a_block_elsewhere_is_heard(place: impl Place) {
        let two = place.two();
        two.hears().await;
        let subject = two.somebody();
        two.block_there(&subject, DAY).await;
        assert!(two.check(&subject, 2).await.is_blocked());
        // That it begins is told as well, which may come only now.
        let remembered = until(LONG, "a block that is remembered", async || {
            two.is_remembered(&subject, 2).await
        });
        remembered.await.unwrap();
        assert!(two.check(&subject, 2).await.is_blocked());
        two.block_there(&subject, Duration::ZERO).await;
        two.is_told(&subject).await;
    }

    pub(super) async fn a_block_of_whom_is_refused_is_heard(place: impl Place) {
        let two = place.two();
        two.hears().await;
        let subject = two.refused().await;
        two.block_there(&subject, DAY).await;
        let told = until(LONG, "the block", async || {
            two.check(&subject, 2).await.is_blocked()
        });
        told.await.unwrap();
    }
}

macro_rules! on_each_store {
    ($($case:ident)+) => {
        on_each_store!(@ single OnServers::start(&SINGLE), $($case)+);
        on_each_store!(@ cluster OnServers::start(&CLUSTER), $($case)+);
        on_each_store!(@ sqlite OnFile::start(), $($case)+);
    };
    (@ $module:ident $start:expr, $($case:ident)+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    cases::$case($start.await).await;
                }
            )+
        }
    };
}

on_each_store! {
    a_refusal_is_remembered_until_its_wait_is_over
    a_reset_elsewhere_is_heard
    the_end_of_a_block_elsewhere_is_heard
    a_block_of_whom_is_refused_is_heard
}

#[tokio::test]
async fn what_was_told_while_the_bus_was_lost_is_asked_for() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let config = |url: &str| Config::from_url(url).unwrap();
    let two = Two::on_redis(config(&proxy.url()), config(&server.url())).await;
    two.hears().await;
    let subject = two.refused().await;

    proxy.set(Fault::Refuse);
    proxy.reset_live();
    proxy.wait_for(|stats| stats.live == 0).await;
    two.reset_there(&subject).await;
    assert!(two.is_remembered(&subject, 2).await, "nobody told it");
    proxy.set(Fault::Pass);
    two.is_told(&subject).await;
}

async fn as_admin(server: &RedisServer, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    let mut admin = server.connection().await;
    let done = command.arg(&words[1..]).exec_async(&mut admin).await;
    done.unwrap();
}

/// The first process is [`USER`], whose channels a test may take away.
async fn two_users(server: &RedisServer) -> Two {
    let login = "towerkeep-limits:change-me-towerkeep-limits";
    let other = format!("redis://{login}@{}", server.addr());
    let other = Config::from_url(&other).unwrap();
    Two::on_redis(Config::from_url(&server.url()).unwrap(), other).await
}

#[tokio::test]
async fn who_may_not_listen_remembers_for_a_second() {
    let server = RedisServer::start().await;
    as_admin(&server, &["ACL", "SETUSER", USER, "resetchannels"]).await;
    let two = two_users(&server).await;

    let subject = two.refused().await;
    two.reset_there(&subject).await;
    two.clock.advance(DEAF - MICRO);
    assert!(two.is_remembered(&subject, 2).await);
    two.clock.advance(MICRO);
    let again = two.check(&subject, 2).await;
    assert!(again.is_allowed());
    assert_eq!(again.source(), Source::Store);

    // What was never granted is known to whoever asked for it.
    let refused = two.backend.bus().subscribe("limits").await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Server("NOPERM".into()));
    assert_eq!(two.backend.state(), State::Connected);

    // It took effect, but nobody else was told.
    let reset = two.here.reset(&limit(3), &*subject, &audit()).await;
    let RateLimitError::Store(error) = reset.unwrap_err() else {
        panic!("expected an error of the store");
    };
    assert_eq!(*error.kind(), ErrorKind::Server("NOPERM".into()));
    assert!(two.check(&subject, 3).await.is_allowed());
}

#[tokio::test]
async fn who_may_listen_no_more_remembers_for_a_second_until_it_may_again() {
    let server = RedisServer::start().await;
    let two = two_users(&server).await;
    two.hears().await;
    let subject = two.refused().await;

    as_admin(&server, &["ACL", "SETUSER", USER, "resetchannels"]).await;
    let ended = until(LONG, "the end of the subscription", async || {
        two.backend.state() == State::Error
    });
    ended.await.unwrap();
    two.reset_there(&subject).await;
    let asked = until(LONG, "a question", async || {
        two.clock.advance(DEAF);
        two.check(&subject, 2).await.is_allowed()
    });
    asked.await.unwrap();

    as_admin(&server, &["ACL", "SETUSER", USER, "&tk:b1:limits"]).await;
    two.hears().await;
    assert_eq!(two.backend.state(), State::Connected);
}

/// Else a release would end the block with the lease.
#[tokio::test]
async fn a_block_is_kept_by_whoever_stores_the_value_again() {
    let server = RedisServer::start().await;
    let backend = on(Backend::builder(), Config::from_url(&server.url()).unwrap()).await;
    let limiter = limiter(&backend);
    let policy = Policy::new("jobs").concurrency(1, Duration::from_secs(60));
    let policy = policy.build().unwrap();
    let held = limiter.acquire(&policy, "a", 1).await.unwrap();
    limiter.block(&policy, "a", DAY, &audit()).await.unwrap();
    held.permit().unwrap().release().await.unwrap();

    let key = server.keys().await.pop().unwrap();
    let mut left = redis::cmd("PTTL");
    let left: u64 = left
        .arg(key)
        .query_async(&mut server.connection().await)
        .await
        .unwrap();
    assert!(Duration::from_millis(left) > DAY - Duration::from_secs(3_600));
    assert!(limiter.peek(&policy, "a").await.unwrap().is_blocked());
}
