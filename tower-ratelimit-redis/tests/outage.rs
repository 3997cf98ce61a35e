//! A Redis that goes away while it is used: who waits, what is admitted meanwhile, and how it is found again.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use redis_conn::{Backend, Config, Endpoint, State};
use testkit::{Fault, FaultProxy, RedisCluster, RedisServer, until};
use tokio::task::JoinSet;
use tower_ratelimit_redis::{
    Limiter, OnFailure, Policy, PolicyBuilder, RateLimitError, Source, Spending,
};

const HOUR: Duration = Duration::from_secs(3_600);
/// How long a decision may take, and for how long nobody asks again where it took longer.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Ten times the timeout of a decision and 20 ms, and at least 2 s: only a hang takes so long.
const HANG: Duration = Duration::from_secs(2);
/// Reaching it means that what is awaited will not happen.
const NEVER: Duration = Duration::from_secs(30);
const TASKS: usize = 16;

fn policy(max: u64) -> PolicyBuilder {
    Policy::new("api").limit(max, HOUR)
}

async fn connect(url: &str) -> Backend {
    let backend = Backend::redis(Config::from_url(url).unwrap()).unwrap();
    backend.ready(NEVER).await.unwrap();
    backend
}

fn limiter(backend: &Backend, on_failure: OnFailure) -> Limiter {
    Limiter::builder(backend)
        .timeout(TIMEOUT)
        .on_failure(on_failure)
        // Each call is to be decided as it comes.
        .denied_capacity(0)
        .build()
        .unwrap()
}

/// What a caller met.
#[derive(Clone, Copy)]
struct Met {
    subject: usize,
    granted: u64,
    source: Source,
    waited: Duration,
}

/// Callers that never pause, until they are told to.
struct Crowd {
    tasks: JoinSet<Vec<Met>>,
    stop: Arc<AtomicBool>,
}

impl Crowd {
    fn start(limiter: &Limiter, policy: &Policy, subjects: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let (limiter, policy) = (limiter.clone(), policy.clone());
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let mut met = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let subject = (task + met.len()) % subjects;
                    let begun = Instant::now();
                    let name = format!("subject {subject}");
                    let decision = limiter.check(&policy, name, 1).await.unwrap();
                    met.push(Met {
                        subject,
                        granted: decision.granted(),
                        source: decision.source(),
                        waited: begun.elapsed(),
                    });
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                met
            });
        }
        Self { tasks, stop }
    }

    async fn end(self) -> Vec<Met> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.concat()
    }
}

fn assert_nobody_hangs(what: &str, met: &[Met]) {
    let longest = met.iter().map(|met| met.waited).max().unwrap();
    println!(
        "{what}: the longest wait of {} calls was {longest:?}",
        met.len()
    );
    assert!(longest < HANG, "{longest:?}");
}

/// Each subject was admitted no more by this process than its share, what the store admitted before included.
fn assert_within_share(met: &[Met], share: u64) {
    let mut by_store = HashMap::<usize, u64>::new();
    let mut by_itself = HashMap::<usize, u64>::new();
    for met in met {
        let granted = match met.source {
            Source::Store => by_store.entry(met.subject),
            Source::Local => by_itself.entry(met.subject),
            other => panic!("{other:?}"),
        };
        *granted.or_default() += met.granted;
    }
    assert!(!by_itself.is_empty());
    for (subject, granted) in by_itself {
        let known = by_store.get(&subject).copied().unwrap_or_default();
        let room = share.saturating_sub(known);
        assert!(granted <= room, "{granted} on top of {known}");
    }
}

async fn is_by(limiter: &Limiter, policy: &Policy, source: Source) -> bool {
    let decision = limiter.check(policy, "probe", 1).await.unwrap();
    decision.source() == source
}

#[tokio::test]
async fn a_server_that_is_killed_costs_nobody_more_than_the_timeout() {
    const SUBJECTS: usize = 8;
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let limiter = limiter(&backend, OnFailure::Local { share: 0.5 });
    let policy = policy(40).build().unwrap();
    let probe = Policy::new("probe").limit(1_000_000, HOUR).build().unwrap();
    let crowd = Crowd::start(&limiter, &policy, SUBJECTS);
    let left = async |at_most: u64, source| {
        for subject in 0..SUBJECTS {
            let name = format!("subject {subject}");
            let seen = limiter.peek(&policy, name).await.unwrap();
            if seen.source() != source || seen.limits()[0].remaining > at_most {
                return false;
            }
        }
        true
    };
    let some = async || left(35, Source::Store).await;
    until(NEVER, "some admissions", some).await.unwrap();
    server.kill();
    let none = async || left(0, Source::Local).await;
    until(NEVER, "the end of the shares", none).await.unwrap();
    let met = crowd.end().await;
    assert_nobody_hangs("killed", &met);
    assert_within_share(&met, 20);

    let crowd = Crowd::start(&limiter, &policy, 1_000);
    server.restart().await;
    let back = async || is_by(&limiter, &probe, Source::Store).await;
    until(NEVER, "the store", back).await.unwrap();
    assert_nobody_hangs("restarted", &crowd.end().await);
}

