//! Calls that gather while others are under way: fewer commands, and the same decisions.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{collections::BTreeMap, sync::mpsc, time::Duration};

use redis_conn::{Backend, Config, Endpoint};
use testkit::{
    AfterDrop, CommandStat, Fault, FaultProxy, Matching, RedisClock, RedisCluster, RedisServer,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tower_ratelimit_redis::{
    Algorithm, Decision, Limiter, LimiterBuilder, OnFailure, Policy, RateLimitError, Revise,
};

const HOUR: Duration = Duration::from_secs(3_600);
const START: u64 = 1_700_000_000_123_457;
/// Reaching it means that what is awaited will not happen.
const NEVER: Duration = Duration::from_secs(30);
const TASKS: usize = 64;
const CHECKS: usize = 50;
/// More than so many calls to one server have those that come later wait, see `batch.rs`.
const FLIGHTS: usize = 2;

fn policy(max: u64) -> Policy {
    Policy::new("test").limit(max, HOUR).build().unwrap()
}

async fn connect(url: &str) -> Backend {
    let backend = Backend::redis(Config::from_url(url).unwrap()).unwrap();
    backend.ready(NEVER).await.unwrap();
    backend
}

/// One that hides no failure, and whose timeout decides nothing.
fn patient(backend: &Backend) -> LimiterBuilder {
    Limiter::builder(backend)
        .timeout(2 * NEVER)
        .on_failure(OnFailure::Closed)
        // Each call is to reach the store.
        .denied_capacity(0)
}

type Outcome = Result<Decision, RateLimitError>;
type Asking = JoinHandle<Outcome>;

fn check(limiter: &Limiter, policy: &Policy, subject: &str, cost: u64) -> Asking {
    let (limiter, policy, subject) = (limiter.clone(), policy.clone(), subject.to_owned());
    tokio::spawn(async move { limiter.check(&policy, subject, cost).await })
}

/// Has so many calls under way that all that come now wait for one of them. Nothing returns before the server goes on.
async fn hold(server: &RedisServer, limiter: &Limiter) -> Vec<Asking> {
    server.freeze();
    let other = Policy::new("hold").limit(1_000, HOUR).build().unwrap();
    let holding = (0..FLIGHTS).map(|number| check(limiter, &other, &number.to_string(), 1));
    let holding = holding.collect();
    all_have_asked().await;
    holding
}

/// What was spawned has run until it waits: there is one thread, and each has its turn before this one again.
async fn all_have_asked() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

async fn decided(asking: Asking) -> Decision {
    timeout(NEVER, asking).await.unwrap().unwrap().unwrap()
}

async fn used(limiter: &Limiter, policy: &Policy, subject: &str) -> u64 {
    let seen = limiter.peek(policy, subject).await.unwrap();
    seen.limits()[0].limit - seen.limits()[0].remaining
}

/// The commands that the checks of many tasks cost. Each asks again as soon as it was answered.
async fn commands_of_many(
    limiter: &Limiter,
    subject: impl Fn(usize) -> String,
    calls: impl AsyncFn() -> BTreeMap<String, CommandStat>,
) -> u64 {
    let policy = policy(1_000_000);
    let sum = async || {
        let calls = calls().await;
        let of = |name| calls.get(name).map_or(0, |stat| stat.calls);
        of("evalsha") + of("eval")
    };
    limiter.check(&policy, "warm", 1).await.unwrap();
    let before = sum().await;
    let mut asking = JoinSet::new();
    for task in 0..TASKS {
        let (limiter, policy, subject) = (limiter.clone(), policy.clone(), subject(task));
        asking.spawn(async move {
            for _ in 0..CHECKS {
                let decision = limiter.check(&policy, &*subject, 1).await.unwrap();
                assert!(decision.is_allowed());
            }
        });
    }
    asking.join_all().await;
    let commands = sum().await - before;
    let mut charged = 0;
    let mut subjects: Vec<String> = (0..TASKS).map(subject).collect();
    subjects.dedup();
    for subject in subjects {
        charged += used(limiter, &policy, &subject).await;
    }
    assert_eq!(charged, (TASKS * CHECKS) as u64, "each is charged once");
    println!("{commands} commands for {} checks", TASKS * CHECKS);
    commands
}

/// A fifth of a command for each check.
const FEW: u64 = (TASKS * CHECKS / 5) as u64;

#[tokio::test]
async fn many_calls_of_one_subject_are_few_commands() {
    let server = RedisServer::start().await;
    let limiter = patient(&connect(&server.url()).await).build().unwrap();
    let hot = |_| "hot".to_owned();
    let commands = commands_of_many(&limiter, hot, || server.command_calls()).await;
    assert!(commands <= FEW, "{commands}");
}

#[tokio::test]
async fn calls_of_many_subjects_on_one_server_are_few_commands() {
    let server = RedisServer::start().await;
    let limiter = patient(&connect(&server.url()).await).build().unwrap();
    let own = |task| format!("subject {task}");
    let commands = commands_of_many(&limiter, own, || server.command_calls()).await;
    assert!(commands <= FEW, "{commands}");
}

#[tokio::test]
async fn calls_of_one_subject_gather_on_a_cluster_and_those_of_many_do_not_wait_for_each_other() {
    let cluster = RedisCluster::start().await;
    let addrs = cluster.addrs().into_iter();
    let endpoint = |addr: std::net::SocketAddr| Endpoint::tcp(addr.ip().to_string(), addr.port());
    let config = Config::cluster(addrs.map(endpoint))
        .username(testkit::USER)
        .password(testkit::PASSWORD);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(NEVER).await.unwrap();
    let limiter = patient(&backend).build().unwrap();
    let hot = |_| "hot".to_owned();
    let commands = commands_of_many(&limiter, hot, || cluster.command_calls()).await;
    assert!(commands <= FEW, "{commands}");
    let own = |task| format!("subject {task}");
    let commands = commands_of_many(&limiter, own, || cluster.command_calls()).await;
    // Nodes that do not know the script yet are asked twice.
    let each = TASKS * CHECKS;
    assert!(
        (each..=each + TASKS).contains(&(commands as usize)),
        "{commands}"
    );
}

#[tokio::test]
async fn gathered_calls_are_decided_as_they_would_be_one_by_one() {
    const CALLS: u64 = 120;
    let server = RedisServer::builder().allow("~other:*").start().await;
    let clock = RedisClock::new();
    clock.set_micros(START);
    let backend = Backend::builder()
        .rewrite_scripts(clock.rewriter())
        .redis(Config::from_url(&server.url()).unwrap())
        .unwrap();
    backend.ready(NEVER).await.unwrap();
    let policy = policy(50);
    let alone = patient(&backend.namespace("other").unwrap()).coalesce(false);
    let alone = alone.build().unwrap();
    let gathering = patient(&backend).build().unwrap();
    // Some sums of the costs of a subject hit the limit, and others do not.
    let calls = (0..CALLS).map(|n| (["a", "b", "c"][(n * n % 7 % 3) as usize], 1 + n * 31 % 6));
    let calls: Vec<_> = calls.collect();

    let holding = hold(&server, &gathering).await;
    let asking: Vec<_> = calls
        .iter()
        .map(|(subject, cost)| check(&gathering, &policy, subject, *cost))
        .collect();
    all_have_asked().await;
    server.thaw();
    let mut gathered = Vec::new();
    for asking in asking {
        gathered.push(decided(asking).await);
    }
    for holding in holding {
        decided(holding).await;
    }
    let mut refused = 0;
    for ((subject, cost), gathered) in calls.iter().zip(&gathered) {
        let alone = alone.check(&policy, *subject, *cost).await.unwrap();
        assert_eq!(
            (alone.is_allowed(), alone.granted()),
            (gathered.is_allowed(), gathered.granted()),
            "{cost} of {subject}"
        );
        refused += u32::from(!alone.is_allowed());
    }
    assert!(refused > 20);
    for subject in ["a", "b", "c"] {
        let same = used(&alone, &policy, subject).await;
        assert_eq!(used(&gathering, &policy, subject).await, same);
    }
}

#[tokio::test]
async fn policies_revisions_and_unknown_algorithms_are_decided_each_as_it_must_be() {
    let server = RedisServer::start().await;
    let limiter = patient(&connect(&server.url()).await).build().unwrap();
    let strict = policy(10);
    let other = Policy::new("test").limit_by(Algorithm::Gcra { burst: 10 }, 10, 24 * HOUR);
    let other = other.build().unwrap();
    let first = Policy::new("revised").limit(10, HOUR).build().unwrap();
    let second = Policy::new("revised")
        .limit(10, HOUR)
        .revision(1, Revise::Reset)
        .build()
        .unwrap();
    limiter.check(&other, "unknown", 3).await.unwrap();
    limiter.check(&first, "revised", 9).await.unwrap();

    let holding = hold(&server, &limiter).await;
    let many = |policy: &Policy, subject: &str, count| -> Vec<Asking> {
        let one = |_| check(&limiter, policy, subject, 1);
        (0..count).map(one).collect()
    };
    let at_most = |units| {
        let (limiter, policy) = (limiter.clone(), strict.clone());
        tokio::spawn(async move { limiter.check_at_most(&policy, "most", units).await })
    };
    let plain = many(&strict, "plain", 12);
    let unknown = many(&strict, "unknown", 5);
    let most = [at_most(7), at_most(7), at_most(7)];
    let revised = many(&second, "revised", 4);
    let fresh = many(&second, "fresh", 2);
    let also = many(&other, "plain", 1);
    all_have_asked().await;
    server.thaw();

    let granted = async |asking: Vec<Asking>| {
        let mut granted = Vec::new();
        for asking in asking {
            granted.push(decided(asking).await.granted());
        }
        granted
    };
    let also = granted(also).await;
    assert_eq!(also, [1]);
    let plain = granted(plain).await;
    // That of the other policy is charged to this one too, whichever comes first.
    assert!((9..=10).contains(&plain.iter().sum::<u64>()), "{plain:?}");
    assert!(
        plain.is_sorted_by(|a, b| a >= b),
        "in the order in which they came"
    );
    assert_eq!(granted(unknown).await, [1; 5]);
    assert_eq!(granted(most.into()).await, [7, 3, 0]);
    assert_eq!(granted(revised).await, [1; 4]);
    assert_eq!(granted(fresh).await, [1; 2]);
    assert_eq!(used(&limiter, &strict, "unknown").await, 5);
    assert_eq!(used(&limiter, &other, "unknown").await, 8);
    assert_eq!(used(&limiter, &second, "revised").await, 4, "once anew");
    granted(holding).await;
}

#[tokio::test]
async fn who_gives_up_before_it_was_sent_is_not_charged_and_disturbs_nobody() {
    let server = RedisServer::start().await;
    let limiter = patient(&connect(&server.url()).await).build().unwrap();
    let policy = policy(10);
    let holding = hold(&server, &limiter).await;
    let asking: Vec<_> = (0..6).map(|_| check(&limiter, &policy, "a", 1)).collect();
    all_have_asked().await;
    for given_up in [&asking[0], &asking[3], &asking[5]] {
        given_up.abort();
    }
    all_have_asked().await;
    // Those who wait for it do not wait for ever.
    holding[1].abort();
    all_have_asked().await;
    server.thaw();
    for (number, asking) in asking.into_iter().enumerate() {
        match number {
            0 | 3 | 5 => assert!(asking.await.unwrap_err().is_cancelled()),
            _ => assert!(decided(asking).await.is_allowed()),
        }
    }
    assert_eq!(used(&limiter, &policy, "a").await, 3);
    for _ in 0..7 {
        let decision = decided(check(&limiter, &policy, "a", 1)).await;
        assert!(decision.is_allowed());
    }
}

#[tokio::test]
async fn who_was_sent_and_not_answered_hears_that_it_may_have_been_charged() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let backend = connect(&proxy.url()).await;
    let limiter = patient(&backend).timeout(Duration::from_secs(3)).build();
    let limiter = limiter.unwrap();
    let policy = policy(10);
    limiter.check(&policy, "a", 1).await.unwrap();
    let key = server.keys().await.remove(0);
    proxy.set(Fault::DropReply {
        matching: Matching::Bytes(key.into_bytes()),
        after: AfterDrop::Stall,
    });
    let holding = hold(&server, &limiter).await;
    let first = check(&limiter, &policy, "a", 1);
    all_have_asked().await;
    // It has longer, and so has what is sent for both.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = check(&limiter, &policy, "a", 1);
    all_have_asked().await;
    server.thaw();
    for asking in [first, second] {
        let error = timeout(NEVER, asking).await.unwrap().unwrap().unwrap_err();
        let RateLimitError::Store(error) = error else {
            panic!("{error:?}");
        };
        assert!(error.is_ambiguous(), "{error}");
    }
    drop(holding);
    assert_eq!(
        server.command_calls().await["evalsha"].calls,
        FLIGHTS as u64 + 2
    );
}

