//! Who may come in: TLS of the listeners, and the credentials of requests.
//!
//! Each listener has a [`Door`]. Connections come through [`Connections`], requests are let in by [`Door::admit`].
//! Certificates and secrets are read again when their files change; connections that are open stay open.

mod connection;
mod credentials;
mod listen;
mod reload;
mod seldom;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use rustls::pki_types::pem;
use rustls::server::VerifierBuilderError;
use tokio::net::TcpListener;
use tonic::Status;
use tracing::{info, warn};

pub use self::connection::{Connection, Peer};
use self::credentials::{Credential, Scheme};
pub use self::listen::Connections;
use self::seldom::Seldom;
use self::tls::Tls;
use crate::config::{Config, ListenerName};
use crate::telemetry::{AccessLabels, AccessMetrics, chain};
use crate::tenant::{TENANT_HEADER, TenantError};

/// How often files are looked at.
const REFRESH: Duration = Duration::from_secs(1);

/// Why nobody can come in as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No certificate can be checked with these authorities.
    #[error("{}: no client certificate can be checked", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: VerifierBuilderError,
    },
    /// Something is missing, or too much.
    #[error("auth.credentials[{index}]: {problem}")]
    Credential {
        /// Which one.
        index: usize,
        /// What is expected.
        problem: &'static str,
    },
    /// Half of a certificate.
    #[error("tls.{listener}: expected both `cert_file` and `key_file`")]
    HalfACertificate {
        /// Whose.
        listener: &'static str,
    },
    /// An empty file.
    #[error("there is no token or password in {}", path.display())]
    NoSecret {
        /// The file.
        path: PathBuf,
    },
    /// A file has not what it should.
    #[error("there is no {what} in {}", path.display())]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it was not found.
        #[source]
        source: pem::Error,
    },
    /// No name for a tenant.
    #[error("auth.credentials[{index}]: tenants")]
    Tenant {
        /// Of which one.
        index: usize,
        /// Why not.
        #[source]
        source: TenantError,
    },
    /// A file with a secret.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Certificates or keys that do not fit.
    #[error("{}: certificate or key cannot be used", path.display())]
    Unusable {
        /// The file with the certificate.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// A variable with a secret.
    #[error("auth.credentials[{index}]: the environment variable {name} is not set")]
    Variable {
        /// Of which one.
        index: usize,
        /// The variable.
        name: String,
    },
}

/// What is checked before anybody is let in at one listener.
#[derive(Debug)]
pub struct Door {
    listener: ListenerName,
    tls: Option<Tls>,
    wants_certificate: bool,
    credentials: Vec<Credential>,
    /// Paths that are answered to everybody.
    open: &'static [&'static str],
    metrics: AccessMetrics,
    warnings: Seldom,
}

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The listener has `client_ca_file`.
    #[error("a client certificate is needed")]
    NoCertificate,
    /// It shows nothing.
    #[error("credentials are needed")]
    NoCredentials,
    /// What it shows is nobody's.
    #[error("these credentials are not known")]
    WrongCredentials,
    /// Who it is from may not see this tenant.
    #[error("these credentials are not for this tenant")]
    OtherTenant,
}

impl Refusal {
    /// Value of the label `reason`.
    fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "certificate",
            Self::NoCredentials | Self::WrongCredentials => "credentials",
            Self::OtherTenant => "tenant",
        }
    }
}

impl Door {
    /// As it is configured; fails if a file or a variable is missing or cannot be used.
    pub fn new(
        listener: ListenerName,
        config: &Config,
        variable: &dyn Fn(&str) -> Option<String>,
        metrics: AccessMetrics,
    ) -> Result<Self, AccessError> {
        let of_tls = config.tls.of(listener);
        let open: &[_] = match (listener, config.auth.open_metrics) {
            (ListenerName::Api, false) => &["/ready", "/healthz"],
            (ListenerName::Api, true) => &["/ready", "/healthz", "/metrics"],
            (ListenerName::OtlpGrpc | ListenerName::OtlpHttp, _) => &[],
        };
        Ok(Self {
            listener,
            tls: tls::open(listener, of_tls)?,
            wants_certificate: of_tls.client_ca_file.is_some(),
            credentials: Credential::open(listener, &config.auth, config.multitenancy, variable)?,
            open,
            metrics,
            warnings: Seldom::default(),
        })
    }

