//! Why there is no TLS connection.
//!
//! What a certificate says is not repeated: health answers show these texts.

use std::{error::Error as StdError, io};

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::{
    Error, ErrorKind,
    redis::fault::{Failure, Fault},
};

/// Something must be changed on one of the two sides.
pub(super) fn with_cause(
    text: impl Into<String>,
    cause: impl StdError + Send + Sync + 'static,
) -> Failure {
    let error = Error::new(ErrorKind::Config, text).with_source(cause);
    Failure::new(Fault::Credentials, error)
}

pub(super) fn of_handshake(error: io::Error) -> Failure {
    if let Some(cause) = cause(&error) {
        return of_tls(cause);
    }
    let text = "the connection ended during the TLS handshake";
    let error = Error::new(ErrorKind::Unavailable, text).with_source(error);
    Failure::new(Fault::Away, error)
}

/// What the peer said when it ended a connection, if it said why.
pub(super) fn of_ending(error: &io::Error) -> Option<Failure> {
    match cause(error)? {
        cause @ TlsError::AlertReceived(_) => Some(of_tls(cause)),
        _ => None,
    }
}

fn cause(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

pub(super) fn of_tls(error: &TlsError) -> Failure {
    match error {
        TlsError::InvalidCertificate(cause) => of_certificate(cause),
        TlsError::AlertReceived(alert) => of_alert(*alert),
        TlsError::InvalidMessage(_) => {
            Failure::config("the server does not speak TLS on this port, expected one that does")
        }
        TlsError::PeerIncompatible(_) => Failure::config(
            "the server and we have no version or cipher of TLS 1.2 and 1.3 in common",
        ),
        other => with_cause("the TLS handshake failed", other.clone()),
    }
}

fn of_certificate(cause: &CertificateError) -> Failure {
    use CertificateError as Cause;
    let wrong = match cause {
        Cause::Expired | Cause::ExpiredContext { .. } => "has expired",
        Cause::NotValidYet | Cause::NotValidYetContext { .. } => "is not valid yet",
        Cause::NotValidForName | Cause::NotValidForNameContext { .. } => {
            "is for another name, expected the host that is dialled or the server name of the configuration"
        }
        // An authority that was made anew has the name of the old one: then it is the signature that does not fit.
        Cause::UnknownIssuer | Cause::BadSignature => {
            "is of an unknown issuer, expected an authority of tls.ca_file, or a public one without that"
        }
        Cause::InvalidPurpose | Cause::InvalidPurposeContext { .. } => "is not one for servers",
        other => {
            let cause = TlsError::InvalidCertificate(other.clone());
            return with_cause("the certificate of the server is not valid", cause);
        }
    };
    Failure::config(format!("the certificate of the server {wrong}"))
}

fn of_alert(alert: AlertDescription) -> Failure {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => Failure::config(
            "the server wants a certificate of ours, expected tls.cert_file and tls.key_file",
        ),
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::DecryptError
        | Alert::AccessDenied => Failure::config(format!(
            "the server refused our certificate ({alert:?}), expected one in tls.cert_file that it trusts"
        )),
        // TLS 1.2 has no word of its own for a certificate that is missing.
        Alert::HandshakeFailure => Failure::config(
            "the server refused the TLS handshake: it wants a certificate of ours, or a cipher that we do not have",
        ),
        Alert::InternalError | Alert::UserCanceled | Alert::CloseNotify => {
            Failure::away(format!("the server ended the TLS connection ({alert:?})"))
        }
        _ => Failure::config(format!("the server refused the TLS handshake ({alert:?})")),
    }
}
