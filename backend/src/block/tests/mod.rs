//! What is written is read, whatever it is; what was damaged is an error.

mod damage;
mod golden;
mod samples;
mod store;

use std::collections::HashMap;
use std::sync::Arc;

use coati_common::wellknown::AGENT_SCOPE;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use proptest::prelude::*;
use prost::Message;
use rstest::rstest;

use super::*;
use crate::live::{Batch, Trace, TraceId};
use crate::query::distinct_spans;
use samples::{any_traces, attribute, batch, new_block, span, trace, trace_id};
use store::MemoryStore;

/// Number of the `ResourceSpans`, resource, scope, their schema URLs, spans.
type BatchContent = (usize, Vec<u8>, Vec<u8>, [String; 2], Vec<Vec<u8>>);

/// A trace as it must come back: batches in order with the number of their `ResourceSpans`, spans of a batch as a set. In
/// bytes, so that numbers that are not equal to themselves compare.
fn content(trace: &Trace) -> Vec<BatchContent> {
    let mut resources: HashMap<*const Resource, usize> = HashMap::new();
    let mut batches: Vec<(Arc<Batch>, Vec<Vec<u8>>)> = Vec::new();
    for (batch, span) in distinct_spans(trace) {
        match batches.last_mut() {
            Some((last, spans)) if Arc::ptr_eq(last, batch) => spans.push(span.decode().encode_to_vec()),
            _ => batches.push((Arc::clone(batch), vec![span.decode().encode_to_vec()])),
        }
    }
    let content = batches.into_iter().map(|(batch, mut spans)| {
        let next = resources.len();
        let number = *resources.entry(Arc::as_ptr(&batch.resource)).or_insert(next);
        spans.sort();
        let resource = batch.resource.encode_to_vec();
        let scope = batch.scope.encode_to_vec();
        (number, resource, scope, [batch.resource_schema_url.to_string(), batch.scope_schema_url.to_string()], spans)
    });
    content.collect()
}

fn written(traces: &[Arc<Trace>]) -> (Arc<MemoryStore>, BlockSummary, Filter) {
    let store = Arc::new(MemoryStore::default());
    let (summary, filter) = write_block(&*store, new_block(), traces).unwrap();
    (store, summary, filter)
}

fn read(store: &Arc<MemoryStore>, summary: &BlockSummary) -> Vec<Trace> {
    let block = Block::open(Arc::clone(store) as _, summary).unwrap();
    assert_eq!(BlockSummary { filter_bytes: summary.filter_bytes, ..block.summary().clone() }, *summary);
    block.verify().unwrap();
    block.traces().collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn assert_survives(traces: &[Arc<Trace>]) {
    let (store, summary, filter) = written(traces);
    let found = read(&store, &summary);
    assert_eq!(found.len(), traces.len());
    for (found, trace) in found.iter().zip(traces) {
        assert_eq!(found.id, trace.id);
        assert!(filter.contains(&trace.id));
        assert_eq!(content(found), content(trace), "{trace:#?}");
        // A trace that has spans once is the same in everything but the order of spans in a batch.
        if distinct_spans(trace).len() == trace.spans.len() {
            assert_eq!((found.start_ns, found.end_ns), (trace.start_ns, trace.end_ns));
            assert_eq!(found.spans.len(), trace.spans.len());
        }
    }
    assert_eq!(summary.traces, traces.len() as u64);
    assert_eq!(summary.spans, found.iter().map(|trace| trace.spans.len() as u64).sum::<u64>());
    let filter_file = store.object(&summary.filter_path());
    assert_eq!(Filter::decode("f", &filter_file).unwrap(), filter);
    assert_eq!(summary.filter_bytes, filter_file.len() as u64);
    assert_eq!(summary.bytes, store.object(&summary.data_path()).len() as u64);
}

#[test]
fn read_in_parts_it_is_the_same() {
    // Traces lie across the ends of parts.
    let traces: Vec<_> = (0..6_000_u32)
        .map(|number| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let spans: Vec<_> = (1..=7).map(|place| span(0, place, place / 2, u64::from(number) * 10)).collect();
            let mut trace = Trace::empty(TraceId(id));
            let (batch, spans) = batch(["shop", "cart"][number as usize % 2], spans);
            for span in spans {
                trace.add(&batch, &Span { trace_id: id.to_vec(), ..span });
            }
            Arc::new(trace)
        })
        .collect();
    let (store, summary, _) = written(&traces);
    let block = Block::open(store as _, &summary).unwrap();
    assert!(summary.spans > 40_000);
    let mut whole = block.traces();
    let mut in_parts = block.traces_in_parts();
    for trace in &traces {
        let (whole, in_parts) = (whole.next().unwrap().unwrap(), in_parts.next().unwrap().unwrap());
        assert_eq!((in_parts.id, in_parts.spans.len()), (trace.id, 7));
        assert_eq!(content(&in_parts), content(&whole));
    }
    assert!(whole.next().is_none() && in_parts.next().is_none());
}

