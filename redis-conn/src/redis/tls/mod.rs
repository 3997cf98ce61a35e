//! TLS below a connection.
//!
//! The files are read at every dial, so that a certificate is renewed by writing a file.

mod files;
mod refusal;
mod unverified;
mod watch;

use std::sync::Arc;

use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
        client::WantsClientCert,
        crypto::{CryptoProvider, ring},
        pki_types::ServerName,
    },
};

use self::{files::Identity, unverified::Unverified, watch::Watched};
use super::{
    fault::Failure,
    socket::{BoxSocket, Ending},
};
use crate::{Tls, config::Endpoint};

/// Encrypts a connection to `endpoint`, and tells in `ending` why the server ends it if it says so.
pub(super) async fn secure(
    tls: &Tls,
    endpoint: &Endpoint,
    socket: BoxSocket,
    ending: &Ending,
) -> Result<BoxSocket, Failure> {
    let name = server_name(tls, endpoint)?;
    let config = Arc::new(client_config(tls).await?);
    let stream = TlsConnector::from(config).connect(name, socket).await;
    let stream = stream.map_err(refusal::of_handshake)?;
    Ok(Box::pin(Watched::new(stream, ending.clone())))
}

/// The name or address that the certificate must be for.
fn server_name(tls: &Tls, endpoint: &Endpoint) -> Result<ServerName<'static>, Failure> {
    let name = match (tls.expected_name(), endpoint) {
        (Some(name), _) => name,
        (None, Endpoint::Tcp { host, .. }) => host,
        (None, Endpoint::Unix(_)) => return Err(Failure::config("a Unix socket has no TLS")),
    };
    // No certificate is for one interface of a link-local address.
    let (name, _) = name.split_once('%').unwrap_or((name, ""));
    ServerName::try_from(name.to_owned()).map_err(|_| {
        Failure::config("TLS needs a host name or an address that a certificate can be for")
    })
}

async fn client_config(tls: &Tls) -> Result<ClientConfig, Failure> {
    let files = files::read(tls).await?;
    let provider = Arc::new(ring::default_provider());
    let verified = match files.authorities {
        _ if !tls.rejects_unauthorized() => unverified(&provider)?,
        Some(authorities) => builder(&provider)?.with_root_certificates(authorities),
        None => builder(&provider)?.with_root_certificates(public_authorities()),
    };
    identified(verified, files.identity)
}

fn builder(
    provider: &Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Failure> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| refusal::of_tls(&error))
}

fn unverified(
    provider: &Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Failure> {
    unverified::warn_once();
    let verifier = Arc::new(Unverified::new(provider));
    let builder = builder(provider)?.dangerous();
    Ok(builder.with_custom_certificate_verifier(verifier))
}

/// Built in: the list of the system would have to be read from the disk at every dial.
fn public_authorities() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

fn identified(
    verified: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: Option<Identity>,
) -> Result<ClientConfig, Failure> {
    let Some(Identity { chain, key }) = identity else {
        return Ok(verified.with_no_client_auth());
    };
    verified.with_client_auth_cert(chain, key).map_err(|error| {
        let text = "tls.cert_file and tls.key_file: expected a certificate and its private key";
        refusal::with_cause(text, error)
    })
}
