//! `sum by (…) (…)` and its kin.

use std::collections::BTreeMap;

use promql_parser::parser::LabelModifier;

use super::eval::EvalError;
use super::relabel::is_label;
use super::{Labels, NAME, Sample, Value};

pub(super) fn aggregate(
    operator: &str,
    modifier: Option<&LabelModifier>,
    parameter: Option<&Value>,
    samples: Vec<Sample>,
) -> Result<Vec<Sample>, EvalError> {
    let mut groups: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
    for sample in samples {
        groups.entry(group_of(&sample.labels, modifier)).or_default().push(sample);
    }
    let number = match parameter {
        Some(Value::Scalar(number)) => Some(*number),
        Some(Value::Text(label)) if operator == "count_values" => return count_values(label, groups),
        Some(_) => return Err(EvalError::Unsupported(format!("{operator} with a parameter that is no number"))),
        None => None,
    };
    let mut result = Vec::new();
    for (labels, samples) in groups {
        let values = || samples.iter().map(|sample| sample.value);
        let count = samples.len() as f64;
        let value = match operator {
            "sum" => sum(values()),
            "avg" => sum(values()) / count,
            "count" => count,
            "group" => 1.0,
            "min" => values().fold(f64::NAN, f64::min),
            "max" => values().fold(f64::NAN, f64::max),
            "stddev" | "stdvar" => {
                let mean = sum(values()) / count;
                let variance = sum(values().map(|value| (value - mean).powi(2))) / count;
                if operator == "stddev" { variance.sqrt() } else { variance }
            }
            "quantile" => quantile(number.unwrap_or(f64::NAN), values().collect()),
            "topk" | "bottomk" => {
                result.extend(first(operator == "topk", number.unwrap_or_default(), samples));
                continue;
            }
            other => return Err(EvalError::Unsupported(other.to_owned())),
        };
        result.push(Sample { labels, value });
    }
    Ok(result)
}

/// How many samples have each value, which becomes a label.
fn count_values(label: &str, groups: BTreeMap<Labels, Vec<Sample>>) -> Result<Vec<Sample>, EvalError> {
    if !is_label(label) {
        return Err(EvalError::Matching(format!("invalid label name {label:?}")));
    }
    let mut counts: BTreeMap<Labels, f64> = BTreeMap::new();
    for (labels, samples) in groups {
        for sample in samples {
            let mut labels = labels.clone();
            labels.insert(label.to_owned(), shown(sample.value));
            *counts.entry(labels).or_default() += 1.0;
        }
    }
    Ok(counts.into_iter().map(|(labels, value)| Sample { labels, value }).collect())
}

/// A number as Prometheus writes it.
pub(super) fn shown(value: f64) -> String {
    if value.is_infinite() { if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned() } else { value.to_string() }
}

fn group_of(labels: &Labels, modifier: Option<&LabelModifier>) -> Labels {
    match modifier {
        None => Labels::new(),
        Some(LabelModifier::Include(names)) => {
            let kept = names.labels.iter().filter_map(|name| labels.get_key_value(name));
            kept.map(|(name, value)| (name.clone(), value.clone())).collect()
        }
        Some(LabelModifier::Exclude(names)) => {
            let left = labels.iter().filter(|(name, _)| *name != NAME && !names.labels.contains(name));
            left.map(|(name, value)| (name.clone(), value.clone())).collect()
        }
    }
}

/// The `k` largest or smallest; what is no number comes last.
fn first(largest: bool, k: f64, mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.sort_by(|a, b| {
        let order = if largest { b.value.partial_cmp(&a.value) } else { a.value.partial_cmp(&b.value) };
        order.unwrap_or_else(|| a.value.is_nan().cmp(&b.value.is_nan()))
    });
    samples.truncate(if k >= 1.0 { k as usize } else { 0 });
    samples
}

/// With what rounding takes from small numbers beside large ones.
pub(super) fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0_f64);
    for value in values {
        let new = sum + value;
        if new.is_infinite() {
            lost = 0.0;
        } else if sum.abs() >= value.abs() {
            lost += (sum - new) + value;
        } else {
            lost += (value - new) + sum;
        }
        sum = new;
    }
    sum + lost
}

/// Between the values around the place; none of no values.
pub(super) fn quantile(q: f64, mut values: Vec<f64>) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan())));
    let rank = q * (values.len() - 1) as f64;
    let lower = rank.floor();
    let at = |place: f64| values.get((place as usize).min(values.len() - 1)).copied().unwrap_or(f64::NAN);
    let weight = rank - lower;
    at(lower) * (1.0 - weight) + at(lower + 1.0) * weight
}
