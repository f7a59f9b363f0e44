//! Whole series, and what can be done with them.

use std::collections::BTreeMap;

use super::exemplar::Exemplar;
use super::groups::Group;
use super::intervals::Intervals;
use super::label::{Label, LabelValue};
use super::plan::{LeafPlan, Measure};
use super::sketch::Sketch;
use crate::query::value::Value;
use crate::traceql::BinaryOp;

/// The label that names a series that has no other one.
const NAME: &str = "__name__";

/// Numbers over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What tells it from others.
    pub labels: Vec<Label>,
    /// One for each interval; not a number where there is none.
    pub values: Vec<f64>,
    /// By start.
    pub exemplars: Vec<Exemplar>,
}

impl Series {
    pub(super) fn new(labels: Vec<Label>, values: Vec<f64>) -> Self {
        Self { labels, values, exemplars: Vec::new() }
    }

    /// Labels without the name.
    fn identity(&self) -> Vec<&Label> {
        self.labels.iter().filter(|(name, _)| name != NAME).collect()
    }

    fn name(&self) -> Option<&str> {
        self.labels.iter().find_map(|label| match label {
            (name, LabelValue::Text(text)) if name == NAME => Some(text.as_str()),
            _ => None,
        })
    }
}

/// The series of one leaf from what was counted for it.
pub(super) fn finish_group(group: Group, leaf: &LeafPlan, intervals: &Intervals) -> Vec<Series> {
    let Group { labels: label_values, cells, exemplars } = group;
    let names = leaf.by.iter().map(ToString::to_string);
    let is_histogram = matches!(leaf.measure, Measure::Histogram(_));
    let names = names.chain(is_histogram.then(|| "__bucket".to_owned()));
    let all: Vec<Label> = names.zip(label_values).collect();
    let first = all.first().cloned();
    let mut labels: Vec<Label> = all.into_iter().filter(|(_, value)| *value != LabelValue::Nil).collect();
    let exemplars = exemplars.into_sorted();
    if let Measure::Quantiles(_, parts) = &leaf.measure {
        return quantiles(&labels, cells.sketches(), parts, exemplars);
    }
    if labels.is_empty() {
        // A missing value is shown when it is all there is to show.
        labels.push(first.unwrap_or_else(|| (NAME.to_owned(), LabelValue::text(leaf.name))));
    }
    let mut values = cells.values();
    if leaf.measure == (Measure::Count { rate: true }) {
        let seconds = intervals.step_seconds();
        for value in &mut values {
            *value /= seconds;
        }
    }
    vec![Series { labels, values, exemplars }]
}

/// One series for each part. An exemplar stands for the quantile that it is nearest to.
fn quantiles(labels: &[Label], cells: &[Sketch], parts: &[f64], exemplars: Vec<Exemplar>) -> Vec<Series> {
    let mut series: Vec<Series> = parts
        .iter()
        .map(|part| {
            let part_label = ("p".to_owned(), LabelValue::Float(*part));
            let labels = labels.iter().cloned().chain([part_label]).collect();
            Series::new(labels, cells.iter().map(|cell| cell.quantile(*part).unwrap_or(f64::NAN)).collect())
        })
        .collect();
    let mut whole = Sketch::default();
    for cell in cells {
        whole.merge(cell);
    }
    let quantiles: Vec<f64> = parts.iter().map(|part| whole.quantile(*part).unwrap_or(f64::NAN)).collect();
    for exemplar in exemplars {
        let distance = |quantile: f64| (quantile - exemplar.value).abs();
        let nearest = quantiles.iter().enumerate().min_by(|(_, a), (_, b)| distance(**a).total_cmp(&distance(**b)));
        if let Some(series) = nearest.and_then(|(index, _)| series.get_mut(index)) {
            series.exemplars.push(exemplar);
        }
    }
    series
}

/// Keeps of every interval the largest or the smallest values; of equal ones, those whose labels come first.
pub(super) fn top(mut series: Vec<Series>, most: usize, largest: bool) -> Vec<Series> {
    sort(&mut series);
    let intervals = series.iter().map(|series| series.values.len()).max().unwrap_or_default();
    for index in 0..intervals {
        let mut values: Vec<(usize, f64)> = series
            .iter()
            .enumerate()
            .filter_map(|(place, series)| Some((place, *series.values.get(index)?)))
            .filter(|(_, value)| !value.is_nan())
            .collect();
        values.sort_by(|(_, a), (_, b)| if largest { b.total_cmp(a) } else { a.total_cmp(b) });
        for (place, _) in values.into_iter().skip(most) {
            if let Some(value) = series.get_mut(place).and_then(|series| series.values.get_mut(index)) {
                *value = f64::NAN;
            }
        }
    }
    series
}

