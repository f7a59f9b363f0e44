//! What there may not be too many of, names of spans as patterns, and what filters leave of service graphs.

use opentelemetry_proto::tonic::trace::v1::Span;
use rstest::rstest;

use super::collected::SeriesState;
use super::tests::{NOW_MS, TENANT, counting, generator, of, shown, span, traces};
use super::*;
use crate::telemetry::{LabelLabels, ReasonLabels};

fn tenant() -> TenantLabels {
    TenantLabels { tenant: TENANT.to_owned() }
}

fn named(name: &str) -> Span {
    Span { name: name.to_owned(), ..span(2, 1, 0, 5, &[]) }
}

fn count(generator: &Generator, sequence: u64, spans: Vec<Span>) {
    generator.count(TENANT, &of("shop", spans), NOW_MS * 1_000_000, sequence);
}

/// Names of spans and how many there are of each.
fn calls(collected: &Collected) -> Vec<String> {
    let shown = shown(collected, "calls_total");
    let call = |line: &str| {
        let (labels, value) = line.rsplit_once(' ')?;
        let name = labels.split("span_name=").nth(1).map_or("?", |name| name.split([',', '}']).next().unwrap());
        Some(format!("{name} {value}"))
    };
    shown.lines().filter_map(call).collect()
}

#[test]
fn values_beyond_the_limit_are_marked_and_the_others_stay() {
    let yaml = "processors: [span-metrics]\nregistry: {max_cardinality_per_label: 2, stale_duration: 1m}";
    let generator = counting(yaml, [of("shop", ["a", "b", "c", "d", "a", "c"].map(named).to_vec())]);
    assert_eq!(calls(&generator.collect(NOW_MS + 1_000)), ["__cardinality_overflow__ 3", "a 2", "b 1"]);
    let labels = |name: &str| LabelLabels { tenant: TENANT.to_owned(), label_name: name.to_owned() };
    let metrics = &generator.metrics;
    assert_eq!(metrics.limited_values.get_or_create(&labels("span_name")).get(), 3);
    assert_eq!(metrics.limited_values.get_or_create(&labels("service")).get(), 0);
    // The mark has a series, and is no value.
    assert_eq!(metrics.label_demand.get_or_create(&labels("span_name")).get(), 4);
    assert_eq!(metrics.series.active.get_or_create(&tenant()).get(), 3 * 19);
    // When series have ended there is room for other values.
    generator.collect(NOW_MS + 70_000);
    generator.count(TENANT, &of("shop", vec![named("d")]), (NOW_MS + 71_000) * 1_000_000, 9);
    assert_eq!(calls(&generator.collect(NOW_MS + 72_000)), ["d 1"]);
    generator.collect(NOW_MS + 200_000);
    assert_eq!(metrics.label_demand.get_or_create(&labels("span_name")).get(), 0);
}

#[test]
fn a_label_is_one_in_all_metrics_and_info_has_no_limit() {
    let yaml = "processors: [span-metrics, service-graphs, service-graphs-connection-info]
registry: {max_cardinality_per_label: 1}
processor: {span_metrics: {enable_target_info: true, dimensions: [zone]}, service_graphs: {dimensions: [zone]}}";
    let resource = |zone| [("service.name", "shop"), ("host.name", zone), ("zone", zone)];
    let requests = ["east", "west"].map(|zone| traces(&resource(zone), vec![span(2, 1, 0, 5, &[])]));
    let text = shown(&counting(yaml, requests).collect(NOW_MS + 1_000), "");
    let lines = text
        .lines()
        .filter(|line| line.contains("calls_total") || line.contains("request_total") || line.contains("info"));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @"
    traces_service_graph_connection_info{client=user, connection_type=virtual_node, server=shop, zone=__cardinality_overflow__} 1
    traces_service_graph_connection_info{client=user, connection_type=virtual_node, server=shop, zone=east} 1
    traces_service_graph_request_total{client=user, connection_type=virtual_node, server=shop, zone=__cardinality_overflow__} 1
    traces_service_graph_request_total{client=user, connection_type=virtual_node, server=shop, zone=east} 1
    traces_spanmetrics_calls_total{job=shop, service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET, zone=__cardinality_overflow__} 1
    traces_spanmetrics_calls_total{job=shop, service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET, zone=east} 1
    traces_target_info{host_name=east, job=shop, zone=east} 1
    traces_target_info{host_name=west, job=shop, zone=west} 1
    ");
}

