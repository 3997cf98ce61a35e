//! `demo`: two server processes that share one rate limit.

use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use crate::http::Client;
use crate::process::TempDir;
use crate::redis::{Home, Single};
use crate::sh::Result;
use crate::showcase::{self, Showcase};
use crate::{Command, Flag, Flags, Value, setup};

pub(crate) const COMMAND: Command = Command {
    name: "demo",
    about: "two server processes share one rate limit",
    flags: &[Flag {
        name: "--redis",
        value: Value::None,
        about: "share it on a Redis server instead of one SQLite file; `setup` finds or installs one",
    }],
    details: "
Starts the showcase twice, sends 400 requests of one client alternately to both, and shows what
each admitted. The limit is 100 a minute: exactly 100 must pass, however they spread. Both
processes, and the Redis server of `--redis`, are stopped at the end.",
    run: |flags: &Flags| {
        if flags.has("--redis") {
            on_redis()
        } else {
            on_sqlite()
        }
    },
};

const LIMIT: usize = 100;
/// Far longer than the burst takes, so that a slow machine does not reach a second window.
const WINDOW_MS: &str = "60000";
const REQUESTS: usize = 400;
/// Requests are sent by this many threads at once, each alternating between the instances.
const SENDERS: usize = 8;
const INSTANCES: [&str; 2] = ["one", "two"];

/// The demo on one SQLite file: nothing but Rust is needed.
pub(crate) fn on_sqlite() -> Result {
    println!("Two server processes share one limit of {LIMIT} requests on one SQLite file.");
    let dir = TempDir::new("demo")?;
    let file = dir.path().join("limits.sqlite");
    run(
        &showcase::build()?,
        ("SQLITE_PATH", &file.to_string_lossy()),
    )
}

/// The demo on a Redis server that lives as long as the demo.
pub(crate) fn on_redis() -> Result {
    println!("Two server processes share one limit of {LIMIT} requests on one Redis server.");
    let server = setup::redis_server()?;
    let binary = showcase::build()?;
    let redis = Single::start(Home::temporary(&server)?)?;
    run(&binary, ("REDIS_URL", &redis.url()))
}

fn run(binary: &Path, backend: (&str, &str)) -> Result {
    let limit = LIMIT.to_string();
    let start = |name| {
        let settings: [(&str, &str); 4] = [
            ("INSTANCE", name),
            ("SHOWCASE_LIMIT", &limit),
            ("SHOWCASE_WINDOW_MS", WINDOW_MS),
            backend,
        ];
        Showcase::start(binary, &settings)
    };
    let [first, second] = INSTANCES;
    let instances = [start(first)?, start(second)?];
    for (name, instance) in INSTANCES.iter().zip(&instances) {
        instance.expect_ok("/health/live")?;
        println!("instance {name} listens on http://{}", instance.address);
    }
    println!("Sending {REQUESTS} requests, alternately to both:");
    let tallies = burst(&instances)?;
    report(&instances, &tallies);
    for instance in instances {
        instance.stop()?;
    }
    verdict(tallies.iter().map(|tally| tally.admitted).sum())
}

/// What one instance answered.
#[derive(Clone, Copy, Default)]
struct Tally {
    admitted: usize,
    refused: usize,
}

/// The index of an instance, and whether it admitted the request.
type Outcome = Result<(usize, bool)>;

fn burst(instances: &[Showcase; 2]) -> Result<[Tally; 2]> {
    let (sender, outcomes) = mpsc::channel();
    thread::scope(|scope| {
        for first in 0..SENDERS {
            let sender = sender.clone();
            scope.spawn(move || {
                if let Err(error) = send(instances, first, &sender) {
                    let _ = sender.send(Err(error));
                }
            });
        }
        drop(sender);
        count(&outcomes)
    })
}

/// Sends one thread's share, alternately, beginning with the instance that `first` falls on.
fn send(instances: &[Showcase; 2], first: usize, outcomes: &Sender<Outcome>) -> Result {
    let mut clients = [
        Client::connect(&instances[0].address)?,
        Client::connect(&instances[1].address)?,
    ];
    for n in first..first + REQUESTS / SENDERS {
        let instance = n % clients.len();
        let answer = clients[instance].get("/limited", &[("x-api-key", "demo")])?;
        let admitted = match answer.status {
            200 => true,
            429 => false,
            status => return Err(format!("status {status}: {}", answer.body).into()),
        };
        if outcomes.send(Ok((instance, admitted))).is_err() {
            break;
        }
    }
    Ok(())
}

/// Adds up the outcomes as they come, and shows the progress.
fn count(outcomes: &Receiver<Outcome>) -> Result<[Tally; 2]> {
    let mut tallies = [Tally::default(); 2];
    for (n, outcome) in outcomes.iter().enumerate() {
        let (instance, admitted) = outcome?;
        let tally = &mut tallies[instance];
        if admitted {
            tally.admitted += 1;
        } else {
            tally.refused += 1;
        }
        if (n + 1) % (REQUESTS / 8) == 0 {
            let admitted: usize = tallies.iter().map(|tally| tally.admitted).sum();
            println!("  {:>3} sent, {admitted:>3} admitted", n + 1);
        }
    }
    Ok(tallies)
}

fn report(instances: &[Showcase; 2], tallies: &[Tally; 2]) {
    println!("\n  instance  backend       admitted  refused");
    for ((name, instance), tally) in INSTANCES.iter().zip(instances).zip(tallies) {
        println!(
            "  {name:<8}  {:<12}  {:>8}  {:>7}",
            instance.backend, tally.admitted, tally.refused
        );
    }
    println!();
}

fn verdict(admitted: usize) -> Result {
    let line = format!("{admitted} of {REQUESTS} admitted");
    if admitted == LIMIT {
        println!("{line}");
        Ok(())
    } else {
        Err(format!("{line}, but the limit is {LIMIT}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_limit_itself_is_a_success() {
        assert!(verdict(LIMIT).is_ok());
        for wrong in [LIMIT - 1, LIMIT + 1] {
            let error = verdict(wrong).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{wrong} of 400 admitted")),
                "{error}"
            );
        }
    }

    #[test]
    fn outcomes_are_counted_by_instance() {
        let (sender, outcomes) = mpsc::channel();
        for outcome in [(0, true), (1, false), (1, true), (0, false), (0, false)] {
            sender.send(Ok(outcome)).unwrap();
        }
        drop(sender);
        let [first, second] = count(&outcomes).unwrap();
        assert_eq!((first.admitted, first.refused), (1, 2));
        assert_eq!((second.admitted, second.refused), (1, 1));
    }

    #[test]
    fn one_failed_request_fails_the_burst() {
        let (sender, outcomes) = mpsc::channel();
        sender.send(Err("status 503".into())).unwrap();
        assert!(count(&outcomes).is_err());
    }
}
