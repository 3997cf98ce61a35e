//! Passwords that are wrong, change, or are late to come, while the process runs.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::{
    error::Error as StdError,
    fs,
    future::{Future, pending},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_conn::{
    Backend, Config, ConfigBuilder, Credentials, Endpoint, Error, Login, State,
    raw::{Call, Class},
};
use support::{LONG, chain, redis};
use tempfile::TempDir;
use testkit::RedisServer;
use tokio::{sync::watch, task::JoinSet, time::timeout};

const OLD: &str = "the-old-secret";
const NEW: &str = "the-new-secret";
const WRONG: &str = "a-wrong-secret";

/// A server that knows the user `app` by one password.
async fn server() -> RedisServer {
    let users = format!("user default off\nuser app on >{OLD} ~* &* +@all");
    RedisServer::builder().users(users).start().await
}

async fn acl(server: &RedisServer, rule: &str) {
    let mut admin = server.connection().await;
    let mut set = redis::cmd("ACL");
    let set = set.arg("SETUSER").arg("app").arg(rule);
    set.query_async::<()>(&mut admin).await.unwrap();
}

/// Ends the connections of the user, as a failover does, and returns how many there were.
async fn kill(server: &RedisServer) -> usize {
    let mut admin = server.connection().await;
    let mut kill = redis::cmd("CLIENT");
    let kill = kill.arg("KILL").arg("USER").arg("app");
    kill.query_async(&mut admin).await.unwrap()
}

/// A file that holds a password, written in one step as a secret manager does.
struct PasswordFile(TempDir);

impl PasswordFile {
    fn new(password: &str) -> Self {
        let file = Self(TempDir::new().unwrap());
        file.write(password);
        file
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("password")
    }

    fn write(&self, password: &str) {
        let new: &Path = &self.0.path().join("new");
        fs::write(new, format!("{password}\n")).unwrap();
        fs::rename(new, self.path()).unwrap();
    }
}

/// What a provider answers.
enum Answer {
    Password(&'static str),
    /// These one after the other, and then the last one again and again.
    InTurn(&'static [&'static str]),
    Failure,
    Panic,
    Nothing,
}

/// A provider of credentials that says what it is told to, and counts.
struct Provider {
    answer: Mutex<Answer>,
    asked: watch::Sender<usize>,
}

impl Provider {
    fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(answer),
            asked: watch::Sender::new(0),
        })
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    async fn asked_more_than(&self, times: usize) {
        let mut asked = self.asked.subscribe();
        let more = timeout(LONG, asked.wait_for(|asked| *asked > times)).await;
        more.expect("nobody asked for credentials").unwrap();
    }
}

type LoginFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Login, Box<dyn StdError + Send + Sync>>> + Send + 'a>>;

impl Credentials for Provider {
    fn login(&self) -> LoginFuture<'_> {
        self.asked.send_modify(|asked| *asked += 1);
        let password = match &*self.answer.lock().unwrap() {
            Answer::Password(password) => *password,
            Answer::InTurn(passwords) => passwords[(self.asked() - 1).min(passwords.len() - 1)],
            Answer::Failure => {
                return Box::pin(async { Err(io::Error::other("the vault is sealed").into()) });
            }
            Answer::Panic => return Box::pin(async { panic!("a provider may be wrong") }),
            Answer::Nothing => return Box::pin(pending()),
        };
        Box::pin(async move { Ok(Login::new(Some("app".into()), password)) })
    }
}

fn to(server: &RedisServer) -> ConfigBuilder {
    Config::builder(Endpoint::tcp("127.0.0.1", server.port()))
}

fn by_file(server: &RedisServer, file: &PasswordFile) -> Backend {
    let config = to(server).username("app").password_file(file.path());
    Backend::redis(config.build().unwrap()).unwrap()
}

fn by_provider(server: &RedisServer, provider: &Arc<Provider>) -> Backend {
    let provider = Arc::clone(provider) as Arc<dyn Credentials>;
    let config = to(server).credentials(provider).lanes(1);
    Backend::redis(config.build().unwrap()).unwrap()
}

fn get() -> Call {
    Call::new("GET", Class::Idempotent).key("n")
}

fn incr() -> Call {
    Call::new("INCR", Class::AtMostOnce).key("n")
}

async fn serves(backend: &Backend) {
    backend.ready(LONG).await.unwrap();
    redis(backend).call(get(), LONG).await.unwrap();
}

fn holds_no_secret(text: &str) {
    for secret in [OLD, NEW, WRONG] {
        assert!(!text.contains(secret), "{text}");
    }
}

/// The backend is in the state `Error`, says why to callers, and tells nobody a secret.
async fn is_refused(backend: &Backend, reason: &str) {
    let mut states = backend.watch_state();
    let refused = timeout(LONG, states.wait_for(State::Error)).await;
    assert!(
        refused.unwrap_or(false),
        "the state stayed {}",
        states.get()
    );
    let error = redis(backend).call(get(), LONG).await.unwrap_err();
    let told = chain(&error);
    assert!(told.contains(reason), "expected {reason:?}, found {told:?}");
    holds_no_secret(&format!(
        "{told} {error:?} {backend:?} {:?}",
        backend.health()
    ));
}

#[tokio::test]
async fn a_wrong_password_in_a_file_is_corrected_without_a_restart() {
    let (server, file) = (server().await, PasswordFile::new(WRONG));
    let backend = by_file(&server, &file);
    is_refused(&backend, "WRONGPASS").await;

    file.write("");
    is_refused_for(&backend, "expected a file that holds a password").await;
    fs::remove_file(file.path()).unwrap();
    is_refused_for(&backend, "expected a file that holds a password").await;

    file.write(OLD);
    serves(&backend).await;
}

