//! Functions of PromQL.
#![expect(clippy::float_cmp, reason = "equal is what PromQL calls equal")]

use std::collections::BTreeMap;

use promql_parser::parser::Expr;

use super::aggregate::{quantile, sum};
use super::calendar::part_of_time;
use super::eval::{EvalError, Evaluator, Matrix, without_name};
use super::relabel::{absence, label_join, label_replace};
use super::{Labels, NAME, Sample, Samples, Value};

pub(super) fn call(
    evaluator: &mut Evaluator<'_>,
    name: &str,
    arguments: &[Box<Expr>],
    time: i64,
    depth: usize,
) -> Result<Value, EvalError> {
    let argument = |place: usize| {
        let missing = || EvalError::Matching(format!("{name}: an argument is missing"));
        arguments.get(place).map(|argument| &**argument).ok_or_else(missing)
    };
    let now = time as f64 / 1e3;
    Ok(match name {
        "time" => Value::Scalar(now),
        "pi" => Value::Scalar(std::f64::consts::PI),
        "vector" => {
            let value = evaluator.scalar(argument(0)?, time, depth)?;
            Value::Vector(vec![Sample { labels: Labels::new(), value }])
        }
        "scalar" => {
            let samples = evaluator.vector(argument(0)?, time, depth)?;
            let only = if samples.len() == 1 { samples.first() } else { None };
            Value::Scalar(only.map_or(f64::NAN, |sample| sample.value))
        }
        "histogram_quantile" => {
            let q = evaluator.scalar(argument(0)?, time, depth)?;
            Value::Vector(histogram_quantile(q, evaluator.vector(argument(1)?, time, depth)?))
        }
        "absent" => {
            let is_there = !evaluator.vector(argument(0)?, time, depth)?.is_empty();
            Value::Vector(if is_there { Vec::new() } else { vec![absence(argument(0)?)] })
        }
        "absent_over_time" => {
            let matrix = evaluator.range(argument(0)?, time, depth)?;
            let is_there = matrix.is_some_and(|matrix| !matrix.series.is_empty());
            Value::Vector(if is_there { Vec::new() } else { vec![absence(argument(0)?)] })
        }
        "label_replace" => {
            let samples = evaluator.vector(argument(0)?, time, depth)?;
            let [to, replacement, from, regex] = [1, 2, 3, 4].map(|place| text(arguments, place));
            Value::Vector(label_replace(samples, &to, &replacement, &from, &regex)?)
        }
        "label_join" => {
            let samples = evaluator.vector(argument(0)?, time, depth)?;
            let from: Vec<_> = (3..arguments.len()).map(|place| text(arguments, place)).collect();
            Value::Vector(label_join(samples, &text(arguments, 1), &text(arguments, 2), &from)?)
        }
        "timestamp" => Value::Vector(match argument(0)? {
            Expr::VectorSelector(selector) => evaluator.timestamps(selector, time)?,
            other => {
                let samples = evaluator.vector(other, time, depth)?;
                samples.into_iter().map(|sample| without_name(sample, |_| now)).collect()
            }
        }),
        _ if arguments.is_empty() => match part_of_time(name) {
            Some(part) => Value::Vector(vec![Sample { labels: Labels::new(), value: part(now) }]),
            None => return Err(EvalError::Unsupported(format!("{name}()"))),
        },
        _ => match range_place(arguments) {
            Some(place) => Value::Vector(of_range(evaluator, name, arguments, place, time, depth)?),
            None => Value::Vector(of_samples(evaluator, name, arguments, time, depth)?),
        },
    })
}

/// An argument that is a text.
fn text(arguments: &[Box<Expr>], place: usize) -> String {
    match arguments.get(place).map(|argument| &**argument) {
        Some(Expr::StringLiteral(text)) => text.val.clone(),
        Some(Expr::Paren(inner)) => text(std::slice::from_ref(&inner.expr), 0),
        _ => String::new(),
    }
}

/// Where among the arguments the range is.
fn range_place(arguments: &[Box<Expr>]) -> Option<usize> {
    arguments.iter().position(|argument| is_range(argument))
}

