//! Every family of the table is there, counts what it says, and there is no other.

#![cfg(all(feature = "redis", feature = "metrics"))]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::pending,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::FutureExt as _;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use redis_conn::{Audit, Backend, Clock, Config, ManualClock};
use testkit::RedisServer;
use tower_distlock::{
    CronLock, Election, LockError, LockGuard, LockOptions, Locks, LostReason, OnBackendDown,
    WithLockError,
};

/// Longer than anything that works takes, so that it decides no test.
const BOUND: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3_600);

const TABLE: &str = include_str!("../src/metrics/metrics.md");

/// The name of every lock here: it would end its label, and its line.
const EVIL: &str = r#"evil"} 1 towerkeep_lock_owned{policy="evil"#;

/// What was counted so far.
struct Counted(PrometheusHandle);

impl Counted {
    fn value(&self, line: &str) -> f64 {
        let page = self.0.render();
        let line = format!("towerkeep_lock_{line} ");
        let found = page.lines().find_map(|found| found.strip_prefix(&line));
        let value = found.unwrap_or_else(|| panic!("no {line} in {page}"));
        value.parse().unwrap()
    }

    fn acquisitions(&self, outcome: &str) -> f64 {
        self.value(&format!("acquisitions_total{{outcome=\"{outcome}\"}}"))
    }

    fn lost(&self, reason: &str) -> f64 {
        self.value(&format!("lost_total{{reason=\"{reason}\"}}"))
    }

    fn renewals(&self, outcome: &str) -> f64 {
        self.value(&format!("renewals_total{{outcome=\"{outcome}\"}}"))
    }

    fn runs(&self, cron: &str, outcome: &str) -> f64 {
        let labels = format!("{{cron=\"{cron}\",outcome=\"{outcome}\"}}");
        self.value(&format!("cron_runs_total{labels}"))
    }

    /// How many are held, were let go of, and were acquired.
    fn holds(&self) -> [f64; 3] {
        ["held", "hold_seconds_count", "wait_seconds_count"].map(|line| self.value(line))
    }

    /// Those of the connections are there too.
    fn families(&self) -> BTreeSet<String> {
        let page = self.0.render();
        let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types
            .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
            .filter(|family| !family.contains("redis_conn"))
            .collect()
    }
}

/// A clock that stands until it runs away: each look takes an hour.
#[derive(Debug)]
struct Leaping(ManualClock, AtomicBool);

impl Clock for Leaping {
    fn boot_micros(&self) -> u64 {
        if self.1.load(Ordering::Relaxed) {
            self.0.advance(HOUR);
        }
        self.0.boot_micros()
    }

    fn wall_micros(&self) -> u64 {
        self.0.wall_micros()
    }
}

fn once() -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(60)).try_once()
}

async fn hold(locks: &Locks) -> LockGuard {
    locks.acquire(EVIL, once()).await.unwrap()
}

async fn redis(server: &RedisServer) -> Locks {
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(BOUND).await.unwrap();
    Locks::with_timeout(&backend, BOUND).unwrap()
}