#[tokio::test]
async fn an_error_reaches_all_who_wait() {
    let server = RedisServer::start().await;
    let limiter = patient(&connect(&server.url()).await).build().unwrap();
    let policy = policy(1_000);
    let mut asking = hold(&server, &limiter).await;
    for number in 0..200 {
        asking.push(check(&limiter, &policy, &format!("{}", number % 7), 1));
    }
    all_have_asked().await;
    server.kill();
    for asking in asking {
        let error = timeout(NEVER, asking).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, RateLimitError::Store(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_runtime_that_ends_lets_all_go_who_wait_for_it() {
    let server = RedisServer::start().await;
    let url = server.url();
    let (send, limiter) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let driver = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let backend = runtime.block_on(connect(&url));
        send.send(patient(&backend).build().unwrap()).unwrap();
        ended.recv().unwrap();
        drop(backend);
        runtime.shutdown_timeout(NEVER);
    });
    let limiter = tokio::task::spawn_blocking(move || limiter.recv().unwrap());
    let limiter = limiter.await.unwrap();
    let policy = policy(1_000);
    let mut asking = hold(&server, &limiter).await;
    for number in 0..200 {
        asking.push(check(&limiter, &policy, &format!("{}", number % 7), 1));
    }
    all_have_asked().await;
    end.send(()).unwrap();
    for asking in asking {
        let outcome = timeout(NEVER, asking).await.unwrap().unwrap();
        assert!(
            matches!(outcome, Err(RateLimitError::Store(_))),
            "{outcome:?}"
        );
    }
    let join = tokio::task::spawn_blocking(move || driver.join().unwrap());
    timeout(NEVER, join).await.unwrap().unwrap();
    let later = check(&limiter, &policy, "a", 1);
    assert!(timeout(NEVER, later).await.unwrap().unwrap().is_err());
}
