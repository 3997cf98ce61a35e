//! What a connection must outlive: silence on its way, silence of its own, and more bytes than fit between the two sides.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis_conn::{
    Backend, Config, Error, ErrorKind, Event, Subscription,
    raw::{Call, Class, Redis, Script},
};
use support::{cluster_config, get, redis, until};
use testkit::{Answer, Fault, FaultProxy, RedisCluster, RedisServer, RespMock};
use tokio::{
    task::JoinHandle,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// Longer than anything that works takes, also where there is much of it, so that it decides no test.
const LONG: Duration = Duration::from_secs(60);

fn single(url: &str) -> Config {
    let config = Config::from_url(url).unwrap().into_builder();
    config.dial_timeout(LONG).lanes(1).build().unwrap()
}

fn on_nodes(cluster: &RedisCluster) -> Config {
    let config = cluster_config(cluster.addrs());
    config.dial_timeout(LONG).lanes(1).build().unwrap()
}

async fn connected(config: Config) -> (Backend, Redis) {
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    (backend, redis)
}

fn set(key: &str, value: impl AsRef<[u8]>, class: Class) -> Call {
    Call::new("SET", class).key(key).arg(value)
}

static COUNT: Script = Script::new(
    "local n = (redis.call('GET', KEYS[1]) or 0) + 1 redis.call('SET', KEYS[1], n) return n",
);

/// Executing it twice would be seen in the number.
async fn count(redis: &Redis, key: &str, deadline: Duration) -> Result<i64, Error> {
    let counted = redis.script(&COUNT, Class::AtMostOnce, &[key]);
    counted.run(deadline).await?.int()
}

/// The ids of the connections of one purpose, as the server knows them.
async fn connections(server: &RedisServer, purpose: &str) -> Vec<u64> {
    // A new one each time: a server may end this one for idleness too.
    let admin = &mut server.connection().await;
    let mut list = redis::cmd("CLIENT");
    let list: String = list.arg("LIST").query_async(admin).await.unwrap();
    let field = |line: &str, name: &str| {
        let mut fields = line.split(' ');
        fields.find_map(|field| Some(field.strip_prefix(name)?.to_owned()))
    };
    let ours = list.lines().filter(|line| {
        let name = field(line, "name=").unwrap_or_default();
        name.ends_with(&format!(":{purpose}"))
    });
    ours.map(|line| field(line, "id=").unwrap().parse().unwrap())
        .collect()
}

/// Calls at a steady rate, each with the same deadline, half of them idempotent.
struct Traffic {
    stop: CancellationToken,
    tally: Arc<Tally>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Tally {
    answered: AtomicU64,
    counted: AtomicU64,
    timeouts: AtomicU64,
    ambiguous: AtomicU64,
}

impl Traffic {
    const PER_SECOND: u64 = 200;
    const DEADLINE: Duration = Duration::from_millis(400);
    /// What is promised is 50 ms; longer than this is a caller that hangs.
    const BEYOND: Duration = Duration::from_secs(2);

    fn start(redis: &Redis, key: &str) -> Self {
        let (stop, tally) = (CancellationToken::new(), Arc::<Tally>::default());
        let (redis, key) = (redis.clone(), key.to_owned());
        let (stopped, counting) = (stop.clone(), Arc::clone(&tally));
        let task = tokio::spawn(async move {
            let mut pace = interval(Duration::from_secs(1) / Self::PER_SECOND as u32);
            let mut calls = tokio::task::JoinSet::new();
            for class in [Class::Idempotent, Class::AtMostOnce].into_iter().cycle() {
                if stopped.run_until_cancelled(pace.tick()).await.is_none() {
                    break;
                }
                let (redis, key, tally) = (redis.clone(), key.clone(), Arc::clone(&counting));
                calls.spawn(async move { tally.call(&redis, &key, class).await });
            }
            calls.join_all().await;
        });
        Self { stop, tally, task }
    }

    /// Waits until so many more calls were answered.
    async fn goes_on(&self, calls: u64) {
        let answered = || self.tally.answered.load(Ordering::Relaxed);
        let begin = answered();
        until("more answers", async || answered() >= begin + calls).await;
    }

    async fn stop(self) -> Arc<Tally> {
        self.stop.cancel();
        let ended = timeout(LONG, self.task).await;
        ended.expect("the calls end").unwrap();
        self.tally
    }
}

impl Tally {
    async fn call(&self, redis: &Redis, key: &str, class: Class) {
        let called = async {
            match class {
                Class::Idempotent => redis.call(get(key), Traffic::DEADLINE).await.err(),
                Class::AtMostOnce => match count(redis, key, Traffic::DEADLINE).await {
                    Ok(_) => {
                        self.counted.fetch_add(1, Ordering::Relaxed);
                        None
                    }
                    Err(error) => Some(error),
                },
            }
        };
        let bounded = timeout(Traffic::DEADLINE + Traffic::BEYOND, called).await;
        let failed = bounded.expect("a caller waits beyond its deadline");
        let counter = match failed.as_ref().map(Error::kind) {
            None => &self.answered,
            // Also where the lane was being connected to, and nothing had been sent.
            Some(ErrorKind::Timeout) => &self.timeouts,
            Some(ErrorKind::Ambiguous) if class == Class::AtMostOnce => &self.ambiguous,
            Some(_) => panic!("{class:?}: {failed:?}"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed) + self.ambiguous.load(Ordering::Relaxed)
    }
}

/// The way to a server is lost without a word under traffic: the lane is replaced, once, and only those who were on the lost way
/// notice.
async fn is_replaced(proxy: &FaultProxy, server: &RedisServer, redis: &Redis, key: &str) {
    let traffic = Traffic::start(redis, key);
    traffic.goes_on(Traffic::PER_SECOND).await;
    assert_eq!(traffic.tally.failed(), 0);
    let lost = connections(server, "lane").await;
    assert_eq!(lost.len(), 1);

    proxy.blackhole_live();
    until("another lane", async || {
        let lanes = connections(server, "lane").await;
        lanes.len() == 1 && lanes != lost
    })
    .await;
    let second = connections(server, "lane").await;
    // Those on their way when it was replaced have ended after so many more.
    traffic.goes_on(Traffic::PER_SECOND).await;
    let failed = traffic.tally.failed();
    traffic.goes_on(Traffic::PER_SECOND).await;
    assert_eq!(traffic.tally.failed(), failed, "the new lane is a good one");
    assert_eq!(connections(server, "lane").await, second, "once is enough");

    let tally = traffic.stop().await;
    let [timeouts, ambiguous, counted] =
        [&tally.timeouts, &tally.ambiguous, &tally.counted].map(|n| n.load(Ordering::Relaxed));
    assert!(timeouts > 0 && ambiguous > 0, "{tally:?}");
    // Three deadlines, and ten times as many where the machine has other things to do.
    let on_the_way = Traffic::DEADLINE.as_secs_f64() * 3. * Traffic::PER_SECOND as f64;
    assert!((failed as f64) < on_the_way * 10., "{tally:?}");
    let stored = redis.call(get(key), LONG).await.unwrap().bytes().unwrap();
    let stored: u64 = String::from_utf8(stored.unwrap()).unwrap().parse().unwrap();
    assert!(
        (counted..=counted + ambiguous).contains(&stored),
        "executed {stored} times: {tally:?}"
    );
}

#[tokio::test]
async fn a_lane_gone_without_a_word_is_replaced_under_traffic() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = connected(single(&proxy.url())).await;
    let accepted = proxy.accepted();
    is_replaced(&proxy, &server, &redis, "tk:n").await;
    assert_eq!(proxy.accepted(), accepted + 1);
    assert_eq!(proxy.connections(), 1, "the lost one is closed");
}

#[tokio::test]
async fn a_lane_of_a_cluster_gone_without_a_word_concerns_its_own_shard_alone() {
    let cluster = RedisCluster::builder().replicas_per_primary(0).proxied();
    let cluster = cluster.start().await;
    let (_backend, redis) = connected(on_nodes(&cluster)).await;
    let mut owners = Vec::new();
    for n in 0.. {
        let key = format!("tk:{{{n}}}");
        let owner = cluster.primary_of(RedisCluster::slot_of(&key)).await;
        if owners.iter().all(|(_, known)| *known != owner) {
            owners.push((key, owner));
        }
        if owners.len() == 3 {
            break;
        }
    }
    let (lost, owner) = owners.swap_remove(0);
    let others = owners
        .iter()
        .map(|(key, _)| Traffic::start(&redis, key))
        .collect::<Vec<_>>();

    is_replaced(cluster.proxy(owner), cluster.node(owner), &redis, &lost).await;
    for traffic in others {
        traffic.goes_on(10).await;
        let tally = traffic.stop().await;
        assert_eq!(tally.failed(), 0, "the other shards see nothing: {tally:?}");
    }
}

#[tokio::test]
async fn an_idle_lane_gone_without_a_word_is_found_before_it_is_needed() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = connected(single(&proxy.url())).await;
    let accepted = proxy.accepted();
    proxy.blackhole_live();
    until("another lane", async || proxy.accepted() > accepted).await;
    assert_eq!(count(&redis, "tk:n", LONG).await.unwrap(), 1);
    assert_eq!(proxy.accepted(), accepted + 1);
    assert_eq!(proxy.connections(), 1, "the lost one is closed");
}

#[tokio::test]
async fn a_lane_whose_replies_are_late_is_not_a_lost_one() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(&server).await;
    let (_backend, redis) = connected(single(&proxy.url())).await;
    let accepted = proxy.accepted();
    proxy.set(Fault::Delay {
        base: Traffic::DEADLINE * 3 / 2,
        jitter: Duration::ZERO,
    });
    for _ in 0..5 {
        let late = redis.call(get("tk:n"), Traffic::DEADLINE).await;
        assert_eq!(*late.unwrap_err().kind(), ErrorKind::Timeout);
    }
    redis.call(get("tk:n"), LONG).await.unwrap();
    assert_eq!(
        proxy.accepted(),
        accepted,
        "replies come, and another lane would be as slow"
    );
}