#[test]
fn limits_hold_after_a_restart_and_when_they_change() {
    let yaml = "processors: [span-metrics]\nregistry: {max_cardinality_per_label: 1}";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let first = counting(yaml, [of("shop", vec![named("a")])]);
    state::save(&path, &first.collect(NOW_MS + 1_000)).unwrap();
    let again = generator(yaml);
    assert!(again.restore(&path).unwrap());
    count(&again, 2, ["a", "b"].map(named).to_vec());
    assert_eq!(calls(&again.collect(NOW_MS + 2_000)), ["__cardinality_overflow__ 1", "a 2"]);
    let settings = |yaml: &str| serde_saphyr::from_str(&format!("{TENANT}: {yaml}")).unwrap();
    again.set_tenants(&settings("{max_cardinality_per_label: 2}")).unwrap();
    count(&again, 3, ["b", "c"].map(named).to_vec());
    assert_eq!(calls(&again.collect(NOW_MS + 3_000)), ["__cardinality_overflow__ 2", "a 2", "b 1"]);
    // Without a limit all may be; what is there goes on.
    again.set_tenants(&settings("{max_cardinality_per_label: 0}")).unwrap();
    count(&again, 4, ["c", "d"].map(named).to_vec());
    assert_eq!(calls(&again.collect(NOW_MS + 4_000)), ["__cardinality_overflow__ 2", "a 2", "b 1", "c 1", "d 1"]);
    assert_eq!(again.metrics.series.active.get_or_create(&tenant()).get(), 5 * 19);
    assert_eq!(again.metrics.series.added.get_or_create(&tenant()).get(), 4 * 19, "one was there before");
}

#[test]
fn sets_of_labels_are_limited_whatever_metrics_they_have() {
    let yaml = "processors: [span-metrics, service-graphs, service-graphs-connection-info]
limiter_type: entity
registry: {max_active_entities: 3, max_active_series: 1, stale_duration: 1m}";
    // Of a: span metrics, and the edge from outside, whose labels two families have.
    let generator = counting(yaml, [of("a", vec![named("x")]), of("b", vec![named("x")])]);
    let text = shown(&generator.collect(NOW_MS + 1_000), "");
    let lines = text
        .lines()
        .filter(|line| line.contains("calls_total") || line.contains("request_total") || line.contains("info"));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @"
    traces_service_graph_connection_info{client=user, connection_type=virtual_node, server=a} 1
    traces_service_graph_connection_info{metric_overflow=true} 1
    traces_service_graph_request_total{client=user, connection_type=virtual_node, server=a} 1
    traces_service_graph_request_total{metric_overflow=true} 1
    traces_spanmetrics_calls_total{service=a, span_kind=SPAN_KIND_SERVER, span_name=x, status_code=STATUS_CODE_UNSET} 1
    traces_spanmetrics_calls_total{service=b, span_kind=SPAN_KIND_SERVER, span_name=x, status_code=STATUS_CODE_UNSET} 1
    ");
    let entities = &generator.metrics.entities;
    let shown = |metric: &prometheus_client::metrics::family::Family<
        TenantLabels,
        prometheus_client::metrics::gauge::Gauge,
    >| metric.get_or_create(&tenant()).get();
    assert_eq!([shown(&entities.active), shown(&entities.max_active), shown(&entities.demand)], [3, 3, 4]);
    assert_eq!(shown(&generator.metrics.series.max_active), 0);
    assert_eq!(entities.added.get_or_create(&tenant()).get(), 3);
    assert_eq!(entities.limited.get_or_create(&tenant()).get(), 2, "once in each family");
    assert_eq!(generator.metrics.series.limited.get_or_create(&tenant()).get(), 0);
    generator.collect(NOW_MS + 70_000);
    assert_eq!((shown(&entities.active), entities.removed.get_or_create(&tenant()).get()), (0, 3));
}

