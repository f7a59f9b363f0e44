//! Guarantee: the ends of calls that came too far apart are one trace after compaction, with every span once and below the
//! right parent; nothing else moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coati_common::stitch::{client_span_id, provisional_trace_id};
use coati_common::wellknown::AGENT_SCOPE;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use rstest::rstest;

use super::super::tests::{GO_ON, NOW, add, registry};
use super::super::{Job, Merged, merge};
use super::*;
use crate::block::{BlockId, BlockSummary};
use crate::blocks::Blocks;
use crate::live::{Limits, LiveSet, TraceSpan, group_message};
use crate::query::fixture::{EPOCH, service, span};
use crate::store::MemoryStore;

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
/// Flags of a span whose parent is remote, in a sampled trace.
const BELOW: u32 = 0x301;
const ROOT: TraceId = TraceId([1; 16]);

/// A span: its id, its parent, its flags.
type Seen = (SpanId, Option<SpanId>, u32);

/// Id of the client span that calls node `node`.
fn calling(node: u8) -> SpanId {
    client_span_id(7, node.into())
}

/// The trace of what node `node` does for a call, as long as nobody knows the caller.
fn provisional(node: u8) -> TraceId {
    TraceId(provisional_trace_id(calling(node)))
}

fn of_agent(trace: TraceId, id: SpanId, parent: Option<SpanId>, kind: i32) -> Span {
    Span {
        span_id: id.to_vec(),
        parent_span_id: parent.map(Vec::from).unwrap_or_default(),
        kind,
        flags: BELOW,
        ..span(trace, 1, 0, "GET", 0, 10)
    }
}

/// What node `node` does for a call: it serves it, and calls others.
fn served(node: u8, others: &[u8]) -> Vec<Span> {
    let (trace, server) = (provisional(node), [0, 0, 0, 0, 0, 0, 1, node]);
    let mut spans = vec![of_agent(trace, server, Some(calling(node)), SERVER)];
    spans.extend(others.iter().map(|other| of_agent(trace, calling(*other), Some(server), CLIENT)));
    spans
}

/// A client that no server asked.
fn called(others: &[u8]) -> Vec<Span> {
    others.iter().map(|other| of_agent(ROOT, calling(*other), None, CLIENT)).collect()
}

/// What memory makes of spans whose callers, or what they called, did not come in time.
fn stored(scope: &str, spans: Vec<Span>) -> Vec<Arc<Trace>> {
    let live = LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: usize::MAX });
    let request = ExportTraceServiceRequest { resource_spans: vec![service("shop", &[], scope, spans)] };
    live.insert("a", group_message(&request), 1, 1);
    let cut = live.cut(|_| true);
    cut.tenants().iter().flat_map(|tenant| tenant.traces.iter().cloned()).collect()
}

fn commit(blocks: &Blocks, number: u64, mut traces: Vec<Arc<Trace>>) -> BlockSummary {
    traces.sort_by_key(|trace| trace.id);
    add(blocks, EPOCH + number * 2_000, &traces)
}

fn merged(blocks: &Blocks, inputs: &[BlockSummary]) -> (Merged, Block) {
    let job = Job { tenant: &inputs[0].tenant, level: 1, inputs: inputs.iter().collect() };
    let merged = merge(blocks.store(), &job, BlockId::random(NOW), &GO_ON).unwrap();
    let block = Block::open(Arc::clone(blocks.store()), &merged.block.summary).unwrap();
    (merged, block)
}

/// Merges blocks that have these traces: how many were united, and parent and flags of each span, by trace.
fn compacted(parts: Vec<Vec<Arc<Trace>>>) -> (u64, BTreeMap<TraceId, BTreeSet<Seen>>) {
    let blocks = registry(&MemoryStore::new());
    let inputs: Vec<_> = (1..).zip(parts).map(|(number, traces)| commit(&blocks, number, traces)).collect();
    let (merged, block) = merged(&blocks, &inputs);
    block.verify().unwrap();
    let spans: u64 = inputs.iter().map(|input| input.spans).sum();
    assert_eq!(merged.block.summary.spans + merged.deduped, spans, "none is lost");
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for trace in block.traces() {
        let trace = trace.unwrap();
        assert!(merged.block.ids.contains(&trace.id));
        for span in trace.spans.iter().map(TraceSpan::decode) {
            assert_eq!(span.trace_id, trace.id.0);
            let parent = (!span.parent_span_id.is_empty()).then(|| span.parent_span_id.try_into().unwrap());
            let is_new =
                found.entry(trace.id).or_default().insert((span.span_id.try_into().unwrap(), parent, span.flags));
            assert!(is_new, "a span is there twice");
        }
    }
    (merged.united, found)
}

/// These spans in one trace.
fn all_of(spans: &[Span]) -> BTreeSet<Seen> {
    let parent =
        |span: &Span| (!span.parent_span_id.is_empty()).then(|| span.parent_span_id.clone().try_into().unwrap());
    spans.iter().map(|span| (span.span_id.clone().try_into().unwrap(), parent(span), span.flags)).collect()
}

