//! A server that speaks TLS as well.

use std::net::{Ipv4Addr, SocketAddr};

use super::RedisServer;
use crate::certs::Certificate;

#[derive(Debug)]
pub(super) struct Tls {
    pub(super) port: u16,
    pub(super) certificate: Certificate,
}

impl Tls {
    pub(super) fn conf(&self, client_auth: bool) -> String {
        let client_auth = if client_auth { "yes" } else { "no" };
        format!(
            "tls-port {}\ntls-cert-file \"{}\"\ntls-key-file \"{}\"\ntls-ca-cert-file \"{}\"\n\
             tls-auth-clients {client_auth}",
            self.port,
            self.certificate.cert_file().display(),
            self.certificate.key_file().display(),
            self.certificate.ca_file().display(),
        )
    }
}

impl RedisServer {
    /// The port that the members of a group, and its clients, use: with TLS they use nothing else.
    pub(crate) fn group_port(&self) -> u16 {
        self.tls.as_ref().map_or(self.port, |tls| tls.port)
    }

    /// The address with that port.
    pub(crate) fn group_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.group_port()).into()
    }

    /// The port that speaks TLS.
    ///
    /// # Panics
    ///
    /// Unless [`RedisServerBuilder::tls`](super::RedisServerBuilder::tls) asked for one.
    pub fn tls_port(&self) -> u16 {
        let tls = self.tls.as_ref();
        tls.expect("only a server that was built with tls() has a TLS port")
            .port
    }

    /// The URL to connect to with TLS, with the present password in it. `host` is the name that the
    /// certificate is checked against: one of 127.0.0.1.
    pub fn tls_url(&self, host: &str) -> String {
        format!("rediss://{}{host}:{}", self.userinfo(), self.tls_port())
    }
}
