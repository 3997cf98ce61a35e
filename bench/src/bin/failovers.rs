//! How soon writes go on when another server takes over: behind one address that is led elsewhere, behind sentinels, and in a cluster;
//! and how soon a password is accepted that was wrong for a while.
//!
//! Tasks write all the time, each write with a deadline of its own. A time begins with what a client can know first: the address
//! leads to the new primary, the sentinels announce it, the replica calls itself primary.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use redis_conn::{
    Backend, Config, Endpoint,
    raw::{Call, Class, Engine},
};
use testkit::{Fault, FaultProxy, PASSWORD, RedisCluster, RedisSentinel, RedisServer, USER};
use tokio::task::JoinSet;

const ROUNDS: usize = 5;
const TASKS: usize = 8;
const DEADLINE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);
/// How long a password is refused.
const WRONG: Duration = Duration::from_secs(5);
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(password_is_corrected().await);
    }
    report(
        "a refused password is made right: the backend is ready after",
        times,
    );

    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(address_is_led_elsewhere().await);
    }
    report(
        "one address, led to the new primary: writes go on after",
        times,
    );

    for (what, blocked) in [
        (
            "sentinels announce another primary: writes go on after",
            false,
        ),
        ("the same, the announcement is lost", true),
    ] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            times.push(sentinels_switch(blocked).await);
        }
        report(what, times);
    }

    for (what, fail) in [
        ("killed", RedisCluster::kill as fn(&RedisCluster, usize)),
        ("stopped (SIGSTOP)", RedisCluster::freeze),
    ] {
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (back, stop) = shard_is_lost(fail).await;
            own.push(back);
            others.push(stop);
        }
        report(
            &format!("primary of a shard {what}: its writes go on after the election in"),
            own,
        );
        report(
            &format!("primary of a shard {what}: longest stop of the other shards"),
            others,
        );
    }
}

/// The server knows the user by another password at first.
async fn password_is_corrected() -> Duration {
    let server = RedisServer::start().await;
    let mut admin = server.connection().await;
    let mut set = async |rule: String| {
        let mut acl = redis::cmd("ACL");
        let acl = acl.arg("SETUSER").arg(USER).arg("resetpass").arg(rule);
        let done: redis::RedisResult<()> = acl.query_async(&mut admin).await;
        done.expect("a password is set");
    };
    set(">another one".to_owned()).await;
    let config = Config::from_url(&server.url()).expect("a URL");
    let backend = Backend::redis(config).expect("a backend");
    tokio::time::sleep(WRONG).await;
    set(format!(">{PASSWORD}")).await;
    let corrected = Instant::now();
    backend.ready(LONG).await.expect("the password is right");
    corrected.elapsed()
}

/// The primary becomes a replica under the live connections; then the address leads to the other server.
async fn address_is_led_elsewhere() -> Duration {
    let (old, new) = (RedisServer::start().await, RedisServer::start().await);
    let proxy = FaultProxy::start(&old).await;
    let writes = Writes::start(Config::from_url(&proxy.url()).expect("a URL"), KEY).await;
    let mut demoted = old.connection().await;
    let mut follow = redis::cmd("REPLICAOF");
    let (host, port) = (new.addr().ip().to_string(), new.port());
    let done: redis::RedisResult<()> = follow.arg(host).arg(port).query_async(&mut demoted).await;
    done.expect("a server becomes a replica");
    tokio::time::sleep(DEADLINE).await;
    proxy.lead_to(new.addr());
    writes.first_after(Instant::now()).await
}

/// The primary behind sentinels dies.
async fn sentinels_switch(announcement_is_lost: bool) -> Duration {
    let group = RedisSentinel::builder().proxied_sentinels().start().await;
    let sentinels = group.sentinel_addrs().into_iter().map(endpoint);
    let config = Config::sentinel(sentinels, group.master_name())
        .username(USER)
        .password(PASSWORD)
        .sentinel_username(USER)
        .sentinel_password(PASSWORD);
    let writes = Writes::start(config.build().expect("a configuration"), KEY).await;
    if announcement_is_lost {
        for index in 0..group.sentinels().len() {
            let lost = Fault::drop_pushes("+switch-master");
            group.sentinel_proxy(index).set(lost);
        }
    }
    let client = redis::Client::open(group.sentinels()[0].url()).expect("a URL");
    let mut announced = client.get_async_pubsub().await.expect("a sentinel");
    let subscribed = announced.subscribe("+switch-master").await;
    subscribed.expect("a subscription");
    // Dead, so that no write of later is one to it.
    group.kill(0);
    let announcement = announced.on_message().next().await;
    let at = Instant::now();
    announcement.expect("an announcement");
    writes.first_after(at).await
}

