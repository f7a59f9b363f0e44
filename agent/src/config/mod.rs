//! What the agent is told to do: flags before environment variables before a YAML file before defaults.
//!
//! Nothing is guessed and nothing is ignored: an unknown key, a wrong type or a bad value is an error that names where
//! it stands and what is expected there.

mod environment;
mod error;
mod file;
mod value;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use globset::GlobMatcher;
use serde::Deserialize;

pub use error::ConfigError;
use value::Value;

use crate::{
    discover::{Ports, Rule, Selection},
    export::{Compression, Protocol, Settings},
    gpu::GpuConfig,
    kernel::features::HookSet,
    print::Format,
    span::{RouteConfig, SpanConfig},
    stitch::StitchConfig,
    telemetry::{OtlpMetricsSettings, Server},
};

/// The whole configuration. The names of the fields are the keys of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Least severe messages that are logged to standard error.
    #[serde(deserialize_with = "value::text")]
    pub log_level: LogLevel,
    /// Where `/metrics`, `/healthz` and `/readyz` are; port 0 chooses a free one, which is logged.
    #[serde(deserialize_with = "value::text")]
    pub listen: SocketAddr,
    /// Which kernel hooks are used.
    #[serde(deserialize_with = "value::text")]
    pub hooks: Hooks,
    /// Whether and how spans are also printed to standard output.
    #[serde(deserialize_with = "value::text")]
    pub print: Option<Format>,
    /// Whether the kernel programs log what they do: for their developers.
    #[serde(deserialize_with = "value::text")]
    pub kernel_debug: bool,
    /// Where spans are sent.
    pub export: ExportConfig,
    /// Which processes are observed.
    pub discovery: DiscoveryConfig,
    /// What is put into spans.
    pub spans: SpansConfig,
    /// How routes are made of paths.
    pub routes: RoutesConfig,
    /// How GPUs are looked at.
    pub gpu: GpuSection,
    /// What the agent tells of itself.
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: LogLevel::Info,
            listen: Server::default_address(),
            hooks: Hooks::Auto,
            print: None,
            kernel_debug: false,
            export: ExportConfig::default(),
            discovery: DiscoveryConfig::default(),
            spans: SpansConfig::default(),
            routes: RoutesConfig::default(),
            gpu: GpuSection::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// Section `export`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExportConfig {
    /// Address of the OTLP endpoint; absent, port 4317 (gRPC) or 4318 (HTTP) of this node.
    #[serde(deserialize_with = "value::optional")]
    pub endpoint: Option<Endpoint>,
    /// How OTLP is spoken.
    #[serde(deserialize_with = "value::text")]
    pub protocol: ProtocolChoice,
    /// Whether requests are compressed.
    #[serde(deserialize_with = "value::text")]
    pub compression: Compression,
    /// Headers of every request, such as `X-Scope-OrgID` or `Authorization`.
    pub headers: BTreeMap<String, String>,
    /// How long one request may take.
    #[serde(deserialize_with = "value::text")]
    pub timeout: Duration,
    /// Spans that wait at most, for example while the endpoint is away.
    #[serde(deserialize_with = "value::text")]
    pub queue_spans: usize,
    /// Spans of one request at most.
    #[serde(deserialize_with = "value::text")]
    pub batch_spans: usize,
    /// Bytes of the spans of one request, before compression.
    #[serde(deserialize_with = "value::text")]
    pub batch_bytes: usize,
    /// How long a span waits for others to share its request with.
    #[serde(deserialize_with = "value::text")]
    pub batch_delay: Duration,
}

impl Default for ExportConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: ProtocolChoice::Auto,
            compression: Compression::Auto,
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(10),
            queue_spans: 16_384,
            batch_spans: 4096,
            batch_bytes: 1 << 20,
            batch_delay: Duration::from_millis(200),
        }
    }
}

/// Section `discovery`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// Observe only processes that one of these rules matches; every one if there are none.
    #[serde(alias = "instrument")]
    pub include: Vec<RuleConfig>,
    /// Do not observe processes that one of these rules matches.
    #[serde(alias = "exclude_instrument")]
    pub exclude: Vec<RuleConfig>,
}