/// Keeps values for which `value op bound` is true.
pub(super) fn filter(mut series: Vec<Series>, op: BinaryOp, bound: f64) -> Vec<Series> {
    let bound = Value::Float(bound);
    for value in series.iter_mut().flat_map(|series| &mut series.values) {
        if !Value::Float(*value).compare(op, &bound) {
            *value = f64::NAN;
        }
    }
    series
}

/// One side of arithmetic.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Series(Vec<Series>),
    Number(f64),
}

/// Series of the same labels are combined, value by value; one without labels, or a number, with every series of the
/// other side. What has no partner is left away.
pub(super) fn combine(op: BinaryOp, left: Operand, right: Operand) -> Operand {
    let (left, right) = match (left, right) {
        (Operand::Number(a), Operand::Number(b)) => return Operand::Number(calculate(op, a, b)),
        (Operand::Series(series), Operand::Number(number)) => {
            return Operand::Series(with_number(
                series,
                |name| format!("({name} {} {number})", op.sign()),
                |value| calculate(op, value, number),
            ));
        }
        (Operand::Number(number), Operand::Series(series)) => {
            return Operand::Series(with_number(
                series,
                |name| format!("({number} {} {name})", op.sign()),
                |value| calculate(op, number, value),
            ));
        }
        (Operand::Series(left), Operand::Series(right)) => (left, right),
    };
    let by_labels = |side: &[Series]| -> BTreeMap<Vec<Label>, Series> {
        side.iter().map(|series| (series.identity().into_iter().cloned().collect(), series.clone())).collect()
    };
    let (left, right) = (by_labels(&left), by_labels(&right));
    let plain: Vec<Label> = Vec::new();
    // The side with labels says which series there are.
    let keys: Vec<_> = if right.contains_key(&plain) { left.keys() } else { right.keys() }.cloned().collect();
    let partner = |side: &BTreeMap<Vec<Label>, Series>, key: &Vec<Label>| -> Option<Series> {
        side.get(key).or_else(|| side.get(&plain)).cloned()
    };
    let both = keys.iter().filter_map(|key| Some((partner(&left, key)?, partner(&right, key)?)));
    Operand::Series(both.map(|(a, b)| combine_two(op, a, &b)).collect())
}

fn combine_two(op: BinaryOp, a: Series, b: &Series) -> Series {
    let name = a.name().zip(b.name()).map(|(a, b)| format!("({a} {} {b})", op.sign()));
    let mut labels: Vec<Label> = a.identity().into_iter().cloned().collect();
    for label in b.identity() {
        if !labels.iter().any(|(name, _)| *name == label.0) {
            labels.push(label.clone());
        }
    }
    if let Some(name) = name {
        labels.insert(0, (NAME.to_owned(), LabelValue::Text(name)));
    }
    let values = a.values.iter().zip(&b.values).map(|(a, b)| calculate(op, *a, *b)).collect();
    // A span that counts for both stands for their result, whose value it has not itself.
    let mut exemplars: Vec<Exemplar> = a.exemplars.into_iter().chain(b.exemplars.iter().cloned()).collect();
    exemplars.sort_by(|a, b| (a.start_ns, &a.labels).cmp(&(b.start_ns, &b.labels)));
    exemplars.dedup_by(|a, b| a.start_ns == b.start_ns && a.labels == b.labels);
    for exemplar in &mut exemplars {
        exemplar.value = f64::NAN;
    }
    Series { labels, values, exemplars }
}

fn with_number(mut series: Vec<Series>, name: impl Fn(&str) -> String, calculate: impl Fn(f64) -> f64) -> Vec<Series> {
    for series in &mut series {
        let renamed = series.name().map(&name);
        if let (Some(renamed), Some((_, value))) = (renamed, series.labels.iter_mut().find(|(name, _)| name == NAME)) {
            *value = LabelValue::Text(renamed);
        }
        series.values.iter_mut().for_each(|value| *value = calculate(*value));
        series.exemplars.iter_mut().for_each(|exemplar| exemplar.value = f64::NAN);
    }
    series
}

