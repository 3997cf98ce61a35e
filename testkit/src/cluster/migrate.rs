//! Moving a slot from one primary to another while clients use it.

use redis::{FromRedisValue, RedisResult};

use super::RedisCluster;

/// How many keys one `MIGRATE` takes along.
const BATCH: usize = 100;

/// How long the servers may take for one `MIGRATE`, in milliseconds.
const MIGRATE_TIMEOUT: &str = "10000";

/// A slot on its way from one primary to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Migration {
    /// The slot.
    pub slot: u16,
    /// The number of the node that it leaves.
    pub from: usize,
    /// The number of the node that it goes to.
    pub to: usize,
}

impl RedisCluster {
    /// Moves `slot` and its keys from node `from` to node `to`, in the steps of
    /// `redis-cli --cluster reshard`, and waits until all live nodes know.
    pub async fn migrate_slot(&self, slot: u16, from: usize, to: usize) {
        let migration = self.begin_migration(slot, from, to).await;
        self.finish_migration(migration).await;
    }

    /// Opens the slot on both sides. From now on `from` sends requests for keys that it does not
    /// have to `to` with `ASK`.
    pub async fn begin_migration(&self, slot: u16, from: usize, to: usize) -> Migration {
        let migration = Migration { slot, from, to };
        self.set_slot(to, migration, "IMPORTING", from).await;
        self.set_slot(from, migration, "MIGRATING", to).await;
        migration
    }

    /// Moves up to `count` keys that are still in the old place; returns how many.
    pub async fn migrate_keys(&self, migration: Migration, count: usize) -> usize {
        let slot = migration.slot.to_string();
        let listed = ["CLUSTER", "GETKEYSINSLOT", &slot, &count.to_string()];
        let keys: Vec<Vec<u8>> = self.ask(migration.from, &listed).await;
        if keys.is_empty() {
            return 0;
        }
        let to = &self.nodes[migration.to];
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(to.group_port()).arg("").arg(0);
        migrate.arg(MIGRATE_TIMEOUT);
        if let Some(login) = to.admin() {
            migrate.arg(login.user.map_or("AUTH", |_| "AUTH2"));
            migrate.arg(login.user).arg(login.password);
        }
        migrate.arg("KEYS").arg(&keys);
        let mut from = self.connection(migration.from).await;
        let moved: RedisResult<()> = migrate.query_async(&mut from).await;
        moved.expect("an open slot's keys can be moved");
        keys.len()
    }

    /// Moves the keys that are left, gives the slot to its new place and waits until all live nodes
    /// know.
    pub async fn finish_migration(&self, migration: Migration) {
        while self.migrate_keys(migration, BATCH).await > 0 {}
        // The new place first: if it was last, nobody would own the slot in between.
        self.set_slot(migration.to, migration, "NODE", migration.to)
            .await;
        self.set_slot(migration.from, migration, "NODE", migration.to)
            .await;
        let new = self.node_id(migration.to);
        self.wait_until("all nodes to know the slot's new place", |views| {
            let known = views
                .values()
                .all(|view| view.owner(migration.slot) == Some(new));
            known.then_some(())
        })
        .await;
    }

    async fn set_slot(&self, on: usize, migration: Migration, state: &str, other: usize) {
        let slot = migration.slot.to_string();
        let words = ["CLUSTER", "SETSLOT", &slot, state, self.node_id(other)];
        self.ask::<()>(on, &words).await;
    }

    async fn ask<T: FromRedisValue>(&self, index: usize, words: &[&str]) -> T {
        let answer: RedisResult<T> = self.nodes[index].command(words).await;
        answer.unwrap_or_else(|error| panic!("node {index} refused {words:?}: {error}"))
    }
}