fn is_range(expression: &Expr) -> bool {
    match expression {
        Expr::MatrixSelector(_) | Expr::Subquery(_) => true,
        Expr::Paren(inner) => is_range(&inner.expr),
        _ => false,
    }
}

/// A function of the samples of each series within a range; its other arguments are numbers.
fn of_range(
    evaluator: &mut Evaluator<'_>,
    name: &str,
    arguments: &[Box<Expr>],
    place: usize,
    time: i64,
    depth: usize,
) -> Result<Vec<Sample>, EvalError> {
    let mut numbers = Vec::new();
    for (_, argument) in arguments.iter().enumerate().filter(|(other, _)| *other != place) {
        numbers.push(evaluator.scalar(argument, time, depth)?);
    }
    let range = arguments.get(place).map(|range| evaluator.range(range, time, depth)).transpose()?.flatten();
    let Some(Matrix { series, from, to }) = range else { return Ok(Vec::new()) };
    let window = Window { from, to, now: time };
    // What is not there is not there without data either: nothing would be a wrong answer.
    over_time(name, &numbers, &Samples::default(), window)?;
    let keeps_name = name == "last_over_time";
    let mut result = Vec::new();
    for (mut labels, samples) in series {
        if let Some(value) = over_time(name, &numbers, &samples, window)? {
            if !keeps_name {
                labels.remove(NAME);
            }
            result.push(Sample { labels, value });
        }
    }
    Ok(result)
}

/// A function of each sample for itself.
fn of_samples(
    evaluator: &mut Evaluator<'_>,
    name: &str,
    arguments: &[Box<Expr>],
    time: i64,
    depth: usize,
) -> Result<Vec<Sample>, EvalError> {
    let Some((first, rest)) = arguments.split_first() else { return Ok(Vec::new()) };
    let mut numbers = Vec::new();
    for argument in rest {
        numbers.push(evaluator.scalar(argument, time, depth)?);
    }
    let mut samples = evaluator.vector(first, time, depth)?;
    let number = |place: usize| numbers.get(place).copied();
    if let Some(part) = part_of_time(name) {
        return Ok(each(samples, part));
    }
    if let Some(compute) = of_one_number(name) {
        return Ok(each(samples, compute));
    }
    Ok(match name {
        "round" => {
            // Half way is up.
            let to = 1.0 / number(0).unwrap_or(1.0);
            each(samples, |value| (value * to + 0.5).floor() / to)
        }
        "clamp_min" => each(samples, |value| at_least(value, number(0).unwrap_or(f64::NAN))),
        "clamp_max" => each(samples, |value| at_most(value, number(0).unwrap_or(f64::NAN))),
        "clamp" => match (number(0), number(1)) {
            (Some(least), Some(most)) if most < least => Vec::new(),
            (least, most) => {
                each(samples, |value| at_least(at_most(value, most.unwrap_or(f64::NAN)), least.unwrap_or(f64::NAN)))
            }
        },
        "sort" | "sort_desc" => {
            samples.sort_by(|a, b| {
                let order = if name == "sort" { a.value.partial_cmp(&b.value) } else { b.value.partial_cmp(&a.value) };
                order.unwrap_or_else(|| a.value.is_nan().cmp(&b.value.is_nan()))
            });
            samples
        }
        other => return Err(EvalError::Unsupported(format!("{other}()"))),
    })
}

/// The larger one; no number if one is none.
fn at_least(value: f64, least: f64) -> f64 {
    if value.is_nan() || least.is_nan() { f64::NAN } else { value.max(least) }
}

/// The smaller one; no number if one is none.
fn at_most(value: f64, most: f64) -> f64 {
    if value.is_nan() || most.is_nan() { f64::NAN } else { value.min(most) }
}

fn each(samples: Vec<Sample>, compute: impl Fn(f64) -> f64) -> Vec<Sample> {
    samples.into_iter().map(|sample| without_name(sample, &compute)).collect()
}