/// Not a number if a side is none, or for a division by zero.
fn calculate(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div if b != 0.0 => a / b,
        _ => f64::NAN,
    }
}

/// Puts series in the order of answers: those with fewer labels first, then by labels.
pub(super) fn sort(series: &mut [Series]) {
    series.sort_by(|a, b| a.labels.len().cmp(&b.labels.len()).then_with(|| a.labels.cmp(&b.labels)));
}

/// Gives exemplars whose value is that of the whole series this value; those of intervals without one go.
pub(super) fn settle_exemplars(series: &mut Series, intervals: &Intervals) {
    let values = &series.values;
    series.exemplars.retain_mut(|exemplar| {
        let value = intervals.of(exemplar.start_ns).and_then(|index| values.get(index)).copied().unwrap_or(f64::NAN);
        if exemplar.value.is_nan() {
            exemplar.value = value;
        }
        !value.is_nan()
    });
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NAN: f64 = f64::NAN;

    fn series(labels: &[(&str, &str)], values: &[f64]) -> Series {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), LabelValue::text(value))).collect();
        Series::new(labels, values.to_vec())
    }

    fn shown(operand: Operand) -> Vec<String> {
        let Operand::Series(series) = operand else { panic!("a number") };
        let label = |(name, value): &Label| match value {
            LabelValue::Text(text) => format!("{name}={text}"),
            value => format!("{name}={value:?}"),
        };
        let line = |series: &Series| {
            format!("{} {:?}", series.labels.iter().map(label).collect::<Vec<_>>().join(","), series.values)
        };
        series.iter().map(line).collect()
    }

    #[test]
    fn same_labels_are_combined_and_what_has_no_partner_goes() {
        let left = vec![series(&[("a", "x")], &[1.0, 2.0, NAN]), series(&[("a", "y")], &[1.0, 1.0, 1.0])];
        let right = vec![series(&[("a", "x")], &[4.0, 0.0, 1.0]), series(&[("a", "z")], &[1.0, 1.0, 1.0])];
        let combined = combine(BinaryOp::Div, Operand::Series(left), Operand::Series(right));
        assert_eq!(shown(combined), ["a=x [0.25, NaN, NaN]"]);
    }

    #[rstest]
    #[case::right(false, ["a=x [2.0]", "a=y [4.0]"])]
    #[case::left(true, ["a=x [0.5]", "a=y [0.25]"])]
    fn a_series_without_labels_goes_with_every_other(#[case] swapped: bool, #[case] expected: [&str; 2]) {
        let labelled = Operand::Series(vec![series(&[("a", "x")], &[4.0]), series(&[("a", "y")], &[8.0])]);
        let plain = Operand::Series(vec![series(&[(NAME, "rate")], &[2.0])]);
        let (left, right) = if swapped { (plain, labelled) } else { (labelled, plain) };
        assert_eq!(shown(combine(BinaryOp::Div, left, right)), expected);
    }

    #[test]
    fn names_tell_what_was_done() {
        let plain = |name| Operand::Series(vec![series(&[(NAME, name)], &[6.0])]);
        let quotient = combine(BinaryOp::Div, plain("count_over_time"), plain("rate"));
        let scaled = combine(BinaryOp::Mul, Operand::Number(0.5), quotient);
        assert_eq!(shown(scaled), ["__name__=(0.5 * (count_over_time / rate)) [0.5]"]);
    }

    #[test]
    fn the_top_is_chosen_for_every_interval() {
        let all = || {
            vec![
                series(&[("a", "x")], &[1.0, 5.0, 3.0]),
                series(&[("a", "y")], &[2.0, NAN, 3.0]),
                series(&[("a", "z")], &[3.0, 1.0, 3.0]),
            ]
        };
        let top = |largest| shown(Operand::Series(top(all(), 1, largest)));
        assert_eq!(top(true), ["a=x [NaN, 5.0, 3.0]", "a=y [NaN, NaN, NaN]", "a=z [3.0, NaN, NaN]"]);
        assert_eq!(top(false), ["a=x [1.0, NaN, 3.0]", "a=y [NaN, NaN, NaN]", "a=z [NaN, 1.0, NaN]"]);
    }

    #[test]
    fn filters_keep_values() {
        let kept = filter(vec![series(&[], &[1.0, 2.0, 3.0, NAN])], BinaryOp::NotEq, 2.0);
        assert_eq!(shown(Operand::Series(kept)), [" [1.0, NaN, 3.0, NaN]"]);
    }
}
