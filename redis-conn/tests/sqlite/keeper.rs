//! Housekeeping.

use std::{fs, sync::Arc, time::Duration};

use redis_conn::{
    Backend, ErrorKind, ManualClock,
    raw::{Tx, sql_error},
};
use testkit::until;
use tokio::task::JoinSet;

use super::{LONG, engine, number, scratch, with_tables};

const HOUR: u64 = 3_600_000_000;

fn insert(tx: &Tx<'_>, table: &str, key: &str, expires: u64) -> Result<(), redis_conn::Error> {
    let sql = format!(
        "INSERT INTO {table} VALUES (?1, 1, ?2) ON CONFLICT (key) DO UPDATE SET expires = excluded.expires"
    );
    tx.prepare_cached(&sql)
        .and_then(|mut insert| insert.execute((key, expires.cast_signed())))
        .map_err(sql_error)?;
    Ok(())
}

async fn at(path: &std::path::Path, clock: &Arc<ManualClock>) -> Backend {
    Backend::builder()
        .clock(clock.clone())
        .sqlite(path)
        .await
        .unwrap()
}

#[tokio::test]
async fn expired_rows_of_all_tables_are_swept_by_any_process() {
    let (_directory, path) = scratch();
    let clock = Arc::new(ManualClock::new(HOUR));
    let backend = with_tables(at(&path, &clock).await).await;
    let fill = |tx: &Tx<'_>| {
        for table in ["test_boot", "test_wall"] {
            for n in 0..2_500 {
                insert(tx, table, &format!("due {n}"), 2 * HOUR - n % 7)?;
            }
            insert(tx, table, "later", 2 * HOUR + 1)?;
        }
        Ok(())
    };
    engine(&backend).write(LONG, fill).await.unwrap();
    backend.close(LONG).await.unwrap();

    // This one knows the tables from the file only.
    let backend = at(&path, &clock).await;
    clock.set(2 * HOUR);
    for count in [
        "SELECT count(*) FROM test_boot",
        "SELECT count(*) FROM test_wall",
    ] {
        until(LONG, "the end of expired rows", async || {
            number(&backend, count).await == 1
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn the_wall_clock_of_the_file_never_goes_back() {
    let (_directory, path) = scratch();
    let clock = Arc::new(ManualClock::new(HOUR));
    let backend = with_tables(at(&path, &clock).await).await;
    let job = |tx: &Tx<'_>| insert(tx, "test_wall", "due", HOUR);
    engine(&backend).write(LONG, job).await.unwrap();
    let swept = async || number(&backend, "SELECT count(*) FROM test_wall").await == 0;
    until(LONG, "the time to be stored", swept).await.unwrap();
    clock.set(HOUR / 2);
    let times = |tx: &Tx<'_>| Ok((tx.boot_micros(), tx.wall_micros()));
    assert_eq!(
        engine(&backend).read(LONG, times).await.unwrap(),
        (HOUR / 2, HOUR)
    );
    backend.close(LONG).await.unwrap();
    let backend = at(&path, &clock).await;
    assert_eq!(
        engine(&backend).write(LONG, times).await.unwrap(),
        (HOUR / 2, HOUR)
    );
}

/// Nothing can be written to a full disk, but moving the WAL into the file may make room.
#[tokio::test]
async fn the_wal_is_emptied_even_if_nothing_can_be_written() {
    let (directory, path) = scratch();
    let backend = super::open(&path).await;
    let refuse = |tx: &Tx<'_>| {
        tx.execute_batch("PRAGMA query_only = ON")
            .map_err(sql_error)
    };
    engine(&backend).write(LONG, refuse).await.unwrap();
    let job = |tx: &Tx<'_>| insert(tx, "test_boot", "refused", HOUR);
    let error = engine(&backend).write(LONG, job).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unavailable, "{error}");
    let wal = directory.path().join("shared.db-wal");
    let emptied = async || fs::metadata(&wal).unwrap().len() == 0;
    until(LONG, "an empty WAL", emptied).await.unwrap();
}

/// A million rows that live for a second, written as fast as 512 tasks can, leave a small file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_short_lived_rows_leave_a_small_file() {
    const WRITES: u64 = 1_000_000;
    const TASKS: u64 = 512;
    let (directory, path) = scratch();
    let backend = super::open(&path).await;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let sqlite = engine(&backend).clone();
        tasks.spawn(async move {
            for n in (task..WRITES).step_by(TASKS as usize) {
                let key = format!("tk:r1:{{{n:064x}}}:{}", "v".repeat(32));
                let job =
                    move |tx: &Tx<'_>| insert(tx, "test_boot", &key, tx.boot_micros() + 1_000_000);
                sqlite.write(LONG, job).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let size = || -> u64 {
        let files = fs::read_dir(directory.path()).unwrap();
        files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum()
    };
    let count = async || number(&backend, "SELECT count(*) FROM test_boot").await;
    let small = async || count().await == 0 && size() <= 10 << 20;
    let bound = Duration::from_secs(120);
    until(bound, "no row and at most 10 MiB", small)
        .await
        .unwrap();
}