async fn next(subscription: &mut Subscription) -> Event {
    let event = timeout(LONG, subscription.recv()).await;
    event.expect("nothing came").expect("it has ended")
}

/// The server ends what is idle for a second, and everything here is idle until it has ended the lane so many times. The first of the
/// nodes has the key.
async fn outlives_an_idle_timeout(backend: Backend, nodes: &[&RedisServer], renewals: usize) {
    let redis = redis(&backend);
    let key = "tk:{idle}";
    assert_eq!(count(&redis, key, LONG).await.unwrap(), 1);
    let mut news = backend.bus().subscribe("news").await.unwrap();
    let pooled = redis.dedicated(key, LONG).await.unwrap();
    let bus = listeners(nodes).await;
    assert_eq!(bus.len(), 1);
    let server = nodes[0];
    assert_eq!(connections(server, "pool").await.len(), 1);
    pooled.release();

    for _ in 0..renewals {
        let before = connections(server, "lane").await;
        until("another lane", async || {
            let lanes = connections(server, "lane").await;
            lanes.len() == before.len() && lanes.iter().all(|lane| !before.contains(lane))
        })
        .await;
    }
    until("the end of the idle one in the pool", async || {
        connections(server, "pool").await.is_empty()
    })
    .await;
    assert_eq!(count(&redis, key, LONG).await.unwrap(), 2);
    let mut pooled = redis.dedicated(key, LONG).await.unwrap();
    let stored = pooled.call(set(key, "7", Class::AtMostOnce), LONG).await;
    stored.unwrap();
    assert_eq!(count(&redis, key, LONG).await.unwrap(), 8);

    backend.bus().publish("news", b"hello").await.unwrap();
    let event = next(&mut news).await;
    assert!(matches!(event, Event::Message(_)), "{event:?}");
    assert_eq!(listeners(nodes).await, bus, "subscribers may wait");
}

