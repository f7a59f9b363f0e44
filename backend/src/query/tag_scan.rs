//! Names and values of tags on the spans that a filter lets pass. Without a filter the catalog knows them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;

use foldhash::fast::RandomState;

use super::parent::WithParent;
use super::plan::{Plan, is_nested};
use super::prefilter::Prefilter;
use super::scan::{NoPart, RangeOf, Scan, TraceFacts, Visitor, Wanted};
use super::search::{Inspected, Window};
use super::span::SpanView;
use super::value::Value;
use super::view::View;
use crate::blocks::BlocksError;
use crate::catalog::TagValue;
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
    view: &View,
    field: &Field,
    scan: &TagScan,
    cancelled: &AtomicBool,
) -> Result<(Vec<TagValue>, Inspected), BlocksError> {
    let mut collector = Values { scan, field, found: BTreeSet::new() };
    let inspected = run(view, scan, Wanted::of([field]), &mut collector, cancelled)?;
    Ok((collector.found.into_iter().take(scan.limit).collect(), inspected))
}

/// Names of attributes by scope, sorted.
pub fn scan_names(
    view: &View,
    scan: &TagScan,
    cancelled: &AtomicBool,
) -> Result<(BTreeMap<&'static str, BTreeSet<String>>, Inspected), BlocksError> {
    let mut collector = Names { scan, names: HashMap::default() };
    let wanted = Wanted { every_attribute: true, names_only: true, ..Wanted::default() };
    let inspected = run(view, scan, wanted, &mut collector, cancelled)?;
    let sorted = |(scope, names): (Scope, HashSet<String, RandomState>)| (scope.name(), names.into_iter().collect());
    Ok((collector.names.into_iter().map(sorted).collect(), inspected))
}

fn run(
    view: &View,
    scan: &TagScan,
    mut wanted: Wanted,
    visitor: &mut impl Visitor,
    cancelled: &AtomicBool,
) -> Result<Inspected, BlocksError> {
    let plan = scan.plan.as_ref();
    let filter = plan.map_or_else(Prefilter::nothing, |plan| Prefilter::of([plan]));
    plan.into_iter().flat_map(|plan| &plan.referenced).for_each(|field| wanted.add(field));
    let scan = Scan {
        filter: &filter,
        range: scan.window.into(),
        range_of: RangeOf::Traces,
        nested: wanted.fields.iter().any(is_nested) || plan.is_some_and(|plan| plan.needs_nested),
        whole: wanted.needs_trace() || plan.is_some_and(|plan| !plan.is_of_spans()),
        wanted,
        late: Wanted::default(),
        newest_first: false,
    };
    Ok(view.scan(&scan, visitor, cancelled)?.inspected)
}

/// The spans of a trace that match.
fn matching<'s, S: SpanView>(spans: &'s [S], scan: &'s TagScan) -> impl Iterator<Item = &'s S> {
    let places: Vec<usize> = match &scan.plan {
        Some(plan) if plan.needs_parents => {
            plan.run(&WithParent::of_trace(spans)).into_iter().flat_map(|set| set.spans).collect()
        }
        Some(plan) => plan.run(spans).into_iter().flat_map(|set| set.spans).collect(),
        None => (0..spans.len()).collect(),
    };
    places.into_iter().filter_map(|index| spans.get(index))
}

struct Values<'r> {
    scan: &'r TagScan,
    field: &'r Field,
    found: BTreeSet<TagValue>,
}

impl Visitor for Values<'_> {
    type Part = NoPart;

    fn wants(&self, trace: &TraceFacts) -> bool {
        self.scan.window.overlaps(trace.start_ns, trace.end_ns)
    }

    fn trace<S: SpanView>(&mut self, _trace: &TraceFacts, spans: &[S]) -> bool {
        self.spans(spans)
    }

    fn spans<S: SpanView>(&mut self, spans: &[S]) -> bool {
        matching(spans, self.scan).all(|span| {
            collect(&span.field(self.field), &mut self.found);
            self.found.len() < self.scan.limit
        })
    }
}

struct Names<'r> {
    scan: &'r TagScan,
    /// Looked up for every attribute of every span.
    names: HashMap<Scope, HashSet<String, RandomState>, RandomState>,
}

impl Visitor for Names<'_> {
    type Part = NoPart;

    fn knows(&self, name: &str) -> bool {
        self.names.get(&Scope::Span).is_some_and(|known| known.contains(name))
    }

    fn wants(&self, trace: &TraceFacts) -> bool {
        self.scan.window.overlaps(trace.start_ns, trace.end_ns)
    }

    fn trace<S: SpanView>(&mut self, _trace: &TraceFacts, spans: &[S]) -> bool {
        self.spans(spans)
    }

    fn spans<S: SpanView>(&mut self, spans: &[S]) -> bool {
        for span in matching(spans, self.scan) {
            for scope in Scope::NAMED {
                let known = self.names.entry(scope).or_default();
                span.each_attribute(scope, &mut |name, _| {
                    if known.len() < self.scan.limit && !known.contains(name) {
                        known.insert(name.to_owned());
                    }
                });
            }
        }
        true
    }
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
