//! What each kind of value must look like. The environment, URLs, serde and the builder all ask here.
//!
//! Each kind has a text for errors and for the documentation, and the function that decides.

use std::{net::Ipv6Addr, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Config, Endpoint, Family, ScaleReads, de::Scalar, url};
use crate::namespace::Namespace;

pub(super) const BOOL: &str = "`true` or `false`";
pub(super) const CERT_AND_KEY: &str = "both or none of them: a certificate needs its key";
pub(super) const DB: &str = "the number of a database, such as 0";
pub(super) const DELAY: &str = "milliseconds, or a duration such as 100ms or 1s; 1ms to 1m";
pub(super) const ENDPOINT: &str = "a host with an optional port, such as `a:6379` or `[::1]:6379`";
pub(super) const ENDPOINTS: &str =
    "hosts with an optional port, such as `a:6379,b:6379,[::1]:6379`";
pub(super) const FAMILY: &str = "`4`, `6`, or `0` for both";
pub(super) const HOST: &str = "a host name or an address, without a port";
pub(crate) const INSTANCE: &str = "1 to 128 visible ASCII characters without spaces";
pub(super) const KEEP_ALIVE: &str = "`true`, `false`, or a duration from 1s to 9h";
pub(super) const LANES: &str = "1 to 64";
pub(super) const MASTER: &str = "1 to 128 visible ASCII characters without spaces";
pub(super) const MAX_IN_FLIGHT: &str = "1 to 1048576";
pub(super) const NAMESPACE: &str = "1 to 32 characters of `[a-z0-9-]`";
pub(super) const PASSWORD: &str = "a password that is not empty";
pub(super) const PATH: &str = "the path of a file";
pub(super) const POOL_SIZE: &str = "1 to 1024";
pub(super) const PORT: &str = "a port from 1 to 65535";
pub(super) const READS: &str = "`master`, `slave`, `replica` or `all`";
pub(super) const REDIRECTIONS: &str = "1 to 100";
pub(super) const RETRIES: &str = "0 to 100";
pub(super) const SOCKET: &str = "the absolute path of a socket, at most 100 bytes long";
pub(super) const TIMEOUT: &str = "milliseconds, or a duration such as 250ms, 5s or 2m; 1ms to 24h";
pub(super) const TLS_FEATURE: &str = "a build with the feature `tls` of redis-conn";
pub(super) const TLS_OVER_TCP: &str = "a host: a Unix socket has no TLS";
pub(super) const USERNAME: &str = "the name of an ACL user, together with a password";

/// The shortest length of the address of a Unix socket among the systems that have them is 104, with the final zero.
const MAX_SOCKET_LEN: usize = 100;

pub(super) fn is_host(text: &str) -> bool {
    if text.contains(':') {
        // A link-local address needs the name of its interface.
        let (address, interface) = text.split_once('%').unwrap_or((text, "-"));
        return address.parse::<Ipv6Addr>().is_ok() && is_name(interface);
    }
    text.len() <= 253 && is_name(text)
}

fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.bytes().all(allowed)
}

pub(super) fn is_socket(path: &std::path::Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.is_absolute()
        && path.file_name().is_some()
        && bytes.len() <= MAX_SOCKET_LEN
        && !bytes.contains(&0)
}

pub(super) fn is_timeout(timeout: Duration) -> bool {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    (Duration::from_millis(1)..=DAY).contains(&timeout)
}

/// Systems count this in seconds, in 15 bits.
pub(super) fn is_keep_alive(idle: Duration) -> bool {
    const LONGEST: Duration = Duration::from_secs(9 * 60 * 60);
    (Duration::from_secs(1)..=LONGEST).contains(&idle)
}

/// A call waits this long inside of its deadline, so that hours would be a mistake.
pub(super) fn is_delay(delay: Duration) -> bool {
    (Duration::from_millis(1)..=Duration::from_secs(60)).contains(&delay)
}

