//! What gathers while calls are under way is decided as it would be one by one.

use std::{pin::pin, task::Poll, time::Duration};

use futures_util::{future::join_all, poll};
use redis_conn::{Error, ErrorKind};
use testkit::RedisServer;
use tokio::time::Instant;

use super::{Fixture, LONG, mutex, name, semaphore};
use crate::{
    FenceMode,
    name::Name,
    store::{
        Acquired, Next, Outcome, Store as _,
        redis::{
            RedisStore,
            many::{Done, What},
        },
    },
    terms::Terms,
};

type Asked = (What, Name, Terms);

/// Asks for all of these in one script call: two others are under way, and they wait behind these.
async fn gathered(store: &RedisStore, asked: &[Asked]) -> Vec<Done> {
    let until = Instant::now() + LONG;
    let holding = [0, 1].map(|n| (What::Release, name(&format!("hold/{n}")), mutex()));
    let all = holding.iter().chain(asked);
    let all = all.map(|(what, name, terms)| store.together(*what, name, terms, until));
    let done: Result<Vec<_>, Error> = join_all(all).await.into_iter().collect();
    done.unwrap().split_off(2)
}

/// Asks for one of these by itself, and tells what came of it.
async fn alone(store: &RedisStore, (what, name, terms): &Asked) -> String {
    let told = match what {
        What::Acquire => {
            let acquired = store.acquire(name, terms, None, LONG).await;
            acquired.map(|acquired| format!("{acquired:?}"))
        }
        What::Release => {
            let next = Next::InLine;
            let released = store.release(name, terms, false, next, LONG).await;
            released.map(|(outcome, _)| format!("{outcome:?}"))
        }
    };
    told.unwrap_or_else(|error| error.to_string())
}

/// Nothing, if it was not decided together with the others.
fn told(done: Done) -> Option<String> {
    match done {
        Done::Acquired(acquired) => Some(format!("{acquired:?}")),
        Done::Released(outcome) => Some(format!("{outcome:?}")),
        Done::Open => None,
    }
}

async fn sent(server: &RedisServer) -> u64 {
    let calls = server.command_calls().await;
    let of = |name: &str| calls.get(name).map_or(0, |stat| stat.calls);
    of("evalsha") + of("eval")
}

fn random(seed: &mut u64, end: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*seed >> 33) % end
}

#[tokio::test]
async fn what_gathers_is_decided_as_it_would_be_alone() {
    const ROUNDS: u64 = 300;
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let (mut seed, mut decided, mut open) = (7, 0, 0);
    // Of each step the same for two locks that nobody mixes up.
    let names = |n: u64| [name(&format!("one/{n}")), name(&format!("other/{n}"))];
    let mut owners: Vec<Terms> = Vec::new();
    for _ in 0..ROUNDS {
        owners.truncate(8);
        while owners.len() < 8 {
            let terms = match random(&mut seed, 6) {
                0 => semaphore(2),
                1 => Terms {
                    ttl: Duration::from_secs(5),
                    ..mutex()
                },
                _ => mutex(),
            };
            owners.insert(0, terms);
        }
        let asked: Vec<_> = (0..random(&mut seed, 24))
            .map(|_| {
                let what = match random(&mut seed, 2) {
                    0 => What::Acquire,
                    _ => What::Release,
                };
                let terms = owners[random(&mut seed, 8) as usize].clone();
                (what, names(random(&mut seed, 6)), terms)
            })
            .collect();
        let of = |which: usize| -> Vec<Asked> {
            let one = |(what, names, terms): &(What, [Name; 2], Terms)| {
                (*what, names[which].clone(), terms.clone())
            };
            asked.iter().map(one).collect()
        };
        let (one, other) = (of(0), of(1));
        let done: Vec<_> = gathered(store, &one).await.into_iter().map(told).collect();
        // First what was decided together, in its order; then what was left, by itself.
        for (asked, done) in other.iter().zip(&done) {
            if let Some(done) = done {
                assert_eq!(alone(store, asked).await, *done, "{asked:?}");
                decided += 1;
            }
        }
        for ((one, other), done) in one.iter().zip(&other).zip(&done) {
            if done.is_none() {
                assert_eq!(alone(store, one).await, alone(store, other).await);
                open += 1;
            }
        }
        for n in 0..6 {
            let [one, other] = names(n);
            let looks = (store.look(&one, LONG), store.look(&other, LONG));
            let (one, other) = (looks.0.await.unwrap(), looks.1.await.unwrap());
            assert_eq!(one, other);
        }
        let step = [1, 1_000, 4_000_000, 20_000_000][random(&mut seed, 4) as usize];
        fixture.clock.advance(Duration::from_micros(step));
    }
    assert!(decided > 300 && open > 300, "{decided}, {open}");
}