#[rstest]
#[case::caller_first([0, 1, 2])]
#[case::caller_last([2, 1, 0])]
#[case::in_between([1, 0, 2])]
fn a_chain_is_one_trace(#[case] order: [usize; 3]) {
    let parts = [called(&[1]), served(1, &[2]), served(2, &[])];
    let (united, found) = compacted(order.map(|part| stored(AGENT_SCOPE, parts[part].clone())).into());
    assert_eq!((united, found), (2, BTreeMap::from([(ROOT, all_of(&parts.concat()))])));
}

#[test]
fn what_is_in_several_blocks_moves_whole() {
    let (first, second) = (served(1, &[2]), served(1, &[3, 4])[1..].to_vec());
    let parts = vec![first.clone(), called(&[1]), second.clone()];
    let (united, found) = compacted(parts.into_iter().map(|part| stored(AGENT_SCOPE, part)).collect());
    assert_eq!((united, found), (1, BTreeMap::from([(ROOT, all_of(&[first, called(&[1]), second].concat()))])));
}

#[rstest]
#[case::nobody_calls(AGENT_SCOPE, called(&[9]))]
#[case::somebody_else_has_the_id("http", called(&[1]))]
#[case::not_a_client(AGENT_SCOPE, vec![of_agent(ROOT, calling(1), None, SERVER)])]
fn others_stay(#[case] scope: &str, #[case] spans: Vec<Span>) {
    let (united, found) = compacted(vec![stored(AGENT_SCOPE, served(1, &[])), stored(scope, spans)]);
    assert_eq!((united, found.len()), (0, 2));
    let top = found[&provisional(1)].first().unwrap();
    assert_eq!((top.1, top.2), (None, 1), "a root still");
}

#[test]
fn what_is_below_itself_stays() {
    // 1 calls 2, 2 calls 1: as nobody sends it who means well.
    let parts = [stored(AGENT_SCOPE, served(1, &[2])), stored(AGENT_SCOPE, served(2, &[1]))];
    let (united, found) = compacted(parts.into());
    assert_eq!((united, found.len()), (0, 2));
}

#[test]
fn only_spans_of_agents_get_a_parent() {
    let mut foreign = of_agent(provisional(1), [8; 8], None, SERVER);
    foreign.flags = 0;
    let mut sent = stored("http", vec![foreign]);
    sent.extend(stored(AGENT_SCOPE, called(&[1])));
    let (united, found) = compacted(vec![sent, stored(AGENT_SCOPE, served(1, &[]))]);
    assert_eq!(united, 1);
    assert!(found[&ROOT].contains(&([8; 8], None, 0)));
    assert!(found[&ROOT].contains(&([0, 0, 0, 0, 0, 0, 1, 1], Some(calling(1)), BELOW)));
}

#[test]
fn there_are_not_endlessly_many() {
    let ids: Vec<_> = (1..=3).map(provisional).collect();
    let callers = (1..=3).map(|node| (calling(node), ROOT)).collect();
    let sizes = ids.iter().map(|id| (*id, MAX_SPANS / 2)).collect();
    assert_eq!(homes(&callers, &sizes).len(), 2);
}

/// Calls from nodes to nodes: each node but 0 is called by one with a lower number.
fn forest() -> impl Strategy<Value = Vec<u8>> {
    (1_u8..7).prop_flat_map(|nodes| (1..=nodes).map(|node| (0..node).boxed()).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn however_they_were_stored_they_are_one_trace(
        callers in forest(),
        places in prop::collection::vec(0_usize..4, 32),
        twice in 0_usize..32,
    ) {
        let others = |node: u8| (1..).zip(&callers).filter(|(_, by)| **by == node).map(|(other, _)| other).collect::<Vec<u8>>();
        let mut spans = called(&others(0));
        for node in 1..=callers.len() as u8 {
            spans.extend(served(node, &others(node)));
        }
        // One is sent again.
        let sent = spans.iter().chain(spans.get(twice)).cloned();
        let mut parts = vec![Vec::new(); 4];
        for (place, span) in places.into_iter().zip(sent) {
            parts[place].extend(stored(AGENT_SCOPE, vec![span]));
        }
        // A block has a trace once.
        let parts = parts.into_iter().filter(|part| !part.is_empty()).map(joined).collect();
        let (united, found) = compacted(parts);
        prop_assert_eq!(united, callers.len() as u64);
        prop_assert_eq!(found, BTreeMap::from([(ROOT, all_of(&spans))]));
    }
}

/// The parts of each trace, together.
fn joined(parts: Vec<Arc<Trace>>) -> Vec<Arc<Trace>> {
    let mut traces: BTreeMap<TraceId, Trace> = BTreeMap::new();
    for part in parts {
        traces.entry(part.id).or_insert_with(|| Trace::empty(part.id)).extend((*part).clone());
    }
    traces.into_values().map(Arc::new).collect()
}
