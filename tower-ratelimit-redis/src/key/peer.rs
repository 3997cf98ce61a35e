//! The address of the peer.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Once,
};

use http::request::Parts;

use super::{Key, KeyError, KeyExtractor};
use crate::trace::event;

/// The address of the other end of the connection, as a request extension: how a server that is not axum's tells [`PeerIp`].
///
/// ```
/// use std::net::SocketAddr;
/// use tower_ratelimit_redis::key::PeerAddr;
///
/// # let remote: SocketAddr = "192.0.2.1:1024".parse().unwrap();
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(PeerAddr(remote));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// The address of the peer: that of [`PeerAddr`] or, with the feature `axum`, of `ConnectInfo<SocketAddr>`, which
/// `into_make_service_with_connect_info` provides. Behind a proxy this is the proxy's address.
///
/// An IPv6 address counts with its whole /64 network, since that is what a subscriber gets; an IPv4 address mapped to IPv6 is
/// the IPv4 address. The subject, for [`peek`](crate::Limiter::peek) and [`reset`](crate::Limiter::reset), is `ip:192.0.2.1` or
/// `ip:2001:db8::` (the first address of the network).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PeerIp {}

impl KeyExtractor for PeerIp {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        let address = address(parts);
        if address.is_none() {
            report_missing();
        }
        Ok(address.map(|ip| Key::from(format!("ip:{}", network(ip)))))
    }
}

/// Says once that the server does not tell addresses: what is missing in one request is missing in all.
fn report_missing() {
    static REPORTED: Once = Once::new();
    REPORTED.call_once(|| {
        event!(
            warn,
            "a request without the address of its peer: expected the extension PeerAddr or, with the feature \"axum\", ConnectInfo<SocketAddr>"
        );
    });
}

fn address(parts: &Parts) -> Option<IpAddr> {
    let own = parts.extensions.get::<PeerAddr>().map(|peer| peer.0);
    #[cfg(feature = "axum")]
    let own = own.or_else(|| {
        let info = parts
            .extensions
            .get::<axum::extract::ConnectInfo<SocketAddr>>();
        info.map(|info| info.0)
    });
    own.map(|peer| peer.ip())
}

fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_counts_with_what_its_subscriber_has() {
        let network = |ip: &str| network(ip.parse().unwrap()).to_string();
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("2001:db8:1:2::9"), "2001:db8:1:2::");
        assert_ne!(network("2001:db8:1:3::9"), "2001:db8:1:2::");
    }
}
