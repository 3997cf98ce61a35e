//! Child processes.

use std::time::{Duration, Instant};

use testkit::{Fleet, process};

#[tokio::test]
async fn children_run_at_the_same_time_and_report() {
    let children = Fleet::new("waits_for_its_turn")
        .env("WORD", "x")
        .spawn(3)
        .await;
    let mut results = Vec::new();
    for child in children {
        results.push(child.finish().await);
    }
    assert_eq!(results, [["0 x", "done"], ["1 x", "done"], ["2 x", "done"]]);
}

#[test]
#[ignore = "the child of children_run_at_the_same_time_and_report"]
fn waits_for_its_turn() {
    let number = std::env::var("TESTKIT_CHILD").unwrap();
    process::report(format_args!("{number} {}", std::env::var("WORD").unwrap()));
    process::report("done");
}

#[tokio::test]
#[should_panic(expected = "ended with")]
async fn a_failing_child_fails_its_parent() {
    Fleet::new("fails").run(1).await;
}

#[test]
#[ignore = "the child of a_failing_child_fails_its_parent"]
fn fails() {
    panic!("on purpose");
}

#[tokio::test]
#[should_panic(expected = "ended with")]
async fn a_child_that_does_not_exist_fails_its_parent() {
    Fleet::new("no_such_test").run(1).await;
}

/// A child that waits for ever, inside a child that is killed.
#[tokio::test]
async fn grandchildren_die_with_a_killed_child() {
    let mut child = Fleet::new("has_a_child").spawn(1).await.remove(0);
    let grandchild: i32 = child.next_result().await.unwrap().parse().unwrap();
    let grandchild = rustix::process::Pid::from_raw(grandchild).unwrap();
    let alive = || rustix::process::test_kill_process(grandchild).is_ok();
    assert!(alive());
    child.kill();
    let start = Instant::now();
    while alive() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the grandchild lives on"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
#[ignore = "the child of grandchildren_die_with_a_killed_child"]
async fn has_a_child() {
    let child = Fleet::new("waits_for_ever").spawn(1).await.remove(0);
    process::report(child.pid());
    std::future::pending::<()>().await;
}

#[tokio::test]
#[ignore = "the grandchild of grandchildren_die_with_a_killed_child"]
async fn waits_for_ever() {
    std::future::pending::<()>().await;
}
