//! Names are a contract: with Beyla, whose dashboards are to work, and with who translates OTLP for Prometheus.

use super::{
    point::{Metric, Shape, Unit},
    *,
};

fn all() -> Vec<Metric> {
    let mut all: Vec<Metric> = Kind::ALL.iter().flat_map(|kind| kind.metrics()).copied().collect();
    all.extend([super::super::names::TARGET_INFO, super::super::names::TRACES_TARGET_INFO]);
    all.push(super::super::names::TRACES_HOST_INFO);
    all.extend(processes::ALL);
    all
}

/// What Beyla exports, as far as it is of requests and processes: what of it there is, and that nothing else is.
const BEYLA: &[(&str, &str, Shape, &str)] = &[
    ("http.server.request.duration", "s", Shape::Histogram, "http_server_request_duration_seconds"),
    ("http.client.request.duration", "s", Shape::Histogram, "http_client_request_duration_seconds"),
    ("http.server.request.body.size", "By", Shape::Histogram, "http_server_request_body_size_bytes"),
    ("http.server.response.body.size", "By", Shape::Histogram, "http_server_response_body_size_bytes"),
    ("http.client.request.body.size", "By", Shape::Histogram, "http_client_request_body_size_bytes"),
    ("http.client.response.body.size", "By", Shape::Histogram, "http_client_response_body_size_bytes"),
    ("rpc.server.call.duration", "s", Shape::Histogram, "rpc_server_call_duration_seconds"),
    ("rpc.client.call.duration", "s", Shape::Histogram, "rpc_client_call_duration_seconds"),
    ("traces_spanmetrics_latency", "s", Shape::Histogram, "traces_spanmetrics_latency"),
    ("traces_spanmetrics_calls_total", "", Shape::Counter, "traces_spanmetrics_calls_total"),
    ("traces_spanmetrics_size_total", "", Shape::Counter, "traces_spanmetrics_size_total"),
    ("traces_spanmetrics_response_size_total", "", Shape::Counter, "traces_spanmetrics_response_size_total"),
    ("traces.span.metrics.duration", "s", Shape::Histogram, "traces_span_metrics_duration_seconds"),
    ("traces.span.metrics.calls", "", Shape::Counter, "traces_span_metrics_calls_total"),
    ("traces_service_graph_request_client", "s", Shape::Histogram, "traces_service_graph_request_client_seconds"),
    ("traces_service_graph_request_server", "s", Shape::Histogram, "traces_service_graph_request_server_seconds"),
    ("traces_service_graph_request_total", "", Shape::Counter, "traces_service_graph_request_total"),
    ("traces_service_graph_request_failed_total", "", Shape::Counter, "traces_service_graph_request_failed_total"),
    ("", "", Shape::Gauge, "target_info"),
    ("traces_target_info", "", Shape::Gauge, "traces_target_info"),
    ("traces_host_info", "", Shape::Gauge, "traces_host_info"),
    ("process.cpu.time", "s", Shape::Counter, "process_cpu_time_seconds_total"),
    ("process.cpu.utilization", "1", Shape::Gauge, "process_cpu_utilization_ratio"),
    ("process.memory.usage", "By", Shape::Gauge, "process_memory_usage_bytes"),
    ("process.memory.virtual", "By", Shape::Gauge, "process_memory_virtual_bytes"),
    ("process.disk.io", "By", Shape::Counter, "process_disk_io_bytes_total"),
    ("gen_ai.client.token.usage", "{token}", Shape::Histogram, "gen_ai_client_token_usage"),
    // Not Beyla's: the conventions'.
    ("gen_ai.server.request.duration", "s", Shape::Histogram, "gen_ai_server_request_duration_seconds"),
    ("gen_ai.server.time_to_first_token", "s", Shape::Histogram, "gen_ai_server_time_to_first_token_seconds"),
    ("gen_ai.server.time_per_output_token", "s", Shape::Histogram, "gen_ai_server_time_per_output_token_seconds"),
];

