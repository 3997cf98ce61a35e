//! TLS to a real server: whom it lets in, whom it refuses and why, and files that are replaced while the process runs.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    error::Error as StdError,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use redis_conn::{
    Backend, Bus, Config, Endpoint, Event, State, Subscription, Tls,
    raw::{Call, Class, Redis},
};
use support::{LONG, endpoints, redis};
use tempfile::TempDir;
use testkit::{Authority, Certificate, PASSWORD, RedisCluster, RedisSentinel, RedisServer, USER};
use tokio::{io::AsyncWriteExt as _, time::timeout};

/// The deadline of calls that are made again.
const SHORT: Duration = Duration::from_millis(500);

const ADDRESS: &str = "127.0.0.1";

async fn server(certificate: &Certificate) -> RedisServer {
    RedisServer::builder()
        .allow("+incr")
        .tls(certificate)
        .start()
        .await
}

fn trusting(ca: &Authority) -> Tls {
    Tls::new().ca_file(ca.ca_file())
}

fn backend(port: u16, tls: Tls) -> Backend {
    let config = Config::builder(Endpoint::tcp(ADDRESS, port)).tls(tls);
    let config = config.username(USER).password(PASSWORD);
    Backend::redis(config.build().unwrap()).unwrap()
}

/// What accepts every certificate. From the first use on the log of this process is kept.
fn unverified() -> Tls {
    #[cfg(feature = "tracing")]
    log::keep();
    Tls::new().reject_unauthorized(false)
}

fn incr() -> Call {
    Call::new("INCR", Class::AtMostOnce).key("tk:n")
}

/// The server lets us in and answers.
async fn serves(backend: &Backend) {
    backend.ready(LONG).await.unwrap();
    redis(backend).call(incr(), LONG).await.unwrap();
}

/// Waits until the backend is in this state, and returns all that a caller is told.
async fn told_in(backend: &Backend, state: State) -> String {
    let mut states = backend.watch_state();
    let come = timeout(LONG, states.wait_for(state)).await;
    assert!(come.unwrap_or(false), "the state stayed {}", states.get());
    let refused = redis(backend).call(incr(), LONG).await.unwrap_err();
    let mut causes: Vec<String> = Vec::new();
    let mut cause: Option<&dyn StdError> = Some(&refused);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}

/// The backend is refused with an error that says this.
async fn is_refused(backend: &Backend, reason: &str) {
    let told = told_in(backend, State::Error).await;
    assert!(told.contains(reason), "expected {reason:?}, found {told:?}");
}

/// A directory with copies of files, which a test may replace.
struct Copies(TempDir);

