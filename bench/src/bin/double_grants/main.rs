//! How many locks are granted to somebody else while the first holder still has them by its own clock, in rounds of real failures: a
//! primary is killed and sentinels promote its replica; of the servers of a `Redlock` one is killed and starts empty.
//!
//! `double_grants [ROUNDS [PART]]` prints a table, of 30 rounds each if not given, of what has PART in its name.

mod failover;
mod redlock;

use std::{
    collections::BTreeMap,
    env,
    future::{Future, ready},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use redis_conn::{Backend, Config};
use tower_distlock::{Durability, LockError};

const ROUNDS: usize = 30;
/// A failover ends before the first renewal, which is after a third of it.
const TTL: Duration = Duration::from_secs(30);
/// Only a hang takes so long.
const LONG: Duration = Duration::from_secs(60);
/// For how long replicas are waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// How many rounds are under way together that wait more than they work.
const AT_ONCE: usize = 3;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let rounds = env::args().nth(1);
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let primary = Durability::Primary;
    let replicas = Durability::Replicas {
        n: 1,
        timeout: PATIENCE,
    };
    println!("| what fails | rounds | refused | held | granted twice | what was said |");
    println!("|---|---|---|---|---|---|");
    for (mode, durability) in [("Primary", primary), ("Replicas { n: 1 }", replicas)] {
        let round = move || failover::held_back(durability);
        let what = format!("`{mode}`; the replica is cut off, then the primary killed");
        report(&what, rounds, AT_ONCE, round).await;
    }
    for (mode, durability) in [("Primary", primary), ("Replicas { n: 1 }", replicas)] {
        let round = move || failover::under_load(durability);
        let what = format!("`{mode}`; locks are acquired all the time, the primary is killed");
        report(&what, rounds, 2, round).await;
    }
    let what = "`Replicas { n: 1 }` of two; the one that knew is killed with the primary";
    let round = move || failover::another_takes_over(replicas);
    report(what, rounds, AT_ONCE, round).await;
    let what = "`Replicas { n: 1 }`; the replica is cut off for a lease after the grant, then the primary killed";
    let round = move || failover::renewals_are_missed(replicas);
    report(what, rounds, 2 * AT_ONCE, round).await;
    for (what, gated) in [("`Redlock`", true), ("`Redlock`, `without_gate`", false)] {
        let what = format!("{what}; one of its two voters of three is killed and starts empty");
        report(&what, rounds, 2 * AT_ONCE, move || redlock::round(gated)).await;
    }
}

/// What came of rounds.
#[derive(Default)]
struct Tally {
    /// How many locks the first was refused.
    refused: usize,
    /// How many locks the first held when the failure came.
    held: usize,
    /// How many of these somebody else was granted while the first had them still.
    twice: usize,
    /// How often what was said, and to whom.
    said: BTreeMap<String, usize>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.refused += other.refused;
        self.held += other.held;
        self.twice += other.twice;
        for (what, times) in other.said {
            *self.said.entry(what).or_default() += times;
        }
    }

    fn say(&mut self, who: &str, what: &str) {
        *self.said.entry(format!("{who}: {what}")).or_default() += 1;
    }

    fn refuse(&mut self, error: &LockError) {
        self.refused += 1;
        self.say("first", &named(error));
    }

    /// Somebody else asked for what the first held.
    fn second<T>(&mut self, asked: &Result<T, LockError>, is_held: bool) {
        match asked {
            Ok(_) if is_held => self.twice += 1,
            Ok(_) => self.say("first", "lost it before"),
            Err(error) => self.say("second", &named(error)),
        }
    }
}

/// Without what differs from time to time.
fn named(error: &LockError) -> String {
    let name = match error {
        LockError::NotAcquired { .. } => "NotAcquired".to_owned(),
        LockError::TimedOut { .. } => "TimedOut".to_owned(),
        LockError::Backend(error) => format!("{:?}", error.kind()),
        other => format!("{other:?}"),
    };
    format!("`{name}`")
}

/// Runs rounds, some of them together, and prints what came of them.
async fn report<F>(what: &str, rounds: usize, at_once: usize, round: impl Fn() -> F)
where
    F: Future<Output = Tally>,
{
    if env::args().nth(2).is_some_and(|part| !what.contains(&part)) {
        return;
    }
    let running = stream::iter((0..rounds).map(|_| round())).buffer_unordered(at_once);
    let each = |mut all: Tally, one| {
        all.add(one);
        ready(all)
    };
    let all = running.fold(Tally::default(), each).await;
    let Tally {
        refused,
        held,
        twice,
        said,
    } = all;
    let said = said
        .iter()
        .map(|(what, times)| format!("{what} ({times})"))
        .collect::<Vec<_>>()
        .join(", ");
    println!("| {what} | {rounds} | {refused} | {held} | {twice} | {said} |");
}

/// The connections of one process.
async fn connected(config: Config) -> Backend {
    let backend = Backend::redis(config).expect("a backend");
    backend.ready(LONG).await.expect("servers");
    backend
}
