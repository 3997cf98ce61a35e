//! What comes at the same time, too late, or from elsewhere: each of these was a fault once.
#![cfg(all(feature = "redis", feature = "sqlite"))]
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

use futures_util::FutureExt as _;
use redis_conn::{Backend, Config, Endpoint, ManualClock};
use testkit::{Fault, FaultProxy, PASSWORD, RedisCluster, RedisServer, USER};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_distlock::{FenceMode, LockOptions, Locks, Owner, Released};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
fn mem() -> Locks {
    Locks::new(&Backend::memory()).unwrap()
}

#[tokio::test]
async fn an_owner_that_reads_does_not_come_to_write() {
    let rw = mem().rw_lock("a");
    let owner = Owner::new();
    let once = || LockOptions::new().try_once();
    let _mine = rw.read(once().owner(&owner)).await.unwrap();
    let _other = rw.read(once()).await.unwrap();
    assert!(
        rw.write(once().owner(&owner)).await.is_err(),
        "writes while another one reads"
    );
}

#[tokio::test]
async fn an_owner_holds_a_lock_on_its_own_backend_only() {
    let (one, two) = (mem(), mem());
    let owner = Owner::new();
    let _a = one
        .try_acquire("a", LockOptions::new().owner(&owner))
        .await
        .unwrap();
    let _b = two
        .try_acquire("a", LockOptions::new().owner(&owner))
        .await
        .unwrap();
    assert!(
        two.is_locked("a").await.unwrap(),
        "the second backend was never asked"
    );
}

#[tokio::test(start_paused = true)]
async fn to_try_does_not_wait_for_others_of_the_owner() {
    let locks = mem();
    let owner = Owner::new();
    let _other = locks.try_acquire("a", LockOptions::new()).await.unwrap();
    let waits = tokio::spawn({
        let (locks, owner) = (locks.clone(), owner.clone());
        async move {
            locks
                .acquire("a", LockOptions::new().wait_forever().owner(&owner))
                .await
                .map(drop)
        }
    });
    tokio::time::sleep(ms(10)).await;
    let tried = tokio::time::timeout(
        secs(60),
        locks.try_acquire("a", LockOptions::new().owner(&owner)),
    )
    .await;
    waits.abort();
    assert!(tried.is_ok(), "try_acquire waited for a minute");
}

#[tokio::test(start_paused = true)]
async fn a_writer_is_not_overtaken_by_readers_of_its_process() {
    let rw = mem().rw_lock("a");
    let _r = rw.read(LockOptions::new()).await.unwrap();
    let w = tokio::spawn({
        let rw = rw.clone();
        async move { rw.write(LockOptions::new()).await.map(drop) }
    });
    tokio::time::sleep(ms(500)).await;
    let late = rw.read(LockOptions::new().try_once()).await;
    w.abort();
    assert!(
        late.is_err(),
        "a reader overtook a writer that has waited for 500 ms"
    );
}

#[tokio::test]
async fn a_grant_that_is_heard_of_too_late_is_asked_for_again() {
    let clock = Arc::new(ManualClock::new(1_000_000_000));
    let backend = Backend::builder()
        .clock(clock.clone() as _)
        .memory()
        .unwrap();
    let locks = Locks::new(&backend).unwrap();
    let a = locks.acquire("a", LockOptions::new()).await.unwrap();
    let b = tokio::spawn({
        let locks = locks.clone();
        async move {
            locks
                .acquire("a", LockOptions::new().fair().wait_forever())
                .await
        }
    });
    tokio::time::sleep(ms(50)).await;
    // The grant is sent; before B reads it, its process is stopped for 2 s (claim: 1 s).
    let mut release = Box::pin(a.release());
    let _ = futures_util::poll!(&mut release);
    clock.advance(secs(2));
    drop(release);
    let b = tokio::time::timeout(secs(5), b).await.unwrap().unwrap();
    assert!(b.is_ok(), "who waits for ever with a ttl of 30 s: {b:?}");
}