async fn acquisitions(counted: &Counted, locks: &Locks, clock: &Leaping) {
    for outcome in [
        "acquired",
        "busy",
        "timed_out",
        "too_short",
        "cancelled",
        "error",
    ] {
        assert_eq!(counted.acquisitions(outcome), 0.0, "{outcome}");
    }
    assert_eq!(counted.holds(), [0.0; 3]);
    let guard = hold(locks).await;
    assert_eq!(counted.holds(), [1.0, 0.0, 1.0]);
    locks.acquire(EVIL, once()).await.unwrap_err();
    assert_eq!(counted.acquisitions("busy"), 1.0);
    let waiting = locks.acquire(EVIL, once().wait(HOUR));
    assert!(waiting.now_or_never().is_none());
    assert_eq!(counted.acquisitions("cancelled"), 1.0);
    let moment = Duration::from_millis(10);
    locks.acquire(EVIL, once().wait(moment)).await.unwrap_err();
    assert_eq!(counted.acquisitions("timed_out"), 1.0);
    let nothing = once().ttl(Duration::ZERO);
    locks.acquire(EVIL, nothing).await.unwrap_err();
    assert_eq!(counted.acquisitions("error"), 1.0);
    assert_eq!(counted.holds(), [1.0, 0.0, 1.0], "none of those holds it");
    guard.release().await.unwrap();
    assert_eq!(counted.holds(), [0.0, 1.0, 1.0]);
    drop(hold(locks).await);
    assert_eq!(counted.holds(), [0.0, 2.0, 2.0]);

    clock.1.store(true, Ordering::Relaxed);
    let late = locks.acquire(EVIL, once()).await;
    clock.1.store(false, Ordering::Relaxed);
    assert!(
        matches!(late, Err(LockError::TtlTooShort { .. })),
        "{late:?}"
    );
    assert_eq!(counted.acquisitions("too_short"), 1.0);
    assert_eq!(counted.lost("expired"), 0.0, "nobody had it");
    assert_eq!(counted.acquisitions("acquired"), 2.0);
    assert_eq!(counted.holds(), [0.0, 2.0, 2.0]);
}

async fn losses(counted: &Counted, locks: &Locks, clock: &Leaping) {
    let guard = hold(locks).await;
    clock.0.advance(HOUR);
    assert_eq!(guard.lost().await, LostReason::Expired);
    // Whoever looks again, and whoever lets go of it.
    assert_eq!(guard.valid_for(), Duration::ZERO);
    assert_eq!(counted.holds(), [0.0, 3.0, 3.0]);
    drop(guard);
    assert_eq!(counted.lost("expired"), 1.0);
    assert_eq!(counted.holds(), [0.0, 3.0, 3.0]);

    // What was let go of is not lost when its time is over.
    let guard = hold(locks).await;
    let token = guard.token();
    guard.release().await.unwrap();
    clock.0.advance(HOUR);
    let _ = token.is_lost();
    assert_eq!(counted.lost("expired"), 1.0);

    let guard = hold(locks).await;
    let audit = Audit::new("ops:alice", "ticket 4711");
    assert!(locks.force_release(EVIL, &audit).await.unwrap());
    assert_eq!(guard.lost().await, LostReason::Forced);
    assert_eq!(counted.lost("forced"), 1.0);

    let guard = locks.acquire(EVIL, once().max_hold(Duration::from_millis(20)));
    let guard = guard.await.unwrap();
    assert_eq!(guard.lost().await, LostReason::HeldTooLong);
    assert_eq!(counted.lost("held_too_long"), 1.0);
    assert_eq!(counted.value("held"), 0.0);
}

/// What a server does that forgets, and one that is gone.
async fn on_a_server(counted: &Counted) {
    let server = RedisServer::builder().allow("+flushall").start().await;
    let (locks, other) = (redis(&server).await, redis(&server).await);
    let guard = hold(&locks).await;
    flush(&server).await;
    guard.extend(HOUR).await.unwrap_err();
    assert_eq!(counted.lost("vanished"), 1.0);
    drop(guard);
    let guard = hold(&locks).await;
    flush(&server).await;
    let theirs = hold(&other).await;
    guard.extend(HOUR).await.unwrap_err();
    assert_eq!(counted.lost("stolen"), 1.0);
    drop(guard);
    theirs.release().await.unwrap();

    // A third of this is soon.
    let short = once().ttl(Duration::from_secs(3));
    let guard = locks.acquire(EVIL, short.clone()).await.unwrap();
    until("a renewal", || counted.renewals("renewed") >= 1.0).await;
    flush(&server).await;
    assert_eq!(guard.lost().await, LostReason::Vanished);
    assert_eq!(counted.renewals("vanished"), 1.0);
    assert_eq!(counted.lost("vanished"), 2.0);
    let guard = locks.acquire(EVIL, short.clone()).await.unwrap();
    flush(&server).await;
    let theirs = other.acquire(EVIL, short.clone()).await.unwrap();
    assert_eq!(guard.lost().await, LostReason::Stolen);
    assert_eq!(counted.renewals("stolen"), 1.0);
    drop(guard);

    assert_eq!(counted.renewals("failed"), 0.0);
    server.kill();
    assert_eq!(theirs.lost().await, LostReason::Expired);
    assert!(counted.renewals("failed") >= 1.0);
    let errors = counted.acquisitions("error");
    let unprotected = once().on_backend_down(OnBackendDown::RunUnprotected);
    let ran = locks.with_lock(EVIL, unprotected, async |held| {
        Ok::<_, Infallible>(held.fence())
    });
    assert_eq!(ran.await.unwrap(), None);
    assert_eq!(counted.value("unprotected_total"), 1.0);
    assert_eq!(counted.acquisitions("error"), errors + 1.0);
    let away = CronLock::new(&locks, "away");
    let refused = away.run(slot(1), async |_| Ok::<_, Infallible>(()));
    assert!(matches!(refused.await, Err(WithLockError::NotAcquired(_))));
    assert_eq!(counted.runs("away", "refused"), 1.0);
}