impl Copies {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes the file in one step, as those do that renew certificates.
    fn put(&self, name: &str, from: &Path) -> PathBuf {
        self.write(name, &fs::read(from).unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let (new, path) = (self.path("new"), self.path(name));
        fs::write(&new, bytes).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }
}

#[tokio::test]
async fn commands_the_bus_and_the_pool_work_over_tls() {
    let ca = Authority::new();
    let server = server(&ca.server(&["localhost", ADDRESS])).await;
    for host in ["localhost", ADDRESS] {
        let config = Config::from_url(&server.tls_url(host)).unwrap();
        let config = config.into_builder().tls(trusting(&ca)).build().unwrap();
        let backend = Backend::redis(config).unwrap();
        serves(&backend).await;

        let mut news = backend.bus().subscribe("news").await.unwrap();
        backend.bus().publish("news", b"hello").await.unwrap();
        let event = timeout(LONG, news.recv()).await.unwrap();
        let Some(Event::Message(message)) = event else {
            panic!("expected a message, found {event:?}");
        };
        assert_eq!(message.payload(), b"hello");

        let mut own = redis(&backend).dedicated("n", LONG).await.unwrap();
        own.call(incr(), LONG).await.unwrap();
        own.release();

        // More than any buffer on the way, in both directions.
        let big = vec![b'x'; 4 << 20];
        let set = Call::new("SET", Class::Idempotent).key("tk:big").arg(&big);
        redis(&backend).call(set, LONG).await.unwrap();
        let get = Call::new("GET", Class::Idempotent).key("tk:big");
        let got = redis(&backend).call(get, LONG).await.unwrap();
        assert!(got.bytes().unwrap().unwrap() == big);
    }
}

#[tokio::test]
async fn a_url_that_says_tls_trusts_public_authorities_only() {
    let ca = Authority::new();
    let server = server(&ca.server(&[ADDRESS])).await;
    let config = Config::from_url(&server.tls_url(ADDRESS)).unwrap();
    let backend = Backend::redis(config).unwrap();
    is_refused(&backend, "unknown issuer").await;
}

#[tokio::test]
async fn an_unknown_issuer_is_refused_until_the_file_holds_it() {
    let (ca, stranger, files) = (Authority::new(), Authority::new(), Copies::new());
    let server = server(&ca.server(&[ADDRESS])).await;
    let trusted = files.put("ca.pem", &stranger.ca_file());
    let backend = backend(server.tls_port(), Tls::new().ca_file(trusted));
    is_refused(&backend, "unknown issuer").await;

    files.put("ca.pem", &ca.ca_file());
    serves(&backend).await;
}

#[tokio::test]
async fn another_name_is_refused_unless_it_is_the_expected_one() {
    let ca = Authority::new();
    let server = server(&ca.server(&["redis.internal"])).await;
    let by_address = backend(server.tls_port(), trusting(&ca));
    is_refused(&by_address, "is for another name").await;
    let told = told_in(&by_address, State::Error).await;
    assert!(!told.contains("redis.internal"), "{told}");

    let named = trusting(&ca).server_name("redis.internal");
    serves(&backend(server.tls_port(), named)).await;
    let misnamed = trusting(&ca).server_name("redis.example");
    is_refused(&backend(server.tls_port(), misnamed), "is for another name").await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused_until_it_is_renewed() {
    let ca = Authority::new();
    let (expired, renewed) = (ca.expired_server(&[ADDRESS]), ca.server(&[ADDRESS]));
    let server = server(&expired).await;
    let backend = backend(server.tls_port(), trusting(&ca));
    is_refused(&backend, "has expired").await;

    fs::copy(renewed.cert_file(), expired.cert_file()).unwrap();
    fs::copy(renewed.key_file(), expired.key_file()).unwrap();
    server.restart().await;
    serves(&backend).await;
}

#[tokio::test]
async fn whatever_is_wrong_with_a_certificate_can_be_accepted() {
    let ca = Authority::new();
    for certificate in [
        ca.server(&[ADDRESS]),
        ca.server(&["redis.internal"]),
        ca.expired_server(&[ADDRESS]),
    ] {
        let server = server(&certificate).await;
        serves(&backend(server.tls_port(), unverified())).await;
    }
    // A name in the way of the check is none for the handshake.
    let server = server(&ca.server(&[ADDRESS])).await;
    serves(&backend(
        server.tls_port(),
        unverified().server_name("redis.example"),
    ))
    .await;
}

#[cfg(feature = "tracing")]
#[tokio::test]
async fn accepting_every_certificate_is_warned_of_once() {
    let ca = Authority::new();
    let server = server(&ca.server(&[ADDRESS])).await;
    for _ in 0..2 {
        let backend = backend(server.tls_port(), unverified());
        serves(&backend).await;
        redis(&backend)
            .dedicated("n", LONG)
            .await
            .unwrap()
            .release();
    }
    assert_eq!(log::lines("TLS accepts every certificate of a server"), 1);
}

/// TLS 1.3 refuses a certificate after the handshake, TLS 1.2 during it.
#[tokio::test]
async fn a_server_that_wants_a_certificate_takes_only_one_that_it_trusts() {
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        let (ca, stranger, files) = (Authority::new(), Authority::new(), Copies::new());
        let builder = RedisServer::builder()
            .allow("+incr")
            .tls(&ca.server(&[ADDRESS]));
        let builder = builder.arg("tls-protocols", protocol);
        let server = builder.tls_client_auth(true).start().await;
        let anonymous = backend(server.tls_port(), trusting(&ca));
        is_refused(&anonymous, "wants a certificate of ours").await;

        let unknown = stranger.client("app");
        let cert = files.put("cert.pem", &unknown.cert_file());
        let key = files.put("key.pem", &unknown.key_file());
        let identified = trusting(&ca).client_certificate(&cert, &key);
        let identified = backend(server.tls_port(), identified);
        is_refused(&identified, "refused our certificate").await;

        let known = ca.client("app");
        files.put("cert.pem", &known.cert_file());
        files.put("key.pem", &known.key_file());
        serves(&identified).await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_and_read_again() {
    let (ca, files) = (Authority::new(), Copies::new());
    let certificate = ca.server(&[ADDRESS]);
    let builder = RedisServer::builder().allow("+incr").tls(&certificate);
    let server = builder.tls_client_auth(true).start().await;
    let (own, other) = (ca.client("app"), ca.client("other"));
    let (ca_file, cert, key) = (
        files.path("ca.pem"),
        files.path("cert.pem"),
        files.path("key.pem"),
    );
    let tls = Tls::new().ca_file(&ca_file).client_certificate(&cert, &key);

    let fresh = || backend(server.tls_port(), tls.clone());
    is_refused(&fresh(), "tls.ca_file=").await;
    files.write("ca.pem", b"");
    is_refused(&fresh(), "it is empty").await;
    files.write("ca.pem", b"no certificate");
    is_refused(&fresh(), "tls.ca_file=").await;
    files.put("ca.pem", &ca.ca_file());
    is_refused(&fresh(), "tls.cert_file=").await;
    files.put("cert.pem", &own.cert_file());
    is_refused(&fresh(), "tls.key_file=").await;
    files.put("key.pem", &own.cert_file());
    is_refused(&fresh(), "a private key without a passphrase").await;
    files.put("key.pem", &other.key_file());
    let last = fresh();
    is_refused(&last, "expected a certificate and its private key").await;
    files.put("key.pem", &own.key_file());
    serves(&last).await;
}

#[tokio::test]
async fn an_authority_that_is_replaced_is_trusted_by_the_next_connection() {
    let (old, new, files) = (Authority::new(), Authority::new(), Copies::new());
    let (before, after) = (old.server(&[ADDRESS]), new.server(&[ADDRESS]));
    let server = server(&before).await;
    let trusted = files.put("ca.pem", &old.ca_file());
    let backend = backend(server.tls_port(), Tls::new().ca_file(trusted));
    serves(&backend).await;

    files.put("ca.pem", &new.ca_file());
    serves(&backend).await;
    fs::copy(after.cert_file(), before.cert_file()).unwrap();
    fs::copy(after.key_file(), before.key_file()).unwrap();
    server.restart().await;
    serves(&backend).await;
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    // It waits for the end of a line that never comes.
    let ca = Authority::new();
    let server = RedisServer::start().await;
    let silent = backend(server.port(), trusting(&ca));
    let told = told_in(&silent, State::Reconnecting).await;
    assert!(told.contains("does not speak TLS on this port"), "{told}");

    let listener = tokio::net::TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.write_all(b"-ERR unknown command\r\n").await.unwrap();
        }
    });
    let refused = backend(port, trusting(&ca));
    is_refused(&refused, "does not speak TLS on this port").await;
    answering.abort();
}

