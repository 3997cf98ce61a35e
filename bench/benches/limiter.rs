//! `Limiter::check` over 10,000 subjects, all admitted: against scripts on the bare client library and through a pool at its
//! defaults, and in process against governor.

use std::{hint::black_box, num::NonZeroU32, sync::Arc, time::Duration};

use bench::{TASKS, backend, bare, closed_loop, pool, runtime};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use governor::{Quota, RateLimiter};
use redis_conn::Backend;
use testkit::RedisServer;
use tower_ratelimit_redis::{Limiter, OnFailure, Policy, Source, Spending};

/// Many subjects, and one that everybody asks for.
const SUBJECTS: [(&str, u64); 2] = [("check", 10_000), ("check of one subject", 1)];
const LIMIT: u64 = 1_000_000_000;

/// The least that a script can do, and the least that a limiter can do: one time stamp per key, integer microseconds.
const NOOP: &str = "return 1";
const GCRA: &str = include_str!("../src/minimal_gcra.lua");

fn policy() -> Policy {
    Policy::new("bench")
        .limit(LIMIT, Duration::from_secs(60))
        .build()
        .expect("a policy")
}

fn subject(n: u64, subjects: u64) -> String {
    format!("user:{}", n % subjects)
}

/// One call of a script by its digest.
fn evalsha(digest: &str, subject: &str) -> redis::Cmd {
    let mut command = redis::cmd("EVALSHA");
    command
        .arg(digest)
        .arg(1)
        .arg(format!("tk:bench:{{{subject}}}"))
        .arg(1)
        .arg(60_000_000);
    command
}

fn redis(criterion: &mut Criterion) {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start());
    let bare = runtime.block_on(bare(&server.url()));
    let pool = runtime.block_on(pool(&server.url()));
    let backend = runtime.block_on(backend(&[server.url()]));
    let limiter = Limiter::builder(&backend)
        .on_failure(OnFailure::Closed)
        .timeout(Duration::from_secs(5))
        .build()
        .expect("a limiter");
    let load = async |text: &str| -> String {
        let mut connection = server.connection().await;
        redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(text)
            .query_async(&mut connection)
            .await
            .expect("SCRIPT LOAD")
    };
    let noop = runtime.block_on(load(NOOP));
    let gcra = runtime.block_on(load(GCRA));

    for (title, subjects) in SUBJECTS {
        let mut group = criterion.benchmark_group(title);
        group.throughput(Throughput::Elements(1));
        for tasks in TASKS {
            for (name, digest) in [
                ("bare, script `return 1`", &noop),
                ("bare, minimal GCRA script", &gcra),
            ] {
                group.bench_function(BenchmarkId::new(name, tasks), |bencher| {
                    bencher.to_async(&runtime).iter_custom(|total| {
                        let (connection, digest) = (bare.clone(), digest.clone());
                        closed_loop(tasks, total, move |n| {
                            let (mut connection, command) =
                                (connection.clone(), evalsha(&digest, &subject(n, subjects)));
                            async move {
                                let admitted: u32 =
                                    command.query_async(&mut connection).await.expect("EVALSHA");
                                assert_eq!(admitted, 1);
                            }
                        })
                    });
                });
            }
            group.bench_function(BenchmarkId::new("Limiter::check", tasks), |bencher| {
                bencher.to_async(&runtime).iter_custom(|total| {
                    let (limiter, policy) = (limiter.clone(), policy());
                    closed_loop(tasks, total, move |n| {
                        let (limiter, policy) = (limiter.clone(), policy.clone());
                        async move {
                            let decision = limiter
                                .check(&policy, subject(n, subjects), 1)
                                .await
                                .expect("a decision");
                            assert!(decision.is_allowed() && decision.source() == Source::Store);
                        }
                    })
                });
            });
            group.bench_function(
                BenchmarkId::new("bb8-redis, minimal GCRA script", tasks),
                |bencher| {
                    bencher.to_async(&runtime).iter_custom(|total| {
                        let (pool, digest) = (pool.clone(), gcra.clone());
                        closed_loop(tasks, total, move |n| {
                            let (pool, command) =
                                (pool.clone(), evalsha(&digest, &subject(n, subjects)));
                            async move {
                                let mut connection = pool.get().await.expect("a connection");
                                let admitted: u32 = command
                                    .query_async(&mut *connection)
                                    .await
                                    .expect("EVALSHA");
                                assert_eq!(admitted, 1);
                            }
                        })
                    });
                },
            );
        }
        group.finish();
    }
}

/// Units that this process reserved before: most decisions meet no server.
fn leased(criterion: &mut Criterion) {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start());
    let backend = runtime.block_on(backend(&[server.url()]));
    let limiter = Limiter::new(&backend);

    for (title, subjects) in [("leased check", 100), ("leased check of one subject", 1)] {
        let mut group = criterion.benchmark_group(title);
        group.throughput(Throughput::Elements(1));
        for chunk in [50, 1_000] {
            let policy = Policy::new("leased")
                .limit(LIMIT, Duration::from_secs(60))
                .spending(Spending::Lease(chunk))
                .build()
                .expect("a policy");
            let name = format!("Limiter::check, chunks of {chunk}");
            group.bench_function(BenchmarkId::new(name, 64), |bencher| {
                bencher.to_async(&runtime).iter_custom(|total| {
                    let (limiter, policy) = (limiter.clone(), policy.clone());
                    closed_loop(64, total, move |n| {
                        let (limiter, policy) = (limiter.clone(), policy.clone());
                        async move {
                            let decision = limiter
                                .check(&policy, subject(n, subjects), 1)
                                .await
                                .expect("a decision");
                            assert!(decision.is_allowed());
                        }
                    })
                });
            });
        }
        group.finish();
    }
}

fn in_process(criterion: &mut Criterion) {
    let runtime = runtime();
    let limiter = Limiter::new(&Backend::memory());
    let quota = Quota::per_minute(NonZeroU32::new(LIMIT as u32).expect("not zero"));
    let governor = Arc::new(RateLimiter::keyed(quota));

    let mut group = criterion.benchmark_group("check in process");
    group.throughput(Throughput::Elements(1));
    for tasks in [1, 64] {
        group.bench_function(BenchmarkId::new("governor, keyed", tasks), |bencher| {
            bencher.to_async(&runtime).iter_custom(|total| {
                let governor = Arc::clone(&governor);
                closed_loop(tasks, total, move |n| {
                    let governor = Arc::clone(&governor);
                    async move {
                        black_box(governor.check_key(&subject(n, 10_000)).is_ok());
                    }
                })
            });
        });
        group.bench_function(BenchmarkId::new("Limiter::check", tasks), |bencher| {
            bencher.to_async(&runtime).iter_custom(|total| {
                let (limiter, policy) = (limiter.clone(), policy());
                closed_loop(tasks, total, move |n| {
                    let (limiter, policy) = (limiter.clone(), policy.clone());
                    async move {
                        black_box(
                            limiter
                                .check(&policy, subject(n, 10_000), 1)
                                .await
                                .expect("a decision")
                                .is_allowed(),
                        );
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
    targets = redis, leased, in_process
}
criterion_main!(benches);
