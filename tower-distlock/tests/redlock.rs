//! One lock on several servers, some of which are held by others, silent, or started anew.
#![cfg(feature = "redis")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    future::{pending, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use redis_conn::{Audit, Backend, Config, ErrorKind, ManualClock};
use testkit::RedisServer;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tower_distlock::{
    Held, LockError, LockGuard, LockOptions, Locks, LostReason, OnBackendDown, OnLost, Redlock,
    Released, WithLockError,
};

/// Only a hang takes so long.
const HANG: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(20);

async fn backend(server: &RedisServer) -> Backend {
    let backend = Backend::redis(Config::from_url(&server.url()).unwrap()).unwrap();
    backend.ready(Duration::from_secs(10)).await.unwrap();
    backend
}

struct Servers {
    servers: Vec<RedisServer>,
    backends: Vec<Backend>,
}

impl Servers {
    async fn start(count: usize) -> Self {
        let (mut servers, mut backends) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let server = RedisServer::start().await;
            backends.push(backend(&server).await);
            servers.push(server);
        }
        Self { servers, backends }
    }

    /// As it is right after the servers were started.
    fn redlock(&self) -> Redlock {
        let builder = Redlock::builder(&self.backends).without_gate();
        builder.build().unwrap()
    }

    /// Somebody else's lock on one of them.
    async fn hold(&self, place: usize, name: &str) -> LockGuard {
        let locks = Locks::new(&backend(&self.servers[place]).await).unwrap();
        locks.try_acquire(name, once()).await.unwrap()
    }

    /// On how many of them a lock is held.
    async fn votes(&self, name: &str) -> usize {
        let mut votes = 0;
        for server in self.servers.iter().filter(|server| server.is_live()) {
            let locks = Locks::new(&backend(server).await).unwrap();
            votes += usize::from(locks.is_locked(name).await.unwrap());
        }
        votes
    }

    async fn until_votes(&self, name: &str, votes: usize) {
        let are_so = async || self.votes(name).await == votes;
        testkit::until(HANG, "the votes", are_so).await.unwrap();
    }
}

fn once() -> LockOptions {
    LockOptions::new().ttl(TTL).try_once()
}

#[tokio::test]
async fn most_of_the_servers_decide_whoever_has_the_others() {
    for count in [3, 4, 5] {
        let servers = Servers::start(count).await;
        let redlock = servers.redlock();
        for others in 0..1_usize << count {
            let name = format!("job:{others}");
            let mut held = Vec::new();
            for place in (0..count).filter(|place| others & (1 << place) != 0) {
                held.push(servers.hold(place, &name).await);
            }
            let taken = held.len();
            let acquired = timeout(HANG, redlock.acquire(&name, once())).await;
            match acquired.expect("it is decided") {
                Ok(guard) => {
                    assert!(count - taken >= redlock.quorum(), "{taken} of {count}");
                    assert!(guard.valid_for() > TTL / 2);
                    assert_eq!(guard.release().await.unwrap(), Released::Released);
                }
                Err(error) => {
                    assert!(count - taken < redlock.quorum(), "{taken} of {count}");
                    assert!(error.is_busy(), "{error}");
                }
            }
            servers.until_votes(&name, taken).await;
        }
    }
}

#[tokio::test]
async fn a_silent_server_delays_nobody_and_keeps_nothing() {
    let servers = Servers::start(3).await;
    let redlock = servers.redlock();
    servers.servers[0].freeze();
    let begun = Instant::now();
    let guard = timeout(HANG, redlock.acquire("a", once())).await.unwrap();
    let guard = guard.unwrap();
    assert_eq!(
        timeout(HANG, guard.release()).await.unwrap().unwrap(),
        Released::Released
    );
    // Two do not make a majority of three.
    let _other = servers.hold(1, "a").await;
    let refused = timeout(HANG, redlock.acquire("a", once())).await.unwrap();
    assert!(refused.unwrap_err().is_busy());
    assert!(begun.elapsed() < HANG / 2, "{:?}", begun.elapsed());
    servers.servers[0].thaw();
    servers.until_votes("a", 1).await;
}

#[tokio::test]
async fn a_server_that_was_emptied_votes_for_nobody_until_all_leases_have_ended() {
    let servers = Servers::start(3).await;
    let first = servers.redlock();
    // The third has no part in it.
    let third = servers.hold(2, "a").await;
    let guard = first.acquire("a", once().renew(false)).await.unwrap();
    assert_eq!(guard.votes(), 2);
    assert_eq!(third.release().await.unwrap(), Released::Released);
    servers.servers[1].restart().await;
    let mut others = Vec::new();
    for server in &servers.servers {
        others.push(backend(server).await);
    }
    let careful = Redlock::builder(&others).build().unwrap();
    let refused = careful.acquire("a", once()).await;
    assert!(refused.is_err(), "two would hold it");
    servers.until_votes("a", 1).await;
    let careless = Redlock::builder(&others).without_gate().build().unwrap();
    let second = careless.acquire("a", once()).await.unwrap();
    assert!(!guard.valid_for().is_zero() && !second.valid_for().is_zero());
}

