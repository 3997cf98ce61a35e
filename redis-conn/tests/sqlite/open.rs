//! Which files are opened, and by how many at once.

use std::{fs, path::Path, time::Duration};

use redis_conn::{
    Backend, ErrorKind, State,
    raw::{Tx, sql_error},
};
use testkit::{Fleet, process};

use super::{LONG, bypass, engine, increment, number, open, scratch, until};

#[tokio::test]
async fn eight_processes_open_a_new_file_at_the_same_moment() {
    let (directory, _) = scratch();
    let fleet = Fleet::new("open::opens_with_others").env("DIRECTORY", directory.path().display());
    let mut children = fleet.spawn(8).await;
    for round in 0..5 {
        for child in &mut children {
            assert_eq!(child.next_result().await.as_deref(), Some("ready"));
        }
        fs::write(directory.path().join(format!("go{round}")), "").unwrap();
    }
    for child in children {
        let results = child.finish().await;
        assert_eq!(results.last().map(String::as_str), Some("all opened"));
    }
    for round in 0..5 {
        let backend = open(&directory.path().join(format!("{round}.db"))).await;
        assert_eq!(number(&backend, "SELECT value FROM test_boot").await, 8);
    }
}

#[tokio::test]
#[ignore = "the child of eight_processes_open_a_new_file_at_the_same_moment"]
async fn opens_with_others() {
    let directory = std::env::var("DIRECTORY").unwrap();
    let directory = Path::new(&directory);
    for round in 0..5 {
        process::report("ready");
        let go = directory.join(format!("go{round}"));
        while !go.exists() {
            std::thread::yield_now();
        }
        let backend = open(&directory.join(format!("{round}.db"))).await;
        engine(&backend)
            .write(LONG, |tx| increment(tx, "opened"))
            .await
            .unwrap();
        backend.close(LONG).await.unwrap();
    }
    process::report("all opened");
}

/// Refused with `kind`, and nothing in the directory but the lock file has changed.
async fn is_refused(path: &Path, kind: ErrorKind, texts: &[&str]) {
    let before = fs::read(path).unwrap();
    let error = Backend::sqlite(path).await.unwrap_err();
    assert_eq!(error.kind(), &kind, "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "{text:?} in {error}");
    }
    assert!(fs::read(path).unwrap() == before, "the file was changed");
    let directory = fs::read_dir(path.parent().unwrap()).unwrap();
    let mut names: Vec<_> = directory.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["shared.db", "shared.db-lock"]);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_as_it_is() {
    for garbage in [&b"x"[..], &[b'g'; 5_000]] {
        let (_directory, path) = scratch();
        fs::write(&path, garbage).unwrap();
        let found = format!("{} bytes that are no SQLite database", garbage.len());
        is_refused(&path, ErrorKind::Corrupt, &[&found, "0x54776b70"]).await;
    }
}

#[tokio::test]
async fn the_database_of_another_program_is_left_as_it_is() {
    let (_directory, path) = scratch();
    bypass(&path)
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA application_id = 17; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        .unwrap();
    is_refused(
        &path,
        ErrorKind::Corrupt,
        &["another program", "0x11", "0x54776b70"],
    )
    .await;
}

#[tokio::test]
async fn a_newer_layout_is_left_as_it_is() {
    let (_directory, path) = scratch();
    open(&path).await.close(LONG).await.unwrap();
    bypass(&path)
        .execute_batch("PRAGMA user_version = 2")
        .unwrap();
    is_refused(&path, ErrorKind::Corrupt, &["layout 2", "up to 1"]).await;
}

#[tokio::test]
async fn an_empty_file_is_a_new_one() {
    let (_directory, path) = scratch();
    fs::write(&path, "").unwrap();
    let backend = open(&path).await;
    assert_eq!(number(&backend, "SELECT count(*) FROM test_boot").await, 0);
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_a_configuration_error() {
    let (directory, path) = scratch();
    let missing = directory.path().join("missing").join("shared.db");
    let below_a_file = path.join("shared.db");
    fs::write(&path, "").unwrap();
    let read_only = Path::new("/proc/shared.db");
    for path in [
        directory.path(),
        &missing,
        &below_a_file,
        read_only,
        Path::new("/dev/null"),
    ] {
        let error = Backend::sqlite(path).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Config, "{path:?}: {error}");
        assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
    }
    for path in ["", ":memory:", "file:x?mode=memory"] {
        let error = Backend::sqlite(path).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Config, "{path:?}: {error}");
        assert!(error.to_string().contains("Backend::memory"), "{error}");
    }
    assert!(!Path::new("file:x?mode=memory").exists());
}

#[tokio::test]
async fn a_reboot_voids_what_goes_by_the_time_since_boot() {
    let (_directory, path) = scratch();
    let count = |backend: Backend| async move {
        let boot = number(&backend, "SELECT count(*) FROM test_boot").await;
        let wall = number(&backend, "SELECT count(*) FROM test_wall").await;
        backend.close(LONG).await.unwrap();
        (boot, wall)
    };
    let backend = open(&path).await;
    engine(&backend)
        .write(LONG, |tx| increment(tx, "a"))
        .await
        .unwrap();
    let insert = |tx: &Tx<'_>| {
        let sql = "INSERT INTO test_wall VALUES ('a', 1, ?1)";
        tx.execute(sql, [i64::MAX]).map_err(sql_error)
    };
    engine(&backend).write(LONG, insert).await.unwrap();
    backend.close(LONG).await.unwrap();

    assert_eq!(count(open(&path).await).await, (1, 1), "the same boot");
    bypass(&path)
        .execute_batch("UPDATE tk_meta SET value = 'an earlier one' WHERE name = 'boot'")
        .unwrap();
    assert_eq!(count(open(&path).await).await, (0, 1), "another boot");
    assert_eq!(count(open(&path).await).await, (0, 1), "and that is stored");
}

#[tokio::test]
async fn closing_ends_every_thread_and_every_later_call() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    let (sqlite, other) = (engine(&backend).clone(), backend.clone());
    let mut subscription = backend.bus().subscribe("news").await.unwrap();
    let mut state = backend.watch_state();
    assert_eq!(state.get(), State::Connected);
    backend.close(LONG).await.unwrap();
    assert_eq!(open_descriptors(&path), 0);
    assert!(state.wait_for(State::Disconnected).await);
    assert_eq!(subscription.recv().await, None);
    for error in [
        sqlite.write(LONG, |_| Ok(())).await.unwrap_err(),
        sqlite.read(LONG, |_| Ok(())).await.unwrap_err(),
        other.bus().publish("news", b"late").await.unwrap_err(),
        other.bus().subscribe("news").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), &ErrorKind::Closed);
    }
}

#[tokio::test]
async fn dropping_the_last_handle_ends_every_thread() {
    let (_directory, path) = scratch();
    let backend = open(&path).await;
    assert!(open_descriptors(&path) > 0);
    drop(backend);
    let ended = async || open_descriptors(&path) == 0;
    until(
        "all threads have closed the file",
        Duration::from_secs(10),
        ended,
    )
    .await;
}

/// How many descriptors of this process lead to the database or one of its companions.
fn open_descriptors(path: &Path) -> usize {
    let name = path.as_os_str().as_encoded_bytes();
    let targets = fs::read_dir("/proc/self/fd").unwrap();
    targets
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.as_os_str().as_encoded_bytes().starts_with(name))
        .count()
}
