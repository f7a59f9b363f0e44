//! Merging and committing, and what goes by age and by room.

mod failures;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use coati_common::wellknown::AGENT_SCOPE;
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::block::{Block, BlockSummary, NewBlock, write_block};
use crate::blocks::{Added, Blocks, BlocksConfig, Change, Sweep, WriterId};
use crate::catalog::MemoryCatalog;
use crate::config::{ByteSize, CompactionConfig, RetentionConfig};
use crate::live::{Trace, TraceId, TraceSpan};
use crate::query::distinct_spans;
use crate::query::fixture::{EPOCH, attributes, int, service, span, text, trace};
use crate::store::memory::Fault;
use crate::store::{MemoryStore, Store};
use crate::telemetry::{BlocksMetrics, CompactionMetrics, LevelLabels};

const MINUTE: u64 = 60_000_000_000;
const HOUR: u64 = 60 * MINUTE;
/// Ten minutes after the windows that the tests use.
pub(super) const NOW: u64 = EPOCH + 15 * MINUTE;

pub(super) static GO_ON: AtomicBool = AtomicBool::new(false);

fn id(number: u8) -> TraceId {
    TraceId([number; 16])
}

/// The same span whenever it is asked for, but for the order of its attributes.
fn sent(trace: u8, number: u8, reversed: bool) -> ResourceSpans {
    let mut span = span(id(trace), number, number - 1, "work", u64::from(number), 10);
    span.attributes = attributes(&[("number", int(number.into())), ("text", text("x")), ("rare", int(1))]);
    if reversed {
        span.attributes.reverse();
    }
    service("shop", &[], "http", vec![span])
}

fn trace_of(number: u8, spans: &[u8]) -> Arc<Trace> {
    trace(spans.iter().map(|span| sent(number, *span, false)).collect())
}

pub(super) fn registry(store: &MemoryStore) -> Blocks {
    let config = BlocksConfig { clock: || NOW, sleep: |_| {}, ..BlocksConfig::default() };
    let store: Arc<dyn Store> = Arc::new(store.clone());
    let catalog = Arc::new(MemoryCatalog::default());
    Blocks::open(store, WriterId::random(), catalog, config, BlocksMetrics::default()).unwrap()
}

/// Writes and commits a block of level 0 with these traces, sorted by id.
pub(super) fn add(blocks: &Blocks, received_ns: u64, traces: &[Arc<Trace>]) -> BlockSummary {
    let new = NewBlock {
        id: BlockId::random(NOW),
        tenant: "a".into(),
        level: 0,
        received_first_ns: received_ns - 1_000,
        received_last_ns: received_ns,
    };
    let (summary, filter) = write_block(blocks.store().as_ref(), new, traces).unwrap();
    let ids = traces.iter().map(|trace| trace.id).collect();
    let added = Added { summary: summary.clone(), filter, ids };
    blocks.commit(Change { add: vec![added], ..Change::default() }).unwrap();
    summary
}

fn compactor() -> Compactor {
    Compactor::new(&CompactionConfig::default(), &RetentionConfig::default(), CompactionMetrics::default(), || NOW)
}

fn run_once(compactor: &mut Compactor, blocks: &Blocks) -> Result<Outcome, CompactError> {
    compactor.run_once(blocks, u64::MAX, &GO_ON)
}

/// How often each span is in the blocks of the list.
fn spans(blocks: &Blocks) -> BTreeMap<(TraceId, u8), usize> {
    let mut spans = BTreeMap::new();
    for entry in blocks.snapshot().blocks() {
        let block = Block::open(Arc::clone(blocks.store()), &entry.summary).unwrap();
        for trace in block.traces() {
            let trace = trace.unwrap();
            for span in trace.spans.iter().map(TraceSpan::decode) {
                *spans.entry((trace.id, span.span_id[7])).or_default() += 1;
            }
        }
    }
    spans
}

fn files(store: &MemoryStore) -> usize {
    store.list("blocks/").unwrap().len()
}

/// Three blocks of one window. Of trace 2, span 2 is in the first and in the last.
fn three(store: &MemoryStore) -> (Blocks, [BlockSummary; 3]) {
    let blocks = registry(store);
    let first = add(&blocks, EPOCH + 1_000, &[trace_of(1, &[1, 2]), trace_of(2, &[1, 2])]);
    let second = add(&blocks, EPOCH + 2_000, &[trace_of(3, &[1])]);
    let third = add(&blocks, EPOCH + 3_000, &[trace(vec![sent(2, 2, true), sent(2, 3, false)]), trace_of(9, &[1])]);
    (blocks, [first, second, third])
}

/// What [`three`] holds, each once.
fn all_spans() -> BTreeMap<(TraceId, u8), usize> {
    let spans = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1), (9, 1)];
    spans.map(|(trace, span)| ((id(trace), span), 1)).into()
}

