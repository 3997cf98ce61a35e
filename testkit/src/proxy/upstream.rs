//! Where a proxy leads to.

use std::net::SocketAddr;

use crate::RedisServer;

/// What a proxy is in front of: an address, or a server and what one logs in to it with.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub(super) addr: SocketAddr,
    /// What comes before the host in a URL.
    pub(super) userinfo: String,
}

impl From<SocketAddr> for Upstream {
    fn from(addr: SocketAddr) -> Self {
        Self {
            addr,
            userinfo: String::new(),
        }
    }
}

impl From<&RedisServer> for Upstream {
    fn from(server: &RedisServer) -> Self {
        Self {
            addr: server.addr(),
            userinfo: server.userinfo(),
        }
    }
}