    /// Its listener's name.
    pub fn name(&self) -> &'static str {
        self.listener.as_str()
    }

    /// Takes connections from now on.
    pub fn listen(self: &Arc<Self>, listener: TcpListener, address: SocketAddr) -> Connections {
        Connections::accept(listener, address, Arc::clone(self))
    }

    /// Says in the log who may come in.
    pub fn announce(&self, address: SocketAddr) {
        let (tls, client_certificates) = (self.tls.is_some(), self.wants_certificate);
        let credentials = self.credentials.len();
        info!(listener = self.name(), %address, tls, client_certificates, credentials, "listening");
    }

    /// Whether a request may come in; narrows it to the tenant that it may see.
    pub fn admit(&self, path: &str, headers: &mut HeaderMap, certified: bool) -> Result<(), Refusal> {
        if self.open.contains(&path) {
            return Ok(());
        }
        if self.wants_certificate && !certified {
            return Err(Refusal::NoCertificate);
        }
        if self.credentials.is_empty() {
            return Ok(());
        }
        let shown = headers.get(AUTHORIZATION).ok_or(Refusal::NoCredentials)?;
        let credential = credentials::find(&self.credentials, shown.as_bytes()).ok_or(Refusal::WrongCredentials)?;
        let Some(allowed) = credential.tenants() else { return Ok(()) };
        match (headers.get(TENANT_HEADER).cloned(), allowed) {
            (Some(header), _) => {
                let mut names = header.as_bytes().split(|byte| *byte == b'|');
                if !names.all(|name| allowed.iter().any(|tenant| tenant.as_bytes() == name)) {
                    return Err(Refusal::OtherTenant);
                }
                // Should there be several such headers, this is the one that counts.
                headers.insert(TENANT_HEADER, header);
            }
            (None, [only]) => {
                let name = HeaderValue::from_str(only).map_err(|_| Refusal::OtherTenant)?;
                headers.insert(TENANT_HEADER, name);
            }
            // Which one is meant cannot be known; that a name is missing is said later.
            (None, _) => {}
        }
        Ok(())
    }

    /// Checks a request before anything of it is read; else what it is answered.
    pub fn check(&self, request: &mut http::request::Parts, peer: Option<Peer>) -> Result<(), Box<Response>> {
        let certified = peer.is_some_and(|peer| peer.certified);
        let admitted = self.admit(request.uri.path(), &mut request.headers, certified);
        admitted.map_err(|refusal| {
            self.refused(refusal.reason(), peer.map(|peer| peer.address), &refusal.to_string());
            Box::new(self.answer(refusal, &request.headers))
        })
    }

    fn answer(&self, refusal: Refusal, headers: &HeaderMap) -> Response {
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if content_type.starts_with(b"application/grpc") {
            let status = match refusal {
                Refusal::OtherTenant => Status::permission_denied(refusal.to_string()),
                _ => Status::unauthenticated(refusal.to_string()),
            };
            return status.into_http::<Body>().into_response();
        }
        match refusal {
            Refusal::NoCertificate | Refusal::OtherTenant => {
                (StatusCode::FORBIDDEN, refusal.to_string()).into_response()
            }
            Refusal::NoCredentials | Refusal::WrongCredentials => {
                let mut response = (StatusCode::UNAUTHORIZED, refusal.to_string()).into_response();
                let schemes = [(Scheme::Basic, "Basic realm=\"coati\""), (Scheme::Bearer, "Bearer realm=\"coati\"")];
                for (scheme, challenge) in schemes {
                    if self.credentials.iter().any(|credential| credential.scheme == scheme) {
                        response.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
                    }
                }
                response
            }
        }
    }

    /// Counts, and now and then tells, who was not let in.
    fn refused(&self, reason: &'static str, peer: Option<SocketAddr>, why: &str) {
        self.metrics.refused.get_or_create(&AccessLabels { listener: self.name(), reason }).inc();
        if let Some(untold) = self.warnings.next(reason, Instant::now()) {
            let peer = peer.map_or_else(|| "?".to_owned(), |peer| peer.to_string());
            warn!(listener = self.name(), peer, reason, untold, "refused: {why}");
        }
    }

    /// Looks at all files once, and says what is new.
    fn refresh(&self) {
        let tls = self.tls.as_ref().map(|tls| (tls.refresh(), "certificates"));
        let secrets = self.credentials.iter().map(|credential| (credential.refresh(), "credentials"));
        for (refreshed, what) in tls.into_iter().chain(secrets) {
            match refreshed {
                Ok(false) => {}
                Ok(true) => info!(listener = self.name(), "{what} were read again"),
                Err(error) => {
                    warn!(listener = self.name(), error = %chain(&error), "{what} cannot be read again; the old ones stay");
                }
            }
        }
    }
}

/// Checks that all listeners can be opened as they are configured.
pub fn check(config: &Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), AccessError> {
    for listener in [ListenerName::Api, ListenerName::OtlpGrpc, ListenerName::OtlpHttp] {
        Door::new(listener, config, variable, AccessMetrics::default())?;
    }
    Ok(())
}

/// Looks at the files of all doors for ever.
pub async fn keep_fresh(doors: Vec<Arc<Door>>) {
    let has_files = |door: &Arc<Door>| door.tls.is_some() || !door.credentials.is_empty();
    let doors: Arc<[_]> = doors.into_iter().filter(has_files).collect();
    while !doors.is_empty() {
        tokio::time::sleep(REFRESH).await;
        let doors = Arc::clone(&doors);
        // It fails only when the runtime ends.
        let _ended = tokio::task::spawn_blocking(move || doors.iter().for_each(|door| door.refresh())).await;
    }
}

/// Lets a request in, or answers it.
pub async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| *peer);
    let (mut head, body) = request.into_parts();
    match door.check(&mut head, peer) {
        Ok(()) => next.run(Request::from_parts(head, body)).await,
        Err(response) => *response,
    }
}
