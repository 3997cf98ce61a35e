//! What elections promise, on all backends with the same assertions.
#![cfg(feature = "sqlite")]
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped fails the test"
)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use backends::{Fixture, START};
use redis_conn::{Audit, Backend, Clock, ErrorKind};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower_distlock::{
    Candidate, Election, ElectionEvent, ElectionEvents, Held, Leader, LockOptions, Locks,
    LostReason,
};

/// For all that takes as long as it takes.
const BOUND: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3_600);

/// With a lease that no real clock ends.
fn election(fixture: &impl Fixture) -> Election {
    election_of(&locks(fixture))
}

fn locks(fixture: &impl Fixture) -> Locks {
    Locks::with_timeout(fixture.backend(), Duration::from_secs(10)).unwrap()
}

fn election_of(locks: &Locks) -> Election {
    Election::new(locks, "a")
        .lease(HOUR)
        .renew_deadline(HOUR / 2)
        .retry(Duration::from_millis(50))
}

async fn next(events: &mut ElectionEvents) -> ElectionEvent {
    let next = timeout(BOUND, events.next()).await;
    next.expect("nothing happens").unwrap()
}

async fn started(events: &mut ElectionEvents) -> Held {
    loop {
        match next(events).await {
            ElectionEvent::Started(held) => return held,
            ElectionEvent::NewLeader(_) => {}
            event => panic!("{event:?}"),
        }
    }
}

async fn new_leader(events: &mut ElectionEvents) -> Leader {
    match next(events).await {
        ElectionEvent::NewLeader(leader) => leader,
        event => panic!("{event:?}"),
    }
}

async fn leads(candidate: &Candidate) -> u64 {
    started(&mut candidate.events()).await.fence().unwrap()
}

mod cases {
    use super::*;

    pub(super) async fn one_leads_and_all_learn_who(fixture: &impl Fixture) {
        let (one, two) = (election(fixture), election(fixture));
        assert_eq!(two.leader().await.unwrap(), None);
        let one = one.campaign().unwrap();
        let mut events = one.events();
        let held = started(&mut events).await;
        let leader = new_leader(&mut events).await;
        assert_eq!(leader.instance, fixture.backend().instance_id());
        assert_eq!(Some(leader.fence), held.fence());
        assert!(one.is_leader() && one.leadership().is_some());

        let other = two.campaign().unwrap();
        assert_eq!(new_leader(&mut other.events()).await, leader);
        assert_eq!(other.leader(), Some(leader.clone()));
        assert!(!other.is_leader() && other.leadership().is_none());
        assert_eq!(two.leader().await.unwrap(), Some(leader));
        drop(other);
        assert!(one.is_leader(), "who did not lead takes nothing along");
    }

    pub(super) async fn who_resigns_or_is_dropped_is_followed(fixture: &impl Fixture) {
        let mut fences = BTreeSet::new();
        let mut leader = election(fixture).campaign().unwrap();
        fences.insert(leads(&leader).await);
        for round in 0..6 {
            let next = election(fixture).campaign().unwrap();
            let (mut events, mut last) = (next.events(), leader.events());
            started(&mut last).await;
            if round % 2 == 0 {
                timeout(BOUND, leader.resign()).await.unwrap();
            } else {
                drop(leader);
            }
            let stopped = loop {
                match last.next().await {
                    Some(ElectionEvent::Stopped(why)) => break why,
                    Some(ElectionEvent::NewLeader(_)) => {}
                    event => panic!("{event:?}"),
                }
            };
            assert_eq!(stopped, LostReason::Resigned);
            assert!(last.next().await.is_none(), "it is over");
            let fence = started(&mut events).await.fence().unwrap();
            assert!(fences.last().is_none_or(|before| *before < fence));
            fences.insert(fence);
            leader = next;
        }
        assert_eq!(fences.len(), 7);
    }

    pub(super) async fn who_lost_its_lease_leads_no_more(fixture: &impl Fixture) {
        let one = election(fixture).campaign().unwrap();
        let fence = leads(&one).await;
        let two = election(fixture).campaign().unwrap();
        new_leader(&mut two.events()).await;
        // As for a process that was stopped: nothing of it was renewed.
        fixture.set(START + 3_600_000_000).await;
        assert!(leads(&two).await > fence);
        if !fixture.backend().kind().starts_with("redis") {
            // By its own clock, before any timer has said so.
            assert!(!one.is_leader());
        }
    }

