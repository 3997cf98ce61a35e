//! How a connection is encrypted.

use std::path::{Path, PathBuf};

/// How a server proves who it is, and we to it. The files are read anew whenever a connection is made, so that they can be renewed
/// without a restart.
///
/// ```
/// use redis_conn::Tls;
///
/// let tls = Tls::new().ca_file("/etc/redis/ca.pem").server_name("redis.internal");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Tls {
    server_name: Option<String>,
    reject_unauthorized: bool,
    ca_file: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            server_name: None,
            reject_unauthorized: true,
            ca_file: None,
            client_certificate: None,
        }
    }
}

impl Tls {
    /// The server must have a certificate for the host that is dialled, from one of the public authorities that Mozilla trusts. They
    /// are built in: those of the system are not looked at.
    pub fn new() -> Self {
        Self::default()
    }

    /// The name or address that the certificate must be for, where it is not the host that is dialled.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Whether a server without a valid certificate is refused; `true` if not set. With `false` whoever stands in between can read
    /// and change everything.
    pub fn reject_unauthorized(mut self, reject: bool) -> Self {
        self.reject_unauthorized = reject;
        self
    }

    /// The authorities to trust instead of the public ones, in PEM.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Our own certificate and its key, in PEM, for servers that ask for one.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_certificate = Some((cert.into(), key.into()));
        self
    }
}

/// For the one who dials.
#[cfg_attr(
    not(feature = "tls"),
    allow(dead_code, reason = "only a dialer that speaks TLS asks")
)]
impl Tls {
    pub(crate) fn expected_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    pub(crate) fn rejects_unauthorized(&self) -> bool {
        self.reject_unauthorized
    }

    pub(crate) fn authorities(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// The certificate and its key.
    pub(crate) fn identity(&self) -> Option<(&Path, &Path)> {
        let (cert, key) = self.client_certificate.as_ref()?;
        Some((cert, key))
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let identity = self.identity();
        [
            ("tls.ca_file", self.authorities()),
            ("tls.cert_file", identity.map(|(cert, _)| cert)),
            ("tls.key_file", identity.map(|(_, key)| key)),
        ]
        .into_iter()
        .filter_map(|(field, path)| Some((field, path?)))
    }
}
