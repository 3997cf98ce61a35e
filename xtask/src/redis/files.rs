//! The files in deploy/, copied for one server: servers and sentinels rewrite their own.

use std::fs;
use std::path::Path;

use crate::sh::{self, Result};

pub(super) const REDIS: &str = "deploy/redis.conf";
pub(super) const CLUSTER: &str = "deploy/cluster.conf";
pub(super) const SENTINEL: &str = "deploy/sentinel.conf";
const USERS: &str = "deploy/users.acl";
const SENTINEL_USERS: &str = "deploy/sentinel.acl";
/// Files that others name, relative to the folder of the server.
const NAMED: &[&str] = &[REDIS, USERS, SENTINEL_USERS];

/// The user of the programs.
pub(super) const PROGRAM: &str = "towerkeep";
/// The user of the people who run the servers; we are one.
pub(super) const OPERATOR: &str = "operator";
/// The user that a replica follows its primary as.
pub(super) const REPLICA: &str = "replica";
/// The user that sentinels watch servers and each other as.
pub(super) const SENTINEL_USER: &str = "sentinel";

/// The password of a user, on servers and sentinels alike.
pub(super) fn password(user: &str) -> Result<String> {
    password_in(&read(USERS)?, user)
        .ok_or_else(|| format!("{USERS}: expected `user {user} on >PASSWORD ...`").into())
}

fn password_in(users: &str, user: &str) -> Option<String> {
    let line = users.lines().find_map(|line| {
        let (found, rules) = line.trim().strip_prefix("user ")?.trim().split_once(' ')?;
        (found == user).then_some(rules)
    })?;
    line.split_whitespace()
        .find_map(|rule| Some(rule.strip_prefix('>')?.to_owned()))
}

pub(super) fn read(file: &str) -> Result<String> {
    let path = sh::root().join(file);
    Ok(fs::read_to_string(&path).map_err(|error| format!("{file}: {error}"))?)
}

/// Puts `conf`, as this server needs it, and all that it names into `dir`.
pub(super) fn install(dir: &Path, conf: &str, text: &str) -> Result {
    for file in NAMED.iter().filter(|file| **file != conf) {
        fs::write(dir.join(base(file)), read(file)?)?;
    }
    Ok(fs::write(dir.join(base(conf)), text)?)
}

/// The name of a file in deploy/ without the folder.
pub(super) fn base(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_user_is_found() {
        let users = "user default off\nuser a on >one ~* +@all\nuser ab on #00 +@all\n";
        assert_eq!(password_in(users, "a").as_deref(), Some("one"));
        assert_eq!(password_in(users, "ab"), None);
        assert_eq!(password_in(users, "b"), None);
    }

    #[test]
    fn each_user_that_is_needed_has_a_password() {
        for user in [PROGRAM, OPERATOR, REPLICA, SENTINEL_USER] {
            assert!(!password(user).unwrap().is_empty());
        }
    }

    #[test]
    fn users_of_both_files_have_the_same_passwords() {
        let sentinels = read(SENTINEL_USERS).unwrap();
        for user in [PROGRAM, OPERATOR, SENTINEL_USER] {
            assert_eq!(password_in(&sentinels, user), password(user).ok(), "{user}");
        }
    }
}