#[test]
fn nothing_is_limited_by_zero() {
    let yaml = "processors: [span-metrics]\nregistry: {max_active_series: 0}";
    let generator = counting(yaml, [of("shop", ["a", "b"].map(named).to_vec())]);
    assert_eq!(calls(&generator.collect(NOW_MS + 1_000)), ["a 1", "b 1"]);
}

#[rstest]
#[case::enabled("enabled", &["GET /users/1 1", "GET /users/<_> 2"], 2, 2 * 19)]
#[case::dry_run("dry_run", &["GET /users/1 1", "GET /users/2 1", "GET /users/3 1"], 2, 2 * 19)]
#[case::disabled("disabled", &["GET /users/1 1", "GET /users/2 1", "GET /users/3 1"], 0, 0)]
fn names_with_ids_become_patterns(
    #[case] mode: &str,
    #[case] expected: &[&str],
    #[case] sanitized: u64,
    #[case] demand: i64,
) {
    let yaml = format!("processors: [span-metrics]\nspan_name_sanitization: {mode}");
    let names = ["GET /users/1", "GET /users/2", "GET /users/3"];
    let generator = counting(&yaml, names.map(|name| of("shop", vec![named(name)])));
    assert_eq!(calls(&generator.collect(NOW_MS + 1_000)), expected);
    assert_eq!(generator.metrics.sanitized.get_or_create(&tenant()).get(), sanitized);
    assert_eq!(generator.metrics.sanitized_demand.get_or_create(&tenant()).get(), demand);
}

#[test]
fn patterns_are_known_after_a_restart_and_policies_see_names() {
    let yaml = "processors: [span-metrics]
span_name_sanitization: enabled
processor: {span_metrics: {filter_policies: [{exclude: {match_type: strict, attributes: [{key: name, value: GET /9}]}}]}}";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let first = counting(yaml, [of("shop", ["GET /1", "GET /2", "GET /9"].map(named).to_vec())]);
    state::save(&path, &first.collect(NOW_MS + 1_000)).unwrap();
    let again = generator(yaml);
    assert!(again.restore(&path).unwrap());
    count(&again, 2, vec![named("GET /3")]);
    assert_eq!(calls(&again.collect(NOW_MS + 2_000)), ["GET /1 1", "GET /<_> 2"]);
}

#[test]
fn names_and_values_are_cut() {
    let yaml = "processors: [span-metrics, service-graphs, host-info]
registry: {max_label_name_length: 6, max_label_value_length: 4}
processor: {span_metrics: {enable_target_info: true, dimensions: [region]}}";
    let resource = [("service.name", "größer"), ("region", "eastern"), ("host.id", "machine")];
    let generator = counting(yaml, [traces(&resource, vec![named("a long name")])]);
    let text = shown(&generator.collect(NOW_MS + 1_000), "");
    let lines = text
        .lines()
        .filter(|line| line.contains("calls_total") || line.contains("request_total") || line.contains("info"));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @"
    traces_host_info{grafana_host_id=mach, host_source=host} 1
    traces_service_graph_request_total{client=user, connection_type=virt, server=grö} 1
    traces_spanmetrics_calls_total{job=grö, region=east, service=grö, span_kind=SPAN, span_name=a lo, status_code=STAT} 1
    traces_target_info{host_i=mach, job=grö, region=east} 1
    ");
}