/// The connections for subscriptions, as the nodes know them.
async fn listeners(nodes: &[&RedisServer]) -> Vec<(usize, u64)> {
    let mut listeners = Vec::new();
    for (node, server) in nodes.iter().enumerate() {
        let ids = connections(server, "bus").await;
        listeners.extend(ids.into_iter().map(|id| (node, id)));
    }
    listeners
}

async fn outlives_an_idle_timeout_on_a_server(lazy: bool) {
    let server = RedisServer::builder().arg("timeout", "1").start().await;
    let config = single(&server.url()).into_builder().lazy_connect(lazy);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    outlives_an_idle_timeout(backend, &[&server], 2).await;
}

#[tokio::test]
async fn connections_that_the_server_ends_for_idleness_are_not_missed() {
    outlives_an_idle_timeout_on_a_server(false).await;
}

#[tokio::test]
async fn connections_made_by_the_first_call_are_not_missed_either() {
    outlives_an_idle_timeout_on_a_server(true).await;
}

#[tokio::test]
async fn connections_that_a_cluster_ends_for_idleness_are_not_missed() {
    let cluster = RedisCluster::builder().replicas_per_primary(0);
    let cluster = cluster.arg("timeout", "1").start().await;
    let backend = Backend::redis(on_nodes(&cluster)).unwrap();
    let owner = cluster.primary_of(RedisCluster::slot_of("tk:{idle}")).await;
    let nodes = [owner, (owner + 1) % 3, (owner + 2) % 3].map(|node| cluster.node(node));
    // Whenever a lane comes back all are asked how they are, so that none may be idle for long: the pool is.
    outlives_an_idle_timeout(backend, &nodes, 0).await;
}

