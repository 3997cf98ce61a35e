//! What cron jobs promise, on all backends with the same assertions.
#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use backends::{Fixture, START};
use futures_util::FutureExt as _;
use redis_conn::{Backend, Clock, ErrorKind, SystemClock};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower_distlock::{CronLock, CronOutcome, CronRun, LockError, Locks, WithLockError};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

fn locks(fixture: &impl Fixture) -> Locks {
    Locks::with_timeout(fixture.backend(), Duration::from_secs(10)).unwrap()
}

/// With a lease that no real clock ends, and without waiting for what does not end.
fn job(locks: &Locks) -> CronLock {
    CronLock::new(locks, "job")
        .at_most(HOUR)
        .wait(Duration::ZERO)
}

/// A slot each second.
fn slot(number: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(START) + Duration::from_secs(number)
}

async fn run(job: &CronLock, number: u64) -> CronRun<u64> {
    let ran = job.run(slot(number), async |held| {
        assert!(held.fence().is_some());
        Ok::<_, Infallible>(number)
    });
    ran.await.unwrap()
}

async fn outcome(job: &CronLock) -> (SystemTime, CronOutcome) {
    let last = job.last_run().await.unwrap().unwrap();
    (last.slot, last.outcome)
}

/// Which slots have run, and how often.
#[derive(Clone, Debug, Default)]
struct Runs(Arc<Mutex<BTreeMap<SystemTime, usize>>>);

impl Runs {
    fn add(&self, slot: SystemTime) {
        *self.0.lock().unwrap().entry(slot).or_default() += 1;
    }

    fn counts(&self) -> Vec<usize> {
        self.0.lock().unwrap().values().copied().collect()
    }
}

mod cases {
    use super::*;

    pub(super) async fn a_slot_runs_once_over_all_nodes(fixture: &impl Fixture) {
        const NODES: u64 = 20;
        let nodes: Vec<_> = (0..NODES)
            .map(|_| job(&locks(fixture)).wait(Duration::from_secs(10)))
            .collect();
        let runs = Runs::default();
        for number in 1..=60 {
            let mut tasks = JoinSet::new();
            for (place, node) in (0..).zip(&nodes) {
                let (node, runs) = (node.clone(), runs.clone());
                tasks.spawn(async move {
                    // Some come late for the slot before.
                    if (place + number) % 5 == 0 {
                        assert!(!matches!(run(&node, number - 1).await, CronRun::Ran(_)));
                    }
                    let ran = run(&node, number).await;
                    if let CronRun::Ran(number) = ran {
                        runs.add(slot(number));
                    } else {
                        assert_eq!(ran, CronRun::Skipped);
                    }
                });
                // Nobody has run the slot before the first.
                if number == 1 && place == 0 {
                    tasks.join_next().await.unwrap().unwrap();
                }
            }
            tasks.join_all().await;
        }
        assert_eq!(runs.counts(), [1; 60]);
    }

    pub(super) async fn who_comes_late_skips_what_has_run(fixture: &impl Fixture) {
        let (one, two) = (job(&locks(fixture)), job(&locks(fixture)));
        assert_eq!(run(&one, 2).await, CronRun::Ran(2));
        assert_eq!(run(&two, 2).await, CronRun::Skipped);
        assert_eq!(run(&two, 1).await, CronRun::Missed);
        // Neither left its lock behind.
        assert_eq!(run(&two, 3).await, CronRun::Ran(3));
        assert_eq!(run(&one, 2).await, CronRun::Missed);
        let other = CronLock::new(&locks(fixture), "other");
        assert_eq!(run(&other, 1).await, CronRun::Ran(1), "of its own");
    }

