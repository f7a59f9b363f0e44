//! What the backend is told to do: flags before environment variables before a YAML file before defaults.
//!
//! An unknown key, a wrong type or a bad value is an error that names where it stands and what is expected there; a key of
//! Tempo's that means nothing here is a warning.

mod access;
mod error;
mod export;
mod file;
mod filter_policy;
mod foreign;
mod generator;
mod overrides;
mod show;
mod storage;
mod tenant_generator;
mod value;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use access::{AuthConfig, CredentialConfig, ListenerName, ListenerTls, TlsListeners};
pub use error::ConfigError;
pub use export::{
    BasicAuth, GeneratorStorage, OtlpConfig, OtlpProtocol, ProtobufMessage, RelabelAction, RelabelConfig,
    RemoteWriteConfig, SecretText, TlsConfig,
};
pub(crate) use file::read;
pub use filter_policy::{FilterPolicy, MatchType, PolicyAttribute, PolicyMatch, PolicyValue};
pub use foreign::Unused;
pub(crate) use foreign::unused_of_tenant;
pub use generator::{
    BucketFactor, Buckets, DimensionMapping, GeneratorConfig, HistogramKind, HostInfoConfig, IntrinsicDimensions,
    LimiterType, ProcessorConfig, ProcessorName, RegistryConfig, ServiceGraphsConfig, SpanMetricsConfig,
    SpanNameSanitization,
};
pub use overrides::{OverridesConfig, UserConfigurableOverrides};
pub(crate) use show::hide;
pub use show::{Given, Shown};
pub use storage::{PathStyle, S3Config, Secret, StorageBackend, StorageConfig};
pub use tenant_generator::{TenantGenerator, TenantHostInfo, TenantProcessors, TenantServiceGraphs, TenantSpanMetrics};
pub(crate) use value::duration;
pub use value::{ByteSize, LogLevel};
use value::{Value, optional_text, text};

/// The whole configuration. The names of the fields are the keys of the file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The file that this is of, if it is of one.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Everything that is stored is under this directory; nothing is written elsewhere.
    pub data_dir: PathBuf,
    /// Least severe messages that are logged to standard error.
    #[serde(deserialize_with = "text")]
    pub log_level: LogLevel,
    /// Whether the header `X-Scope-OrgID` says whose data a request is about; then it must be there.
    #[serde(deserialize_with = "text")]
    pub multitenancy: bool,
    /// Addresses.
    pub listen: Listen,
    /// TLS of each listener.
    pub tls: TlsListeners,
    /// Who may come in.
    pub auth: AuthConfig,
    /// What is kept on disk.
    pub retention: RetentionConfig,
    /// How small blocks become large ones.
    pub compaction: CompactionConfig,
    /// What is kept in memory.
    pub live: LiveConfig,
    /// When traces go from memory to blocks.
    pub cut: CutConfig,
    /// What is taken in.
    pub receive: ReceiveConfig,
    /// What one query may take.
    pub query: QueryConfig,
    /// Metrics that are made of spans.
    pub metrics_generator: GeneratorConfig,
    /// What tenants may set themselves.
    pub overrides: OverridesConfig,
    /// Where blocks lie.
    pub storage: StorageConfig,
    /// What of all this was said, to show it.
    #[serde(skip)]
    pub given: Given,
}

/// Addresses to listen on; port 0 chooses a free one, which is logged.
///
/// All interfaces, other than Tempo since 2.7: a backend in a pod or on a node of its own would else get nothing, and say
/// nothing about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Queries: HTTP/1.1 and HTTP/2.
    #[serde(deserialize_with = "text")]
    pub api: SocketAddr,
    /// OTLP over gRPC.
    #[serde(deserialize_with = "text")]
    pub otlp_grpc: SocketAddr,
    /// OTLP over HTTP.
    #[serde(deserialize_with = "text")]
    pub otlp_http: SocketAddr,
}

/// What is kept on disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Data older than this is deleted.
    #[serde(deserialize_with = "text")]
    pub age: Duration,
    /// The data directory does not grow beyond this: the oldest data is deleted.
    #[serde(deserialize_with = "text")]
    pub max_bytes: ByteSize,
    /// What is different for some tenants, by name.
    pub tenants: BTreeMap<String, TenantRetention>,
}

/// What is kept on disk of one tenant.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TenantRetention {
    /// Data older than this is deleted; without it the age of all tenants is meant.
    #[serde(deserialize_with = "optional_text")]
    pub age: Option<Duration>,
}

/// How small blocks become large ones.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct CompactionConfig {
    /// Whether this backend does it. One of those that share a bucket is enough.
    #[serde(deserialize_with = "text")]
    pub enabled: bool,
    /// Blocks are not merged into larger ones.
    #[serde(deserialize_with = "text")]
    pub max_block_bytes: ByteSize,
}

