//! On a cluster each lock has its node, and who waits is told in the slot of the lock.

use std::time::Duration;

use redis_conn::{Backend, Config, Endpoint, Event};
use testkit::{PASSWORD, RedisCluster, USER};

use super::{LONG, RedisStore, mutex, name, redis};
use crate::{
    mail::{self, Letter},
    store::{Acquired, Next, Outcome, Store as _},
};

#[tokio::test]
async fn locks_are_on_all_nodes_of_a_cluster() {
    let cluster = RedisCluster::start().await;
    let addrs = cluster.addrs().into_iter();
    let nodes = addrs.map(|addr| Endpoint::tcp(addr.ip().to_string(), addr.port()));
    let config = Config::cluster(nodes).username(USER).password(PASSWORD);
    let backend = Backend::redis(config.build().unwrap()).unwrap();
    backend.ready(LONG).await.unwrap();
    let store = RedisStore::new(&backend, &redis(&backend));

    let mut leases = Vec::new();
    for n in 0..40 {
        let (name, terms) = (name(&format!("{n}")), mutex());
        let acquired = store.acquire(&name, &terms, None, LONG).await.unwrap();
        assert!(matches!(acquired, Acquired::Granted(_)));
        leases.push((name, terms));
    }
    let renewed = store.renew(&leases, LONG).await.unwrap();
    assert_eq!(renewed, vec![Outcome::Held; leases.len()]);
    assert_eq!(store.list("", LONG).await.unwrap().len(), leases.len());

    for (name, terms) in &leases {
        let wake = format!("locks:{{{}}}:here", name.tag());
        let mut told = backend.bus().subscribe(&wake).await.unwrap();
        let waiter = mutex();
        let busy = store
            .acquire(name, &waiter, Some(&wake), LONG)
            .await
            .unwrap();
        assert!(matches!(busy, Acquired::Busy(_)));
        let released = store
            .release(name, terms, false, Next::InLine, LONG)
            .await
            .unwrap();
        assert_eq!(released.0, Outcome::Held);
        let event = tokio::time::timeout(LONG, told.recv()).await.unwrap();
        let Some(Event::Message(message)) = event else {
            panic!("{event:?}")
        };
        let Some(Letter::Grant(owner, grant)) = mail::read(message.payload()) else {
            panic!("no grant");
        };
        assert_eq!(owner, waiter.owner);
        let renewed = store
            .renew(&[(name.clone(), waiter.clone())], LONG)
            .await
            .unwrap();
        assert_eq!(renewed, [Outcome::Held]);
        let seen = store.look(name, LONG).await.unwrap();
        assert_eq!(seen.holders[0].fence, grant.fence);
        assert!(seen.holders[0].remaining > Duration::from_secs(20));
        assert_eq!(store.force(name, LONG).await.unwrap(), [owner]);
    }
    assert_eq!(store.list("", LONG).await.unwrap(), Vec::<String>::new());
}
