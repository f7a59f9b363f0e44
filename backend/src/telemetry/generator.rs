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
    /// `filter`.
    pub reason: String,
}

/// Labels of ends of requests that were given up.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct EdgeLabels {
    /// The tenant.
    pub tenant: String,
    /// The end that came: `client` or `server`.
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
    pub active: Family<TenantLabels, Gauge>,
    /// How many there may be.
    pub max_active: Family<TenantLabels, Gauge>,
    /// Series that were begun.
    pub added: Family<TenantLabels, Counter>,
    /// Series that were ended.
    pub removed: Family<TenantLabels, Counter>,
    /// Times that a series had no room, and was counted in the overflow.
    pub limited: Family<TenantLabels, Counter>,
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
        registry.register(name("spans_discarded"), "Spans not counted in span metrics", metrics.discarded);
        registry.register(name("registry_active_series"), "Series that are made", metrics.active);
        registry.register(name("registry_max_active_series"), "Series that may be made", metrics.max_active);
        registry.register(name("registry_series_added"), "Series begun", metrics.added);
        registry.register(name("registry_series_removed"), "Series ended", metrics.removed);
        let help = "Times that series had no room and were counted in those with metric_overflow";
        registry.register(name("registry_series_limited"), help, metrics.limited);
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