/// One rule of [`DiscoveryConfig`]; all its conditions must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleConfig {
    /// Shell pattern of the executable's path; without a slash, of its name.
    #[serde(deserialize_with = "value::optional")]
    pub exe_path: Option<GlobMatcher>,
    /// Ports of which the process listens on one.
    #[serde(deserialize_with = "value::optional")]
    pub open_ports: Option<Ports>,
}

/// Section `spans`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpansConfig {
    /// Whether the values in queries are replaced, because they may be secret.
    #[serde(deserialize_with = "value::text")]
    pub redact_query: bool,
    /// Whether the backend unites what the agents of several nodes see of a request, as Coati's does.
    #[serde(deserialize_with = "value::text")]
    pub across_nodes: bool,
}

impl Default for SpansConfig {
    fn default() -> Self {
        Self { redact_query: SpanConfig::default().redact_query, across_nodes: StitchConfig::default().across_nodes }
    }
}

/// Section `routes`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutesConfig {
    /// Routes that are known, such as `/api/{id}` or `/v1/:name`; the first that fits a path wins.
    pub patterns: Vec<String>,
    /// Words that a place in the path may have before further ones become `{id}`.
    #[serde(deserialize_with = "value::text")]
    pub max_words: usize,
}

impl Default for RoutesConfig {
    fn default() -> Self {
        let RouteConfig { patterns, max_words } = RouteConfig::default();
        Self { patterns, max_words }
    }
}

/// Section `gpu`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuSection {
    /// Whether GPUs are looked at.
    #[serde(deserialize_with = "value::text")]
    pub enabled: bool,
    /// Path of NVIDIA's management library; absent, it is looked for where drivers put it.
    #[serde(deserialize_with = "value::optional")]
    pub library: Option<PathBuf>,
    /// Time between two samples while a request runs in a process that uses a GPU.
    #[serde(deserialize_with = "value::text")]
    pub interval: Duration,
    /// The same while none does.
    #[serde(deserialize_with = "value::text")]
    pub idle_interval: Duration,
    /// Whether `/metrics` also has the names of NVIDIA's DCGM exporter.
    #[serde(deserialize_with = "value::text")]
    pub dcgm_names: bool,
}

impl Default for GpuSection {
    fn default() -> Self {
        let GpuConfig { enabled, library, interval, idle_interval, dcgm_names } = GpuConfig::default();
        Self { enabled, library, interval, idle_interval, dcgm_names }
    }
}

/// Section `telemetry`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The agent's own metrics by OTLP.
    pub otlp_metrics: OtlpMetricsConfig,
}

/// Section `telemetry.otlp_metrics`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OtlpMetricsConfig {
    /// Whether they are sent. Off, because most nodes have something that scrapes `/metrics`.
    #[serde(deserialize_with = "value::text")]
    pub enabled: bool,
    /// Address of an OTLP gRPC endpoint; absent, that of the spans.
    #[serde(deserialize_with = "value::optional")]
    pub endpoint: Option<Endpoint>,
    /// Time between two exports.
    #[serde(deserialize_with = "value::text")]
    pub interval: Duration,
}

impl Default for OtlpMetricsConfig {
    fn default() -> Self {
        Self { enabled: false, endpoint: None, interval: Duration::from_mins(1) }
    }
}

/// How severe a message must be to be logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogLevel {
    /// What is lost for good.
    Error,
    /// What may get better by itself.
    Warn,
    /// What an operator wants to know once.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// Which kernel hooks are used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hooks {
    /// The best that the kernel has.
    Auto,
    /// This set and no other.
    Only(HookSet),
}

impl From<Hooks> for Option<HookSet> {
    fn from(hooks: Hooks) -> Self {
        match hooks {
            Hooks::Auto => None,
            Hooks::Only(set) => Some(set),
        }
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
    url: String,
    /// True if OTLP HTTP must be spoken to this very URL, not to the path that OTLP adds to it.
    is_whole: bool,
}

impl Config {
    /// Reads the file, if there is one, and then the environment, through `variable`.
    pub fn read(file: Option<&Path>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut config = match file {
            Some(path) => file::read(path)?,
            None => Self::default(),
        };
        environment::apply(&mut config, variable)?;
        Ok(config)
    }