#[tokio::test]
async fn a_server_that_lost_the_lock_gets_it_again() {
    let servers = Servers::start(3).await;
    let ttl = Duration::from_secs(3);
    let redlock = servers.redlock();
    let guard = redlock.acquire("a", once().ttl(ttl)).await.unwrap();
    servers.until_votes("a", 3).await;
    servers.servers[1].restart().await;
    servers.until_votes("a", 3).await;
    assert!(!guard.valid_for().is_zero());
    drop(guard);
    servers.until_votes("a", 0).await;
}

#[tokio::test]
async fn without_most_of_the_servers_it_is_lost() {
    let servers = Servers::start(3).await;
    let ttl = Duration::from_secs(2);
    let redlock = servers.redlock();
    let guard = redlock.acquire("a", once().ttl(ttl)).await.unwrap();
    servers.servers[0].freeze();
    servers.servers[1].freeze();
    timeout(HANG, guard.lost()).await.expect("at its end");
    assert_eq!(guard.valid_for(), Duration::ZERO);
    for server in &servers.servers {
        server.thaw();
    }
    drop(guard);
    servers.until_votes("a", 0).await;
}

#[tokio::test]
async fn servers_that_are_none_or_the_same_are_refused() {
    let none: [&Backend; 0] = [];
    let error = Redlock::builder(none).build().unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);
    let one = Backend::memory();
    let error = Redlock::builder([&one, &one.clone()]).build().unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Config);

    // The same server by two names is known when it answers.
    let servers = Servers::start(2).await;
    let again = backend(&servers.servers[0]).await;
    let nodes = [&servers.backends[0], &servers.backends[1], &again];
    let redlock = Redlock::builder(nodes).without_gate().build().unwrap();
    let Err(LockError::Backend(error)) = redlock.acquire("a", once()).await else {
        panic!("two are the same");
    };
    assert_eq!(*error.kind(), ErrorKind::Config);
}

/// Runs something under a lock of which two servers of three are killed meanwhile, for good.
async fn while_two_die<T>(
    on_lost: OnLost,
    body: impl AsyncFnOnce(Held) -> T,
) -> Result<T, WithLockError<(), T>> {
    let servers = Servers::start(3).await;
    let builder = Redlock::builder(&servers.backends).without_gate();
    let redlock = builder.quorum_fence().build().unwrap();
    let options = once().ttl(Duration::from_secs(2)).on_lost(on_lost);
    let mut told = None;
    let running = redlock.with_lock("a", options, async |held| {
        told = Some(held.clone());
        assert!(held.fence().is_some() && !held.valid_for().is_zero());
        assert!(!held.token().is_lost());
        for server in &servers.servers[..2] {
            server.kill();
        }
        Ok(body(held).await)
    });
    let ran = timeout(HANG, running).await.expect("at its end");
    let held = told.unwrap();
    assert!(held.token().is_lost() && held.valid_for().is_zero());
    servers.until_votes("a", 0).await;
    ran
}

#[tokio::test]
async fn what_runs_is_dropped_when_most_of_the_servers_are_gone() {
    let dropped = Arc::new(());
    let held_by_it = Arc::clone(&dropped);
    let ran = while_two_die(OnLost::Cancel, async move |_| {
        let _it = held_by_it;
        pending::<()>().await;
    });
    let Err(WithLockError::Lost { output: None, .. }) = ran.await else {
        panic!("it was dropped");
    };
    assert_eq!(Arc::strong_count(&dropped), 1);
}

#[tokio::test]
async fn what_runs_on_hears_of_the_loss_and_its_output_is_told_with_it() {
    let ran = while_two_die(OnLost::Notify, async |held| held.lost().await);
    let Err(WithLockError::Lost { reason, output }) = ran.await else {
        panic!("it was lost");
    };
    assert_eq!(output, Some(Ok(reason)));
}

fn memory() -> [Backend; 3] {
    [(); 3].map(|()| Backend::memory())
}

async fn take_away(node: &Backend) {
    let audit = Audit::new("test", "to see what comes of it");
    let locks = Locks::new(node).unwrap();
    assert!(locks.force_release("a", &audit).await.unwrap());
}

async fn is_locked(node: &Backend) -> bool {
    let locks = Locks::new(node).unwrap();
    locks.is_locked("a").await.unwrap()
}

