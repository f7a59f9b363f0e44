//! The same spans give the same answers, wherever they lie.

mod blocks;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use coati_common::wellknown::AGENT_SCOPE;
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use rstest::rstest;

use super::*;
use crate::block::{BlockId, NewBlock, write_block};
use crate::blocks::{Added, Blocks, BlocksConfig, Change, WriterId};
use crate::catalog::MemoryCatalog;
use crate::live::{Limits, group_message};
use crate::query::fixture::{self, EPOCH, JOB, SHOP};
use crate::query::{
    Inspected, Intervals, MetricsPlan, MetricsRequest, Plan, SearchError, SearchRequest, SearchResult, TagScan, Window,
    query_metrics, random, scan_names, scan_values, search, search_in_parts,
};
use crate::store::memory::Fault;
use crate::store::{MemoryStore, Store as _};
use crate::telemetry::BlocksMetrics;
use crate::traceql;

const TENANT: &str = "t";
const MS: u64 = 1_000_000;

/// Places in which spans can lie: blocks, and memory.
const BLOCKS: usize = 3;

/// What one service sent of one trace, and where that lies.
type Part = (ResourceSpans, usize);

struct World {
    live: LiveSet,
    blocks: Arc<Blocks>,
    store: MemoryStore,
}

fn request(part: &ResourceSpans) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans: vec![part.clone()] }
}

/// The traces of some requests, by id.
fn traces_of<'p>(parts: impl Iterator<Item = &'p ResourceSpans>) -> Vec<Arc<Trace>> {
    let mut traces: Vec<Trace> = Vec::new();
    for spans in parts.flat_map(|part| group_message(&request(part))) {
        match traces.iter_mut().find(|trace| trace.id == spans.id) {
            Some(trace) => trace.extend(spans),
            None => traces.push(spans),
        }
    }
    traces.sort_by_key(|trace| trace.id);
    traces.into_iter().map(Arc::new).collect()
}

impl World {
    fn of(parts: &[Part]) -> Self {
        let store = MemoryStore::new();
        let catalog = Arc::new(MemoryCatalog::default());
        let config = BlocksConfig { clock: || EPOCH, ..BlocksConfig::default() };
        let blocks =
            Blocks::open(Arc::new(store.clone()), WriterId::random(), catalog, config, BlocksMetrics::default())
                .unwrap();
        let live = LiveSet::new(Limits::default());
        for place in 0..BLOCKS {
            let traces = traces_of(parts.iter().filter(|(_, at)| *at == place).map(|(part, _)| part));
            if traces.is_empty() {
                continue;
            }
            let new = NewBlock {
                id: BlockId::new(EPOCH, place as u128 + 1),
                tenant: TENANT.into(),
                level: 0,
                received_first_ns: EPOCH + place as u64,
                received_last_ns: EPOCH + place as u64,
            };
            let (summary, filter) = write_block(&store, new, &traces).unwrap();
            let ids = traces.iter().map(|trace| trace.id).collect();
            let change = Change { add: vec![Added { summary, filter, ids }], ..Change::default() };
            blocks.commit(change).unwrap();
        }
        for (part, _) in parts.iter().filter(|(_, at)| *at == BLOCKS) {
            live.insert(TENANT, group_message(&request(part)), EPOCH, 0);
        }
        Self { live, blocks: Arc::new(blocks), store }
    }

    fn view(&self) -> View {
        View::new(&self.live, &self.blocks, TENANT)
    }
}

