//! Functions of PromQL.
#![expect(clippy::float_cmp, reason = "equal is what PromQL calls equal")]

use std::collections::BTreeMap;

use promql_parser::parser::Expr;

use super::aggregate::{quantile, sum};
use super::eval::{EvalError, Evaluator, Matrix, without_name};
use super::{Labels, NAME, Sample, Samples, Value};

pub(super) fn call(
    evaluator: &mut Evaluator<'_>,
    name: &str,
    arguments: &[Box<Expr>],
    time: i64,
    depth: usize,
) -> Result<Value, EvalError> {
    let missing = || EvalError::Matching(format!("{name}: an argument is missing"));
    let argument = |place: usize| arguments.get(place).map(|argument| &**argument).ok_or_else(missing);
    let now = time as f64 / 1e3;
    match name {
        "time" => return Ok(Value::Scalar(now)),
        "vector" => {
            let value = evaluator.scalar(argument(0)?, time, depth)?;
            return Ok(Value::Vector(vec![Sample { labels: Labels::new(), value }]));
        }
        "scalar" => {
            let samples = evaluator.vector(argument(0)?, time, depth)?;
            let only = if samples.len() == 1 { samples.first() } else { None };
            return Ok(Value::Scalar(only.map_or(f64::NAN, |sample| sample.value)));
        }
        "histogram_quantile" => {
            let q = evaluator.scalar(argument(0)?, time, depth)?;
            let samples = evaluator.vector(argument(1)?, time, depth)?;
            return Ok(Value::Vector(histogram_quantile(q, samples)));
        }
        _ => {}
    }
    if let Some(Expr::MatrixSelector(selector)) = arguments.last().map(|argument| &**argument) {
        let q = match arguments {
            [q, _] => Some(evaluator.scalar(q, time, depth)?),
            _ => None,
        };
        let Matrix { series, from, to } = evaluator.matrix(selector, time)?;
        // What is not there is not there without data either: nothing would be a wrong answer.
        over_time(name, q, &Samples::default(), from, to)?;
        let keeps_name = name == "last_over_time";
        let mut result = Vec::new();
        for (mut labels, samples) in series {
            if let Some(value) = over_time(name, q, &samples, from, to)? {
                if !keeps_name {
                    labels.remove(NAME);
                }
                result.push(Sample { labels, value });
            }
        }
        return Ok(Value::Vector(result));
    }
    let mut samples = evaluator.vector(argument(0)?, time, depth)?;
    let each = |samples: Vec<Sample>, compute: &dyn Fn(f64) -> f64| {
        Ok(Value::Vector(samples.into_iter().map(|sample| without_name(sample, compute)).collect()))
    };
    match name {
        "abs" => each(samples, &f64::abs),
        "ceil" => each(samples, &f64::ceil),
        "floor" => each(samples, &f64::floor),
        "sqrt" => each(samples, &f64::sqrt),
        "ln" => each(samples, &f64::ln),
        "log2" => each(samples, &f64::log2),
        "log10" => each(samples, &f64::log10),
        "exp" => each(samples, &f64::exp),
        "round" => {
            let to = if arguments.len() > 1 { evaluator.scalar(argument(1)?, time, depth)? } else { 1.0 };
            // Half way is up.
            each(samples, &|value| (value * (1.0 / to) + 0.5).floor() / (1.0 / to))
        }
        "clamp_min" => {
            let least = evaluator.scalar(argument(1)?, time, depth)?;
            each(samples, &|value| value.max(least))
        }
        "clamp_max" => {
            let most = evaluator.scalar(argument(1)?, time, depth)?;
            each(samples, &|value| value.min(most))
        }
        "sort" | "sort_desc" => {
            samples.sort_by(|a, b| {
                let order = if name == "sort" { a.value.partial_cmp(&b.value) } else { b.value.partial_cmp(&a.value) };
                order.unwrap_or_else(|| a.value.is_nan().cmp(&b.value.is_nan()))
            });
            Ok(Value::Vector(samples))
        }
        other => Err(EvalError::Unsupported(format!("{other}()"))),
    }
}

/// A function of the samples of a series from one time to another.
fn over_time(name: &str, q: Option<f64>, samples: &Samples, from: i64, to: i64) -> Result<Option<f64>, EvalError> {
    let values = || samples.iter().map(|(_, value)| *value);
    let count = samples.len() as f64;
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
        "quantile_over_time" => Some(quantile(q.unwrap_or(f64::NAN), values().collect())),
        other => return Err(EvalError::Unsupported(format!("{other}() of a range"))),
    })
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
