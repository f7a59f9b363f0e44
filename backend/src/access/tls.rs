//! TLS of a listener, from files.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, CertificateError, RootCertStore, ServerConfig};

use super::AccessError;
use super::reload::Reloaded;
use crate::config::{ListenerName, ListenerTls};
use crate::telemetry::chain;

/// What a connection that begins now speaks.
pub(super) type Tls = Reloaded<ServerConfig>;

/// TLS of this listener; none if it has no certificate.
pub(super) fn open(listener: ListenerName, config: &ListenerTls) -> Result<Option<Tls>, AccessError> {
    let (cert_file, key_file) = match (&config.cert_file, &config.key_file) {
        (Some(cert_file), Some(key_file)) => (cert_file.clone(), key_file.clone()),
        (None, None) if config.client_ca_file.is_none() => return Ok(None),
        _ => return Err(AccessError::HalfACertificate { listener: listener.as_str() }),
    };
    let client_ca_file = config.client_ca_file.clone();
    let mut files = vec![cert_file.clone(), key_file.clone()];
    files.extend(client_ca_file.clone());
    let read = move || server_config(listener, &cert_file, &key_file, client_ca_file.as_deref());
    Reloaded::new(files, read).map(Some)
}

fn server_config(
    listener: ListenerName,
    cert_file: &Path,
    key_file: &Path,
    client_ca_file: Option<&Path>,
) -> Result<ServerConfig, AccessError> {
    let provider = Arc::new(ring::default_provider());
    let unusable = |path: &Path, source| AccessError::Unusable { path: path.to_owned(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|source| unusable(cert_file, source))?;
    let builder = match client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|source| unusable(path, source))?;
            }
            // A client may come without a certificate: it is answered where probes are, and told elsewhere what is missing.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|source| AccessError::Authorities { path: path.to_owned(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|source| AccessError::Pem {
        what: "private key",
        path: key_file.to_owned(),
        source,
    })?;
    let mut config =
        builder.with_single_cert(certificates(cert_file)?, key).map_err(|source| unusable(cert_file, source))?;
    config.alpn_protocols = match listener {
        ListenerName::OtlpGrpc => vec![b"h2".to_vec()],
        ListenerName::Api | ListenerName::OtlpHttp => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let unreadable = |source| AccessError::Pem { what: "certificate", path: path.to_owned(), source };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(unreadable(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// Why a handshake failed, in words that say whose certificate is meant.
pub(super) fn why_it_failed(error: &io::Error) -> String {
    use AlertDescription::{BadCertificate, CertificateExpired, CertificateUnknown, UnknownCA};
    let of_tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let known = match of_tls {
        Some(rustls::Error::AlertReceived(CertificateExpired)) => {
            Some("the client says that this listener's certificate has expired")
        }
        Some(rustls::Error::AlertReceived(UnknownCA | BadCertificate | CertificateUnknown)) => {
            Some("the client does not trust this listener's certificate")
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Some("the client's certificate has expired"),
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            Some("the client's certificate is of no authority in client_ca_file")
        }
        _ => None,
    };
    known.map_or_else(|| chain(error), str::to_owned)
}