/// As `is_refused`, once the reason of the last attempt is this one.
async fn is_refused_for(backend: &Backend, reason: &str) {
    let told = timeout(LONG, async {
        loop {
            let error = redis(backend).call(get(), LONG).await.unwrap_err();
            if chain(&error).contains(reason) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(told.await.is_ok(), "nobody was told of {reason:?}");
    is_refused(backend, reason).await;
}

#[tokio::test]
async fn a_provider_is_asked_again_whatever_was_wrong_with_its_answer() {
    let (server, provider) = (server().await, Provider::new(Answer::Failure));
    let backend = by_provider(&server, &provider);
    is_refused(&backend, "the vault is sealed").await;

    provider.answer(Answer::Panic);
    is_refused_for(&backend, "the provider panicked").await;
    provider.answer(Answer::Nothing);
    is_refused_for(&backend, "no credentials within").await;
    provider.answer(Answer::Password(""));
    is_refused_for(&backend, "an empty password").await;
    provider.answer(Answer::Password(WRONG));
    is_refused_for(&backend, "WRONGPASS").await;
    provider.answer(Answer::Password(OLD));
    serves(&backend).await;
}

#[tokio::test]
async fn a_provider_is_asked_for_every_connection() {
    let (server, provider) = (server().await, Provider::new(Answer::Password(OLD)));
    let backend = by_provider(&server, &provider);
    serves(&backend).await;
    assert_eq!(provider.asked(), 1, "one connection was made");

    let own = redis(&backend).dedicated("n", LONG).await.unwrap();
    assert_eq!(provider.asked(), 2, "one more, for exclusive use");
    own.release();
    let _news = backend.bus().subscribe("news").await.unwrap();
    assert_eq!(provider.asked(), 3, "one more, for subscriptions");

    assert_eq!(kill(&server).await, 3);
    provider.asked_more_than(4).await;
    serves(&backend).await;
}

#[tokio::test]
async fn a_refused_password_is_not_tried_by_every_caller_who_wants_a_connection_of_his_own() {
    let (server, provider) = (server().await, Provider::new(Answer::Password(WRONG)));
    let backend = by_provider(&server, &provider);
    is_refused(&backend, "WRONGPASS").await;
    let callers = 100;
    for _ in 0..callers {
        let refused = redis(&backend).dedicated("n", LONG).await.unwrap_err();
        let told = chain(&refused);
        assert!(told.contains("WRONGPASS"), "{told}");
    }
    let asked = provider.asked();
    assert!(asked < callers, "asked {asked} times");

    provider.answer(Answer::Password(OLD));
    let connected = timeout(LONG, async {
        while redis(&backend).dedicated("n", LONG).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(connected.await.is_ok(), "still refused");
}

#[tokio::test]
async fn a_password_that_changes_while_it_is_used_is_asked_for_again_in_the_same_attempt() {
    let server = server().await;
    let provider = Provider::new(Answer::InTurn(&[WRONG, OLD]));
    let backend = by_provider(&server, &provider);
    let mut states = backend.watch_state();
    assert_eq!(states.changed().await, Some(State::Connected));
    assert_eq!(provider.asked(), 2);
    serves(&backend).await;
}

/// Callers that never pause, and what they were told.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    callers: JoinSet<Vec<(Class, Error)>>,
}

impl Load {
    fn start(backend: &Backend) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            calls: Arc::default(),
            callers: JoinSet::new(),
        };
        for (call, class) in [
            (get as fn() -> Call, Class::Idempotent),
            (get, Class::Idempotent),
            (incr, Class::AtMostOnce),
            (incr, Class::AtMostOnce),
        ] {
            let (redis, stop, calls) = (redis(backend), load.stop.clone(), load.calls.clone());
            load.callers.spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match redis.call(call(), LONG).await {
                        Ok(_) => drop(calls.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push((class, error)),
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                failed
            });
        }
        load
    }

    /// Waits until so many more calls have succeeded.
    async fn goes_on(&self) {
        let wanted = self.calls.load(Ordering::Relaxed) + 200;
        let going = timeout(LONG, async {
            while self.calls.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(going.await.is_ok(), "the callers came to a halt");
    }

    async fn failures(self) -> Vec<(Class, Error)> {
        self.stop.store(true, Ordering::Relaxed);
        self.callers
            .join_all()
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Both passwords are valid while the file changes; then the old one is not any more. If `kills`, the connections of before end
/// in between.
async fn rotate(kills: bool) -> Vec<(Class, Error)> {
    let (server, file) = (server().await, PasswordFile::new(OLD));
    let backend = by_file(&server, &file);
    serves(&backend).await;
    let load = Load::start(&backend);

    acl(&server, &format!(">{NEW}")).await;
    load.goes_on().await;
    file.write(NEW);
    load.goes_on().await;
    if kills {
        assert!(kill(&server).await > 0);
        load.goes_on().await;
    }
    acl(&server, &format!("<{OLD}")).await;
    load.goes_on().await;

    // A new connection has only the new one to show.
    let own = redis(&backend).dedicated("n", LONG).await.unwrap();
    own.release();
    load.failures().await
}

#[tokio::test]
async fn a_rotated_password_is_seen_by_no_caller() {
    let failures = rotate(false).await;
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test]
async fn a_rotation_that_ends_connections_costs_at_most_what_was_in_flight_and_at_most_once() {
    for (class, error) in rotate(true).await {
        let in_flight = class == Class::AtMostOnce && error.is_ambiguous();
        assert!(in_flight, "{class:?}: {}", chain(&error));
        holds_no_secret(&format!("{} {error:?}", chain(&error)));
    }
}
