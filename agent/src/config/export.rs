//! Section `export`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, schema::Of, value};
use crate::{
    export::{
        Auth, Compression, EndpointSettings, Fsync, Protocol, Proxies, QueueSettings, Settings, Signal, TlsSettings,
    },
    secret::Secret,
};

/// Section `export`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    /// Address of the OTLP endpoint; absent, port 4317 (gRPC) or 4318 (HTTP) of this node.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Endpoint>>")]
    pub endpoint: Option<Endpoint>,
    /// How OTLP is spoken.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<ProtocolChoice>")]
    pub protocol: ProtocolChoice,
    /// Whether requests are compressed.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Compression>")]
    pub compression: Compression,
    /// Headers of every request, such as `X-Scope-OrgID` or `Authorization`.
    pub headers: BTreeMap<String, Secret>,
    /// How long one request may take.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Duration>")]
    pub timeout: Duration,
    /// Whom to trust and who we are, for an endpoint that begins with `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Who sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthConfig>,
    /// Several endpoints instead of that one: each gets everything.
    pub endpoints: Vec<EndpointConfig>,
    /// Where requests wait while their endpoint is away.
    pub queue: QueueConfig,
    /// Spans that wait in memory at most, for each endpoint.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub queue_spans: usize,
    /// Spans of one request at most.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub batch_spans: usize,
    /// Bytes of the spans of one request, before compression.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub batch_bytes: usize,
    /// How long a span waits for others to share its request with.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Duration>")]
    pub batch_delay: Duration,
    /// Of the environment.
    #[serde(skip)]
    pub proxies: Proxies,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: ProtocolChoice::Auto,
            compression: Compression::Auto,
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(10),
            tls: None,
            auth: None,
            endpoints: Vec::new(),
            queue: QueueConfig::default(),
            queue_spans: 16_384,
            // What a backend on the same node does in one stretch, services wait for.
            batch_spans: 1024,
            batch_bytes: 1 << 20,
            batch_delay: Duration::from_millis(200),
            proxies: Proxies::default(),
        }
    }
}

/// One of `export.endpoints`. Headers, TLS and auth are its own; the rest is as in `export` unless it is here.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// Its address.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Endpoint>")]
    pub endpoint: Endpoint,
    /// What it is called in logs, on `/metrics` and on disk; absent, its host and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How OTLP is spoken.
    #[serde(default, with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<ProtocolChoice>>")]
    pub protocol: Option<ProtocolChoice>,
    /// Whether requests are compressed.
    #[serde(default, with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Compression>>")]
    pub compression: Option<Compression>,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How long one request may take.
    #[serde(default, with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<Duration>>")]
    pub timeout: Option<Duration>,
    /// Whom to trust and who we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Who sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthConfig>,
}

/// Section `tls` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the authorities that are trusted; absent, those of the system.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<PathBuf>>")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<PathBuf>>")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<PathBuf>>")]
    pub key_file: Option<PathBuf>,
    /// Name that the endpoint's certificate must have; absent, the host in its URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Trust any certificate.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub insecure_skip_verify: bool,
}

/// Section `auth` of an endpoint: one of these.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AuthConfig {
    /// A token.
    Bearer {
        /// The file that it is in.
        #[serde(with = "value::text")]
        #[schemars(with = "Of<PathBuf>")]
        token_file: PathBuf,
    },
    /// A name and a password.
    Basic {
        /// The name.
        username: String,
        /// The file that the password is in.
        #[serde(with = "value::text")]
        #[schemars(with = "Of<PathBuf>")]
        password_file: PathBuf,
    },
}

/// Section `export.queue`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// Folder of the queue on disk; absent, `export-queue` in `$STATE_DIRECTORY` if systemd gives one, else there is none.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<PathBuf>>")]
    pub directory: Option<PathBuf>,
    /// Bytes on disk at most, for each endpoint; beyond them the oldest spans are given up.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<usize>")]
    pub max_bytes: usize,
    /// When what was written is made to outlive a loss of power.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Fsync>")]
    pub fsync: Fsync,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { directory: None, max_bytes: 512 << 20, fsync: Fsync::Every(Duration::from_secs(1)) }
    }
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProtocolChoice {
    /// HTTP if the endpoint has port 4318 or a path, else gRPC.
    Auto,
    /// gRPC.
    Grpc,
    /// HTTP with protobuf.
    HttpProtobuf,
}

/// Address of an OTLP endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    pub(super) url: String,
    /// True if OTLP HTTP must be spoken to this very URL, not to the path that OTLP adds to it.
    pub(super) is_whole: bool,
}

impl ExportConfig {
    /// Whether something is said of the only endpoint.
    pub(super) fn has_own_endpoint(&self) -> bool {
        let Self { endpoint, headers, tls, auth, .. } = self;
        endpoint.is_some() || !headers.is_empty() || tls.is_some() || auth.is_some()
    }
}

