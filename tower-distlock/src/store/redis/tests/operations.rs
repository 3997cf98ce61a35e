//! What only the store of Redis does.

use std::{collections::BTreeSet, time::Duration};

use redis_conn::{Backend, Config};

use super::{Fixture, LONG, RedisStore, mutex, name, redis};
use crate::{
    name::Name,
    store::{Acquired, Next, Outcome, Store as _},
    terms::Terms,
};

#[tokio::test]
async fn what_was_abandoned_is_not_granted_any_more() {
    let fixture = Fixture::start().await;
    let (store, name) = (&fixture.store, name("a"));
    let ask = async |terms: &Terms, wake| store.acquire(&name, terms, wake, LONG).await.unwrap();
    // Not asked for yet, or held.
    for asked in [false, true] {
        let terms = mutex();
        if asked {
            assert!(matches!(ask(&terms, None).await, Acquired::Granted(_)));
        }
        let (outcome, _) = store
            .release(&name, &terms, true, Next::InLine, LONG)
            .await
            .unwrap();
        assert_eq!(outcome == Outcome::Held, asked);
        for wake in [None, Some("locks:a")] {
            assert_eq!(ask(&terms, wake).await, Acquired::Abandoned);
        }
        let first = mutex();
        for next in [
            Next::Pass(&terms, "locks:a"),
            Next::Yield(&terms, "locks:a"),
        ] {
            assert!(matches!(ask(&first, None).await, Acquired::Granted(_)));
            let released = store
                .release(&name, &first, false, next, LONG)
                .await
                .unwrap();
            assert_eq!(released, (Outcome::Held, Some(Acquired::Abandoned)));
        }
        assert_eq!(store.look(&name, LONG).await.unwrap().holders, []);
        let left: i64 = fixture
            .run(&["PTTL", &store.keys(&name).mark(terms.owner)])
            .await;
        assert!((25_000..=30_000).contains(&left), "{left}");
        // It is that one only.
        let other = mutex();
        assert!(matches!(ask(&other, None).await, Acquired::Granted(_)));
        store
            .release(&name, &other, false, Next::InLine, LONG)
            .await
            .unwrap();
    }
}

/// The answer to the first is lost, and it is sent again.
#[tokio::test]
async fn who_let_go_is_not_told_that_it_had_lost_it() {
    let fixture = Fixture::start().await;
    let (store, name) = (&fixture.store, name("a"));
    let (first, second, third) = (mutex(), mutex(), mutex());
    let release = async |terms: &Terms, next: Next<'_>| {
        store
            .release(&name, terms, false, next, LONG)
            .await
            .unwrap()
    };
    store.acquire(&name, &first, None, LONG).await.unwrap();
    for _ in 0..2 {
        assert_eq!(release(&first, Next::InLine).await.0, Outcome::Held);
    }
    // Also when somebody has it meanwhile, at once or after standing in line.
    store.acquire(&name, &second, None, LONG).await.unwrap();
    store
        .acquire(&name, &third, Some("locks:a"), LONG)
        .await
        .unwrap();
    assert_eq!(release(&first, Next::InLine).await.0, Outcome::Held);
    for _ in 0..2 {
        assert_eq!(release(&second, Next::InLine).await.0, Outcome::Held);
    }
    assert_eq!(release(&first, Next::InLine).await.0, Outcome::Other);
    let heir = mutex();
    let mut granted = Vec::new();
    for _ in 0..2 {
        let (outcome, acquired) = release(&third, Next::Pass(&heir, "locks:a")).await;
        assert_eq!(outcome, Outcome::Held);
        granted.push(acquired);
    }
    assert!(matches!(granted[0], Some(Acquired::Granted(_))));
    assert_eq!(granted[0], granted[1]);
    // Who never held it is told so.
    assert_eq!(release(&mutex(), Next::InLine).await.0, Outcome::Other);
}

#[tokio::test]
async fn a_server_that_forgets_its_scripts_costs_nothing() {
    let fixture = Fixture::start().await;
    let (store, name) = (&fixture.store, name("a"));
    let (first, second) = (mutex(), mutex());
    let forget = async || {
        let _: String = fixture.run(&["SCRIPT", "FLUSH"]).await;
    };
    forget().await;
    store.acquire(&name, &first, None, LONG).await.unwrap();
    forget().await;
    store
        .acquire(&name, &second, Some("locks:a"), LONG)
        .await
        .unwrap();
    forget().await;
    let renewed = store
        .renew(&[(name.clone(), first.clone())], LONG)
        .await
        .unwrap();
    assert_eq!(renewed, [Outcome::Held]);
    forget().await;
    assert_eq!(store.look(&name, LONG).await.unwrap().waiting, 1);
    forget().await;
    let released = store
        .release(&name, &first, false, Next::InLine, LONG)
        .await
        .unwrap();
    assert_eq!(released.0, Outcome::Held);
    forget().await;
    assert_eq!(store.force(&name, LONG).await.unwrap(), [second.owner]);
}