fn of_one_number(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "ceil" => f64::ceil,
        "floor" => f64::floor,
        "sqrt" => f64::sqrt,
        "exp" => f64::exp,
        "ln" => f64::ln,
        "log2" => f64::log2,
        "log10" => f64::log10,
        "sgn" => |value| if value == 0.0 || value.is_nan() { value } else { value.signum() },
        "sin" => f64::sin,
        "cos" => f64::cos,
        "tan" => f64::tan,
        "asin" => f64::asin,
        "acos" => f64::acos,
        "atan" => f64::atan,
        "sinh" => f64::sinh,
        "cosh" => f64::cosh,
        "tanh" => f64::tanh,
        "asinh" => f64::asinh,
        "acosh" => f64::acosh,
        "atanh" => f64::atanh,
        "deg" => f64::to_degrees,
        "rad" => f64::to_radians,
        _ => return None,
    })
}

/// From when to when a range is, and when it is looked at: milliseconds since the epoch.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: i64,
    to: i64,
    now: i64,
}

/// A function of the samples of a series from one time to another.
fn over_time(name: &str, numbers: &[f64], samples: &Samples, window: Window) -> Result<Option<f64>, EvalError> {
    let Window { from, to, now } = window;
    let values = || samples.iter().map(|(_, value)| *value);
    let count = samples.len() as f64;
    let number = |place: usize| numbers.get(place).copied().unwrap_or(f64::NAN);
    Ok(match name {
        "rate" => extrapolated(samples, from, to, true).map(|increase| increase / ((to - from) as f64 / 1e3)),
        "increase" => extrapolated(samples, from, to, true),
        "delta" => extrapolated(samples, from, to, false),
        "irate" | "idelta" => match samples.as_slice() {
            [.., (before, first), (after, last)] => {
                let falls = name == "irate" && last < first;
                let difference = if falls { *last } else { last - first };
                Some(if name == "irate" { difference / ((after - before) as f64 / 1e3) } else { difference })
            }
            _ => None,
        },
        "resets" | "changes" => {
            let pairs = samples.iter().zip(samples.iter().skip(1));
            let counted = pairs.filter(|((_, a), (_, b))| if name == "resets" { b < a } else { a != b });
            Some(counted.count() as f64)
        }
        "sum_over_time" => Some(sum(values())),
        "avg_over_time" => Some(sum(values()) / count),
        "min_over_time" => Some(values().fold(f64::NAN, f64::min)),
        "max_over_time" => Some(values().fold(f64::NAN, f64::max)),
        "count_over_time" => Some(count),
        "present_over_time" => Some(1.0),
        "last_over_time" => values().next_back(),
        "quantile_over_time" => Some(quantile(number(0), values().collect())),
        "stddev_over_time" => Some(variance(values()).sqrt()),
        "stdvar_over_time" => Some(variance(values())),
        "deriv" => {
            let first = samples.first().map_or(0, |(time, _)| *time);
            line(samples, first).map(|(slope, _)| slope)
        }
        "predict_linear" => line(samples, now).map(|(slope, value)| slope * number(0) + value),
        "holt_winters" | "double_exponential_smoothing" => smoothed(samples, number(0), number(1))?,
        other => return Err(EvalError::Unsupported(format!("{other}() of a range"))),
    })
}

/// The mean of the squares of the distances from the mean.
fn variance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = sum(values.clone()) / count;
    sum(values.map(|value| (value - mean).powi(2))) / count
}

/// The line that is nearest to the samples: how it rises in a second, and its value at a time.
fn line(samples: &Samples, at: i64) -> Option<(f64, f64)> {
    let (_, first) = *samples.first()?;
    if samples.len() < 2 {
        return None;
    }
    if samples.iter().all(|(_, value)| *value == first) {
        return Some(if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) });
    }
    let count = samples.len() as f64;
    let points = || samples.iter().map(|(time, value)| ((time - at) as f64 / 1e3, *value));
    let [x, y, xy, xx] = [
        sum(points().map(|(x, _)| x)),
        sum(points().map(|(_, y)| y)),
        sum(points().map(|(x, y)| x * y)),
        sum(points().map(|(x, _)| x * x)),
    ];
    let slope = (xy - x * y / count) / (xx - x * x / count);
    Some((slope, y / count - slope * x / count))
}

