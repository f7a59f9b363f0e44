//! TLS to an endpoint.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
};

use super::watched::Watched;

/// Whom to trust, and who we are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsSettings {
    /// PEM file of the authorities that are trusted; absent, those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate and those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub key_file: Option<PathBuf>,
    /// Name that the endpoint's certificate must have; absent, the host in the endpoint's URL.
    pub server_name: Option<String>,
    /// Trust any certificate: whoever is between can read and change everything.
    pub insecure_skip_verify: bool,
}

/// Why TLS cannot be spoken as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or has not what it should.
    #[error("cannot read {what} from {}", path.display())]
    File {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it was not found.
        #[source]
        source: pem::Error,
    },
    /// There is nothing in the file.
    #[error("there is no certificate in {}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// No authority is known.
    #[error("the system has no certificates of authorities; name a file in `tls.ca_file`")]
    NoAuthorities,
    /// Half of a client certificate.
    #[error("`tls.cert_file` and `tls.key_file` belong together: only one of them is given")]
    HalfACertificate,
    /// Not a name.
    #[error("`{name}` is no name that a certificate can have")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        #[source]
        source: InvalidDnsNameError,
    },
    /// Certificate and key cannot be used.
    #[error("certificates or keys cannot be used")]
    Unusable(#[source] RustlsError),
}

/// TLS to one endpoint. Files are read again when they change, for the next connection.
#[derive(Debug)]
pub(super) struct Tls {
    settings: TlsSettings,
    name: ServerName<'static>,
    /// What is spoken inside, as ALPN calls it.
    protocol: &'static str,
    config: Watched<Arc<ClientConfig>>,
}

impl Tls {
    /// Fails if a connection could not be made now because of what is configured.
    pub(super) fn new(settings: &TlsSettings, host: &str, protocol: &'static str) -> Result<Self, TlsError> {
        let name = settings.server_name.as_deref().unwrap_or(host);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let name =
            ServerName::try_from(name.to_owned()).map_err(|source| TlsError::Name { name: name.to_owned(), source })?;
        let files = [&settings.ca_file, &settings.cert_file, &settings.key_file];
        let files = files.into_iter().flatten().cloned().collect();
        let tls = Self { settings: settings.clone(), name, protocol, config: Watched::new(files) };
        tls.config()?;
        Ok(tls)
    }

    /// The name that the certificate must have.
    pub(super) fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// What a connection is begun with.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        self.config.get(|| self.read())
    }

    fn read(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let TlsSettings { ca_file, cert_file, key_file, server_name: _, insecure_skip_verify } = &self.settings;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Unusable)?;
        let builder = if *insecure_skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)))
        } else {
            builder.with_root_certificates(authorities(ca_file.as_ref())?)
        };
        let mut config = match (cert_file, key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert_file), Some(key_file)) => {
                let key = PrivateKeyDer::from_pem_file(key_file).map_err(|source| TlsError::File {
                    what: "a private key",
                    path: key_file.clone(),
                    source,
                })?;
                builder.with_client_auth_cert(certificates(cert_file)?, key).map_err(TlsError::Unusable)?
            }
            (Some(_), None) | (None, Some(_)) => return Err(TlsError::HalfACertificate),
        };
        config.alpn_protocols = vec![self.protocol.as_bytes().to_vec()];
        Ok(Arc::new(config))
    }
}

fn authorities(ca_file: Option<&PathBuf>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca_file) = ca_file {
        for certificate in certificates(ca_file)? {
            roots.add(certificate).map_err(TlsError::Unusable)?;
        }
    } else {
        // Certificates that are too old for the library are no reason to do without the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(TlsError::NoAuthorities);
        }
    }
    Ok(roots)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::File { what: "certificates", path: path.clone(), source };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.clone() });
    }
    Ok(certificates)
}

/// Takes every certificate; that who has it also has its key is still checked.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
