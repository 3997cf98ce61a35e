//! The files of a TLS configuration.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::refusal;
use crate::{Tls, redis::fault::Failure};

/// The authorities of a whole system are a fraction of this.
const LONGEST: u64 = 8 * 1024 * 1024;

/// What the files hold.
pub(super) struct Files {
    pub(super) authorities: Option<RootCertStore>,
    pub(super) identity: Option<Identity>,
}

/// Our own certificate, those that lead from it to an authority, and its key.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

pub(super) async fn read(tls: &Tls) -> Result<Files, Failure> {
    let tls = tls.clone();
    // A file can be on a disk that is slow or away.
    let read = tokio::task::spawn_blocking(move || {
        Ok(Files {
            authorities: tls.authorities().map(authorities).transpose()?,
            identity: tls.identity().map(identity).transpose()?,
        })
    });
    let unread = |ended| Err(refusal::with_cause("the files of TLS were not read", ended));
    read.await.unwrap_or_else(unread)
}

fn authorities(path: &Path) -> Result<RootCertStore, Failure> {
    let file = PemFile::new("tls.ca_file", path, "certificates");
    let mut store = RootCertStore::empty();
    // Bundles hold certificates of odd kinds; those that are of use suffice.
    let (added, _) = store.add_parsable_certificates(file.certificates()?);
    match added {
        0 => Err(file.unusable(io::Error::other("no certificate in it is of use"))),
        _ => Ok(store),
    }
}

fn identity((cert, key): (&Path, &Path)) -> Result<Identity, Failure> {
    let chain = PemFile::new("tls.cert_file", cert, "certificates").certificates()?;
    let file = PemFile::new("tls.key_file", key, "a private key without a passphrase");
    let key = PrivateKeyDer::from_pem_slice(&file.read()?);
    Ok(Identity {
        chain,
        key: key.map_err(|_| file.unusable(io::Error::other("no private key was found in it")))?,
    })
}

/// A file, the field that names it, and what it must hold.
struct PemFile<'a> {
    field: &'static str,
    path: &'a Path,
    expected: &'static str,
}

impl<'a> PemFile<'a> {
    fn new(field: &'static str, path: &'a Path, expected: &'static str) -> Self {
        Self {
            field,
            path,
            expected,
        }
    }

    fn read(&self) -> Result<Vec<u8>, Failure> {
        read_bytes(self.path).map_err(|error| self.unusable(error))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Failure> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        match read {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            _ => Err(self.unusable(io::Error::other("no certificate was found in it"))),
        }
    }

    fn unusable(&self, cause: io::Error) -> Failure {
        let Self {
            field,
            path,
            expected,
        } = self;
        let text = format!("{field}={path:?}: expected a file that holds {expected}, in PEM");
        refusal::with_cause(text, cause)
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path)?
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)?;
    match read as u64 {
        0 => Err(io::Error::other("it is empty")),
        length if length > LONGEST => Err(io::Error::other("it is longer than 8 MiB")),
        _ => Ok(bytes),
    }
}
