//! Metrics that are made of spans. The keys are those of Tempo's `metrics_generator`, where it has them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::value::{Value, text};
use super::{FilterPolicy, GeneratorStorage, TenantGenerator, Unused};

/// Metrics that are made of spans, and where they go.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorConfig {
    /// What is made. Tempo has this among its overrides, and none of them on.
    pub processors: BTreeSet<ProcessorName>,
    /// Series: how many, how long, how often.
    pub registry: RegistryConfig,
    /// How each of the processors works.
    pub processor: ProcessorConfig,
    /// Which kind of histograms is made.
    #[serde(deserialize_with = "text")]
    pub generate_native_histograms: HistogramKind,
    /// Most that the upper bound of a native bucket is above the lower one.
    pub native_histogram_bucket_factor: BucketFactor,
    /// Most native buckets of a histogram; 0 is without a limit. When there are more, two become one.
    pub native_histogram_max_bucket_number: u32,
    /// Whether names of spans that have ids in them become patterns. Tempo has this among its overrides.
    #[serde(deserialize_with = "text")]
    pub span_name_sanitization: SpanNameSanitization,
    /// What there may not be too many of.
    #[serde(deserialize_with = "text")]
    pub limiter_type: LimiterType,
    /// Label of exemplars that holds the trace id.
    #[serde(deserialize_with = "text")]
    pub trace_id_label_name: String,
    /// Whether no samples are taken. Spans are counted all the same.
    pub disable_collection: bool,
    /// Where series go.
    pub storage: GeneratorStorage,
    /// What is different for some tenants, by name. Read again when the file changes.
    pub tenants: BTreeMap<String, TenantGenerator>,
    /// Tempo's, and not used.
    pub ring: Unused,
    /// Tempo's, and not used.
    pub ring_mode: Unused,
    /// Tempo's, and not used.
    pub override_ring_key: Unused,
    /// Tempo's, and not used.
    pub instance_id: Unused,
    /// Tempo's, and not used.
    pub codec: Unused,
    /// Tempo's, and not used.
    pub ingest_concurrency: Unused,
    /// Tempo's, and not used.
    pub traces_storage: Unused,
    /// Tempo's, and not used.
    pub traces_query_storage: Unused,
    /// Tempo's, and not used.
    pub query_timeout: Unused,
    /// Tempo's, and not used.
    pub metrics_ingestion_time_range_slack: Unused,
    /// Tempo's, and not used.
    pub native_histogram_min_reset_duration: Unused,
}

/// A kind of metrics, or a part of one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessorName {
    /// Calls, latencies and sizes of spans.
    SpanMetrics,
    /// Of these only the latencies.
    SpanMetricsLatency,
    /// Only the calls.
    SpanMetricsCount,
    /// Only the sizes.
    SpanMetricsSize,
    /// Requests from service to service: how many, and how long they took.
    ServiceGraphs,
    /// Of these only how many.
    ServiceGraphsRequest,
    /// Only how long they took.
    ServiceGraphsLatency,
    /// Which services call which. Not a part of the whole: it must be named.
    ServiceGraphsConnectionInfo,
    /// Hosts that send spans.
    HostInfo,
}

/// Series: how many, how long, how often.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Time between two samples of a series.
    #[serde(deserialize_with = "text")]
    pub collection_interval: Duration,
    /// A series ends when nothing was counted in it for this time.
    #[serde(deserialize_with = "text")]
    pub stale_duration: Duration,
    /// Labels of every series.
    pub external_labels: BTreeMap<String, String>,
    /// Label of every series that holds the tenant; empty for none.
    #[serde(deserialize_with = "text")]
    pub inject_tenant_id_as: String,
    /// Series of one tenant, as Prometheus counts them. What is beyond is counted in series with `metric_overflow="true"`. 0
    /// is without a limit, here and below.
    pub max_active_series: u32,
    /// Sets of labels of one tenant, if these are limited.
    pub max_active_entities: u32,
    /// Different values of a label of one tenant. In place of others there is `__cardinality_overflow__`.
    pub max_cardinality_per_label: u32,
    /// Longest name of a label, bytes. What is longer is cut.
    pub max_label_name_length: usize,
    /// Longest value of a label, bytes; likewise.
    pub max_label_value_length: usize,
}

/// How each of the processors works.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessorConfig {
    /// Calls, latencies and sizes of spans.
    pub span_metrics: SpanMetricsConfig,
    /// Requests from service to service.
    pub service_graphs: ServiceGraphsConfig,
    /// Hosts that send spans.
    pub host_info: HostInfoConfig,
    /// Tempo's, and not used.
    pub local_blocks: Unused,
}

/// Hosts that send spans.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct HostInfoConfig {
    /// Attributes of resources that name the host; the first that is there counts.
    pub host_identifiers: Vec<String>,
    /// Name of the metric.
    #[serde(deserialize_with = "text")]
    pub metric_name: String,
}