/// What is kept in memory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct LiveConfig {
    /// Estimated memory of all live traces; from half of it on those that were quiet for longest go to blocks at once,
    /// at all of it senders are asked to try again.
    #[serde(deserialize_with = "text")]
    pub max_bytes: ByteSize,
    /// Estimated memory of one trace; beyond it its spans are rejected. At most `max_bytes`.
    #[serde(deserialize_with = "text")]
    pub max_trace_bytes: ByteSize,
}

/// When traces go from memory to blocks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct CutConfig {
    /// A trace is due when nothing has come of it for this time.
    #[serde(deserialize_with = "text")]
    pub idle: Duration,
    /// A trace is due when its first span came this time ago.
    #[serde(deserialize_with = "text")]
    pub max_age: Duration,
    /// A block is written when the traces that are due take this much memory,
    #[serde(deserialize_with = "text")]
    pub block_bytes: ByteSize,
    /// or when one of them has been due for this time.
    #[serde(deserialize_with = "text")]
    pub max_wait: Duration,
}

/// What is taken in.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ReceiveConfig {
    /// Largest request, after decompression. At most `max_in_flight_bytes`.
    #[serde(deserialize_with = "text")]
    pub max_request_bytes: ByteSize,
    /// Requests in work at once; beyond it senders are asked to try again.
    #[serde(deserialize_with = "text")]
    pub max_in_flight_bytes: ByteSize,
}

/// Queries: what one may take (what takes more is an error that says so), and who may ask.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct QueryConfig {
    /// Time at work, and before that time in the queue.
    #[serde(deserialize_with = "text")]
    pub max_duration: Duration,
    /// Memory and storage that it looks at, as `inspectedBytes` counts them. Checked after each block.
    #[serde(deserialize_with = "text")]
    pub max_read_bytes: ByteSize,
    /// Memory of the traces of an answer to a search.
    #[serde(deserialize_with = "text")]
    pub max_answer_bytes: ByteSize,
    /// Memory for what a metrics query has counted so far; beyond it the answer is partial.
    #[serde(deserialize_with = "text")]
    pub max_metrics_bytes: ByteSize,
    /// Whether `/api/mcp` offers queries to language models.
    #[serde(deserialize_with = "text")]
    pub mcp: bool,
}

const MIB: u64 = 1 << 20;

impl Default for Config {
    fn default() -> Self {
        Self {
            file: None,
            data_dir: PathBuf::from("./coati-data"),
            log_level: LogLevel::Info,
            multitenancy: false,
            listen: Listen::default(),
            tls: TlsListeners::default(),
            auth: AuthConfig::default(),
            retention: RetentionConfig::default(),
            compaction: CompactionConfig::default(),
            live: LiveConfig::default(),
            cut: CutConfig::default(),
            receive: ReceiveConfig::default(),
            query: QueryConfig::default(),
            metrics_generator: GeneratorConfig::default(),
            overrides: OverridesConfig::default(),
            storage: StorageConfig::default(),
            given: Given::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let [api, otlp_grpc, otlp_http] =
            [3200, 4317, 4318].map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        Self { api, otlp_grpc, otlp_http }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { age: Duration::from_hours(7 * 24), max_bytes: ByteSize(10_240 * MIB), tenants: BTreeMap::new() }
    }
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self { enabled: true, max_block_bytes: ByteSize(1_024 * MIB) }
    }
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self { max_bytes: ByteSize(256 * MIB), max_trace_bytes: ByteSize(64 * MIB) }
    }
}

impl Default for CutConfig {
    fn default() -> Self {
        let [idle, max_age, max_wait] = [5, 30, 10].map(Duration::from_secs);
        Self { idle, max_age, block_bytes: ByteSize(64 * MIB), max_wait }
    }
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        Self { max_request_bytes: ByteSize(20 * MIB), max_in_flight_bytes: ByteSize(64 * MIB) }
    }
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self {
            max_duration: Duration::from_mins(2),
            max_read_bytes: ByteSize(1 << 40),
            max_answer_bytes: ByteSize(256 * MIB),
            max_metrics_bytes: ByteSize(32 * MIB),
            mcp: false,
        }
    }
}