const MIB: usize = 1024 * 1024;

/// More than all sockets in between take, in both directions at once.
const FLOOD: usize = 64 * MIB;

const TINY: u32 = 4096;

/// A value that no other key has.
fn value(n: usize, len: usize) -> Vec<u8> {
    let mut value = n.to_be_bytes().repeat(len / size_of::<usize>());
    value.resize(len, 0);
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_of_64_mib_both_ways_passes_through_tiny_buffers() {
    const VALUES: usize = 256;
    const LEN: usize = FLOOD / VALUES;
    let server = RedisServer::start().await;
    let (_direct, direct) = connected(single(&server.url())).await;
    for n in 0..VALUES {
        let stored = set(&format!("tk:out:{n}"), value(n, LEN), Class::Idempotent);
        direct.call(stored, LONG).await.unwrap();
    }

    let proxy = FaultProxy::builder().buffers(TINY);
    let proxy = proxy.start(&server).await;
    let (_backend, redis) = connected(single(&proxy.url())).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..VALUES {
        let (writer, reader) = (redis.clone(), redis.clone());
        calls.spawn(async move {
            let stored = set(&format!("tk:in:{n}"), value(n, LEN), Class::AtMostOnce);
            writer.call(stored, LONG).await.unwrap();
        });
        calls.spawn(async move {
            let read = reader.call(get(&format!("tk:out:{n}")), LONG).await;
            let read = read.unwrap().bytes().unwrap();
            assert!(read == Some(value(n, LEN)), "{n}");
        });
    }
    calls.join_all().await;
    for n in 0..VALUES {
        let read = direct.call(get(&format!("tk:in:{n}")), LONG).await.unwrap();
        assert!(read.bytes().unwrap() == Some(value(n, LEN)), "{n}");
    }
    assert_eq!(proxy.accepted(), 1, "one lane carried it all");
}

/// Unlike Redis, the mock reads nothing while a reply of its waits: a client that writes all before it reads would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_must_be_read_before_it_reads_is_read() {
    const VALUES: usize = 1024;
    const LEN: usize = FLOOD / VALUES;
    let mock = RespMock::start(|request| match request.is("GET") {
        true => Answer::bulk(request.args[1].clone()),
        false => Answer::Default,
    })
    .await;
    let proxy = FaultProxy::builder().buffers(TINY);
    let proxy = proxy.start(mock.addr()).await;
    let (_backend, redis) = connected(single(&proxy.url())).await;
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..VALUES {
        let redis = redis.clone();
        calls.spawn(async move {
            let echo = Call::new("GET", Class::Idempotent).arg(value(n, LEN));
            let echo = redis.call(echo, LONG).await.unwrap();
            assert!(echo.bytes().unwrap() == Some(value(n, LEN)), "{n}");
        });
    }
    calls.join_all().await;
    assert_eq!(proxy.accepted(), 1, "one lane carried it all");
}
