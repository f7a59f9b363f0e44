//! What `generator` counts of itself.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::TenantLabels;

/// Labels of spans that were not counted.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ReasonLabels {
    /// The tenant.
    pub tenant: String,
    /// The kind of metrics that they are not in.
    pub processor: String,
    /// `span_metrics_filtered` or `service_graphs_filtered`.
    pub reason: String,
}

/// Labels of a label of series.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct LabelLabels {
    /// The tenant.
    pub tenant: String,
    /// The label.
    pub label_name: String,
}

/// Labels of ends of requests that were given up.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct EdgeLabels {
    /// The tenant.
    pub tenant: String,
    /// The end that came: `SPAN_KIND_CLIENT` or `SPAN_KIND_SERVER`.
    pub unmatched_span_kind: String,
}

/// Label of a server that takes remote write.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct EndpointLabels {
    /// Its URL, without user and password.
    pub url: String,
}

/// Labels of what a server did not get.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct LossLabels {
    /// Its URL, without user and password.
    pub url: String,
    /// `refused` by it, `queue_full`, or `damaged` on disk.
    pub reason: String,
}

/// Labels of a kind of metrics that is made.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ProcessorLabels {
    /// The tenant.
    pub tenant: String,
    /// As the configuration calls it.
    pub processor: String,
}

/// How many there are of something that is limited, and what became of others.
#[derive(Clone, Debug, Default)]
pub struct LimitedMetrics {
    /// How many there are,
    pub active: Family<TenantLabels, Gauge>,
    /// may be; 0 is without a limit,
    pub max_active: Family<TenantLabels, Gauge>,
    /// and would be without a limit, about.
    pub demand: Family<TenantLabels, Gauge>,
    /// Those that were begun.
    pub added: Family<TenantLabels, Counter>,
    /// Those that were ended.
    pub removed: Family<TenantLabels, Counter>,
    /// Times that one had no room.
    pub limited: Family<TenantLabels, Counter>,
}

/// What `generator` counts of itself.
#[derive(Clone, Debug, Default)]
pub struct GeneratorMetrics {
    /// Spans that were looked at.
    pub spans: Family<TenantLabels, Counter>,
    /// Their size.
    pub bytes: Family<TenantLabels, Counter>,
    /// Spans that were not counted.
    pub discarded: Family<ReasonLabels, Counter>,
    /// Series, as Prometheus counts them.
    pub series: LimitedMetrics,
    /// Sets of labels.
    pub entities: LimitedMetrics,
    /// Values of a label that there would be without a limit, about.
    pub label_demand: Family<LabelLabels, Gauge>,
    /// Times that a value of it was replaced.
    pub limited_values: Family<LabelLabels, Counter>,
    /// Spans whose name is not its pattern.
    pub sanitized: Family<TenantLabels, Counter>,
    /// Series there are with patterns for names, or would be, about.
    pub sanitized_demand: Family<TenantLabels, Gauge>,
    /// 1 for each kind of metrics that is made.
    pub processors: Family<ProcessorLabels, Gauge>,
    /// Settings of tenants that could not be used.
    pub failed_changes: Family<TenantLabels, Counter>,
    /// Times that what a tenant said of itself could not be read or used.
    pub failed_overrides: Counter,
    /// Whether what the configuration's file says of tenants is in use.
    pub tenants_reloaded: Gauge,
    /// Collections.
    pub collections: Counter,
    /// Collections that could not be written to disk.
    pub failed_collections: Counter,
    /// Edges of service graphs that were counted; as a gauge, because Tempo's name is none of a counter.
    pub edges: Family<TenantLabels, Gauge>,
    /// Ends of requests that were given up; likewise.
    pub expired_edges: Family<EdgeLabels, Gauge>,
    /// Edges that are missing because a filter left out one of their ends.
    pub dropped_edges: Family<TenantLabels, Counter>,
    /// Ends of requests that wait for the other.
    pub waiting_edges: Family<TenantLabels, Gauge>,
    /// Samples that servers took.
    pub sent_samples: Family<EndpointLabels, Counter>,
    /// Samples that they did not get.
    pub lost_samples: Family<LossLabels, Counter>,
    /// Requests that are tried again.
    pub retries: Family<EndpointLabels, Counter>,
    /// Bytes that wait on disk.
    pub queue_bytes: Family<EndpointLabels, Gauge>,
    /// When the newest sample that a server took was made, seconds since the epoch.
    pub newest_sent: Family<EndpointLabels, Gauge>,
}

