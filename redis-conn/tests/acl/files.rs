//! The users in deploy/, as pairs of a user and one entry.

pub(crate) const USERS: &str = include_str!("../../../deploy/users.acl");
pub(crate) const SENTINEL_USERS: &str = include_str!("../../../deploy/sentinel.acl");

/// The entries of one user.
pub(crate) fn entries<'a>(file: &'a str, user: &str) -> Vec<&'a str> {
    let pairs = pairs(file).into_iter();
    let own = pairs.filter(|(found, _)| *found == user);
    own.map(|(_, entry)| entry).collect()
}

pub(crate) fn pairs(file: &str) -> Vec<(&str, &str)> {
    file.lines().flat_map(of_line).collect()
}

fn of_line(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("user"), "{line}");
    let user = words.next().unwrap();
    words.map(move |entry| (user, entry))
}

/// The name and the password of a user, as `AUTH` takes them.
pub(crate) fn login(file: &str, user: &str) -> String {
    let entries = entries(file, user);
    let password = entries.iter().find_map(|entry| entry.strip_prefix('>'));
    format!("{user} {}", password.unwrap_or("any"))
}