pub(super) fn is_redirections(count: u32) -> bool {
    (1..=100).contains(&count)
}

pub(super) fn is_retries(count: u32) -> bool {
    count <= 100
}

pub(super) fn is_name_of_master(text: &str) -> bool {
    is_instance(text)
}

pub(super) fn is_path(path: &std::path::Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    !bytes.is_empty() && !bytes.contains(&0)
}

pub(super) fn is_max_in_flight(commands: usize) -> bool {
    (1..=1_048_576).contains(&commands)
}

pub(super) fn is_pool_size(connections: u32) -> bool {
    (1..=1_024).contains(&connections)
}

pub(super) fn is_lanes(lanes: usize) -> bool {
    (1..=64).contains(&lanes)
}

pub(crate) fn is_instance(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

pub(super) fn host(text: &str) -> Option<String> {
    is_host(text).then(|| text.to_owned())
}

pub(super) fn port(text: &str) -> Option<u16> {
    number(text).filter(|port| *port != 0)
}

pub(super) fn db(text: &str) -> Option<u32> {
    number(text)
}

/// `parse` alone takes a leading plus.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then_some(text)?
        .parse()
        .ok()
}

pub(super) fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

pub(super) fn path(text: &str) -> Option<PathBuf> {
    Some(text.into())
}

pub(super) fn reads(text: &str) -> Option<ScaleReads> {
    match text.to_ascii_lowercase().as_str() {
        "master" | "primary" => Some(ScaleReads::Primary),
        "slave" | "replica" => Some(ScaleReads::Replica),
        "all" | "any" => Some(ScaleReads::Any),
        _ => None,
    }
}

pub(super) fn family(text: &str) -> Option<Family> {
    match text {
        "0" => Some(Family::Any),
        "4" => Some(Family::V4),
        "6" => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn redirections(text: &str) -> Option<u32> {
    number(text).filter(|count| is_redirections(*count))
}

pub(super) fn retries(text: &str) -> Option<u32> {
    number(text).filter(|count| is_retries(*count))
}

pub(super) fn delay(text: &str) -> Option<Duration> {
    duration(text).filter(|delay| is_delay(*delay))
}

pub(super) fn nodes(text: &str) -> Option<Vec<Endpoint>> {
    let node = |node: &str| url::host_and_port(node.trim(), Endpoint::DEFAULT_PORT).ok();
    text.split(',').map(node).collect()
}

pub(super) fn master(text: &str) -> Option<String> {
    is_name_of_master(text).then(|| text.to_owned())
}

pub(super) fn flag(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => text.to_ascii_lowercase().parse().ok(),
    }
}

pub(super) fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let millis_per_unit = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let count: u64 = count.parse().ok()?;
    count
        .checked_mul(millis_per_unit)
        .map(Duration::from_millis)
}

pub(super) fn timeout(text: &str) -> Option<Duration> {
    duration(text).filter(|timeout| is_timeout(*timeout))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Scalar")]
pub(super) enum KeepAlive {
    Off,
    After(Duration),
}

impl From<KeepAlive> for Option<Duration> {
    fn from(keep_alive: KeepAlive) -> Self {
        match keep_alive {
            KeepAlive::Off => None,
            KeepAlive::After(idle) => Some(idle),
        }
    }
}

pub(super) fn keep_alive(text: &str) -> Option<KeepAlive> {
    match flag(text) {
        Some(on) => Some(on.into()),
        None => duration(text)
            .filter(|idle| is_keep_alive(*idle))
            .map(KeepAlive::After),
    }
}

impl From<bool> for KeepAlive {
    fn from(on: bool) -> Self {
        if on {
            Self::After(Config::KEEP_ALIVE)
        } else {
            Self::Off
        }
    }
}

pub(super) fn namespace(text: &str) -> Option<String> {
    Namespace::new(text).ok().map(|_| text.to_owned())
}

pub(super) fn instance(text: &str) -> Option<String> {
    is_instance(text).then(|| text.to_owned())
}
