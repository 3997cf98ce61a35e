//! What a job is promised.

use std::{future::Future as _, sync::mpsc, task::Poll, time::Duration};

use redis_conn::{
    Backend, Error, ErrorKind, Status,
    raw::{Sqlite, Tx, sql_error},
};
use testkit::{Fleet, process};
use tokio::task::{JoinHandle, JoinSet};

use super::{LONG, engine, increment, number, open, scratch};

/// Holds the writer until told to go on.
struct Blocked {
    go: mpsc::Sender<()>,
    job: JoinHandle<Result<i64, Error>>,
}

impl Blocked {
    async fn new(sqlite: &Sqlite, deadline: Duration) -> Self {
        let (go, wait) = mpsc::channel();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let sqlite = sqlite.clone();
        let job = tokio::spawn(async move {
            let job = move |tx: &Tx<'_>| {
                let _ = begun.send(());
                let _ = wait.recv();
                increment(tx, "blocked")
            };
            sqlite.write(deadline, job).await
        });
        has_begun.await.unwrap();
        Self { go, job }
    }

    async fn end(self) -> Result<i64, Error> {
        // It has gone on by itself if its caller gave up waiting for it.
        let _ = self.go.send(());
        self.job.await.unwrap()
    }
}

/// Submits a job, which is in the queue when this returns, and does not wait for it.
async fn submit<T: Send + 'static>(
    jobs: &mut JoinSet<Result<T, Error>>,
    backend: &Backend,
    job: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
) {
    let sqlite = engine(backend).clone();
    let mut call = Box::pin(async move { sqlite.write(LONG, job).await });
    match std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await {
        Poll::Pending => jobs.spawn(call),
        Poll::Ready(result) => jobs.spawn(async { result }),
    };
}

#[tokio::test]
async fn a_job_that_fails_or_panics_leaves_its_neighbours_alone() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let blocked = Blocked::new(engine(&backend), LONG).await;
    let mut jobs = JoinSet::new();
    for n in 0..10 {
        submit(&mut jobs, &backend, move |tx| {
            increment(tx, "counter")?;
            match n {
                3 => Err(Error::new(ErrorKind::Corrupt, "on purpose")),
                6 => panic!("on purpose"),
                _ => Ok(tx.boot_micros()),
            }
        })
        .await;
    }
    blocked.end().await.unwrap();
    let (mut times, mut errors) = (Vec::new(), Vec::new());
    for result in jobs.join_all().await {
        match result {
            Ok(time) => times.push(time),
            Err(error) => errors.push(error.kind().clone()),
        }
    }
    errors.sort_by_key(|kind| *kind != ErrorKind::Corrupt);
    assert_eq!(
        errors,
        [ErrorKind::Corrupt, ErrorKind::Server("PANIC".into())]
    );
    assert_eq!(
        backend.health().overall,
        Status::Healthy,
        "the file is well"
    );
    times.dedup();
    assert_eq!(times.len(), 1, "the others shared one transaction");
    assert_eq!(
        number(
            &backend,
            "SELECT value FROM test_boot WHERE key = 'counter'"
        )
        .await,
        8
    );
    engine(&backend)
        .write(LONG, |tx| increment(tx, "counter"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_job_that_had_not_begun_at_its_deadline_never_runs() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let blocked = Blocked::new(engine(&backend), LONG).await;
    let late = engine(&backend).write(Duration::from_millis(50), |tx| increment(tx, "late"));
    assert_eq!(late.await.unwrap_err().kind(), &ErrorKind::Timeout);
    let dropped = engine(&backend).write(LONG, |tx| increment(tx, "dropped"));
    tokio::select! {
        biased;
        result = dropped => panic!("the writer is blocked, but the job gave {result:?}"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(blocked.end().await.unwrap(), 1);
    engine(&backend).write(LONG, |_| Ok(())).await.unwrap();
    assert_eq!(
        number(
            &backend,
            "SELECT count(*) FROM test_boot WHERE key <> 'blocked'"
        )
        .await,
        0
    );
}

#[tokio::test]
async fn a_job_that_had_begun_at_its_deadline_is_ambiguous() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let Blocked { go, job } = Blocked::new(engine(&backend), Duration::from_millis(50)).await;
    let error = job.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Ambiguous, "{error}");
    go.send(()).unwrap();
    engine(&backend).write(LONG, |_| Ok(())).await.unwrap();
    assert_eq!(
        number(
            &backend,
            "SELECT value FROM test_boot WHERE key = 'blocked'"
        )
        .await,
        1
    );
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let blocked = Blocked::new(engine(&backend), LONG).await;
    let mut jobs = JoinSet::new();
    for _ in 0..4_096 {
        submit(&mut jobs, &backend, |tx| increment(tx, "counter")).await;
    }
    let refused = engine(&backend)
        .write(LONG, |tx| increment(tx, "counter"))
        .await;
    assert_eq!(refused.unwrap_err().kind(), &ErrorKind::Saturated);
    blocked.end().await.unwrap();
    assert!(jobs.join_all().await.iter().all(Result::is_ok));
    assert_eq!(
        number(
            &backend,
            "SELECT value FROM test_boot WHERE key = 'counter'"
        )
        .await,
        4_096
    );
}

#[tokio::test]
async fn a_full_disk_is_an_error_while_it_lasts() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let limit = |pages: u32| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        move |tx: &Tx<'_>| tx.execute_batch(&sql).map_err(sql_error)
    };
    let fill = |tx: &Tx<'_>| {
        let sql = "INSERT INTO test_boot VALUES (?1, 1, 9e18)";
        tx.execute(sql, ["k".repeat(1 << 20)]).map_err(sql_error)
    };
    engine(&backend).write(LONG, limit(1)).await.unwrap();
    let error = engine(&backend).write(LONG, fill).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
    assert!(std::error::Error::source(&error).is_some());
    let health = backend.health();
    assert_eq!(health.overall, Status::Degraded, "{health:?}");
    assert!(
        health.checks[0].message.contains("the disk is full"),
        "{health:?}"
    );
    // A transaction that changes nothing says nothing about the disk.
    engine(&backend).write(LONG, |_| Ok(())).await.unwrap();
    assert_eq!(backend.health().overall, Status::Degraded);
    engine(&backend)
        .write(LONG, limit(u32::MAX >> 1))
        .await
        .unwrap();
    engine(&backend).write(LONG, fill).await.unwrap();
    assert_eq!(backend.health().overall, Status::Healthy);
}