#[tokio::test(start_paused = true)]
async fn an_extension_beside_a_renewal_in_process() {
    for at in 0..40u64 {
        let backend = Backend::memory();
        let locks = Locks::new(&backend).unwrap();
        let mut guards = Vec::new();
        for n in 0..64 {
            guards.push(
                locks
                    .acquire(&format!("{n}"), LockOptions::new().ttl(secs(3)))
                    .await
                    .unwrap(),
            );
        }
        tokio::time::sleep(ms(895 + at)).await;
        for guard in &guards {
            guard.extend(secs(60)).await.unwrap();
        }
        tokio::time::sleep(ms(4)).await;
        for guard in &guards {
            let ttl = locks.ttl(guard.name()).await.unwrap().unwrap_or_default();
            let valid = guard.valid_for();
            assert!(
                ttl + ms(5) >= valid,
                "at {at}: the store has it for {ttl:?}, its holder believes {valid:?}"
            );
        }
    }
}

#[tokio::test]
async fn closing_in_process_grants_nothing_more() {
    for fair in [false, true] {
        let backend = Backend::memory();
        let locks = Locks::new(&backend).unwrap();
        let _a = locks
            .acquire("a", LockOptions::new().ttl(secs(5)))
            .await
            .unwrap();
        let b = tokio::spawn({
            let locks = locks.clone();
            async move {
                let o = LockOptions::new().ttl(secs(5)).wait_forever();
                locks.acquire("a", if fair { o.fair() } else { o }).await
            }
        });
        tokio::time::sleep(ms(1500)).await;
        let _ = backend.close(secs(1)).await;
        let b = tokio::time::timeout(secs(5), b).await;
        assert!(
            matches!(b, Ok(Ok(Err(_)))),
            "fair {fair}: after close: {b:?}"
        );
    }
}

async fn connect(url: &str) -> Backend {
    let config = Config::from_url(url).unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(secs(10)).await.unwrap();
    backend
}

#[tokio::test]
async fn what_was_extended_and_dropped_in_an_outage_is_released() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(server.addr()).await;
    let through = server
        .url()
        .replace(&server.addr().to_string(), &proxy.addr().to_string());
    let locks = Locks::new(&connect(&through).await).unwrap();
    let looks = Locks::new(&connect(&server.url()).await).unwrap();
    let guard = locks
        .try_acquire("a", LockOptions::new().ttl(secs(1)))
        .await
        .unwrap();
    guard.extend(secs(60)).await.unwrap();
    proxy.set(Fault::Refuse);
    proxy.reset_live();
    drop(guard);
    tokio::time::sleep(secs(3)).await;
    proxy.set(Fault::Pass);
    testkit::until(secs(20), "it is released", async || {
        looks.ttl("a").await.unwrap().is_none()
    })
    .await
    .unwrap();
}