async fn until_free(nodes: &[Backend]) {
    for node in nodes {
        let is_free = async || !is_locked(node).await;
        testkit::until(HANG, "it is free", is_free).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_goes_on_while_most_of_the_servers_hold_it() {
    let nodes = memory();
    let redlock = Redlock::builder(&nodes).quorum_fence().build().unwrap();
    let mut told = None;
    let ran = redlock.with_lock("a", once(), async |held| {
        told = Some(held.clone());
        take_away(&nodes[1]).await;
        // No time that anybody waits for.
        tokio::time::sleep(3 * TTL).await;
        Ok::<_, ()>(held.fence())
    });
    let fence = ran.await.unwrap().unwrap();
    until_free(&nodes).await;
    let held = told.unwrap();
    assert_eq!(held.token().reason(), None, "it was released in time");
    assert!(held.valid_for().is_zero());
    // Its own error is told as such, under a later grant.
    let failed = redlock.with_lock("a", once().wait(HANG), async |held| {
        Err::<(), _>(held.fence())
    });
    let Err(WithLockError::Inner(later)) = failed.await else {
        panic!("it failed");
    };
    assert!(later.unwrap() > fence);
    until_free(&nodes).await;
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_dropped_when_the_lock_is_taken_away_on_most_of_the_servers() {
    let nodes = memory();
    let redlock = Redlock::builder(&nodes).build().unwrap();
    let ran = redlock.with_lock("a", once(), async |held| {
        assert_eq!(held.fence(), None, "it was not asked for");
        take_away(&nodes[0]).await;
        take_away(&nodes[2]).await;
        pending::<Result<(), ()>>().await
    });
    // By the time that is not waited for, it is before anybody renews it.
    let ran = timeout(TTL / 4, ran).await.expect("at once");
    let Err(WithLockError::Lost { reason, output }) = ran else {
        panic!("it was lost");
    };
    assert_eq!((reason, output), (LostReason::Forced, None));
    until_free(&nodes).await;
}

#[tokio::test]
async fn what_is_dropped_with_its_call_releases_the_lock() {
    let (nodes, runs) = (memory(), Notify::new());
    let redlock = Redlock::builder(&nodes).build().unwrap();
    let running = redlock.with_lock("a", once(), async |_| {
        runs.notify_one();
        pending::<Result<(), ()>>().await
    });
    tokio::select! {
        _ = running => unreachable!("it never ends"),
        () = runs.notified() => {}
    }
    until_free(&nodes).await;
}

#[tokio::test]
async fn after_a_stop_of_the_process_no_step_is_taken() {
    let clock = Arc::new(ManualClock::new(1));
    let nodes = [(); 3].map(|()| {
        let builder = Backend::builder().clock(Arc::clone(&clock) as _);
        builder.memory().unwrap()
    });
    let redlock = Redlock::builder(&nodes).build().unwrap();
    let mut polls = 0;
    let ran = redlock.with_lock("a", once(), async |_| {
        poll_fn(|context| {
            polls += 1;
            // Time has gone on without it, and no timer has fired when it is to be polled again.
            clock.advance(TTL);
            context.waker().wake_by_ref();
            Poll::<Result<(), ()>>::Pending
        })
        .await
    });
    let ran = timeout(HANG, ran).await.unwrap();
    assert!(matches!(ran, Err(WithLockError::Lost { .. })), "{ran:?}");
    assert_eq!(polls, 1);
}

#[tokio::test]
async fn without_any_server_nothing_runs_unless_that_was_asked_for() {
    let nobody = || Backend::redis(Config::from_url("redis://127.0.0.1:1").unwrap()).unwrap();
    let nodes = [(); 3].map(|()| nobody());
    let builder = Redlock::builder(&nodes).without_gate().quorum_fence();
    let redlock = builder.build().unwrap();
    let run = |options| redlock.with_lock("a", options, async |held| Ok::<_, ()>(held.fence()));
    let refused = run(once()).await;
    assert!(matches!(refused, Err(WithLockError::NotAcquired(_))));
    let unprotected = once().on_backend_down(OnBackendDown::RunUnprotected);
    assert_eq!(run(unprotected).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn who_takes_it_again_holds_it_no_longer_for_that() {
    let nodes = memory();
    let redlock = Redlock::builder(&nodes).build().unwrap();
    let (ttl, most) = (Duration::from_secs(3), Duration::from_secs(10));
    let begun = Instant::now();
    let options = once().ttl(ttl).max_hold(most);
    let guard = redlock.acquire("a", options).await.unwrap();
    for node in &nodes {
        take_away(node).await;
        let has_it = async || is_locked(node).await && guard.votes() == 3;
        testkit::until(HANG, "it has it", has_it).await.unwrap();
    }
    assert!(begun.elapsed() > ttl / 2 && begun.elapsed() < most);
    let reason = timeout(HANG, guard.lost()).await.expect("at its end");
    assert_eq!(reason, LostReason::HeldTooLong);
    let held_for = begun.elapsed();
    assert!(held_for >= most && held_for < most + ttl / 10);
    // Nor is it taken again after that.
    tokio::time::sleep(ttl).await;
    assert_eq!(guard.votes(), 0);
}
