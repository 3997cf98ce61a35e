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

/// A service that has rate limits only is tested with the limiter.
const ELSEWHERE: &str = "towerkeep-limits";

#[test]
fn there_is_a_test_of_every_entry_and_of_no_other() {
    let of_file = |text: &'static str| -> BTreeSet<_> {
        let pairs = files::pairs(text).into_iter();
        pairs.filter(|(user, _)| *user != ELSEWHERE).collect()
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