    pub(super) async fn it_has_stopped_before_it_starts_again(fixture: &impl Fixture) {
        let (locks, audit) = (locks(fixture), Audit::new("test", "it hangs"));
        // Until then it is not certain that this process hears of it.
        testkit::until(BOUND, "the word is heard", async || {
            let options = LockOptions::new().ttl(HOUR);
            let probe = locks.try_acquire("probe", options).await.unwrap();
            locks.force_release("probe", &audit).await.unwrap();
            let lost = timeout(Duration::from_millis(100), probe.lost());
            lost.await.is_ok()
        })
        .await
        .unwrap();
        let candidate = election_of(&locks).campaign().unwrap();
        let mut events = candidate.events();
        let (mut fences, mut leading) = (Vec::new(), false);
        while fences.len() < 4 {
            match next(&mut events).await {
                ElectionEvent::Started(held) => {
                    assert!(!leading, "it has not stopped");
                    leading = true;
                    fences.push(held.fence().unwrap());
                    let forced = locks.force_release("election:a", &audit).await;
                    assert!(forced.unwrap());
                }
                ElectionEvent::Stopped(why) => {
                    assert_eq!(why, LostReason::Forced);
                    leading = false;
                }
                _ => {}
            }
        }
        assert!(fences.is_sorted() && fences.windows(2).all(|two| two[0] != two[1]));
    }

    pub(super) async fn what_is_led_ends_before_another_one_leads(fixture: &impl Fixture) {
        /// Counts those who work.
        struct Working(Arc<AtomicUsize>);
        impl Drop for Working {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let working = Arc::new(AtomicUsize::new(0));
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let work = |candidate: Candidate| {
            let (working, told) = (Arc::clone(&working), told.clone());
            async move {
                let (begun, has_begun) = tokio::sync::oneshot::channel();
                let mut begun = Some(begun);
                let lead = candidate.lead(|held| {
                    assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0, "two lead");
                    let working = Working(Arc::clone(&working));
                    told.send(held.fence().unwrap()).unwrap();
                    begun.take().unwrap().send(()).unwrap();
                    async move {
                        let _working = working;
                        std::future::pending::<()>().await
                    }
                });
                tokio::select! {
                    _ = lead => panic!("it leads without end"),
                    _ = has_begun => {}
                }
                candidate.resign().await;
            }
        };
        let mut fences = Vec::new();
        let mut candidates = JoinSet::new();
        for _ in 0..4 {
            candidates.spawn(work(election(fixture).campaign().unwrap()));
        }
        while !candidates.is_empty() {
            let fence = timeout(BOUND, heard.recv()).await;
            fences.push(fence.expect("nobody leads").unwrap());
            // It ends on its own after that.
            candidates.join_next().await.unwrap().unwrap();
        }
        assert_eq!(fences.len(), 4);
        assert!(fences.is_sorted() && fences.windows(2).all(|two| two[0] != two[1]));
        assert_eq!(working.load(Ordering::SeqCst), 0);
    }

    pub(super) async fn who_works_is_waited_for(fixture: &impl Fixture) {
        let candidate = election(fixture).campaign().unwrap();
        let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
        let mut lead = Box::pin(candidate.lead(|_| {
            begun.send(()).unwrap();
            std::future::pending::<()>()
        }));
        tokio::select! {
            _ = &mut lead => panic!("it leads without end"),
            _ = has_begun.recv() => {}
        }
        // It is not polled any more, and cannot notice that it leads no more.
        let backend = fixture.backend().clone();
        let mut closing = tokio::spawn(async move { backend.close(10 * BOUND).await });
        let waited = timeout(Duration::from_millis(200), &mut closing).await;
        assert!(waited.is_err(), "it works still");
        assert!(!candidate.is_leader());
        drop(lead);
        timeout(BOUND, closing).await.unwrap().unwrap().unwrap();
    }