/// What else Beyla exports of requests, processes and services. `docs/migrate.md` says of each why it is not here.
const NOT_HERE: [&str; 28] = [
    "survey_info",
    "beyla_build_info",
    "beyla_avoided_services",
    "gen_ai_client_operation_duration_seconds",
    "db_client_operation_duration_seconds",
    "db_server_operation_duration_seconds",
    "messaging_client_operation_duration_seconds",
    "messaging_publish_duration_seconds",
    "messaging_process_duration_seconds",
    "dns_lookup_duration_seconds",
    "gpu_cuda_kernel_launch_calls_total",
    "gpu_cuda_graph_launch_calls_total",
    "gpu_cuda_kernel_grid_size",
    "gpu_cuda_kernel_block_size",
    "gpu_cuda_memory_allocations_bytes_total",
    "gpu_cuda_memory_copies_bytes",
    "beyla_network_flow_bytes_total",
    "beyla_network_flow_packets_total",
    "beyla_network_inter_zone_bytes_total",
    "beyla_stat_tcp_rtt_seconds",
    "beyla_stat_tcp_failed_connections_total",
    "beyla_stat_tcp_retransmits_total",
    "beyla_stat_tcp_io_bytes_total",
    "process_network_io_bytes_total",
    "go_…",
    "jvm_memory_…",
    "nodejs_eventloop_…",
    "beyla_instrumented_processes",
];

#[test]
fn of_what_is_not_here_the_reason_is_said() {
    let page = include_str!("../../../../docs/migrate.md");
    let ours: Vec<_> = all().iter().map(exposed).collect();
    for name in NOT_HERE {
        assert!(!ours.iter().any(|ours| ours == name), "{name} is here");
        // A row of the table: the names, and what is to be said of them.
        let is_row = |line: &&str| line.starts_with('|') && line.contains(&format!("`{name}`"));
        assert!(page.lines().any(|line| is_row(&line)), "docs/migrate.md does not name {name}");
    }
}

fn exposed(metric: &Metric) -> String {
    let suffix = if metric.shape == Shape::Counter { "_total" } else { "" };
    format!("{}{suffix}", metric.prometheus)
}

#[test]
fn names_are_beylas() {
    let mut ours: Vec<_> =
        all().iter().map(|metric| (metric.otlp, metric.unit.otlp(), metric.shape.name(), exposed(metric))).collect();
    let mut theirs: Vec<_> =
        BEYLA.iter().map(|(otlp, unit, shape, name)| (*otlp, *unit, shape.name(), (*name).to_owned())).collect();
    ours.sort();
    // Sizes are also there alone.
    ours.dedup();
    theirs.sort();
    assert_eq!(ours, theirs);
}

/// Prometheus makes these names of those of OTLP: who scrapes and who is sent to has the same series.
#[test]
fn both_ways_give_the_same_names() {
    for metric in all() {
        // The older name has no unit on `/metrics`.
        if metric.otlp.is_empty() || metric.otlp == "traces_spanmetrics_latency" {
            continue;
        }
        let mut name = metric.otlp.replace('.', "_");
        let unit = match metric.unit {
            Unit::Bytes => "_bytes",
            Unit::Seconds => "_seconds",
            Unit::Ratio => "_ratio",
            Unit::None | Unit::Other(_) => "",
        };
        name.push_str(unit);
        if metric.shape == Shape::Counter && !name.ends_with("_total") {
            name.push_str("_total");
        }
        assert_eq!(name, exposed(&metric));
    }
}

#[rstest]
#[case::durations(Kind::HttpServer, 0, &[0.0, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0])]
#[case::sizes(Kind::HttpClient, 2, &[0.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0])]
#[case::first_token(Kind::ModelPace, 0, &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0])]
#[case::per_token(Kind::ModelPace, 1, &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5])]
fn buckets_are_beylas_and_the_conventions(#[case] kind: Kind, #[case] place: usize, #[case] bounds: &[f64]) {
    assert_eq!(&*kind.bounds(place, &Buckets::default()).0, bounds);
}
