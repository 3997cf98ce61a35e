//! Locks that nobody else wants.

use std::time::{Duration, Instant};

use testkit::RedisServer;
use tokio::task::JoinSet;

use crate::{
    contenders::{Bare, Contender, Ours, Rslock},
    median, micros, percentile, sent,
};

/// Tasks, and how often they lock and unlock in one round.
const LOADS: [(u64, u64); 3] = [(1, 4_000), (16, 24_000), (64, 32_000)];
const ROUNDS: usize = 11;
const NAMES: u64 = 10_000;

/// What one round came to.
struct Load {
    /// For one lock and its release.
    each: f64,
    /// How long locking took, in order.
    locking: Vec<Duration>,
    /// The server's time in the commands of one lock and its release.
    server: f64,
}

pub async fn measure(server: &RedisServer) {
    let (bare, rslock) = (Bare::new(server).await, Rslock::new(server));
    let ours = Ours::new(&[server.url()]).await;
    println!("## Uncontended lock and unlock, {NAMES} names, {ROUNDS} rounds\n");
    println!("| tasks | bare | ours | rslock | ours to bare | rslock to bare |");
    println!("|---|---|---|---|---|---|");
    let mut absolute = Vec::new();
    for (tasks, total) in LOADS {
        let (mut bares, mut our, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS + 1 {
            let one = (
                run(server, &bare, tasks, total).await,
                run(server, &ours, tasks, total).await,
                run(server, &rslock, tasks, total).await,
            );
            // Scripts and connections are new in the first.
            if round > 0 {
                bares.push(one.0);
                our.push(one.1);
                peers.push(one.2);
            }
        }
        let each = |loads: &[Load]| median(loads.iter().map(|load| load.each).collect());
        let ratio = |loads: &[Load]| {
            let ratios = bares
                .iter()
                .zip(loads)
                .map(|(bare, load)| bare.each / load.each);
            median(ratios.collect())
        };
        println!(
            "| {tasks} | {:.2} us | {:.2} us | {:.2} us | {:.2} | {:.2} |",
            each(&bares),
            each(&our),
            each(&peers),
            ratio(&our),
            ratio(&peers)
        );
        absolute.push((tasks, [("bare", bares), ("ours", our), ("rslock", peers)]));
    }
    println!("\n| tasks | | lock p50 | p95 | p99 | locks and unlocks/s | server, each |");
    println!("|---|---|---|---|---|---|---|");
    for (tasks, contenders) in absolute {
        for (name, loads) in contenders {
            let of = |figure: &dyn Fn(&Load) -> f64| median(loads.iter().map(figure).collect());
            let at = |percent| of(&|load| micros(percentile(&load.locking, percent)));
            println!(
                "| {tasks} | {name} | {:.0} us | {:.0} us | {:.0} us | {:.0} | {:.1} us |",
                at(50),
                at(95),
                at(99),
                1e6 / of(&|load| load.each),
                of(&|load| load.server)
            );
        }
    }
    println!();
}

/// Only this, for a profiler.
pub async fn one(server: &RedisServer, contender: &str, tasks: u64, count: u64) {
    let load = match contender {
        "bare" => run(server, &Bare::new(server).await, tasks, count).await,
        "ours" => run(server, &Ours::new(&[server.url()]).await, tasks, count).await,
        "rslock" => run(server, &Rslock::new(server), tasks, count).await,
        other => panic!("unknown contender {other}"),
    };
    println!(
        "{:.2} us each, {:.2} us of the server",
        load.each, load.server
    );
}

async fn run<C: Contender>(server: &RedisServer, contender: &C, tasks: u64, total: u64) -> Load {
    server.reset_stats().await;
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let contender = contender.clone();
        // Each task has names of its own.
        let (own, share) = (NAMES / tasks, total / tasks);
        running.spawn(async move {
            let mut locking = Vec::with_capacity(share as usize);
            for n in 0..share {
                let name = format!("job:{}", task * own + n % own);
                let asked = Instant::now();
                let guard = contender.lock(&name).await;
                locking.push(asked.elapsed());
                contender.unlock(guard).await;
            }
            locking
        });
    }
    let mut locking = running.join_all().await.concat();
    let each = micros(begun.elapsed()) / locking.len() as f64;
    locking.sort_unstable();
    let (_, server) = sent(&server.command_calls().await);
    Load {
        each,
        server: server as f64 / locking.len() as f64,
        locking,
    }
}
