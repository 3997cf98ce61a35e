//! Locks on a Redis that stops, hangs, forgets and loses connections; and in a process that lets go of them in every way.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_conn::{Backend, Config, ConfigBuilder, Endpoint, ErrorKind};
use testkit::{Fault, FaultProxy, RedisSentinel, RedisServer, Servers};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tower_distlock::{
    Durability, LockError, LockGuard, LockOptions, Locks, LostReason, OnBackendDown, Released,
    WithLockError,
};

/// Only a hang takes so long.
const HANG: Duration = Duration::from_secs(20);

async fn connect(url: &str) -> Backend {
    let backend = Backend::redis(Config::from_url(url).unwrap()).unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    backend
}

async fn locks(url: &str) -> Locks {
    Locks::new(&connect(url).await).unwrap()
}

fn ttl(seconds: u64) -> LockOptions {
    LockOptions::new().ttl(Duration::from_secs(seconds))
}

async fn hold(locks: &Locks, name: &str) -> LockGuard {
    locks.try_acquire(name, ttl(60)).await.unwrap()
}

async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    testkit::until(HANG, what, is_so).await.unwrap();
}

/// The names of the locks that anybody holds.
async fn held(server: &RedisServer) -> Vec<String> {
    let other = locks(&server.url()).await;
    other.list("").await.unwrap()
}

#[tokio::test]
async fn a_lock_is_lost_at_its_end_though_nobody_answers() {
    let server = RedisServer::start().await;
    let locks = locks(&server.url()).await;
    let (begun, has_begun) = oneshot::channel();
    let polls = Arc::new(AtomicUsize::new(0));
    let running = tokio::spawn({
        let (locks, polls) = (locks.clone(), Arc::clone(&polls));
        async move {
            let body = async move |_| {
                begun.send(()).unwrap();
                loop {
                    polls.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                #[allow(unreachable_code, reason = "names the type of the output")]
                Ok::<(), ()>(())
            };
            locks.with_lock("a", ttl(2), body).await
        }
    });
    has_begun.await.unwrap();
    server.freeze();
    let frozen = Instant::now();
    let lost = timeout(HANG, running).await.expect("it is lost").unwrap();
    assert!(
        matches!(
            lost,
            Err(WithLockError::Lost {
                reason: LostReason::Expired,
                output: None
            })
        ),
        "{lost:?}"
    );
    assert!(
        frozen.elapsed() > Duration::from_secs(1),
        "renewed until then"
    );
    let polls = || polls.load(Ordering::Relaxed);
    let before = polls();
    server.thaw();
    until("the lock is free", async || held(&server).await.is_empty()).await;
    assert_eq!(polls(), before);
}

#[tokio::test]
async fn connections_that_are_cut_lose_no_lock() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(server.addr()).await;
    let locks = locks(
        &server
            .url()
            .replace(&server.addr().to_string(), &proxy.addr().to_string()),
    )
    .await;
    let guard = locks.try_acquire("a", ttl(2)).await.unwrap();
    let fence = guard.fence();
    let cutting = async {
        // For more than two leases.
        for _ in 0..25 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            proxy.reset_live();
        }
    };
    tokio::select! {
        reason = guard.lost() => panic!("{reason}"),
        () = cutting => {}
    }
    until("it is held still", async || {
        let holders = locks.holders("a").await;
        holders.is_ok_and(|holders| holders[0].fence == fence)
    })
    .await;
}

