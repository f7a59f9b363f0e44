//! Requests for benchmarks and tests, the same in every run of one seed: a shop of 16 services with two or three instances
//! each, called on 12 routes, as an SDK or an agent in each instance sends them.
//!
//! A trace is a tree of about 17.5 spans through several services: a server span, a client span for each call and for each
//! statement to a database. Ids are random, durations are log-normal, one call in a hundred fails, popular paths come more
//! often than others. An instance sends when it has [`REQUEST_SPANS`] spans, so the spans of a trace come in several
//! requests, some later than others. Spans have about 10 attributes, resources 9, named as the agent names them.

#![allow(dead_code, reason = "every benchmark uses its own part")]

mod numbers;
mod shop;
mod spans;

use std::collections::BTreeMap;
use std::sync::Arc;

use coati_backend::live::{Trace, TraceId, group_message};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

use numbers::Numbers;
use shop::Instance;

/// When the first trace begins unless said otherwise, nanoseconds since the epoch.
pub(crate) const START_NS: u64 = 1_795_237_020_000_000_000;

/// Spans of a request; the last one of an instance has fewer.
pub(crate) const REQUEST_SPANS: usize = 100;

/// Traces a second.
const TRACES_PER_SECOND: u64 = 200;

/// The requests of a number of traces, in the order in which they are sent.
#[derive(Debug)]
pub(crate) struct Corpus {
    numbers: Numbers,
    traces: u64,
    now_ns: u64,
    waiting: BTreeMap<Instance, Vec<Span>>,
    full: Vec<ExportTraceServiceRequest>,
    last: Option<TraceId>,
}

impl Corpus {
    /// Requests of `traces` traces, from [`START_NS`] on.
    pub(crate) fn new(seed: u64, traces: u64) -> Self {
        Self::starting_at(START_NS, seed, traces)
    }

    /// The same, from another time on, nanoseconds since the epoch.
    pub(crate) fn starting_at(start_ns: u64, seed: u64, traces: u64) -> Self {
        let (waiting, full) = (BTreeMap::new(), Vec::new());
        Self { numbers: Numbers::new(seed), traces, now_ns: start_ns, waiting, full, last: None }
    }

    fn add_trace(&mut self) {
        self.now_ns += self.numbers.below(2 * 1_000_000_000 / TRACES_PER_SECOND);
        let size = spans::size(&mut self.numbers);
        let spans = spans::trace(&mut self.numbers, size, self.now_ns, self.last);
        self.last = spans.first().and_then(|(_, root)| TraceId::try_from(root.trace_id.as_slice()).ok());
        for (instance, span) in spans {
            let waiting = self.waiting.entry(instance).or_default();
            waiting.push(span);
            if waiting.len() == REQUEST_SPANS {
                let spans = std::mem::take(waiting);
                self.full.push(request(instance, spans));
            }
        }
    }
}

impl Iterator for Corpus {
    type Item = ExportTraceServiceRequest;

    fn next(&mut self) -> Option<Self::Item> {
        while self.full.is_empty() && self.traces > 0 {
            self.traces -= 1;
            self.add_trace();
        }
        if let Some(request) = self.full.pop() {
            return Some(request);
        }
        // No more traces: what waits is sent as it is.
        let (instance, spans) = self.waiting.pop_first()?;
        if spans.is_empty() { self.next() } else { Some(request(instance, spans)) }
    }
}

/// Traces of one span each, sorted by id: for what depends on the number of traces only.
pub(crate) fn small_traces(seed: u64, count: u64) -> Vec<Arc<Trace>> {
    let mut numbers = Numbers::new(seed);
    let spans = (0..count).flat_map(|_| spans::trace(&mut numbers, 1, START_NS, None));
    traces(spans.map(|(instance, span)| request(instance, vec![span])))
}

/// The traces of these requests, sorted by id, as the live set would hold them.
pub(crate) fn traces(requests: impl Iterator<Item = ExportTraceServiceRequest>) -> Vec<Arc<Trace>> {
    let mut traces: BTreeMap<TraceId, Trace> = BTreeMap::new();
    for spans in requests.flat_map(|request| group_message(&request)) {
        traces.entry(spans.id).or_insert_with(|| Trace::empty(spans.id)).extend(spans);
    }
    traces.into_values().map(Arc::new).collect()
}

fn request(instance: Instance, mut spans: Vec<Span>) -> ExportTraceServiceRequest {
    // A span is sent when it has ended.
    spans.sort_by_key(|span| span.end_time_unix_nano);
    let scope = InstrumentationScope {
        name: "coati-agent".to_owned(),
        version: "0.1.0".to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(instance.resource()),
            scope_spans,
            schema_url: "https://opentelemetry.io/schemas/1.37.0".to_owned(),
        }],
    }
}
