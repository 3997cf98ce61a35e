//! The Redis backend on a real cluster whose nodes die, hang and hand over their slots.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis_conn::{
    Backend, Config, ConfigBuilder, Endpoint, Error, ErrorKind, ScaleReads, State,
    raw::{Call, Class, Redis, Reply, Script},
};
use support::{LONG, cluster_config, get, incr, redis, set, until};
use testkit::{
    AfterDrop, Answer, Fault, Matching, PASSWORD, RedisCluster, RedisServer, Request, RespMock,
    USER,
};
use tokio::task::JoinHandle;

const SHORT: Duration = Duration::from_millis(200);
/// Ten times the longest stop that a shard may have when another one is lost; less than [`LONG`], so that no deadline hides it.
const HANG: Duration = Duration::from_secs(10);

async fn connected(cluster: &RedisCluster) -> Backend {
    let config = cluster_config(cluster.addrs()).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    backend
}

/// The command is executed, and nothing more comes back on its connection.
fn swallowed(command: &str) -> Fault {
    Fault::DropReply {
        matching: Matching::Command(command.to_owned()),
        after: AfterDrop::Stall,
    }
}

fn text(reply: Reply) -> String {
    String::from_utf8(reply.bytes().unwrap().expect("a value")).unwrap()
}

/// A key in the slots of each of three primaries, none of them in those of another.
fn keys() -> [String; 3] {
    let third = |key: &str| RedisCluster::slot_of(key) / 5_461;
    let of = |shard: u16| {
        let mut keys = (0..).map(|n| format!("tk:{{k{n}}}"));
        keys.find(|key| third(key) == shard)
            .expect("some key is there")
    };
    [of(0), of(1), of(2)]
}

#[tokio::test]
async fn commands_go_to_the_node_of_their_key() {
    let cluster = RedisCluster::start().await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    assert_eq!(backend.kind(), "redis-cluster");

    cluster.reset_stats().await;
    for n in 0..200 {
        let key = format!("tk:key:{n}");
        redis.call(set(&key, n.to_string()), LONG).await.unwrap();
        assert_eq!(
            text(redis.call(get(&key), LONG).await.unwrap()),
            n.to_string()
        );
    }
    let calls = cluster.command_calls().await;
    assert_eq!(
        calls["get"].calls, 200,
        "no command is sent to a wrong node first"
    );

    let keyless = Call::new("PING", Class::Idempotent);
    assert_eq!(text(redis.call(keyless, LONG).await.unwrap()), "PONG");

    static SCRIPT: Script = Script::new("return {KEYS[1], ARGV[1]}");
    let [key, ..] = keys();
    for _ in 0..2 {
        let script = redis.script(&SCRIPT, Class::AtMostOnce, &[&key]).arg("a");
        let [echoed, argument] = script.run(LONG).await.unwrap().array().unwrap();
        assert_eq!(
            (text(echoed), text(argument)),
            (key.clone(), "a".to_owned())
        );
    }

    let crossing = Call::new("DEL", Class::Idempotent).key("tk:a").key("tk:b");
    let refused = redis.call(crossing, LONG).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Server("CROSSSLOT".into()));
}

#[tokio::test]
async fn a_lost_reply_of_an_at_most_once_command_is_ambiguous_and_it_ran_once() {
    let cluster = RedisCluster::builder()
        .allow("+incr")
        .proxied()
        .start()
        .await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    let [key, ..] = keys();
    let owner = cluster.primary_of(RedisCluster::slot_of(&key)).await;

    cluster
        .proxy(owner)
        .set(Fault::close_instead_of_reply("INCR"));
    let cut = redis.call(incr(&key), LONG).await.unwrap_err();
    assert!(cut.is_ambiguous(), "{cut}");
    cluster.proxy(owner).set(Fault::Pass);
    let stored = async || text(redis.call(get(&key), LONG).await.unwrap());
    until("an answer", async || {
        redis.call(get(&key), LONG).await.is_ok()
    })
    .await;
    assert_eq!(stored().await, "1", "nothing was sent again");

    cluster.proxy(owner).set(swallowed("INCR"));
    let late = redis.call(incr(&key), SHORT).await.unwrap_err();
    assert!(late.is_ambiguous(), "{late}");
    cluster.proxy(owner).set(Fault::Reset);
    until("an answer", async || {
        redis.call(get(&key), LONG).await.is_ok()
    })
    .await;
    assert_eq!(stored().await, "2");
}

