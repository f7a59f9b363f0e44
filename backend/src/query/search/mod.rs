//! Searches: which traces match, and what is shown of them.
//!
//! The answer is the newest traces that match, or the first in another order. It is the same wherever the traces lie.

mod ranked;
mod show;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicBool;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use prost::Message;
use thiserror::Error;

use self::ranked::Ranked;
use self::show::{SERVICE, match_trace};
use super::plan::Plan;
use super::prefilter::Prefilter;
use super::scan::{NoPart, RangeOf, Scan, TraceFacts, Visitor, Wanted};
use super::span::SpanView;
use super::view::View;
use crate::blocks::BlocksError;
use crate::live::{Root, TraceId};
use crate::traceql::{Field, Intrinsic};

/// Seconds since the epoch between which a trace must have been active; either may be left open.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// The trace ends at or after this.
    pub start: Option<u64>,
    /// The trace starts at or before this.
    pub end: Option<u64>,
}

impl Window {
    /// Whether what lasts from `start_ns` to `end_ns`, nanoseconds since the epoch, was active in the window.
    pub fn overlaps(&self, start_ns: u64, end_ns: u64) -> bool {
        let nanos = |seconds: u64| seconds.saturating_mul(1_000_000_000);
        self.start.is_none_or(|start| end_ns >= nanos(start)) && self.end.is_none_or(|end| start_ns <= nanos(end))
    }
}

/// What is searched.
#[derive(Clone, Debug, Default)]
pub struct SearchRequest {
    /// What a trace must contain; none for every trace.
    pub plan: Option<Plan>,
    /// Whether the answer tells the matching spans and the services of each trace. They are needed to sort by them.
    pub show_spans: bool,
    /// When.
    pub window: Window,
    /// Shortest trace, nanoseconds.
    pub min_duration_ns: Option<u64>,
    /// Longest trace, nanoseconds.
    pub max_duration_ns: Option<u64>,
    /// Which traces come first.
    pub order: Order,
    /// How many of the first ones are left out.
    pub offset: usize,
    /// Whether all traces that match are counted, which takes as long as looking at all of them does.
    pub count_all: bool,
    /// Most traces in the answer.
    pub limit: usize,
    /// Most spans of each spanset in the answer; 0 for all.
    pub spans_per_spanset: usize,
    /// Most memory that the answer may take, bytes, about; 0 for any.
    pub max_bytes: usize,
}

/// The order of the traces of an answer; those that are equal in it come newest first, then by id.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Order {
    /// What is compared.
    pub by: OrderBy,
    /// Whether the smallest comes first.
    pub ascending: bool,
}

/// What traces are sorted by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OrderBy {
    /// When the trace started.
    #[default]
    Start,
    /// From the first start to the last end.
    Duration,
    /// How many spans match.
    Matched,
}

/// Why a search has no answer.
#[derive(Debug, Error)]
pub enum SearchError {
    /// The store of blocks failed.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// The answer takes more memory than it may.
    #[error("answer takes more than {max_bytes} bytes")]
    TooLarge {
        /// [`SearchRequest::max_bytes`].
        max_bytes: usize,
    },
}

/// The answer to a search.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchResult {
    /// In the order that was asked for.
    pub traces: Vec<TraceMatch>,
    /// How many traces match, if that was asked for.
    pub total: Option<u64>,
    /// What was looked at for it.
    pub inspected: Inspected,
    /// Blocks that are left out because they cannot be read.
    pub skipped: usize,
}

/// Work done for an answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Inspected {
    /// Traces whose spans were looked at.
    pub traces: u32,
    /// Estimate of their memory.
    pub bytes: u64,
    /// Spans.
    pub spans: u64,
}

/// A trace that matches.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceMatch {
    /// Its id.
    pub id: TraceId,
    /// Its root, if that has come.
    pub root: Option<Root>,
    /// Start, nanoseconds since the epoch.
    pub start_ns: u64,
    /// From the first start to the last end.
    pub duration_ns: u64,
    /// What matched; empty if spans were not asked for.
    pub spansets: Vec<SpansetMatch>,
    /// All services of the trace; empty if spans were not asked for.
    pub services: BTreeMap<String, ServiceStats>,
}