#[tokio::test]
async fn what_is_dropped_at_any_point_leaves_nothing() {
    const TIMES: u64 = 10_000;
    const TASKS: u64 = 50;
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(server.addr()).await;
    let through = server
        .url()
        .replace(&server.addr().to_string(), &proxy.addr().to_string());
    let locks = locks(&through).await;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let locks = locks.clone();
            tokio::spawn(async move {
                for turn in 0..TIMES / TASKS {
                    // Half of them meet others.
                    let name = if turn % 2 == 0 {
                        format!("own:{task}")
                    } else {
                        format!("shared:{}", turn % 7)
                    };
                    let options = ttl(60).wait(Duration::from_secs(60));
                    let acquiring = locks.acquire(&name, options);
                    let micros = (task * 7_919 + turn * 104_729) % 3_000;
                    // Some of it is held for a moment, and dropped too.
                    drop(timeout(Duration::from_micros(micros), acquiring).await);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    until("nothing is held", async || held(&server).await.is_empty()).await;
    assert!(locks.held().is_empty(), "nothing is renewed");

    // And with a connection that is held back: what was sent on it arrives when all is over.
    proxy.set(Fault::FreezeAfter(0));
    for turn in 0..20 {
        let name = format!("late:{turn}");
        let acquiring = locks.acquire(&name, ttl(60));
        drop(timeout(Duration::from_millis(1), acquiring).await);
    }
    proxy.set(Fault::Pass);
    until("nothing is held", async || held(&server).await.is_empty()).await;
    assert!(locks.held().is_empty());
}

#[tokio::test]
async fn a_guard_may_be_dropped_anywhere() {
    let server = RedisServer::start().await;
    let locks = locks(&server.url()).await;
    let is_free = async |name: &str| {
        until("the lock is free", async || {
            !locks.is_locked(name).await.unwrap()
        })
        .await;
    };

    let guard = hold(&locks, "thread").await;
    std::thread::spawn(move || drop(guard)).join().unwrap();
    is_free("thread").await;

    let guard = hold(&locks, "runtime").await;
    std::thread::spawn(move || {
        let builder = tokio::runtime::Builder::new_current_thread();
        let runtime = { builder }.build().unwrap();
        runtime.block_on(async move { drop(guard) });
    })
    .join()
    .unwrap();
    is_free("runtime").await;

    let guard = hold(&locks, "panic").await;
    let panicked = tokio::spawn(async move {
        let _guard = guard;
        panic!("with the lock");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    is_free("panic").await;
}

#[tokio::test]
async fn closing_releases_what_is_held_and_what_was_dropped() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let locks = Locks::new(&backend).unwrap();
    let mut guards = Vec::new();
    for n in 0..100 {
        guards.push(hold(&locks, &n.to_string()).await);
    }
    guards.truncate(50);
    backend.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(held(&server).await, Vec::<String>::new());
    for guard in guards {
        assert_eq!(guard.lost().await, LostReason::Closed);
    }
}

#[tokio::test]
async fn scripts_that_are_forgotten_are_sent_again() {
    let server = RedisServer::builder().allow("+script|flush").start().await;
    let locks = locks(&server.url()).await;
    let mut connection = server.connection().await;
    let mut flush = async || {
        let flushed = redis::cmd("SCRIPT").arg("FLUSH").to_owned();
        flushed.exec_async(&mut connection).await.unwrap();
    };
    for turn in 0..1_000 {
        flush().await;
        let guard = hold(&locks, "a").await;
        flush().await;
        match turn % 3 {
            0 => guard.extend(Duration::from_secs(60)).await.unwrap(),
            1 => assert!(locks.is_locked("a").await.unwrap()),
            _ => assert!(locks.try_acquire("a", ttl(60)).await.unwrap_err().is_busy()),
        }
        flush().await;
        assert_eq!(guard.release().await.unwrap(), Released::Released);
    }
}

#[tokio::test]
async fn a_server_that_was_emptied_has_lost_it() {
    let server = RedisServer::start().await;
    let locks = locks(&server.url()).await;
    let guard = locks.try_acquire("a", ttl(3)).await.unwrap();
    server.restart().await;
    let reason = timeout(HANG, guard.lost()).await.expect("one renewal");
    assert!(
        matches!(reason, LostReason::Vanished | LostReason::Expired),
        "{reason}"
    );
    let next = timeout(HANG, locks.acquire("a", ttl(3)))
        .await
        .unwrap()
        .unwrap();
    assert!(next.fence() > guard.fence());
}

#[tokio::test]
async fn without_a_server_nothing_runs_unless_that_was_asked_for() {
    let server = RedisServer::start().await;
    let locks = locks(&server.url()).await;
    server.kill();
    let options = || ttl(2).wait(Duration::from_millis(300));
    let body = async |held: tower_distlock::Held| Ok::<_, ()>(held.fence());
    let refused = locks.with_lock("a", options(), body).await;
    let Err(WithLockError::NotAcquired(LockError::Backend(_))) = refused else {
        panic!("{refused:?}");
    };
    let unprotected = options().on_backend_down(OnBackendDown::RunUnprotected);
    let ran = locks.with_lock("a", unprotected.clone(), body).await;
    assert_eq!(ran.unwrap(), None, "there is no fence");

    // Somebody else who holds it is no outage.
    server.restart().await;
    until("the server is back", async || {
        locks.is_locked("a").await.is_ok()
    })
    .await;
    let _guard = hold(&locks, "a").await;
    let busy = locks.with_lock("a", unprotected.try_once(), body).await;
    assert!(busy.unwrap_err().is_busy());
}

#[tokio::test]
async fn who_waits_goes_on_when_the_server_is_back() {
    let server = RedisServer::start().await;
    let (one, two) = (locks(&server.url()).await, locks(&server.url()).await);
    let _guard = hold(&one, "a").await;
    let waiting = tokio::spawn(async move { two.acquire("a", ttl(2).wait(HANG)).await });
    until("it waits", async || one.is_locked("a").await.unwrap()).await;
    server.restart().await;
    drop(timeout(HANG, waiting).await.unwrap().unwrap().unwrap());
}

#[tokio::test]
async fn a_ttl_that_is_shorter_than_an_answer_is_no_lock() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(server.addr()).await;
    let through = server
        .url()
        .replace(&server.addr().to_string(), &proxy.addr().to_string());
    let locks = locks(&through).await;
    proxy.set(Fault::Delay {
        base: Duration::from_millis(60),
        jitter: Duration::ZERO,
    });
    let short = LockOptions::new().ttl(Duration::from_millis(20));
    let error = locks.try_acquire("a", short).await.unwrap_err();
    assert!(matches!(error, LockError::TtlTooShort { .. }), "{error}");
    proxy.set(Fault::Pass);
    until("it is free", async || !locks.is_locked("a").await.unwrap()).await;
}

#[tokio::test]
async fn a_lock_that_replicas_must_know_of_is_none_without_them() {
    let group = RedisSentinel::start().await;
    let sentinels = group.sentinel_addrs().into_iter();
    let sentinels = sentinels.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let servers = Servers::Sentinel(group);
    let Servers::Sentinel(group) = &servers else {
        unreachable!();
    };
    let mut config = Config::sentinel(sentinels, group.master_name());
    if let Some(login) = servers.login() {
        config = config.password(login.password);
        config = login.user.into_iter().fold(config, ConfigBuilder::username);
    }
    if let Some(login) = servers.sentinel_login() {
        config = config.sentinel_password(login.password);
        config = login
            .user
            .into_iter()
            .fold(config, ConfigBuilder::sentinel_username);
    }
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    let locks = Locks::with_timeout(&backend, Duration::from_secs(5)).unwrap();
    let known_by = |n, timeout| {
        ttl(60)
            .try_once()
            .durability(Durability::Replicas { n, timeout })
    };
    let all = u32::try_from(group.servers().len()).unwrap() - 1;
    let guard = locks.acquire("a", known_by(all, HANG)).await.unwrap();
    assert_eq!(guard.release().await.unwrap(), Released::Released);
    for server in &group.servers()[1..] {
        server.freeze();
    }
    // Sentinels take their time to miss a primary; they do not miss replicas.
    let short = Duration::from_millis(200);
    match locks.acquire("a", known_by(all, short)).await {
        Err(LockError::NotReplicated { acked, required }) => {
            assert_eq!((acked, required), (0, all));
        }
        other => panic!("{other:?}"),
    }
    until("it is free", async || !locks.is_locked("a").await.unwrap()).await;
    for server in &group.servers()[1..] {
        server.thaw();
    }

    let embedded = Locks::new(&Backend::memory()).unwrap();
    let error = embedded.acquire("a", known_by(1, short)).await.unwrap_err();
    let LockError::Backend(error) = error else {
        panic!("{error}");
    };
    assert_eq!(*error.kind(), ErrorKind::Config);
    assert!(!embedded.is_locked("a").await.unwrap());
}

#[tokio::test]
async fn replicas_of_another_server_than_the_one_that_granted_it_do_not_count() {
    let (old, group) = (RedisServer::start().await, RedisSentinel::start().await);
    let proxy = FaultProxy::start(&old).await;
    let config = Config::from_url(&proxy.url()).unwrap().into_builder();
    let backend = Backend::redis(config.lanes(1).build().unwrap()).unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    let locks = Locks::new(&backend).unwrap();
    // As a name does that is given to the new primary, while connections to the old one live on.
    proxy.lead_to(group.server(0).addr());
    let (n, timeout) = (1, Duration::from_secs(2));
    let known = ttl(60).durability(Durability::Replicas { n, timeout });
    match locks.acquire("a", known.try_once()).await {
        Err(LockError::NotReplicated { acked, .. }) => assert_eq!(acked, 0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn callers_that_block_their_runtime_lose_no_lock_of_a_backend_on_another() {
    let runtime = || {
        let builder = tokio::runtime::Builder::new_multi_thread();
        { builder }.worker_threads(1).enable_all().build().unwrap()
    };
    // Where the connections and the renewals are.
    let home = runtime();
    let (server, locks) = home.block_on(async {
        let server = RedisServer::start().await;
        let locks = locks(&server.url()).await;
        (server, locks)
    });
    let callers = runtime();
    let blocked = async {
        let guard = locks.try_acquire("a", ttl(1)).await.unwrap();
        // What no task should do: for longer than two leases.
        std::thread::sleep(Duration::from_millis(2_500));
        guard.release().await.unwrap()
    };
    assert_eq!(callers.block_on(blocked), Released::Released);
    home.block_on(async move { drop(server) });
}