#[tokio::test]
async fn one_call_at_a_time_finds_out_whether_the_server_answers_again() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connect(&proxy.url()).await;
    let limiter = limiter(&backend, OnFailure::Local { share: 1.0 });
    let policy = policy(1_000_000).build().unwrap();
    assert!(is_by(&limiter, &policy, Source::Store).await);
    let crowd = Crowd::start(&limiter, &policy, 100);
    // What is asked reaches the server, and the connection is there for the next who asks; but no answer comes.
    proxy.set(Fault::close_instead_of_reply("EVALSHA"));
    let away = async || is_by(&limiter, &policy, Source::Local).await;
    until(NEVER, "the fallback", away).await.unwrap();
    let asked = async || server.command_calls().await["evalsha"].calls;
    let (before, begun) = (asked().await, Instant::now());
    let some = async || asked().await > before + 3;
    until(NEVER, "some who find out", some).await.unwrap();
    let met = crowd.end().await;
    let pauses = begun.elapsed().as_millis() / TIMEOUT.as_millis();
    let calls = u128::from(asked().await - before);
    // Those that were on their way when it began may be among them.
    assert!(
        calls <= pauses + 6,
        "{calls} of {} calls in {pauses} pauses",
        met.len()
    );
    assert_nobody_hangs("no answers", &met);
    let at_once = met.iter().filter(|met| met.source == Source::Local);
    assert!(at_once.count() > 10 * usize::try_from(calls).unwrap());

    proxy.set(Fault::Pass);
    let back = async || is_by(&limiter, &policy, Source::Store).await;
    until(NEVER, "the store", back).await.unwrap();
    // One answer is enough for all.
    for _ in 0..20 {
        assert!(is_by(&limiter, &policy, Source::Store).await);
    }
}

#[tokio::test]
async fn who_must_not_go_without_the_store_fails_at_once_while_it_is_away() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connect(&proxy.url()).await;
    let limiter = limiter(&backend, OnFailure::Closed);
    let policy = policy(1_000_000).build().unwrap();
    limiter.check(&policy, "a", 1).await.unwrap();
    // What is asked reaches the server; nothing comes back.
    proxy.set(Fault::FreezeAfter(0));
    // One may be an accident.
    for _ in 0..3 {
        assert!(limiter.check(&policy, "a", 1).await.is_err());
    }
    let asked = async || server.command_calls().await["evalsha"].calls;
    let (before, begun) = (asked().await, Instant::now());
    let mut failing = JoinSet::new();
    for _ in 0..1_000 {
        let (limiter, policy) = (limiter.clone(), policy.clone());
        failing.spawn(async move {
            let error = limiter.check(&policy, "a", 1).await.unwrap_err();
            assert!(matches!(error, RateLimitError::Store(_)), "{error:?}");
        });
    }
    failing.join_all().await;
    let took = begun.elapsed();
    println!("1,000 calls failed in {took:?}");
    let pauses = took.as_millis() / TIMEOUT.as_millis();
    let calls = u128::from(asked().await - before);
    assert!(calls <= pauses + 1, "{calls} in {pauses} pauses");
}

/// Kills the server when a policy has spent `spent` units, and tells how many more this process admits.
async fn admitted_after(spending: Spending, spent: u64) -> u64 {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let limiter = Limiter::builder(&backend)
        .timeout(Duration::from_secs(10))
        .on_failure(OnFailure::Local { share: 0.5 })
        .denied_capacity(0)
        .build()
        .unwrap();
    let policy = policy(100).spending(spending).build().unwrap();
    for _ in 0..spent {
        let decision = limiter.check(&policy, "a", 1).await.unwrap();
        assert!(decision.is_allowed() && decision.source() != Source::Local);
    }
    server.kill();
    let ended = async || backend.state() != State::Connected;
    until(NEVER, "the end of the connection", ended)
        .await
        .unwrap();
    let mut admitted = 0;
    for _ in 0..200 {
        let decision = limiter.check(&policy, "a", 1).await.unwrap();
        admitted += decision.granted();
    }
    admitted
}

