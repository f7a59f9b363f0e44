//! Spans sorted into series and intervals, and what is measured there.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;

use super::exemplar::{Exemplars, Spread};
use super::intervals::Intervals;
use super::label::{Label, LabelValue, write_key};
use super::memory::Memory;
use super::plan::{LeafPlan, Measure};
use super::sketch::Sketch;
use crate::query::span::SpanView;
use crate::query::value::Value;

/// One series for each combination of labels.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    places: HashMap<Vec<u8>, usize, RandomState>,
    series: Vec<Group>,
    /// Kept from span to span, so that none of them allocates one.
    key: Vec<u8>,
}

/// One series, as it grows.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Values of `by(…)`, and of the bucket for a histogram.
    pub(super) labels: Vec<LabelValue>,
    pub(super) cells: Cells,
    pub(super) exemplars: Exemplars,
}

/// One cell for each interval.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cells {
    Count(Vec<u64>),
    Min(Vec<f64>),
    Max(Vec<f64>),
    Sum(Vec<Sum>),
    Average(Vec<Sum>),
    Quantiles(Vec<Sketch>),
}

/// A sum that does not lose small numbers beside large ones (Neumaier), so that their order does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sum {
    high: f64,
    rest: f64,
    count: u64,
}

impl Sum {
    fn add(&mut self, number: f64) {
        let high = self.high + number;
        self.rest +=
            if self.high.abs() >= number.abs() { (self.high - high) + number } else { (number - high) + self.high };
        self.high = high;
        self.count += 1;
    }

    fn merge(&mut self, other: &Self) {
        let count = self.count + other.count;
        self.add(other.high);
        self.rest += other.rest;
        self.count = count;
    }

    /// Not a number if nothing was added.
    fn total(&self) -> f64 {
        match self.count {
            0 => f64::NAN,
            // An infinite sum has no meaningful rest.
            _ if self.high.is_finite() => self.high + self.rest,
            _ => self.high,
        }
    }
}

impl Cells {
    fn new(measure: &Measure, count: usize) -> Self {
        match measure {
            Measure::Count { .. } | Measure::Histogram(_) => Self::Count(vec![0; count]),
            Measure::Min(_) => Self::Min(vec![f64::NAN; count]),
            Measure::Max(_) => Self::Max(vec![f64::NAN; count]),
            Measure::Sum(_) => Self::Sum(vec![Sum::default(); count]),
            Measure::Average(_) => Self::Average(vec![Sum::default(); count]),
            Measure::Quantiles(..) => Self::Quantiles(vec![Sketch::default(); count]),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Count(cells) => size_of_val(cells.as_slice()),
            Self::Min(cells) | Self::Max(cells) => size_of_val(cells.as_slice()),
            Self::Sum(cells) | Self::Average(cells) => size_of_val(cells.as_slice()),
            Self::Quantiles(cells) => size_of_val(cells.as_slice()),
        }
    }

    /// Adds one number. Returns how much memory that took.
    fn add(&mut self, index: usize, number: f64) -> usize {
        match self {
            Self::Count(cells) => at(cells, index, |cell| *cell += 1),
            // The other operand is taken if one is not a number.
            Self::Min(cells) => at(cells, index, |cell| *cell = cell.min(number)),
            Self::Max(cells) => at(cells, index, |cell| *cell = cell.max(number)),
            Self::Sum(cells) | Self::Average(cells) => at(cells, index, |cell| cell.add(number)),
            Self::Quantiles(cells) => {
                return cells.get_mut(index).map_or(0, |cell| cell.add(number));
            }
        }
        0
    }

    fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::Count(ours), Self::Count(theirs)) => zip(ours, theirs, |a, b| *a += b),
            (Self::Min(ours), Self::Min(theirs)) => zip(ours, theirs, |a, b| *a = a.min(*b)),
            (Self::Max(ours), Self::Max(theirs)) => zip(ours, theirs, |a, b| *a = a.max(*b)),
            (Self::Sum(ours), Self::Sum(theirs)) | (Self::Average(ours), Self::Average(theirs)) => {
                zip(ours, theirs, Sum::merge);
            }
            (Self::Quantiles(ours), Self::Quantiles(theirs)) => zip(ours, theirs, Sketch::merge),
            // One leaf of one plan has one kind of cells.
            _ => {}
        }
    }

    /// One value for each interval; not a number where there is none. Quantiles have more than one, see
    /// [`Self::sketches`].
    pub(super) fn values(&self) -> Vec<f64> {
        match self {
            Self::Count(cells) => cells.iter().map(|count| *count as f64).collect(),
            Self::Min(cells) | Self::Max(cells) => cells.clone(),
            Self::Sum(cells) => cells.iter().map(Sum::total).collect(),
            Self::Average(cells) => cells.iter().map(|cell| cell.total() / cell.count as f64).collect(),
            Self::Quantiles(_) => Vec::new(),
        }
    }

    pub(super) fn sketches(&self) -> &[Sketch] {
        match self {
            Self::Quantiles(cells) => cells,
            _ => &[],
        }
    }
}

fn at<T>(cells: &mut [T], index: usize, change: impl FnOnce(&mut T)) {
    if let Some(cell) = cells.get_mut(index) {
        change(cell);
    }
}

fn zip<T>(ours: &mut [T], theirs: &[T], change: impl Fn(&mut T, &T)) {
    ours.iter_mut().zip(theirs).for_each(|(a, b)| change(a, b));
}

/// What of the query a span is counted for.
#[derive(Clone, Copy)]
pub(super) struct Context<'q> {
    pub(super) leaf: &'q LeafPlan,
    pub(super) intervals: &'q Intervals,
    /// Which exemplars a series may have; none if it has none.
    pub(super) exemplars: Option<Spread>,
}

/// Where the series of spans are that lie together.
#[derive(Debug)]
pub(super) struct Places {
    lie: usize,
    by_code: Vec<Option<usize>>,
    /// Most codes that are remembered.
    most: usize,
}

impl Places {
    /// Of so many spans.
    pub(super) fn of(spans: usize) -> Self {
        Self { lie: 0, by_code: Vec::new(), most: spans }
    }

    fn get(&self, (lie, code): (usize, usize)) -> Option<usize> {
        self.by_code.get(code).copied().flatten().filter(|_| lie == self.lie)
    }

    fn note(&mut self, (lie, code): (usize, usize), place: usize) {
        if lie != self.lie {
            self.by_code.clear();
            self.lie = lie;
        }
        if code < self.most {
            self.by_code.resize(self.by_code.len().max(code + 1), None);
        }
        if let Some(slot) = self.by_code.get_mut(code) {
            *slot = Some(place);
        }
    }
}

impl Groups {
    /// Counts a span; `known` is of the spans around it.
    pub(super) fn observe(
        &mut self,
        span: &impl SpanView,
        query: Context<'_>,
        memory: &mut Memory,
        known: &mut Places,
    ) {
        let Some(index) = query.intervals.of(span.start_ns()) else { return };
        match &query.leaf.measure {
            Measure::Count { .. } => {
                let place = self.place_of(span, query, memory, known);
                self.add(place, (index, f64::NAN), span, query, memory);
            }
            Measure::Histogram(field) => {
                let mut key = self.key_of(span, query);
                let labels_end = key.len();
                each(&span.field(field), &mut |value| {
                    let Some(bound) = bucket_bound(value) else { return };
                    key.truncate(labels_end);
                    write_key(&Value::Float(bound), &mut key);
                    let place = self.find(&key, Some(bound), span, query, memory);
                    self.add(place, (index, f64::NAN), span, query, memory);
                });
                self.key = key;
            }
            Measure::Min(field)
            | Measure::Max(field)
            | Measure::Sum(field)
            | Measure::Average(field)
            | Measure::Quantiles(field, _) => each(&span.field(field), &mut |value| {
                if let Some(number) = in_units(value) {
                    let place = self.place_of(span, query, memory, known);
                    self.add(place, (index, number), span, query, memory);
                }
            }),
        }
    }

