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
    set.insert(TENANT, group_message(&request("shop", vec![span(trace, number, start)])), start, start);
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
    set.insert(TENANT, group_message(&request("shop", vec![span(1, 1, 50), span(2, 1, 60), span(1, 2, 40)])), 0, 1);
    let root = Span { parent_span_id: Vec::new(), ..span(1, 3, 30) };
    set.insert(TENANT, group_message(&request("edge", vec![root])), 0, 2);
    let trace = set.trace(TENANT, &id(1)).unwrap();
    let spans: Vec<&str> = trace.spans.iter().map(|span| span.view().name.as_str()).collect();
    assert_eq!(spans, ["span 1", "span 2", "span 3"]);
    assert_eq!((trace.start_ns, trace.end_ns, trace.spans.len()), (30, 60, 3));
    assert_eq!(trace.root, Some(Root { service_name: "edge".into(), span_name: "span 3".into(), start_ns: 30 }));
    assert_eq!(set.trace(TENANT, &id(2)).unwrap().root, None);
    assert_eq!(set.trace("other", &id(1)), None);
}

#[rstest]
#[case::no_parent(vec![], true)]
#[case::parent_of_zeros(vec![0; 8], true)]
#[case::parent(vec![0, 0, 0, 0, 0, 0, 0, 1], false)]
fn roots(#[case] parent_span_id: Vec<u8>, #[case] expected: bool) {
    let groups = group_message(&request("shop", vec![Span { parent_span_id, ..span(1, 1, 0) }]));
    assert_eq!(groups[0].root.is_some(), expected);
}

#[test]
fn the_earliest_of_several_roots_counts() {
    let set = unbounded();
    let root = |number, start| Span { parent_span_id: Vec::new(), ..span(1, number, start) };
    set.insert(TENANT, group_message(&request("shop", vec![root(1, 50), root(2, 20), root(3, 30)])), 0, 1);
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
    assert_eq!(before.spans.len(), 1);
    assert_eq!(set.trace(TENANT, &id(1)).unwrap().spans.len(), 2);
}

#[test]
fn what_is_being_cut_is_seen_until_its_block_is_committed() {
    let set = unbounded();
    insert(&set, 1, 1, 10);
    insert(&set, 2, 1, 20);
    let cut = set.cut(|life| life.last_received_ns < 15);
    assert_eq!(cut.tenants()[0].traces, [set.trace(TENANT, &id(1)).unwrap()]);
    assert_eq!(ids(&set), [2, 1]);
    assert_eq!(set.stats().traces, 2);
    cut.commit();
    assert_eq!(ids(&set), [2]);
    assert_eq!(set.trace(TENANT, &id(1)), None);
    set.cut(|_| true).commit();
    assert_eq!(set.stats(), Stats { created_traces: 2, ..Stats::default() });
    assert!(set.tenants().is_empty());
}

#[test]
fn late_spans_of_a_trace_that_is_being_cut_are_read_with_it_and_stay_when_it_goes() {
    let set = unbounded();
    insert(&set, 1, 1, 10);
    let cut = set.cut(|_| true);
    insert(&set, 1, 2, 5);
    let trace = set.trace(TENANT, &id(1)).unwrap();
    assert_eq!(set.snapshot(TENANT), [Arc::clone(&trace)]);
    assert_eq!((trace.spans.len(), trace.start_ns, trace.end_ns), (2, 5, 20));
    assert_eq!(trace.spans[0].view().span_id, [1; 8], "in the order of arrival");
    cut.commit();
    let late = set.trace(TENANT, &id(1)).unwrap();
    assert_eq!((late.spans.len(), late.start_ns, late.end_ns), (1, 5, 15));
}

#[test]
fn a_cut_that_fails_puts_everything_back_in_the_order_of_arrival() {
    let set = unbounded();
    insert(&set, 1, 1, 10);
    insert(&set, 2, 1, 20);
    let cut = set.cut(|_| true);
    insert(&set, 1, 2, 30);
    drop(cut);
    let numbers = |trace: &Trace| trace.spans.iter().map(|span| span.view().span_id[0]).collect::<Vec<_>>();
    assert_eq!(numbers(&set.trace(TENANT, &id(1)).unwrap()), [1, 2]);
    let again = set.cut(|_| true);
    let [cut] = again.tenants() else { panic!() };
    assert_eq!((cut.received_first_ns, cut.received_last_ns), (10, 30));
    assert_eq!(cut.traces.iter().map(|trace| numbers(trace)).collect::<Vec<_>>(), [vec![1, 2], vec![1]]);
}