#[test]
fn it_tells_the_client_spans_of_agents() {
    let (shop, spans) = batch("shop", vec![Span { kind: 3, ..span(1, 1, 0, 5) }, Span { kind: 2, ..span(1, 2, 1, 6) }]);
    let scope = InstrumentationScope { name: AGENT_SCOPE.to_owned(), ..InstrumentationScope::default() };
    let of_agent = Arc::new(Batch { scope: Arc::new(scope), ..Batch::clone(&shop) });
    let traces = |batch: &Arc<Batch>| {
        [1, 2].map(|id| {
            let mut trace = Trace::empty(trace_id(id));
            for span in &spans {
                trace.add(batch, &Span { trace_id: vec![id; 16], ..span.clone() });
            }
            Arc::new(trace)
        })
    };
    let calls = |traces: &[Arc<Trace>]| {
        let (store, summary, _) = written(traces);
        let mut calls = Vec::new();
        Block::open(store as _, &summary).unwrap().calls(|trace, span| calls.push((trace, span))).unwrap();
        calls
    };
    assert_eq!(calls(&traces(&of_agent)), [(trace_id(1), [1; 8]), (trace_id(2), [1; 8])]);
    assert_eq!(calls(&traces(&shop)), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 2_000 }))]

    #[test]
    fn whatever_was_sent_comes_back(traces in any_traces()) {
        assert_survives(&traces);
    }

    #[test]
    fn every_trace_is_found_by_its_id(traces in any_traces()) {
        let (store, summary, _) = written(&traces);
        let block = Block::open(store as _, &summary).unwrap();
        let ids = block.trace_ids().unwrap();
        prop_assert_eq!(ids.iter().map(|(id, _)| *id).collect::<Vec<_>>(), traces.iter().map(|t| t.id).collect::<Vec<_>>());
        prop_assert_eq!(ids.iter().map(|(_, rows)| rows.end - rows.start).sum::<u64>(), summary.spans);
        for trace in &traces {
            prop_assert_eq!(content(&block.trace(&trace.id).unwrap().unwrap()), content(trace));
        }
        prop_assert!(block.trace(&TraceId([0xff; 16])).unwrap().is_none());
        // Any rows of whole traces.
        let every_second: Vec<_> = ids.iter().step_by(2).map(|(_, rows)| rows.clone()).collect();
        let found: Vec<_> = block.traces_at(&every_second).map(|trace| content(&trace.unwrap())).collect();
        prop_assert_eq!(found, traces.iter().step_by(2).map(|trace| content(trace)).collect::<Vec<_>>());
    }
}

/// Spans with ids, parents and starts: the tree is odd in one way each.
#[rstest]
#[case::two_roots(&[(1, 0, 10), (2, 0, 5), (3, 1, 20), (4, 2, 20)])]
#[case::orphans(&[(1, 9, 10), (2, 1, 5), (3, 8, 20)])]
#[case::a_circle(&[(1, 2, 10), (2, 1, 5), (3, 3, 20), (4, 1, 30)])]
#[case::an_id_twice(&[(1, 0, 10), (1, 0, 5), (2, 1, 20), (2, 1, 15), (3, 2, 30)])]
#[case::same_start(&[(1, 0, 10), (2, 1, 10), (3, 1, 10), (4, 3, 10)])]
#[case::deep(&[(1, 0, 1), (2, 1, 2), (3, 2, 3), (4, 3, 4), (5, 4, 5), (6, 5, 6)])]
fn odd_trees_survive(#[case] spans: &[(u8, u8, u64)]) {
    let spans = spans.iter().map(|(id, parent, start)| span(1, *id, *parent, *start));
    assert_survives(&[trace(1, vec![batch("a", spans.collect())])]);
}

