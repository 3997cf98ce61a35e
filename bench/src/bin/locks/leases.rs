//! What it costs to hold locks, and how soon one is had whose holder died.

use std::{
    collections::BTreeMap,
    env,
    process::Stdio,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use testkit::{CommandStat, RedisCluster, RedisServer};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::sleep,
};
use tower_distlock::{LockGuard, LockOptions, Locks};

use crate::{TTL, contenders::Ours, micros, sent};

const HELD: usize = 10_000;
/// So that the first renewals are due.
const SETTLE: Duration = Duration::from_secs(12);
/// Two renewals of each lock.
const WINDOW: Duration = Duration::from_secs(20);

/// The argument of a process that is killed.
pub const CHILD: &str = "hold";
const SHORT: Duration = Duration::from_secs(2);
const WAITERS: usize = 5;
const DEATHS: usize = 11;

pub async fn measure() {
    println!("## {HELD} held locks, ttl {TTL:?}, over {WINDOW:?}\n");
    println!("| | commands/s |\n|---|---|");
    let server = RedisServer::start().await;
    renewals("one server", &[server.url()], async || {
        server.command_calls().await
    })
    .await;
    let cluster = RedisCluster::builder()
        .replicas_per_primary(0)
        .start()
        .await;
    let urls = cluster.seed_urls();
    renewals("cluster of 3", &urls, async || {
        cluster.command_calls().await
    })
    .await;
    println!();
}

async fn renewals(
    place: &str,
    urls: &[String],
    calls: impl AsyncFn() -> BTreeMap<String, CommandStat>,
) {
    let Ours(locks) = Ours::new(urls).await;
    let mut guards: Vec<LockGuard> = Vec::with_capacity(HELD);
    for n in 0..HELD {
        let options = LockOptions::new().ttl(TTL);
        let guard = locks.acquire(&format!("job:{n}"), options).await;
        guards.push(guard.expect("a lock"));
    }
    sleep(SETTLE).await;
    let ((before, _), begun) = (sent(&calls().await), Instant::now());
    sleep(WINDOW).await;
    let (after, _) = sent(&calls().await);
    let cost = (after - before) as f64 / begun.elapsed().as_secs_f64();
    let lost = guards.iter().filter(|guard| guard.valid_for().is_zero());
    assert_eq!(lost.count(), 0, "locks were lost");
    println!("| {place} | {cost:.1} |");
}

/// From the last renewal of a process that is killed to the next grant.
pub async fn deaths(server: &RedisServer) {
    let mut times = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..WAITERS {
        waiting.push(Ours::new(&[server.url()]).await.0);
    }
    for n in 0..DEATHS {
        times.push(death(server, &waiting, n).await);
    }
    times.sort_unstable();
    println!("## The holder is killed, ttl {SHORT:?}, {WAITERS} backends wait, {DEATHS} times\n");
    println!("| from the last renewal to the next grant | |\n|---|---|");
    for (what, time) in [
        ("least", times[0]),
        ("median", times[DEATHS / 2]),
        ("most", times[DEATHS - 1]),
    ] {
        println!("| {what} | {:.0} ms |", micros(time) / 1e3);
    }
}

async fn death(server: &RedisServer, waiting: &[Locks], n: usize) -> Duration {
    let program = env::current_exe().expect("a program");
    let mut child = Command::new(program)
        .args([CHILD, &server.url()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a process");
    let stdout = child.stdout.take().expect("its output");
    let mut lines = BufReader::new(stdout).lines();
    lines.next_line().await.expect("its output");
    let grants = waiting.iter().map(|locks| {
        let locks = locks.clone();
        let options = LockOptions::new().ttl(SHORT).wait_forever();
        tokio::spawn(async move {
            let guard = locks.acquire("job", options).await.expect("a lock");
            let at = Instant::now();
            guard.release().await.expect("a release");
            at
        })
    });
    let grants: Vec<_> = grants.collect();
    // Any time between two renewals.
    sleep(SHORT + Duration::from_millis(97 * n as u64)).await;
    child.kill().await.expect("it lives");
    let remaining = waiting[0].ttl("job").await.expect("an answer");
    let renewed = Instant::now() + remaining.expect("it holds it still") - SHORT;
    let granted = try_join_all(grants).await.expect("grants");
    granted.into_iter().min().expect("a grant") - renewed
}

/// Holds a lock until it is killed.
pub async fn hold(url: &str) {
    let Ours(locks) = Ours::new(&[url.to_owned()]).await;
    let options = LockOptions::new().ttl(SHORT);
    let _guard = locks.acquire("job", options).await.expect("a lock");
    println!("held");
    std::future::pending::<()>().await;
}
