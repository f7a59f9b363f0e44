//! What the agent is told to do: flags before environment variables before a YAML file before defaults.
//!
//! Nothing is guessed and nothing is ignored: an unknown key, a wrong type or a bad value is an error that names where
//! it stands and what is expected there.

mod discovery;
mod environment;
mod error;
mod export;
mod file;
mod foreign;
mod kubernetes;
mod metrics;
mod otlp_metrics;
mod receive;
mod reload;
mod schema;
mod spans;
mod value;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use discovery::{DiscoveryConfig, RuleConfig};
pub use error::ConfigError;
pub use export::{AuthConfig, Endpoint, EndpointConfig, ExportConfig, ProtocolChoice, QueueConfig, TlsConfig};
pub use foreign::{from_alloy, from_beyla};
pub use kubernetes::KubernetesSection;
pub use metrics::MetricsConfig;
pub use otlp_metrics::{OtlpMetricsConfig, TelemetryConfig};
pub use receive::ReceiveSection;
pub use reload::{FileWatch, Reload};
use schema::Of;
pub use schema::schema;
pub use spans::{RoutesConfig, SamplingSection, SpansConfig};
use value::Value;

use crate::{
    gpu::GpuConfig, inference::InferenceConfig, kernel::features::HookSet, kubernetes::KubernetesConfig, print::Format,
    secret::Secret, stitch::StitchConfig, telemetry::Server,
};

/// The whole configuration. The names of the fields are the keys of the file.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Least severe messages that are logged to standard error.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<LogLevel>")]
    pub log_level: LogLevel,
    /// Where `/metrics`, `/healthz` and `/readyz` are; port 0 chooses a free one, which is logged.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<SocketAddr>")]
    pub listen: SocketAddr,
    /// Which kernel hooks are used.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Hooks>")]
    pub hooks: Hooks,
    /// Whether TLS is looked into, by probes in TLS libraries.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Switch>")]
    pub tls: Switch,
    /// Whether calls of CUDA are counted, by probes in its driver library.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Switch>")]
    pub cuda: Switch,
    /// Whether and how spans are also printed to standard output.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Option<Format>>")]
    pub print: Option<Format>,
    /// Whether the kernel programs log what they do: for their developers.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub kernel_debug: bool,
    /// Where spans are sent.
    pub export: ExportConfig,
    /// OTLP from SDKs on this node.
    pub receive: ReceiveSection,
    /// Which processes are observed.
    pub discovery: DiscoveryConfig,
    /// What is put into spans.
    pub spans: SpansConfig,
    /// How routes are made of paths.
    pub routes: RoutesConfig,
    /// How GPUs are looked at.
    pub gpu: GpuSection,
    /// How requests to models are looked at.
    pub inference: InferenceSection,
    /// How Kubernetes is asked.
    pub kubernetes: KubernetesSection,
    /// What is measured of requests.
    pub metrics: MetricsConfig,
    /// What the agent tells of itself.
    pub telemetry: TelemetryConfig,
    /// What was asked for and is not done, one line each: it comes from another program's file or variables.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// The file that it was read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: LogLevel::Info,
            listen: Server::default_address(),
            hooks: Hooks::Auto,
            tls: Switch::Auto,
            cuda: Switch::Auto,
            print: None,
            kernel_debug: false,
            export: ExportConfig::default(),
            receive: ReceiveSection::default(),
            discovery: DiscoveryConfig::default(),
            spans: SpansConfig::default(),
            routes: RoutesConfig::default(),
            gpu: GpuSection::default(),
            inference: InferenceSection::default(),
            kubernetes: KubernetesSection::default(),
            metrics: MetricsConfig::default(),
            telemetry: TelemetryConfig::default(),
            warnings: Vec::new(),
            file: None,
        }
    }
}

/// Section `gpu`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpuSection {
    /// Whether GPUs are looked at.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub enabled: bool,
    /// Path of NVIDIA's management library; absent, it is looked for where drivers put it.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<PathBuf>>")]
    pub library: Option<PathBuf>,
    /// Time between two samples while a request runs in a process that uses a GPU.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Duration>")]
    pub interval: Duration,
    /// The same while none does.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Duration>")]
    pub idle_interval: Duration,
    /// Whether `/metrics` also has the names of NVIDIA's DCGM exporter.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub dcgm_names: bool,
}

impl Default for GpuSection {
    fn default() -> Self {
        let GpuConfig { enabled, library, interval, idle_interval, dcgm_names } = GpuConfig::default();
        Self { enabled, library, interval, idle_interval, dcgm_names }
    }
}

/// Section `inference`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct InferenceSection {
    /// Whether requests to models are told from others, and explained.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub enabled: bool,
    /// Whether spans have prompts and answers, as far as they were captured.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<RecordContent>")]
    pub record_content: RecordContent,
}

impl Default for InferenceSection {
    fn default() -> Self {
        Self { enabled: InferenceConfig::default().enabled, record_content: RecordContent::Off }
    }
}

/// Whether spans have prompts and answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RecordContent {
    /// No.
    Off,
    /// As attributes of the conventions.
    Attributes,
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

/// Whether libraries of a kind are probed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Switch {
    /// Where there are some, and the kernel lets probes into them.
    Auto,
    /// No.
    Off,
}

impl Config {
    /// Reads the file, if there is one, and then the environment, through `variable`.
    pub fn read(file: Option<&Path>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut config = match file {
            Some(path) => file::read(path, variable)?,
            None => Self::default(),
        };
        environment::apply(&mut config, variable)?;
        config.file = file.map(Path::to_owned);
        Ok(config)
    }

    /// Reads a file only.
    pub fn of_file(file: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        file::read(file, variable)
    }

    /// How spans find their traces.
    pub fn stitch_config(&self) -> StitchConfig {
        StitchConfig { across_nodes: self.spans.across_nodes, ..StitchConfig::default() }
    }

    /// How GPUs are looked at.
    pub fn gpu_config(&self) -> GpuConfig {
        let GpuSection { enabled, library, interval, idle_interval, dcgm_names } = self.gpu.clone();
        GpuConfig { enabled, library, interval, idle_interval, dcgm_names }
    }

    /// How requests to models are looked at.
    pub fn inference_config(&self) -> InferenceConfig {
        let InferenceSection { enabled, record_content } = self.inference;
        InferenceConfig { enabled, records_content: record_content == RecordContent::Attributes }
    }

    /// As a file that says the same.
    pub fn to_yaml(&self) -> String {
        // What is read can be written.
        serde_saphyr::to_string(self).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// The same without what is secret.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut redacted = self.clone();
        let export = &mut redacted.export;
        let of_endpoints = export.endpoints.iter_mut().flat_map(|endpoint| endpoint.headers.values_mut());
        let of_metrics = redacted.telemetry.otlp_metrics.headers.values_mut();
        export.headers.values_mut().chain(of_endpoints).chain(of_metrics).for_each(Secret::hide);
        redacted
    }

    /// How Kubernetes is asked.
    pub fn kubernetes_config(&self) -> KubernetesConfig {
        self.kubernetes.config()
    }
}

/// Reads a file of any kind, and what comes of it again, for the fuzzer.
pub(crate) fn translate_any(text: &str, name: &str) {
    if let Ok(config) = file::of_text(text, Path::new(name), &|name| Some(name.to_owned())) {
        let yaml = config.to_yaml();
        let again = file::parse(&yaml, Path::new(name));
        assert!(again.is_ok_and(|again| again.to_yaml() == yaml), "what is written is read as the same");
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