const SEARCHES: [&str; 34] = [
    "{}",
    "{ false }",
    "{ resource.service.name = \"cart\" }",
    "{ resource.service.name != \"cart\" && name = \"GET\" }",
    "{ span.a = 1 }",
    "{ span.a != nil }",
    "{ span.a = nil }",
    "{ .a = 2 }",
    "{ .b = \"x\" || .c.d > 0.7 }",
    "{ .nope = 1 }",
    "{ span.nope = nil && status = error }",
    "{ status = error }",
    "{ status = error && duration > 10ms }",
    "{ kind = server } && { status = ok }",
    "{ kind = server } || { status = ok }",
    "{ name =~ \"G.*\" }",
    "{ name !~ \"G.*\" } | count() > 2",
    "{ event:name = \"exception\" }",
    "{ event.a = 1 }",
    "{ event:timeSinceStart > 5ms }",
    "{ link.b != nil }",
    "{ link:spanID = \"0101010101010101\" }",
    "{ instrumentation:name = \"sql\" }",
    "{ rootServiceName = \"cart\" && name = \"SELECT\" }",
    "{ rootName = \"GET\" }",
    "{ traceDuration > 40ms }",
    "{ span:childCount > 1 }",
    "{ span:parentID = \"0000000000000002\" }",
    "{ name = \"GET\" } >> { name = \"SELECT\" }",
    "{ name = \"GET\" } > {} | select(name, span:parentID, nestedSetLeft, .a)",
    "{ status = error } !>> { kind = client }",
    "{ name = \"GET\" } &~ { name = \"render\" }",
    "{} | by(resource.service.name) | avg(duration) > 10ms",
    "{ nestedSetParent < 0 } | select(span.b, resource.a, event:name, link:traceID, statusMessage, kind)",
];

const METRICS: [&str; 12] = [
    "{} | rate()",
    "{} | count_over_time() by(resource.service.name, name)",
    "{ status = error } | count_over_time() by(span.a)",
    "{ span.a > 0 } | sum_over_time(span.a)",
    "{} | avg_over_time(duration) by(kind)",
    "{} | max_over_time(event:timeSinceStart)",
    "{} | quantile_over_time(duration, .5, .9) by(rootName)",
    "{} | histogram_over_time(duration)",
    "{ name = `GET` } >> { name = `SELECT` } | rate() by(nestedSetParent)",
    "{} | compare({ status = error }, 3)",
    "({ kind = server } | rate()) / ({} | rate())",
    "{ resource.service.name = `cart` } | min_over_time(.c.d) by(statusMessage)",
];

fn search_request(query: &str, limit: usize, window: Window) -> SearchRequest {
    let query = traceql::parse(query).unwrap();
    SearchRequest {
        plan: Some(Plan::new(&query).unwrap()),
        show_spans: true,
        limit,
        window,
        spans_per_spanset: 3,
        ..SearchRequest::default()
    }
}

fn metrics_request(query: &str, intervals: Intervals) -> MetricsRequest {
    let plan = MetricsPlan::new(&traceql::parse(query).unwrap()).unwrap().unwrap();
    MetricsRequest { plan, intervals, exemplars: 10, max_series: 0, max_bytes: 1 << 24 }
}

/// What is asked.
#[derive(Clone, Debug)]
struct Questions {
    searches: Vec<String>,
    metrics: Vec<&'static str>,
    tags: Vec<(Option<&'static str>, &'static str)>,
    /// How many traces, and when.
    limit: usize,
    window: Window,
    instant: bool,
}

/// Some of the questions above, and some random searches.
fn questions() -> impl Strategy<Value = Questions> {
    let second = EPOCH / 1_000_000_000;
    let windows = select(vec![
        (100, Window::default()),
        (2, Window::default()),
        (100, Window { start: Some(second + 1), end: Some(second + 2) }),
        (3, Window { start: Some(second + 1), end: None }),
    ]);
    let filter = select(vec![
        None,
        Some("{ status = error }"),
        Some("{ kind = server } >> {}"),
        Some("{ .a != nil }"),
        Some("{ rootName != \"GET\" && traceDuration > 30ms }"),
    ]);
    let field =
        select(vec![".a", "span.b", "resource.service.name", "event.a", "name", "rootName", "trace:duration", ""]);
    let searches = (subsequence(SEARCHES.to_vec(), 6), vec(random::query(), 5));
    let metrics = subsequence(METRICS.to_vec(), 3);
    (searches, metrics, vec((filter, field), 3), windows, any::<bool>()).prop_map(
        |((known, random), metrics, tags, (limit, window), instant)| {
            let searches = known.into_iter().map(str::to_owned).chain(random).collect();
            Questions { searches, metrics, tags, limit, window, instant }
        },
    )
}

