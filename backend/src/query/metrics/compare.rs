//! `compare(…)`: which values of which attributes are more frequent in a selection of spans than in the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::groups::Context;
use super::label::{Label, LabelValue, write_key};
use super::memory::Memory;
use super::plan::ComparePlan;
use super::series::Series;
use crate::query::span::SpanView;
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// Properties of a span that repeat. Ids, times and durations are different on every span, which tells nothing.
pub(super) const INTRINSICS: [Intrinsic; 9] = [
    Intrinsic::Name,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::Kind,
    Intrinsic::RootName,
    Intrinsic::RootService,
    Intrinsic::EventName,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
];

/// Counts of the selected spans, and of the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    selection: Side,
    baseline: Side,
}

#[derive(Clone, Debug, Default)]
struct Side {
    intrinsics: HashMap<Intrinsic, Counts>,
    /// By scope; of every one by name.
    attributes: HashMap<Scope, HashMap<String, Counts>>,
    key: Vec<u8>,
}

/// How often an attribute has which value.
#[derive(Clone, Debug)]
struct Counts {
    /// Spans that have it, one number for each interval.
    total: Vec<u64>,
    values: HashMap<Vec<u8>, (LabelValue, Vec<u64>)>,
}

impl Comparison {
    /// Counts a span.
    pub(super) fn observe(
        &mut self,
        span: &impl SpanView,
        plan: &ComparePlan,
        query: Context<'_>,
        memory: &mut Memory,
    ) {
        let start_ns = span.start_ns();
        let Some(index) = query.intervals.of(start_ns) else { return };
        let in_range = plan.range.is_none_or(|(start, end)| (start..end).contains(&start_ns));
        let side = if in_range && plan.filter.holds(span) { &mut self.selection } else { &mut self.baseline };
        let len = query.intervals.count();
        for intrinsic in INTRINSICS {
            let value = span.intrinsic(intrinsic);
            let is_empty = matches!(&value, Value::String(text) if text.is_empty());
            if is_empty || !is_countable(&value) {
                continue;
            }
            if let Some(counts) = entry(&mut side.intrinsics, &intrinsic, len, memory) {
                counts.add(&value, index, &mut side.key, memory);
            }
        }
        for scope in Scope::NAMED {
            let names = side.attributes.entry(scope).or_default();
            let key = &mut side.key;
            let mut count = |name: &str, value: &Value<'_>| {
                // Asked first, because an owned name is needed only once.
                let is_known = names.contains_key(name) || entry(names, &name.to_owned(), len, memory).is_some();
                if let Some(counts) = names.get_mut(name).filter(|_| is_known) {
                    counts.add(value, index, key, memory);
                }
            };
            if matches!(scope, Scope::Event | Scope::Link) {
                // Several events can have the attribute; the span is counted once.
                let mut names = BTreeSet::new();
                span.each_attribute(scope, &mut |name, _| _ = names.insert(name.to_owned()));
                for name in &names {
                    count(name, &span.attribute(scope, name));
                }
            } else {
                span.each_attribute(scope, &mut |name, value| {
                    if is_countable(&value) {
                        count(name, &value);
                    }
                });
            }
        }
    }

    /// Adds what was counted of other spans.
    pub(super) fn merge(&mut self, other: Self, memory: &mut Memory) {
        self.selection.merge(other.selection, memory);
        self.baseline.merge(other.baseline, memory);
    }

    /// The most frequent values of every attribute, and its totals.
    pub(super) fn into_series(self, plan: &ComparePlan) -> Vec<Series> {
        let mut series = self.baseline.into_series("baseline", plan.top);
        series.extend(self.selection.into_series("selection", plan.top));
        series
    }
}

impl Side {
    fn merge(&mut self, other: Self, memory: &mut Memory) {
        merge_counts(&mut self.intrinsics, other.intrinsics, memory);
        for (scope, names) in other.attributes {
            merge_counts(self.attributes.entry(scope).or_default(), names, memory);
        }
    }