#[test]
fn a_parent_of_zeros_is_not_an_absent_one() {
    let mut with_zeros = span(1, 1, 0, 10);
    with_zeros.parent_span_id = vec![0; 8];
    assert_survives(&[trace(1, vec![batch("a", vec![with_zeros, span(1, 2, 0, 10)])])]);
}

#[test]
fn times_that_make_no_sense_survive() {
    let at = |id, start, end| Span { start_time_unix_nano: start, end_time_unix_nano: end, ..span(1, id, 0, 0) };
    let spans = vec![at(1, 100, 50), at(2, u64::MAX, 0), at(3, 0, u64::MAX), at(4, u64::MAX, u64::MAX), at(5, 7, 0)];
    assert_survives(&[trace(1, vec![batch("a", spans)])]);
}

#[test]
fn numbers_keep_their_bits() {
    let doubles = [0.0, -0.0, f64::NAN, -f64::NAN, f64::from_bits(0x7ff0_0000_0000_0001), f64::INFINITY, 5e-324];
    let spans = doubles.iter().enumerate().map(|(number, double)| Span {
        attributes: vec![attribute("x", Value::DoubleValue(*double)), attribute("y", Value::IntValue(i64::MIN))],
        ..span(1, number as u8 + 1, 0, 1)
    });
    assert_survives(&[trace(1, vec![batch("a", spans.collect())])]);
}

#[test]
fn batches_of_one_resource_stay_together_and_others_apart() {
    let first = batch("a", vec![span(1, 1, 0, 1)]);
    let same = (Arc::new(Batch::clone(&first.0)), vec![span(1, 2, 1, 2)]);
    let equal = batch("a", vec![span(1, 3, 1, 3)]);
    assert!(Arc::ptr_eq(&first.0.resource, &same.0.resource) && !Arc::ptr_eq(&first.0.resource, &equal.0.resource));
    let trace = trace(1, vec![first, equal, same]);
    assert_survives(std::slice::from_ref(&trace));
    let (store, summary, _) = written(&[trace]);
    let found = read(&store, &summary);
    let batches: Vec<_> = found[0].spans.iter().map(|span| &span.batch).collect();
    let [first, equal, same] = batches.as_slice() else { panic!("{found:?}") };
    assert!(Arc::ptr_eq(&first.resource, &same.resource) && !Arc::ptr_eq(&first.resource, &equal.resource));
    // The resource stands in the file once.
    let block = Block::open(store as _, &summary).unwrap();
    assert_eq!((block.resources().unwrap().len(), block.scopes().unwrap().len()), (1, 1));
}

