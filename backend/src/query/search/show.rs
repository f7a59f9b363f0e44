//! Whether a trace matches, and what is shown of it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use coati_common::wellknown::resource::SERVICE_NAME;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

use super::{SearchRequest, ServiceStats, SpanMatch, SpansetMatch, TraceMatch};
use crate::query::parent::WithParent;
use crate::query::pipeline::Spanset;
use crate::query::plan::Plan;
use crate::query::scan::TraceFacts;
use crate::query::span::SpanView;
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, IntrinsicScope, Scope, Status};

/// What every answer says of a span's resource.
pub(super) static SERVICE: LazyLock<Field> = LazyLock::new(|| {
    Field::Attribute(Attribute { parent: false, scope: Scope::Resource, name: SERVICE_NAME.to_owned() })
});

/// Resources of a trace among which that of the next span is looked for. Beyond them it is one more, and counted together
/// with those of the same service in the end.
const RECENT_RESOURCES: usize = 16;

/// What the answer says of a trace if it matches.
pub(super) fn match_trace<S: SpanView>(trace: &TraceFacts, spans: &[S], request: &SearchRequest) -> Option<TraceMatch> {
    match &request.plan {
        Some(plan) if plan.needs_parents => match_spans(trace, &WithParent::of_trace(spans), request),
        _ => match_spans(trace, spans, request),
    }
}

fn match_spans<S: SpanView>(trace: &TraceFacts, spans: &[S], request: &SearchRequest) -> Option<TraceMatch> {
    let mut found = TraceMatch {
        id: trace.id,
        root: trace.root.clone(),
        start_ns: trace.start_ns,
        duration_ns: trace.duration_ns(),
        spansets: Vec::new(),
        services: BTreeMap::new(),
    };
    let Some(plan) = &request.plan else { return Some(found) };
    let mut sets = plan.run(spans);
    if sets.is_empty() {
        return None;
    }
    if request.show_spans {
        if sets.len() > 1 {
            // By their first spans: the order in which spans lie in memory or in a block says nothing.
            sets.sort_by_cached_key(|set| in_order(spans, set).first().map(|(_, span)| order(*span)));
        }
        found.spansets = sets.iter().map(|set| show_set(plan, spans, set, request.spans_per_spanset)).collect();
        found.services = services_of(spans);
    }
    Some(found)
}

/// The services of a trace.
fn services_of(spans: &[impl SpanView]) -> BTreeMap<String, ServiceStats> {
    // Spans of one code have the same service, whose name is read and compared once.
    let mut codes = Vec::new();
    let mut found: Vec<(Value<'_>, ServiceStats)> = Vec::new();
    for span in spans {
        let code = span.code(&SERVICE);
        let before = codes.len().saturating_sub(RECENT_RESOURCES);
        let known = codes.iter().skip(before).position(|known| code.is_some() && *known == code);
        let place = known.map_or(codes.len(), |place| before + place);
        if known.is_none() {
            codes.push(code);
            found.push((span.field(&SERVICE), ServiceStats::default()));
        }
        if let Some((_, stats)) = found.get_mut(place) {
            stats.spans += 1;
            stats.errors += u32::from(span.intrinsic(Intrinsic::Status) == Value::Status(Status::Error));
        }
    }
    let mut services: BTreeMap<String, ServiceStats> = BTreeMap::new();
    for (service, stats) in found {
        let name = if let Value::String(name) = &service { name } else { "" };
        match services.get_mut(name) {
            Some(known) => known.add(stats),
            None => _ = services.insert(name.to_owned(), stats),
        }
    }
    services
}

/// What the spans of a trace are sorted by.
fn order(span: &impl SpanView) -> (u64, String, u64) {
    (span.start_ns(), id(span), span.duration_ns())
}

/// 16 hexadecimal digits.
fn id(span: &impl SpanView) -> String {
    match span.intrinsic(Intrinsic::SpanId) {
        Value::String(id) => id.into_owned(),
        _ => String::new(),
    }
}

/// The spans of a set by start, with their starts.
fn in_order<'s, S: SpanView>(spans: &'s [S], set: &Spanset<'_>) -> Vec<(u64, &'s S)> {
    let picked = set.spans.iter().filter_map(|index| spans.get(*index));
    let mut picked: Vec<_> = picked.map(|span| (span.start_ns(), span)).collect();
    // Ids are texts here: they are made only where the starts are the same.
    picked.sort_by(|(start, a), (other, b)| start.cmp(other).then_with(|| order(*a).cmp(&order(*b))));
    picked
}

fn show_set<S: SpanView>(plan: &Plan, spans: &[S], set: &Spanset<'_>, limit: usize) -> SpansetMatch {
    let picked = in_order(spans, set);
    let limit = if limit == 0 { picked.len() } else { limit };
    SpansetMatch {
        spans: picked.iter().take(limit).map(|(_, span)| show_span(plan, *span)).collect(),
        matched: u32::try_from(picked.len()).unwrap_or(u32::MAX),
        attributes: set.attributes.iter().map(|(key, value)| key_value(key, value.to_any())).collect(),
    }
}

fn show_span(plan: &Plan, span: &impl SpanView) -> SpanMatch {
    let mut shown = SpanMatch {
        id: id(span),
        name: String::new(),
        start_ns: span.start_ns(),
        duration_ns: span.duration_ns(),
        attributes: Vec::with_capacity(plan.referenced.len() + plan.selected.len()),
    };
    let selected = plan.selected.iter().map(|field| (field, true));
    let referenced = plan.referenced.iter().filter(|field| !plan.selected.contains(field)).map(|field| (field, false));
    for (field, always) in referenced.chain(selected) {
        let key = match field {
            Field::Intrinsic(Intrinsic::Name) => {
                if let Value::String(name) = span.intrinsic(Intrinsic::Name) {
                    shown.name = name.into_owned();
                }
                continue;
            }
            // These are in the answer anyway.
            Field::Intrinsic(Intrinsic::Duration | Intrinsic::SpanId) => continue,
            Field::Intrinsic(i) if i.scoped_name().is_some_and(|(scope, _)| scope == IntrinsicScope::Trace) => continue,
            Field::Intrinsic(intrinsic) => intrinsic.to_string(),
            Field::Attribute(Attribute { parent: true, name, .. }) => format!("parent.{name}"),
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