/// All answers, as texts.
fn answers(view: &View, questions: &Questions) -> Vec<(String, String)> {
    let go_on = AtomicBool::new(false);
    let mut answers = Vec::new();
    let mut add = |question: &str, answer: String| answers.push((question.to_owned(), answer));
    let Questions { searches, metrics, tags, limit, window, instant } = questions;
    for query in searches {
        let result = search(view, &search_request(query, *limit, *window), &go_on).unwrap();
        add(query, format!("{:#?}", result.traces));
    }
    let long =
        SearchRequest { limit: *limit, window: *window, min_duration_ns: Some(30 * MS), ..SearchRequest::default() };
    add("long traces", format!("{:#?}", search(view, &long, &go_on).unwrap().traces));
    let intervals = if *instant {
        Intervals::instant(EPOCH + 10 * MS, EPOCH + 1_020 * MS)
    } else {
        Intervals::range(EPOCH - 1_000 * MS, EPOCH + 4_000 * MS, 500 * MS)
    };
    for query in metrics {
        let result = query_metrics(view, &metrics_request(query, intervals), &go_on).unwrap();
        assert_eq!(result.partial, None);
        add(query, format!("{:#?}", result.series));
    }
    for (filter, field) in tags {
        let plan = filter.map(|query| Plan::new(&traceql::parse(query).unwrap()).unwrap());
        let scan = TagScan { plan, window: *window, limit: 1_000 };
        let answer = match traceql::parse_field(field) {
            Ok(field) => format!("{:?}", scan_values(view, &field, &scan, &go_on).unwrap().0),
            Err(_) => format!("{:?}", scan_names(view, &scan, &go_on).unwrap().0),
        };
        add(&format!("tags {field} of {filter:?}"), answer);
    }
    answers
}

/// A trace without the order of its spans and of their attributes.
fn canonical(trace: &Trace) -> Vec<String> {
    let spans = crate::query::distinct_spans(trace).into_iter().map(|(batch, span)| {
        let mut span = span.decode();
        span.attributes.sort_by(|a, b| a.key.cmp(&b.key));
        format!(
            "{:?} {} {:?} {} {span:?}",
            batch.resource, batch.resource_schema_url, batch.scope, batch.scope_schema_url
        )
    });
    let mut spans: Vec<_> = spans.collect();
    spans.sort_unstable();
    spans
}

/// What comes of some traces; the parts of one have any places.
fn parts() -> impl Strategy<Value = Vec<Vec<(ResourceSpans, [usize; 3])>>> {
    let places = (0..=BLOCKS, 0..=BLOCKS, 0..=BLOCKS).prop_map(|(a, b, c)| [a, b, c]);
    let trace = |number: u8| {
        let parts = random::parts(TraceId([number; 16]));
        (parts, vec(places.clone(), 3)).prop_map(|(parts, places)| parts.into_iter().zip(places).collect::<Vec<_>>())
    };
    let traces: Vec<_> = (1..8).map(|number| trace(number).boxed()).collect();
    traces.prop_map(|mut traces| {
        // No two spans start at once: which one is the first is anybody's guess then. Later traces start later.
        let mut nanos = 0;
        for (number, trace) in traces.iter_mut().enumerate() {
            let later = number as u64 * 400 * MS;
            let scopes = trace.iter_mut().flat_map(|(part, _)| &mut part.scope_spans);
            for span in scopes.flat_map(|scope| &mut scope.spans) {
                nanos += 1;
                span.start_time_unix_nano += later + nanos;
                span.end_time_unix_nano += later + 2 * nanos;
                span.events.iter_mut().for_each(|event| event.time_unix_nano += later);
            }
        }
        traces
    })
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 64, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn answers_are_the_same_wherever_spans_lie(traces in parts(), questions in questions()) {
        // The order of arrival is that of the places.
        let mut scattered: Vec<Part> =
            traces.iter().flatten().map(|(part, [_, _, place])| (part.clone(), *place)).collect();
        scattered.sort_by_key(|(_, place)| *place);
        let all_at = |place| scattered.iter().map(|(part, _)| (part.clone(), place)).collect::<Vec<_>>();
        let by_trace = scattered.iter().map(|(part, _)| {
            let id = part.scope_spans[0].spans[0].trace_id[0];
            (part.clone(), usize::from(id) % (BLOCKS + 1))
        });
        let live = World::of(&all_at(BLOCKS));
        let expected = answers(&live.view(), &questions);
        for (layout, parts) in
            [("one block", all_at(0)), ("whole traces", by_trace.collect()), ("parts", scattered.clone())]
        {
            let world = World::of(&parts);
            for ((query, expected), (_, found)) in expected.iter().zip(answers(&world.view(), &questions)) {
                prop_assert_eq!(&found, expected, "{} in {}", query, layout);
            }
            for number in 1..8 {
                let id = TraceId([number; 16]);
                let find = |world: &World| {
                    let found = View::find(&world.live, Some(&world.blocks), TENANT, &id).unwrap();
                    assert_eq!(found.skipped, 0);
                    found.trace.map(|trace| canonical(&trace))
                };
                prop_assert_eq!(find(&world), find(&live), "trace {} in {}", number, layout);
            }
        }
    }
}