    /// The series of a span, which is not that of a bucket. None if there is no memory for it.
    fn place_of(
        &mut self,
        span: &impl SpanView,
        query: Context<'_>,
        memory: &mut Memory,
        known: &mut Places,
    ) -> Option<usize> {
        let code = match query.leaf.by.as_slice() {
            [] => Some((0, 0)),
            [field] => span.code(field),
            _ => None,
        };
        if let Some(place) = code.and_then(|code| known.get(code)) {
            return Some(place);
        }
        let key = self.key_of(span, query);
        let place = self.find(&key, None, span, query, memory);
        self.key = key;
        if let (Some(code), Some(place)) = (code, place) {
            known.note(code, place);
        }
        place
    }

    /// What the labels of a span are found by. To be given back.
    fn key_of(&mut self, span: &impl SpanView, query: Context<'_>) -> Vec<u8> {
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        // Never empty: to compare nothing, which lies at no mapped address, takes some processors a hundred times as long as
        // to compare a byte.
        key.push(0);
        query.leaf.by.iter().for_each(|field| write_key(&span.field(field), &mut key));
        key
    }

    /// The series of a key. None if there is no memory for it.
    fn find(
        &mut self,
        key: &[u8],
        bucket: Option<f64>,
        span: &impl SpanView,
        query: Context<'_>,
        memory: &mut Memory,
    ) -> Option<usize> {
        if let Some(place) = self.places.get(key) {
            return Some(*place);
        }
        let labels = query.leaf.by.iter().map(|field| LabelValue::of(&span.field(field)));
        let labels = labels.chain(bucket.map(LabelValue::Float)).collect();
        let cells = Cells::new(&query.leaf.measure, query.intervals.count());
        self.insert(key, Group { labels, cells, exemplars: Exemplars::default() }, memory)
    }

    fn add(
        &mut self,
        place: Option<usize>,
        (index, number): (usize, f64),
        span: &impl SpanView,
        query: Context<'_>,
        memory: &mut Memory,
    ) {
        if let Some(group) = place.and_then(|place| self.series.get_mut(place)) {
            memory.note(group.cells.add(index, number));
            if let Some(spread) = query.exemplars {
                group.exemplars.offer(span, number, spread);
            }
        }
    }

    /// None if there is no memory for it.
    fn insert(&mut self, key: &[u8], group: Group, memory: &mut Memory) -> Option<usize> {
        memory.take(group.cells.bytes() + 2 * key.len() + size_of::<Group>())?;
        let place = self.series.len();
        self.series.push(group);
        self.places.insert(key.to_vec(), place);
        Some(place)
    }

    /// Adds what was counted of other spans for the same leaf.
    pub(super) fn merge(&mut self, other: Self, exemplars: Option<Spread>, memory: &mut Memory) {
        let mut theirs: Vec<_> = other.series.into_iter().map(Some).collect();
        let mut keys: Vec<_> = other.places.into_iter().collect();
        keys.sort_unstable_by_key(|(_, place)| *place);
        for (key, place) in keys {
            let Some(group) = theirs.get_mut(place).and_then(Option::take) else { continue };
            match self.places.get(&key).and_then(|place| self.series.get_mut(*place)) {
                Some(ours) => {
                    ours.cells.merge(&group.cells);
                    if let Some(spread) = exemplars {
                        ours.exemplars.merge(group.exemplars, spread);
                    }
                }
                None => _ = self.insert(&key, group, memory),
            }
        }
    }

    /// Rows of exemplars whose labels are not read yet.
    pub(super) fn rows(&self) -> BTreeSet<usize> {
        self.series.iter().flat_map(|group| group.exemplars.rows()).collect()
    }

    /// Tells exemplars the labels of the spans in rows.
    pub(super) fn settle(&mut self, labels: &HashMap<usize, Vec<Label>>, spread: Spread) {
        self.series.iter_mut().for_each(|group| group.exemplars.settle(labels, spread));
    }