/// The settings that have a flag and an environment variable, and their keys. Secrets have neither: every process sees flags.
pub(crate) const SETTINGS: [(&str, &str); 32] = [
    ("data-dir", "data_dir"),
    ("api-listen", "listen.api"),
    ("otlp-grpc-listen", "listen.otlp_grpc"),
    ("otlp-http-listen", "listen.otlp_http"),
    ("retention", "retention.age"),
    ("max-bytes", "retention.max_bytes"),
    ("compaction", "compaction.enabled"),
    ("max-block-bytes", "compaction.max_block_bytes"),
    ("max-live-bytes", "live.max_bytes"),
    ("max-trace-bytes", "live.max_trace_bytes"),
    ("cut-idle", "cut.idle"),
    ("cut-max-age", "cut.max_age"),
    ("cut-block-bytes", "cut.block_bytes"),
    ("cut-max-wait", "cut.max_wait"),
    ("max-request-bytes", "receive.max_request_bytes"),
    ("max-in-flight-bytes", "receive.max_in_flight_bytes"),
    ("query-max-duration", "query.max_duration"),
    ("query-max-read-bytes", "query.max_read_bytes"),
    ("query-max-answer-bytes", "query.max_answer_bytes"),
    ("query-max-metrics-bytes", "query.max_metrics_bytes"),
    ("query-mcp", "query.mcp"),
    ("multitenancy", "multitenancy"),
    ("log-level", "log_level"),
    ("storage-backend", "storage.backend"),
    ("s3-bucket", "storage.s3.bucket"),
    ("s3-prefix", "storage.s3.prefix"),
    ("s3-endpoint", "storage.s3.endpoint"),
    ("s3-region", "storage.s3.region"),
    ("s3-credentials-file", "storage.s3.credentials_file"),
    ("s3-insecure", "storage.s3.insecure"),
    ("s3-forcepathstyle", "storage.s3.forcepathstyle"),
    ("s3-tls-ca-path", "storage.s3.tls_ca_path"),
];

impl Config {
    /// Finds what no value shows by itself. `variable` gives environment variables.
    pub(crate) fn check(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        let found = self.receive.max_request_bytes;
        if found > MAX_REQUEST {
            let place = "receive.max_request_bytes (--max-request-bytes)".to_owned();
            return Err(ConfigError::Value { place, expected: "at most `1GiB`", found: found.to_string() });
        }
        match self.storage.backend {
            StorageBackend::Local => Ok(()),
            StorageBackend::S3 => Ok(crate::store::check_s3(&self.storage.s3, variable)?),
        }
    }

    /// Sets one of [`SETTINGS`]; `place` says where `text` comes from.
    pub(crate) fn set(&mut self, setting: &str, text: &str, place: &str) -> Result<(), ConfigError> {
        let Self {
            file: _,
            data_dir,
            log_level,
            multitenancy,
            listen,
            tls: _,
            auth: _,
            retention,
            compaction,
            live,
            cut,
            receive,
            query,
            metrics_generator: _,
            overrides: _,
            storage,
            given,
        } = self;
        given.set(setting, text);
        match setting {
            "data-dir" => set(data_dir, text, place),
            "api-listen" => set(&mut listen.api, text, place),
            "otlp-grpc-listen" => set(&mut listen.otlp_grpc, text, place),
            "otlp-http-listen" => set(&mut listen.otlp_http, text, place),
            "retention" => set(&mut retention.age, text, place),
            "max-bytes" => set(&mut retention.max_bytes, text, place),
            "compaction" => set(&mut compaction.enabled, text, place),
            "max-block-bytes" => set(&mut compaction.max_block_bytes, text, place),
            "max-live-bytes" => set(&mut live.max_bytes, text, place),
            "max-trace-bytes" => set(&mut live.max_trace_bytes, text, place),
            "cut-idle" => set(&mut cut.idle, text, place),
            "cut-max-age" => set(&mut cut.max_age, text, place),
            "cut-block-bytes" => set(&mut cut.block_bytes, text, place),
            "cut-max-wait" => set(&mut cut.max_wait, text, place),
            "max-request-bytes" => set(&mut receive.max_request_bytes, text, place),
            "max-in-flight-bytes" => set(&mut receive.max_in_flight_bytes, text, place),
            "query-max-duration" => set(&mut query.max_duration, text, place),
            "query-max-read-bytes" => set(&mut query.max_read_bytes, text, place),
            "query-max-answer-bytes" => set(&mut query.max_answer_bytes, text, place),
            "query-max-metrics-bytes" => set(&mut query.max_metrics_bytes, text, place),
            "query-mcp" => set(&mut query.mcp, text, place),
            "multitenancy" => set(multitenancy, text, place),
            "log-level" => set(log_level, text, place),
            "storage-backend" => set(&mut storage.backend, text, place),
            "s3-bucket" => set(&mut storage.s3.bucket, text, place),
            "s3-prefix" => set(&mut storage.s3.prefix, text, place),
            "s3-endpoint" => set(&mut storage.s3.endpoint, text, place),
            "s3-region" => set(&mut storage.s3.region, text, place),
            "s3-credentials-file" => set(&mut storage.s3.credentials_file, text, place),
            "s3-insecure" => set(&mut storage.s3.insecure, text, place),
            "s3-forcepathstyle" => set(&mut storage.s3.forcepathstyle, text, place),
            "s3-tls-ca-path" => set(&mut storage.s3.tls_ca_path, text, place),
            _ => Err(ConfigError::Flag(format!("{place}: no such setting"))),
        }
    }
}

/// Largest request that the log can hold.
const MAX_REQUEST: ByteSize = ByteSize(1 << 30);

fn set<T: Value>(target: &mut T, text: &str, place: &str) -> Result<(), ConfigError> {
    *target = T::from_text(text).ok_or_else(|| ConfigError::Value {
        place: place.to_owned(),
        expected: T::EXPECTED,
        found: text.to_owned(),
    })?;
    Ok(())
}
