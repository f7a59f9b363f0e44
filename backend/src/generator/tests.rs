//! Spans in, series out: names, labels and values are those of Tempo's metrics-generator.
#![expect(clippy::float_cmp, reason = "sums of whole numbers are exact")]

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use proptest::prelude::*;
use rstest::rstest;

use super::collected::{PointValue, SeriesState};
use super::expose::expose;
use super::*;
use crate::live::group_message;
use crate::telemetry::EdgeLabels;

pub(super) const NOW_MS: u64 = 1_795_237_020_000;
pub(super) const TENANT: &str = "single-tenant";

pub(super) fn attribute(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// A span of trace 1 with ids of one byte repeated; parent 0 is none.
pub(super) fn span(kind: i32, id: u8, parent: u8, millis: u64, attributes: &[(&str, &str)]) -> Span {
    let start = NOW_MS * 1_000_000;
    Span {
        trace_id: [vec![0; 15], vec![0x1a]].concat(),
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: format!("span {kind}"),
        kind,
        start_time_unix_nano: start,
        end_time_unix_nano: start + millis * 1_000_000,
        attributes: attributes.iter().map(|(key, value)| attribute(key, value)).collect(),
        ..Span::default()
    }
}

fn failed(span: Span) -> Span {
    Span { status: Some(Status { code: 2, message: "broken".to_owned() }), ..span }
}

pub(super) fn traces(resource: &[(&str, &str)], spans: Vec<Span>) -> Vec<Trace> {
    let attributes = resource.iter().map(|(key, value)| attribute(key, value)).collect();
    let resource = Some(Resource { attributes, ..Resource::default() });
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    group_message(&ExportTraceServiceRequest { resource_spans })
}

pub(super) fn of(service: &str, spans: Vec<Span>) -> Vec<Trace> {
    traces(&[("service.name", service)], spans)
}

pub(super) fn generator(yaml: &str) -> Generator {
    let config: GeneratorConfig = serde_saphyr::from_str(yaml).unwrap();
    Generator::new(&config, "", GeneratorMetrics::default(), NOW_MS).unwrap()
}

/// Counts requests one after the other.
pub(super) fn counting(yaml: &str, requests: impl IntoIterator<Item = Vec<Trace>>) -> Generator {
    let generator = generator(yaml);
    for (sequence, traces) in (1..).zip(requests) {
        generator.count(TENANT, &traces, NOW_MS * 1_000_000, sequence);
    }
    generator
}

/// Series that are not histograms' buckets, `name{labels} value` each, sorted.
pub(super) fn shown(collected: &Collected, names: &str) -> String {
    let mut lines = Vec::new();
    for tenant in &collected.tenants {
        tenant.points(|point| {
            let name = point.labels.iter().find(|(name, _)| *name == "__name__").unwrap().1;
            if !name.contains(names) || name.ends_with("_bucket") || point.state == SeriesState::Gone {
                return;
            }
            let labels: Vec<_> = point.labels.iter().filter(|(name, _)| *name != "__name__").collect();
            let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let PointValue::Float(value) = point.value else { return };
            lines.push(format!("{name}{{{}}} {value}", labels.join(", ")));
        });
    }
    lines.sort();
    lines.join("\n")
}

pub(super) fn collected(yaml: &str, requests: impl IntoIterator<Item = Vec<Trace>>, names: &str) -> String {
    shown(&counting(yaml, requests).collect(NOW_MS + 1_000), names)
}

#[test]
fn span_metrics_have_tempos_names_and_labels() {
    let spans = vec![span(2, 1, 0, 3, &[]), span(2, 2, 0, 5, &[]), failed(span(3, 3, 1, 20_000, &[]))];
    let text = collected("processors: [span-metrics]", [of("shop", spans)], "");
    insta::assert_snapshot!(text, @"
    traces_spanmetrics_calls_total{service=shop, span_kind=SPAN_KIND_CLIENT, span_name=span 3, status_code=STATUS_CODE_ERROR} 1
    traces_spanmetrics_calls_total{service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 2
    traces_spanmetrics_latency_count{service=shop, span_kind=SPAN_KIND_CLIENT, span_name=span 3, status_code=STATUS_CODE_ERROR} 1
    traces_spanmetrics_latency_count{service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 2
    traces_spanmetrics_latency_sum{service=shop, span_kind=SPAN_KIND_CLIENT, span_name=span 3, status_code=STATUS_CODE_ERROR} 20
    traces_spanmetrics_latency_sum{service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 0.008
    traces_spanmetrics_size_total{service=shop, span_kind=SPAN_KIND_CLIENT, span_name=span 3, status_code=STATUS_CODE_ERROR} 78
    traces_spanmetrics_size_total{service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 112
    ");
}

#[test]
fn the_buckets_are_tempos() {
    let spans = vec![span(2, 1, 0, 2, &[]), span(2, 2, 0, 150, &[]), span(2, 3, 0, 60_000, &[])];
    let collected = counting("{}", [of("shop", spans)]).collect(NOW_MS + 1_000);
    let mut buckets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    collected.tenants[0].points(|point| {
        let label = |wanted: &str| point.labels.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        let (Some(name), Some(le), PointValue::Float(value)) = (label("__name__"), label("le"), point.value) else {
            return;
        };
        let name = if name.contains("server") { "server" } else { name };
        let name = if name == "server" {
            "server"
        } else if name.contains("client") {
            "client"
        } else {
            "latency"
        };
        buckets.entry(name).or_default().push(format!("{le}:{value}"));
    });
    assert_eq!(
        buckets["latency"].join(" "),
        "0.002:1 0.004:1 0.008:1 0.016:1 0.032:1 0.064:1 0.128:1 0.256:2 0.512:2 1.024:2 2.048:2 4.096:2 8.192:2 16.384:2 +Inf:3"
    );
    assert_eq!(buckets["server"].join(" "), "0.1:1 0.2:2 0.4:2 0.8:2 1.6:2 3.2:2 6.4:2 12.8:2 +Inf:3");
}

#[test]
fn attributes_become_labels() {
    let yaml = "processors: [span-metrics]
processor:
  span_metrics:
    intrinsic_dimensions: {span_name: false, span_kind: false, status_message: true}
    dimensions: [service.name, peer.service, log.type, span.kind, number]
    dimension_mappings:
    - {name: route, source_labels: [http.method, missing, http.route], join: ' '}
    - {name: nothing, source_labels: [missing], join: '/'}";
    let mut first =
        span(2, 1, 0, 3, &[("peer.service", "db"), ("span.kind", "x"), ("http.method", "GET"), ("http.route", "/a")]);
    let number = AnyValue { value: Some(Value::IntValue(-3)) };
    first.attributes.push(KeyValue { key: "number".to_owned(), value: Some(number), ..KeyValue::default() });
    let resource = [("service.name", "shop"), ("log.type", "app"), ("http.method", "")];
    let text = collected(yaml, [traces(&resource, vec![failed(first)])], "calls");
    insta::assert_snapshot!(text, @"traces_spanmetrics_calls_total{__span_kind=x, log_type=app, number=-3, peer_service=db, route=GET /a, service=shop, service_name=shop, status_code=STATUS_CODE_ERROR, status_message=broken} 1");
}

const GRAPHS: &str = "processors: [service-graphs]";

#[rstest]
#[case::client_first([0, 1])]
#[case::server_first([1, 0])]
fn both_ends_of_a_request_are_an_edge(#[case] order: [usize; 2]) {
    let requests = [of("front", vec![span(3, 7, 1, 300, &[])]), of("cart", vec![failed(span(2, 8, 7, 200, &[]))])];
    let requests = order.map(|place| requests[place].clone());
    insta::allow_duplicates! {
        insta::assert_snapshot!(collected(GRAPHS, requests, ""), @"
        traces_service_graph_request_client_seconds_count{client=front, server=cart} 1
        traces_service_graph_request_client_seconds_sum{client=front, server=cart} 0.3
        traces_service_graph_request_failed_total{client=front, server=cart} 1
        traces_service_graph_request_server_seconds_count{client=front, server=cart} 1
        traces_service_graph_request_server_seconds_sum{client=front, server=cart} 0.2
        traces_service_graph_request_total{client=front, server=cart} 1
        ");
    }
}

#[rstest]
#[case::root(span(2, 1, 0, 5, &[]), "client=user, connection_type=virtual_node, server=shop")]
#[case::root_that_names_its_caller(span(2, 1, 0, 5, &[("peer.service", "phone")]), "client=phone, connection_type=virtual_node, server=shop")]
#[case::root_with_a_parent_of_zeros(
    Span { parent_span_id: vec![0; 8], ..span(2, 1, 0, 5, &[]) },
    "client=user, connection_type=virtual_node, server=shop"
)]
#[case::database_by_name(span(3, 1, 0, 5, &[("db.system", "redis")]), "client=shop, connection_type=database, server=redis")]
#[case::database_by_namespace_first(
    span(3, 1, 0, 5, &[("db.system.name", "mysql"), ("db.namespace", "orders")]),
    "client=shop, connection_type=database, server=orders"
)]
#[case::database_by_host(
    span(3, 1, 0, 5, &[("db.name", "orders"), ("server.address", "db-1"), ("network.peer.address", "10.0.0.1")]),
    "client=shop, connection_type=database, server=db-1"
)]
#[case::database_by_address(
    span(3, 1, 0, 5, &[("db.name", "orders"), ("network.peer.address", "10.0.0.1"), ("network.peer.port", "5432")]),
    "client=shop, connection_type=database, server=10.0.0.1:5432"
)]
#[case::database_by_peer(
    span(3, 1, 0, 5, &[("db.name", "orders"), ("server.address", "db-1"), ("peer.service", "pg")]),
    "client=shop, connection_type=database, server=pg"
)]
fn one_span_can_tell_of_both_ends(#[case] span: Span, #[case] labels: &str) {
    let text = collected(GRAPHS, [of("shop", vec![span])], "request_total");
    assert_eq!(text, format!("traces_service_graph_request_total{{{labels}}} 1"));
}