    /// All series, in no order; of a count without labels always one, since nothing is a count too.
    pub(super) fn into_series(mut self, leaf: &LeafPlan, intervals: &Intervals) -> Vec<Group> {
        if self.series.is_empty() && leaf.by.is_empty() && matches!(leaf.measure, Measure::Count { .. }) {
            let cells = Cells::new(&leaf.measure, intervals.count());
            self.series.push(Group { labels: Vec::new(), cells, exemplars: Exemplars::default() });
        }
        self.series
    }
}

/// Shows the elements of a list, or the value itself.
fn each(value: &Value<'_>, visit: &mut dyn FnMut(&Value<'_>)) {
    match value {
        Value::List(values) => values.iter().for_each(|value| each(value, visit)),
        value => visit(value),
    }
}

/// As series show it: durations in seconds.
fn in_units(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Duration(nanos) => Some(*nanos as f64 / 1e9),
        value => value.number().filter(|number| !number.is_nan()),
    }
}

/// The power of two that is next above a number, of nanoseconds for a duration; then as series show it.
fn bucket_bound(value: &Value<'_>) -> Option<f64> {
    let whole = |number: i64| u64::try_from(number).unwrap_or_default().checked_next_power_of_two();
    match value {
        Value::Duration(nanos) => whole(*nanos).map(|bound| bound as f64 / 1e9),
        Value::Int(int) => whole(*int).map(|bound| bound as f64),
        Value::Float(float) if *float > 0.0 && float.is_finite() => Some(float.log2().ceil().exp2()),
        Value::Float(float) if *float <= 0.0 => Some(0.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing(Value::Int(0), Some(1.0))]
    #[case::one(Value::Int(1), Some(1.0))]
    #[case::power(Value::Int(8), Some(8.0))]
    #[case::above(Value::Int(9), Some(16.0))]
    #[case::negative(Value::Int(-9), Some(1.0))]
    #[case::duration(Value::Duration(200_000_000), Some(0.268_435_456))]
    #[case::fraction(Value::Float(0.3), Some(0.5))]
    #[case::float(Value::Float(8.0), Some(8.0))]
    #[case::negative_float(Value::Float(-0.5), Some(0.0))]
    #[case::no_number(Value::Float(f64::NAN), None)]
    #[case::text(Value::text("a".into()), None)]
    fn buckets_end_at_powers_of_two(#[case] value: Value<'_>, #[case] bound: Option<f64>) {
        assert_eq!(bucket_bound(&value), bound);
    }

    #[test]
    fn sums_keep_what_is_small() {
        let mut sum = Sum::default();
        for number in [1.0, 1e100, 1.0, -1e100] {
            sum.add(number);
        }
        assert_eq!(sum.total().to_bits(), 2f64.to_bits());
        assert!(Sum::default().total().is_nan());
    }

    proptest! {
        #[test]
        fn cells_merge_to_what_one_would_have_counted(
            numbers in prop::collection::vec((0usize..3, -1_000i32..1_000), 0..50), split in 0usize..50,
        ) {
            let field = || crate::traceql::parse_field("duration").unwrap();
            let measures = [
                Measure::Count { rate: false }, Measure::Min(field()), Measure::Max(field()), Measure::Sum(field()),
                Measure::Average(field()), Measure::Quantiles(field(), vec![0.5]),
            ];
            for measure in measures {
                let count = |numbers: &[(usize, i32)]| {
                    let mut cells = Cells::new(&measure, 3);
                    for (index, number) in numbers {
                        cells.add(*index, f64::from(*number));
                    }
                    cells
                };
                let (left, right) = numbers.split_at(split.min(numbers.len()));
                let mut merged = count(left);
                merged.merge(&count(right));
                let shown = |cells: &Cells| format!("{:?}{:?}", cells.values(), cells.sketches());
                prop_assert_eq!(shown(&merged), shown(&count(&numbers)));
            }
        }
    }
}