#[test]
fn blocks_become_one_with_every_span_once() {
    let store = MemoryStore::new();
    let (blocks, inputs) = three(&store);
    let mut compactor = compactor();
    let outcome = run_once(&mut compactor, &blocks).unwrap();
    let list = blocks.snapshot();
    let [entry] = list.of("a").collect::<Vec<_>>()[..] else { panic!("{list:?}") };
    let BlockSummary { level, received_first_ns, received_last_ns, spans: rows, traces, .. } = *entry.summary;
    assert_eq!(outcome, Outcome::Compacted(entry.id()));
    assert_eq!((level, rows, traces), (1, 7, 4));
    assert_eq!((received_first_ns, received_last_ns), (EPOCH, EPOCH + 3_000));
    assert_eq!(spans(&blocks), all_spans());
    assert!([1, 2, 3, 9].into_iter().all(|number| entry.may_contain(&id(number))));

    let metrics = &compactor.metrics();
    let level = LevelLabels { level: 1 };
    assert_eq!(metrics.blocks.get_or_create(&level).get(), 3);
    assert_eq!(metrics.objects_written.get_or_create(&level).get(), 4);
    assert_eq!(metrics.objects_combined.get_or_create(&level).get(), 1);
    assert_eq!(metrics.spans_deduped.get(), 1);
    assert_eq!(metrics.errors.get(), 0);

    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Idle);
    drop((list, inputs));
    blocks.sweep(NOW + MINUTE, Sweep::Shared).unwrap();
    assert_eq!(files(&store), 2);
}

#[test]
fn fragments_come_in_the_order_in_which_they_were_received() {
    let blocks = registry(&MemoryStore::new());
    // Committed in another order.
    let late = add(&blocks, EPOCH + 3_000, &[trace_of(1, &[1])]);
    let early = add(&blocks, EPOCH + 2_000, &[trace_of(1, &[7])]);
    let job = Job { tenant: &early.tenant, level: 1, inputs: vec![&late, &early] };
    let merged = merge(blocks.store(), &job, BlockId::random(NOW), &GO_ON).unwrap();
    let block = Block::open(Arc::clone(blocks.store()), &merged.block.summary).unwrap();
    let trace = block.trace(&id(1)).unwrap().unwrap();
    let order: Vec<u8> = trace.spans.iter().map(TraceSpan::decode).map(|span| span.span_id[7]).collect();
    assert_eq!((order, merged.combined, merged.deduped), (vec![7, 1], 1, 0));
}

/// What tells spans apart, but for the order of attributes.
fn contents(traces: &[Arc<Trace>]) -> BTreeMap<TraceId, Vec<Span>> {
    let mut contents: BTreeMap<TraceId, Vec<Span>> = BTreeMap::new();
    for trace in traces {
        for (_, span) in distinct_spans(trace) {
            let mut span = span.decode();
            span.attributes.sort_by(|a, b| a.key.cmp(&b.key));
            contents.entry(trace.id).or_default().push(span);
        }
    }
    for spans in contents.values_mut() {
        spans.sort_by(|a, b| (&a.span_id, a.kind, &a.name).cmp(&(&b.span_id, b.kind, &b.name)));
    }
    contents
}

/// One span of several traces, ids and looks, so that some come again and some only seem to.
fn any_sent() -> impl Strategy<Value = ResourceSpans> {
    (1_u8..6, 1_u8..4, 0..2, prop::sample::select(vec!["a", "b"]), any::<bool>()).prop_map(
        |(trace, number, kind, name, reversed)| {
            let mut sent = sent(trace, number, reversed);
            for span in &mut sent.scope_spans[0].spans {
                span.kind = kind;
                span.name = name.to_owned();
            }
            sent
        },
    )
}

/// The traces of a list of spans, by id.
fn traces_of(sent: &[ResourceSpans]) -> Vec<Arc<Trace>> {
    let mut by_id: BTreeMap<Vec<u8>, Vec<ResourceSpans>> = BTreeMap::new();
    for sent in sent {
        by_id.entry(sent.scope_spans[0].spans[0].trace_id.clone()).or_default().push(sent.clone());
    }
    by_id.into_values().map(trace).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn nothing_that_differs_is_lost(lists in prop::collection::vec(prop::collection::vec(any_sent(), 1..12), 2..6)) {
        let blocks = registry(&MemoryStore::new());
        let summaries: Vec<_> =
            (1..).zip(&lists).map(|(n, list)| add(&blocks, EPOCH + n * 2_000, &traces_of(list))).collect();
        let job = Job { tenant: &summaries[0].tenant, level: 1, inputs: summaries.iter().collect() };
        let merged = merge(blocks.store(), &job, BlockId::random(NOW), &GO_ON).unwrap();

        let block = Block::open(Arc::clone(blocks.store()), &merged.block.summary).unwrap();
        let found: Vec<_> = block.traces().map(|trace| Arc::new(trace.unwrap())).collect();
        let all = traces_of(&lists.concat());
        prop_assert_eq!(contents(&found), contents(&all));
        prop_assert_eq!(&merged.block.ids, &all.iter().map(|trace| trace.id).collect::<Vec<_>>());
        let before: u64 = summaries.iter().map(|summary| summary.spans).sum();
        prop_assert_eq!(merged.deduped, before - merged.block.summary.spans);
    }
}

