//! Tests of the tag index.

use super::*;
use crate::catalog::known::INDEXED_BYTES;
use crate::catalog::{MemoryCatalog, TagValue};
use crate::live::group_message;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use rstest::rstest;

const HOUR_NS: u64 = 3_600_000_000_000;

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn span_at(hour: u64, attributes: Vec<KeyValue>) -> Span {
    Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: "GET /".to_owned(),
        start_time_unix_nano: hour * HOUR_NS,
        attributes,
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource { attributes: vec![text("service.name", "shop")], ..Resource::default() };
    let scope = InstrumentationScope { name: "lib".to_owned(), ..InstrumentationScope::default() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

/// Passes the spans through the index; returns how many tags the catalog had to be told.
fn pass(index: &TagIndex, spans: Vec<Span>) -> usize {
    let fresh = index.observe("t", &group_message(&request(spans)));
    index.record("t", &fresh).unwrap();
    fresh.len()
}

fn index(limits: IndexLimits) -> TagIndex {
    TagIndex::open(Arc::new(MemoryCatalog::default()), limits, CatalogMetrics::default()).unwrap()
}

fn values(index: &TagIndex, scope: Scope, name: &str) -> Vec<TagValue> {
    index.store().tag_values("t", scope, name, None, 100).unwrap()
}

#[test]
fn every_scope_and_type_is_indexed() {
    let index = index(IndexLimits::default());
    let mixed = ArrayValue {
        values: vec![
            AnyValue { value: Some(Value::IntValue(-3)) },
            AnyValue { value: Some(Value::StringValue("x".to_owned())) },
        ],
    };
    let mut span =
        span_at(5, vec![attribute("array", Value::ArrayValue(mixed)), attribute("ok", Value::BoolValue(true))]);
    span.events = vec![Event { name: "oops".to_owned(), attributes: vec![text("e", "1")], ..Event::default() }];
    span.links = vec![Link { attributes: vec![attribute("l", Value::DoubleValue(0.5))], ..Link::default() }];
    span.status = Some(Status { message: "broken".to_owned(), code: 2 });
    pass(&index, vec![span]);
    let string = |text: &str| TagValue::String(text.to_owned());
    assert_eq!(values(&index, Scope::Resource, "service.name"), [string("shop")]);
    assert_eq!(values(&index, Scope::Span, "array"), [string("x"), TagValue::Int(-3)]);
    assert_eq!(values(&index, Scope::Span, "ok"), [TagValue::Bool(true)]);
    assert_eq!(values(&index, Scope::Event, "e"), [string("1")]);
    assert_eq!(values(&index, Scope::Link, "l"), [TagValue::Float(0.5)]);
    let names = index.store().tag_names("t", Scope::Intrinsic, None, 100).unwrap();
    assert_eq!(names, ["event:name", "instrumentation:name", "name", "rootName", "rootServiceName", "statusMessage"]);
}

#[test]
fn the_catalog_is_told_once_an_hour() {
    let index = index(IndexLimits::default());
    let spans = |hour| vec![span_at(hour, vec![text("a", "b")])];
    assert!(pass(&index, spans(5)) > 0);
    assert_eq!(pass(&index, spans(5)), 0);
    assert!(pass(&index, spans(6)) > 0);
    assert_eq!(pass(&index, spans(5)), 0);
    let again = TagIndex::open(Arc::clone(index.store()), IndexLimits::default(), CatalogMetrics::default()).unwrap();
    assert_eq!(pass(&again, spans(6)), 0, "a restart knows what is in the catalog");
}

#[rstest]
#[case::few(1)]
#[case::too_many_to_keep(MOST_UNKNOWN)]
fn what_was_only_looked_at_stays_unknown_and_what_two_bring_is_told_once(#[case] tags: usize) {
    let index = index(IndexLimits::default());
    let attributes = (0..tags).map(|tag| text(&tag.to_string(), "b")).collect();
    let traces = group_message(&request(vec![span_at(5, attributes)]));
    let unknown = index.unknown("t", &traces);
    assert_eq!(unknown.0.is_none(), tags == MOST_UNKNOWN);
    let again = index.unknown("t", &traces);
    assert_eq!(unknown, again);
    // Those of its resource, its scope and its name as well.
    assert_eq!(index.add("t", &traces, unknown).len(), tags + 5);
    assert_eq!(index.add("t", &traces, again), []);
    assert_eq!(index.unknown("t", &traces), Unknown(Some(Vec::new())));
}

#[test]
fn all_values_together_have_a_limit() {
    // The span's name and the service's are values of three intrinsics, the service's one of an attribute too.
    let index = index(IndexLimits { all_values: 7, ..IndexLimits::default() });
    for name in ["a", "b", "c", "d"] {
        pass(&index, vec![span_at(5, vec![text(name, "x")])]);
    }
    let stored = ["a", "b", "c", "d"].map(|name| values(&index, Scope::Span, name).len());
    assert_eq!(stored, [1, 1, 0, 0]);
}

#[test]
fn what_is_pruned_makes_room_and_is_told_again() {
    let index = index(IndexLimits { values: 1, ..IndexLimits::default() });
    let spans = |hour, value| vec![span_at(hour, vec![text("a", value)])];
    pass(&index, spans(5, "old"));
    pass(&index, spans(9, "new"));
    assert_eq!(values(&index, Scope::Span, "a"), [TagValue::String("old".to_owned())]);
    index.prune(6).unwrap();
    assert_eq!(values(&index, Scope::Span, "a"), []);
    pass(&index, spans(9, "new"));
    assert_eq!(values(&index, Scope::Span, "a"), [TagValue::String("new".to_owned())]);
}

#[test]
fn what_is_over_a_limit_is_counted_and_its_name_is_indexed_nevertheless() {
    let index = index(IndexLimits { names: 7, values: 3, ..IndexLimits::default() });
    let spans = |name: &str, value: String| vec![span_at(5, vec![text(name, &value)])];
    for value in 0..5 {
        pass(&index, spans("a", value.to_string()));
    }
    assert_eq!(values(&index, Scope::Span, "a").len(), 3);
    assert_eq!(index.metrics.over_limit.get(), 2);
    pass(&index, spans("b", "x".repeat(INDEXED_BYTES + 1)));
    assert_eq!(index.metrics.too_long.get(), 1);
    for name in ["c", "d", "e", "f", "g", "h"] {
        pass(&index, spans(name, String::new()));
    }
    assert_eq!(index.metrics.over_limit.get(), 3);
    let names = index.store().tag_names("t", Scope::Span, None, 100).unwrap();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(values(&index, Scope::Span, "b"), []);
}