/// Calls, latencies and sizes of spans.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct SpanMetricsConfig {
    /// Upper bounds of the buckets of `traces_spanmetrics_latency`, seconds.
    pub histogram_buckets: Buckets,
    /// Labels that every span has.
    pub intrinsic_dimensions: IntrinsicDimensions,
    /// Attributes of resource or span that become labels.
    pub dimensions: Vec<String>,
    /// Labels that are joined of several attributes.
    pub dimension_mappings: Vec<DimensionMapping>,
    /// Whether `traces_target_info` is made, and labels `job` and `instance`.
    pub enable_target_info: bool,
    /// Whether there is `instance` then.
    pub enable_instance_label: bool,
    /// Attributes of resources that are no labels of `traces_target_info`.
    pub target_info_excluded_dimensions: Vec<String>,
    /// Which spans count.
    pub filter_policies: Vec<FilterPolicy>,
    /// Attribute that says which part of all spans was kept: 0.1 if a span stands for ten.
    #[serde(deserialize_with = "text")]
    pub span_multiplier_key: String,
    /// Whether the sampling threshold in the trace state says that too, and first.
    pub enable_tracestate_span_multiplier: bool,
    /// Tempo's, and not used.
    pub max_spans_per_series_per_interval: Unused,
}

/// Requests from service to service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub struct ServiceGraphsConfig {
    /// How long one end of a request waits for the other.
    #[serde(deserialize_with = "text")]
    pub wait: Duration,
    /// How many wait at once. When there are more the oldest is given up.
    pub max_items: usize,
    /// Upper bounds of the buckets of latencies, seconds.
    pub histogram_buckets: Buckets,
    /// Attributes of resource or span that become labels.
    pub dimensions: Vec<String>,
    /// Whether these labels begin with `client_` and `server_`.
    pub enable_client_server_prefix: bool,
    /// Attributes that name who is at the other end and sends no spans.
    pub peer_attributes: Vec<String>,
    /// Attributes of a client's span that tell that it asks a database, and which one if nothing says where that is.
    pub database_name_attributes: Vec<String>,
    /// Which spans count. Of a request of which one end does not, the other does not either.
    pub filter_policies: Vec<FilterPolicy>,
    /// Whether the label `virtual_node` says which end sends no spans.
    pub enable_virtual_node_label: bool,
    /// Whether `traces_service_graph_request_messaging_system_seconds` is made.
    pub enable_messaging_system_latency_histogram: bool,
    /// Attribute that says which part of all spans was kept: 0.1 if a span stands for ten.
    #[serde(deserialize_with = "text")]
    pub span_multiplier_key: String,
    /// Whether the sampling threshold in the trace state says that too, and first.
    pub enable_tracestate_span_multiplier: bool,
    /// Tempo's, and not used.
    pub workers: Unused,
}

/// Upper bounds of buckets, rising.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Vec<f64>")]
pub struct Buckets(pub Vec<f64>);

/// Two that are the same number are equal: there is none that is not a number.
impl Eq for Buckets {}

impl TryFrom<Vec<f64>> for Buckets {
    type Error = String;

    fn try_from(bounds: Vec<f64>) -> Result<Self, String> {
        let rising = bounds.is_sorted_by(|a, b| a < b) && bounds.iter().all(|bound| bound.is_finite());
        if !rising || bounds.is_empty() || bounds.len() > MAX_BUCKETS {
            return Err(format!("expected 1 to {MAX_BUCKETS} rising numbers"));
        }
        Ok(Self(bounds))
    }
}

/// What a bound is multiplied with to be the next one, at most.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(try_from = "f64")]
pub struct BucketFactor(pub f64);

/// It is a number.
impl Eq for BucketFactor {}

impl TryFrom<f64> for BucketFactor {
    type Error = String;

    fn try_from(factor: f64) -> Result<Self, String> {
        if factor > 1.0 && factor.is_finite() { Ok(Self(factor)) } else { Err("expected a number above 1".to_owned()) }
    }
}

/// Most buckets of a histogram, but for the last.
const MAX_BUCKETS: usize = 63;

/// Labels that every span has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub struct IntrinsicDimensions {
    /// `service`.
    pub service: bool,
    /// `span_name`.
    pub span_name: bool,
    /// `span_kind`.
    pub span_kind: bool,
    /// `status_code`.
    pub status_code: bool,
    /// `status_message`.
    pub status_message: bool,
}

/// A label that is joined of several attributes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct DimensionMapping {
    /// Name of the label.
    #[serde(deserialize_with = "text")]
    pub name: String,
    /// The attributes. What is missing is left out.
    pub source_labels: Vec<String>,
    /// What stands between them.
    #[serde(deserialize_with = "text")]
    pub join: String,
}

