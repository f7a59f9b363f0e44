//! What is different for some tenants, and what becomes of series when that changes; hosts.

use std::collections::BTreeMap;

use rstest::rstest;

use super::collected::SeriesState;
use super::tests::{NOW_MS, of, shown, span, traces};
use super::*;

fn generator(yaml: &str) -> Generator {
    Generator::new(&serde_saphyr::from_str(yaml).unwrap(), "", GeneratorMetrics::default(), NOW_MS).unwrap()
}

fn settings(yaml: &str) -> BTreeMap<String, TenantGenerator> {
    serde_saphyr::from_str(yaml).unwrap()
}

fn count(generator: &Generator, tenant: &str, sequence: u64) {
    let spans = vec![span(2, sequence as u8, 0, 50, &[("http.route", "/cart")])];
    generator.count(tenant, &of("shop", spans), NOW_MS * 1_000_000, sequence);
}

/// Names of the counters and what their labels say of routes, of each tenant.
fn calls(collected: &Collected) -> Vec<String> {
    let mut found = Vec::new();
    for tenant in &collected.tenants {
        tenant.points(|point| {
            let label = |name: &str| point.labels.iter().find(|label| label.0 == name).map(|label| label.1);
            if let (
                Some(name @ ("traces_spanmetrics_calls_total" | "traces_host_info")),
                collected::PointValue::Float(value),
            ) = (label("__name__"), point.value)
            {
                let route = label("http_route").map(|route| format!(" {route}")).unwrap_or_default();
                let state = if point.state == SeriesState::Gone { " ends" } else { "" };
                found.push(format!("{} {name}{route} {value}{state}", tenant.tenant));
            }
        });
    }
    found.sort();
    found
}

#[test]
fn a_tenant_may_have_settings_of_its_own() {
    let yaml = "tenants:\n  a: {processor: {span_metrics: {dimensions: [http.route]}}}\n  b: {processors: []}\n";
    let generator = generator(yaml);
    for (sequence, tenant) in (1..).zip(["a", "b", "c"]) {
        count(&generator, tenant, sequence);
    }
    assert_eq!(
        calls(&generator.collect(NOW_MS + 1_000)),
        ["a traces_spanmetrics_calls_total /cart 1", "c traces_spanmetrics_calls_total 1"]
    );
}

#[test]
fn series_that_change_end_and_others_go_on() {
    let generator = generator("{}");
    for (sequence, tenant) in (1..).zip(["a", "b"]) {
        count(&generator, tenant, sequence);
    }
    generator.collect(NOW_MS + 1_000);
    let with_routes = settings("a: {processor: {span_metrics: {dimensions: [http.route]}}}");
    generator.set_tenants(&with_routes).unwrap();
    for (sequence, tenant) in (3..).zip(["a", "b"]) {
        count(&generator, tenant, sequence);
    }
    let expected = [
        "a traces_spanmetrics_calls_total /cart 1",
        "a traces_spanmetrics_calls_total 1 ends",
        "b traces_spanmetrics_calls_total 2",
    ];
    assert_eq!(calls(&generator.collect(NOW_MS + 2_000)), expected);
    // Said again, nothing changes.
    generator.set_tenants(&with_routes).unwrap();
    let expected = ["a traces_spanmetrics_calls_total /cart 1", "b traces_spanmetrics_calls_total 2"];
    assert_eq!(calls(&generator.collect(NOW_MS + 3_000)), expected);
    // Without settings of its own it is counted like all others.
    generator.set_tenants(&BTreeMap::new()).unwrap();
    count(&generator, "a", 5);
    let expected = [
        "a traces_spanmetrics_calls_total /cart 1 ends",
        "a traces_spanmetrics_calls_total 1",
        "b traces_spanmetrics_calls_total 2",
    ];
    assert_eq!(calls(&generator.collect(NOW_MS + 4_000)), expected);
    let active = generator.counted().tenants["a"].room.series.active;
    let (of_spans, of_edges) = (19, 24);
    assert_eq!(active, of_spans + of_edges, "only what is there counts");
}

#[test]
fn settings_that_cannot_be_used_change_nothing() {
    let generator = generator("{}");
    count(&generator, "a", 1);
    let bad = "{filter_policies: [{include: {match_type: strict, attributes: [{key: nowhere, value: 1}]}}]}";
    let bad = settings(&format!("a: {{processors: []}}\nb: {{processor: {{span_metrics: {bad}}}}}"));
    generator.set_tenants(&bad).unwrap_err();
    assert_eq!(calls(&generator.collect(NOW_MS + 1_000)), ["a traces_spanmetrics_calls_total 1"]);
    let labels = TenantLabels { tenant: "b".to_owned() };
    assert_eq!(generator.metrics.failed_changes.get_or_create(&labels).get(), 1);
}

#[test]
fn a_tenant_may_have_less_room() {
    let generator = generator("tenants: {a: {max_active_series: 19}}");
    for (sequence, tenant) in (1..).zip(["a", "a", "b", "b"]) {
        let spans =
            vec![opentelemetry_proto::tonic::trace::v1::Span { name: sequence.to_string(), ..span(1, 1, 0, 5, &[]) }];
        generator.count(tenant, &of("shop", spans), NOW_MS * 1_000_000, sequence);
    }
    let limited = |tenant: &str| generator.counted().tenants[tenant].room.series.limited;
    assert_eq!((limited("a"), limited("b")), (19, 0));
}

