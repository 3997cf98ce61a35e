//! Certificates of one's own.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// An authority that nobody but the test trusts. What it issues are PEM files in a temporary
/// directory, which lasts as long as anything that was made with it.
#[derive(Debug)]
pub struct Authority {
    dir: Arc<TempDir>,
    issuer: Issuer<'static, KeyPair>,
    issued: AtomicUsize,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Certificate {
    dir: Arc<TempDir>,
    name: String,
}

impl Authority {
    /// Makes an authority with a key of its own.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("testkit-certs-").tempdir();
        let dir = dir.expect("the temporary directory is writable");
        let key = new_key();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "testkit authority");
        let own = params.self_signed(&key).expect("an authority signs itself");
        write(&dir.path().join("ca.pem"), &own.pem());
        Self {
            dir: Arc::new(dir),
            issuer: Issuer::new(params, key),
            issued: AtomicUsize::new(0),
        }
    }

    /// The authority's own certificate, which is what clients and servers trust.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for a server with these names, each a host's name or an IP address.
    pub fn server(&self, names: &[&str]) -> Certificate {
        self.issue(params(names, ExtendedKeyUsagePurpose::ServerAuth))
    }

    /// As [`server`](Self::server), but one who shows it may be the client of another server too: the nodes of
    /// a cluster want that of each other.
    pub fn peer(&self, names: &[&str]) -> Certificate {
        let mut params = params(names, ExtendedKeyUsagePurpose::ServerAuth);
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        params.extended_key_usages.push(client);
        self.issue(params)
    }

    /// As [`server`](Self::server), but it expired years ago.
    pub fn expired_server(&self, names: &[&str]) -> Certificate {
        let mut params = params(names, ExtendedKeyUsagePurpose::ServerAuth);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
        self.issue(params)
    }

    /// A certificate for a client called `name`.
    pub fn client(&self, name: &str) -> Certificate {
        let mut params = params(&[], ExtendedKeyUsagePurpose::ClientAuth);
        params.distinguished_name.push(DnType::CommonName, name);
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Certificate {
        let key = new_key();
        let signed = params.signed_by(&key, &self.issuer);
        let certificate = Certificate {
            dir: Arc::clone(&self.dir),
            name: format!("{}", self.issued.fetch_add(1, Ordering::Relaxed)),
        };
        let pem = signed.expect("an authority signs").pem();
        write(&certificate.cert_file(), &pem);
        write(&certificate.key_file(), &key.serialize_pem());
        certificate
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificate {
    /// The certificate.
    pub fn cert_file(&self) -> PathBuf {
        self.file("cert")
    }

    /// Its private key.
    pub fn key_file(&self) -> PathBuf {
        self.file("key")
    }

    /// The certificate of the authority that issued it.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn file(&self, what: &str) -> PathBuf {
        self.dir.path().join(format!("{}-{what}.pem", self.name))
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system has randomness")
}

fn params(names: &[&str], purpose: ExtendedKeyUsagePurpose) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("each name is a host's or an address");
    params.extended_key_usages = vec![purpose];
    params
}

fn write(path: &Path, pem: &str) {
    std::fs::write(path, pem).expect("the temporary directory is writable");
}
