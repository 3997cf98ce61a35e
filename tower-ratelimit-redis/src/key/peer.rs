//! The address of the peer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Once,
};

use http::request::Parts;

use super::{Key, KeyError, KeyExtractor, prefix::Prefixes};
use crate::trace::event;

/// The address of the other end of the connection, as a request extension: how a server that is not axum's tells [`PeerIp`]
/// and [`ClientIp`](super::ClientIp).
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
/// `into_make_service_with_connect_info` provides. Behind a proxy this is the proxy's address; [`ClientIp`](super::ClientIp) is
/// the client's.
///
/// An IPv6 address counts with its whole /64 network, since that is what a subscriber gets; an IPv4 address mapped to IPv6 is
/// the IPv4 address. The subject, for [`peek`](crate::Limiter::peek) and [`reset`](crate::Limiter::reset), is `ip:192.0.2.1` or
/// `ip:2001:db8::` (the first address of the network); with another prefix than the default it has its length,
/// `ip:2001:db8::/48`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PeerIp {
    prefixes: Prefixes,
}

impl PeerIp {
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
}

impl KeyExtractor for PeerIp {
    async fn extract(&self, parts: &mut Parts) -> Result<Option<Key>, KeyError> {
        Ok(address(parts).map(|ip| self.prefixes.key(ip)))
    }
}

/// The address of the peer, if the server tells it.
pub(super) fn address(parts: &Parts) -> Option<IpAddr> {
    let own = parts.extensions.get::<PeerAddr>().map(|peer| peer.0);
    #[cfg(feature = "axum")]
    let own = own.or_else(|| {
        let info = parts
            .extensions
            .get::<axum::extract::ConnectInfo<SocketAddr>>();
        info.map(|info| info.0)
    });
    if own.is_none() {
        report_missing();
    }
    own.map(|peer| peer.ip().to_canonical())
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