#[test]
fn an_end_waits_for_ten_seconds_and_is_then_given_up() {
    let yaml = "processors: [service-graphs]\nprocessor: {service_graphs: {enable_virtual_node_label: true}}";
    let spans = vec![
        span(3, 1, 9, 5, &[("peer.service", "bank")]),
        span(3, 2, 9, 5, &[]),
        span(2, 3, 4, 5, &[("peer.service", "phone")]),
        span(5, 5, 6, 5, &[]),
    ];
    let generator = counting(yaml, [of("shop", spans)]);
    let early = generator.collect(NOW_MS + 9_999);
    assert_eq!((shown(&early, ""), early.tenants[0].edges.len()), (String::new(), 4));
    let late = generator.collect(NOW_MS + 10_000);
    insta::assert_snapshot!(shown(&late, "_total"), @"
    traces_service_graph_request_failed_total{client=shop, connection_type=virtual_node, server=bank, virtual_node=server} 0
    traces_service_graph_request_total{client=shop, connection_type=virtual_node, server=bank, virtual_node=server} 1
    ");
    assert_eq!(late.tenants[0].edges.len(), 0);
    let expired = |kind: &str| {
        let labels = EdgeLabels { tenant: TENANT.to_owned(), unmatched_span_kind: kind.to_owned() };
        generator.metrics.expired_edges.get_or_create(&labels).get()
    };
    assert_eq!([expired("SPAN_KIND_CLIENT"), expired("SPAN_KIND_SERVER")], [1, 2]);
}

#[test]
fn messages_have_a_latency_of_their_own() {
    let yaml = "processors: [service-graphs]\nprocessor: {service_graphs: {enable_messaging_system_latency_histogram: true, dimensions: [zone], enable_client_server_prefix: true}}";
    let consumer = span(5, 2, 1, 50, &[("zone", "west")]);
    let late = NOW_MS * 1_000_000 + 700_000_000;
    let consumer = Span { start_time_unix_nano: late, end_time_unix_nano: late + 1, ..consumer };
    let requests = [of("shop", vec![span(4, 1, 0, 200, &[("zone", "east")])]), of("mail", vec![consumer])];
    let text = collected(yaml, requests, "messaging");
    insta::assert_snapshot!(text, @"
    traces_service_graph_request_messaging_system_seconds_count{client=shop, client_zone=east, connection_type=messaging_system, server=mail, server_zone=west} 1
    traces_service_graph_request_messaging_system_seconds_sum{client=shop, client_zone=east, connection_type=messaging_system, server=mail, server_zone=west} 0.5
    ");
}

#[test]
fn a_service_without_a_name_is_no_node() {
    let text = collected(GRAPHS, [traces(&[("a", "b")], vec![span(2, 1, 0, 5, &[])])], "");
    assert_eq!(text, "");
}

#[test]
fn target_info_has_what_is_known_of_a_resource() {
    let yaml = "processors: [span-metrics]\nprocessor: {span_metrics: {enable_target_info: true, target_info_excluded_dimensions: [secret]}}";
    let resource = [
        ("service.name", "shop"),
        ("service.namespace", "web"),
        ("service.instance.id", "i-1"),
        ("host.name", "n1"),
        ("secret", "x"),
        ("job", "other"),
    ];
    let text = collected(yaml, [traces(&resource, vec![span(2, 1, 0, 5, &[]), span(2, 2, 0, 5, &[])])], "");
    let lines: Vec<_> = text.lines().filter(|line| line.contains("info") || line.contains("calls")).collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    traces_spanmetrics_calls_total{instance=i-1, job=web/shop, service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 2
    traces_target_info{__job=other, host_name=n1, instance=i-1, job=web/shop} 1
    ");
}

#[rstest]
#[case::only_a_name(&[("service.name", "shop")])]
#[case::all_excluded(&[("service.name", "shop"), ("secret", "x")])]
#[case::no_target(&[("host.name", "n1")])]
#[case::a_namespace_is_no_target(&[("service.namespace", "web"), ("host.name", "n1")])]
fn target_info_that_would_say_nothing_is_not_there(#[case] resource: &[(&str, &str)]) {
    let yaml = "processors: [span-metrics]\nprocessor: {span_metrics: {enable_target_info: true, target_info_excluded_dimensions: [secret]}}";
    assert_eq!(collected(yaml, [traces(resource, vec![span(2, 1, 0, 5, &[])])], "info"), "");
}

#[test]
fn too_many_series_are_counted_together() {
    // Room for two of 19 series each.
    let yaml = "processors: [span-metrics]\nregistry: {max_active_series: 40}";
    let named = |name: &str| Span { name: name.to_owned(), ..span(2, 1, 0, 3, &[]) };
    let generator = counting(yaml, [of("shop", ["a", "b", "c", "d", "c", "a"].map(named).to_vec())]);
    let text = shown(&generator.collect(NOW_MS + 1_000), "calls");
    insta::assert_snapshot!(text, @"
    traces_spanmetrics_calls_total{metric_overflow=true} 3
    traces_spanmetrics_calls_total{service=shop, span_kind=SPAN_KIND_SERVER, span_name=a, status_code=STATUS_CODE_UNSET} 2
    traces_spanmetrics_calls_total{service=shop, span_kind=SPAN_KIND_SERVER, span_name=b, status_code=STATUS_CODE_UNSET} 1
    ");
    let labels = TenantLabels { tenant: TENANT.to_owned() };
    let metrics = &generator.metrics;
    assert_eq!(metrics.series.limited.get_or_create(&labels).get(), 3 * 19);
    assert_eq!(metrics.series.active.get_or_create(&labels).get(), 38);
    assert_eq!(metrics.series.max_active.get_or_create(&labels).get(), 40);
    assert_eq!(metrics.series.demand.get_or_create(&labels).get(), 4 * 19);
}

#[test]
fn external_labels_are_on_every_series_and_hide_none() {
    let yaml = "processors: [span-metrics]\nregistry: {external_labels: {cluster: home, service: other}, inject_tenant_id_as: who}";
    let text = collected(yaml, [of("shop", vec![span(2, 1, 0, 3, &[])])], "calls");
    assert_eq!(
        text,
        "traces_spanmetrics_calls_total{cluster=home, service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET, who=single-tenant} 1"
    );
}

#[test]
fn a_series_ends_after_its_time() {
    let generator = counting("registry: {stale_duration: 1m}", [of("shop", vec![span(2, 1, 0, 3, &[])])]);
    let states = |collected: &Collected| -> Vec<_> {
        let series = collected.tenants[0].families.iter().flat_map(|family| &family.series);
        series.map(|series| series.state).collect()
    };
    assert_eq!(states(&generator.collect(NOW_MS + 30_000)), [SeriesState::New; 2]);
    assert_eq!(states(&generator.collect(NOW_MS + 60_000)), [SeriesState::Steady; 2]);
    assert_eq!(states(&generator.collect(NOW_MS + 60_001)), [SeriesState::Gone; 2]);
    assert_eq!(states(&generator.collect(NOW_MS + 90_000)), []);
}

#[test]
fn text_for_who_fetches() {
    let yaml = "processors: [span-metrics]\nprocessor: {span_metrics: {histogram_buckets: [0.1, 1]}}\nregistry: {external_labels: {__x: hidden, a: 'q\"\\'}}";
    let generator = counting(yaml, [of("shop", vec![span(2, 1, 0, 3, &[])])]);
    let first = generator.collect(NOW_MS + 15_000);
    assert!(
        !expose(first.tenants.first().map(AsRef::as_ref)).lines().any(|line| line.ends_with(" 1")),
        "new series are zero"
    );
    generator.count(TENANT, &of("shop", vec![span(2, 1, 0, 3, &[])]), NOW_MS * 1_000_000, 9);
    let second = generator.collect(NOW_MS + 30_000);
    insta::assert_snapshot!(expose(second.tenants.first().map(AsRef::as_ref)), @r###"
    # TYPE traces_spanmetrics_calls counter
    traces_spanmetrics_calls_total{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\"} 2
    # TYPE traces_spanmetrics_size counter
    traces_spanmetrics_size_total{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\"} 112
    # TYPE traces_spanmetrics_latency histogram
    traces_spanmetrics_latency_bucket{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\",le="0.1"} 2 # {traceID="1a"} 0.003
    traces_spanmetrics_latency_bucket{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\",le="1"} 2
    traces_spanmetrics_latency_bucket{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\",le="+Inf"} 2
    traces_spanmetrics_latency_sum{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\"} 0.006
    traces_spanmetrics_latency_count{service="shop",span_kind="SPAN_KIND_SERVER",span_name="span 2",status_code="STATUS_CODE_UNSET",a="q\"\\"} 2
    # EOF
    "###);
}

/// What is written at any moment, with what the log has from there on, is what was counted.
#[rstest]
#[case::whole(&[1, 2, 3, 4])]
#[case::nothing(&[])]
#[case::with_a_gap(&[1, 3])]
fn a_restart_loses_nothing_and_counts_nothing_twice(#[case] before: &[u64]) {
    let yaml = "generate_native_histograms: both\nprocessor: {span_metrics: {enable_target_info: true}, service_graphs: {dimensions: [zone]}}";
    let requests = [
        of("front", vec![span(3, 7, 1, 300, &[("zone", "east")]), span(3, 9, 1, 100, &[("db.name", "x")])]),
        of("cart", vec![failed(span(2, 8, 7, 200, &[])), span(5, 3, 2, 1, &[])]),
        of("front", vec![span(2, 1, 0, 900, &[]), span(4, 2, 1, 50, &[])]),
        of("mail", vec![span(5, 4, 2, 70, &[]), span(3, 5, 4, 7, &[("peer.service", "smtp")])]),
    ];
    let count = |generator: &Generator, sequences: &[u64]| {
        for sequence in sequences {
            generator.count(TENANT, &requests[*sequence as usize - 1], NOW_MS * 1_000_000, *sequence);
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let first = generator(yaml);
    first.count_from(1);
    count(&first, before);
    state::save(&path, &first.collect(NOW_MS + 1_000)).unwrap();

    let again = generator(yaml);
    assert!(again.restore(&path).unwrap());
    assert!(again.counted_below() >= 1);
    // The log has them in its order.
    count(&again, &[1, 2, 3, 4]);
    let whole = generator(yaml);
    whole.count_from(1);
    count(&whole, before);
    let rest: Vec<_> = (1..=4).filter(|sequence| !before.contains(sequence)).collect();
    count(&whole, &rest);
    let [again, whole] = [again, whole].map(|generator| generator.collect(NOW_MS + 20_000));
    assert_eq!(shown(&again, ""), shown(&whole, ""));
    assert_eq!(again.applied, whole.applied);
    assert!(shown(&whole, "request_total").contains("server=smtp"));
}

#[test]
fn series_that_are_called_otherwise_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let first = counting("{}", [of("shop", vec![span(2, 1, 0, 3, &[])])]);
    state::save(&path, &first.collect(NOW_MS + 1_000)).unwrap();
    let changed = generator("processor: {span_metrics: {dimensions: [zone]}}");
    assert!(changed.restore(&path).unwrap());
    let text = shown(&changed.collect(NOW_MS + 2_000), "_total");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("traces_service_graph_request_total"), "{text}");
}

/// The file of `docs/format/generator.md`, as version 1 has it for ever.
#[test]
fn the_state_of_version_1_is_read() {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generator-state-1");
    let generator = generator("generate_native_histograms: both");
    assert!(generator.restore(&fixture).unwrap());
    assert_eq!((generator.counted_below(), generator.counted_to()), (5, 8));
    let collected = generator.collect(NOW_MS + 2_000);
    assert_eq!(collected.tenants[0].edges.len(), 1);
    insta::assert_snapshot!(shown(&collected, "_total"), @"
    traces_service_graph_request_failed_total{client=user, connection_type=virtual_node, server=shop} 0
    traces_service_graph_request_total{client=user, connection_type=virtual_node, server=shop} 2
    traces_spanmetrics_calls_total{service=shop, span_kind=SPAN_KIND_CLIENT, span_name=span 3, status_code=STATUS_CODE_ERROR} 1
    traces_spanmetrics_calls_total{service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 2
    traces_spanmetrics_size_total{service=shop, span_kind=SPAN_KIND_CLIENT, span_name=span 3, status_code=STATUS_CODE_ERROR} 78
    traces_spanmetrics_size_total{service=shop, span_kind=SPAN_KIND_SERVER, span_name=span 2, status_code=STATUS_CODE_UNSET} 112
    ");
    assert!(shown(&collected, "latency_sum").ends_with("STATUS_CODE_UNSET} 0.703"));
}

#[test]
fn a_state_that_is_cut_or_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let generator = counting("{}", [of("shop", vec![span(2, 1, 0, 3, &[]), span(3, 2, 1, 3, &[])])]);
    state::save(&path, &generator.collect(NOW_MS + 1_000)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    check_state(&bytes).unwrap();
    for length in 0..bytes.len() {
        assert!(check_state(&bytes[..length]).is_err(), "{length}");
        let mut changed = bytes.clone();
        changed[length] ^= 0x10;
        assert!(check_state(&changed).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_state_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = check_state(&bytes);
    }

    /// However spans come, every one is counted once, and every end of a request is in an edge, waits, or was given up.
    #[test]
    fn nothing_is_lost(spans in prop::collection::vec((2..=5_i32, 1..6_u8, 0..6_u8), 1..40), cut in 0..40_usize) {
        let all: Vec<_> = spans.iter().map(|(kind, id, parent)| span(*kind, *id, *parent, 5, &[])).collect();
        let (first, second) = all.split_at(cut.min(all.len()));
        let generator = counting("processor: {service_graphs: {max_items: 3}}", [of("a", first.to_vec()), of("b", second.to_vec())]);
        let collected = generator.collect(NOW_MS + 1_000);
        let sum = |name: &str| -> f64 {
            shown(&collected, name).lines().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
        };
        prop_assert_eq!(sum("calls_total"), spans.len() as f64);
        prop_assert_eq!(sum("latency_count"), spans.len() as f64);
        let expired: i64 = ["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"].iter().map(|kind| {
            let labels = EdgeLabels { tenant: TENANT.to_owned(), unmatched_span_kind: (*kind).to_owned() };
            generator.metrics.expired_edges.get_or_create(&labels).get()
        }).sum();
        let alone = spans.iter().filter(|(kind, _, parent)| matches!(kind, 2 | 5) && *parent == 0).count() as f64;
        let pairs = sum("request_total") - alone;
        let waiting = collected.tenants[0].edges.len() as u64;
        prop_assert_eq!(2.0 * pairs + alone + expired as f64 + waiting as f64, spans.len() as f64);
        prop_assert!(waiting <= 3);
    }
}

#[test]
fn what_is_sent_to_no_tenant_is_nobodys() {
    let generator = generator("{}");
    generator.count("a", &of("x", vec![span(2, 1, 0, 3, &[])]), NOW_MS * 1_000_000, 1);
    generator.count("b", &of("y", vec![span(2, 1, 0, 3, &[])]), NOW_MS * 1_000_000, 2);
    let collected = generator.collect(NOW_MS + 1_000);
    let mut tenants: Vec<(Arc<str>, usize)> =
        collected.tenants.iter().map(|tenant| (Arc::clone(&tenant.tenant), tenant.families[0].series.len())).collect();
    tenants.sort();
    assert_eq!(tenants, [("a".into(), 1), ("b".into(), 1)]);
}
