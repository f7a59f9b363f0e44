//! Keys of Tempo's metrics-generator that mean nothing here: they are taken, and named in a warning.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A value that nobody looks at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unused;

impl<'de> Deserialize<'de> for Unused {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

const NO_RING: &str = "there is one backend, and no ring";
const NO_KAFKA: &str = "spans come by OTLP, not by Kafka";
const NO_LOCAL_BLOCKS: &str = "what came last can be queried in any case";
const NO_AGENT: &str = "samples wait in a queue of their own: see `remote_write_queue_bytes`";
const LATE_COUNT: &str = "late spans count too";
const NO_RESET: &str = "where there are too many buckets two become one, and nothing begins anew";
const IN_ORDER: &str = "one request after the other is sent, in order";

/// Where they stand below `metrics_generator`, and why. `*` stands for each entry of a map or a list.
const KEYS: [(&str, &str); 29] = [
    ("ring", NO_RING),
    ("ring_mode", NO_RING),
    ("override_ring_key", NO_RING),
    ("instance_id", NO_RING),
    ("codec", NO_KAFKA),
    ("ingest_concurrency", NO_KAFKA),
    ("traces_storage", NO_LOCAL_BLOCKS),
    ("traces_query_storage", NO_LOCAL_BLOCKS),
    ("query_timeout", NO_LOCAL_BLOCKS),
    ("processor.local_blocks", NO_LOCAL_BLOCKS),
    ("metrics_ingestion_time_range_slack", LATE_COUNT),
    ("processor.service_graphs.workers", "requests are counted as they come"),
    ("processor.span_metrics.max_spans_per_series_per_interval", "every span counts"),
    ("storage.path", NO_AGENT),
    ("storage.wal", NO_AGENT),
    ("storage.remote_write_flush_deadline", NO_AGENT),
    ("storage.remote_write.*.name", "servers are called by their URLs"),
    ("storage.remote_write.*.queue_config", IN_ORDER),
    ("storage.remote_write.*.metadata_config", "what series tell is in each request of version 2.0"),
    ("storage.remote_write.*.enable_http2", "the server chooses"),
    ("storage.remote_write.*.round_robin_dns", IN_ORDER),
    ("tenants.*.ring_size", NO_RING),
    ("tenants.*.forwarder", NO_RING),
    ("tenants.*.ingestion_time_range_slack", LATE_COUNT),
    ("tenants.*.native_histogram_min_reset_duration", NO_RESET),
    ("native_histogram_min_reset_duration", NO_RESET),
    ("tenants.*.processor.local_blocks", NO_LOCAL_BLOCKS),
    ("tenants.*.processor.service_graphs.workers", "requests are counted as they come"),
    ("tenants.*.processor.span_metrics.max_spans_per_series_per_interval", "every span counts"),
];

/// One line for each of them that a file says; `generator` is its `metrics_generator`.
pub(super) fn warnings(generator: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for (path, why) in KEYS {
        find(generator, "metrics_generator", path, &mut |place| {
            warnings.push(format!("{place}: taken from Tempo's configuration and not used: {why}"));
        });
    }
    warnings
}

/// The first of them that there is among a tenant's settings, and why it is not used.
pub(crate) fn unused_of_tenant(settings: &Value) -> Option<(&'static str, &'static str)> {
    let mut of_tenants = KEYS.iter().filter_map(|(path, why)| Some((path.strip_prefix("tenants.*.")?, *why)));
    of_tenants.find(|(path, _)| {
        let mut is_there = false;
        find(settings, "", path, &mut |_| is_there = true);
        is_there
    })
}

/// Names every place that there is of a path.
fn find(value: &Value, place: &str, path: &str, found: &mut dyn FnMut(&str)) {
    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
    let mut go_on = |value: &Value, place: &str| {
        if rest.is_empty() { found(place) } else { find(value, place, rest, found) }
    };
    match (value, key) {
        (Value::Object(members), "*") => {
            members.iter().for_each(|(name, value)| go_on(value, &format!("{place}.{name}")));
        }
        (Value::Array(entries), "*") => {
            (0..).zip(entries).for_each(|(number, value): (usize, _)| go_on(value, &format!("{place}[{number}]")));
        }
        (Value::Object(members), key) => {
            if let Some(value) = members.get(key) {
                go_on(value, &format!("{place}.{key}"));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;

    /// Every key that Tempo has below `metrics_generator`, with a value; `*` before those of which a warning says that they are
    /// not used.
    const TEMPO: &str = "
*ring: {kvstore: {store: memberlist}, instance_id: a}
*ring_mode: partition
*override_ring_key: key
*instance_id: a
*codec: otlp
*ingest_concurrency: 16
*traces_storage: {path: /var/tempo/generator/traces}
*traces_query_storage: {path: /x}
*query_timeout: 30s
*metrics_ingestion_time_range_slack: 30s
*native_histogram_min_reset_duration: 15m
limiter_type: entity
processor:
  service_graphs:
    wait: 10s
    max_items: 10000
*    workers: 10
    histogram_buckets: [0.1, 0.2]
    dimensions: [cluster]
    enable_client_server_prefix: true
    enable_messaging_system_latency_histogram: true
    peer_attributes: [peer.service]
    span_multiplier_key: X-SampleRatio
    enable_tracestate_span_multiplier: true
    enable_virtual_node_label: true
    database_name_attributes: [db.name]
    filter_policies: [{include: {match_type: strict, attributes: [{key: kind, value: SPAN_KIND_SERVER}]}}]
  span_metrics:
    histogram_buckets: [0.1, 0.2]
    intrinsic_dimensions: {service: true, span_name: true, span_kind: true, status_code: true, status_message: true}
    dimensions: [cluster]
    dimension_mappings: [{name: route, source_labels: [a, b], join: /}]
    enable_target_info: true
    enable_instance_label: false
    span_multiplier_key: X-SampleRatio
    enable_tracestate_span_multiplier: true
    target_info_excluded_dimensions: [a]
    filter_policies: [{exclude: {match_type: regex, attributes: [{key: name, value: a}]}}]
*    max_spans_per_series_per_interval: 100
  host_info: {host_identifiers: [host.id], metric_name: traces_host_info}
*  local_blocks: {flush_to_storage: true}
registry:
  collection_interval: 15s
  stale_duration: 15m
  external_labels: {cluster: a}
  inject_tenant_id_as: tenant
  max_label_name_length: 1024
  max_label_value_length: 2048
storage:
*  path: /var/tempo/generator/wal
*  wal: {wal_segment_size: 1}
*  remote_write_flush_deadline: 1m
  remote_write_add_org_id_header: true
  remote_write:
  - url: http://prometheus:9090/api/v1/write
    remote_timeout: 30s
    headers: {a: b}
    write_relabel_configs: [{action: drop, source_labels: [a], regex: b}]
    send_exemplars: true
    send_native_histograms: true
    protobuf_message: prometheus.WriteRequest
    basic_auth: {username: a, password: b}
    tls_config: {insecure_skip_verify: true}
*    name: prometheus
*    queue_config: {capacity: 1}
*    metadata_config: {send: true}
*    enable_http2: true
*    round_robin_dns: true
tenants:
  a:
    processors: [span-metrics, service-graphs, host-info]
    max_active_series: 1
    max_active_entities: 1
    max_cardinality_per_label: 1
    collection_interval: 30s
    disable_collection: true
    trace_id_label_name: trace_id
    remote_write_headers: {a: b}
    generate_native_histograms: both
    native_histogram_bucket_factor: 1.2
    native_histogram_max_bucket_number: 50
    span_name_sanitization: dry_run
*    native_histogram_min_reset_duration: 15m
*    ring_size: 1
*    forwarder: {queue_size: 1, workers: 2}
*    ingestion_time_range_slack: 30s
    processor:
      service_graphs:
        histogram_buckets: [0.1]
        dimensions: [a]
        peer_attributes: [a]
        filter_policies: []
        enable_client_server_prefix: true
        enable_messaging_system_latency_histogram: true
        enable_virtual_node_label: true
        span_multiplier_key: a
        enable_tracestate_span_multiplier: true
*        workers: 1
      span_metrics:
        histogram_buckets: [0.1]
        dimensions: [a]
        intrinsic_dimensions: {service: false}
        filter_policies: []
        dimension_mappings: []
        enable_target_info: true
        target_info_excluded_dimensions: []
        enable_instance_label: true
        span_multiplier_key: a
        enable_tracestate_span_multiplier: true
*        max_spans_per_series_per_interval: 1
      host_info: {host_identifiers: [a], metric_name: b}
*      local_blocks: {max_live_traces: 1}
";

    #[test]
    fn every_key_of_tempos_is_taken_and_those_that_mean_nothing_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<_> = TEMPO.lines().collect();
        let text: Vec<_> = lines.iter().map(|line| format!("  {}\n", line.trim_start_matches('*'))).collect();
        std::fs::write(file.path(), format!("metrics_generator:\n{}", text.concat())).unwrap();
        let config = read(file.path()).unwrap_or_else(|error| panic!("{error}"));
        let warnings = config.given.warnings();
        let unused: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix('*')?.trim().split_once(':')).collect();
        for (key, _) in &unused {
            let named = |warning: &&String| {
                warning.split_once(':').is_some_and(|(place, _)| place.ends_with(&format!(".{key}")))
            };
            assert!(warnings.iter().any(|warning| named(&warning)), "{key}: {warnings:#?}");
        }
        assert_eq!(warnings.len(), unused.len(), "{warnings:#?}");
        assert_eq!(super::KEYS.len(), unused.len(), "a key that no file of this test has");
    }

    /// Who sends is not left out of what is sent.
    #[test]
    fn credentials_that_cannot_be_used_are_a_mistake() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for key in ["authorization", "oauth2", "sigv4", "azuread", "google_iam", "proxy_url"] {
            let text = format!("metrics_generator: {{storage: {{remote_write: [{{url: 'http://x', {key}: {{}}}}]}}}}");
            std::fs::write(file.path(), text).unwrap();
            let error = read(file.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{key}: unknown field `{key}`")), "{error}");
        }
    }
}
