//! `GET` of a 32-byte value, on a single server and on a cluster: through the backend, through the bare client library, and
//! through the peer of the place at its defaults, a pool or the client library's own client of a cluster.

use std::time::Duration;

use bench::{KEYS, TASKS, backend, bare_with_value, closed_loop, cluster_client, pool, runtime};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis_conn::raw::{Call, Class, Engine, Redis};
use testkit::{RedisCluster, RedisServer};
use tokio::runtime::Runtime;

const DEADLINE: Duration = Duration::from_millis(500);

fn single(criterion: &mut Criterion) {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start());
    let urls = [server.url()];
    let pool = runtime.block_on(pool(&server.url()));
    let mut group = criterion.benchmark_group("get");
    compared(&mut group, &runtime, &urls);
    each(&mut group, &runtime, "bb8-redis", move |_, key| {
        let pool = pool.clone();
        async move { get(&mut *pool.get().await.expect("a connection"), key).await }
    });
    group.finish();
}

fn cluster(criterion: &mut Criterion) {
    let runtime = runtime();
    let nodes = RedisCluster::builder().replicas_per_primary(0);
    let nodes = runtime.block_on(nodes.start());
    let urls = nodes.seed_urls();
    let client = runtime.block_on(cluster_client(&urls));
    let mut group = criterion.benchmark_group("get-cluster");
    compared(&mut group, &runtime, &urls);
    each(&mut group, &runtime, "cluster-client", move |_, key| {
        let mut client = client.clone();
        async move { get(&mut client, key).await }
    });
    group.finish();
}

/// The bare client library, with a connection to the server of each key, and the backend.
fn compared(group: &mut BenchmarkGroup<'_, WallTime>, runtime: &Runtime, urls: &[String]) {
    group.throughput(Throughput::Elements(1));
    let connections = KEYS.map(|key| runtime.block_on(bare_with_value(urls, key)));
    // On one server all keys share one connection, as they do in the backend.
    let connections = match urls {
        [_] => [0, 0, 0],
        _ => [0, 1, 2],
    }
    .map(|index| connections[index].clone());
    each(group, runtime, "bare", move |n, key| {
        let mut connection: MultiplexedConnection = connections[n].clone();
        async move { get(&mut connection, key).await }
    });
    let backend = runtime.block_on(backend(urls));
    let Engine::Redis(redis) = backend.engine() else {
        panic!("not redis")
    };
    let redis = redis.clone();
    each(group, runtime, "redis-conn", move |_, key| {
        ours(redis.clone(), key)
    });
}

/// Measures `operation` on the keys in turn, with every number of tasks.
fn each<F, Fut>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    name: &str,
    operation: F,
) where
    F: Fn(usize, &'static str) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    for tasks in TASKS {
        group.bench_function(BenchmarkId::new(name, tasks), |bencher| {
            bencher.to_async(runtime).iter_custom(|total| {
                let operation = operation.clone();
                closed_loop(tasks, total, move |turn| {
                    let n = turn as usize % KEYS.len();
                    operation(n, KEYS[n])
                })
            });
        });
    }
}

async fn get(connection: &mut impl ConnectionLike, key: &str) {
    let mut get = redis::cmd("GET");
    let value: Vec<u8> = get.arg(key).query_async(connection).await.expect("GET");
    assert_eq!(value.len(), 32);
}

async fn ours(redis: Redis, key: &str) {
    let call = Call::new("GET", Class::Idempotent).key(key);
    let reply = redis.call(call, DEADLINE).await;
    let value = reply.and_then(|reply| reply.bytes()).expect("GET");
    assert_eq!(value.expect("a value").len(), 32);
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = single, cluster
}
criterion_main!(benches);
