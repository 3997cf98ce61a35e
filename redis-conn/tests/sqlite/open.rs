//! Which files are opened, and by how many at once.

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
};

use redis_conn::{
    Backend, ErrorKind, Event, State, Status,
    raw::{Tx, sql_error},
};
use testkit::{Fleet, process, until};
use tokio::sync::oneshot;

use super::{LONG, bypass, engine, increment, number, open, scratch};

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
    assert_eq!(names(path), ["shared.db", "shared.db-lock"]);
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

/// The names of all files in the directory of `path`.
fn names(path: &Path) -> Vec<String> {
    let directory = fs::read_dir(path.parent().unwrap()).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
    let mut names: Vec<_> = directory.map(|entry| name(entry).unwrap()).collect();
    names.sort();
    names
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Copies a database together with its WAL, as a process that dies would leave them.
fn copy_hot(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
    fs::copy(companion(from, "-wal"), companion(to, "-wal")).unwrap();
}

#[tokio::test]
async fn the_database_of_another_program_that_died_is_not_recovered() {
    let ((_theirs, theirs), (_directory, path)) = (scratch(), scratch());
    let connection = bypass(&theirs);
    connection
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        .unwrap();
    copy_hot(&theirs, &path);
    let files = || [fs::read(&path), fs::read(companion(&path, "-wal"))].map(Result::unwrap);
    let before = files();
    let error = Backend::sqlite(&path).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Corrupt, "{error}");
    assert!(files() == before, "a file was changed");
    let expected = ["shared.db", "shared.db-lock", "shared.db-wal"];
    assert_eq!(names(&path), expected);
}

#[tokio::test]
async fn a_checkpoint_that_was_cut_short_is_finished() {
    let ((_source, source), (_directory, path)) = (scratch(), scratch());
    open(&source).await.close(LONG).await.unwrap();
    let connection = bypass(&source);
    connection
        .execute_batch(
            "PRAGMA wal_autocheckpoint = 0; INSERT INTO test_boot VALUES (hex(zeroblob(100000)), 7, 9e18)",
        )
        .unwrap();
    copy_hot(&source, &path);
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    connection.query_row(checkpoint, [], |_| Ok(())).unwrap();
    // The first page, with the new size of the file, was written and no other.
    let (whole, mut cut) = (fs::read(&source).unwrap(), fs::read(&path).unwrap());
    assert!(whole.len() > cut.len() && cut[..4_096] != whole[..4_096]);
    cut[..4_096].copy_from_slice(&whole[..4_096]);
    fs::write(&path, cut).unwrap();
    let backend = open(&path).await;
    assert_eq!(number(&backend, "SELECT value FROM test_boot").await, 7);
}

#[tokio::test]
async fn any_name_will_do() {
    let (directory, _) = scratch();
    let path = directory.path().join("a b%41?mode=memory#é&.db");
    for expected in 1..=2 {
        let backend = open(&path).await;
        let job = engine(&backend).write(LONG, |tx| increment(tx, "opened"));
        assert_eq!(job.await.unwrap(), expected);
        backend.close(LONG).await.unwrap();
    }
    assert_eq!(names(&path).len(), 2, "{:?}", names(&path));
}

/// Closing any descriptor of a file ends all POSIX locks that the process holds on it. Then another program that uses the file
/// believes to be the last one and removes the WAL.
#[tokio::test]
#[cfg(target_os = "linux")]
async fn opening_the_file_again_keeps_the_locks_of_this_process() {
    let (_directory, path) = scratch();
    let _first = open(&path).await;
    assert!(is_locked(&path));
    let second = open(&path).await;
    assert!(is_locked(&path), "the second was opened");
    second.close(LONG).await.unwrap();
    assert!(is_locked(&path), "the second was closed");
}

/// Whether a process holds a POSIX lock on the file.
#[cfg(target_os = "linux")]
fn is_locked(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let mut locks = locks.lines().filter(|lock| lock.contains("POSIX"));
    locks.any(|lock| lock.contains(&inode))
}

#[tokio::test]
async fn a_file_that_is_removed_or_replaced_is_lost() {
    for replaced in [false, true] {
        let (_directory, path) = scratch();
        let backend = open(&path).await;
        let mut news = backend.bus().subscribe("news").await.unwrap();
        fs::remove_file(&path).unwrap();
        if replaced {
            fs::write(&path, "").unwrap();
        }
        until(LONG, "the loss to be seen", async || {
            backend.state() == State::Error
        })
        .await
        .unwrap();
        let mut next = async || tokio::time::timeout(LONG, news.recv()).await;
        assert_eq!(next().await.expect("it is deaf"), Some(Event::Gap));
        assert_eq!(next().await.expect("it is deaf"), None);
        let sqlite = engine(&backend);
        for error in [
            sqlite.write(LONG, |_| Ok(())).await.unwrap_err(),
            sqlite.read(LONG, |_| Ok(())).await.unwrap_err(),
            backend.bus().publish("news", b"lost").await.unwrap_err(),
            backend.bus().subscribe("news").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), &ErrorKind::Unavailable);
            assert!(error.to_string().contains("removed or replaced"), "{error}");
        }
        let health = backend.health();
        assert_eq!(health.overall, Status::Unhealthy);
        let message = &health.checks[0].message;
        assert!(message.contains("removed or replaced"), "{message}");
        backend.close(LONG).await.unwrap();
        let error = sqlite.read(LONG, |_| Ok(())).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Closed);
    }
}

#[tokio::test]
async fn options_are_checked_before_a_file_is_made() {
    let (directory, path) = scratch();
    let too_long = "i".repeat(129);
    for builder in [
        Backend::builder().namespace("Shop"),
        Backend::builder().instance_id(""),
        Backend::builder().instance_id("a b"),
        Backend::builder().instance_id("é"),
        Backend::builder().instance_id(too_long),
    ] {
        let error = builder.clone().sqlite(&path).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Config, "{error}");
        let error = builder.memory().unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Config, "{error}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let longest = "i".repeat(128);
    let builder = Backend::builder().instance_id(&longest);
    let backend = builder.sqlite(&path).await.unwrap();
    assert_eq!(backend.instance_id(), longest);
}

/// Only a connection that may write removes the WAL, and only if it is the last: also when a reader is still busy.
#[tokio::test]
async fn closing_leaves_the_file_and_the_lock_only() {
    for _ in 0..10 {
        let (_directory, path) = scratch();
        let backend = open(&path).await;
        let _subscription = backend.bus().subscribe("news").await.unwrap();
        let (begun, has_begun) = oneshot::channel();
        let (sqlite, wal) = (engine(&backend).clone(), companion(&path, "-wal"));
        let reader = tokio::spawn(async move {
            let others_have_closed = move |_: &Tx<'_>| {
                let _ = begun.send(());
                // The writer waits for this one.
                while open_descriptors(&wal) > 2 {
                    std::thread::yield_now();
                }
                Ok(())
            };
            sqlite.read(LONG, others_have_closed).await
        });
        has_begun.await.unwrap();
        backend.close(LONG).await.unwrap();
        reader.await.unwrap().unwrap();
        assert_eq!(names(&path), ["shared.db", "shared.db-lock"]);
    }
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
        let text = error.to_string();
        assert!(text.contains(&format!("{path:?}")), "{text}");
        let cause = error.source().unwrap().to_string();
        assert!(!text.contains(&cause), "{text}: {cause}");
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
    until(LONG, "all threads to close the file", ended)
        .await
        .unwrap();
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
