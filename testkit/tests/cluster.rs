//! The cluster fixture against real servers.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use testkit::RedisCluster;

/// The first `count` keys that are in one slot with `tag`.
fn keys(tag: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{{{tag}}}:{number}"))
        .collect()
}

async fn slot_table(connection: &mut MultiplexedConnection) -> String {
    let mut nodes = redis::cmd("CLUSTER");
    nodes.arg("NODES").query_async(connection).await.unwrap()
}

#[tokio::test]
async fn three_primaries_share_the_slots_and_each_has_a_replica() {
    let cluster = RedisCluster::start().await;
    for primary in 0..3 {
        assert_eq!(cluster.replicas_of(primary).await, [primary + 3]);
    }
    assert_eq!(cluster.primary_of(0).await, 0);
    assert_eq!(cluster.primary_of(16_383).await, 2);

    let mut connection = cluster.connection(0).await;
    for key in [
        "",
        "a",
        "123456789",
        "{a}b",
        "x{a}b{c}",
        "{}a",
        "{a",
        "a}{b}",
        "é{ü}",
    ] {
        let mut asked = redis::cmd("CLUSTER");
        asked.arg("KEYSLOT").arg(key);
        let slot: u16 = asked.query_async(&mut connection).await.unwrap();
        assert_eq!(RedisCluster::slot_of(key), slot, "{key:?}");
    }

    cluster.reset_stats().await;
    for key in ["a", "b", "c", "d"] {
        let owner = cluster.primary_of(RedisCluster::slot_of(key)).await;
        let () = cluster.connection(owner).await.set(key, 1).await.unwrap();
    }
    // Each write also runs on the replica.
    let set = || async { cluster.command_calls().await["set"].calls };
    let both = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while set().await != 8 {
            tokio::task::yield_now().await;
        }
    });
    both.await.expect("four writes, on two nodes each");
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_comes_back_as_a_replica() {
    let cluster = RedisCluster::start().await;
    cluster.kill(1);
    let slot = 8_000;
    let new = cluster.wait_for_new_primary(slot, 1).await;
    assert_eq!(new, 4);
    cluster.wait_ok().await;
    cluster.restart(1).await;
    cluster.wait_ok().await;
    assert_eq!(cluster.primary_of(slot).await, 4);
    assert_eq!(cluster.replicas_of(4).await, [1]);
}

#[tokio::test]
async fn a_frozen_primary_is_replaced_and_steps_back() {
    let cluster = RedisCluster::start().await;
    cluster.freeze(0);
    assert_eq!(cluster.wait_for_new_primary(0, 0).await, 3);
    cluster.thaw(0);
    cluster.wait_ok().await;
    assert_eq!(cluster.replicas_of(3).await, [0]);
}

#[tokio::test]
async fn a_replica_takes_over_when_told_to() {
    let cluster = RedisCluster::start().await;
    cluster.failover(5).await;
    assert_eq!(cluster.primary_of(16_383).await, 5);
    assert_eq!(cluster.replicas_of(5).await, [2]);
    cluster.failover(2).await;
    assert_eq!(cluster.primary_of(16_383).await, 2);
}

#[tokio::test]
async fn a_slot_can_be_held_half_way_to_its_new_place() {
    let cluster = RedisCluster::builder()
        .password("p@ss")
        .replicas_per_primary(0)
        .start()
        .await;
    let slot = RedisCluster::slot_of("hot");
    let from = cluster.primary_of(slot).await;
    let to = (from + 1) % 3;
    let keys = keys("hot", 10);
    let (mut old, mut new) = (cluster.connection(from).await, cluster.connection(to).await);
    for key in &keys {
        let () = old.set(key, 1).await.unwrap();
    }

    let migration = cluster.begin_migration(slot, from, to).await;
    assert_eq!(cluster.migrate_keys(migration, 4).await, 4);
    let count = |found: Vec<redis::RedisResult<Option<i32>>>| {
        let asked = |error: &redis::RedisError| error.code() == Some("ASK");
        let here = found.iter().filter(|found| matches!(found, Ok(Some(1))));
        let there = found
            .iter()
            .filter(|found| found.as_ref().is_err_and(asked));
        (here.count(), there.count())
    };
    let mut found = Vec::new();
    for key in &keys {
        found.push(old.get(key).await);
    }
    assert_eq!(count(found), (6, 4));
    let moved = new.get::<_, Option<i32>>(&keys[0]).await.unwrap_err();
    assert_eq!(moved.code(), Some("MOVED"));

    cluster.finish_migration(migration).await;
    assert_eq!(cluster.primary_of(slot).await, to);
    for key in &keys {
        assert_eq!(new.get(key).await, Ok(Some(1)));
    }
    cluster.migrate_slot(slot, to, from).await;
    assert_eq!(old.get(&keys[0]).await, Ok(Some(1)));
    cluster.wait_ok().await;
}

#[tokio::test]
async fn clients_of_a_proxied_cluster_meet_its_proxies_only() {
    let cluster = RedisCluster::builder().open().proxied().start().await;
    for index in 0..6 {
        assert_eq!(cluster.addr(index), cluster.proxy(index).addr());
    }
    cluster.kill(5);
    cluster.restart(5).await;
    cluster.wait_ok().await;
    for index in 0..6 {
        let table = slot_table(&mut cluster.connection(index).await).await;
        for (addr, node) in cluster.addrs().iter().zip(cluster.nodes()) {
            assert!(table.contains(&format!("{addr}@")), "{addr} in {table}");
            assert!(!table.contains(&node.addr().to_string()), "{table}");
        }
    }
    let before = cluster.proxy(1).accepted();
    let client = redis::Client::open(cluster.seed_urls()[1].as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    assert!(slot_table(&mut connection).await.contains("myself"));
    assert_eq!(cluster.proxy(1).accepted(), before + 1);
}

#[tokio::test]
async fn users_may_turn_the_default_user_off() {
    let cluster = RedisCluster::builder()
        .users("user default off\nuser app on >secret ~* +get")
        .start()
        .await;
    let anonymous = redis::Client::open(cluster.seed_urls()[0].as_str()).unwrap();
    let refused = match anonymous.get_multiplexed_async_connection().await {
        Ok(mut connection) => connection.get::<_, Option<i32>>("a").await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(refused.unwrap_err().code(), Some("NOAUTH"));

    let slot = RedisCluster::slot_of("a");
    let from = cluster.primary_of(slot).await;
    let () = cluster.connection(from).await.set("a", 1).await.unwrap();
    let to = (from + 1) % 3;
    cluster.migrate_slot(slot, from, to).await;
    let url = format!("redis://app:secret@{}", cluster.addr(to));
    let app = redis::Client::open(url).unwrap();
    let mut app = app.get_multiplexed_async_connection().await.unwrap();
    assert_eq!(app.get("a").await, Ok(Some(1)));
}
