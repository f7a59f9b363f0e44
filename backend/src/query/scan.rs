//! Names and values of tags on the spans that a filter lets pass. Without a filter the catalog knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::live::LiveSpan;
use super::plan::Plan;
use super::search::{Inspected, Window};
use super::span::SpanView;
use super::value::Value;
use crate::catalog::TagValue;
use crate::live::Trace;
use crate::traceql::{Field, Scope};

/// Which spans are looked at.
#[derive(Clone, Debug, Default)]
pub struct TagScan {
    /// What they must match; none for every span.
    pub plan: Option<Plan>,
    /// When their traces were active.
    pub window: Window,
    /// Most names of a scope, or values, in the answer.
    pub limit: usize,
}

/// Values of a field, sorted by type and value. Arrays give their elements; durations are integers, in nanoseconds.
pub fn scan_values(
    traces: &[Arc<Trace>],
    field: &Field,
    scan: &TagScan,
    cancelled: &AtomicBool,
) -> (Vec<TagValue>, Inspected) {
    let mut values = BTreeSet::new();
    let inspected = visit(traces, scan, cancelled, &mut |span| {
        collect(&span.field(field), &mut values);
        values.len() < scan.limit
    });
    (values.into_iter().take(scan.limit).collect(), inspected)
}

/// Names of attributes by scope, sorted.
pub fn scan_names(
    traces: &[Arc<Trace>],
    scan: &TagScan,
    cancelled: &AtomicBool,
) -> (BTreeMap<&'static str, BTreeSet<String>>, Inspected) {
    let mut names: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    let inspected = visit(traces, scan, cancelled, &mut |span| {
        for scope in Scope::NAMED {
            for kv in span.attributes(scope) {
                let known = names.entry(scope.name()).or_default();
                if known.len() < scan.limit && !known.contains(&kv.key) {
                    known.insert(kv.key.clone());
                }
            }
        }
        true
    });
    (names, inspected)
}

/// Shows every span that matches to `visitor`, until it returns false.
fn visit(
    traces: &[Arc<Trace>],
    scan: &TagScan,
    cancelled: &AtomicBool,
    visitor: &mut dyn FnMut(&LiveSpan<'_>) -> bool,
) -> Inspected {
    let mut inspected = Inspected::default();
    for trace in traces.iter().filter(|trace| scan.window.overlaps(trace)) {
        if cancelled.load(Ordering::Relaxed) {
            break;
        }
        inspected.traces += 1;
        inspected.bytes += trace.bytes as u64;
        inspected.spans += trace.span_count as u64;
        let spans = LiveSpan::of_trace(trace, scan.plan.as_ref().is_some_and(|plan| plan.needs_nested));
        let matching: Vec<usize> = match &scan.plan {
            Some(plan) => plan.run(&spans).into_iter().flat_map(|set| set.spans).collect(),
            None => (0..spans.len()).collect(),
        };
        if !matching.into_iter().filter_map(|index| spans.get(index)).all(&mut *visitor) {
            break;
        }
    }
    inspected
}

fn collect(value: &Value<'_>, into: &mut BTreeSet<TagValue>) {
    let value = match value {
        Value::String(text) => TagValue::String(text.clone().into_owned()),
        Value::Int(int) | Value::Duration(int) => TagValue::Int(*int),
        Value::Float(float) => TagValue::Float(*float),
        Value::Bool(truth) => TagValue::Bool(*truth),
        Value::List(values) => return values.iter().for_each(|value| collect(value, into)),
        Value::Status(status) => TagValue::String(status.name().to_owned()),
        Value::Kind(kind) => TagValue::String(kind.name().to_owned()),
        Value::Nil | Value::Opaque(_) => return,
    };
    into.insert(value);
}