/// A version of a span of the agent that ends at this millisecond.
fn version(end_ms: u64, is_partial: bool) -> ResourceSpans {
    let mut span = span(id(1), 1, 0, "GET /events", 0, end_ms);
    span.attributes = attributes(&[(COATI_SPAN_PARTIAL, Any::BoolValue(is_partial)), ("number", int(1))]);
    service("shop", &[], AGENT_SCOPE, vec![span])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However versions are spread over blocks and however these are merged, at any time all blocks together show the
    /// last version, and in the end it alone is there.
    #[test]
    fn of_versions_of_a_span_the_last_is_left(
        order in Just((1..=6_u64).collect::<Vec<_>>()).prop_shuffle(),
        has_end: bool,
        cuts in prop::collection::vec(any::<bool>(), 6),
    ) {
        let blocks = registry(&MemoryStore::new());
        let mut waiting = Vec::new();
        let mut received_ns = EPOCH;
        for (place, cut) in order.iter().zip(cuts.into_iter().chain([true])) {
            waiting.push(version(10 * place, !(has_end && *place == 6)));
            if cut || place == order.last().unwrap() {
                received_ns += 2_000;
                add(&blocks, received_ns, &[trace(std::mem::take(&mut waiting))]);
            }
        }
        let mut compactor = compactor();
        loop {
            let found = blocks.find(&blocks.snapshot(), "a", &id(1)).unwrap();
            let mut whole = Trace::empty(id(1));
            found.traces.into_iter().for_each(|fragment| whole.extend(fragment));
            let shown = distinct_spans(&whole);
            prop_assert_eq!(shown.len(), 1);
            prop_assert_eq!(shown[0].1.end_time_unix_nano, EPOCH + 60_000_000);
            prop_assert_eq!(shown[0].1.is_partial(), !has_end);
            if !matches!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Compacted(_)) {
                break;
            }
        }
        prop_assert_eq!(spans(&blocks), [((id(1), 1), 1)].into());
    }
}

#[test]
fn old_blocks_go_by_one_commit() {
    let store = MemoryStore::new();
    let blocks = registry(&store);
    add(&blocks, NOW - 3 * HOUR, &[trace_of(1, &[1])]);
    add(&blocks, NOW - 2 * HOUR, &[trace_of(2, &[1])]);
    let young = add(&blocks, NOW, &[trace_of(3, &[1])]);
    let retention = RetentionConfig { age: Duration::from_hours(1), ..RetentionConfig::default() };
    let compaction = CompactionConfig { enabled: false, ..CompactionConfig::default() };
    let mut compactor = Compactor::new(&compaction, &retention, CompactionMetrics::default(), || NOW);
    let version = blocks.snapshot().version();
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Deleted(2));
    assert_eq!(blocks.snapshot().version(), version + 1);
    assert!(blocks.snapshot().blocks().map(|entry| entry.id()).eq([young.id]));
    assert_eq!(compactor.metrics().retention_marked.get(), 2);
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Idle);
    // All that is left is too much.
    assert_eq!(compactor.run_once(&blocks, young.total_bytes() - 1, &GO_ON).unwrap(), Outcome::Deleted(1));

    add(&blocks, NOW - 2 * HOUR, &[trace_of(2, &[1])]);
    store.set_faults(|_, path| Some(Fault::unavailable(path)));
    assert!(matches!(run_once(&mut compactor, &blocks), Err(CompactError::Commit(_))));
    assert_eq!(compactor.metrics().retention_errors.get(), 1);
}

#[test]
fn blocks_are_small_where_there_is_little_room() {
    let blocks = registry(&MemoryStore::new());
    let [first, ..] = [1, 2, 3, 4].map(|number| add(&blocks, EPOCH, &[trace_of(number, &[1, 2])]));
    let mut compactor = compactor();
    // A 32nd is less than two blocks, then as much as two.
    assert_eq!(compactor.run_once(&blocks, 32 * first.bytes, &GO_ON).unwrap(), Outcome::Idle);
    let outcome = compactor.run_once(&blocks, 65 * first.bytes, &GO_ON).unwrap();
    assert!(matches!(outcome, Outcome::Compacted(_)));
    assert_eq!(blocks.snapshot().len(), 3);
    // Told to make only small blocks, it has nothing to do either.
    let config = CompactionConfig { max_block_bytes: ByteSize(1_000), ..CompactionConfig::default() };
    let retention = RetentionConfig::default();
    let mut compactor = Compactor::new(&config, &retention, CompactionMetrics::default(), || NOW);
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Idle);
}

#[test]
fn it_works_on_a_thread_of_its_own_until_it_is_stopped() {
    let (blocks, _) = three(&MemoryStore::new());
    let blocks = Arc::new(blocks);
    let running = Running::start(compactor(), Arc::clone(&blocks), || u64::MAX).unwrap();
    while blocks.snapshot().len() > 1 {
        std::thread::yield_now();
    }
    running.stop();
    assert_eq!(spans(&blocks), all_spans());
}
