//! Every entry of the users in deploy/ is needed: something real fails without it.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod cluster;
mod files;
mod needed;
mod raw;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod watched;

use std::collections::BTreeSet;

use self::needed::covered;

/// Services that have rate limits or locks only are tested with these.
const ELSEWHERE: [&str; 2] = ["towerkeep-limits", "towerkeep-locks"];
/// What `towerkeep` needs for the scripts of the locks is tested there.
const LOCKS: &str = "+mget +pttl +pexpire +zadd +zrange +zrem +hset +hget +hdel +hvals +scan +wait";

#[test]
fn there_is_a_test_of_every_entry_and_of_no_other() {
    let of_file = |text: &'static str| -> BTreeSet<_> {
        let pairs = files::pairs(text).into_iter();
        let here = |(user, entry): &(&str, &str)| {
            let locks = *user == "towerkeep" && LOCKS.split(' ').any(|of| of == *entry);
            !ELSEWHERE.contains(user) && !locks
        };
        pairs.filter(here).collect()
    };
    // Off with its whole line.
    let default = BTreeSet::from([("default", "off")]);
    let on_servers = [
        covered(server::TABLE),
        covered(cluster::TABLE),
        covered(watched::SERVERS),
        covered(watched::ONE_SERVER),
        default.clone(),
    ];
    let on_sentinels = [covered(watched::SENTINELS), default];
    for (file, tested) in [
        (files::USERS, on_servers.as_slice()),
        (files::SENTINEL_USERS, &on_sentinels),
    ] {
        let tested: BTreeSet<_> = tested.iter().flatten().copied().collect();
        assert_eq!(tested, of_file(file));
    }
}
