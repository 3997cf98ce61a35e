//! How long a decision takes while Redis does not answer, and how long until Redis decides again afterwards.
//!
//! Each round has a server of its own kind of trouble: stopped, or behind a network that swallows everything. Tasks ask all the
//! time, as requests would. Then: how long a connection is used whose way has become a black hole, and how far beyond their deadline
//! its callers wait, at a steady rate of calls, on one server and on one of three shards.

use std::time::{Duration, Instant};

use redis_conn::{
    Backend, Config, Endpoint,
    raw::{Call, Class, Engine, Redis},
};
use testkit::{Fault, FaultProxy, PASSWORD, RedisCluster, RedisServer, USER};
use tower_ratelimit_redis::{Limiter, Policy, Source};

const ROUNDS: usize = 20;
const TROUBLE: Duration = Duration::from_millis(1_500);
const TASKS: usize = 16;
const TIMEOUT: Duration = Duration::from_millis(100);
const KEY: &str = "tk:bench";
const PER_SECOND: u32 = 200;

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

    let single = Config::from_url(&proxy.url()).expect("a URL");
    black_hole("lane in a black hole, one server", single, &proxy).await;
    let cluster = RedisCluster::builder().replicas_per_primary(0).proxied();
    let cluster = cluster.start().await;
    let owner = cluster.primary_of(RedisCluster::slot_of(KEY)).await;
    let nodes = cluster.addrs().into_iter();
    let nodes = nodes.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let sharded = Config::cluster(nodes).username(USER).password(PASSWORD);
    let sharded = sharded.build().expect("a configuration");
    let proxy = cluster.proxy(owner);
    black_hole("lane in a black hole, one of three shards", sharded, proxy).await;
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

/// Calls with the deadline [`TIMEOUT`] while the way of the live connection is lost, until another one serves.
async fn black_hole(what: &str, config: Config, proxy: &FaultProxy) {
    let config = config.into_builder().lanes(1).build();
    let backend = Backend::redis(config.expect("a configuration")).expect("a backend");
    let ready = backend.ready(Duration::from_secs(10)).await;
    ready.expect("a server");
    let Engine::Redis(redis) = backend.engine() else {
        panic!("a backend on Redis");
    };
    let (mut late, mut replaced) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut calls = tokio::task::JoinSet::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
        // The worst that a round can show.
        let mut answered = TROUBLE;
        let mut lost = None;
        // Long enough that the next round begins with a connection that has lasted.
        let until = Instant::now() + TROUBLE + TROUBLE;
        while Instant::now() < until {
            pace.tick().await;
            calls.spawn(call(redis.clone()));
            if lost.is_none() && Instant::now() + TROUBLE > until {
                lost = Some(Instant::now());
                proxy.blackhole_live();
            }
        }
        let lost = lost.expect("half of the time has passed");
        for (asked, ended, is_answer) in calls.join_all().await {
            late.push((ended - asked).saturating_sub(TIMEOUT));
            // Not those that were answered just before.
            if is_answer && asked > lost {
                answered = answered.min(ended - lost);
            }
        }
        replaced.push(answered.as_secs_f64() / TIMEOUT.as_secs_f64());
    }
    line(what, "beyond the deadline of a call", &mut late);
    replaced.sort_unstable_by(f64::total_cmp);
    println!(
        "{what}: served again after: median {:.2}, worst {:.2} command timeouts of {ROUNDS}",
        replaced[replaced.len() / 2],
        replaced[replaced.len() - 1]
    );
}

/// When it was asked and when it ended, and whether by an answer.
async fn call(redis: Redis) -> (Instant, Instant, bool) {
    let asked = Instant::now();
    let get = Call::new("GET", Class::Idempotent).key(KEY);
    let answer = redis.call(get, TIMEOUT).await;
    (asked, Instant::now(), answer.is_ok())
}

fn report(what: &str, mut measured: Measured) {
    line(what, "decision", &mut measured.decisions);
    let name = "decided by Redis again after";
    line(what, name, &mut measured.recoveries);
}

fn line(what: &str, name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{what}: {name}: median {:.1?}, p99 {:.1?}, worst {:.1?} of {}",
        at(0.5),
        at(0.99),
        at(1.0),
        times.len()
    );
}