    /// What the exporter is told.
    pub fn export_settings(&self) -> Settings {
        let ExportConfig {
            endpoint,
            protocol,
            compression,
            headers,
            timeout,
            queue_spans,
            batch_spans,
            batch_bytes,
            batch_delay,
        } = &self.export;
        let protocol = match protocol {
            ProtocolChoice::HttpProtobuf => Protocol::HttpProtobuf,
            ProtocolChoice::Auto if endpoint.as_ref().is_some_and(Endpoint::looks_like_http) => Protocol::HttpProtobuf,
            ProtocolChoice::Auto | ProtocolChoice::Grpc => Protocol::Grpc,
        };
        let endpoint = match (endpoint, protocol) {
            (Some(endpoint), Protocol::Grpc) => endpoint.url.clone(),
            (Some(endpoint), Protocol::HttpProtobuf) => endpoint.for_traces(),
            (None, Protocol::Grpc) => "http://127.0.0.1:4317".to_owned(),
            (None, Protocol::HttpProtobuf) => "http://127.0.0.1:4318/v1/traces".to_owned(),
        };
        Settings {
            endpoint,
            protocol,
            compression: *compression,
            headers: headers.clone(),
            timeout: *timeout,
            queue_spans: *queue_spans,
            batch_spans: *batch_spans,
            batch_bytes: *batch_bytes,
            batch_delay: *batch_delay,
        }
    }

    /// What spans are made of.
    pub fn span_config(&self) -> SpanConfig {
        let RoutesConfig { patterns, max_words } = &self.routes;
        let routes = RouteConfig { patterns: patterns.clone(), max_words: *max_words };
        SpanConfig { redact_query: self.spans.redact_query, routes }
    }

    /// How they find their traces.
    pub fn stitch_config(&self) -> StitchConfig {
        StitchConfig { across_nodes: self.spans.across_nodes, ..StitchConfig::default() }
    }

    /// How GPUs are looked at.
    pub fn gpu_config(&self) -> GpuConfig {
        let GpuSection { enabled, library, interval, idle_interval, dcgm_names } = self.gpu.clone();
        GpuConfig { enabled, library, interval, idle_interval, dcgm_names }
    }

    /// Which processes are observed.
    pub fn selection(&self) -> Selection {
        let rules = |rules: &[RuleConfig]| {
            rules
                .iter()
                .map(|RuleConfig { exe_path, open_ports }| Rule {
                    exe_path: exe_path.clone(),
                    open_ports: open_ports.clone(),
                })
                .collect()
        };
        Selection { include: rules(&self.discovery.include), exclude: rules(&self.discovery.exclude) }
    }

    /// Where the agent's own metrics are sent, if they are.
    pub fn otlp_metrics(&self, host_name: Option<String>) -> Option<OtlpMetricsSettings> {
        let OtlpMetricsConfig { enabled, endpoint, interval } = &self.telemetry.otlp_metrics;
        enabled.then(|| OtlpMetricsSettings {
            endpoint: endpoint
                .as_ref()
                .or(self.export.endpoint.as_ref())
                .map_or_else(|| "http://127.0.0.1:4317".to_owned(), |endpoint| endpoint.url.clone()),
            interval: *interval,
            host_name,
        })
    }
}

impl Endpoint {
    /// The port that OTLP has for HTTP, or a path: gRPC has none.
    fn looks_like_http(&self) -> bool {
        let uri: Option<http::Uri> = self.url.parse().ok();
        uri.is_some_and(|uri| uri.port_u16() == Some(4318) || !matches!(uri.path(), "" | "/"))
    }

    fn for_traces(&self) -> String {
        const PATH: &str = "/v1/traces";
        let url = self.url.trim_end_matches('/');
        if self.is_whole || url.ends_with(PATH) { self.url.clone() } else { format!("{url}{PATH}") }
    }
}

/// Sets `target` if the flag was given.
pub(crate) fn set_flag<T: Value>(target: &mut T, name: &str, text: Option<&str>) -> Result<(), ConfigError> {
    if let Some(text) = text {
        *target = T::from_text(text).ok_or_else(|| ConfigError::Value {
            place: format!("--{name}"),
            expected: T::EXPECTED,
            found: T::shown(text),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