impl Endpoint {
    /// Whether TLS is spoken.
    pub(super) fn is_secure(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// The port that OTLP has for HTTP, or a path: gRPC has none.
    fn looks_like_http(&self) -> bool {
        let uri: Option<http::Uri> = self.url.parse().ok();
        uri.is_some_and(|uri| uri.port_u16() == Some(4318) || !matches!(uri.path(), "" | "/"))
    }

    fn url_for(&self, signal: Signal) -> String {
        let url = self.url.trim_end_matches('/');
        // That of the spans may be whole, and be asked for another signal.
        let base = url.strip_suffix(Signal::Traces.path()).filter(|_| signal != Signal::Traces);
        match base {
            Some(base) => format!("{base}{}", signal.path()),
            None if self.is_whole || url.ends_with(signal.path()) => self.url.clone(),
            None => format!("{url}{}", signal.path()),
        }
    }

    /// Protocol and address.
    fn resolve(&self, protocol: ProtocolChoice, signal: Signal) -> (Protocol, String) {
        match protocol {
            ProtocolChoice::HttpProtobuf => (Protocol::HttpProtobuf, self.url_for(signal)),
            ProtocolChoice::Auto if self.looks_like_http() => (Protocol::HttpProtobuf, self.url_for(signal)),
            ProtocolChoice::Auto | ProtocolChoice::Grpc => (Protocol::Grpc, self.url.clone()),
        }
    }
}

impl Config {
    /// What the exporter is told.
    pub fn export_settings(&self) -> Settings {
        let ExportConfig { endpoints, queue, queue_spans, batch_spans, batch_bytes, batch_delay, .. } = &self.export;
        let endpoints = match &endpoints[..] {
            [] => vec![self.only_endpoint(None, Signal::Traces)],
            endpoints => endpoints.iter().map(|it| self.endpoint(it, None, Signal::Traces)).collect(),
        };
        let QueueConfig { directory, max_bytes, fsync } = queue;
        let queue =
            directory.clone().map(|directory| QueueSettings { directory, max_bytes: *max_bytes as u64, fsync: *fsync });
        Settings {
            endpoints,
            queue,
            queue_spans: *queue_spans,
            batch_spans: *batch_spans,
            batch_bytes: *batch_bytes,
            batch_delay: *batch_delay,
        }
    }

    fn only_endpoint(&self, other: Option<ProtocolChoice>, signal: Signal) -> EndpointSettings {
        let ExportConfig { endpoint, protocol, compression, headers, timeout, tls, auth, proxies, .. } = &self.export;
        let protocol = other.unwrap_or(*protocol);
        let port = if protocol == ProtocolChoice::HttpProtobuf { 4318 } else { 4317 };
        let here = || Endpoint { url: format!("http://127.0.0.1:{port}"), is_whole: false };
        let endpoint = endpoint.clone().unwrap_or_else(here);
        let (protocol, url) = endpoint.resolve(protocol, signal);
        EndpointSettings {
            name: name_of(&url),
            endpoint: url,
            protocol,
            compression: *compression,
            headers: headers.clone(),
            timeout: *timeout,
            tls: tls.clone().map(Into::into),
            auth: auth.clone().map(Into::into).unwrap_or_default(),
            proxies: proxies.clone(),
        }
    }

    fn endpoint(&self, config: &EndpointConfig, other: Option<ProtocolChoice>, signal: Signal) -> EndpointSettings {
        let export = &self.export;
        let EndpointConfig { endpoint, name, protocol, compression, headers, timeout, tls, auth } = config;
        let (protocol, url) = endpoint.resolve(other.or(*protocol).unwrap_or(export.protocol), signal);
        EndpointSettings {
            name: name.clone().unwrap_or_else(|| name_of(&url)),
            endpoint: url,
            protocol,
            compression: compression.unwrap_or(export.compression),
            headers: headers.clone(),
            timeout: timeout.unwrap_or(export.timeout),
            tls: tls.clone().map(Into::into),
            auth: auth.clone().map(Into::into).unwrap_or_default(),
            proxies: export.proxies.clone(),
        }
    }

    /// The first of those of the spans, for something else.
    pub(super) fn first_endpoint(&self, protocol: Option<ProtocolChoice>, signal: Signal) -> EndpointSettings {
        match self.export.endpoints.first() {
            Some(first) => self.endpoint(first, protocol, signal),
            None => self.only_endpoint(protocol, signal),
        }
    }

    /// One of its own, which gets none of the secrets of others.
    pub(super) fn endpoint_of(
        &self,
        endpoint: &Endpoint,
        protocol: Option<ProtocolChoice>,
        signal: Signal,
    ) -> EndpointSettings {
        let ExportConfig { compression, timeout, proxies, .. } = &self.export;
        let (protocol, url) = endpoint.resolve(protocol.unwrap_or(self.export.protocol), signal);
        EndpointSettings {
            name: name_of(&url),
            endpoint: url,
            protocol,
            compression: *compression,
            headers: BTreeMap::new(),
            timeout: *timeout,
            tls: None,
            auth: Auth::None,
            proxies: proxies.clone(),
        }
    }
}

/// Host and port: what is in an endpoint's path may be nobody's business.
fn name_of(url: &str) -> String {
    let uri: Option<http::Uri> = url.parse().ok();
    uri.and_then(|uri| uri.authority().map(ToString::to_string)).unwrap_or_else(|| url.to_owned())
}

impl From<TlsConfig> for TlsSettings {
    fn from(config: TlsConfig) -> Self {
        let TlsConfig { ca_file, cert_file, key_file, server_name, insecure_skip_verify } = config;
        Self { ca_file, cert_file, key_file, server_name, insecure_skip_verify }
    }
}

impl From<AuthConfig> for Auth {
    fn from(config: AuthConfig) -> Self {
        match config {
            AuthConfig::Bearer { token_file } => Self::Bearer { token_file },
            AuthConfig::Basic { username, password_file } => Self::Basic { username, password_file },
        }
    }
}
