//! URLs of servers.
//!
//! The `url` crate is not used, because it reads as browsers do: it drops tabs and line ends, resolves `..` in the path of a
//! socket, and knows no credentials without a host, which is how a socket has them.

use std::path::PathBuf;

use super::{Endpoint, Secret, check};

/// What a URL names.
#[derive(Debug, PartialEq)]
pub(super) struct Target {
    pub(super) endpoint: Endpoint,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) db: u32,
    pub(super) tls: bool,
}

/// What was expected instead.
type Expected = &'static str;

const FORM: Expected = "redis://[[user]:password@]host[:port][/db] or unix:///path/to/socket, with the characters / ? # @ % of \
                        user and password percent-encoded";
const USER: Expected =
    "[user]:password before the @; a password without a user is written :password@";
const ESCAPE: Expected =
    "a % only before two hexadecimal digits: a % in a user, a password or a path is written %25";
const HOST: Expected = "a host name or an address after ://, an IPv6 address in brackets";
const PORT: Expected = "a port from 1 to 65535 after the host, or none";
const DB: Expected = "one number of a database after the host, as in redis://host/0";
const SOCKET: Expected =
    "the absolute path of a socket, at most 100 bytes long, as in unix:///run/redis.sock";
const QUERY: Expected = "a query of db=N or protocol=3, or none";

pub(super) fn parse(url: &str) -> Result<Target, Expected> {
    if url.contains(|c: char| c.is_control() || c.is_whitespace() || c == '#') {
        return Err(FORM);
    }
    let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user_info, server) = match authority.rsplit_once('@') {
        Some((user_info, server)) => (Some(user_info), server),
        None => (None, authority),
    };
    let scheme = scheme.to_ascii_lowercase();
    let (endpoint, db_in_path) = match scheme.as_str() {
        "redis" | "valkey" | "rediss" | "valkeys" => (tcp(server)?, database(path)?),
        "unix" | "redis+unix" | "valkey+unix" => (socket(server, path)?, None),
        _ => return Err(FORM),
    };
    let db = match (db_in_path, database_of_query(query)?) {
        (Some(_), Some(_)) => return Err(DB),
        (in_path, in_query) => in_path.or(in_query).unwrap_or(0),
    };
    let (username, password) = credentials(user_info)?;
    Ok(Target {
        endpoint,
        username,
        password,
        db,
        tls: matches!(scheme.as_str(), "rediss" | "valkeys"),
    })
}

fn tcp(server: &str) -> Result<Endpoint, Expected> {
    host_and_port(server, Endpoint::DEFAULT_PORT)
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
pub(super) fn host_and_port(server: &str, default_port: u16) -> Result<Endpoint, Expected> {
    let (host, port) = match server.strip_prefix('[') {
        Some(bracketed) => bracketed
            .split_once(']')
            .filter(|(address, _)| address.contains(':'))
            .ok_or(HOST)?,
        None => server.split_at(server.find(':').unwrap_or(server.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => check::port(port).ok_or(PORT)?,
        None if port.is_empty() => default_port,
        None => return Err(PORT),
    };
    let host = check::host(host).ok_or(HOST)?;
    Ok(Endpoint::Tcp { host, port })
}

fn socket(server: &str, path: &str) -> Result<Endpoint, Expected> {
    let path = PathBuf::from(decode(path)?);
    if !server.is_empty() || !check::is_socket(&path) {
        return Err(SOCKET);
    }
    Ok(Endpoint::Unix(path))
}

fn database(path: &str) -> Result<Option<u32>, Expected> {
    match path.strip_prefix('/') {
        None | Some("") => Ok(None),
        Some(db) => check::db(db).map(Some).ok_or(DB),
    }
}

fn database_of_query(query: &str) -> Result<Option<u32>, Expected> {
    let mut db = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').ok_or(QUERY)? {
            ("db", number) if db.is_none() => db = Some(check::db(number).ok_or(QUERY)?),
            ("protocol", "3" | "resp3") => {}
            _ => return Err(QUERY),
        }
    }
    Ok(db)
}

fn credentials(user_info: Option<&str>) -> Result<(Option<String>, Option<Secret>), Expected> {
    let Some(user_info) = user_info.filter(|text| !text.is_empty()) else {
        return Ok((None, None));
    };
    let (username, password) = user_info.split_once(':').ok_or(USER)?;
    let (username, password) = (decode(username)?, decode(password)?);
    match (username.is_empty(), password.is_empty()) {
        (_, false) => Ok((
            Some(username).filter(|name| !name.is_empty()),
            Some(Secret::new(password)),
        )),
        (true, true) => Ok((None, None)),
        (false, true) => Err(USER),
    }
}

fn decode(text: &str) -> Result<String, Expected> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(ESCAPE)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ESCAPE);
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| ESCAPE)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| ESCAPE)
}