/// How long one shard is without writes after the election, and the longest stop of the others.
async fn shard_is_lost(fail: fn(&RedisCluster, usize)) -> (Duration, Duration) {
    let cluster = RedisCluster::start().await;
    let slot = RedisCluster::slot_of(KEY);
    let owner = cluster.primary_of(slot).await;
    let replica = cluster.replicas_of(owner).await[0];
    let config = || {
        let config = Config::cluster(cluster.addrs().into_iter().map(endpoint));
        let config = config.username(USER).password(PASSWORD);
        config.build().expect("a configuration")
    };
    let own = Writes::start(config(), KEY).await;
    let mut others = Vec::new();
    for key in ["tk:{b}", "tk:{c}"] {
        assert_ne!(cluster.primary_of(RedisCluster::slot_of(key)).await, owner);
        others.push(Writes::start(config(), key).await);
    }
    let failed = Instant::now();
    fail(&cluster, owner);
    while cluster.node(replica).info("replication").await["role"] != "master" {
        tokio::time::sleep(PAUSE).await;
    }
    let back = own.first_after(Instant::now()).await;
    let stops = others.iter().map(|writes| writes.longest_stop(failed));
    (back, stops.max().expect("there are others"))
}

/// In the shard of the slot of `a`; the other shards are those of `b` and `c`.
const KEY: &str = "tk:{a}";

fn endpoint(addr: std::net::SocketAddr) -> Endpoint {
    Endpoint::tcp(addr.ip().to_string(), addr.port())
}

/// Tasks that write to one key until this is dropped.
struct Writes {
    /// When those that succeeded were begun and ended.
    done: Arc<Mutex<Vec<(Instant, Instant)>>>,
    _backend: Backend,
    _tasks: JoinSet<()>,
}

impl Writes {
    async fn start(config: Config, key: &'static str) -> Self {
        let backend = Backend::redis(config).expect("a backend");
        backend.ready(LONG).await.expect("servers");
        let Engine::Redis(redis) = backend.engine() else {
            panic!("a backend on Redis");
        };
        let done = Arc::<Mutex<Vec<_>>>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let (redis, done) = (redis.clone(), Arc::clone(&done));
            tasks.spawn(async move {
                loop {
                    let began = Instant::now();
                    let set = Call::new("SET", Class::AtMostOnce).key(key).int(1);
                    if redis.call(set, DEADLINE).await.is_ok() {
                        lock(&done).push((began, Instant::now()));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        let writes = Self {
            done,
            _backend: backend,
            _tasks: tasks,
        };
        writes.first_after(Instant::now()).await;
        writes
    }

    /// How long after `moment` a write ended, the first of those that ended after it.
    async fn first_after(&self, moment: Instant) -> Duration {
        let first = async {
            loop {
                let first = lock(&self.done)
                    .iter()
                    .find(|(_, ended)| *ended > moment)
                    .copied();
                if let Some((_, ended)) = first {
                    return ended - moment;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let first = tokio::time::timeout(LONG, first).await;
        first.expect("writes do not go on")
    }

    /// The longest time without a write since `moment`.
    fn longest_stop(&self, moment: Instant) -> Duration {
        let mut last = moment;
        let mut longest = Duration::ZERO;
        for (_, ended) in lock(&self.done).iter().filter(|(_, ended)| *ended > moment) {
            longest = longest.max(*ended - last);
            last = *ended;
        }
        longest.max(last.elapsed())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!(
        "{what}: median {:.0?}, worst {:.0?} of {}",
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    );
}