#[tokio::test]
async fn a_lost_reply_of_an_idempotent_command_is_asked_for_again() {
    let cluster = RedisCluster::builder()
        .allow("+incr")
        .proxied()
        .start()
        .await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    let [key, ..] = keys();
    let owner = cluster.primary_of(RedisCluster::slot_of(&key)).await;
    redis.call(incr(&key), LONG).await.unwrap();

    cluster
        .proxy(owner)
        .set(Fault::close_instead_of_reply("GET"));
    let asked = tokio::spawn(async move { redis.call(get(&key), LONG).await });
    let dropped = cluster
        .proxy(owner)
        .wait_for(|stats| stats.dropped_replies >= 1);
    dropped.await;
    cluster.proxy(owner).set(Fault::Pass);
    assert_eq!(text(asked.await.unwrap().unwrap()), "1");
}

/// Writes to one shard without a pause, and what became of it.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    failed: Vec<Error>,
    longest: Duration,
}

impl Writer {
    fn start(redis: &Redis, key: &str, deadline: Duration) -> Self {
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (redis, key) = (redis.clone(), key.to_owned());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let task = tokio::spawn(async move {
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                match redis.call(incr(&key), deadline).await {
                    Ok(_) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => tally.failed.push(error),
                }
                tally.longest = tally.longest.max(began.elapsed());
            }
            tally
        });
        Self {
            stop,
            acknowledged,
            task,
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until some more writes were acknowledged.
    async fn goes_on(&self) {
        let before = self.acknowledged();
        until("more writes", async || self.acknowledged() > before + 10).await;
    }

    async fn stop(self) -> (u64, Tally) {
        self.stop.store(true, Ordering::Relaxed);
        let tally = self.task.await.unwrap();
        (self.acknowledged.load(Ordering::Relaxed), tally)
    }
}

/// The node of one shard fails while all three are written to.
async fn a_shard_is_lost(fail: impl FnOnce(&RedisCluster, usize)) {
    let cluster = RedisCluster::builder().allow("+incr").start().await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    let [lost, second, third] = keys();
    let slot = RedisCluster::slot_of(&lost);
    let owner = cluster.primary_of(slot).await;

    let others = [
        Writer::start(&redis, &second, LONG),
        Writer::start(&redis, &third, LONG),
    ];
    for writer in &others {
        writer.goes_on().await;
    }
    fail(&cluster, owner);
    let elected = cluster.wait_for_new_primary(slot, owner).await;
    assert_ne!(elected, owner);
    until("an answer", async || {
        redis.call(incr(&lost), LONG).await.is_ok()
    })
    .await;
    for writer in others {
        writer.goes_on().await;
        let (_, tally) = writer.stop().await;
        assert!(
            tally.failed.is_empty(),
            "the other shards see nothing: {tally:?}"
        );
        assert!(tally.longest < HANG, "{tally:?}");
    }
    assert!(backend.watch_state().wait_for(State::Connected).await);
    backend.close(LONG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_concerns_its_own_shard_alone() {
    a_shard_is_lost(RedisCluster::kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_primary_concerns_its_own_shard_alone() {
    a_shard_is_lost(RedisCluster::freeze).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_slot_moves_under_writes_and_nobody_notices() {
    let cluster = RedisCluster::builder().allow("+incr").start().await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    let names: Vec<String> = (0..8).map(|n| format!("tk:{{hot}}:{n}")).collect();
    let slot = RedisCluster::slot_of("{hot}");
    let from = cluster.primary_of(slot).await;
    let to = (from + 1) % 3;

    let writers = names.iter().map(|key| Writer::start(&redis, key, LONG));
    let writers: Vec<_> = writers.collect();
    for writer in &writers {
        writer.goes_on().await;
    }
    for (from, to) in [(from, to), (to, from), (from, to)] {
        let migration = cluster.begin_migration(slot, from, to).await;
        // Half of the keys are on one side, half on the other.
        cluster.migrate_keys(migration, 4).await;
        for writer in &writers {
            writer.goes_on().await;
        }
        cluster.finish_migration(migration).await;
        for writer in &writers {
            writer.goes_on().await;
        }
    }
    for (key, writer) in names.iter().zip(writers) {
        let (acknowledged, tally) = writer.stop().await;
        assert!(tally.failed.is_empty(), "{tally:?}");
        let stored = text(redis.call(get(key), LONG).await.unwrap());
        assert_eq!(
            stored,
            acknowledged.to_string(),
            "nothing lost, nothing doubled"
        );
    }
}

#[tokio::test]
async fn a_new_key_of_a_slot_on_its_way_is_made_where_the_slot_goes() {
    let cluster = RedisCluster::builder().allow("+incr").start().await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    let slot = RedisCluster::slot_of("{new}");
    let from = cluster.primary_of(slot).await;
    let migration = cluster.begin_migration(slot, from, (from + 1) % 3).await;

    static SCRIPT: Script = Script::new("return redis.call('INCR', KEYS[1])");
    for n in 1..=3 {
        let run = redis
            .script(&SCRIPT, Class::AtMostOnce, &["tk:{new}:1"])
            .run(LONG);
        assert_eq!(run.await.unwrap().int().unwrap(), n);
    }
    cluster.finish_migration(migration).await;
    assert_eq!(
        text(redis.call(get("tk:{new}:1"), LONG).await.unwrap()),
        "3"
    );
}

#[tokio::test]
async fn replicas_answer_only_what_they_are_allowed_to() {
    let cluster = RedisCluster::start().await;
    let config = cluster_config(cluster.addrs()).scale_reads(ScaleReads::Replica);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    let [key, ..] = keys();
    redis.call(set(&key, "v"), LONG).await.unwrap();
    let owner = cluster.primary_of(RedisCluster::slot_of(&key)).await;
    let replica = cluster.replicas_of(owner).await[0];
    let gets = async |node: usize| {
        let calls = cluster.node(node).command_calls().await;
        calls.get("get").map_or(0, |stat| stat.calls)
    };

    for _ in 0..10 {
        redis.call(get(&key), LONG).await.unwrap();
    }
    assert_eq!((gets(owner).await, gets(replica).await), (10, 0));
    until("reads of the replica", async || {
        let read = redis.call(get(&key).from_replica(), LONG).await.unwrap();
        text(read) == "v" && gets(replica).await > 0
    })
    .await;
    let before = gets(owner).await;
    for _ in 0..10 {
        redis.call(get(&key).from_replica(), LONG).await.unwrap();
    }
    assert_eq!(gets(owner).await, before);

    cluster.kill(replica);
    until("an answer", async || {
        redis.call(get(&key).from_replica(), LONG).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn every_node_ever_seen_leads_back_into_the_cluster() {
    let cluster = RedisCluster::builder().allow("+incr").start().await;
    let config = cluster_config([cluster.addr(0)]);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    let key = keys()
        .into_iter()
        .find(|key| RedisCluster::slot_of(key) < 5_461)
        .unwrap();

    // The only address of the configuration is gone for good.
    cluster.kill(0);
    let elected = cluster
        .wait_for_new_primary(RedisCluster::slot_of(&key), 0)
        .await;
    until("an answer", async || {
        redis.call(incr(&key), LONG).await.is_ok()
    })
    .await;
    // Its successor hands over in turn, so that the slots must be looked up without the first node.
    cluster.restart(0).await;
    cluster.wait_ok().await;
    cluster.failover(0).await;
    cluster.kill(elected);
    until("an answer", async || {
        redis.call(incr(&key), LONG).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn an_exclusive_connection_leads_to_the_node_of_its_key() {
    let cluster = RedisCluster::builder().allow("+incr").start().await;
    let backend = connected(&cluster).await;
    let redis = redis(&backend);
    for key in keys() {
        let mut exclusive = redis.dedicated(&key, LONG).await.unwrap();
        let refused_elsewhere = exclusive.call(incr(&key), LONG).await;
        assert_eq!(refused_elsewhere.unwrap().int().unwrap(), 1);
        exclusive.release();
    }
}

#[tokio::test]
async fn a_configuration_for_another_kind_of_server_is_named() {
    let cluster = RedisCluster::start().await;
    let server = RedisServer::start().await;
    let node = Endpoint::tcp("127.0.0.1", cluster.addr(0).port());
    let single = cluster_config([([127, 0, 0, 1], server.port()).into()]);
    for (config, found) in [
        (
            Config::builder(node)
                .username(USER)
                .password(PASSWORD)
                .build()
                .unwrap(),
            "a node of a cluster",
        ),
        (single.build().unwrap(), "a single server"),
    ] {
        let backend = Backend::redis(config).unwrap();
        assert!(backend.watch_state().wait_for(State::Error).await);
        let failed = backend.ready(SHORT).await.unwrap_err();
        let cause = std::error::Error::source(&failed).unwrap().to_string();
        assert!(cause.contains(found), "{cause}");
    }
}

#[tokio::test]
async fn slots_without_a_server_are_seen_in_the_state() {
    let cluster = RedisCluster::builder().allow("+incr").start().await;
    let backend = connected(&cluster).await;
    let [key, ..] = keys();
    let owner = cluster.primary_of(RedisCluster::slot_of(&key)).await;
    for replica in cluster.replicas_of(owner).await {
        cluster.kill(replica);
    }
    cluster.kill(owner);
    assert!(backend.watch_state().wait_for(State::Reconnecting).await);
    let failed = redis(&backend).call(incr(&key), LONG).await.unwrap_err();
    assert_eq!(*failed.kind(), ErrorKind::Unavailable, "{failed}");

    cluster.restart(owner).await;
    cluster.wait_ok().await;
    assert!(backend.watch_state().wait_for(State::Connected).await);
    until("an answer", async || {
        redis(&backend).call(incr(&key), LONG).await.is_ok()
    })
    .await;
}

/// A cluster of one node that says that every key is elsewhere: on the other one.
#[tokio::test]
async fn a_storm_of_redirections_is_no_storm_of_look_ups() {
    let (here, there) = tokio::join!(
        RespMock::start(|_| Answer::Default),
        RespMock::start(|_| Answer::Default)
    );
    for mock in [&here, &there] {
        mock.set_mode("cluster");
        mock.set_slots([(0, 16_383, here.addr())]);
    }
    let target = there.addr();
    here.on(move |request| match request.is("GET") {
        true => Answer::error(format!("MOVED 1 {target}")),
        false => Answer::Default,
    });
    there.on(|request| match request.is("GET") {
        true => Answer::bulk("v"),
        false => Answer::Default,
    });
    let seed = Endpoint::tcp("127.0.0.1", here.addr().port());
    let backend = Backend::redis(Config::cluster([seed]).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);

    let began = Instant::now();
    let before = here.count("CLUSTER SLOTS") + there.count("CLUSTER SLOTS");
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let redis = redis.clone();
        callers.spawn(async move {
            for _ in 0..100 {
                assert_eq!(text(redis.call(get("k"), LONG).await.unwrap()), "v");
            }
        });
    }
    callers.join_all().await;
    assert_eq!(there.count("GET"), 10_000);
    let asked = here.count("CLUSTER SLOTS") + there.count("CLUSTER SLOTS") - before;
    // Two witnesses are asked at each look-up, and there are no more than four in a second.
    let look_ups = began.elapsed().as_millis() as usize / 250 + 2;
    assert!(
        asked <= 2 * look_ups,
        "{asked} questions in {:?}",
        began.elapsed()
    );
    assert!(asked > 0, "a redirection is a reason to look up the slots");
}

#[tokio::test]
async fn redirections_without_end_end() {
    let mock = RespMock::start(|_| Answer::Default).await;
    mock.set_mode("cluster");
    let here = mock.addr();
    mock.on(move |request| match request.is("GET") {
        true => Answer::error(format!("MOVED 1 {here}")),
        false => Answer::Default,
    });
    let seed = Endpoint::tcp("127.0.0.1", here.port());
    let config = Config::cluster([seed]).max_redirections(5).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let failed = redis(&backend).call(get("k"), LONG).await.unwrap_err();
    assert_eq!(*failed.kind(), ErrorKind::Unavailable);
    assert_eq!(mock.count("GET"), 6);
}

/// Servers that claim to be a cluster in which the first one has all slots, and what that one answers to commands.
async fn mocks<const COUNT: usize>(
    answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> [RespMock; COUNT] {
    let mut mocks = Vec::new();
    for _ in 0..COUNT {
        mocks.push(RespMock::start(|_| Answer::Default).await);
    }
    let mocks: [RespMock; COUNT] = mocks.try_into().unwrap();
    for mock in &mocks {
        mock.set_mode("cluster");
        mock.set_slots([(0, 16_383, mocks[0].addr())]);
    }
    mocks[0].on(answer);
    mocks
}

fn seeds<'a>(mocks: impl IntoIterator<Item = &'a RespMock>) -> ConfigBuilder {
    let seed = |mock: &RespMock| Endpoint::tcp("127.0.0.1", mock.addr().port());
    Config::cluster(mocks.into_iter().map(seed)).lanes(1)
}

/// Has the slots looked up `times` more, by somebody who is told that they are not served.
async fn look_ups(redis: &Redis, asked: &RespMock, times: usize) {
    let before = asked.count("CLUSTER SLOTS");
    // Its slot is one of the first.
    let unserved = || Call::new("UNSERVED", Class::Idempotent).key("{b}");
    until("as many look-ups", async || {
        redis.call(unserved(), SHORT).await.unwrap_err();
        asked.count("CLUSTER SLOTS") >= before + times
    })
    .await;
}

fn served(request: &Request) -> Answer {
    match request.arg(0).as_str() {
        "GET" => Answer::bulk("v"),
        "UNSERVED" => Answer::error("CLUSTERDOWN Hash slot not served"),
        _ => Answer::Default,
    }
}

/// They were reset, were forgotten by the others, or have not met them yet, and are more than those who have slots.
#[tokio::test]
async fn nodes_without_slots_among_the_seeds_change_nothing() {
    let mocks: [_; 3] = mocks(served).await;
    let [here, stranger, another] = &mocks;
    stranger.set_slots([]);
    another.set_slots([]);
    let backend = Backend::redis(seeds(&mocks).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    for _ in 0..8 {
        look_ups(&redis, stranger, 1).await;
        assert_eq!(text(redis.call(get("k"), LONG).await.unwrap()), "v");
    }
    let named = here.requests();
    let named = named.iter().filter(|request| request.is("CLIENT SETNAME"));
    let lanes = named.filter(|request| request.arg(2).ends_with(":lane"));
    assert_eq!(lanes.count(), 1, "its connection was never given up");
    assert_eq!(backend.state(), State::Connected);
}

/// They are more than the nodes that are left, and have all the slots.
#[tokio::test]
async fn addresses_that_have_come_to_another_cluster_are_not_followed() {
    let mocks: [_; 3] = mocks(served).await;
    let [here, second, third] = &mocks;
    let thirds = [
        (0, 4_999, here.addr()),
        (5_000, 9_999, second.addr()),
        (10_000, 16_383, third.addr()),
    ];
    mocks.iter().for_each(|mock| mock.set_slots(thirds));
    // That there are others is told by the first one.
    let backend = Backend::redis(seeds([here]).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();

    let foreign = RespMock::start(|_| Answer::Default).await;
    for mock in [second, third] {
        mock.set_slots([(0, 16_383, foreign.addr())]);
    }
    here.set_slots([(0, 4_999, here.addr())]);
    look_ups(&redis(&backend), here, 8).await;
    assert_eq!(foreign.accepted(), 0);
}

#[tokio::test]
async fn a_node_that_a_slot_is_on_its_way_to_keeps_its_connection() {
    let [here, there] = mocks(|_| Answer::Default).await;
    let target = there.addr();
    here.on(move |request| match request.is("GET") {
        true => Answer::error(format!("ASK 1 {target}")),
        false => served(request),
    });
    there.on(served);
    let backend = Backend::redis(seeds([&here]).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    for _ in 0..4 {
        assert_eq!(text(redis.call(get("k"), LONG).await.unwrap()), "v");
        look_ups(&redis, &here, 2).await;
    }
    assert_eq!(there.accepted(), 1);
}

/// The pauses double from 250 ms to 2 s.
#[tokio::test]
async fn slots_that_stay_without_a_server_are_looked_up_ever_more_seldom() {
    let [mock] = mocks(|_| Answer::Default).await;
    mock.set_slots([(0, 16_000, mock.addr())]);
    let began = Instant::now();
    let backend = Backend::redis(seeds([&mock]).build().unwrap()).unwrap();
    mock.wait_for(|mock| mock.count("CLUSTER SLOTS") == 6).await;
    assert!(began.elapsed() >= Duration::from_secs(3));

    // Somebody who needs one of them waits for no pause.
    let missing = (0..).map(|n| format!("k{n}"));
    let missing = missing
        .into_iter()
        .find(|key| RedisCluster::slot_of(key) > 16_000);
    let missing = missing.unwrap();
    let asking = Instant::now();
    let redis = redis(&backend);
    redis.call(get(&missing), LONG).await.unwrap_err();
    mock.set_slots([(0, 16_383, mock.addr())]);
    mock.on(served);
    until("an answer", async || {
        redis.call(get(&missing), LONG).await.is_ok()
    })
    .await;
    assert!(asking.elapsed() < HANG);
    assert!(backend.watch_state().wait_for(State::Connected).await);
}

/// One has handed the slot over, and the other has not heard of it yet.
#[tokio::test]
async fn two_nodes_that_name_each_other_for_a_moment_cost_time_and_not_the_call() {
    let [one, other] = mocks(|_| Answer::Default).await;
    let settled = Arc::new(AtomicBool::new(false));
    let (here, there) = (one.addr(), other.addr());
    one.on(move |request| match request.is("INCR") {
        true => Answer::error(format!("MOVED 1 {there}")),
        false => Answer::Default,
    });
    let heard = Arc::clone(&settled);
    other.on(move |request| match request.is("INCR") {
        true if heard.load(Ordering::SeqCst) => Answer::Int(1),
        true => Answer::error(format!("MOVED 1 {here}")),
        false => Answer::Default,
    });
    let backend = Backend::redis(seeds([&one, &other]).build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);

    let calling = tokio::spawn(async move { redis.call(incr("k"), LONG).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    settled.store(true, Ordering::SeqCst);
    assert_eq!(calling.await.unwrap().unwrap().int().unwrap(), 1);
}
