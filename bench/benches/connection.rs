//! `GET` of a 32-byte value: through the backend, through the bare client library, and through a pool at its defaults.

use std::time::Duration;

use bench::{TASKS, backend, bare, closed_loop, pool, runtime};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use redis_conn::raw::{Call, Class, Engine};
use testkit::RedisServer;

const KEY: &str = "bench:value";
const DEADLINE: Duration = Duration::from_millis(500);

fn get(criterion: &mut Criterion) {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start());
    let bare = runtime.block_on(bare(&server.url()));
    let pool = runtime.block_on(pool(&server.url()));
    let backend = runtime.block_on(backend(&server.url()));
    runtime.block_on(async {
        let mut connection = bare.clone();
        let _: () = redis::cmd("SET")
            .arg(KEY)
            .arg("x".repeat(32))
            .query_async(&mut connection)
            .await
            .expect("SET");
    });
    let Engine::Redis(ours) = backend.engine() else {
        panic!("not redis")
    };

    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    for tasks in TASKS {
        group.bench_function(BenchmarkId::new("bare", tasks), |bencher| {
            bencher.to_async(&runtime).iter_custom(|total| {
                let connection = bare.clone();
                closed_loop(tasks, total, move |_| {
                    let mut connection = connection.clone();
                    async move {
                        let value: Vec<u8> = redis::cmd("GET")
                            .arg(KEY)
                            .query_async(&mut connection)
                            .await
                            .expect("GET");
                        assert_eq!(value.len(), 32);
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("redis-conn", tasks), |bencher| {
            bencher.to_async(&runtime).iter_custom(|total| {
                let redis = ours.clone();
                closed_loop(tasks, total, move |_| {
                    let redis = redis.clone();
                    async move {
                        let call = Call::new("GET", Class::Idempotent).arg(KEY);
                        let value = redis
                            .call(call, DEADLINE)
                            .await
                            .and_then(|reply| reply.bytes())
                            .expect("GET");
                        assert_eq!(value.expect("a value").len(), 32);
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("bb8-redis", tasks), |bencher| {
            bencher.to_async(&runtime).iter_custom(|total| {
                let pool = pool.clone();
                closed_loop(tasks, total, move |_| {
                    let pool = pool.clone();
                    async move {
                        let mut connection = pool.get().await.expect("a connection");
                        let value: Vec<u8> = redis::cmd("GET")
                            .arg(KEY)
                            .query_async(&mut *connection)
                            .await
                            .expect("GET");
                        assert_eq!(value.len(), 32);
                    }
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = get
}
criterion_main!(benches);
