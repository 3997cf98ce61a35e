//! The address of the client behind proxies.

use std::net::IpAddr;

use http::request::Parts;

use super::{Cidr, ForwardedFrom, Key, KeyError, KeyExtractor, peer, prefix::Prefixes};

/// No request comes by a longer way; what is further to the left is not looked at.
const MAX_HOPS: usize = 64;

/// The address of the client, where the peer is a proxy: each proxy appends the address that it was called from to
/// `X-Forwarded-For` or to [another header](Self::header).
///
/// The way back begins at the peer, as [`PeerIp`](super::PeerIp) knows it, and goes through the entries of all lines of the
/// header from right to left, over the proxies, to the first address that is no proxy's. What is further to the left was
/// written by who knows whom, and never counts. So
/// - the header of a peer that is no proxy is ignored, and the peer is the client;
/// - if the next entry is missing, no address (`unknown`, `_hidden`) or garbage, the key is the last address that is known, which
///   is a proxy's: those clients share it;
/// - where the server does not tell the peer, there is no key.
///
/// Have the first proxy drop what clients send in the *other* headers of this kind, if anything behind reads them.
///
/// ```
/// use tower_ratelimit_redis::key::{Cidr, ClientIp, ForwardedFrom};
///
/// // Load balancers that have a network of their own.
/// let balancers: Cidr = "10.1.0.0/16".parse()?;
/// let _ = ClientIp::behind([balancers]);
/// // Always two proxies, whatever their addresses are.
/// let _ = ClientIp::hops(2).header(ForwardedFrom::Forwarded);
/// # Ok::<(), tower_ratelimit_redis::key::CidrError>(())
/// ```
///
/// An address counts with its network, and its subject is that of [`PeerIp`](super::PeerIp): `ip:192.0.2.1` or `ip:2001:db8::`.
#[derive(Clone, Debug)]
pub struct ClientIp {
    proxies: Proxies,
    source: ForwardedFrom,
    prefixes: Prefixes,
}

#[derive(Clone, Debug)]
enum Proxies {
    In(Vec<Cidr>),
    Count(usize),
}

impl Proxies {
    /// Whether this address, so many hops from the peer, is one of them.
    fn have(&self, hop: usize, ip: IpAddr) -> bool {
        match self {
            Self::In(ranges) => Cidr::any_contains(ranges, ip),
            Self::Count(count) => hop < *count,
        }
    }
}

impl ClientIp {
    /// The proxies are in these ranges, and nobody else is: a client whose address is in one of them can pretend to be any other.
    pub fn behind(proxies: impl IntoIterator<Item = Cidr>) -> Self {
        Self::new(Proxies::In(proxies.into_iter().collect()))
    }

    /// Every request passes so many proxies. With 1 the client is the last entry, with 2 the last but one; with 0 it is the peer.
    ///
    /// A client that finds a shorter way can pretend to be any other: use it where there is none.
    ///
    /// # Panics
    ///
    /// If `proxies` is more than 64.
    #[must_use]
    pub fn hops(proxies: usize) -> Self {
        assert!(
            proxies <= MAX_HOPS,
            "{proxies} hops, expected at most {MAX_HOPS}"
        );
        Self::new(Proxies::Count(proxies))
    }

    fn new(proxies: Proxies) -> Self {
        Self {
            proxies,
            source: ForwardedFrom::default(),
            prefixes: Prefixes::default(),
        }
    }

    /// Where the proxies write the addresses; [`ForwardedFrom::XForwardedFor`] if not set.
    #[must_use]
    pub fn header(mut self, source: ForwardedFrom) -> Self {
        self.source = source;
        self
    }

    /// All IPv4 addresses that have the first `bits` in common share one key; 32, each by itself, if not set.
    ///
    /// # Panics
    ///
    /// If `bits` is not 1 to 32.
    #[must_use]
    pub fn ipv4_prefix(mut self, bits: u8) -> Self {
        self.prefixes = self.prefixes.ipv4(bits);
        self
    }

    /// All IPv6 addresses that have the first `bits` in common share one key; 64 if not set.
    ///
    /// # Panics
    ///
    /// If `bits` is not 1 to 128.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.prefixes = self.prefixes.ipv6(bits);
        self
    }

    /// The address itself, of which the key has the network.
    pub(crate) fn address(&self, parts: &Parts) -> Option<IpAddr> {
        let mut known = peer::address(parts)?;
        let mut entries = self.source.addresses(&parts.headers);
        for hop in 0..MAX_HOPS {
            if !self.proxies.have(hop, known) {
                break;
            }
            // An entry that names nobody ends the way: to pass over it would be to believe whoever wrote the one before.
            let Some(Some(ip)) = entries.next() else {
                break;
            };
            known = ip.to_canonical();
        }
        Some(known)
    }
}

impl KeyExtractor for ClientIp {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        Ok(self.address(parts).map(|ip| self.prefixes.key(ip)))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::key::PeerAddr;

    fn behind(ranges: &[&str]) -> ClientIp {
        ClientIp::behind(ranges.iter().map(|range| range.parse().unwrap()))
    }

    fn client(rule: &ClientIp, peer: &str, line: &str) -> String {
        let mut request = Request::builder().header("x-forwarded-for", line);
        let extensions = request.extensions_mut().unwrap();
        extensions.insert(PeerAddr((peer.parse::<IpAddr>().unwrap(), 1).into()));
        let (parts, ()) = request.body(()).unwrap().into_parts();
        rule.address(&parts).unwrap().to_string()
    }

    #[test]
    fn nobody_is_a_proxy_of_none() {
        for rule in [behind(&[]), ClientIp::hops(0)] {
            assert_eq!(client(&rule, "10.0.0.1", "192.0.2.1"), "10.0.0.1");
        }
    }

    #[test]
    fn a_hop_is_counted_from_the_peer() {
        let line = "192.0.2.3, 192.0.2.2, 192.0.2.1";
        for (hops, ip) in [
            (1, "192.0.2.1"),
            (2, "192.0.2.2"),
            (3, "192.0.2.3"),
            (4, "192.0.2.3"),
        ] {
            assert_eq!(client(&ClientIp::hops(hops), "10.0.0.1", line), ip);
        }
    }

    #[test]
    fn mapped_addresses_are_proxies_and_clients_too() {
        let rule = behind(&["10.0.0.0/8"]);
        let line = "::ffff:192.0.2.1, ::ffff:10.0.0.2";
        assert_eq!(client(&rule, "::ffff:10.0.0.1", line), "192.0.2.1");
    }

    #[test]
    fn no_more_than_64_entries_are_looked_at() {
        let rule = behind(&["10.0.0.0/8"]);
        let way = |proxies| format!("192.0.2.1{}", ", 10.0.0.2".repeat(proxies));
        assert_eq!(client(&rule, "10.0.0.1", &way(63)), "192.0.2.1");
        assert_eq!(client(&rule, "10.0.0.1", &way(64)), "10.0.0.2");
        assert_eq!(
            client(&ClientIp::hops(64), "10.0.0.1", &way(63)),
            "192.0.2.1"
        );
    }

    #[test]
    #[should_panic(expected = "65 hops, expected at most 64")]
    fn more_hops_than_are_looked_at_are_refused() {
        let _ = ClientIp::hops(65);
    }

    #[test]
    fn without_a_peer_there_is_no_client() {
        let request = Request::builder().header("x-forwarded-for", "192.0.2.1");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(ClientIp::hops(1).address(&parts), None);
    }
}
