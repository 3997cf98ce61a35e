//! Callers that give up at any moment, and those who do not: each of these must get its own reply.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use redis_conn::{
    Backend, Config, Error,
    raw::{Call, Class, Dedicated, Redis, Script},
};
use support::{cluster_config, redis};
use testkit::{AfterDrop, Fault, FaultProxy, Matching, RedisCluster, RedisServer};
use tokio::{
    task::{JoinSet, yield_now},
    time::timeout,
};

/// Longer than anything that works takes, also where there is much of it, so that it decides no test.
const LONG: Duration = Duration::from_secs(60);

/// Together they stay below what one lane takes in flight.
const TASKS: u64 = 32;
const BATCH: u64 = 16;

/// Keys whose value is their name.
const KEYS: u64 = 64;

async fn connected(config: Config) -> (Backend, Redis) {
    let config = config.into_builder().lanes(1).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    (backend, redis)
}

/// So that a failure can be repeated, as far as two threads and a server repeat anything.
fn seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let seed = now.subsec_nanos() | 1;
    println!("seed {seed}");
    seed.into()
}

/// Numbers at random (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64, task: u64) -> Self {
        Self((seed ^ (task + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) % limit
    }
}

/// What became of the calls.
#[derive(Debug, Default)]
struct Tally {
    unpolled: AtomicU64,
    dropped: AtomicU64,
    answered: AtomicU64,
    /// Replies that belonged to somebody else.
    foreign: AtomicU64,
    /// Dropped by a timer instead of after some polls.
    late: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    fn ended(&self, ended: Option<Result<bool, Error>>) {
        Self::count(match ended {
            Some(Ok(true)) => &self.answered,
            Some(Ok(false)) => &self.foreign,
            Some(Err(_)) => &self.failed,
            None => &self.late,
        });
    }

    /// All ended, each of them with its own reply, and enough in each way.
    fn check(&self, total: u64) {
        let counters = [
            &self.unpolled,
            &self.dropped,
            &self.answered,
            &self.late,
            &self.foreign,
            &self.failed,
        ];
        let [unpolled, dropped, answered, late, foreign, failed] = counters.map(Self::of);
        assert_eq!((foreign, failed), (0, 0), "{self:?}");
        assert_eq!(unpolled + dropped + answered + late, total, "{self:?}");
        assert!(dropped > total / 10 && answered > total / 10, "{self:?}");
    }
}

static ECHO: Script = Script::new("return {ARGV[1], KEYS[1]}");

/// One call of one of several kinds; tells whether the reply is its own.
async fn call(redis: &Redis, kind: u64, id: &str) -> Result<bool, Error> {
    let own =
        |reply: Option<Vec<u8>>, expected: &str| reply.as_deref() == Some(expected.as_bytes());
    match kind {
        0 => {
            let key = format!("tk:{{{}}}", id.len());
            let script = redis.script(&ECHO, Class::Idempotent, &[&key]).arg(id);
            let Ok([argument, echoed]) = script.run(LONG).await?.array() else {
                return Ok(false);
            };
            let (Ok(argument), Ok(echoed)) = (argument.bytes(), echoed.bytes()) else {
                return Ok(false);
            };
            Ok(own(argument, id) && own(echoed, &key))
        }
        1..=4 => {
            let key = format!("tk:{}", id.len() as u64 * 7 % KEYS);
            let get = Call::new("GET", Class::Idempotent).key(&key);
            let value = redis.call(get, LONG).await?;
            Ok(value.bytes().is_ok_and(|value| own(value, &key)))
        }
        _ => {
            // As a key, so that it goes to any node of a cluster.
            let ping = Call::new("PING", Class::Idempotent).key(id);
            let echo = redis.call(ping, LONG).await?;
            Ok(echo.bytes().is_ok_and(|echo| own(echo, id)))
        }
    }
}

async fn fill(redis: &Redis) {
    for n in 0..KEYS {
        let key = format!("tk:{n}");
        let set = Call::new("SET", Class::Idempotent).key(&key).arg(&key);
        redis.call(set, LONG).await.unwrap();
    }
}

type Calling<'a> = Pin<Box<dyn Future<Output = Option<Result<bool, Error>>> + Send + 'a>>;

/// A call and how many more times it is polled before it is dropped; none is until it ends.
struct Caller<'a> {
    calling: Calling<'a>,
    polls: Option<u64>,
}

impl<'a> Caller<'a> {
    fn new(redis: &'a Redis, id: String, random: &mut Random) -> Self {
        let kind = random.below(16);
        let (patience, polls) = match random.below(8) {
            0 | 1 => (LONG, None),
            2 => (Duration::from_micros(random.below(2_000)), None),
            _ => (LONG, Some(random.below(5))),
        };
        let calling = async move { timeout(patience, call(redis, kind, &id)).await.ok() };
        Self {
            calling: Box::pin(calling),
            polls,
        }
    }

    /// Goes on for a moment; returns whether it is over.
    async fn step(&mut self, tally: &Tally) -> bool {
        if self.polls == Some(0) {
            Tally::count(&tally.dropped);
            return true;
        }
        if let Some(polls) = &mut self.polls {
            *polls -= 1;
        }
        let polled = poll_fn(|context| Poll::Ready(self.calling.as_mut().poll(context))).await;
        if let Poll::Ready(ended) = polled {
            tally.ended(ended);
            return true;
        }
        false
    }
}