#[test]
fn the_first_number_in_the_log_is_that_of_what_is_not_being_cut() {
    let set = unbounded();
    assert_eq!(set.first_sequence(), None);
    for (trace, number) in [(1, 7), (2, 5), (1, 9)] {
        set.insert(TENANT, group_message(&request("shop", vec![span(trace, 1, 0)])), 0, number);
    }
    assert_eq!(set.first_sequence(), Some(5));
    let cut = set.cut(|life| life.first_sequence == 5);
    assert_eq!(set.first_sequence(), Some(7));
    drop(cut);
    assert_eq!(set.first_sequence(), Some(5));
}

#[test]
fn memory_is_promised_only_as_far_as_it_reaches() {
    let batches = group_message(&request("shop", vec![span(1, 1, 0)]));
    let one = batches[0].bytes;
    let set = LiveSet::new(Limits { total_bytes: 3 * one, trace_bytes: usize::MAX });
    insert(&set, 1, 1, 0);
    let second = set.reserve(&batches).unwrap();
    let third = set.reserve(&batches).unwrap();
    assert!(set.reserve(&batches).is_none());
    drop(second);
    assert!(set.reserve(&batches).is_some());
    drop(third);
    insert(&set, 2, 1, 0);
    insert(&set, 3, 1, 0);
    assert!(set.is_full() && set.reserve(&batches).is_none());
    let cut = set.cut(|_| true);
    assert!(set.is_full() && set.reserve(&batches).is_none(), "what is being cut is still in memory");
    cut.commit();
    assert!(!set.is_full() && set.reserve(&batches).is_some());
}

#[test]
fn the_bell_rings_when_half_of_the_memory_is_taken() {
    let request = group_message(&request("shop", vec![span(1, 1, 0)]));
    let bytes: usize = request.iter().map(|trace| trace.bytes).sum();
    let set = LiveSet::new(Limits { total_bytes: 4 * bytes, trace_bytes: usize::MAX });
    let insert = |sequence| {
        set.insert(TENANT, request.clone(), 0, sequence);
        set.bell().wait(std::time::Duration::ZERO)
    };
    // Of what is there already only the first byte beyond the half is told.
    assert_eq!([1, 2, 3, 4].map(insert), [false, false, true, false]);
    set.cut(|_| true).commit();
    assert_eq!([5, 6, 7].map(insert), [false, false, true]);
}

#[test]
fn a_request_larger_than_the_bound_has_room_when_nothing_else_is_there() {
    let set = LiveSet::new(Limits { total_bytes: 1, trace_bytes: usize::MAX });
    let batches = group_message(&request("shop", vec![span(1, 1, 0)]));
    let room = set.reserve(&batches).unwrap();
    assert!(set.reserve(&batches).is_none());
    drop(room);
    insert(&set, 1, 1, 0);
    assert!(set.reserve(&batches).is_none());
}

#[test]
fn tenants_do_not_see_each_other() {
    let set = unbounded();
    for tenant in ["b", "a"] {
        set.insert(tenant, group_message(&request(tenant, vec![span(1, 1, 0)])), 0, 1);
    }
    assert_eq!(set.tenants().iter().map(|tenant| &**tenant).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(set.trace("a", &id(1)).unwrap().spans[0].batch.service_name(), Some("a"));
}

#[test]
fn a_trace_grows_to_its_limit_and_no_further() {
    let bytes = group_message(&request("shop", vec![span(1, 1, 0)]))[0].bytes;
    let set = LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: 4 * bytes });
    let takes = |trace| [1, 2, 3, 4].map(|times| set.takes(TENANT, &id(trace), times * bytes));
    assert_eq!(takes(1), [true; 4]);
    insert(&set, 1, 1, 0);
    insert(&set, 1, 1, 0);
    assert_eq!((takes(1), takes(2)), ([true, true, false, false], [true; 4]));
    insert(&set, 2, 1, 0);
    assert_eq!((takes(1), takes(2)), ([true, true, false, false], [true, true, true, false]));
    set.cut(|_| true).commit();
    assert_eq!((takes(1), takes(2)), ([true; 4], [true; 4]));
}

#[test]
fn groups_share_what_their_spans_share() {
    let groups = group_message(&request("shop", vec![span(1, 1, 0), span(2, 1, 0), span(1, 2, 0)]));
    assert_eq!(groups.iter().map(|group| (group.id, group.spans.len())).collect::<Vec<_>>(), [(id(1), 2), (id(2), 1)]);
    assert!(Arc::ptr_eq(&groups[0].spans[0].batch, &groups[1].spans[0].batch));
}

