//! What the benchmarks share: the server, the peers, and a load of many tasks.

pub mod accuracy;
pub mod plot;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult,
    aio::MultiplexedConnection, cluster::ClusterClient, cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
};
use redis_conn::{Backend, Config, ConfigBuilder, Endpoint};
use tokio::runtime::{Builder, Runtime};

/// The numbers of tasks that every comparison is made with.
pub const TASKS: [u64; 3] = [1, 64, 256];

/// Keys of three slots, which a cluster of three primaries shares out evenly.
pub const KEYS: [&str; 3] = ["tk:bench:{a}", "tk:bench:{b}", "tk:bench:{c}"];

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

/// The client library's own client of a cluster, with all of its defaults.
pub async fn cluster_client(urls: &[String]) -> ClusterConnection {
    let client = ClusterClient::new(urls.iter().map(String::as_str)).expect("a client");
    client.get_async_connection().await.expect("a connection")
}

/// A connection of the client library to the one of these servers that takes `key`, where 32 bytes are then.
pub async fn bare_with_value(urls: &[String], key: &str) -> MultiplexedConnection {
    for url in urls {
        let mut connection = bare(url).await;
        let mut set = redis::cmd("SET");
        let stored: RedisResult<()> = set
            .arg(key)
            .arg("x".repeat(32))
            .query_async(&mut connection)
            .await;
        if stored.is_ok() {
            return connection;
        }
    }
    panic!("none of the servers takes {key}");
}

/// A pool with all of its defaults.
pub async fn pool(url: &str) -> bb8_redis::bb8::Pool<bb8_redis::RedisConnectionManager> {
    let manager = bb8_redis::RedisConnectionManager::new(url).expect("a URL");
    bb8_redis::bb8::Pool::builder()
        .build(manager)
        .await
        .expect("a pool")
}

/// Our backend on the server with this URL, or on the cluster of the servers with these, with as many lanes to a server as the
/// peers have connections: one.
pub async fn backend(urls: &[String]) -> Arc<Backend> {
    let config = match urls {
        [url] => Config::from_url(url).expect("a URL").into_builder(),
        nodes => cluster(nodes),
    };
    let config = config.lanes(1).build().expect("a configuration");
    let backend = Backend::redis(config).expect("a backend");
    backend
        .ready(Duration::from_secs(10))
        .await
        .expect("a server");
    Arc::new(backend)
}

fn cluster(urls: &[String]) -> ConfigBuilder {
    let infos = urls.iter().map(|url| {
        url.as_str()
            .into_connection_info()
            .expect("the URL of a node")
    });
    let infos: Vec<ConnectionInfo> = infos.collect();
    let mut config = Config::cluster(infos.iter().map(|info| match info.addr() {
        ConnectionAddr::Tcp(host, port) => Endpoint::tcp(host, *port),
        other => panic!("not the address of a node: {other}"),
    }));
    let login = infos[0].redis_settings();
    if let Some(username) = login.username() {
        config = config.username(username);
    }
    if let Some(password) = login.password() {
        config = config.password(password);
    }
    config
}
