//! Several locks in one call: all of them or none.

use std::time::Duration;

use super::{Fixture, LONG, mutex, name};
use crate::{
    name::Name,
    store::{Acquired, Next, Outcome, Store as _},
    terms::Terms,
};

const ALL: [&str; 3] = ["a", "b", "c"];

fn asked() -> Vec<(Name, Terms)> {
    ALL.map(|lock| (name(lock), mutex())).into()
}

/// What is stored of each.
async fn stored(fixture: &Fixture) -> Vec<Option<Vec<u8>>> {
    let mut values = Vec::new();
    for lock in ALL {
        let held = fixture.store.keys(&name(lock)).held;
        values.push(fixture.run(&["GET", &held]).await);
    }
    values
}

#[tokio::test]
async fn all_are_granted_with_fences_that_grow() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let mut last = 0;
    for _ in 0..3 {
        fixture.clock.advance(Duration::from_micros(1));
        let asked = asked();
        let grants = store.acquire_all(&asked, LONG).await.unwrap().unwrap();
        assert_eq!(grants.len(), ALL.len());
        for ((lock, terms), grant) in asked.iter().zip(grants) {
            assert!(grant.fence > last, "{grant:?} after {last}");
            let again = store.acquire(lock, terms, None, LONG).await.unwrap();
            let Acquired::Granted(again) = again else {
                panic!("{again:?}");
            };
            assert_eq!(again.fence, grant.fence, "the same is held");
            let released = store.release(lock, terms, false, Next::InLine, LONG).await;
            assert_eq!(released.unwrap().0, Outcome::Held);
        }
        fixture.clock.advance(Duration::from_micros(1));
        last = store
            .acquire_all(&self::asked(), LONG)
            .await
            .unwrap()
            .unwrap()[0]
            .fence;
        // Their holders die.
        fixture.clock.advance(Duration::from_secs(31));
        for lock in ALL {
            let terms = mutex();
            store
                .acquire(&name(lock), &terms, None, LONG)
                .await
                .unwrap();
            store
                .release(&name(lock), &terms, false, Next::InLine, LONG)
                .await
                .unwrap();
        }
    }
}

#[tokio::test]
async fn where_one_is_not_free_nothing_is_changed() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    for taken in ALL {
        let (taken, holder) = (name(taken), mutex());
        store.acquire(&taken, &holder, None, LONG).await.unwrap();
        let before = stored(&fixture).await;
        assert_eq!(store.acquire_all(&asked(), LONG).await.unwrap(), None);
        assert_eq!(stored(&fixture).await, before);
        let released = store.release(&taken, &holder, false, Next::InLine, LONG);
        released.await.unwrap();
    }
    // What is no lock at all is left alone too, and the question one by one tells what it is.
    let held = store.keys(&name("b")).held;
    let _: u32 = fixture.run(&["DEL", &held]).await;
    let _: u32 = fixture.run(&["HSET", &held, "a", "b"]).await;
    assert_eq!(store.acquire_all(&asked(), LONG).await.unwrap(), None);
    assert_eq!(fixture.run::<String>(&["HGET", &held, "a"]).await, "b");
}

/// The answer to the first is lost, and it is sent again.
#[tokio::test]
async fn who_asks_again_is_granted_the_same() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let asked = asked();
    let first = store.acquire_all(&asked, LONG).await.unwrap();
    assert!(first.is_some());
    fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(store.acquire_all(&asked, LONG).await.unwrap(), first);
    assert_eq!(
        store.acquire_all(&self::asked(), LONG).await.unwrap(),
        None,
        "others have others"
    );
    let (lock, terms) = &asked[1];
    let released = store.release(lock, terms, false, Next::InLine, LONG).await;
    assert_eq!(released.unwrap().0, Outcome::Held);
    assert_eq!(store.acquire_all(&asked, LONG).await.unwrap(), None);
}

#[tokio::test]
async fn what_was_abandoned_is_not_granted() {
    let fixture = Fixture::start().await;
    let store = &fixture.store;
    let asked = asked();
    let (lock, terms) = &asked[1];
    let abandoned = store.release(lock, terms, true, Next::InLine, LONG).await;
    abandoned.unwrap();
    assert_eq!(store.acquire_all(&asked, LONG).await.unwrap(), None);
    assert!(
        store
            .look(&asked[0].0, LONG)
            .await
            .unwrap()
            .holders
            .is_empty()
    );
}
