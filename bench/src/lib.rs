//! What the benchmarks share: the server, the peers, and a load of many tasks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use redis_conn::{Backend, Config};
use tokio::runtime::{Builder, Runtime};

/// The numbers of tasks that every comparison is made with.
pub const TASKS: [u64; 3] = [1, 64, 256];

/// A runtime with two workers, whatever the machine has.
pub fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Runs `total` operations in `tasks` tasks that each wait for one operation before they begin the next.
pub async fn closed_loop<F, Fut>(tasks: u64, total: u64, operation: F) -> Duration
where
    F: Fn(u64) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let begin = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let operation = operation.clone();
        let share = total / tasks + u64::from(task < total % tasks);
        running.spawn(async move {
            for n in 0..share {
                operation(task.wrapping_mul(1_000_003).wrapping_add(n)).await;
            }
        });
    }
    running.join_all().await;
    begin.elapsed()
}

/// The client library by itself: one connection, shared by all tasks.
pub async fn bare(url: &str) -> MultiplexedConnection {
    let info: ConnectionInfo = url.into_connection_info().expect("a URL");
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = redis::Client::open(info).expect("a client");
    client
        .get_multiplexed_async_connection_with_config(&AsyncConnectionConfig::new())
        .await
        .expect("a connection")
}

/// A pool with all of its defaults.
pub async fn pool(url: &str) -> bb8_redis::bb8::Pool<bb8_redis::RedisConnectionManager> {
    let manager = bb8_redis::RedisConnectionManager::new(url).expect("a URL");
    bb8_redis::bb8::Pool::builder()
        .build(manager)
        .await
        .expect("a pool")
}

/// Our backend, with as many lanes as the peers have connections: one.
pub async fn backend(url: &str) -> Arc<Backend> {
    let config = Config::from_url(url)
        .expect("a URL")
        .into_builder()
        .lanes(1)
        .build()
        .expect("a configuration");
    let backend = Backend::redis(config).expect("a backend");
    backend
        .ready(Duration::from_secs(10))
        .await
        .expect("a server");
    Arc::new(backend)
}
