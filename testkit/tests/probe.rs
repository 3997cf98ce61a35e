//! The Tower contract probe, against services that keep the contract and some that do not.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use testkit::{
    Probe, assert_auto_traits, drop_at_every_await,
    probe::{OkHandler, Readiness},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tower::{Service, ServiceExt as _, buffer::Buffer};

fn request() -> Request<()> {
    Request::new(())
}

#[tokio::test]
async fn a_kept_contract_is_clean() {
    assert_auto_traits::<Probe<OkHandler<()>>>();
    let (mut probe, handle) = Probe::<OkHandler<()>>::ok();
    for calls in 1..=2 {
        let response = probe.ready().await.unwrap().call(request()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(handle.calls(), calls);
    }
    handle.assert_clean();
    let stats = handle.stats();
    assert_eq!(
        (
            stats.completed_futures,
            stats.cancelled_futures,
            stats.clones
        ),
        (2, 0, 0)
    );
    assert_eq!(handle.live_instances(), 1);
    drop(probe);
    assert_eq!(handle.live_instances(), 0);
}

#[tokio::test]
async fn readiness_belongs_to_one_instance_and_one_call() {
    let (mut probe, handle) = Probe::<OkHandler<()>>::ok();
    probe.ready().await.unwrap();
    let mut clone = probe.clone();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(clone.call(request())))).is_err());
    assert_eq!(handle.violations().len(), 1);
    drop(probe.call(request()));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(probe.call(request())))).is_err());
    assert_eq!(handle.violations().len(), 2);
    assert_eq!(handle.calls(), 1, "a violating call does not count");
    assert!(catch_unwind(AssertUnwindSafe(|| handle.assert_clean())).is_err());
}

#[tokio::test]
async fn futures_are_tracked_until_they_are_dropped() {
    let release = Arc::new(Notify::new());
    let waits = Arc::clone(&release);
    let (probe, handle) = Probe::new(move |_: Request<()>| {
        let waits = Arc::clone(&waits);
        async move {
            waits.notified().await;
            Ok::<_, Infallible>(Response::new(()))
        }
    });
    let cancelled = tokio::spawn(probe.clone().oneshot(request()));
    let finished = tokio::spawn(probe.oneshot(request()));
    assert_eq!(
        handle.wait_for(|stats| stats.calls == 2).await.live_futures,
        2
    );
    cancelled.abort();
    handle.wait_for(|stats| stats.live_futures == 1).await;
    release.notify_waiters();
    release.notify_one();
    finished.await.unwrap().unwrap();
    handle.assert_clean();
    let stats = handle.stats();
    assert_eq!((stats.completed_futures, stats.cancelled_futures), (1, 1));
}

#[tokio::test]
async fn pending_readiness_holds_and_wakes() {
    let (mut probe, handle) = Probe::<OkHandler<()>>::ok();
    handle.set_readiness(Readiness::Pending);
    let mut waiting = in_background(async move { probe.ready().await.map(|_| ()).unwrap() });
    handle.wait_for(|stats| stats.ready_polls == 1).await;
    assert!(waiting.try_recv().is_err());
    handle.set_readiness(Readiness::Ready);
    timeout(Duration::from_secs(10), waiting)
        .await
        .expect("a wake")
        .unwrap();

    let (mut probe, handle) = Probe::<OkHandler<()>>::ok();
    handle.set_readiness(Readiness::PendingTimes(3));
    for calls in 1..=2 {
        probe.ready().await.unwrap().call(request()).await.unwrap();
        assert_eq!(handle.stats().ready_polls, 4 * calls);
    }
}

/// Runs `future` as a task; the receiver has its output.
fn in_background<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move { drop(sender.send(future.await)) });
    receiver
}

#[tokio::test]
async fn fits_behind_a_buffer() {
    let (probe, handle) = Probe::ok();
    let buffered = Buffer::new(probe, 1);
    buffered.oneshot(request()).await.unwrap();
    handle.assert_clean();
    assert_eq!(handle.calls(), 1);
}

#[tokio::test]
async fn drops_at_every_await_point() {
    let live = AtomicUsize::new(0);
    let made = AtomicUsize::new(0);
    let make = || async {
        let _guard = Guard::new(&live, &made);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    };
    let mut drops = Vec::new();
    let polls = drop_at_every_await(make, |polls| {
        assert_eq!(live.load(Ordering::Relaxed), 0);
        drops.push(polls);
    })
    .await;
    assert_eq!(polls, 4);
    assert_eq!(drops, [0, 1, 2, 3, 4]);
    assert_eq!(
        made.load(Ordering::Relaxed),
        4,
        "each of the futures but the first has run"
    );
}

#[tokio::test]
async fn waits_for_real_wakers_between_the_polls() {
    let make = || async {
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(async move {
            let _ = sender.send(());
        });
        receiver.await.unwrap();
    };
    assert_eq!(drop_at_every_await(make, |_| {}).await, 2);
}

struct Guard<'a>(&'a AtomicUsize);

impl<'a> Guard<'a> {
    fn new(live: &'a AtomicUsize, made: &AtomicUsize) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        made.fetch_add(1, Ordering::Relaxed);
        Self(live)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