#[tokio::test]
async fn those_of_one_name_are_decided_in_their_order() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let (a, first, second) = (name("a"), mutex(), mutex());
    let asked = |what, terms: &Terms| (what, a.clone(), terms.clone());
    let asked = [
        asked(What::Acquire, &first),
        asked(What::Acquire, &second),
        asked(What::Release, &first),
        asked(What::Release, &second),
    ];
    let done = gathered(store, &asked).await;
    assert!(
        matches!(
            done[..],
            [
                Done::Acquired(Acquired::Granted(_)),
                Done::Open,
                Done::Released(Outcome::Held),
                Done::Open
            ]
        ),
        "{:?}",
        done.into_iter().map(told).collect::<Vec<_>>()
    );
    fixture.clock.advance(Duration::from_secs(1));
    let hold = [mutex(), mutex()].map(|terms| (name(&terms.owner.to_string()), terms));
    let hold = hold.iter().map(|(name, terms)| (name, terms));
    let both = hold.chain([(&a, &first), (&a, &second)]);
    let all = both.map(|(name, terms)| store.acquire(name, terms, None, LONG));
    let all: Vec<_> = join_all(all)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(matches!(all[2], Acquired::Granted(_)), "{all:?}");
    assert!(matches!(all[3], Acquired::Busy(_)), "{all:?}");
}

/// Only what is free is decided together; all else costs a call of its own, which knows all about it.
#[tokio::test]
async fn what_is_not_free_is_decided_by_itself() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let (held, lined, marked, foreign) = (name("held"), name("lined"), name("m"), name("f"));
    let (holder, waiter, gone) = (mutex(), mutex(), mutex());
    for name in [&held, &lined] {
        store.acquire(name, &holder, None, LONG).await.unwrap();
    }
    let line = Some("locks:a");
    store.acquire(&lined, &waiter, line, LONG).await.unwrap();
    let abandoned = store.release(&marked, &gone, true, Next::InLine, LONG);
    abandoned.await.unwrap();
    let key = store.keys(&foreign).held;
    let _: u64 = fixture.run(&["SADD", &key, "1"]).await;
    let counted = Terms {
        fence: FenceMode::Counter,
        ..mutex()
    };
    // The script is known from here on.
    gathered(store, &[(What::Release, name("a"), mutex())]).await;
    fixture.server.reset_stats().await;
    let asked = [
        (What::Acquire, held.clone(), mutex()),
        (What::Release, held.clone(), mutex()),
        (What::Release, lined.clone(), holder.clone()),
        (What::Acquire, marked.clone(), gone.clone()),
        (What::Acquire, foreign.clone(), mutex()),
        (What::Release, foreign.clone(), mutex()),
    ];
    for (done, asked) in gathered(store, &asked).await.into_iter().zip(&asked) {
        assert_eq!(told(done), None, "{asked:?}");
    }
    assert_eq!(sent(&fixture.server).await, 3, "two alone, and the others");
    assert!(alone(store, &asked[0]).await.contains("Busy"));
    assert!(alone(store, &asked[1]).await.contains("Other"));
    assert!(alone(store, &asked[2]).await.contains("Held"));
    let seen = store.look(&lined, LONG).await.unwrap();
    assert_eq!(seen.holders[0].owner, waiter.owner, "who was in line");
    assert!(alone(store, &asked[3]).await.contains("Abandoned"));
    assert!(alone(store, &asked[4]).await.contains("layout"));
    assert!(alone(store, &asked[5]).await.contains("layout"));
    // A counted fence is not the time, so it does not gather.
    let grant = store.acquire(&name("c"), &counted, None, LONG).await;
    assert!(matches!(grant.unwrap(), Acquired::Granted(grant) if grant.fence == 1));
}

#[tokio::test]
async fn who_gives_up_before_it_was_sent_leaves_nothing() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    store.look(&name("a"), LONG).await.unwrap();
    fixture.server.freeze();
    let hold = [mutex(), mutex()].map(|terms| (name(&terms.owner.to_string()), terms));
    let mut hold = pin!(join_all(
        hold.iter()
            .map(|(name, terms)| store.acquire(name, terms, None, LONG))
    ));
    assert!(matches!(poll!(&mut hold), Poll::Pending));
    let (gone, late, other) = (name("gone"), name("late"), name("other"));
    let (first, second, third) = (mutex(), mutex(), mutex());
    let mut given_up = Box::pin(store.acquire(&gone, &first, None, LONG));
    assert!(matches!(poll!(&mut given_up), Poll::Pending));
    let mut served = pin!(store.acquire(&other, &third, None, LONG));
    assert!(matches!(poll!(&mut served), Poll::Pending));
    // Each waits as long as it was told to, whatever the others do.
    let short = Duration::from_millis(50);
    let error = store.acquire(&late, &second, None, short).await;
    assert_eq!(*error.unwrap_err().kind(), ErrorKind::Timeout);
    drop(given_up);
    fixture.server.thaw();
    hold.await.into_iter().for_each(|held| drop(held.unwrap()));
    assert!(matches!(served.await.unwrap(), Acquired::Granted(_)));
    for name in [&gone, &late] {
        let key = store.keys(name).held;
        assert_eq!(fixture.run::<u64>(&["EXISTS", &key]).await, 0, "{name:?}");
    }
}