/// Its fence was seen, so that no other grant may have the same.
#[tokio::test]
async fn a_release_that_has_no_answer_forgets_no_fence() {
    let server = RedisServer::start().await;
    let proxy = FaultProxy::start(server.addr()).await;
    let through = server
        .url()
        .replace(&server.addr().to_string(), &proxy.addr().to_string());
    let locks = Locks::with_timeout(&connect(&through).await, ms(200)).unwrap();
    let counted = || {
        let options = LockOptions::new().wait(secs(20));
        options.fence_mode(FenceMode::Counter)
    };
    for name in ["refused", "dropped"] {
        let guard = locks.acquire(name, counted()).await.unwrap();
        let first = guard.fence();
        if name == "refused" {
            proxy.set(Fault::Refuse);
            proxy.reset_live();
            guard.release().await.unwrap_err();
            proxy.set(Fault::Pass);
        } else {
            assert!(guard.release().now_or_never().is_none());
        }
        let next = locks.acquire(name, counted()).await.unwrap();
        assert!(next.fence() > first, "{} after {first}", next.fence());
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_silent_node_costs_no_lock_of_the_others() {
    let cluster = RedisCluster::builder().node_timeout(secs(60)).start().await;
    let addrs = cluster.addrs().into_iter();
    let nodes = addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let config = Config::cluster(nodes).username(USER).password(PASSWORD);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(secs(10)).await.unwrap();
    let locks = Locks::new(&backend).unwrap();
    let mut guards = Vec::new();
    for n in 0..20 {
        guards.push(
            locks
                .try_acquire(&format!("{n}"), LockOptions::new().ttl(secs(4)))
                .await
                .unwrap(),
        );
    }
    tokio::time::sleep(secs(5)).await;
    assert!(
        guards.iter().all(|guard| !guard.valid_for().is_zero()),
        "all are renewed"
    );
    let node = cluster.primary_of(0).await;
    cluster.freeze(node);
    tokio::time::sleep(secs(9)).await;
    let mut rest = 0;
    for guard in &guards {
        if !guard.valid_for().is_zero() {
            rest += 1;
        }
    }
    cluster.thaw(node);
    assert!(
        rest >= 5,
        "one of three nodes stood still, and {rest} of 20 locks are held still"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_beside_a_renewal_is_not_believed_too_long() {
    let server = RedisServer::start().await;
    let locks = Locks::new(&connect(&server.url()).await).unwrap();
    let looks = Locks::new(&connect(&server.url()).await).unwrap();
    for round in 0..6u64 {
        let mut guards = Vec::new();
        for n in 0..200 {
            guards.push(
                locks
                    .acquire(&format!("{round}:{n}"), LockOptions::new().ttl(secs(1)))
                    .await
                    .unwrap(),
            );
        }
        tokio::time::sleep(ms(150)).await;
        for guard in &guards {
            guard.extend(secs(60)).await.unwrap();
        }
        tokio::time::sleep(ms(200)).await;
        for guard in &guards {
            let valid = guard.valid_for();
            let ttl = looks.ttl(guard.name()).await.unwrap().unwrap_or_default();
            if ttl + ms(50) < valid {
                tokio::time::sleep(ttl + ms(100)).await;
                let second = looks.try_acquire(guard.name(), LockOptions::new()).await;
                assert!(
                    second.is_err() || guard.valid_for().is_zero(),
                    "double grant: {second:?} {guard:?}"
                );
            }
            assert!(
                ttl + ms(50) >= valid,
                "the store has it for {ttl:?}, its holder believes {valid:?}"
            );
        }
    }
}

#[tokio::test]
async fn closing_on_redis_grants_nothing_more() {
    let server = RedisServer::start().await;
    let backend = connect(&server.url()).await;
    let locks = Locks::new(&backend).unwrap();
    let looks = Locks::new(&connect(&server.url()).await).unwrap();
    let _a = locks
        .acquire("a", LockOptions::new().ttl(secs(60)))
        .await
        .unwrap();
    let b = tokio::spawn({
        let locks = locks.clone();
        async move {
            locks
                .acquire("a", LockOptions::new().ttl(secs(60)).wait_forever())
                .await
        }
    });
    tokio::time::sleep(ms(1500)).await;
    let _ = backend.close(secs(1)).await;
    tokio::time::sleep(secs(2)).await;
    let left = looks.ttl("a").await.unwrap();
    let b = tokio::time::timeout(ms(100), b).await;
    assert!(left.is_none(), "after close it is held for {left:?}: {b:?}");
}

/// Holds back what the first connections send, and delivers it at last, whatever their client has done meanwhile.
async fn late_proxy(
    to: std::net::SocketAddr,
) -> (
    u16,
    Arc<tokio::sync::watch::Sender<usize>>,
    Arc<AtomicUsize>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (hold, held) = tokio::sync::watch::channel(0usize);
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let server = tokio::net::TcpStream::connect(to).await.unwrap();
            let (mut cr, mut cw) = client.into_split();
            let (mut sr, mut sw) = server.into_split();
            let mut held = held.clone();
            tokio::spawn(async move {
                let mut buf = vec![0; 65536];
                while let Ok(n) = cr.read(&mut buf).await {
                    if n == 0 {
                        break;
                    }
                    let _ = held.wait_for(|held| number > *held).await;
                    if sw.write_all(&buf[..n]).await.is_err() {
                        break;
                    }
                }
                tokio::time::sleep(ms(500)).await;
            });
            tokio::spawn(async move {
                let mut buf = vec![0; 65536];
                while let Ok(n) = sr.read(&mut buf).await {
                    if n == 0 {
                        break;
                    }
                    let _ = cw.write_all(&buf[..n]).await;
                }
            });
        }
    });
    (port, Arc::new(hold), accepted)
}

#[tokio::test]
async fn a_question_that_comes_after_giving_up_is_refused() {
    let server = RedisServer::start().await;
    let (port, hold, accepted) = late_proxy(server.addr()).await;
    let through = server
        .url()
        .replace(&server.addr().to_string(), &format!("127.0.0.1:{port}"));
    let locks = Locks::new(&connect(&through).await).unwrap();
    let looks = Locks::new(&connect(&server.url()).await).unwrap();
    drop(locks.try_acquire("warm", LockOptions::new()).await.unwrap());
    let a = looks
        .try_acquire("a", LockOptions::new().ttl(secs(60)))
        .await
        .unwrap();
    tokio::time::sleep(ms(300)).await;
    hold.send_replace(accepted.load(Ordering::SeqCst));
    let before = accepted.load(Ordering::SeqCst);
    let b = locks
        .acquire("a", LockOptions::new().ttl(secs(60)).wait(secs(8)))
        .await;
    println!(
        "{b:?}, connections {} -> {}",
        before,
        accepted.load(Ordering::SeqCst)
    );
    tokio::time::sleep(secs(1)).await;
    a.release().await.unwrap();
    hold.send_replace(0);
    tokio::time::sleep(secs(2)).await;
    let left = looks.ttl("a").await.unwrap();
    assert!(left.is_none(), "nobody has it for {left:?}");
}

#[tokio::test]
async fn a_question_that_comes_after_the_release_is_refused() {
    let server = RedisServer::start().await;
    let (port, hold, accepted) = late_proxy(server.addr()).await;
    let through = server
        .url()
        .replace(&server.addr().to_string(), &format!("127.0.0.1:{port}"));
    let locks = Locks::new(&connect(&through).await).unwrap();
    let looks = Locks::new(&connect(&server.url()).await).unwrap();
    drop(locks.try_acquire("warm", LockOptions::new()).await.unwrap());
    tokio::time::sleep(ms(300)).await;
    hold.send_replace(accepted.load(Ordering::SeqCst));
    let b = locks
        .acquire("a", LockOptions::new().ttl(secs(60)).wait(secs(12)))
        .await
        .unwrap();
    assert_eq!(b.release().await.unwrap(), Released::Released);
    hold.send_replace(0);
    tokio::time::sleep(secs(2)).await;
    let left = looks.ttl("a").await.unwrap();
    assert!(left.is_none(), "released, and held by nobody for {left:?}");
}

#[tokio::test]
async fn a_silent_server_prolongs_no_wait() {
    let server = RedisServer::start().await;
    let locks = Locks::new(&connect(&server.url()).await).unwrap();
    drop(locks.try_acquire("warm", LockOptions::new()).await.unwrap());
    tokio::time::sleep(ms(100)).await;
    server.freeze();
    let begun = std::time::Instant::now();
    let b = locks.acquire("a", LockOptions::new().wait(ms(50))).await;
    let took = begun.elapsed();
    server.thaw();
    assert!(took < ms(250), "wait 50 ms: {took:?} {b:?}");
}

#[tokio::test]
async fn closing_on_a_file_grants_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::sqlite(dir.path().join("a.db")).await.unwrap();
    let locks = Locks::new(&backend).unwrap();
    let _a = locks
        .acquire("a", LockOptions::new().ttl(secs(60)))
        .await
        .unwrap();
    let b = tokio::spawn({
        let locks = locks.clone();
        async move {
            locks
                .acquire("a", LockOptions::new().ttl(secs(60)).fair().wait_forever())
                .await
        }
    });
    tokio::time::sleep(ms(1500)).await;
    let _ = backend.close(secs(1)).await;
    let b = tokio::time::timeout(secs(3), b).await;
    assert!(matches!(b, Ok(Ok(Err(_)))), "after close: {b:?}");
    let again = Backend::sqlite(dir.path().join("a.db")).await.unwrap();
    let left = Locks::new(&again).unwrap().ttl("a").await.unwrap();
    assert!(left.is_none(), "after close it is held for {left:?}: {b:?}");
}

/// Passed on by who held it, and granted to its own question, at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_of_two_backends_never_hold_it_together() {
    const TASKS: usize = 32;
    let server = RedisServer::start().await;
    let mut both = Vec::new();
    for _ in 0..2 {
        both.push(Locks::new(&connect(&server.url()).await).unwrap());
    }
    let inside = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (locks, inside) = (both[task % 2].clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                for _ in 0..20 {
                    let options = LockOptions::new().wait(secs(60));
                    let guard = locks.acquire("a", options).await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                    // Busy, so that others are on the other worker meanwhile.
                    let begun = std::time::Instant::now();
                    while begun.elapsed() < ms(1) {
                        std::hint::spin_loop();
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                    assert_eq!(guard.release().await.unwrap(), Released::Released);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