    fn into_series(self, kind: &str, top: usize) -> Vec<Series> {
        let intrinsics = self.intrinsics.into_iter().map(|(i, counts)| (Field::Intrinsic(i), counts));
        let attributes = self.attributes.into_iter().flat_map(|(scope, names)| {
            let field = move |name| Field::Attribute(Attribute { parent: false, scope, name });
            names.into_iter().map(move |(name, counts)| (field(name), counts))
        });
        let by_name: BTreeMap<String, Counts> =
            intrinsics.chain(attributes).map(|(field, counts)| (field.to_string(), counts)).collect();
        by_name.into_iter().flat_map(|(name, counts)| counts.into_series(kind, &name, top)).collect()
    }
}

impl Counts {
    fn add(&mut self, value: &Value<'_>, index: usize, key: &mut Vec<u8>, memory: &mut Memory) {
        if let Value::List(values) = value {
            // A value that occurs twice on a span is still one span.
            let mut distinct: Vec<&Value<'_>> = Vec::new();
            for value in values.iter().filter(|value| is_countable(value)) {
                if !distinct.contains(&value) {
                    distinct.push(value);
                }
            }
            for value in distinct {
                self.add_one(value, index, key, memory);
            }
        } else {
            self.add_one(value, index, key, memory);
        }
        if let Some(total) = self.total.get_mut(index) {
            *total += 1;
        }
    }

    fn add_one(&mut self, value: &Value<'_>, index: usize, key: &mut Vec<u8>, memory: &mut Memory) {
        key.clear();
        write_key(value, key);
        if !self.values.contains_key(key.as_slice()) {
            let bytes = size_of_val(self.total.as_slice()) + 2 * key.len() + size_of::<(LabelValue, Vec<u64>)>();
            if memory.take(bytes).is_none() {
                return;
            }
            self.values.insert(key.clone(), (LabelValue::of(value), vec![0; self.total.len()]));
        }
        if let Some(cell) = self.values.get_mut(key.as_slice()).and_then(|(_, cells)| cells.get_mut(index)) {
            *cell += 1;
        }
    }

    fn into_series(self, kind: &str, name: &str, top: usize) -> Vec<Series> {
        let label = |kind: &str, value: LabelValue| -> Vec<Label> {
            vec![("__meta_type".to_owned(), LabelValue::text(kind)), (name.to_owned(), value)]
        };
        let floats = |counts: Vec<u64>| counts.into_iter().map(|count| count as f64).collect();
        let mut values: Vec<_> = self.values.into_values().collect();
        values.sort_by(|(a, a_counts), (b, b_counts)| {
            let sums = (b_counts.iter().sum::<u64>(), a_counts.iter().sum::<u64>());
            sums.0.cmp(&sums.1).then_with(|| a.cmp(b))
        });
        let values = values.into_iter().take(top);
        let series = values.map(|(value, counts)| Series::new(label(kind, value), floats(counts)));
        let total = Series::new(label(&format!("{kind}_total"), LabelValue::Nil), floats(self.total));
        series.chain([total]).collect()
    }
}

/// Bytes and maps have nothing that could be shown.
fn is_countable(value: &Value<'_>) -> bool {
    !matches!(value, Value::Nil | Value::Opaque(_))
}

fn entry<'m, K: Clone + Eq + std::hash::Hash>(
    map: &'m mut HashMap<K, Counts>,
    key: &K,
    len: usize,
    memory: &mut Memory,
) -> Option<&'m mut Counts> {
    if !map.contains_key(key) {
        memory.take(len * size_of::<u64>() + size_of::<Counts>())?;
        map.insert(key.clone(), Counts { total: vec![0; len], values: HashMap::new() });
    }
    map.get_mut(key)
}

fn merge_counts<K: Clone + Eq + std::hash::Hash>(
    ours: &mut HashMap<K, Counts>,
    theirs: HashMap<K, Counts>,
    memory: &mut Memory,
) {
    let add = |ours: &mut Vec<u64>, theirs: &[u64]| ours.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
    for (key, counts) in theirs {
        let Some(entry) = entry(ours, &key, counts.total.len(), memory) else { continue };
        add(&mut entry.total, &counts.total);
        for (key, (value, cells)) in counts.values {
            match entry.values.get_mut(&key) {
                Some((_, ours)) => add(ours, &cells),
                None if memory.take(size_of_val(cells.as_slice()) + 2 * key.len()).is_some() => {
                    entry.values.insert(key, (value, cells));
                }
                None => {}
            }
        }
    }
}