#[tokio::test]
async fn a_fresh_outage_grants_no_fresh_burst_whoever_counted_before() {
    assert_eq!(admitted_after(Spending::Exact, 30).await, 20);
    assert_eq!(admitted_after(Spending::Exact, 70).await, 0);
    // What was reserved may be spent, and counts; what was given back does not.
    assert_eq!(admitted_after(Spending::Lease(10), 30).await, 20);
    assert_eq!(admitted_after(Spending::Lease(20), 30).await, 20);
    assert_eq!(admitted_after(Spending::Lease(20), 61).await, 19);
    // What was known to be left may be spent, and counts.
    assert_eq!(admitted_after(Spending::WriteBehind(HOUR), 30).await, 70);
}

#[tokio::test]
async fn a_shard_that_is_away_makes_no_calls_of_the_others_local() {
    const FROZEN: usize = 0;
    const SUBJECTS: usize = 48;
    /// The slots that are away together, see `away.rs`.
    const PART: u16 = 256;
    let cluster = RedisCluster::builder().proxied().start().await;
    let addrs = cluster.addrs().into_iter();
    let config =
        Config::cluster(addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port())));
    let config = config.password(testkit::PASSWORD).username(testkit::USER);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(NEVER).await.unwrap();
    let limiter = limiter(&backend, OnFailure::default());
    let policy = policy(1_000_000).build().unwrap();
    let check = async |subject: usize| {
        let begun = Instant::now();
        let decision = limiter.check(&policy, format!("{subject}"), 1).await;
        (decision.unwrap().source(), begun.elapsed())
    };

    let (mut frozen, mut others, mut known) = (Vec::new(), Vec::new(), Vec::new());
    for subject in 0..SUBJECTS {
        let decided = async || check(subject).await.0 == Source::Store;
        until(NEVER, "the store", decided).await.unwrap();
        for node in 0..3 {
            for key in cluster.node(node).keys().await {
                if known.contains(&key) {
                    continue;
                }
                let slot = RedisCluster::slot_of(&key);
                known.push(key);
                match node {
                    FROZEN => frozen.push((subject, slot / PART)),
                    _ => others.push((subject, slot / PART)),
                }
            }
        }
    }
    let last = frozen.iter().map(|(_, part)| *part).max().unwrap();
    others.retain(|(_, part)| *part > last + 1);
    assert!(frozen.len() > 5 && others.len() > 10);

    cluster.proxy(FROZEN).set(Fault::Blackhole);
    let mut met = Vec::new();
    for _ in 0..5 {
        for (subject, _) in &others {
            assert_eq!(check(*subject).await.0, Source::Store);
        }
        for (subject, part) in &frozen {
            let (source, waited) = check(*subject).await;
            assert_eq!(source, Source::Local, "{part}");
            met.push(waited);
        }
    }
    let longest = met.iter().max().unwrap();
    println!(
        "one shard away: the longest of {} waits was {longest:?}",
        met.len()
    );
    assert!(*longest < HANG, "{longest:?}");

    cluster.proxy(FROZEN).set(Fault::Pass);
    for (subject, _) in &frozen {
        let back = async || check(*subject).await.0 == Source::Store;
        until(NEVER, "the shard", back).await.unwrap();
    }
}

#[tokio::test]
async fn a_permit_is_released_while_another_shard_does_not_answer() {
    let cluster = RedisCluster::builder().proxied().start().await;
    let addrs = cluster.addrs().into_iter();
    let endpoint = |addr: std::net::SocketAddr| Endpoint::tcp(addr.ip().to_string(), addr.port());
    let config = Config::cluster(addrs.map(endpoint))
        .username(testkit::USER)
        .password(testkit::PASSWORD);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(NEVER).await.unwrap();
    let limiter = Limiter::builder(&backend)
        .timeout(2 * NEVER)
        .on_failure(OnFailure::Closed)
        .build()
        .unwrap();
    let policy = Policy::new("held").concurrency(1, HOUR).build().unwrap();

    let (mut there, mut elsewhere) = (None, None);
    for n in 0.. {
        let (subject, before) = (n.to_string(), cluster.node(0).keys().await.len());
        let acquired = limiter.acquire(&policy, &*subject, 1).await.unwrap();
        let permit = acquired.permit().unwrap();
        if cluster.node(0).keys().await.len() > before {
            there = Some(permit);
        } else {
            elsewhere = Some((subject, permit));
        }
        if there.is_some() && elsewhere.is_some() {
            break;
        }
    }
    cluster.proxy(0).set(Fault::Blackhole);
    drop(there);
    // On one thread: what was said first is done first.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let (subject, permit) = elsewhere.unwrap();
    drop(permit);
    let is_free = async || {
        let seen = limiter.peek(&policy, &*subject).await.unwrap();
        seen.limits()[0].remaining == 1
    };
    // The other one is given up after some 17 s.
    until(4 * HANG, "the release", is_free).await.unwrap();
}
