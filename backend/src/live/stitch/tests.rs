//! Guarantees: in whatever order and in whatever pieces the spans of several nodes come, they are one trace; and whatever
//! leaves memory or crashes in between, every span is there once.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use coati_common::stitch::{PROVISIONAL_MEMBER, client_span_id};
use coati_common::wellknown::AGENT_SCOPE;
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus_client::metrics::counter::Counter;
use proptest::prelude::*;
use prost::Message as _;
use rstest::rstest;

use super::super::{CALLERS_KNOWN_FOR, Limits, Stats, group_message};
use super::*;
use crate::query::fixture::attributes;
use crate::query::{LiveSpan, SpanView as _, distinct_spans};
use crate::telemetry::LiveMetrics;

const TENANT: &str = "t";
const SERVER_KIND: i32 = 2;
const CLIENT_KIND: i32 = 3;

/// A request that passes through so many nodes; on each a server asks the next one. What the agents send of it, from the
/// first on: server's end, client's end, and so on. The first caller is seen by the first agent.
fn spans_of(chain: u32, nodes: u32) -> Vec<Span> {
    let root = TraceId(u128::from(chain + 1).to_be_bytes());
    let mut spans = vec![span(root, calling(chain, 0), None, CLIENT_KIND)];
    for node in 0..nodes {
        let trace = if node == 0 { root } else { below(calling(chain, node)) };
        let server = [node as u8 + 1, 0, 0, 0, 0, 0, 0, chain as u8 + 1];
        spans.push(span(trace, server, Some(calling(chain, node)), SERVER_KIND));
        spans.push(span(trace, calling(chain, node + 1), Some(server), CLIENT_KIND));
    }
    spans
}

/// Id of the client span that calls a node.
fn calling(chain: u32, node: u32) -> SpanId {
    client_span_id(chain, node + 1)
}

fn span(trace: TraceId, id: SpanId, parent: Option<SpanId>, kind: i32) -> Span {
    Span {
        trace_id: trace.0.to_vec(),
        span_id: id.to_vec(),
        parent_span_id: parent.map(Vec::from).unwrap_or_default(),
        trace_state: caller_of(trace.0).map(|_| PROVISIONAL_MEMBER.to_owned()).unwrap_or_default(),
        kind,
        name: "GET".to_owned(),
        start_time_unix_nano: 1,
        end_time_unix_nano: 2,
        flags: 0x301,
        ..Span::default()
    }
}

/// The spans as they are to be in the end.
fn united(spans: &[Span], trace: TraceId) -> BTreeSet<Vec<u8>> {
    let united = |span: &Span| Span { trace_id: trace.0.to_vec(), trace_state: String::new(), ..span.clone() };
    spans.iter().map(|span| united(span).encode_to_vec()).collect()
}

fn request(scope: &str, spans: Vec<Span>) -> Vec<Trace> {
    let scope = InstrumentationScope { name: scope.to_owned(), ..InstrumentationScope::default() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    let resource = Some(Resource::default());
    let resource_spans = vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }];
    group_message(&ExportTraceServiceRequest { resource_spans })
}

fn set() -> LiveSet {
    LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: usize::MAX })
}

fn insert(set: &LiveSet, spans: Vec<Span>, number: u64) {
    set.insert(TENANT, request(AGENT_SCOPE, spans), number, number);
}

fn bytes_of(trace: &Trace) -> BTreeSet<Vec<u8>> {
    trace.spans.iter().map(|span| span.bytes.to_vec()).collect()
}

