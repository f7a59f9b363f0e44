//! Who may come in: TLS of the listeners, and credentials.

use std::path::PathBuf;

use serde::Deserialize;

use super::value::{Value, text};

/// TLS of each listener.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TlsListeners {
    /// Of the API.
    pub api: ListenerTls,
    /// Of OTLP over gRPC.
    pub otlp_grpc: ListenerTls,
    /// Of OTLP over HTTP.
    pub otlp_http: ListenerTls,
}

/// TLS of a listener: without a certificate it speaks without.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerTls {
    /// Its certificate and those between it and its authority, in PEM.
    #[serde(deserialize_with = "text")]
    pub cert_file: Option<PathBuf>,
    /// The private key of it, in PEM.
    #[serde(deserialize_with = "text")]
    pub key_file: Option<PathBuf>,
    /// Authorities, in PEM, of which one must have signed the client's certificate.
    #[serde(deserialize_with = "text")]
    pub client_ca_file: Option<PathBuf>,
}

/// Who may come in.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    /// Whether `/metrics` is answered without credentials, as `/ready` always is.
    #[serde(deserialize_with = "text")]
    pub open_metrics: bool,
    /// Of which a request must have one, on the listeners that they are for. A listener that none is for takes everybody.
    pub credentials: Vec<CredentialConfig>,
}

/// One who may come in, by a token or by a name and a password.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialConfig {
    /// File with a bearer token, or several, one a line.
    #[serde(deserialize_with = "text")]
    pub token_file: Option<PathBuf>,
    /// Environment variable with a bearer token.
    #[serde(deserialize_with = "text")]
    pub token_env: String,
    /// Name, with a password.
    #[serde(deserialize_with = "text")]
    pub username: String,
    /// File with the password, or several, one a line.
    #[serde(deserialize_with = "text")]
    pub password_file: Option<PathBuf>,
    /// Environment variable with the password.
    #[serde(deserialize_with = "text")]
    pub password_env: String,
    /// Listeners that it is for; without, all.
    pub listeners: Vec<ListenerName>,
    /// Tenants that it is for; without, all.
    pub tenants: Vec<String>,
}

/// The listeners, as the file calls them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListenerName {
    /// Queries.
    Api,
    /// OTLP over gRPC.
    OtlpGrpc,
    /// OTLP over HTTP.
    OtlpHttp,
}

impl ListenerName {
    /// As in the file, in the log and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::OtlpGrpc => "otlp_grpc",
            Self::OtlpHttp => "otlp_http",
        }
    }
}

impl<'de> Deserialize<'de> for ListenerName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer)
    }
}

impl Value for ListenerName {
    const EXPECTED: &'static str = "`api`, `otlp_grpc` or `otlp_http`";

    fn from_text(text: &str) -> Option<Self> {
        [Self::Api, Self::OtlpGrpc, Self::OtlpHttp].into_iter().find(|name| name.as_str() == text)
    }
}

impl TlsListeners {
    /// That of one of them.
    pub fn of(&self, listener: ListenerName) -> &ListenerTls {
        match listener {
            ListenerName::Api => &self.api,
            ListenerName::OtlpGrpc => &self.otlp_grpc,
            ListenerName::OtlpHttp => &self.otlp_http,
        }
    }
}