#[tokio::test]
async fn a_lock_and_its_release_are_two_commands() {
    let fixture = Fixture::start().await;
    let (store, name) = (&fixture.store, name("a"));
    let both = async || {
        let terms = mutex();
        store.acquire(&name, &terms, None, LONG).await.unwrap();
        store
            .release(&name, &terms, false, Next::InLine, LONG)
            .await
            .unwrap();
    };
    both().await;
    // Two grants of one moment are told apart by a number, which takes longer.
    fixture.clock.advance(Duration::from_micros(1));
    fixture.server.reset_stats().await;
    both().await;
    let calls = fixture.server.command_calls().await;
    let of = |name: &str| calls.get(name).map_or(0, |stat| stat.calls);
    assert_eq!((of("evalsha"), of("eval")), (2, 0));
    // And nothing of the line, which nobody stands in.
    assert_eq!((of("mget"), of("get"), of("set")), (1, 1, 2));
    for not in ["pttl", "zrange", "hget", "zrem", "hdel"] {
        assert_eq!(of(not), 0, "{not}");
    }
}

#[tokio::test]
async fn many_leases_are_prolonged_by_few_commands() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let mut leases = Vec::new();
    for n in 0..600 {
        let (name, terms) = (name(&format!("{n}")), mutex());
        // Every third is not held.
        if n % 3 > 0 {
            store.acquire(&name, &terms, None, LONG).await.unwrap();
        }
        leases.push((name, terms));
    }
    fixture.clock.advance(Duration::from_secs(29));
    fixture.server.reset_stats().await;
    let renewed = store.renew(&leases, LONG).await.unwrap();
    for (n, outcome) in renewed.into_iter().enumerate() {
        let held = if n % 3 > 0 {
            Outcome::Held
        } else {
            Outcome::Absent
        };
        assert_eq!(outcome, held, "{n}");
    }
    let calls = fixture.server.command_calls().await;
    assert_eq!(calls.get("evalsha").map_or(0, |stat| stat.calls), 3);
    fixture.clock.advance(Duration::from_secs(29));
    let seen = store.look(&leases[1].0, LONG).await.unwrap();
    assert_eq!(seen.holders[0].remaining, Duration::from_secs(1));
    assert_eq!(store.renew(&[], LONG).await.unwrap(), []);
}

#[tokio::test]
async fn those_that_are_held_are_listed() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let strange = "job:*?[a-z]\u{e9} {x}";
    for held in ["job:1", "job:2", strange, "other"] {
        store
            .acquire(&name(held), &mutex(), None, LONG)
            .await
            .unwrap();
    }
    let (gone, terms) = (name("job:gone"), mutex());
    store.acquire(&gone, &terms, None, LONG).await.unwrap();
    store
        .release(&gone, &terms, false, Next::InLine, LONG)
        .await
        .unwrap();
    let (over, terms) = (name("job:over"), mutex());
    let brief = Terms {
        ttl: Duration::from_secs(10),
        ..terms
    };
    store.acquire(&over, &brief, None, LONG).await.unwrap();
    fixture.clock.advance(Duration::from_secs(10));
    let elsewhere = fixture.backend.namespace("shop").unwrap();
    let elsewhere = RedisStore::new(&elsewhere, &redis(&elsewhere));

    let listed = async |prefix: &str| -> BTreeSet<String> {
        let listed = store.list(prefix, LONG).await.unwrap();
        listed.into_iter().collect()
    };
    let all = |names: &[&str]| {
        names
            .iter()
            .map(ToString::to_string)
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(listed("job:").await, all(&["job:1", "job:2", strange]));
    assert_eq!(listed("job:*").await, all(&[strange]));
    assert_eq!(listed("").await, all(&["job:1", "job:2", strange, "other"]));
    assert_eq!(listed("none").await, all(&[]));
    assert_eq!(
        elsewhere.list("", LONG).await.unwrap(),
        Vec::<String>::new()
    );
}

/// All about locks is sent on one connection, or a release could overtake what asked for the lock, be it together with others.
#[tokio::test]
async fn all_locks_of_a_server_are_on_the_same_connection() {
    let fixture = Fixture::start().await;
    let config = Config::from_url(&fixture.server.url()).unwrap();
    let config = config.into_builder().lanes(8).build().unwrap();
    let backend = Backend::redis(config).unwrap();
    backend.ready(LONG).await.unwrap();
    let store = RedisStore::new(&backend, &redis(&backend));
    testkit::until(LONG, "all lanes", async || {
        used(&fixture, ":lane ").await.len() >= 9
    })
    .await
    .unwrap();
    let lanes = async || {
        let mut lanes = used(&fixture, ":lane ").await;
        lanes.retain(|line| line.contains(" cmd=evalsha ") || line.contains(" cmd=eval "));
        lanes.len()
    };
    let everything = async |name: Name| {
        let (terms, other) = (mutex(), mutex());
        let leases = [(name.clone(), terms.clone())];
        store.acquire(&name, &terms, None, LONG).await.unwrap();
        store
            .acquire(&name, &other, Some("locks:a"), LONG)
            .await
            .unwrap();
        store.renew(&leases, LONG).await.unwrap();
        store.look(&name, LONG).await.unwrap();
        store
            .release(&name, &terms, false, Next::InLine, LONG)
            .await
            .unwrap();
        store.force(&name, LONG).await.unwrap();
    };
    for n in 0..50 {
        everything(name(&n.to_string())).await;
    }
    assert_eq!(lanes().await, 1);
}

async fn used(fixture: &Fixture, what: &str) -> Vec<String> {
    let list: String = fixture.run(&["CLIENT", "LIST"]).await;
    let lines = list.lines().filter(|line| line.contains(what));
    lines.map(str::to_owned).collect()
}