async fn flush(server: &RedisServer) {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let flushed: redis::RedisResult<()> = redis::cmd("FLUSHALL").query_async(&mut connection).await;
    flushed.unwrap();
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    testkit::until(BOUND, what, async || is_so()).await.unwrap();
}

fn slot(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

async fn fences(counted: &Counted, locks: &Locks) {
    locks.check_fence(EVIL, 7).await.unwrap();
    assert_eq!(counted.value("fences_refused_total"), 0.0);
    locks.check_fence(EVIL, 6).await.unwrap_err();
    assert_eq!(counted.value("fences_refused_total"), 1.0);
}

async fn cron(counted: &Counted, locks: &Locks, clock: &Leaping) {
    let job = CronLock::new(locks, "report").wait(Duration::from_millis(50));
    const OUTCOMES: [&str; 7] = [
        "ran",
        "skipped",
        "missed",
        "overlapped",
        "failed",
        "lost",
        "refused",
    ];
    for outcome in OUTCOMES {
        assert_eq!(counted.runs("report", outcome), 0.0, "{outcome}");
    }
    let now = clock.wall_micros() / 1_000_000;
    let fine = async |_| Ok::<_, Infallible>(());
    for (at, outcome) in [(0, "ran"), (0, "skipped"), (1, "ran")] {
        let before = counted.runs("report", outcome);
        job.run(slot(now - 60 + at), fine).await.unwrap();
        assert_eq!(counted.runs("report", outcome), before + 1.0, "{outcome}");
    }
    job.run(slot(now - 60), fine).await.unwrap();
    assert_eq!(counted.runs("report", "missed"), 1.0);
    job.run(slot(now - 58), async |_| Err::<(), _>(()))
        .await
        .unwrap_err();
    assert_eq!(counted.runs("report", "failed"), 1.0);
    let panics = job.run(slot(now - 57), async |_| -> Result<(), ()> {
        panic!("on purpose")
    });
    AssertUnwindSafe(panics).catch_unwind().await.unwrap_err();
    assert_eq!(counted.runs("report", "failed"), 2.0);
    let busy = locks.acquire("cron:report", once()).await.unwrap();
    job.run(slot(now - 56), fine).await.unwrap();
    drop(busy);
    assert_eq!(counted.runs("report", "overlapped"), 1.0);
    let short = job.wait(BOUND).max_hold(Duration::from_millis(20));
    let lost = short.run(slot(now - 55), async |_| pending::<Result<(), ()>>().await);
    lost.await.unwrap_err();
    assert_eq!(counted.runs("report", "lost"), 1.0);
    for family in ["duration", "lag"] {
        let times = counted.value(&format!("cron_{family}_seconds_count{{cron=\"report\"}}"));
        assert_eq!(times, 5.0, "{family}: of what ran, well or not");
    }
    let longest = counted.value("cron_duration_seconds_sum{cron=\"report\"}");
    assert!((0.02..20.0).contains(&longest), "{longest}");
    let lag = counted.value("cron_lag_seconds_sum{cron=\"report\"}");
    assert!((270.0..=300.0).contains(&lag), "{lag}");

    // A schedule counts slots that it comes too late for, of which nobody is asked.
    let start = clock.wall_micros();
    let mut slots = [60, 120, 7_200].into_iter();
    let next = move |_| {
        Some(UNIX_EPOCH + Duration::from_micros(start) + Duration::from_secs(slots.next()?))
    };
    let late = CronLock::new(locks, "late");
    let late = late.schedule(next, async |_, _| Ok::<_, Infallible>(()));
    let late = late.unwrap();
    // Before it has looked.
    clock.0.advance(HOUR);
    until("two are missed", || counted.runs("late", "missed") == 2.0).await;
    assert_eq!((late.missed(), late.ran()), (2, 0));
    drop(late);
}

async fn elections(counted: &Counted, locks: &Locks) {
    let leads = || counted.value("election_leader{election=\"reports\"}");
    let changes = || counted.value("election_changes_total{election=\"reports\"}");
    let election = Election::new(locks, "reports");
    let candidate = election.campaign().unwrap();
    candidate.lead(async |_| ()).await;
    assert_eq!((leads(), changes()), (1.0, 1.0));
    candidate.resign().await;
    assert_eq!((leads(), changes()), (0.0, 1.0));
    assert_eq!(counted.lost("resigned"), 1.0);
    let candidate = election.campaign().unwrap();
    candidate.lead(async |_| ()).await;
    assert_eq!((leads(), changes()), (1.0, 2.0));
    candidate.resign().await;
}

/// Names that a program makes of what it is sent.
async fn too_many_names(counted: &Counted, locks: &Locks) {
    for n in 0..100 {
        let name = format!("made-up-{n}");
        let _ = CronLock::new(locks, &name)
            .run(slot(1), async |_| Ok::<_, Infallible>(()))
            .await
            .unwrap();
        let candidate = Election::new(locks, &name).campaign().unwrap();
        candidate.lead(async |_| ()).await;
        candidate.resign().await;
    }
    let page = counted.0.render();
    for family in ["cron_lag_seconds_count{", "election_changes_total{"] {
        let family = format!("towerkeep_lock_{family}");
        let named = page.lines().filter(|line| line.starts_with(&family));
        assert_eq!(named.count(), 65);
    }
    assert_eq!(counted.runs("made-up-0", "ran"), 1.0);
    assert!(counted.runs("other", "ran") > 30.0);
    assert!(counted.value("election_changes_total{election=\"other\"}") > 30.0);
}

#[tokio::test]
async fn every_family_of_the_table_counts_and_there_is_no_other() {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&[0.001, 1.0])
        .unwrap()
        .install_recorder()
        .unwrap();
    let counted = Counted(recorder);
    let manual = ManualClock::new(1_000_000_000_000);
    let clock = Arc::new(Leaping(manual, AtomicBool::new(false)));
    let backend = Backend::builder().clock(clock.clone()).memory().unwrap();
    let locks = Locks::new(&backend).unwrap();
    acquisitions(&counted, &locks, &clock).await;
    losses(&counted, &locks, &clock).await;
    fences(&counted, &locks).await;
    cron(&counted, &locks, &clock).await;
    elections(&counted, &locks).await;
    on_a_server(&counted).await;
    too_many_names(&counted, &locks).await;
    let guard = hold(&locks).await;
    backend.close(BOUND).await.unwrap();
    assert_eq!(guard.lost().await, LostReason::Closed);
    assert_eq!(counted.lost("closed"), 1.0);
    drop(guard);
    assert_eq!(counted.value("held"), 0.0);

    let rows = TABLE
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let table: BTreeSet<_> = rows.map(|(name, _)| name.to_owned()).collect();
    assert!(table.len() >= 13, "{table:?}");
    assert_eq!(counted.families(), table);
    let page = counted.0.render();
    for name in ["evil", "cron:", "election:"] {
        assert!(!page.contains(name), "{page}");
    }
}
