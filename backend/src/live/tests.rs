//! Guarantees of the live set: whole traces, in order, within bounds, and unchanged under a reader's hands.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;
use rstest::rstest;

use super::*;

const TENANT: &str = "t";

fn id(trace: u8) -> TraceId {
    TraceId([trace; 16])
}

fn span(trace: u8, span: u8, start: u64) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![span; 8],
        parent_span_id: vec![0xff; 8],
        name: format!("span {span}"),
        start_time_unix_nano: start,
        end_time_unix_nano: start + 10,
        ..Span::default()
    }
}

fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let name = AnyValue { value: Some(Value::StringValue(service.to_owned())) };
    let attribute = KeyValue { key: "service.name".to_owned(), value: Some(name), key_strindex: 0 };
    let scope = InstrumentationScope { name: "lib".to_owned(), ..InstrumentationScope::default() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![attribute], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: "scope".to_owned() }],
            schema_url: "resource".to_owned(),
        }],
    }
}

fn insert(set: &LiveSet, trace: u8, number: u8, start: u64) {
    set.insert(TENANT, group(request("shop", vec![span(trace, number, start)])), start);
}

fn ids(set: &LiveSet) -> Vec<u8> {
    set.snapshot(TENANT).iter().map(|trace| trace.id.0[0]).collect()
}

fn unbounded() -> LiveSet {
    LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: usize::MAX })
}

#[test]
fn a_trace_is_whole_however_its_spans_come() {
    let set = unbounded();
    set.insert(TENANT, group(request("shop", vec![span(1, 1, 50), span(2, 1, 60), span(1, 2, 40)])), 0);
    let root = Span { parent_span_id: Vec::new(), ..span(1, 3, 30) };
    set.insert(TENANT, group(request("edge", vec![root])), 0);
    let trace = set.trace(TENANT, &id(1)).unwrap();
    let spans: Vec<&str> = trace.batches.iter().flat_map(|batch| &batch.spans).map(|span| span.name.as_str()).collect();
    assert_eq!(spans, ["span 1", "span 2", "span 3"]);
    assert_eq!((trace.start_ns, trace.end_ns, trace.span_count), (30, 60, 3));
    assert_eq!(trace.root, Some(Root { service_name: "edge".into(), span_name: "span 3".into(), start_ns: 30 }));
    assert_eq!(set.trace(TENANT, &id(2)).unwrap().root, None);
    assert_eq!(set.trace("other", &id(1)), None);
}

#[rstest]
#[case::no_parent(vec![], true)]
#[case::parent_of_zeros(vec![0; 8], true)]
#[case::parent(vec![0, 0, 0, 0, 0, 0, 0, 1], false)]
fn roots(#[case] parent_span_id: Vec<u8>, #[case] expected: bool) {
    assert_eq!(is_root(&Span { parent_span_id, ..Span::default() }), expected);
}

#[test]
fn the_earliest_of_several_roots_counts() {
    let set = unbounded();
    let root = |number, start| Span { parent_span_id: Vec::new(), ..span(1, number, start) };
    set.insert(TENANT, group(request("shop", vec![root(1, 50), root(2, 20), root(3, 30)])), 0);
    assert_eq!(set.trace(TENANT, &id(1)).unwrap().root.as_ref().unwrap().start_ns, 20);
}

#[test]
fn a_snapshot_is_sorted_newest_first_then_by_id() {
    let set = unbounded();
    for (trace, start) in [(5, 10), (1, 30), (9, 20), (3, 20), (7, 20)] {
        insert(&set, trace, 1, start);
    }
    assert_eq!(ids(&set), [1, 3, 7, 9, 5]);
}

#[test]
fn a_reader_keeps_the_version_that_it_took() {
    let set = unbounded();
    insert(&set, 1, 1, 10);
    let before = set.trace(TENANT, &id(1)).unwrap();
    insert(&set, 1, 2, 20);
    assert_eq!(before.span_count, 1);
    assert_eq!(set.trace(TENANT, &id(1)).unwrap().span_count, 2);
}

#[test]
fn the_trace_that_was_quiet_for_longest_leaves_first() {
    let one = group(request("shop", vec![span(1, 1, 0)]))[0].bytes + Trace::empty(id(1)).bytes;
    let set = LiveSet::new(Limits { total_bytes: 3 * one, trace_bytes: usize::MAX });
    for trace in 1..=3 {
        insert(&set, trace, 1, u64::from(trace));
    }
    assert_eq!(set.stats().evicted_traces, 0);
    // Trace 1 becomes the most recent one, so 2 and then 3 leave.
    insert(&set, 1, 2, 1);
    assert_eq!(ids(&set), [3, 1]);
    insert(&set, 4, 1, 4);
    assert_eq!(ids(&set), [4, 1]);
    let stats = set.stats();
    assert_eq!((stats.traces, stats.created_traces, stats.evicted_traces), (2, 4, 2));
    assert!(stats.bytes <= 3 * one);
}