/// Several calls at a time, polled in turns while the connection works below them.
async fn batch(redis: &Redis, task: u64, turn: u64, random: &mut Random, tally: &Tally) {
    let caller = |n| Caller::new(redis, format!("tk:{task}:{turn}:{n}"), random);
    let mut callers: Vec<_> = (0..BATCH).map(caller).collect();
    callers.retain(|caller| {
        let unpolled = caller.polls == Some(0);
        if unpolled {
            Tally::count(&tally.unpolled);
        }
        !unpolled
    });
    while callers.iter().any(|caller| caller.polls.is_some()) {
        for index in (0..callers.len()).rev() {
            if callers[index].step(tally).await {
                drop(callers.swap_remove(index));
            }
        }
        yield_now().await;
    }
    for caller in callers {
        tally.ended(caller.calling.await);
    }
}

/// About `total` futures, most of them dropped at random points.
async fn storm(redis: &Redis, total: u64, tally: &Arc<Tally>) {
    let seed = seed();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (redis, tally) = (redis.clone(), Arc::clone(tally));
        tasks.spawn(async move {
            let mut random = Random::new(seed, task);
            for turn in 0..total / TASKS / BATCH {
                batch(&redis, task, turn, &mut random, &tally).await;
            }
        });
    }
    tasks.join_all().await;
}

/// The greatest multiple of what one round of all tasks makes.
fn rounded(total: u64) -> u64 {
    total.next_multiple_of(TASKS * BATCH)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_million_dropped_calls_none_gives_its_reply_to_another() {
    let server = RedisServer::start().await;
    let (_backend, redis) = connected(Config::from_url(&server.url()).unwrap()).await;
    let total = rounded(1_000_000);
    let tally = Arc::new(Tally::default());
    fill(&redis).await;
    storm(&redis, total, &tally).await;
    tally.check(total);
    let calls = server.command_calls().await;
    let executed: u64 = ["ping", "get", "evalsha"]
        .map(|name| calls[name].calls)
        .iter()
        .sum();
    let answered = Tally::of(&tally.answered);
    assert!(
        executed > answered + total / 10,
        "{executed} executed, {answered} answered: many were dropped after they had been sent"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_dropped_calls_to_a_cluster_none_gives_its_reply_to_another() {
    let cluster = RedisCluster::builder().replicas_per_primary(0);
    let cluster = cluster.start().await;
    let config = cluster_config(cluster.addrs()).build().unwrap();
    let (_backend, redis) = connected(config).await;
    let total = rounded(100_000);
    let tally = Arc::new(Tally::default());
    fill(&redis).await;
    storm(&redis, total, &tally).await;
    tally.check(total);
}

/// The check of the others is worth something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_reply_that_is_lost_on_the_way_would_be_noticed() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = connected(Config::from_url(&proxy.url()).unwrap()).await;
    fill(&redis).await;
    proxy.set(Fault::DropReply {
        matching: Matching::Bytes(b"tk:lost".to_vec()),
        after: AfterDrop::Continue,
    });
    let tally = Arc::new(Tally::default());
    let lost = async {
        while Tally::of(&tally.answered) < 1_000 {
            yield_now().await;
        }
        call(&redis, 15, "tk:lost").await
    };
    let _ = tokio::join!(lost, storm(&redis, rounded(20_000), &tally));
    assert_eq!(proxy.dropped_replies(), 1);
    assert!(Tally::of(&tally.foreign) > 0, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_connection_dropped_in_use_is_used_by_nobody_else() {
    const TASKS: u64 = 8;
    const TURNS: u64 = 500;
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = connected(Config::from_url(&proxy.url()).unwrap()).await;
    let (seed, before) = (seed(), proxy.stats());
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let redis = redis.clone();
        tasks.spawn(async move {
            let mut random = Random::new(seed, task);
            let mut spoilt = 0;
            for turn in 0..TURNS {
                spoilt += usize::from(use_one(&redis, task, turn, &mut random).await);
            }
            spoilt
        });
    }
    let spoilt: usize = tasks.join_all().await.into_iter().sum();
    assert!(spoilt as u64 > TASKS * TURNS / 4, "{spoilt}");
    // Whoever closes one has done so before the next is made, but the proxy hears of it later.
    let made = proxy.accepted() - before.accepted;
    let kept = made - spoilt;
    assert!(kept <= TASKS as usize, "{made} made, {spoilt} spoilt");
    proxy
        .wait_for(|stats| stats.live == before.live + kept)
        .await;
}

/// Uses an exclusive connection twice, maybe not to the end; returns whether nobody may use it again.
async fn use_one(redis: &Redis, task: u64, turn: u64, random: &mut Random) -> bool {
    let mut connection = redis.dedicated("tk:k", LONG).await.unwrap();
    let mut spoilt = false;
    for n in 0..2 {
        let id = format!("tk:{task}:{turn}:{n}");
        let polls = random.below(4);
        let echo = match polls {
            0 => Some(ask(&mut connection, &id).await),
            _ => within_polls(polls, ask(&mut connection, &id)).await,
        };
        assert_ne!(echo, Some(false), "{id}");
        spoilt |= echo.is_none();
    }
    if random.below(4) == 0 {
        return true;
    }
    connection.release();
    spoilt
}

async fn ask(connection: &mut Dedicated, id: &str) -> bool {
    let ping = Call::new("PING", Class::Idempotent).arg(id);
    let echo = connection.call(ping, LONG).await.unwrap();
    echo.bytes().unwrap().as_deref() == Some(id.as_bytes())
}

/// Drops a future unless it ends within so many polls.
async fn within_polls<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context)));
        if let Poll::Ready(output) = polled.await {
            return Some(output);
        }
        yield_now().await;
    }
    None
}
