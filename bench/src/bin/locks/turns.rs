//! One lock that many want.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bench::bare;
use testkit::RedisServer;
use tokio::task::JoinSet;

use crate::{
    contenders::{Contender, Ours, Rslock},
    median, micros, percentile, sent,
};

const TASKS: usize = 32;
const SECTIONS: usize = 320;
const SECTION: Duration = Duration::from_millis(1);
const ROUNDS: usize = 5;
/// How long turns are taken to see who has how many.
const TURNS: Duration = Duration::from_secs(3);
const PINGS: usize = 1_000;

/// What is done under the lock.
#[derive(Clone, Copy)]
enum Work {
    /// Timers make more than a millisecond of it, and the cores are free meanwhile.
    Sleep,
    Spin,
}

const WORK: [(Work, &str); 2] = [(Work::Sleep, "sleep"), (Work::Spin, "spin")];

impl Work {
    async fn section(self) {
        match self {
            Self::Sleep => tokio::time::sleep(SECTION).await,
            Self::Spin => {
                let begun = Instant::now();
                while begun.elapsed() < SECTION {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

/// When tasks stop.
#[derive(Clone, Copy)]
enum Until {
    Sections(usize),
    Moment(Instant),
}

/// What came of many turns.
struct Turns {
    took: Duration,
    /// From the call of a release to the begin of the next section, in order.
    gaps: Vec<Duration>,
    /// Of each task, in order.
    grants: Vec<usize>,
    /// What clients sent for each grant.
    commands: f64,
}

impl Turns {
    fn gap(&self, percent: usize) -> f64 {
        micros(percentile(&self.gaps, percent))
    }
}

pub async fn measure(server: &RedisServer) {
    let one = vec![Ours::new(&[server.url()]).await];
    let two = vec![one[0].clone(), Ours::new(&[server.url()]).await];
    let rslock = vec![Rslock::new(server)];
    hand_over(server, &one, &two, &rslock).await;
    println!(
        "## {SECTIONS} sections of {SECTION:?} in {TASKS} tasks under one lock, against one task without, {ROUNDS} rounds\n"
    );
    println!("| sections | without | | with | ratio | commands for each |");
    println!("|---|---|---|---|---|---|");
    for (work, what) in WORK {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let alone = tokio::spawn(async move {
                for _ in 0..SECTIONS {
                    work.section().await;
                }
            });
            alone.await.expect("sections");
            let until = Until::Sections(SECTIONS);
            rounds.push((
                begun.elapsed(),
                [
                    ("ours", take_turns(server, &one, work, until).await),
                    (
                        "ours, 2 backends",
                        take_turns(server, &two, work, until).await,
                    ),
                    ("rslock", take_turns(server, &rslock, work, until).await),
                ],
            ));
        }
        for contender in 0..3 {
            let of = |figure: &dyn Fn(Duration, &Turns) -> f64| {
                let figures = rounds.iter();
                median(
                    figures
                        .map(|(alone, turns)| figure(*alone, &turns[contender].1))
                        .collect(),
                )
            };
            println!(
                "| {what} | {:.0} ms | {} | {:.0} ms | {:.2} | {:.2} |",
                of(&|alone, _| micros(alone) / 1e3),
                rounds[0].1[contender].0,
                of(&|_, turns| micros(turns.took) / 1e3),
                of(&|alone, turns| micros(turns.took) / micros(alone)),
                of(&|_, turns| turns.commands),
            );
        }
    }
    println!();
}

async fn hand_over(server: &RedisServer, one: &[Ours], two: &[Ours], rslock: &[Rslock]) {
    println!(
        "## Hand-over of one lock among {TASKS} tasks, sections of {SECTION:?}, {ROUNDS} rounds of {TURNS:?}\n"
    );
    println!(
        "| sections | | gap p50 | p99 | to PING | to PING after a section | grants of a task, least | most |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut pings = (Vec::new(), Vec::new());
    for (work, what) in WORK {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let ping = (ping(server, None).await, ping(server, Some(work)).await);
            let until = || Until::Moment(Instant::now() + TURNS);
            rounds.push((
                ping,
                [
                    ("ours", take_turns(server, one, work, until()).await),
                    (
                        "ours, 2 backends",
                        take_turns(server, two, work, until()).await,
                    ),
                    ("rslock", take_turns(server, rslock, work, until()).await),
                ],
            ));
        }
        for contender in 0..3 {
            let of = |figure: &dyn Fn((f64, f64), &Turns) -> f64| {
                let figures = rounds.iter();
                let figures = figures.map(|(ping, turns)| figure(*ping, &turns[contender].1));
                median(figures.collect())
            };
            println!(
                "| {what} | {} | {:.0} us | {:.0} us | {:.2} | {:.2} | {:.0} | {:.0} |",
                rounds[0].1[contender].0,
                of(&|_, turns| turns.gap(50)),
                of(&|_, turns| turns.gap(99)),
                of(&|(hot, _), turns| turns.gap(50) / hot),
                of(&|(_, rested), turns| turns.gap(50) / rested),
                of(&|_, turns| turns.grants[0] as f64),
                of(&|_, turns| turns.grants[TASKS - 1] as f64),
            );
        }
        pings.0.extend(rounds.iter().map(|(ping, _)| ping.0));
        let after = rounds.iter().map(|(ping, _)| ping.1);
        pings.1.push((what, median(after.collect())));
    }
    print!("\nPING p50 {:.0} us", median(pings.0));
    for (what, after) in pings.1 {
        print!(", after a section ({what}) {after:.0} us");
    }
    println!("\n");
}

/// The round trip that half of them do not exceed: one after the other, or each after a section, as locks are handed over.
async fn ping(server: &RedisServer, work: Option<Work>) -> f64 {
    let mut connection = bare(&server.url()).await;
    let pinging = tokio::spawn(async move {
        let mut times = Vec::with_capacity(PINGS);
        for _ in 0..PINGS {
            if let Some(work) = work {
                work.section().await;
            }
            let begun = Instant::now();
            let pong: String = redis::cmd("PING")
                .query_async(&mut connection)
                .await
                .expect("PONG");
            times.push(begun.elapsed());
            assert_eq!(pong, "PONG");
        }
        times
    });
    let mut times = pinging.await.expect("pings");
    times.sort_unstable();
    micros(percentile(&times, 50))
}

/// The tasks are shared out among the contenders, each of which has connections of its own, as processes have.
async fn take_turns<C: Contender>(
    server: &RedisServer,
    contenders: &[C],
    work: Work,
    until: Until,
) -> Turns {
    for contender in contenders {
        let guard = contender.lock("turns").await;
        contender.unlock(guard).await;
    }
    server.reset_stats().await;
    let released = Arc::new(Mutex::new(None::<Instant>));
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for task in 0..TASKS {
        let (contender, released) = (
            contenders[task % contenders.len()].clone(),
            Arc::clone(&released),
        );
        running.spawn(async move {
            let mut gaps = Vec::new();
            let more = |turns: usize| match until {
                Until::Sections(sections) => turns < sections / TASKS,
                Until::Moment(moment) => Instant::now() < moment,
            };
            let mut turns = 0;
            while more(turns) {
                let guard = contender.lock("turns").await;
                let begun = Instant::now();
                // Only who has the lock is here.
                let last = released
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                gaps.extend(last.map(|last| begun - last));
                work.section().await;
                let now = Instant::now();
                let before = released
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .replace(now);
                assert!(before.is_none(), "two had it");
                contender.unlock(guard).await;
                turns += 1;
            }
            (turns, gaps)
        });
    }
    let (mut grants, gaps): (Vec<usize>, Vec<_>) = running.join_all().await.into_iter().unzip();
    let took = begun.elapsed();
    let mut gaps = gaps.concat();
    gaps.sort_unstable();
    grants.sort_unstable();
    let (commands, _) = sent(&server.command_calls().await);
    Turns {
        took,
        gaps,
        commands: commands as f64 / grants.iter().sum::<usize>() as f64,
        grants,
    }
}