/// The estimate must be near what the allocator gives out; it is what bounds the memory.
#[test]
fn the_estimate_counts_every_part() {
    let plain = group_message(&request("shop", vec![span(1, 1, 0)]))[0].bytes;
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
    let grown = group_message(&request("shop", vec![large]))[0].bytes;
    assert!((1_400..2_000).contains(&(grown - plain)), "{}", grown - plain);
}

proptest! {
    #[test]
    fn groups_have_the_spans_that_came_in_their_order(traces in prop::collection::vec((1_u8..5, 1_u8..), 0..30)) {
        let spans: Vec<Span> = traces.iter().map(|(trace, number)| span(*trace, *number, 0)).collect();
        let groups = group_message(&request("shop", spans.clone()));
        let mut expected = spans;
        expected.sort_by_key(|span| traces.iter().position(|(trace, _)| *trace == span.trace_id[0]));
        let found: Vec<_> = groups.iter().flat_map(|group| &group.spans).collect();
        prop_assert!(found.iter().all(|span| &*span.batch.resource_schema_url == "resource"));
        prop_assert!(found.iter().all(|span| span.batch.service_name() == Some("shop")));
        prop_assert_eq!(found.into_iter().map(TraceSpan::decode).collect::<Vec<_>>(), expected);
    }

    /// A model that knows only which spans were taken away by a commit.
    #[test]
    fn readers_see_exactly_what_is_not_committed_after_any_history(
        history in prop::collection::vec(any_step(), 1..200),
    ) {
        let set = unbounded();
        // Trace and number of each span that is not in a block, in the order of arrival, and what the open cut took.
        let mut expected: Vec<(u8, u64)> = Vec::new();
        let mut open: Option<(Cut<'_>, Vec<(u8, u64)>)> = None;
        for (step, sequence) in history.into_iter().zip(1..) {
            match step {
                Step::Insert(trace) => {
                    let spans = vec![Span { flags: sequence as u32, ..span(trace, 1, sequence) }];
                    set.insert(TENANT, group_message(&request("shop", spans)), sequence, sequence);
                    expected.push((trace, sequence));
                }
                Step::Cut(before) if open.is_none() => {
                    let last = |trace| expected.iter().filter(|(other, _)| *other == trace).map(|(_, n)| *n).max();
                    let taken = expected.iter().copied().filter(|(trace, _)| last(*trace) < Some(before)).collect();
                    open = Some((set.cut(|life| life.last_received_ns < before), taken));
                }
                Step::Commit => if let Some((cut, taken)) = open.take() {
                    cut.commit();
                    expected.retain(|span| !taken.contains(span));
                }
                Step::Cut(_) | Step::Fail => drop(open.take()),
            }
            let taken = open.as_ref().map(|(_, taken)| taken.clone()).unwrap_or_default();
            let seen = set.snapshot(TENANT);
            let mut spans = Vec::new();
            for trace in &seen {
                prop_assert_eq!(set.trace(TENANT, &trace.id), Some(Arc::clone(trace)));
                let of_trace: Vec<u64> =
                    trace.spans.iter().map(TraceSpan::decode).map(|span| u64::from(span.flags)).collect();
                prop_assert!(of_trace.is_sorted(), "{:?}", of_trace);
                prop_assert_eq!(trace.spans.len(), of_trace.len());
                prop_assert_eq!(trace.start_ns, of_trace[0]);
                spans.extend(of_trace.into_iter().map(|number| (trace.id.0[0], number)));
            }
            spans.sort_by_key(|(_, number)| *number);
            prop_assert_eq!(&spans, &expected);
            let live = expected.iter().filter(|span| !taken.contains(span));
            prop_assert_eq!(set.first_sequence(), live.map(|(_, number)| *number).min());
            let stats = set.stats();
            prop_assert_eq!(stats.traces, seen.len());
            prop_assert_eq!(stats.bytes, seen.iter().map(|trace| trace.bytes).sum::<usize>());
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u8),
    /// Those of which nothing has come since.
    Cut(u64),
    Commit,
    Fail,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..8).prop_map(Step::Insert),
        2 => (0_u64..200).prop_map(Step::Cut),
        1 => Just(Step::Commit),
        1 => Just(Step::Fail),
    ]
}
