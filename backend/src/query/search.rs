//! Searches: which traces match, and what is shown of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

use super::live::{LiveSpan, hex};
use super::pipeline::Spanset;
use super::plan::Plan;
use super::span::SpanView;
use super::value::Value;
use crate::live::{Root, Trace, TraceId};
use crate::traceql::{Attribute, Field, Intrinsic, IntrinsicScope, Scope};

/// Seconds since the epoch between which a trace must have been active; either may be left open.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// The trace ends at or after this.
    pub start: Option<u64>,
    /// The trace starts at or before this.
    pub end: Option<u64>,
}

impl Window {
    /// Whether a trace was active in the window.
    pub fn overlaps(&self, trace: &Trace) -> bool {
        let nanos = |seconds: u64| seconds.saturating_mul(1_000_000_000);
        self.start.is_none_or(|start| trace.end_ns >= nanos(start))
            && self.end.is_none_or(|end| trace.start_ns <= nanos(end))
    }
}

/// What is searched.
#[derive(Clone, Debug, Default)]
pub struct SearchRequest {
    /// What a trace must contain; none for every trace.
    pub plan: Option<Plan>,
    /// Whether the answer tells the matching spans and the services of each trace.
    pub show_spans: bool,
    /// When.
    pub window: Window,
    /// Shortest trace, nanoseconds.
    pub min_duration_ns: Option<u64>,
    /// Longest trace, nanoseconds.
    pub max_duration_ns: Option<u64>,
    /// Most traces in the answer.
    pub limit: usize,
    /// Most spans of each spanset in the answer; 0 for all.
    pub spans_per_spanset: usize,
}

/// The answer to a search.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchResult {
    /// In the order in which they were given.
    pub traces: Vec<TraceMatch>,
    /// What was looked at for it.
    pub inspected: Inspected,
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

/// Spans of one service in a trace.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ServiceStats {
    /// All.
    pub spans: u32,
    /// Those that failed.
    pub errors: u32,
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

/// Searches traces in the order in which they are given, and stops at the limit, or soon after `cancelled` is set.
pub fn search(traces: &[Arc<Trace>], request: &SearchRequest, cancelled: &AtomicBool) -> SearchResult {
    let mut result = SearchResult::default();
    search_part(traces, request, &mut result, cancelled);
    result
}

/// Searches some more traces. Returns whether the search may go on.
pub fn search_part(
    traces: &[Arc<Trace>],
    request: &SearchRequest,
    result: &mut SearchResult,
    cancelled: &AtomicBool,
) -> bool {
    for trace in traces {
        if result.traces.len() >= request.limit || cancelled.load(Ordering::Relaxed) {
            return false;
        }
        let duration_ns = trace.end_ns.saturating_sub(trace.start_ns);
        let long_enough = request.min_duration_ns.is_none_or(|min| duration_ns >= min);
        let short_enough = request.max_duration_ns.is_none_or(|max| duration_ns <= max);
        if !request.window.overlaps(trace) || !long_enough || !short_enough {
            continue;
        }
        result.inspected.traces += 1;
        result.inspected.bytes += trace.bytes as u64;
        result.inspected.spans += trace.span_count as u64;
        result.traces.extend(match_trace(trace, request, duration_ns));
    }
    result.traces.len() < request.limit
}

fn match_trace(trace: &Trace, request: &SearchRequest, duration_ns: u64) -> Option<TraceMatch> {
    let mut found = TraceMatch {
        id: trace.id,
        root: trace.root.clone(),
        start_ns: trace.start_ns,
        duration_ns,
        spansets: Vec::new(),
        services: BTreeMap::new(),
    };
    let Some(plan) = &request.plan else { return Some(found) };
    let spans = LiveSpan::of_trace(trace, plan.needs_nested);
    let sets = plan.run(&spans);
    if sets.is_empty() {
        return None;
    }
    if request.show_spans {
        found.spansets = sets.iter().map(|set| show_set(plan, &spans, set, request.spans_per_spanset)).collect();
        for span in &spans {
            let name = span.service_name();
            if !found.services.contains_key(name) {
                found.services.insert(name.to_owned(), ServiceStats::default());
            }
            if let Some(stats) = found.services.get_mut(name) {
                stats.spans += 1;
                stats.errors += u32::from(span.is_error());
            }
        }
    }
    Some(found)
}

fn show_set(plan: &Plan, spans: &[LiveSpan<'_>], set: &Spanset<'_>, limit: usize) -> SpansetMatch {
    let mut picked: Vec<_> = set.spans.iter().filter_map(|index| spans.get(*index)).collect();
    picked.sort_by_key(|span| span.start_ns());
    let limit = if limit == 0 { picked.len() } else { limit };
    SpansetMatch {
        spans: picked.iter().take(limit).map(|span| show_span(plan, span)).collect(),
        matched: u32::try_from(picked.len()).unwrap_or(u32::MAX),
        attributes: set.attributes.iter().map(|(key, value)| key_value(key, value.to_any())).collect(),
    }
}

fn show_span(plan: &Plan, span: &LiveSpan<'_>) -> SpanMatch {
    let mut shown = SpanMatch {
        id: hex(&span.span().span_id),
        name: String::new(),
        start_ns: span.start_ns(),
        duration_ns: span.duration_ns(),
        attributes: Vec::new(),
    };
    let selected = plan.selected.iter().map(|field| (field, true));
    let referenced = plan.referenced.iter().filter(|field| !plan.selected.contains(field)).map(|field| (field, false));
    for (field, always) in referenced.chain(selected) {
        let key = match field {
            Field::Intrinsic(Intrinsic::Name) => {
                shown.name.clone_from(&span.span().name);
                continue;
            }
            // These are in the answer anyway.
            Field::Intrinsic(Intrinsic::Duration | Intrinsic::SpanId) => continue,
            Field::Intrinsic(i) if i.scoped_name().is_some_and(|(scope, _)| scope == IntrinsicScope::Trace) => continue,
            Field::Intrinsic(intrinsic) => intrinsic.to_string(),
            Field::Attribute(Attribute { name, .. }) => name.clone(),
        };
        let value = match span.field(field) {
            // One of several events or links: the answer has room for one.
            Value::List(values) if is_of_many(field) => values.into_iter().next().unwrap_or(Value::Nil),
            value => value,
        };
        if value.exists() || always {
            shown.attributes.push(key_value(&key, value.to_any()));
        }
    }
    shown
}

/// Whether a span can have the field more than once.
fn is_of_many(field: &Field) -> bool {
    match field {
        Field::Attribute(Attribute { scope, .. }) => matches!(scope, Scope::Event | Scope::Link),
        Field::Intrinsic(intrinsic) => intrinsic
            .scoped_name()
            .is_some_and(|(scope, _)| matches!(scope, IntrinsicScope::Event | IntrinsicScope::Link)),
    }
}

fn key_value(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), key_strindex: 0 }
}