    pub(super) async fn who_comes_while_it_runs_skips_it(fixture: &impl Fixture) {
        let (one, two) = (job(&locks(fixture)), job(&locks(fixture)));
        let ran = one.run(slot(1), async |_| {
            assert_eq!(run(&two, 1).await, CronRun::Skipped);
            assert_eq!(outcome(&two).await, (slot(1), CronOutcome::Running));
            assert_eq!(run(&two, 2).await, CronRun::Overlapped, "it goes on");
            Ok::<_, Infallible>(())
        });
        assert_eq!(ran.await.unwrap(), CronRun::Ran(()));
        // What was not run has not taken its place.
        assert_eq!(outcome(&two).await, (slot(1), CronOutcome::Done));
        assert_eq!(run(&one, 2).await, CronRun::Skipped);
        assert_eq!(run(&one, 3).await, CronRun::Ran(3));
    }

    pub(super) async fn the_next_slot_waits_for_a_run_that_ends_soon(fixture: &impl Fixture) {
        let (one, two) = (job(&locks(fixture)), job(&locks(fixture)).wait(HOUR));
        let mut next = Box::pin(run(&two, 2));
        let first = one.run(slot(1), async |_| {
            assert!(next.as_mut().now_or_never().is_none(), "it waits");
            Ok::<_, Infallible>(())
        });
        first.await.unwrap();
        assert_eq!(next.await, CronRun::Ran(2));
    }

    pub(super) async fn a_slot_that_crashed_is_not_run_again(fixture: &impl Fixture) {
        let (one, two) = (job(&locks(fixture)), job(&locks(fixture)));
        let (begun, has_begun) = oneshot::channel();
        let crashed = tokio::spawn({
            let one = one.clone();
            async move {
                let hangs = one.run(slot(1), async move |_| {
                    begun.send(()).unwrap();
                    std::future::pending::<Result<(), Infallible>>().await
                });
                hangs.await
            }
        });
        has_begun.await.unwrap();
        assert_eq!(outcome(&two).await.1, CronOutcome::Running);
        assert_eq!(run(&two, 1).await, CronRun::Skipped);
        // Its lease ends as that of a process that was killed.
        fixture.set(START + 3_600_000_000).await;
        assert_eq!(run(&two, 1).await, CronRun::Skipped);
        assert_eq!(outcome(&two).await, (slot(1), CronOutcome::Crashed));
        assert_eq!(run(&two, 2).await, CronRun::Ran(2));
        crashed.abort();
        assert!(crashed.await.unwrap_err().is_cancelled());
        assert_eq!(outcome(&two).await, (slot(2), CronOutcome::Done));
    }

    pub(super) async fn the_lock_stays_taken_for_at_least_so_long(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let often = job(&locks).at_least(2 * HOUR);
        assert_eq!(run(&often, 1).await, CronRun::Ran(1));
        let left = locks.ttl("cron:job").await.unwrap().unwrap();
        assert!(left > HOUR && left <= 2 * HOUR, "{left:?}");
        assert!(locks.held().is_empty(), "and nobody renews it");
        assert_eq!(outcome(&often).await, (slot(1), CronOutcome::Done));
        assert_eq!(run(&often, 2).await, CronRun::Overlapped);
        fixture.set(START + 2 * 3_600_000_000).await;
        assert_eq!(run(&often, 3).await, CronRun::Ran(3));
    }

    pub(super) async fn what_came_of_it_is_told(fixture: &impl Fixture) {
        let job = job(&locks(fixture));
        assert_eq!(job.last_run().await.unwrap(), None);
        run(&job, 1).await;
        let last = job.last_run().await.unwrap().unwrap();
        assert_eq!((last.slot, last.outcome), (slot(1), CronOutcome::Done));
        assert_eq!(last.instance, fixture.backend().instance_id());
        assert!(last.duration.is_some_and(|took| took < HOUR));
        let clock = fixture.backend().clock().wall_micros();
        let apart = last.started.duration_since(UNIX_EPOCH).unwrap().as_micros();
        assert!(apart.abs_diff(clock.into()) < HOUR.as_micros());

        let failed = job.run(slot(2), async |_| Err::<(), _>("no")).await;
        assert!(matches!(failed, Err(WithLockError::Inner("no"))));
        assert_eq!(outcome(&job).await, (slot(2), CronOutcome::Failed));
        assert_eq!(run(&job, 2).await, CronRun::Skipped, "it has run");

        let panics = tokio::spawn({
            let job = job.clone();
            async move {
                let run = job.run(slot(3), async |_| -> Result<(), Infallible> {
                    panic!("in the job")
                });
                run.await
            }
        });
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(outcome(&job).await, (slot(3), CronOutcome::Panicked));

        let audit = redis_conn::Audit::new("test", "it hangs");
        let taken = job.clone().on_lost(tower_distlock::OnLost::Notify);
        let locks = locks(fixture);
        let lost = taken.run(slot(4), async |_| {
            assert!(locks.force_release("cron:job", &audit).await.unwrap());
            Ok::<_, Infallible>(())
        });
        assert!(matches!(lost.await, Err(WithLockError::Lost { .. })));
        assert_eq!(outcome(&job).await, (slot(4), CronOutcome::Lost));
    }