#[rstest]
#[case::caller_first([0, 1])]
#[case::called_first([1, 0])]
fn both_ends_are_one_trace(#[case] order: [usize; 2]) {
    let spans = spans_of(0, 2);
    let parts = [spans[..3].to_vec(), spans[3..].to_vec()];
    let set = set();
    for (part, number) in order.into_iter().zip(1..) {
        insert(&set, parts[part].clone(), number);
        assert_eq!(set.first_sequence(), Some(1));
    }
    let [trace] = &set.snapshot(TENANT)[..] else { panic!("not one trace") };
    assert_eq!(bytes_of(trace), united(&spans, trace.id));
    assert_eq!(trace.id, TraceId(1_u128.to_be_bytes()));
    assert_eq!((trace.start_ns, trace.end_ns), (1, 2));
    // By either id.
    let provisional = below(calling(0, 1));
    assert_eq!(set.trace(TENANT, &provisional), Some(Arc::clone(trace)));
    assert_eq!(set.home(TENANT, &provisional), trace.id);
    let Stats { traces, bytes, .. } = set.stats();
    assert_eq!((traces, bytes), (1, trace.bytes));
    set.cut(|_| true).commit();
    assert_eq!((set.stats().traces, set.stats().bytes), (0, 0));
}

/// What two agents sent before and after the end, in any order: one trace, with the last version of each span.
#[test]
fn versions_of_both_ends_are_one_trace() {
    let spans = spans_of(0, 2);
    let so_far = |span: &Span| Span {
        end_time_unix_nano: 1,
        attributes: attributes(&[(COATI_SPAN_PARTIAL, Value::BoolValue(true))]),
        ..span.clone()
    };
    let (first, second) = spans.split_at(3);
    let [first_so_far, second_so_far] = [first, second].map(|spans| spans.iter().map(so_far).collect::<Vec<_>>());
    let requests = [&first_so_far[..], &second_so_far, first, second];
    for order in [[0, 1, 2, 3], [1, 0, 3, 2], [1, 3, 0, 2], [2, 0, 3, 1], [3, 2, 1, 0]] {
        let set = set();
        for (request, number) in order.into_iter().zip(1..) {
            insert(&set, requests[request].to_vec(), number);
        }
        let [trace] = &set.snapshot(TENANT)[..] else { panic!("not one trace: {order:?}") };
        let shown: BTreeSet<_> = distinct_spans(trace).iter().map(|(_, span)| span.as_bytes().to_vec()).collect();
        assert_eq!(shown, united(&spans, trace.id), "{order:?}");
        assert_eq!((trace.start_ns, trace.end_ns), (1, 2));
    }
}

/// The end of what was stored as called from outside while it ran, long after that.
#[test]
fn a_version_from_outside_is_replaced_in_its_own_trace() {
    let set = set();
    let spans = spans_of(0, 2);
    let mut so_far = spans[3].clone();
    so_far.attributes = attributes(&[(COATI_SPAN_PARTIAL, Value::BoolValue(true))]);
    insert(&set, vec![so_far], 1);
    let cut = set.cut(|_| true);
    let mut whole = Trace::clone(&cut.tenants()[0].traces[0]);
    cut.commit();
    insert(&set, vec![spans[3].clone()], 4 * CALLERS_KNOWN_FOR.as_nanos() as u64);
    let cut = set.cut(|_| true);
    whole.extend(Trace::clone(&cut.tenants()[0].traces[0]));
    let shown = distinct_spans(&whole);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(!shown[0].1.is_partial() && shown[0].1.is_root());
    cut.commit();
}

#[test]
fn until_its_caller_comes_a_trace_is_found_by_its_provisional_id() {
    let set = set();
    let spans = spans_of(0, 2);
    insert(&set, spans[3..].to_vec(), 1);
    let trace = set.trace(TENANT, &below(calling(0, 1))).unwrap();
    assert_eq!(bytes_of(&trace), spans[3..].iter().map(Span::encode_to_vec).collect());
    assert_eq!(trace.root.as_ref().map(|root| root.start_ns), Some(1), "as far as is known");
    let mut spans = trace.spans.iter().map(|span| span.view());
    assert!(spans.next().is_some_and(|span| span.is_top()) && !spans.any(|span| span.is_top()));
    let numbers = LiveSpan::of_trace(&trace, true).iter().map(|span| span.nested().parent).collect::<Vec<_>>();
    assert_eq!(numbers, [-1, 1]);
}