/// Smoothed twice: the values, and how they rise.
fn smoothed(samples: &Samples, of_values: f64, of_trend: f64) -> Result<Option<f64>, EvalError> {
    for (what, factor) in [("smoothing", of_values), ("trend", of_trend)] {
        if factor <= 0.0 || factor >= 1.0 {
            return Err(EvalError::Matching(format!(
                "invalid {what} factor. Expected: 0 < {}f < 1, got: {factor:.6}",
                if what == "smoothing" { 's' } else { 't' }
            )));
        }
    }
    let [(_, first), (_, second), ..] = samples.as_slice() else { return Ok(None) };
    let (mut before, mut value, mut trend) = (0.0, *first, second - first);
    for (place, (_, sample)) in samples.iter().enumerate().skip(1) {
        if place > 1 {
            trend = of_trend * (value - before) + (1.0 - of_trend) * trend;
        }
        (before, value) = (value, of_values * sample + (1.0 - of_values) * (value + trend));
    }
    Ok(Some(value))
}

/// How much a series rose over the whole time, of which its samples may cover a part: as Prometheus takes it on to the ends.
fn extrapolated(samples: &Samples, from: i64, to: i64, is_counter: bool) -> Option<f64> {
    let ((first_time, first), (last_time, last)) = (*samples.first()?, *samples.last()?);
    if samples.len() < 2 {
        return None;
    }
    let mut rise = last - first;
    if is_counter {
        for ((_, before), (_, after)) in samples.iter().zip(samples.iter().skip(1)) {
            if after < before {
                rise += before;
            }
        }
    }
    let seconds = |millis: i64| millis as f64 / 1e3;
    let covered = seconds(last_time - first_time);
    let mean = covered / (samples.len() - 1) as f64;
    let mut to_start = seconds(first_time - from);
    let to_end = seconds(to - last_time);
    if is_counter && rise > 0.0 && first >= 0.0 {
        // It cannot have been below zero.
        to_start = to_start.min(covered * (first / rise));
    }
    let reach = mean * 1.1;
    let more = |gap: f64| if gap < reach { gap } else { mean / 2.0 };
    Some(rise * ((covered + more(to_start) + more(to_end)) / covered))
}

fn histogram_quantile(q: f64, samples: Vec<Sample>) -> Vec<Sample> {
    let mut histograms: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for Sample { mut labels, value } in samples {
        labels.remove(NAME);
        let Some(bound) = labels.remove("le").and_then(|le| le.parse::<f64>().ok()) else { continue };
        histograms.entry(labels).or_default().push((bound, value));
    }
    histograms.into_iter().map(|(labels, buckets)| Sample { labels, value: bucket_quantile(q, buckets) }).collect()
}

/// Within a bucket values are taken to lie evenly.
fn bucket_quantile(q: f64, mut buckets: Vec<(f64, f64)>) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets.dedup_by(|later, first| {
        let same = later.0 == first.0;
        if same {
            first.1 += later.1;
        }
        same
    });
    // Rates of different buckets are rounded each for itself.
    let mut most = 0.0_f64;
    for (_, count) in &mut buckets {
        most = most.max(*count);
        *count = most;
    }
    let (Some((last_bound, total)), true) = (buckets.last().copied(), buckets.len() >= 2) else { return f64::NAN };
    if last_bound != f64::INFINITY || total == 0.0 || total.is_nan() {
        return f64::NAN;
    }
    let rank = q * total;
    let finite = buckets.len() - 1;
    let place = buckets.iter().take(finite).position(|(_, count)| *count >= rank).unwrap_or(finite);
    let before = place.checked_sub(1).and_then(|place| buckets.get(place)).copied();
    if place == finite {
        return before.map_or(f64::NAN, |(bound, _)| bound);
    }
    let Some((end, up_to)) = buckets.get(place).copied() else { return f64::NAN };
    match before {
        None if end <= 0.0 => end,
        None => end * (rank / up_to),
        Some((begin, below)) => begin + (end - begin) * ((rank - below) / (up_to - below)),
    }
}