    pub(super) async fn what_a_later_version_wrote_is_left_alone(fixture: &impl Fixture) {
        let job = job(&locks(fixture));
        run(&job, 1).await;
        fixture.spoil(b"200000000000000000001later").await;
        let Some(before) = fixture.stored().await else {
            return;
        };
        assert!(before.len() >= 2, "{before:?}");
        let refused = job.run(slot(2), async |_| Ok::<_, Infallible>(())).await;
        let Err(WithLockError::NotAcquired(LockError::Backend(error))) = refused else {
            panic!("it must not run: {refused:?}");
        };
        assert_eq!(*error.kind(), ErrorKind::Corrupt);
        let Err(LockError::Backend(error)) = job.last_run().await else {
            panic!("it cannot be read");
        };
        assert_eq!(*error.kind(), ErrorKind::Corrupt);
        assert_eq!(fixture.stored().await.unwrap(), before);
    }

    pub(super) async fn a_claim_lives_for_a_day(fixture: &impl Fixture) {
        // The lock is known for as long.
        let job = job(&locks(fixture)).at_most(DAY);
        run(&job, 1).await;
        assert!(fixture.lasts(DAY.as_micros() as u64).await);
    }

    pub(super) async fn what_cannot_be_is_refused(fixture: &impl Fixture) {
        let locks = locks(fixture);
        let before_time = UNIX_EPOCH - Duration::from_secs(1);
        let refused = [
            (job(&locks), before_time, "slot"),
            (job(&locks).at_most(Duration::ZERO), slot(1), "ttl"),
            (CronLock::new(&locks, &"x".repeat(4_096)), slot(1), "name"),
        ];
        for (job, slot, names) in refused {
            let ran = job.run(slot, async |_| Ok::<_, Infallible>(())).await;
            let Err(WithLockError::NotAcquired(LockError::Backend(error))) = ran else {
                panic!("{names}: {ran:?}");
            };
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    pub(super) async fn closing_waits_for_the_run_and_begins_no_other(fixture: &impl Fixture) {
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let (go, gone) = tokio::sync::watch::channel(false);
        let running = CronLock::new(&locks(fixture), "job")
            .schedule(
                |after| Some(after + Duration::from_millis(10)),
                move |_, _| {
                    begun.send(()).unwrap();
                    let mut gone = gone.clone();
                    async move { gone.wait_for(|gone| *gone).await.map(drop) }
                },
            )
            .unwrap();
        // Where the clock stands, it is set to the first slot.
        fixture.set(START + 10_000).await;
        has_begun.recv().await.unwrap();
        let backend = fixture.backend().clone();
        let closing = tokio::spawn(async move { backend.close(Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        assert!(!closing.is_finished(), "the run goes on");
        go.send_replace(true);
        closing.await.unwrap().unwrap();
        assert!(running.is_finished());
        assert_eq!(running.ran(), 1);
        assert!(has_begun.recv().await.is_none());
    }
}

backends::on_each_backend! {
    a_slot_runs_once_over_all_nodes
    who_comes_late_skips_what_has_run
    who_comes_while_it_runs_skips_it
    the_next_slot_waits_for_a_run_that_ends_soon
    a_slot_that_crashed_is_not_run_again
    the_lock_stays_taken_for_at_least_so_long
    what_came_of_it_is_told
    what_a_later_version_wrote_is_left_alone
    a_claim_lives_for_a_day
    what_cannot_be_is_refused
    closing_waits_for_the_run_and_begins_no_other
}

/// The time of the runtime, which is paused.
#[derive(Debug)]
struct Virtual(Instant);

impl Clock for Virtual {
    fn boot_micros(&self) -> u64 {
        START + u64::try_from(self.0.elapsed().as_micros()).unwrap()
    }

    fn wall_micros(&self) -> u64 {
        self.boot_micros()
    }
}

fn virtual_locks() -> Locks {
    let clock = Arc::new(Virtual(Instant::now()));
    Locks::new(&Backend::builder().clock(clock).memory().unwrap()).unwrap()
}

fn each_second(after: SystemTime) -> Option<SystemTime> {
    let since = after.duration_since(slot(0)).ok()?;
    Some(slot(since.as_secs() + 1))
}

#[tokio::test(start_paused = true)]
async fn twenty_nodes_whose_clocks_differ_run_each_slot_once() {
    let (locks, runs, start) = (virtual_locks(), Runs::default(), Instant::now());
    let mut nodes = JoinSet::new();
    for node in 0..20 {
        let (job, runs) = (CronLock::new(&locks, "job"), runs.clone());
        nodes.spawn(async move {
            for number in 1..=60 {
                // From 300 ms too late to 300 ms too early, and not always by the same.
                let off = (node * 31 + number * 7) % 601;
                let wakes = number * 1_000 + off - 300;
                sleep_until(start + Duration::from_millis(wakes)).await;
                let ran = job.run(slot(number), async |_| {
                    sleep(Duration::from_millis(number * 13 % 250)).await;
                    Ok::<_, Infallible>(())
                });
                match ran.await.unwrap() {
                    CronRun::Ran(()) => runs.add(slot(number)),
                    ran => assert_eq!(ran, CronRun::Skipped),
                }
            }
        });
    }
    nodes.join_all().await;
    assert_eq!(runs.counts(), [1; 60]);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_runs_its_slots_when_they_are_due() {
    let (locks, runs, begun) = (virtual_locks(), Runs::default(), Instant::now());
    let schedule = || {
        let runs = runs.clone();
        let job = CronLock::new(&locks, "job");
        let running = job.schedule(each_second, move |slot, held| {
            runs.add(slot);
            let late = begun.elapsed().as_millis() % 1_000;
            async move {
                assert!(late < 10 && held.fence().is_some());
                Err::<(), _>("it comes again all the same")
            }
        });
        running.unwrap()
    };
    let nodes = [schedule(), schedule()];
    sleep(Duration::from_millis(10_500)).await;
    let [one, two] = nodes;
    assert_eq!(one.ran() + two.ran(), 10);
    assert_eq!(one.missed() + two.missed(), 0);
    one.stop().await;
    drop(two);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(runs.counts(), [1; 10]);
}

#[tokio::test(start_paused = true)]
async fn who_is_late_runs_the_last_slot_that_is_due_and_misses_the_others() {
    let (locks, runs) = (virtual_locks(), Runs::default());
    let seen = runs.clone();
    let running = CronLock::new(&locks, "job")
        .schedule(each_second, move |slot, _| {
            seen.add(slot);
            let is_first = seen.counts().len() == 1;
            async move {
                // From 1 to 5.5: the slots 2, 3 and 4 are over then.
                sleep(Duration::from_millis(if is_first { 4_500 } else { 0 })).await;
                Ok::<_, Infallible>(())
            }
        })
        .unwrap();
    sleep(Duration::from_millis(7_500)).await;
    assert_eq!((running.ran(), running.missed()), (4, 3));
    let ran: Vec<_> = runs.0.lock().unwrap().keys().copied().collect();
    assert_eq!(ran, [1, 5, 6, 7].map(slot));
}

#[tokio::test(start_paused = true)]
async fn what_is_later_than_the_grace_is_missed() {
    let locks = virtual_locks();
    let hourly = |after: SystemTime| {
        let since = after.duration_since(slot(0)).ok()?;
        Some(slot((since.as_secs() / 3_600 + 1) * 3_600))
    };
    let (told, mut ran) = tokio::sync::mpsc::unbounded_channel();
    let running = CronLock::new(&locks, "job")
        .max_hold(DAY)
        .grace(Duration::from_secs(60))
        .schedule(hourly, move |slot, _| {
            told.send(slot).unwrap();
            async {
                sleep(HOUR + Duration::from_secs(61)).await;
                Ok::<_, Infallible>(())
            }
        })
        .unwrap();
    assert_eq!(ran.recv().await, Some(slot(3_600)));
    assert_eq!(ran.recv().await, Some(slot(3 * 3_600)));
    assert_eq!(running.missed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_does_not_end_a_schedule_and_one_that_stands_still_does() {
    let locks = virtual_locks();
    let (told, mut ran) = tokio::sync::mpsc::unbounded_channel();
    let (calls, asked) = (Arc::new(AtomicUsize::new(0)), 20);
    let called = Arc::clone(&calls);
    let running = CronLock::new(&locks, "job")
        .schedule(
            move |after| {
                assert!(called.fetch_add(1, Ordering::SeqCst) < asked, "without end");
                each_second(after)
                    .filter(|next| *next <= slot(2))
                    .or(Some(after))
            },
            move |slot, _| {
                told.send(slot).unwrap();
                async { panic!("in the job") as Result<(), Infallible> }
            },
        )
        .unwrap();
    assert_eq!(ran.recv().await, Some(slot(1)));
    assert_eq!(ran.recv().await, Some(slot(2)));
    running.finished().await;
    assert_eq!(running.ran(), 2);
    assert!(calls.load(Ordering::SeqCst) < asked);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_handle_drops_the_run() {
    let locks = virtual_locks();
    let (alive, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
    let running = CronLock::new(&locks, "job")
        .schedule(each_second, move |_, _| {
            let alive = alive.clone();
            async move {
                let _alive = alive;
                std::future::pending::<Result<(), Infallible>>().await
            }
        })
        .unwrap();
    sleep(Duration::from_millis(1_500)).await;
    assert!(locks.is_locked("cron:job").await.unwrap());
    drop(running);
    let gone = tokio::time::timeout(HOUR, dropped.recv()).await;
    assert_eq!(gone, Ok(None));
    sleep(Duration::from_millis(1)).await;
    assert!(!locks.is_locked("cron:job").await.unwrap());
}

/// The clock of a host that is set wrong.
#[derive(Debug)]
struct Skewed(i64);

impl Clock for Skewed {
    fn boot_micros(&self) -> u64 {
        SystemClock.boot_micros()
    }

    fn wall_micros(&self) -> u64 {
        SystemClock.wall_micros().saturating_add_signed(self.0)
    }
}

#[tokio::test]
async fn processes_go_by_clocks_of_their_own() {
    const SLOTS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let (runs, mut nodes) = (Runs::default(), Vec::new());
    // The first slot is one that all have before them, the last one ends it.
    let first = SystemClock.wall_micros() / 250_000 * 250_000 + 1_000_000;
    for node in 0..20 {
        let clock = Arc::new(Skewed((node * 37 % 151 - 75) * 1_000));
        let builder = Backend::builder().clock(clock);
        let backend = builder.sqlite(dir.path().join("cron.db")).await.unwrap();
        let locks = Locks::with_timeout(&backend, Duration::from_secs(10)).unwrap();
        let runs = runs.clone();
        let at = move |number| UNIX_EPOCH + Duration::from_micros(first + number * 250_000);
        let job = CronLock::new(&locks, "job").schedule(
            move |after| (0..SLOTS).map(at).find(|slot| *slot > after),
            move |slot, _| {
                runs.add(slot);
                async { Ok::<_, Infallible>(()) }
            },
        );
        nodes.push(job.unwrap());
    }
    for node in &nodes {
        node.finished().await;
    }
    assert_eq!(runs.counts(), [1; SLOTS as usize]);
    assert_eq!(nodes.iter().map(|node| node.ran()).sum::<u64>(), SLOTS);
}