#[test]
fn the_label_of_the_instance_may_be_off() {
    let yaml = "processors: [span-metrics]\nprocessor: {span_metrics: {enable_target_info: true, enable_instance_label: false}}";
    let resource = [("service.name", "shop"), ("service.instance.id", "i-1"), ("host.name", "n1")];
    let generator = counting(yaml, [traces(&resource, vec![named("a")])]);
    let text = shown(&generator.collect(NOW_MS + 1_000), "");
    let lines = text.lines().filter(|line| line.contains("calls_total") || line.contains("info"));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @"
    traces_spanmetrics_calls_total{job=shop, service=shop, span_kind=SPAN_KIND_SERVER, span_name=a, status_code=STATUS_CODE_UNSET} 1
    traces_target_info{host_name=n1, job=shop} 1
    ");
}

const FILTERED: &str = "processors: [service-graphs]
processor:
  service_graphs:
    enable_virtual_node_label: true
    filter_policies: [{exclude: {match_type: strict, attributes: [{key: resource.service.name, value: probe}]}}]";

/// Both ends of a request, of which one is left out; in both orders.
#[rstest]
#[case::the_client(3, [("probe", 3), ("shop", 2)])]
#[case::the_client_later(3, [("shop", 2), ("probe", 3)])]
#[case::the_server(3, [("probe", 2), ("shop", 3)])]
#[case::the_server_later(3, [("shop", 3), ("probe", 2)])]
fn an_edge_is_left_out_when_one_of_its_ends_is(#[case] wait: u64, #[case] ends: [(&str, i32); 2]) {
    let end = |(service, kind): (&str, i32)| {
        let (id, parent) = if kind == 3 { (7, 1) } else { (8, 7) };
        of(service, vec![span(kind, id, parent, 5, &[("peer.service", "somebody")])])
    };
    let generator = counting(FILTERED, ends.map(end));
    assert_eq!(shown(&generator.collect(NOW_MS + wait), ""), "");
    // Nor does the other end become a virtual node, or is it told as one whose other end did not come.
    assert_eq!(shown(&generator.collect(NOW_MS + 60_000), ""), "");
    let metrics = &generator.metrics;
    assert_eq!(metrics.dropped_edges.get_or_create(&tenant()).get(), 1);
    for kind in ["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"] {
        let labels = crate::telemetry::EdgeLabels { tenant: TENANT.to_owned(), unmatched_span_kind: kind.to_owned() };
        assert_eq!(metrics.expired_edges.get_or_create(&labels).get(), 0);
    }
    let (processor, reason) = ("service-graphs".to_owned(), "service_graphs_filtered".to_owned());
    let labels = ReasonLabels { tenant: TENANT.to_owned(), processor, reason };
    assert_eq!(metrics.discarded.get_or_create(&labels).get(), 1);
}

#[test]
fn other_edges_pass_the_filter() {
    let requests = [
        of("probe", vec![span(2, 1, 0, 5, &[]), span(3, 2, 1, 5, &[("db.name", "x")])]),
        of("shop", vec![span(2, 3, 0, 5, &[]), span(3, 4, 3, 5, &[])]),
        of("cart", vec![span(2, 5, 4, 5, &[])]),
    ];
    let text = shown(&counting(FILTERED, requests).collect(NOW_MS + 60_000), "request_total");
    insta::assert_snapshot!(text, @"
    traces_service_graph_request_total{client=shop, server=cart} 1
    traces_service_graph_request_total{client=user, connection_type=virtual_node, server=shop, virtual_node=client} 1
    ");
}

#[test]
fn attributes_that_name_a_database_can_be_chosen() {
    let yaml = "processors: [service-graphs]\nprocessor: {service_graphs: {database_name_attributes: [my.db], peer_attributes: []}}";
    let spans = vec![span(3, 1, 0, 5, &[("my.db", "orders")]), span(3, 2, 0, 5, &[("db.name", "x")])];
    let collected = counting(yaml, [of("shop", spans)]).collect(NOW_MS + 60_000);
    assert_eq!(
        shown(&collected, "request_total"),
        "traces_service_graph_request_total{client=shop, connection_type=database, server=orders} 1"
    );
    assert!(
        collected.tenants[0]
            .families
            .iter()
            .flat_map(|family| &family.series)
            .all(|series| series.state == SeriesState::New)
    );
}