#[test]
fn without_a_caller_the_top_is_a_root_in_its_block() {
    let metrics = LiveMetrics::default();
    let set = LiveSet::with_metrics(Limits::default(), metrics.clone());
    let spans = spans_of(0, 2);
    insert(&set, spans[3..].to_vec(), 1);
    let cut = set.cut(|_| true);
    let [tenant] = cut.tenants() else { panic!() };
    let [trace] = &tenant.traces[..] else { panic!() };
    let id = below(calling(0, 1));
    let mut expected = spans[3..].to_vec();
    (expected[0].parent_span_id, expected[0].flags) = (Vec::new(), 1);
    assert_eq!(bytes_of(trace), united(&expected, id));
    assert!(trace.root.is_some());
    cut.commit();
    let counts = || [&metrics.stitch_united, &metrics.stitch_outside, &metrics.stitch_late].map(Counter::get);
    assert_eq!(counts(), [0, 1, 0]);
    // What comes of it later is the same: also its caller.
    insert(&set, spans[3..].to_vec(), 2);
    assert_eq!(bytes_of(&set.trace(TENANT, &id).unwrap()), united(&expected, id));
    insert(&set, spans[..3].to_vec(), 3);
    assert_eq!(set.snapshot(TENANT).len(), 2);
    assert_eq!(counts(), [0, 1, 1]);
}

#[test]
fn a_caller_that_left_memory_is_still_known() {
    let set = set();
    let spans = spans_of(0, 2);
    insert(&set, spans[..3].to_vec(), 1);
    set.cut(|_| true).commit();
    insert(&set, spans[3..].to_vec(), 2);
    let [trace] = &set.snapshot(TENANT)[..] else { panic!() };
    assert_eq!(bytes_of(trace), united(&spans[3..], TraceId(1_u128.to_be_bytes())));
}

#[test]
fn each_trace_is_counted_once() {
    let metrics = LiveMetrics::default();
    let set = LiveSet::with_metrics(Limits::default(), metrics.clone());
    let spans = spans_of(0, 3);
    for number in 0..2 {
        spans.iter().rev().for_each(|span| insert(&set, vec![span.clone()], number));
    }
    assert_eq!((metrics.stitch_united.get(), metrics.stitch_late.get()), (2, 0));
}

#[test]
fn tenants_do_not_call_each_other() {
    let set = set();
    let spans = spans_of(0, 2);
    set.insert("a", request(AGENT_SCOPE, spans[..3].to_vec()), 1, 1);
    set.insert("b", request(AGENT_SCOPE, spans[3..].to_vec()), 2, 2);
    assert_eq!(set.snapshot("b")[0].id, below(calling(0, 1)));
    assert_eq!(set.home("b", &below(calling(0, 1))), below(calling(0, 1)));
}

#[test]
fn spans_of_others_are_no_callers() {
    let set = set();
    let spans = spans_of(0, 2);
    set.insert(TENANT, request("other", spans[..3].to_vec()), 1, 1);
    insert(&set, spans[3..].to_vec(), 2);
    assert_eq!(set.snapshot(TENANT).len(), 2);
}

/// Nobody sends such a thing, but it must not hang.
#[test]
fn a_trace_below_itself_stays_where_it_is() {
    let set = set();
    let [one, two] = [calling(0, 1), calling(0, 2)];
    insert(&set, vec![span(below(one), one, None, CLIENT_KIND)], 1);
    insert(&set, vec![span(below(one), two, None, CLIENT_KIND)], 2);
    insert(&set, vec![span(below(two), one, None, CLIENT_KIND)], 3);
    assert_eq!(set.snapshot(TENANT).iter().map(|trace| trace.spans.len()).sum::<usize>(), 3);
    set.cut(|_| true).commit();
    assert_eq!(set.stats().bytes, 0);
}

