//! The two ends of a request that agents of two nodes saw are one edge of the service graph.

use std::collections::BTreeSet;

use coati_common::stitch::provisional_trace_id;
use coati_common::wellknown::AGENT_SCOPE;
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use rstest::rstest;

use super::tests::{NOW_MS, attribute, counting, shown, span};
use super::*;
use crate::live::{Limits, LiveSet, TraceId, group_message};
use crate::telemetry::EdgeLabels;

const YAML: &str = "processors: [service-graphs]\nprocessor: {service_graphs: {enable_virtual_node_label: true, peer_attributes: [peer.service]}}";

/// Spans of an agent.
fn of(service: &str, spans: Vec<Span>) -> Vec<Trace> {
    let resource = Some(Resource { attributes: vec![attribute("service.name", service)], ..Resource::default() });
    let scope = Some(InstrumentationScope { name: AGENT_SCOPE.to_owned(), ..InstrumentationScope::default() });
    let scope_spans = vec![ScopeSpans { scope, spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    group_message(&ExportTraceServiceRequest { resource_spans })
}

/// The same span in the provisional trace below span `caller`.
fn provisional(caller: u8, span: Span) -> Span {
    Span { trace_id: provisional_trace_id([caller; 8]).to_vec(), ..span }
}

/// front → cart → stock, each on a node of its own.
fn requests() -> [Vec<Trace>; 3] {
    [
        of("front", vec![span(3, 7, 0, 300, &[])]),
        of("cart", vec![provisional(7, span(2, 8, 7, 200, &[])), provisional(7, span(3, 9, 8, 100, &[]))]),
        of("stock", vec![provisional(9, span(2, 10, 9, 50, &[]))]),
    ]
}

#[rstest]
#[case::callers_first([0, 1, 2])]
#[case::called_first([2, 1, 0])]
#[case::middle_first([1, 2, 0])]
fn both_ends_are_one_edge(#[case] order: [usize; 3]) {
    let generator = counting(YAML, order.map(|place| requests()[place].clone()));
    let text = shown(&generator.collect(NOW_MS + 1_000), "request_total");
    insta::assert_snapshot!(text, @"
    traces_service_graph_request_total{client=cart, server=stock} 1
    traces_service_graph_request_total{client=front, server=cart} 1
    ");
    assert_eq!(shown(&generator.collect(NOW_MS + 60_000), "request_total"), text, "nothing waits");
}

#[test]
fn who_has_no_caller_is_called_by_a_user() {
    let generator = counting(YAML, [requests()[2].clone()]);
    assert_eq!(shown(&generator.collect(NOW_MS + 1_000), "request"), "");
    let later = generator.collect(NOW_MS + 11_000);
    insta::assert_snapshot!(shown(&later, "request_total"), @"traces_service_graph_request_total{client=user, connection_type=virtual_node, server=stock, virtual_node=client} 1");
    let labels = EdgeLabels { tenant: "single-tenant".to_owned(), unmatched_span_kind: "SPAN_KIND_SERVER".to_owned() };
    assert_eq!(generator.metrics.expired_edges.get_or_create(&labels).get(), 0);
}

/// Whatever the trace is called: on one node its two ends come in the same.
#[rstest]
#[case::client_first([0, 1])]
#[case::server_first([1, 0])]
fn ends_on_one_node_are_one_edge(#[case] order: [usize; 2]) {
    for place in [|_: u8, span: Span| span, provisional] {
        let ends =
            [of("front", vec![place(3, span(3, 7, 1, 300, &[]))]), of("cart", vec![place(3, span(2, 8, 7, 200, &[]))])];
        let generator = counting(YAML, order.map(|place| ends[place].clone()));
        let text = shown(&generator.collect(NOW_MS + 1_000), "request_total");
        assert!(text.contains("client=front") && text.contains("server=cart") && text.ends_with(" 1"), "{text}");
    }
}

/// A header of an SDK's client names it as the parent.
#[rstest]
#[case::client_first([0, 1])]
#[case::server_first([1, 0])]
fn the_client_may_be_of_an_sdk(#[case] order: [usize; 2]) {
    let ends = [tests::of("front", vec![span(3, 7, 1, 300, &[])]), of("cart", vec![span(2, 8, 7, 200, &[])])];
    let generator = counting(YAML, order.map(|place| ends[place].clone()));
    let text = shown(&generator.collect(NOW_MS + 1_000), "request_total");
    assert!(text.contains("client=front") && text.contains("server=cart"), "{text}");
}

#[test]
fn an_end_that_waits_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let before = counting(YAML, [requests()[2].clone()]);
    state::save(&path, &before.collect(NOW_MS + 1_000)).unwrap();
    let after = tests::generator(YAML);
    assert!(after.restore(&path).unwrap());
    after.count("single-tenant", &requests()[1], NOW_MS * 1_000_000, 2);
    let text = shown(&after.collect(NOW_MS + 2_000), "request_total");
    assert!(text.contains("client=cart") && text.contains("server=stock"), "{text}");
}

/// Or nobody would find the trace a minute later.
#[test]
fn an_exemplar_names_the_trace_in_which_its_span_is() {
    let live = LiveSet::new(Limits::default());
    let [front, cart, _] = requests();
    let generator = counting("processors: [span-metrics]", [cart.clone()]);
    for (traces, sequence) in [front, cart].into_iter().zip(1..) {
        live.insert("single-tenant", traces, NOW_MS, sequence);
    }
    let exemplars = |collected: &Collected| -> BTreeSet<u128> {
        let series = collected.tenants[0].families.iter().flat_map(|family| &family.series);
        let histograms = series.flat_map(|series| series.series.histograms.iter().flatten());
        let exemplars = histograms.flat_map(|histogram| &histogram.exemplars);
        exemplars.map(|(_, exemplar)| u128::from_be_bytes(exemplar.trace_id)).collect()
    };
    let mut collected = generator.collect(NOW_MS + 1_000);
    assert_eq!(exemplars(&collected), [u128::from_be_bytes(provisional_trace_id([7; 8]))].into());
    collected.move_exemplars(|tenant, id| live.home(tenant, &TraceId(id)).0);
    assert_eq!(exemplars(&collected), [0x1a].into());
}

/// A request that runs for long is counted once, by both processors, when it is over.
#[rstest]
#[case::both("{}")]
#[case::graph("processors: [service-graphs]")]
#[case::metrics("processors: [span-metrics]")]
fn what_is_not_over_is_not_counted(#[case] yaml: &str) {
    let mark = KeyValue {
        key: COATI_SPAN_PARTIAL.to_owned(),
        value: Some(AnyValue { value: Some(Value::BoolValue(true)) }),
        ..KeyValue::default()
    };
    let ends = || [of("front", vec![span(3, 7, 0, 30_000, &[])]), of("cart", vec![span(2, 8, 7, 30_000, &[])])];
    let partial = |kind, id, parent| Span { attributes: vec![mark.clone()], ..span(kind, id, parent, 10_000, &[]) };
    let so_far = || [of("front", vec![partial(3, 7, 0)]), of("cart", vec![partial(2, 8, 7)])];
    let text = |requests: Vec<Vec<Trace>>| shown(&counting(yaml, requests).collect(NOW_MS + 60_000), "");
    assert_eq!(text(so_far().into()), "");
    let once = text(ends().into());
    assert!(!once.is_empty());
    assert_eq!(text([so_far(), so_far(), ends()].concat()), once);
}