#[rstest]
#[case::node(&[("host.id", "h"), ("k8s.node.name", "n")], "traces_host_info{grafana_host_id=n, host_source=k8s.node.name} 1")]
#[case::id(&[("host.id", "h"), ("k8s.node.name", "")], "traces_host_info{grafana_host_id=h, host_source=host.id} 1")]
#[case::none(&[("host.name", "h")], "")]
fn hosts_that_send_spans(#[case] resource: &[(&str, &str)], #[case] expected: &str) {
    let generator = generator("processors: [host-info]");
    for sequence in 1..3 {
        generator.count("a", &traces(resource, vec![span(1, 1, 0, 5, &[])]), NOW_MS * 1_000_000, sequence);
    }
    assert_eq!(shown(&generator.collect(NOW_MS + 1_000), ""), expected);
}

/// Names of all series but buckets, each once.
fn names(collected: &Collected) -> Vec<String> {
    let names = shown(collected, "");
    let names: std::collections::BTreeSet<_> =
        names.lines().filter_map(|line| line.split('{').next()).map(str::to_owned).collect();
    names.into_iter().collect()
}

#[rstest]
#[case::count("span-metrics-count", &["spanmetrics_calls_total"])]
#[case::size("span-metrics-size", &["spanmetrics_size_total"])]
#[case::latency("span-metrics-latency", &["spanmetrics_latency_count", "spanmetrics_latency_sum"])]
#[case::two("span-metrics-count, span-metrics-size", &["spanmetrics_calls_total", "spanmetrics_size_total"])]
#[case::whole_and_part(
    "span-metrics, span-metrics-size",
    &["spanmetrics_calls_total", "spanmetrics_latency_count", "spanmetrics_latency_sum", "spanmetrics_size_total"]
)]
#[case::request("service-graphs-request", &["service_graph_request_failed_total", "service_graph_request_total"])]
#[case::graph_latency(
    "service-graphs-latency",
    &[
        "service_graph_request_client_seconds_count",
        "service_graph_request_client_seconds_sum",
        "service_graph_request_server_seconds_count",
        "service_graph_request_server_seconds_sum",
    ]
)]
#[case::connections("service-graphs-connection-info", &["service_graph_connection_info"])]
#[case::mixed(
    "service-graphs-request, service-graphs-connection-info",
    &["service_graph_connection_info", "service_graph_request_failed_total", "service_graph_request_total"]
)]
fn parts_are_made_one_by_one(#[case] processors: &str, #[case] expected: &[&str]) {
    // For all, and for one tenant.
    for yaml in [
        format!("processors: [{processors}]"),
        format!("processors: []\ntenants: {{a: {{processors: [{processors}]}}}}"),
    ] {
        let generator = generator(&yaml);
        generator.count("a", &of("shop", vec![span(2, 1, 0, 50, &[])]), NOW_MS * 1_000_000, 1);
        let expected: Vec<_> = expected.iter().map(|name| format!("traces_{name}")).collect();
        assert_eq!(names(&generator.collect(NOW_MS + 1_000)), expected);
    }
}

#[test]
fn who_calls_whom_is_always_one_and_ends() {
    let generator = generator("processors: [service-graphs-connection-info]\nregistry: {stale_duration: 60s}");
    for sequence in 1..4 {
        generator.count("a", &of("shop", vec![span(2, 1, 0, 50, &[])]), NOW_MS * 1_000_000, sequence);
    }
    let expected = "traces_service_graph_connection_info{client=user, connection_type=virtual_node, server=shop} 1";
    let collected = generator.collect(NOW_MS + 1_000);
    assert_eq!(shown(&collected, ""), expected);
    let text = expose::expose(collected.tenants.first().map(AsRef::as_ref));
    assert!(
        text.contains("# TYPE traces_service_graph_connection_info gauge\n") && text.contains("server=\"shop\"} 1\n"),
        "{text}"
    );
    assert_eq!(shown(&generator.collect(NOW_MS + 62_000), ""), "");
}

#[test]
fn parts_that_stay_go_on_after_a_restart_and_others_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let before = generator("processors: [span-metrics-count, service-graphs-connection-info]");
    count(&before, "a", 1);
    state::save(&path, &before.collect(NOW_MS + 1_000)).unwrap();
    let same = generator("processors: [span-metrics-count, service-graphs-connection-info]");
    assert!(same.restore(&path).unwrap());
    count(&same, "a", 2);
    assert!(shown(&same.collect(NOW_MS + 2_000), "calls_total").ends_with("} 2"));
    // A part that is new begins with all that has its labels, or its first sample would not be known to be the first.
    let more = generator("processors: [span-metrics]");
    assert!(more.restore(&path).unwrap());
    count(&more, "a", 2);
    assert!(shown(&more.collect(NOW_MS + 2_000), "calls_total").ends_with("} 1"));
}

#[test]
fn hosts_are_named_as_the_configuration_says() {
    let yaml = "processors: [host-info]\nprocessor: {host_info: {host_identifiers: [host.name], metric_name: hosts}}";
    let generator = generator(yaml);
    generator.count("a", &traces(&[("host.name", "x")], vec![span(1, 1, 0, 5, &[])]), NOW_MS * 1_000_000, 1);
    assert_eq!(shown(&generator.collect(NOW_MS + 1_000), ""), "hosts{grafana_host_id=x, host_source=host.name} 1");
}