impl GeneratorMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let metrics = self.clone();
        let name = |name: &str| format!("tempo_metrics_generator_{name}");
        registry.register(name("spans_received"), "Spans that metrics are made of", metrics.spans);
        registry.register(name("bytes_received"), "Their size", metrics.bytes);
        registry.register(
            name("spans_discarded"),
            "Spans that a filter left out of a kind of metrics",
            metrics.discarded,
        );
        register_limited(registry, metrics.series, "series", ["Series", "active_series_demand_estimate"]);
        register_limited(registry, metrics.entities, "entities", ["Sets of labels", "entity_demand_estimate"]);
        let help = "Values of a label there would be without max_cardinality_per_label, about";
        registry.register(name("registry_label_cardinality_demand_estimate"), help, metrics.label_demand);
        let help = "Times that a value of a label was replaced by __cardinality_overflow__";
        registry.register(name("registry_label_values_limited"), help, metrics.limited_values);
        let help = "Spans whose name was replaced by a pattern, or would be with span_name_sanitization: enabled";
        registry.register(name("registry_spans_sanitized"), help, metrics.sanitized);
        let help = "Series there are with patterns for names, or would be, about";
        registry.register(name("registry_post_sanitization_demand_estimate"), help, metrics.sanitized_demand);
        registry.register(name("active_processors"), "1 for each kind of metrics that is made", metrics.processors);
        let help = "Settings of tenants that could not be used";
        registry.register(name("active_processors_update_failed"), help, metrics.failed_changes);
        let help = "Times that what a tenant said at /api/overrides could not be read or used";
        let name_of_failed = "tempo_overrides_user_configurable_overrides_reload_failed";
        registry.register(name_of_failed, help, metrics.failed_overrides);
        let help = "Whether what the configuration's file says of tenants is in use";
        registry.register("tempo_runtime_config_last_reload_successful", help, metrics.tenants_reloaded);
        registry.register(name("registry_collections"), "Collections of all series", metrics.collections);
        let help = "Collections that could not be written to disk";
        registry.register(name("registry_collections_failed"), help, metrics.failed_collections);
        // These two only rise. They are gauges because a counter's name would end with `_total`, which Tempo's do not.
        let help = "Requests from service to service";
        registry.register(name("processor_service_graphs_edges"), help, metrics.edges);
        let help = "Ends of requests whose other end did not come";
        registry.register(name("processor_service_graphs_expired_edges"), help, metrics.expired_edges);
        let help = "Edges that are missing because a filter left out one of their ends";
        registry.register(name("processor_service_graphs_dropped_edges"), help, metrics.dropped_edges);
        let name = |name: &str| format!("coati_backend_{name}");
        let help = "Ends of requests that wait for the other";
        registry.register(name("service_graphs_waiting_edges"), help, metrics.waiting_edges);
        registry.register(name("remote_write_samples"), "Samples that the server took", metrics.sent_samples);
        registry.register(name("remote_write_lost_samples"), "Samples that it will not get", metrics.lost_samples);
        registry.register(name("remote_write_retries"), "Requests tried again", metrics.retries);
        registry.register(name("remote_write_queue_bytes"), "Bytes that wait on disk", metrics.queue_bytes);
        let help = "Time of the newest sample that the server took, seconds since the epoch";
        registry.register(name("remote_write_newest_sample_timestamp_seconds"), help, metrics.newest_sent);
    }
}

/// `what` there may be too many of: its name, and what it is called in help and what there would be.
fn register_limited(registry: &mut Registry, metrics: LimitedMetrics, what: &str, [help, demand]: [&str; 2]) {
    let name = |name: &str| format!("tempo_metrics_generator_registry_{name}");
    registry.register(name(&format!("active_{what}")), format!("{help} that are made"), metrics.active);
    let help_of_max = format!("{help} that may be made; 0 is without a limit");
    registry.register(name(&format!("max_active_{what}")), help_of_max, metrics.max_active);
    registry.register(name(demand), format!("{help} there would be without a limit, about"), metrics.demand);
    registry.register(name(&format!("{what}_added")), format!("{help} begun"), metrics.added);
    registry.register(name(&format!("{what}_removed")), format!("{help} ended"), metrics.removed);
    let help_of_limited = format!("Times that {} had no room and were counted in metric_overflow", help.to_lowercase());
    registry.register(name(&format!("{what}_limited")), help_of_limited, metrics.limited);
}
