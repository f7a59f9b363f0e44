//! `trace-summary-v0-native`: what changed for the traces and their services.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Format;
use super::patch::{Field, Patch, Target, Warning};
use super::side::{Identity, Node, Side};
use crate::traceql::Status;

/// A service without a name.
const UNKNOWN: &str = "<unknown>";

/// What the spans of a service must take more or less, together, to be told: the part of what they took, one in so many,
/// and nanoseconds. That shows where each span is slower by too little to be told itself.
const DRIFT_ONE_IN: i128 = 20;
const DRIFT_NS: i128 = 1_000_000;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary<'t> {
    version: &'static str,
    base: Total<'t>,
    compare: Total<'t>,
    signals: Signals,
    trust: Trust,
    stats: Stats,
    #[serde(skip_serializing_if = "<[Warning]>::is_empty")]
    warnings: &'t [Warning],
    changed_services: BTreeSet<&'t str>,
    services: Vec<Service<'t>>,
}

/// One of the traces.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Total<'t> {
    trace_id: &'t str,
    #[serde(skip_serializing_if = "str::is_empty")]
    root_service: &'t str,
    #[serde(skip_serializing_if = "str::is_empty")]
    root_name: &'t str,
    span_count: usize,
    error_span_count: usize,
    /// From the first start to the last end.
    duration_ms: u64,
    sum_span_duration_ms: u64,
    #[serde(skip)]
    duration_ns: u64,
    #[serde(skip)]
    sum_ns: u64,
}

/// Directions, without a judgement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Signals {
    trace_latency: &'static str,
    sum_span_duration: &'static str,
    errors: &'static str,
    span_count: &'static str,
    structure: &'static str,
}

/// How much of the traces could be compared: pairs of all spans of the larger one, and of the smaller one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Trust {
    matched_span_ratio: f64,
    structure_overlap: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    trace_latency_delta_ms: i64,
    sum_span_duration_delta_ms: i64,
    span_count_delta: i64,
    error_span_delta: i64,
    matched_spans: usize,
    modified_spans: usize,
    added_spans: usize,
    removed_spans: usize,
    field_changes: usize,
    attribute_changes: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service<'t> {
    name: &'t str,
    sum_span_duration_delta_ms: i64,
    modified: usize,
    added: usize,
    removed: usize,
    new_errors: usize,
    resolved_errors: usize,
}

impl<'t> Summary<'t> {
    pub(super) fn of(base: &'t Side<'t>, compare: &'t Side<'t>, patch: &'t Patch<'t>) -> Self {
        let (before, after) = (Total::of(base), Total::of(compare));
        let moved = moved(base, compare);
        let (changed_services, services) = services(base, compare, patch, &moved);
        let of = &patch.stats;
        let stats = Stats {
            trace_latency_delta_ms: delta_ms(before.duration_ns, after.duration_ns),
            sum_span_duration_delta_ms: delta_ms(before.sum_ns, after.sum_ns),
            span_count_delta: of.span_count_b as i64 - of.span_count_a as i64,
            error_span_delta: after.error_span_count as i64 - before.error_span_count as i64,
            matched_spans: of.matched_spans,
            modified_spans: of.modified_spans,
            added_spans: of.added_spans,
            removed_spans: of.removed_spans,
            field_changes: of.field_changes,
            attribute_changes: of.attribute_changes,
        };
        let is_same = of.added_spans == 0 && of.removed_spans == 0 && moved.is_empty();
        let signals = Signals {
            trace_latency: direction(stats.trace_latency_delta_ms),
            sum_span_duration: direction(stats.sum_span_duration_delta_ms),
            errors: direction(stats.error_span_delta),
            span_count: direction(stats.span_count_delta),
            structure: if is_same { "unchanged" } else { "changed" },
        };
        let ratio = |spans: usize| if spans == 0 { 0.0 } else { of.matched_spans as f64 / spans as f64 };
        let trust = Trust {
            matched_span_ratio: ratio(of.span_count_a.max(of.span_count_b)),
            structure_overlap: ratio(of.span_count_a.min(of.span_count_b)),
        };
        let version = Format::Summary.name();
        let warnings = &patch.warnings;
        Self { version, base: before, compare: after, signals, trust, stats, warnings, changed_services, services }
    }
}