    pub(super) async fn closing_resigns(fixture: &impl Fixture) {
        let one = election(fixture).campaign().unwrap();
        leads(&one).await;
        let mut events = one.events();
        started(&mut events).await;
        let backend = fixture.backend().clone();
        backend.close(BOUND).await.unwrap();
        assert!(!one.is_leader());
        let stopped = next(&mut events).await;
        assert!(
            matches!(stopped, ElectionEvent::Stopped(LostReason::Resigned)),
            "before the locks are taken: {stopped:?}"
        );
        let error = election(fixture).campaign().unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Closed);
    }

    pub(super) async fn times_that_contradict_each_other_are_refused(fixture: &impl Fixture) {
        let election = election(fixture).lease(Duration::from_secs(15));
        let refused = [
            (election.clone().lease(Duration::ZERO), "ttl"),
            (
                election.clone().renew_deadline(Duration::from_secs(15)),
                "renew_deadline",
            ),
            (
                election.clone().renew_deadline(Duration::from_secs(7)),
                "renew_deadline",
            ),
            (
                election
                    .clone()
                    .renew_deadline(Duration::from_secs(10))
                    .retry(Duration::from_secs(11)),
                "retry",
            ),
            (
                election
                    .renew_deadline(Duration::from_secs(10))
                    .retry(Duration::ZERO),
                "retry",
            ),
        ];
        for (election, names) in refused {
            let error = election.campaign().unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(names), "{error}");
        }
    }
}

backends::on_each_backend! {
    one_leads_and_all_learn_who
    who_resigns_or_is_dropped_is_followed
    who_lost_its_lease_leads_no_more
    it_has_stopped_before_it_starts_again
    what_is_led_ends_before_another_one_leads
    who_works_is_waited_for
    closing_resigns
    times_that_contradict_each_other_are_refused
}

/// The time of the runtime, which is paused.
#[derive(Debug)]
struct Virtual(Instant);

impl Clock for Virtual {
    fn boot_micros(&self) -> u64 {
        START + u64::try_from(self.0.elapsed().as_micros()).unwrap()
    }

    fn wall_micros(&self) -> u64 {
        self.boot_micros()
    }
}

fn virtual_locks() -> Locks {
    let clock = Arc::new(Virtual(Instant::now()));
    Locks::new(&Backend::builder().clock(clock).memory().unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_followed_when_its_lease_ends() {
    let (lease, retry) = (Duration::from_secs(15), Duration::from_secs(2));
    let locks = virtual_locks();
    // One that renews no more.
    let dead = LockOptions::new().ttl(lease).renew(false);
    let dead = locks.acquire("election:a", dead).await.unwrap();
    let candidate = Election::new(&locks, "a").campaign().unwrap();
    let died = Instant::now();
    let mut events = candidate.events();
    assert_eq!(new_leader(&mut events).await.fence, dead.fence());
    let held = started(&mut events).await;
    let after = died.elapsed();
    assert!(after >= lease && after <= lease + retry, "{after:?}");
    assert!(held.fence().unwrap() > dead.fence());
}

#[tokio::test(start_paused = true)]
async fn a_leader_leads_for_good() {
    let locks = virtual_locks();
    let election = Election::new(&locks, "a");
    let candidates = [election.campaign().unwrap(), election.campaign().unwrap()];
    sleep(Duration::from_secs(1)).await;
    let leader = election.leader().await.unwrap();
    sleep(Duration::from_secs(24 * 3_600)).await;
    assert_eq!(election.leader().await.unwrap(), leader);
    let leading = candidates.iter().filter(|candidate| candidate.is_leader());
    assert_eq!(leading.count(), 1);
}

#[tokio::test]
async fn who_cannot_renew_steps_down_before_its_lease_ends() {
    let fixture = backends::Sqlite::start().await;
    let (lease, deadline) = (Duration::from_secs(6), Duration::from_secs(3));
    let locks = Locks::new(fixture.backend()).unwrap();
    let election = Election::new(&locks, "a")
        .lease(lease)
        .renew_deadline(deadline);
    let candidate = election.campaign().unwrap();
    let mut events = candidate.events();
    started(&mut events).await;
    let begun = Instant::now();
    let _held = fixture.hold();
    new_leader(&mut events).await;
    let stopped = next(&mut events).await;
    assert!(matches!(
        stopped,
        ElectionEvent::Stopped(LostReason::Expired)
    ));
    assert!(!candidate.is_leader());
    let after = begun.elapsed();
    assert!(after < lease - Duration::from_secs(1), "{after:?}");
}
