//! How long a decision takes while Redis does not answer, and how long until Redis decides again afterwards.
//!
//! Each round has a server of its own kind of trouble: stopped, or behind a network that swallows everything. Tasks ask all the
//! time, as requests would.

use std::time::{Duration, Instant};

use redis_conn::{Backend, Config};
use testkit::{Fault, FaultProxy, RedisServer};
use tower_ratelimit_redis::{Limiter, Policy, Source};

const ROUNDS: usize = 20;
const TROUBLE: Duration = Duration::from_millis(1_500);
const TASKS: usize = 16;
const TIMEOUT: Duration = Duration::from_millis(100);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;

    let frozen = measure(&server.url(), || server.freeze(), || server.thaw()).await;
    report("server stopped (SIGSTOP)", frozen);
    let swallowed = measure(
        &proxy.url(),
        || proxy.set(Fault::Blackhole),
        || proxy.set(Fault::Pass),
    )
    .await;
    report("network swallows everything", swallowed);
}

struct Measured {
    decisions: Vec<Duration>,
    recoveries: Vec<Duration>,
}

async fn measure(url: &str, begin: impl Fn(), end: impl Fn()) -> Measured {
    let backend = Backend::redis(Config::from_url(url).expect("a URL")).expect("a backend");
    backend
        .ready(Duration::from_secs(10))
        .await
        .expect("a server");
    let limiter = Limiter::builder(&backend)
        .timeout(TIMEOUT)
        .build()
        .expect("a limiter");
    let policy = Policy::new("bench")
        .limit(1_000_000_000, Duration::from_secs(60))
        .build()
        .expect("a policy");
    let mut measured = Measured {
        decisions: Vec::new(),
        recoveries: Vec::new(),
    };
    for _ in 0..ROUNDS {
        begin();
        let until = Instant::now() + TROUBLE;
        let mut asking = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let (limiter, policy) = (limiter.clone(), policy.clone());
            asking.spawn(async move {
                let mut taken = Vec::new();
                while Instant::now() < until {
                    let asked = Instant::now();
                    let decision = limiter
                        .check(&policy, format!("user:{task}"), 1)
                        .await
                        .expect("a decision");
                    taken.push((asked.elapsed(), decision.source()));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                taken
            });
        }
        let taken = asking.join_all().await.into_iter().flatten();
        measured.decisions.extend(
            taken
                .filter(|(_, source)| *source == Source::Local)
                .map(|(taken, _)| taken),
        );

        end();
        let ended = Instant::now();
        while limiter
            .check(&policy, "user:0", 1)
            .await
            .expect("a decision")
            .source()
            != Source::Store
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        measured.recoveries.push(ended.elapsed());
    }
    measured
}

fn report(what: &str, mut measured: Measured) {
    let line = |name: &str, times: &mut Vec<Duration>| {
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        println!(
            "{what}: {name}: median {:.1?}, p99 {:.1?}, worst {:.1?} of {}",
            at(0.5),
            at(0.99),
            at(1.0),
            times.len()
        );
    };
    line("decision", &mut measured.decisions);
    line("decided by Redis again after", &mut measured.recoveries);
}