impl TraceMatch {
    /// Adds what another tenant has of the same trace. What several tenants matched in the same way is one spanset, with at
    /// most so many spans if that is not 0.
    fn join(&mut self, other: Self, spans_per_spanset: usize) {
        let end_ns = |trace: &Self| trace.start_ns.saturating_add(trace.duration_ns);
        let end = end_ns(self).max(end_ns(&other));
        self.start_ns = self.start_ns.min(other.start_ns);
        self.duration_ns = end.saturating_sub(self.start_ns);
        self.root = self.root.take().or(other.root);
        for (service, stats) in other.services {
            self.services.entry(service).or_default().add(stats);
        }
        for set in other.spansets {
            match self.spansets.iter_mut().find(|known| known.attributes == set.attributes) {
                None => self.spansets.push(set),
                Some(known) => {
                    known.matched += set.matched;
                    known.spans.extend(set.spans);
                    known.spans.sort_by_key(|span| span.start_ns);
                    if spans_per_spanset > 0 {
                        known.spans.truncate(spans_per_spanset);
                    }
                }
            }
        }
    }

    /// Memory that it takes, about.
    fn bytes(&self) -> usize {
        let texts = self.root.iter().map(|root| root.service_name.len() + root.span_name.len());
        let services = self.services.keys().map(|name| size_of::<(String, ServiceStats)>() + name.len());
        let attributes = |list: &[KeyValue]| -> usize {
            list.iter().map(|attribute| size_of::<KeyValue>() + attribute.encoded_len()).sum()
        };
        let span =
            |span: &SpanMatch| size_of::<SpanMatch>() + span.id.len() + span.name.len() + attributes(&span.attributes);
        let spansets = self.spansets.iter().map(|set| {
            size_of::<SpansetMatch>() + attributes(&set.attributes) + set.spans.iter().map(span).sum::<usize>()
        });
        size_of::<Self>() + texts.chain(services).chain(spansets).sum::<usize>()
    }
}

/// Spans of one service in a trace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServiceStats {
    /// All.
    pub spans: u32,
    /// Those that failed.
    pub errors: u32,
}

impl ServiceStats {
    fn add(&mut self, other: Self) {
        self.spans += other.spans;
        self.errors += other.errors;
    }
}

/// Spans of a trace that match together.
#[derive(Clone, Debug, PartialEq)]
pub struct SpansetMatch {
    /// By start; no more than asked for.
    pub spans: Vec<SpanMatch>,
    /// How many there are.
    pub matched: u32,
    /// Results of `by()` and aggregates.
    pub attributes: Vec<KeyValue>,
}

/// A span that matches.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanMatch {
    /// 16 hexadecimal digits.
    pub id: String,
    /// Only if the query mentions it, else empty.
    pub name: String,
    /// Nanoseconds since the epoch.
    pub start_ns: u64,
    /// Nanoseconds.
    pub duration_ns: u64,
    /// What the query mentions and the span has, and what it selects.
    pub attributes: Vec<KeyValue>,
}

/// How far a search has got.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// What was looked at so far.
    pub inspected: Inspected,
    /// Parts of the work that are done.
    pub done: u32,
    /// Parts of the work.
    pub total: u32,
    /// Blocks that are left out because they cannot be read.
    pub skipped: usize,
}

impl Progress {
    /// Everything is done, in one part.
    pub fn whole(inspected: Inspected) -> Self {
        Self { inspected, done: 1, total: 1, skipped: 0 }
    }
}

/// Searches all that is in view; incomplete soon after `cancelled` is set. Fails if the store does, or if
/// the answer becomes too large.
pub fn search(view: &View, request: &SearchRequest, cancelled: &AtomicBool) -> Result<SearchResult, SearchError> {
    let mut traces = Vec::new();
    let (Progress { inspected, skipped, .. }, total) = run(view, request, cancelled, &mut |found, _| {
        traces.extend(found);
        true
    })?;
    traces.drain(..request.offset.min(traces.len()));
    Ok(SearchResult { traces, total: request.count_all.then_some(total), inspected, skipped })
}