/// Which kind of histograms is made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HistogramKind {
    /// `_bucket`, `_sum`, `_count`.
    #[default]
    Classic,
    /// Prometheus' native ones.
    Native,
    /// Each in both ways.
    Both,
}

/// Whether names of spans that have ids in them become patterns.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SpanNameSanitization {
    /// They stay as they are.
    #[default]
    Disabled,
    /// So they do, but it is told how many series there would be otherwise.
    DryRun,
    /// They do, in metrics; spans are stored as they come.
    Enabled,
}

/// What there may not be too many of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LimiterType {
    /// Series: `max_active_series`.
    #[default]
    Series,
    /// Sets of labels: `max_active_entities`.
    Entity,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            processors: [ProcessorName::SpanMetrics, ProcessorName::ServiceGraphs].into(),
            registry: RegistryConfig::default(),
            processor: ProcessorConfig::default(),
            generate_native_histograms: HistogramKind::Classic,
            native_histogram_bucket_factor: BucketFactor(1.1),
            native_histogram_max_bucket_number: 100,
            span_name_sanitization: SpanNameSanitization::Disabled,
            limiter_type: LimiterType::Series,
            trace_id_label_name: "traceID".to_owned(),
            disable_collection: false,
            storage: GeneratorStorage::default(),
            tenants: BTreeMap::new(),
            ring: Unused,
            ring_mode: Unused,
            override_ring_key: Unused,
            instance_id: Unused,
            codec: Unused,
            ingest_concurrency: Unused,
            traces_storage: Unused,
            traces_query_storage: Unused,
            query_timeout: Unused,
            metrics_ingestion_time_range_slack: Unused,
            native_histogram_min_reset_duration: Unused,
        }
    }
}

impl Default for HostInfoConfig {
    fn default() -> Self {
        Self {
            host_identifiers: ["k8s.node.name", "host.id"].map(str::to_owned).to_vec(),
            metric_name: "traces_host_info".to_owned(),
        }
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            collection_interval: Duration::from_secs(10),
            stale_duration: Duration::from_mins(15),
            external_labels: BTreeMap::new(),
            inject_tenant_id_as: String::new(),
            max_active_series: 100_000,
            max_active_entities: 5_000,
            max_cardinality_per_label: 0,
            max_label_name_length: 1_024,
            max_label_value_length: 2_048,
        }
    }
}

impl Default for SpanMetricsConfig {
    fn default() -> Self {
        Self {
            histogram_buckets: Buckets::doubling(0.002, 14),
            intrinsic_dimensions: IntrinsicDimensions::default(),
            dimensions: Vec::new(),
            dimension_mappings: Vec::new(),
            enable_target_info: false,
            enable_instance_label: true,
            target_info_excluded_dimensions: Vec::new(),
            filter_policies: Vec::new(),
            span_multiplier_key: String::new(),
            enable_tracestate_span_multiplier: false,
            max_spans_per_series_per_interval: Unused,
        }
    }
}

impl Default for ServiceGraphsConfig {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(10),
            max_items: 10_000,
            histogram_buckets: Buckets::doubling(0.1, 8),
            dimensions: Vec::new(),
            enable_client_server_prefix: false,
            peer_attributes: ["peer.service", "db.name", "db.system", "db.system.name"].map(str::to_owned).to_vec(),
            database_name_attributes: ["db.namespace", "db.name", "db.system", "db.system.name"]
                .map(str::to_owned)
                .to_vec(),
            filter_policies: Vec::new(),
            enable_virtual_node_label: false,
            enable_messaging_system_latency_histogram: false,
            span_multiplier_key: String::new(),
            enable_tracestate_span_multiplier: false,
            workers: Unused,
        }
    }
}

impl Default for IntrinsicDimensions {
    fn default() -> Self {
        Self { service: true, span_name: true, span_kind: true, status_code: true, status_message: false }
    }
}

impl Buckets {
    /// `count` bounds, each twice the one before.
    fn doubling(first: f64, count: usize) -> Self {
        Self(std::iter::successors(Some(first), |bound| Some(bound * 2.0)).take(count).collect())
    }
}

impl Value for HistogramKind {
    const EXPECTED: &'static str = "`classic`, `native` or `both`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "classic" => Some(Self::Classic),
            "native" => Some(Self::Native),
            "both" => Some(Self::Both),
            _ => None,
        }
    }
}

impl Value for SpanNameSanitization {
    const EXPECTED: &'static str = "`disabled`, `dry_run` or `enabled`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            // Empty is what Tempo calls it.
            "" | "disabled" => Some(Self::Disabled),
            "dry_run" => Some(Self::DryRun),
            "enabled" => Some(Self::Enabled),
            _ => None,
        }
    }
}

impl Value for LimiterType {
    const EXPECTED: &'static str = "`series` or `entity`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "series" => Some(Self::Series),
            "entity" => Some(Self::Entity),
            _ => None,
        }
    }
}