#[tokio::test]
async fn a_reader_does_not_wait_for_the_writer() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let blocked = Blocked::new(engine(&backend), LONG).await;
    assert_eq!(number(&backend, "SELECT count(*) FROM test_boot").await, 0);
    blocked.end().await.unwrap();
    let written = engine(&backend)
        .read(LONG, |tx| increment(tx, "read"))
        .await;
    assert!(written.is_err(), "a reader cannot write");
}

#[tokio::test]
async fn closing_finishes_what_waits() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let blocked = Blocked::new(engine(&backend), LONG).await;
    let mut jobs = JoinSet::new();
    for _ in 0..100 {
        submit(&mut jobs, &backend, |tx| increment(tx, "counter")).await;
    }
    let (closed, blocked) = tokio::join!(backend.close(LONG), blocked.end());
    closed.unwrap();
    blocked.unwrap();
    assert!(jobs.join_all().await.iter().all(Result::is_ok));
    let backend = open(&path).await;
    assert_eq!(
        number(
            &backend,
            "SELECT value FROM test_boot WHERE key = 'counter'"
        )
        .await,
        100
    );
}

#[tokio::test]
async fn two_processes_count_to_ten_thousand() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    Fleet::new("jobs::counts")
        .env("FILE", path.display())
        .run(2)
        .await;
    assert_eq!(
        number(&backend, "SELECT value FROM test_boot").await,
        10_000
    );
}

#[tokio::test]
#[ignore = "the child of two_processes_count_to_ten_thousand"]
async fn counts() {
    let backend = open(&std::env::var("FILE").unwrap().into()).await;
    for _ in 0..50 {
        let mut jobs = JoinSet::new();
        for _ in 0..100 {
            submit(&mut jobs, &backend, |tx| increment(tx, "counter")).await;
        }
        assert!(jobs.join_all().await.iter().all(Result::is_ok));
    }
    backend.close(LONG).await.unwrap();
    process::report("done");
}

/// The longest wait while four processes write as much as they can: nobody starves.
#[tokio::test]
async fn writers_take_turns() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let fleet = Fleet::new("jobs::writes_all_the_time").env("FILE", path.display());
    let mut children = fleet.spawn(3).await;
    for child in &mut children {
        assert_eq!(child.next_result().await.as_deref(), Some("writing"));
    }
    for _ in 0..100 {
        // Ten times what a decision may take.
        let deadline = Duration::from_secs(2);
        engine(&backend)
            .write(deadline, |tx| increment(tx, "patient"))
            .await
            .unwrap();
    }
    children.into_iter().for_each(|child| child.kill());
}

#[tokio::test]
#[ignore = "the child of writers_take_turns"]
async fn writes_all_the_time() {
    let backend = open(&std::env::var("FILE").unwrap().into()).await;
    let mut jobs = JoinSet::new();
    for _ in 0..512 {
        submit(&mut jobs, &backend, |tx| increment(tx, "greedy")).await;
    }
    process::report("writing");
    while let Some(result) = jobs.join_next().await {
        result.unwrap().unwrap();
        submit(&mut jobs, &backend, |tx| increment(tx, "greedy")).await;
    }
}
