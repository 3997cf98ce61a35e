//! Taking one entry from a user after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use testkit::{RedisServer, until};

use crate::files::entries;

/// Longer than anything that works takes, so that it decides no test.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// So long something is given that cannot work. That it was refused is seen otherwise.
const SHORT: Duration = Duration::from_millis(1_500);

/// A user, its entries, and what fails without each of them.
pub(crate) type Row<U> = (&'static str, &'static [&'static str], U);

/// What the rows are about.
pub(crate) fn covered<U>(table: &[Row<U>]) -> BTreeSet<(&'static str, &'static str)> {
    let of_row = |(user, entries, _): &Row<U>| {
        let user = *user;
        entries.iter().map(move |entry| (user, *entry))
    };
    table.iter().flat_map(of_row).collect()
}

/// Each use of the table works with the users of `file`, and without its entry it does not, because
/// the servers refuse something. Denials are the other way round: without them the servers allow
/// what the use, which is an error then, has tried.
pub(crate) async fn each_is_needed<U: Copy + Debug>(
    servers: &[RedisServer],
    file: &str,
    table: &[Row<U>],
    works: impl AsyncFn(U, Duration) -> Result<(), String>,
) {
    for (user, without, used) in table {
        for entry in *without {
            let case = format!("{user} without {entry}: {used:?}");
            if let Err(error) = grant(servers, file, user, Some(entry)).await {
                // What comes behind it makes no sense to a server that gives all channels at first.
                assert_eq!(*entry, "resetchannels", "{error}");
                continue;
            }
            let outcome = works(*used, SHORT).await;
            assert!(outcome.is_err(), "{case} works");
            if !entry.starts_with('-') {
                // What servers do of themselves, as a replica, may come later.
                let refused = until(LONG, "a refusal", async || {
                    !refusals(servers, user).await.is_empty()
                });
                let refused = refused.await;
                assert!(refused.is_ok(), "{case}: {outcome:?}, but {refused:?}");
            }

            grant(servers, file, user, None).await.unwrap();
            let outcome = works(*used, LONG).await;
            assert_eq!(outcome, Ok(()), "again with {entry}: {user} {used:?}");
            let refused = refusals(servers, user).await;
            assert!(
                entry.starts_with('-') || refused.is_empty(),
                "{case}, again with it: {refused:?}"
            );
        }
    }
}

/// Gives a user what the file says but for one entry. Without `resetchannels` that is on top of all
/// channels, which Redis 6.2 gives at first.
async fn grant(
    servers: &[RedisServer],
    file: &str,
    user: &str,
    without: Option<&str>,
) -> redis::RedisResult<()> {
    let entries = entries(file, user);
    if let Some(without) = without {
        assert!(entries.contains(&without), "{user} has no {without}");
    }
    for server in servers {
        let mut admin = server.connection().await;
        let mut set = redis::cmd("ACL");
        let first = match without {
            Some("resetchannels") => "allchannels",
            _ => "resetchannels",
        };
        set.arg(&["SETUSER", user, "reset", first]);
        let kept = entries.iter().filter(|entry| Some(**entry) != without);
        set.arg(kept.collect::<Vec<_>>());
        set.query_async::<()>(&mut admin).await?;
        let mut forget = redis::cmd("ACL");
        forget.arg("LOG").arg("RESET");
        forget.query_async::<()>(&mut admin).await?;
    }
    Ok(())
}

/// What the servers refused to a user.
pub(crate) async fn refusals(servers: &[RedisServer], user: &str) -> Vec<String> {
    let mut all = Vec::new();
    for server in servers.iter().filter(|server| server.is_live()) {
        let mut log = redis::cmd("ACL");
        let log = log.arg("LOG");
        let entries: Vec<BTreeMap<String, String>> = log
            .query_async(&mut server.connection().await)
            .await
            .unwrap();
        let own = entries.iter().filter(|entry| entry["username"] == user);
        all.extend(own.map(|entry| format!("{} {}", entry["reason"], entry["object"])));
    }
    all
}