#[test]
fn what_nothing_has_come_of_for_long_expires() {
    let set = unbounded();
    insert(&set, 1, 1, 10);
    insert(&set, 2, 1, 20);
    insert(&set, 1, 2, 30);
    set.expire(25);
    assert_eq!(ids(&set), [1]);
    set.expire(31);
    assert_eq!(set.stats().bytes, 0);
    assert!(set.tenants().is_empty());
}

#[test]
fn tenants_do_not_see_each_other() {
    let set = unbounded();
    for tenant in ["b", "a"] {
        set.insert(tenant, group(request(tenant, vec![span(1, 1, 0)])), 0);
    }
    assert_eq!(set.tenants().iter().map(|tenant| &**tenant).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(set.trace("a", &id(1)).unwrap().batches[0].service_name(), Some("a"));
}

#[test]
fn the_room_of_a_trace_shrinks_with_what_it_holds() {
    let set = LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: 10_000 });
    assert_eq!(set.room(TENANT, &id(1)), 10_000);
    insert(&set, 1, 1, 0);
    let held = set.trace(TENANT, &id(1)).unwrap().bytes;
    assert_eq!(set.room(TENANT, &id(1)), 10_000 - held);
}

#[test]
fn groups_share_what_their_spans_share() {
    let groups = group(request("shop", vec![span(1, 1, 0), span(2, 1, 0), span(1, 2, 0)]));
    assert_eq!(
        groups.iter().map(|group| (group.id, group.batch.spans.len())).collect::<Vec<_>>(),
        [(id(1), 2), (id(2), 1)]
    );
    assert!(Arc::ptr_eq(&groups[0].batch.resource, &groups[1].batch.resource));
    assert!(Arc::ptr_eq(&groups[0].batch.scope, &groups[1].batch.scope));
}

/// The estimate must be near what the allocator gives out; it is what bounds the memory.
#[test]
fn the_estimate_counts_every_part() {
    let plain = group(request("shop", vec![span(1, 1, 0)]))[0].bytes;
    let mut large = span(1, 1, 0);
    large.attributes = vec![KeyValue {
        key: "k".repeat(100),
        value: Some(AnyValue { value: Some(Value::StringValue("v".repeat(1000))) }),
        key_strindex: 0,
    }];
    large.events =
        vec![opentelemetry_proto::tonic::trace::v1::span::Event { name: "e".repeat(100), ..Default::default() }];
    large.links =
        vec![opentelemetry_proto::tonic::trace::v1::span::Link { trace_state: "l".repeat(100), ..Default::default() }];
    large.trace_state = "s".repeat(100);
    let grown = group(request("shop", vec![large]))[0].bytes;
    assert!((1_400..2_000).contains(&(grown - plain)), "{}", grown - plain);
}

proptest! {
    #[test]
    fn what_is_grouped_and_ungrouped_has_the_same_spans(traces in prop::collection::vec((1_u8..5, 1_u8..), 0..30)) {
        let spans: Vec<Span> = traces.iter().map(|(trace, number)| span(*trace, *number, 0)).collect();
        let ungrouped = ungroup(&group(request("shop", spans.clone())));
        let mut expected = spans;
        expected.sort_by_key(|span| traces.iter().position(|(trace, _)| *trace == span.trace_id[0]));
        let resources = ungrouped.resource_spans;
        prop_assert!(resources.iter().all(|resource| resource.schema_url == "resource" && resource.resource.is_some()));
        let scopes = resources.into_iter().flat_map(|resource| resource.scope_spans);
        prop_assert_eq!(scopes.flat_map(|scope| scope.spans).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn bounds_and_counts_hold_after_any_history(
        limit in 500_usize..20_000,
        inserts in prop::collection::vec((0_u8..20, any::<u8>(), 0_u64..100), 1..200),
    ) {
        let set = LiveSet::new(Limits { total_bytes: limit, trace_bytes: usize::MAX });
        for (trace, number, start) in inserts {
            insert(&set, trace, number, start);
            let traces = set.snapshot(TENANT);
            let stats = set.stats();
            prop_assert!(stats.bytes <= limit);
            prop_assert_eq!(stats.traces, traces.len());
            prop_assert_eq!(stats.bytes, traces.iter().map(|trace| trace.bytes).sum::<usize>());
            prop_assert_eq!(stats.created_traces - stats.evicted_traces, traces.len() as u64);
        }
    }
}