/// A note lives shorter than a trace may if its caller comes very late: the cut looks again.
#[test]
fn what_was_forgotten_is_united_when_it_leaves() {
    const MINUTE: u64 = 60 * 1_000_000_000;
    let set = set();
    let spans = spans_of(0, 2);
    set.insert(TENANT, request(AGENT_SCOPE, spans[3..].to_vec()), MINUTE, 1);
    // Twice a generation later nothing is known of who waits.
    for minute in [3, 6] {
        insert(&set, vec![span(TraceId([minute; 16]), [minute; 8], None, CLIENT_KIND)], u64::from(minute) * MINUTE);
    }
    insert(&set, spans[..3].to_vec(), 6 * MINUTE);
    let provisional = below(calling(0, 1));
    let cut = set.cut(|life| life.first_sequence == 1);
    assert_eq!(cut.trace_count(), 1, "with its caller's");
    assert_eq!(set.trace(TENANT, &provisional).unwrap().spans.len(), spans.len());
}

/// A log, what is in blocks, and what is in memory.
struct Model {
    set: LiveSet,
    log: Vec<Vec<Span>>,
    blocks: Vec<Arc<Trace>>,
    checkpoint: u64,
    /// Whether a trace was stored whose caller was not there.
    any_outside: bool,
}

impl Model {
    fn new() -> Self {
        Self { set: set(), log: Vec::new(), blocks: Vec::new(), checkpoint: 1, any_outside: false }
    }

    fn send(&mut self, spans: Vec<Span>) {
        self.log.push(spans.clone());
        insert(&self.set, spans, self.log.len() as u64);
    }

    fn cut(&mut self, leaves: impl FnMut(&Life) -> bool, fails: bool) {
        let cut = self.set.cut(leaves);
        let traces = cut.tenants().iter().flat_map(|tenant| &tenant.traces);
        // For good: also if the cut fails.
        self.any_outside |= traces.clone().any(|trace| caller_of(trace.id.0).is_some());
        if fails {
            return;
        }
        self.blocks.extend(traces.cloned());
        self.checkpoint = self.set.first_sequence().unwrap_or(self.log.len() as u64 + 1);
        cut.commit();
    }

    fn crash(&mut self) {
        self.set = set();
        for trace in &self.blocks {
            let spans = trace.spans.iter().map(|span| span.view()).filter(|span| span.kind == CLIENT_KIND);
            spans.for_each(|span| self.set.know_caller(TENANT, span.span_id.try_into().unwrap(), trace.id, 0));
        }
        self.blocks.iter().for_each(|trace| self.set.know_stored(TENANT, trace.id, 0));
        for (spans, number) in self.log.iter().zip(1..).filter(|(_, number)| *number >= self.checkpoint) {
            insert(&self.set, spans.clone(), number);
        }
    }