impl<'t> Total<'t> {
    fn of(side: &'t Side<'t>) -> Self {
        let timed = || side.spans.iter().filter(|node| node.duration_ns.is_some());
        let start_ns = timed().map(|node| node.start_ns).min().unwrap_or_default();
        let end_ns = timed().map(|node| node.end_ns).max().unwrap_or_default();
        let duration_ns = end_ns.saturating_sub(start_ns);
        let sum_ns = side.spans.iter().filter_map(|node| node.duration_ns).fold(0, u64::saturating_add);
        let root = side.spans.first().map(|node| node.identity);
        Self {
            trace_id: &side.trace_id,
            root_service: root.map_or("", |root| root.service),
            root_name: root.map_or("", |root| root.name),
            span_count: side.spans.len(),
            error_span_count: side.spans.iter().filter(|node| node.is_error()).count(),
            duration_ms: duration_ns / 1_000_000,
            sum_span_duration_ms: sum_ns / 1_000_000,
            duration_ns,
            sum_ns,
        }
    }
}

/// Services whose spans do not lie below the same operations, as often, as before.
fn moved<'t>(base: &Side<'t>, compare: &Side<'t>) -> BTreeSet<&'t str> {
    let mut places: BTreeMap<(Identity<'t>, Option<Identity<'t>>), i64> = BTreeMap::new();
    for (side, step) in [(base, -1), (compare, 1)] {
        for node in &side.spans {
            *places.entry((node.identity, node.parent)).or_default() += step;
        }
    }
    places.into_iter().filter(|(_, count)| *count != 0).map(|((identity, _), _)| named(identity.service)).collect()
}

/// All services for which something changed; and those for which spans did or what they took together, the ones that
/// changed most first.
fn services<'t>(
    base: &Side<'t>,
    compare: &Side<'t>,
    patch: &Patch<'t>,
    moved: &BTreeSet<&'t str>,
) -> (BTreeSet<&'t str>, Vec<Service<'t>>) {
    let mut sums: BTreeMap<&'t str, [i128; 2]> = BTreeMap::new();
    for (side, nodes) in [&base.spans, &compare.spans].into_iter().enumerate() {
        for Node { identity, duration_ns, .. } in nodes {
            if let Some(sum) = sums.entry(named(identity.service)).or_default().get_mut(side) {
                *sum += i128::from(duration_ns.unwrap_or_default());
            }
        }
    }
    let mut counts = counts(patch);
    let mut changed = moved.clone();
    changed.extend(counts.keys());
    let mut services = Vec::new();
    for (name, [before, after]) in sums {
        let delta = after - before;
        let drifted = delta.abs() >= DRIFT_NS && delta.abs() * DRIFT_ONE_IN >= before;
        let counted = counts.remove(name);
        if drifted || counted.is_some() {
            changed.insert(name);
            let sum_span_duration_delta_ms = i64::try_from(delta / 1_000_000).unwrap_or_default();
            services.push(Service { name, sum_span_duration_delta_ms, ..counted.unwrap_or_default() });
        }
    }
    let key = |service: &Service<'t>| {
        let delta = service.sum_span_duration_delta_ms.unsigned_abs();
        (std::cmp::Reverse((delta, service.new_errors)), service.name)
    };
    services.sort_by_key(key);
    (changed, services)
}

fn counts<'t>(patch: &Patch<'t>) -> BTreeMap<&'t str, Service<'t>> {
    let error = Status::Error.name();
    let mut services: BTreeMap<&'t str, Service<'t>> = BTreeMap::new();
    for modified in &patch.modified {
        let service = services.entry(named(modified.span.service)).or_default();
        service.modified += 1;
        for change in &modified.changes {
            if matches!(change.target, Target::Field { name: Field::Status }) {
                service.new_errors += usize::from(change.after == error);
                service.resolved_errors += usize::from(change.before == error);
            }
        }
    }
    for added in &patch.added {
        let service = services.entry(named(added.span.service)).or_default();
        service.added += 1;
        service.new_errors += usize::from(added.span.status == error);
    }
    for removed in &patch.removed {
        let service = services.entry(named(removed.span.service)).or_default();
        service.removed += 1;
        service.resolved_errors += usize::from(removed.span.status == error);
    }
    services
}

fn named(service: &str) -> &str {
    if service.is_empty() { UNKNOWN } else { service }
}

fn delta_ms(before: u64, after: u64) -> i64 {
    let delta = (i128::from(after) - i128::from(before)) / 1_000_000;
    i64::try_from(delta).unwrap_or_default()
}

fn direction(delta: i64) -> &'static str {
    match delta {
        1.. => "increased",
        0 => "unchanged",
        _ => "decreased",
    }
}
