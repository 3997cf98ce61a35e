//! What locks cost, beside the peers and the least that a lock can do: one redis-server, all contenders in turn, and of several rounds
//! the medians. `locks` prints all of it, `locks load|turns|leases|deaths` a part.
//!
//! `locks one CONTENDER TASKS COUNT` does nothing but lock and unlock, for a profiler; CONTENDER is `bare`, `ours` or `rslock`.

mod contenders;
mod leases;
mod load;
mod turns;

use std::{collections::BTreeMap, env, time::Duration};

use bench::runtime;
use testkit::{CommandStat, RedisServer};

/// The ttl of a lock whose holder does not die.
const TTL: Duration = Duration::from_secs(30);

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = runtime();
    runtime.block_on(async {
        match arguments.as_slice() {
            [] => {
                load::measure(&server().await).await;
                turns::measure(&server().await).await;
                leases::measure().await;
                leases::deaths(&server().await).await;
            }
            ["load"] => load::measure(&server().await).await,
            ["turns"] => turns::measure(&server().await).await,
            ["leases"] => leases::measure().await,
            ["deaths"] => leases::deaths(&server().await).await,
            ["one", contender, tasks, count] => {
                let (tasks, count) = (tasks.parse(), count.parse());
                let (tasks, count) = (tasks.expect("a number"), count.expect("a number"));
                load::one(&server().await, contender, tasks, count).await;
            }
            [leases::CHILD, url] => leases::hold(url).await,
            other => panic!("unknown arguments {other:?}"),
        }
    });
    // What is under way in the background ends with the process.
    runtime.shutdown_background();
}

async fn server() -> RedisServer {
    // The peer loads its script, which services in production may not.
    RedisServer::builder().allow("+script|load").start().await
}

/// How many commands clients sent, and the microseconds that the server took for them. What scripts call is counted in these.
fn sent(calls: &BTreeMap<String, CommandStat>) -> (u64, u64) {
    // Only our scripts call SET, and they all call TIME.
    let set = Some("set").filter(|_| !calls.contains_key("time"));
    let names = ["evalsha", "eval", "subscribe", "unsubscribe"];
    let stats = names
        .into_iter()
        .chain(set)
        .filter_map(|name| calls.get(name));
    stats.fold((0, 0), |(calls, usec), stat| {
        (calls + stat.calls, usec + stat.usec)
    })
}

/// Of any number of figures the one in the middle.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The figure that so many of a hundred are not above.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
