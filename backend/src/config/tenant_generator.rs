//! What of the generator of metrics is different for some tenants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;

use super::value::optional_text;
use super::{
    BucketFactor, Buckets, DimensionMapping, FilterPolicy, GeneratorConfig, HistogramKind, HostInfoConfig,
    IntrinsicDimensions, ProcessorName, SecretText, ServiceGraphsConfig, SpanMetricsConfig, SpanNameSanitization,
    Unused,
};

/// The generator's settings of one tenant. What is not said is as for all.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TenantGenerator {
    /// What is made; none if this is empty.
    pub processors: Option<BTreeSet<ProcessorName>>,
    /// Series of the tenant, as Prometheus counts them.
    pub max_active_series: Option<u32>,
    /// Sets of labels of the tenant, if these are limited.
    pub max_active_entities: Option<u32>,
    /// Different values of a label of the tenant.
    pub max_cardinality_per_label: Option<u32>,
    /// Time between two samples of a series of the tenant.
    #[serde(deserialize_with = "optional_text")]
    pub collection_interval: Option<Duration>,
    /// Whether no samples are taken of the tenant's series. Its spans are counted all the same.
    pub disable_collection: Option<bool>,
    /// Label of exemplars that holds the trace id.
    #[serde(deserialize_with = "optional_text")]
    pub trace_id_label_name: Option<String>,
    /// Sent with every request of remote write that has series of the tenant; these win over a server's `headers`.
    pub remote_write_headers: BTreeMap<String, SecretText>,
    /// Whether names of spans that have ids in them become patterns.
    #[serde(deserialize_with = "optional_text")]
    pub span_name_sanitization: Option<SpanNameSanitization>,
    /// Which kind of histograms is made.
    #[serde(deserialize_with = "optional_text")]
    pub generate_native_histograms: Option<HistogramKind>,
    /// Most that the upper bound of a native bucket is above the lower one.
    pub native_histogram_bucket_factor: Option<BucketFactor>,
    /// Most native buckets of a histogram.
    pub native_histogram_max_bucket_number: Option<u32>,
    /// How each of the processors works.
    pub processor: TenantProcessors,
    /// Tempo's, and not used.
    pub ring_size: Unused,
    /// Tempo's, and not used.
    pub forwarder: Unused,
    /// Tempo's, and not used.
    pub ingestion_time_range_slack: Unused,
    /// Tempo's, and not used.
    pub native_histogram_min_reset_duration: Unused,
}

/// How each of the processors works.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TenantProcessors {
    /// Calls, latencies and sizes of spans.
    pub span_metrics: TenantSpanMetrics,
    /// Requests from service to service.
    pub service_graphs: TenantServiceGraphs,
    /// Hosts that send spans.
    pub host_info: TenantHostInfo,
    /// Tempo's, and not used.
    pub local_blocks: Unused,
}

/// Makes a struct whose fields are all optional, and puts what is said over the settings of all.
macro_rules! over {
    ($(#[$doc:meta])* $name:ident over $base:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                #[doc = concat!("As `", stringify!($field), "` of all.")]
                pub $field: Option<$kind>,
            )*
        }

        impl $name {
            fn put_over(&self, base: &mut $base) {
                $(if let Some(value) = &self.$field { base.$field.clone_from(value); })*
            }
        }
    };
}

over! {
    /// Calls, latencies and sizes of spans.
    TenantSpanMetrics over SpanMetricsConfig {
        histogram_buckets: Buckets,
        intrinsic_dimensions: IntrinsicDimensions,
        dimensions: Vec<String>,
        dimension_mappings: Vec<DimensionMapping>,
        enable_target_info: bool,
        enable_instance_label: bool,
        target_info_excluded_dimensions: Vec<String>,
        filter_policies: Vec<FilterPolicy>,
        span_multiplier_key: String,
        enable_tracestate_span_multiplier: bool,
        max_spans_per_series_per_interval: Unused,
    }
}

over! {
    /// Requests from service to service.
    TenantServiceGraphs over ServiceGraphsConfig {
        histogram_buckets: Buckets,
        dimensions: Vec<String>,
        enable_client_server_prefix: bool,
        peer_attributes: Vec<String>,
        database_name_attributes: Vec<String>,
        filter_policies: Vec<FilterPolicy>,
        enable_virtual_node_label: bool,
        enable_messaging_system_latency_histogram: bool,
        span_multiplier_key: String,
        enable_tracestate_span_multiplier: bool,
        workers: Unused,
    }
}

over! {
    /// Hosts that send spans.
    TenantHostInfo over HostInfoConfig {
        host_identifiers: Vec<String>,
        metric_name: String,
    }
}

impl TenantGenerator {
    /// The settings of the tenant, if `base` are those of all.
    pub fn over(&self, base: &GeneratorConfig) -> GeneratorConfig {
        let mut config = base.clone();
        // Headers are for who sends.
        let Self { processors, generate_native_histograms, processor, remote_write_headers: _, .. } = self;
        if let Some(processors) = processors {
            config.processors.clone_from(processors);
        }
        if let Some(label) = &self.trace_id_label_name {
            config.trace_id_label_name.clone_from(label);
        }
        config.disable_collection = self.disable_collection.unwrap_or(base.disable_collection);
        let registry = &mut config.registry;
        for (limit, own) in [
            (&mut registry.max_active_series, self.max_active_series),
            (&mut registry.max_active_entities, self.max_active_entities),
            (&mut registry.max_cardinality_per_label, self.max_cardinality_per_label),
        ] {
            *limit = own.unwrap_or(*limit);
        }
        registry.collection_interval = self.collection_interval.unwrap_or(base.registry.collection_interval);
        let (factor, max) = (self.native_histogram_bucket_factor, self.native_histogram_max_bucket_number);
        config.native_histogram_bucket_factor = factor.unwrap_or(base.native_histogram_bucket_factor);
        config.native_histogram_max_bucket_number = max.unwrap_or(base.native_histogram_max_bucket_number);
        config.span_name_sanitization = self.span_name_sanitization.unwrap_or(base.span_name_sanitization);
        config.generate_native_histograms = generate_native_histograms.unwrap_or(base.generate_native_histograms);
        processor.span_metrics.put_over(&mut config.processor.span_metrics);
        processor.service_graphs.put_over(&mut config.processor.service_graphs);
        processor.host_info.put_over(&mut config.processor.host_info);
        config
    }
}