    /// Traces as queries see them: id, and ids of the distinct spans.
    fn seen(&self) -> BTreeMap<TraceId, Vec<SpanId>> {
        let mut traces: BTreeMap<TraceId, Trace> = BTreeMap::new();
        for part in self.blocks.iter().cloned().chain(self.set.snapshot(TENANT)) {
            traces.entry(part.id).or_insert_with(|| Trace::empty(part.id)).extend(Trace::clone(&part));
        }
        let ids = |trace: &Trace| {
            let mut ids: Vec<_> =
                distinct_spans(trace).into_iter().map(|(_, span)| span.span_id.try_into().unwrap()).collect();
            ids.sort_unstable();
            ids
        };
        traces.values().map(|trace| (trace.id, ids(trace))).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many of the spans that are left.
    Send(usize),
    /// Those that began with a request before this part of all, out of 10.
    Cut(u64, bool),
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_usize..6).prop_map(Step::Send),
        2 => ((0_u64..11), any::<bool>()).prop_map(|(part, fails)| Step::Cut(part, fails)),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #[test]
    fn any_order_and_any_split_gives_the_same_trace(
        spans in Just(spans_of(0, 3)).prop_shuffle(),
        sizes in prop::collection::vec(1_usize..4, 7),
        crash in 0_usize..8,
    ) {
        let mut model = Model::new();
        let mut rest = &spans[..];
        for (step, size) in sizes.into_iter().enumerate() {
            let (now, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            if !now.is_empty() {
                model.send(now.to_vec());
            }
            if step == crash {
                model.crash();
            }
        }
        let snapshot = model.set.snapshot(TENANT);
        let [trace] = &snapshot[..] else { panic!("{snapshot:?}") };
        prop_assert_eq!(bytes_of(trace), united(&spans, TraceId(1_u128.to_be_bytes())));
        prop_assert_eq!(model.set.stats().bytes, trace.bytes);
    }

    #[test]
    fn every_span_is_there_once_whatever_happens(
        spans in Just((0..3).flat_map(|chain| spans_of(chain, 3)).collect::<Vec<_>>()).prop_shuffle(),
        steps in prop::collection::vec(any_step(), 1..30),
    ) {
        let mut model = Model::new();
        let mut rest = &spans[..];
        for step in steps {
            match step {
                Step::Send(count) => {
                    let (now, later) = rest.split_at(count.min(rest.len()));
                    rest = later;
                    if !now.is_empty() {
                        model.send(now.to_vec());
                    }
                }
                Step::Cut(part, fails) => {
                    let below = model.log.len() as u64 * part / 10;
                    model.cut(|life| life.first_sequence <= below, fails);
                }
                Step::Crash => model.crash(),
            }
            let mut seen: Vec<SpanId> = model.seen().into_values().flatten().collect();
            let mut sent: Vec<SpanId> =
                model.log.iter().flatten().map(|span| span.span_id.as_slice().try_into().unwrap()).collect();
            seen.sort_unstable();
            sent.sort_unstable();
            prop_assert_eq!(seen, sent);
        }
        if rest.is_empty() && !model.any_outside {
            prop_assert_eq!(model.seen().len(), 3, "a trace for each request");
        }
        model.cut(|_| true, false);
        prop_assert_eq!((model.set.stats().traces, model.set.stats().bytes), (0, 0));
    }
}

#[test]
fn readers_never_see_a_span_twice_or_not_at_all() {
    const CHAINS: u32 = 200;
    let set = set();
    let chains: Vec<_> = (0..CHAINS).map(|chain| spans_of(chain, 4)).collect();
    let done = std::sync::atomic::AtomicUsize::new(0);
    let chunk = |node: usize| 1 + 2 * node..if node == 3 { 9 } else { 3 + 2 * node };
    thread::scope(|scope| {
        for node in 0..4 {
            let (set, chains, done) = (&set, &chains, &done);
            scope.spawn(move || {
                for (spans, number) in chains.iter().zip(1..) {
                    let from = if node == 0 { 0 } else { chunk(node).start };
                    insert(set, spans[from..chunk(node).end].to_vec(), number);
                    done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            });
        }
        let mut before = 0;
        while done.load(std::sync::atomic::Ordering::SeqCst) < 4 * CHAINS as usize {
            let snapshot = set.snapshot(TENANT);
            let ids: Vec<_> =
                snapshot.iter().flat_map(|trace| &trace.spans).map(|span| span.view().span_id.to_vec()).collect();
            let distinct: BTreeSet<_> = ids.iter().collect();
            assert_eq!(distinct.len(), ids.len(), "twice");
            assert!(ids.len() >= before, "{} of {before}", ids.len());
            before = ids.len();
        }
    });
    let snapshot = set.snapshot(TENANT);
    assert_eq!(snapshot.len(), CHAINS as usize);
    assert!(snapshot.iter().all(|trace| trace.spans.len() == 9 && caller_of(trace.id.0).is_none()));
    let Stats { traces, bytes, .. } = set.stats();
    assert_eq!((traces, bytes), (CHAINS as usize, snapshot.iter().map(|trace| trace.bytes).sum()));
}