/// Searches all that is in view, and hands traces to `emit` as soon as no other can come before them, each once; also the
/// first ones that [`search`] leaves out. Stops when `emit` returns false, or soon after `cancelled` is set. Fails as
/// [`search`] does.
pub fn search_in_parts(
    view: &View,
    request: &SearchRequest,
    cancelled: &AtomicBool,
    emit: &mut dyn FnMut(Vec<TraceMatch>, Progress) -> bool,
) -> Result<Progress, SearchError> {
    run(view, request, cancelled, emit).map(|(progress, _)| progress)
}

/// The second result is how many traces matched of those that were looked at.
fn run(
    view: &View,
    request: &SearchRequest,
    cancelled: &AtomicBool,
    emit: &mut dyn FnMut(Vec<TraceMatch>, Progress) -> bool,
) -> Result<(Progress, u64), SearchError> {
    let plan = request.plan.as_ref();
    let filter = plan.map_or_else(Prefilter::nothing, |plan| Prefilter::of([plan]));
    let shown = [Intrinsic::SpanId, Intrinsic::Duration, Intrinsic::Status].map(Field::Intrinsic);
    let mentioned = plan.into_iter().flat_map(|plan| plan.referenced.iter().chain(&plan.selected));
    let scan = Scan {
        filter: &filter,
        range: request.window.into(),
        range_of: RangeOf::Traces,
        wanted: Wanted::of(shown.iter().chain([&*SERVICE]).chain(mentioned)),
        nested: plan.is_some_and(|plan| plan.needs_nested),
        whole: true,
        late: Wanted::default(),
        newest_first: request.order == Order::default(),
    };
    let max_bytes = if request.max_bytes == 0 { usize::MAX } else { request.max_bytes };
    let found = Ranked::new(request.order, request.offset.saturating_add(request.limit));
    let matched = view.is_of_several().then(HashSet::new);
    let mut searching = Searching { request, found, matched, total: 0, max_bytes, emit };
    let progress = view.scan(&scan, &mut searching, cancelled)?;
    if searching.is_too_large() { Err(SearchError::TooLarge { max_bytes }) } else { Ok((progress, searching.total)) }
}

/// A search at work.
struct Searching<'r, 'e> {
    request: &'r SearchRequest,
    found: Ranked,
    /// Which traces matched, if one may come again because several tenants have it.
    matched: Option<HashSet<TraceId>>,
    /// Traces that matched.
    total: u64,
    max_bytes: usize,
    emit: &'e mut dyn FnMut(Vec<TraceMatch>, Progress) -> bool,
}

impl Searching<'_, '_> {
    fn is_too_large(&self) -> bool {
        self.found.bytes() > self.max_bytes
    }
}

impl Visitor for Searching<'_, '_> {
    type Part = NoPart;

    fn wants(&self, trace: &TraceFacts) -> bool {
        let duration_ns = trace.duration_ns();
        self.request.window.overlaps(trace.start_ns, trace.end_ns)
            && self.request.min_duration_ns.is_none_or(|min| duration_ns >= min)
            && self.request.max_duration_ns.is_none_or(|max| duration_ns <= max)
            && (self.request.count_all
                || self.matched.as_ref().is_some_and(|matched| matched.contains(&trace.id))
                || self.found.may_have_room_for(trace))
    }

    fn wants_since(&self, start_ns: u64) -> bool {
        self.request.count_all || self.found.may_have_room_since(start_ns)
    }

    fn room(&self) -> usize {
        if self.request.count_all { usize::MAX } else { self.found.room() }
    }

    fn trace<S: SpanView>(&mut self, trace: &TraceFacts, spans: &[S]) -> bool {
        if let Some(found) = match_trace(trace, spans, self.request) {
            if self.matched.as_mut().is_none_or(|matched| matched.insert(found.id)) {
                self.total += 1;
                self.found.insert(found);
            } else {
                self.found.join(found, self.request.spans_per_spanset);
            }
        }
        !self.is_too_large()
    }

    fn spans<S: SpanView>(&mut self, _spans: &[S]) -> bool {
        // A search is about whole traces.
        true
    }

    fn part_done(&mut self, progress: Progress, rest_starts_by: Option<u64>) -> bool {
        // What another tenant has of a trace may come until the end.
        let rest_starts_by = rest_starts_by.map(|rest| if self.matched.is_some() { u64::MAX } else { rest });
        !self.is_too_large() && (self.emit)(self.found.take_final(rest_starts_by), progress)
    }
}