#[test]
fn spans_that_came_again_are_written_once() {
    let first = batch("a", vec![span(1, 1, 0, 1), span(1, 2, 1, 2)]);
    let again = batch("a", vec![span(1, 2, 1, 2), span(1, 3, 1, 3)]);
    let (store, summary, _) = written(&[trace(1, vec![first, again])]);
    assert_eq!(summary.spans, 3);
    let found = read(&store, &summary);
    let batches = found[0].spans.chunk_by(|a, b| Arc::ptr_eq(&a.batch, &b.batch));
    assert_eq!(batches.map(<[_]>::len).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_key_twice_in_a_span_keeps_its_order() {
    let text = |text: &str| Value::StringValue(text.to_owned());
    let attributes = vec![
        attribute("k", Value::IntValue(1)),
        attribute("z", text("z")),
        attribute("k", text("2")),
        attribute("k", Value::IntValue(3)),
        attribute("a", text("a")),
    ];
    let usual: Vec<_> = (2..50)
        .map(|id| Span { attributes: vec![attribute("k", text("v")), attribute("z", text("z"))], ..span(1, id, 0, 1) })
        .collect();
    let spans = [vec![Span { attributes, ..span(1, 1, 0, 1) }], usual].concat();
    let trace = trace(1, vec![batch("a", spans)]);
    assert_survives(std::slice::from_ref(&trace));
    let (store, summary, _) = written(&[trace]);
    let block = Block::open(store as _, &summary).unwrap();
    let columns: Vec<_> = block.promoted().iter().map(|promoted| (&*promoted.key, promoted.of)).collect();
    assert_eq!(columns, [("k", AttributeType::String), ("z", AttributeType::String), ("a", AttributeType::String)]);
    let counts: Vec<_> = block.attribute_counts().iter().collect();
    let expected = [
        ("a", AttributeType::String, 1),
        ("k", AttributeType::String, 49),
        ("k", AttributeType::Int, 2),
        ("z", AttributeType::String, 49),
    ];
    assert_eq!(counts, expected);
}

#[test]
fn a_column_may_be_empty() {
    // Most values are texts, none of them is the first of its span.
    let values = [Value::IntValue(1), Value::StringValue("a".to_owned()), Value::StringValue("b".to_owned())];
    let attributes = values.map(|value| attribute("k", value)).to_vec();
    let traces = [trace(1, vec![batch("a", vec![Span { attributes, ..span(1, 1, 0, 1) }])])];
    assert_survives(&traces);
    let (store, summary, _) = written(&traces);
    let block = Block::open(store as _, &summary).unwrap();
    assert_eq!(block.promoted(), [Promoted { key: "k".into(), of: AttributeType::String }]);
}

#[test]
fn keys_without_end_leave_the_columns_alone() {
    let attributes = |id: u64| {
        let rare = (0..7).map(move |number| (format!("key-{id}-{number}"), number));
        let frequent = ["p", "q"].map(|key| (key.to_owned(), 1));
        frequent.into_iter().chain(rare).map(|(key, value)| attribute(&key, Value::IntValue(value))).collect()
    };
    let spans = (1..=300_u64).map(|id| Span {
        span_id: id.to_be_bytes().to_vec(),
        attributes: attributes(id),
        ..span(1, 1, 0, id)
    });
    let traces = [trace(1, vec![batch("a", spans.collect())])];
    assert_survives(&traces);
    let (store, summary, _) = written(&traces);
    let block = Block::open(store as _, &summary).unwrap();
    assert_eq!(block.promoted().iter().map(|promoted| &*promoted.key).collect::<Vec<_>>(), ["p", "q"]);
    assert!(!block.attribute_counts().is_complete());
}

#[test]
fn long_traces_and_long_values_survive() {
    // More than a page and more than a batch of rows, and texts larger than a page.
    let long = "x".repeat(3 << 20);
    let mut spans: Vec<_> = (0..20_000_u64)
        .map(|number| Span { span_id: (number + 1).to_be_bytes().to_vec(), ..span(2, 1, 0, number) })
        .collect();
    for (number, span) in spans.iter_mut().take(5).enumerate() {
        span.attributes.push(attribute("long", Value::StringValue(format!("{number}{long}"))));
    }
    let traces = [trace(1, vec![batch("a", vec![span(1, 1, 0, 1)])]), trace(2, vec![batch("b", spans)])];
    assert_survives(&traces);
}

/// Lists of each kind with everything in them, here and there in two row groups of many pages.
#[test]
fn lists_survive_pages_and_row_groups() {
    let hash = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let some = |value| Some(AnyValue { value: Some(value) });
    let value = |number: u64| match hash(number) % 9 {
        0 => None,
        1 => Some(AnyValue { value: None }),
        2 => some(Value::IntValue(hash(number) as i64)),
        3 => some(Value::DoubleValue(f64::from_bits(number))),
        4 => some(Value::BoolValue(number.is_multiple_of(2))),
        5 => some(Value::BytesValue(number.to_be_bytes().to_vec())),
        _ => some(Value::StringValue(format!("{}", number % 50))),
    };
    let attributes = |number: u64| {
        let keys = (0..hash(number + 1) % 4).map(|key| format!("rare.{}", (number + key) % 300));
        keys.zip(number..).map(|(key, at)| KeyValue { key, value: value(at), key_strindex: 0 }).collect::<Vec<_>>()
    };
    let span = |number: u64| {
        let count = |seed: u64| if hash(number).is_multiple_of(37) { hash(number + seed) % 4 } else { 0 };
        let events = (0..count(1)).map(|event| Event {
            time_unix_nano: number + event,
            name: format!("event {event}"),
            attributes: attributes(number + event),
            dropped_attributes_count: event as u32,
        });
        let links = (0..count(2)).map(|link| Link {
            trace_id: vec![link as u8; 16],
            span_id: number.to_be_bytes().to_vec(),
            trace_state: "s".repeat(link as usize),
            attributes: attributes(number + 7 + link),
            dropped_attributes_count: 0,
            flags: link as u32,
        });
        Span {
            span_id: (number + 1).to_be_bytes().to_vec(),
            attributes: if count(3) > 0 { attributes(number) } else { Vec::new() },
            events: events.collect(),
            links: links.collect(),
            ..span(1, 1, 0, number)
        }
    };
    let traces: Vec<_> = (0..140_u8)
        .map(|id| trace(id, vec![batch("a", (0..1_000).map(|number| span(u64::from(id) * 1_000 + number)).collect())]))
        .collect();
    assert_survives(&traces);
}

#[test]
fn an_empty_block_is_a_block() {
    assert_survives(&[]);
    let (store, summary, _) = written(&[]);
    assert_eq!((summary.start_ns, summary.end_ns, summary.services.as_deref()), (0, 0, Some(&[][..])));
    let block = Block::open(store as _, &summary).unwrap();
    assert_eq!(block.trace(&trace_id(1)).unwrap(), None);
    assert_eq!(block.trace_ids().unwrap(), []);
}

#[test]
fn services_are_listed_unless_there_are_too_many() {
    let of = |count: usize| {
        let batches = (0..count).map(|number| batch(&format!("s-{number:03}"), vec![span(1, 1, 0, number as u64)]));
        written(&[trace(1, batches.collect())]).1.services
    };
    assert_eq!(of(2).unwrap(), ["s-000", "s-001"]);
    assert_eq!(of(MAX_SERVICES).map(|services| services.len()), Some(MAX_SERVICES));
    assert_eq!(of(MAX_SERVICES + 1), None);
}

#[test]
fn traces_must_come_in_order() {
    let store = MemoryStore::default();
    let mut writer = BlockWriter::create(&store, new_block(), Columns::default()).unwrap();
    let one = |id| trace(id, vec![batch("a", vec![span(id, 1, 0, 1)])]);
    writer.push(&one(2)).unwrap();
    let error = writer.push(&one(2)).unwrap_err();
    insta::assert_snapshot!(error, @"trace 02020202020202020202020202020202 was written after trace 02020202020202020202020202020202: a block takes traces in the order of their ids, each once");
    assert!(matches!(writer.push(&one(1)), Err(BlockError::Order { .. })));
    drop(writer);
    assert_eq!(store.paths(), Vec::<String>::new());
}

#[test]
fn a_span_id_of_another_length_is_refused() {
    let wrong = Span { span_id: vec![1; 7], ..span(1, 1, 0, 1) };
    let error = write_block(&MemoryStore::default(), new_block(), &[trace(1, vec![batch("a", vec![wrong])])]);
    insta::assert_snapshot!(error.unwrap_err(), @"trace 01010101010101010101010101010101: a span id of 7 bytes, expected 8");
}

#[test]
fn one_trace_costs_few_requests_and_few_bytes() {
    // Three row groups; each span has texts of its own.
    let traces: Vec<_> = (0..3_000_u32)
        .map(|number| {
            let text = |tag: u64| {
                Value::StringValue(format!(
                    "{:016x}",
                    (u64::from(number) << 8 | tag).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ))
            };
            let spans = (0..100)
                .map(|id| Span { attributes: vec![attribute("url.path", text(id))], ..span(1, id as u8 + 1, 0, id) });
            let mut trace = Trace::clone(&trace(1, vec![batch("a", spans.collect())]));
            trace.id.0[..4].copy_from_slice(&number.to_be_bytes());
            Arc::new(trace)
        })
        .collect();
    let (store, summary, _) = written(&traces);
    let block = Block::open(Arc::clone(&store) as _, &summary).unwrap();
    assert_eq!(block.parquet().num_row_groups(), 3);
    assert!(store.requests() <= 2, "opening took {} requests", store.requests());
    store.reset();
    let found = block.trace(&traces[1_500].id).unwrap().unwrap();
    assert_eq!(found.spans.len(), 100);
    assert!(store.requests() <= 2, "{} requests", store.requests());
    assert!(store.bytes_read() < summary.bytes / 10, "{} of {} bytes", store.bytes_read(), summary.bytes);
    // What the filter let through by mistake costs no more than a look at the index.
    store.reset();
    assert_eq!(block.trace(&TraceId([0xff; 16])).unwrap(), None);
    assert_eq!(store.requests(), 0);
}