#[tokio::test]
async fn a_server_that_goes_away_during_the_handshake_is_away() {
    let ca = Authority::new();
    let listener = tokio::net::TcpListener::bind((ADDRESS, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closing = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let backend = backend(port, trusting(&ca));
    let told = told_in(&backend, State::Reconnecting).await;
    assert!(told.contains("during the TLS handshake"), "{told}");
    closing.abort();
}

#[tokio::test]
async fn the_nodes_of_a_cluster_are_dialled_with_tls() {
    let ca = Authority::new();
    let bus = TcpListener::bind((ADDRESS, 0)).unwrap();
    let bus_port = bus.local_addr().unwrap().port().to_string();
    drop(bus);
    let server = RedisServer::builder()
        .allow("+incr")
        .tls(&ca.server(&[ADDRESS]))
        .arg("cluster-enabled", "yes")
        .arg("tls-cluster", "yes")
        .arg("cluster-announce-ip", ADDRESS)
        .arg("cluster-port", &bus_port)
        .start()
        .await;
    let mut admin = server.connection().await;
    let mut shared = redis::cmd("CLUSTER");
    let shared = shared.arg("ADDSLOTSRANGE").arg(0).arg(16_383);
    shared.query_async::<()>(&mut admin).await.unwrap();

    let nodes = [Endpoint::tcp(ADDRESS, server.tls_port())];
    let config = Config::cluster(nodes).tls(trusting(&ca));
    let config = config.username(USER).password(PASSWORD).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    serves(&backend).await;
}

/// Writes until a server takes it, and returns the number.
async fn counted(redis: &Redis, key: &str) -> i64 {
    let counting = async {
        loop {
            let incr = Call::new("INCR", Class::AtMostOnce).key(key);
            if let Ok(count) = redis.call(incr, SHORT).await {
                return count.int().unwrap();
            }
        }
    };
    timeout(LONG, counting).await.expect("no write was taken")
}

/// Publishes until the message is heard.
async fn is_heard(news: &mut Subscription, bus: &Bus, channel: &str, text: &str) {
    let heard = async {
        loop {
            let published = bus.publish(channel, text.as_bytes()).await;
            if published.is_ok() && heard_now(news, text).await {
                return;
            }
        }
    };
    timeout(LONG, heard).await.expect("no message came");
}

async fn heard_now(news: &mut Subscription, text: &str) -> bool {
    while let Ok(Some(event)) = timeout(SHORT, news.recv()).await {
        if matches!(event, Event::Message(message) if message.payload() == text.as_bytes()) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_cluster_of_several_nodes_serves_over_tls_and_fails_over() {
    let ca = Authority::new();
    let cluster = RedisCluster::builder()
        .allow("+incr")
        .tls(&ca.peer(&[ADDRESS]))
        .start()
        .await;
    // The slots name the nodes by the ports of those who ask with TLS.
    let config = Config::cluster(endpoints(vec![cluster.addr(0)])).tls(trusting(&ca));
    let config = config.username(USER).password(PASSWORD);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let redis = redis(&backend);
    let keys: Vec<String> = (0..30).map(|number| format!("tk:n:{number}")).collect();
    for key in &keys {
        assert_eq!(counted(&redis, key).await, 1);
        let mut own = redis.dedicated(key, LONG).await.unwrap();
        let get = Call::new("GET", Class::Idempotent).key(key);
        own.call(get, LONG).await.unwrap();
        own.release();
    }
    let bus = backend.bus();
    let mut channels = Vec::new();
    for number in 0..9 {
        let channel = format!("channel-{number}");
        channels.push((bus.subscribe(&channel).await.unwrap(), channel));
    }
    for (news, channel) in &mut channels {
        bus.publish(channel, b"hello").await.unwrap();
        let event = timeout(LONG, news.recv()).await.unwrap();
        assert!(matches!(event, Some(Event::Message(message)) if message.payload() == b"hello"));
    }

    cluster.kill(0);
    cluster.wait_for_new_primary(0, 0).await;
    for key in &keys {
        assert!(counted(&redis, key).await > 1, "what it was is lost");
    }
    for (news, channel) in &mut channels {
        is_heard(news, &bus, channel, "again").await;
    }
}

#[tokio::test]
async fn sentinels_and_their_primary_serve_over_tls_and_fail_over() {
    let ca = Authority::new();
    let group = RedisSentinel::builder()
        .allow("+incr")
        .tls(&ca.peer(&[ADDRESS]))
        .start()
        .await;
    let config = Config::sentinel(endpoints(group.sentinel_addrs()), group.master_name());
    let config = config.tls(trusting(&ca)).username(USER).password(PASSWORD);
    let config = config.sentinel_username(USER).sentinel_password(PASSWORD);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    serves(&backend).await;
    let (redis, bus) = (redis(&backend), backend.bus());
    redis.dedicated("n", LONG).await.unwrap().release();
    let mut news = bus.subscribe("news").await.unwrap();
    is_heard(&mut news, &bus, "news", "hello").await;

    group.kill(0);
    let new = group.wait_for_new_master(0).await;
    counted(&redis, "tk:again").await;
    let stored: Option<u64> = redis::cmd("GET")
        .arg("tk:again")
        .query_async(&mut group.connection(new).await)
        .await
        .unwrap();
    assert!(stored.is_some());
    is_heard(&mut news, &bus, "news", "again").await;
}

/// What this process logs.
#[cfg(feature = "tracing")]
mod log {
    use std::{
        io,
        sync::{Mutex, Once},
    };

    static TEXT: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct Writer;

    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            TEXT.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(super) fn keep() {
        static KEPT: Once = Once::new();
        KEPT.call_once(|| tracing_subscriber::fmt().with_writer(|| Writer).init());
    }

    /// How many lines contain `wanted`.
    pub(super) fn lines(wanted: &str) -> usize {
        let text = TEXT.lock().unwrap();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter(|line| line.contains(wanted)).count()
    }
}