/// The URL as it may be shown, whatever is wrong with it.
///
/// A password can be anywhere in a text that is no URL, so only what cannot be one is kept: the scheme, and what follows the last
/// `@` up to a query.
pub(super) fn masked(url: &str) -> String {
    let is_scheme = |text: &str| {
        [
            "redis",
            "rediss",
            "valkey",
            "valkeys",
            "unix",
            "redis+unix",
            "http",
            "https",
        ]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(text))
    };
    let Some((scheme, rest)) = url
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
    else {
        return Secret::MASK.to_owned();
    };
    let (user_info, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("***@", rest),
        None => ("", rest),
    };
    let (place, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?***"),
        None => (rest, ""),
    };
    if user_info.is_empty() && !is_place(place) {
        return format!("{scheme}://{}", Secret::MASK);
    }
    format!("{scheme}://{user_info}{place}{query}")
}

/// Whether this is a server or a path rather than a user and a password whose host was forgotten.
fn is_place(place: &str) -> bool {
    let after_address = place.rfind(']').map_or(0, |end| end + 1);
    match place[after_address..].split_once(':') {
        Some((_, rest)) => {
            let (port, db) = rest.split_once('/').unwrap_or((rest, ""));
            port.len() <= 5 && (port.bytes().chain(db.bytes())).all(|b| b.is_ascii_digit())
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(
        endpoint: Endpoint,
        username: Option<&str>,
        password: Option<&str>,
        db: u32,
    ) -> Target {
        Target {
            endpoint,
            username: username.map(str::to_owned),
            password: password.map(Secret::new),
            db,
            tls: false,
        }
    }

    #[test]
    fn well_formed() {
        let host = |port| Endpoint::tcp("host", port);
        let socket = || Endpoint::unix("/run/redis.sock");
        for (url, expected) in [
            ("redis://host", target(host(6379), None, None, 0)),
            ("REDIS://host/", target(host(6379), None, None, 0)),
            ("valkey://host:7000/3", target(host(7000), None, None, 3)),
            (
                "redis://host?db=4&protocol=3",
                target(host(6379), None, None, 4),
            ),
            (
                "redis://host/?protocol=resp3",
                target(host(6379), None, None, 0),
            ),
            (
                "redis://[::1]:7000/1",
                target(Endpoint::tcp("::1", 7000), None, None, 1),
            ),
            (
                "redis://[fe80::1]",
                target(Endpoint::tcp("fe80::1", 6379), None, None, 0),
            ),
            ("redis://:pw@host", target(host(6379), None, Some("pw"), 0)),
            ("redis://@host", target(host(6379), None, None, 0)),
            ("redis://:@host", target(host(6379), None, None, 0)),
            (
                "redis://me:a:b@host",
                target(host(6379), Some("me"), Some("a:b"), 0),
            ),
            (
                "redis://me:a@b@host",
                target(host(6379), Some("me"), Some("a@b"), 0),
            ),
            (
                "redis://m%40e:%2F%3f%23%25%C3%A9+@host",
                target(host(6379), Some("m@e"), Some("/?#%é+"), 0),
            ),
            ("unix:///run/redis.sock", target(socket(), None, None, 0)),
            (
                "redis+unix:///run/redis.sock?db=2",
                target(socket(), None, None, 2),
            ),
            (
                "unix://me:pw@/run/redis.sock",
                target(socket(), Some("me"), Some("pw"), 0),
            ),
            (
                "unix:///run/a%20b",
                target(Endpoint::unix("/run/a b"), None, None, 0),
            ),
        ] {
            assert_eq!(parse(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn through_tls() {
        for (url, tls) in [
            ("redis://host:1/2", false),
            ("valkey://host:1/2", false),
            ("rediss://host:1/2", true),
            ("Valkeys://host:1/2", true),
        ] {
            let host = target(Endpoint::tcp("host", 1), None, None, 2);
            assert_eq!(parse(url), Ok(Target { tls, ..host }), "{url}");
        }
        assert_eq!(parse("rediss+unix:///run/x"), Err(FORM));
    }

    #[test]
    fn malformed() {
        for (url, expected) in [
            ("", FORM),
            ("host:6379", FORM),
            ("redis:host", FORM),
            ("http://host", FORM),
            ("redis://ho st", FORM),
            ("redis://host\n", FORM),
            ("redis://host#0", FORM),
            ("redis://", HOST),
            ("redis:///0", HOST),
            ("redis://:6379", HOST),
            ("redis://ho%st", HOST),
            ("redis://[::1", HOST),
            ("redis://[host]", HOST),
            ("redis://host:0", PORT),
            ("redis://host:", PORT),
            ("redis://host:+1", PORT),
            ("redis://host:65536", PORT),
            ("redis://host:port", PORT),
            ("redis://::1", PORT),
            ("redis://[::1]6379", PORT),
            ("redis://host/db", DB),
            ("redis://host/-1", DB),
            ("redis://host/4294967296", DB),
            ("redis://host/0/1", DB),
            ("redis://host/1?db=1", DB),
            ("redis://host?db=x", QUERY),
            ("redis://host?db=1&db=2", QUERY),
            ("redis://host?protocol=2", QUERY),
            ("redis://host?tls=true", QUERY),
            ("redis://host?db", QUERY),
            ("redis://pw@host", USER),
            ("redis://me:@host", USER),
            ("redis://:50%@host", ESCAPE),
            ("redis://:50%off@host", ESCAPE),
            ("redis://:%+1@host", ESCAPE),
            ("redis://:%é@host", ESCAPE),
            ("redis://:%ff@host", ESCAPE),
            ("unix://", SOCKET),
            ("unix:///", SOCKET),
            ("unix://run/redis.sock", SOCKET),
            ("unix:///run/%00", SOCKET),
        ] {
            assert_eq!(parse(url), Err(expected), "{url}");
        }
        let long = format!("unix:///{}", "x".repeat(100));
        assert_eq!(parse(&long), Err(SOCKET));
    }

    #[test]
    fn what_is_shown() {
        for (url, shown) in [
            ("redis://host:6379/x", "redis://***"),
            ("redis://host:70000/0", "redis://host:70000/0"),
            ("redis://host/x", "redis://host/x"),
            ("redis://[::1]:0", "redis://[::1]:0"),
            ("redis://me:pw@host:0/1", "redis://***@host:0/1"),
            ("redis://:p/w?x#y@z@host", "redis://***@host"),
            ("redis://me:pw", "redis://***"),
            ("redis://:12/pw", "redis://***"),
            ("redis://host?password=pw", "redis://host?***"),
            ("redis://host#pw", "redis://host?***"),
            ("rediss://me:pw@host", "rediss://***@host"),
            ("unix://me:pw@/run/x", "unix://***@/run/x"),
            ("me:pw@host", "***"),
            ("pw", "***"),
            ("pw://host", "***"),
        ] {
            assert_eq!(masked(url), shown, "{url}");
        }
    }
}