/// A version of each span that was sent before its end, in another place: where, and after how much of the span, per cent.
fn partial_versions(parts: &[Part], versions: &[Option<(usize, u64)>]) -> Vec<Part> {
    let mut versions = versions.iter().cycle();
    let mut earlier = Vec::new();
    for (part, _) in parts {
        for span in &part.scope_spans[0].spans {
            let Some((place, percent)) = versions.next().copied().flatten() else { continue };
            let length = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
            let partial = Span {
                end_time_unix_nano: span.start_time_unix_nano + length * percent / 100,
                attributes: fixture::attributes(&[
                    (COATI_SPAN_PARTIAL, Any::BoolValue(true)),
                    ("a", fixture::int(1)),
                    ("b", fixture::text("x")),
                ]),
                status: None,
                events: Vec::new(),
                links: Vec::new(),
                ..span.clone()
            };
            let mut part = part.clone();
            part.scope_spans[0].spans = vec![partial];
            earlier.push((part, place));
        }
    }
    earlier
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 64, ..ProptestConfig::with_cases(4) })]

    /// What was sent of spans before their end changes no answer, wherever it lies.
    #[test]
    fn partial_versions_change_no_answer(
        traces in parts(),
        versions in vec(proptest::option::weighted(0.6, (0..=BLOCKS, 0..=100_u64)), 7),
        // What is stored under which names is told as it is stored.
        questions in questions().prop_map(|questions| Questions { tags: Vec::new(), ..questions }),
    ) {
        let mut parts: Vec<Part> = traces.iter().flatten().map(|(part, [_, _, place])| (part.clone(), *place)).collect();
        for (part, _) in &mut parts {
            part.scope_spans[0].scope.get_or_insert_default().name = AGENT_SCOPE.to_owned();
        }
        let in_memory = |parts: &[Part]| parts.iter().map(|(part, _)| (part.clone(), BLOCKS)).collect::<Vec<_>>();
        let expected = World::of(&in_memory(&parts));
        let earlier = partial_versions(&parts, &versions);
        for (layout, all) in [
            ("versions first", [&earlier[..], &parts].concat()),
            ("versions last", [&parts[..], &earlier].concat()),
            ("in memory", in_memory(&[&parts[..], &earlier].concat())),
        ] {
            let world = World::of(&all);
            let expected_answers = answers(&expected.view(), &questions);
            for ((query, expected), (_, found)) in expected_answers.iter().zip(answers(&world.view(), &questions)) {
                prop_assert_eq!(&found, expected, "{} with {}", query, layout);
            }
            for number in 1..8 {
                let id = TraceId([number; 16]);
                let find = |world: &World| {
                    let found = View::find(&world.live, Some(&world.blocks), TENANT, &id).unwrap();
                    found.trace.map(|trace| canonical(&trace))
                };
                prop_assert_eq!(find(&world), find(&expected), "trace {} with {}", number, layout);
            }
        }
    }
}
