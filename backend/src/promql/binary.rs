//! Operators between two expressions.
#![expect(clippy::float_cmp, reason = "equal is what PromQL calls equal")]

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{BinModifier, LabelModifier, VectorMatchCardinality};

use super::eval::EvalError;
use super::{Labels, NAME, Sample, Value};

pub(super) fn binary(
    operator: &str,
    modifier: Option<&BinModifier>,
    left: Value,
    right: Value,
) -> Result<Value, EvalError> {
    let as_bool = modifier.is_some_and(|modifier| modifier.return_bool);
    let compares = matches!(operator, "==" | "!=" | ">" | "<" | ">=" | "<=");
    let one = |sample: Sample, left: f64, right: f64| -> Result<Option<Sample>, EvalError> {
        let kept = sample.value;
        let result = compute(operator, left, right)?;
        Ok(match (compares, as_bool) {
            (true, false) => (result == 1.0).then_some(Sample { value: kept, ..sample }),
            _ => Some(Sample { labels: without_name(sample.labels), value: result }),
        })
    };
    Ok(match (left, right) {
        (Value::Scalar(left), Value::Scalar(right)) => Value::Scalar(compute(operator, left, right)?),
        (Value::Vector(samples), Value::Scalar(right)) => {
            let computed = samples.into_iter().map(|sample| {
                let left = sample.value;
                one(sample, left, right)
            });
            Value::Vector(computed.filter_map(Result::transpose).collect::<Result<_, _>>()?)
        }
        (Value::Scalar(left), Value::Vector(samples)) => {
            let computed = samples.into_iter().map(|sample| {
                let right = sample.value;
                one(sample, left, right)
            });
            Value::Vector(computed.filter_map(Result::transpose).collect::<Result<_, _>>()?)
        }
        (Value::Vector(left), Value::Vector(right)) => match operator {
            "and" | "or" | "unless" => Value::Vector(set(operator, modifier, left, right)),
            _ => Value::Vector(vectors(operator, modifier, compares && !as_bool, left, right)?),
        },
        _ => return Err(EvalError::Matching("operators are for numbers".to_owned())),
    })
}

fn compute(operator: &str, left: f64, right: f64) -> Result<f64, EvalError> {
    let truth = |truth: bool| f64::from(u8::from(truth));
    Ok(match operator {
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left / right,
        "%" => left % right,
        "^" => left.powf(right),
        "atan2" => left.atan2(right),
        "==" => truth(left == right),
        "!=" => truth(left != right),
        ">" => truth(left > right),
        "<" => truth(left < right),
        ">=" => truth(left >= right),
        "<=" => truth(left <= right),
        other => return Err(EvalError::Unsupported(other.to_owned())),
    })
}

fn without_name(mut labels: Labels) -> Labels {
    labels.remove(NAME);
    labels
}

/// The labels by which series find each other.
fn signature(labels: &Labels, modifier: Option<&BinModifier>) -> Labels {
    let matching = modifier.and_then(|modifier| modifier.matching.as_ref());
    let kept = labels.iter().filter(|(name, _)| match matching {
        None => *name != NAME,
        Some(LabelModifier::Include(names)) => names.labels.contains(name),
        Some(LabelModifier::Exclude(names)) => *name != NAME && !names.labels.contains(name),
    });
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn set(operator: &str, modifier: Option<&BinModifier>, left: Vec<Sample>, right: Vec<Sample>) -> Vec<Sample> {
    let signatures = |samples: &[Sample]| -> BTreeSet<Labels> {
        samples.iter().map(|sample| signature(&sample.labels, modifier)).collect()
    };
    if operator == "or" {
        let known = signatures(&left);
        let more = right.into_iter().filter(|sample| !known.contains(&signature(&sample.labels, modifier)));
        return left.into_iter().chain(more).collect();
    }
    let others = signatures(&right);
    let wanted = operator == "and";
    left.into_iter().filter(|sample| others.contains(&signature(&sample.labels, modifier)) == wanted).collect()
}

fn vectors(
    operator: &str,
    modifier: Option<&BinModifier>,
    filters: bool,
    left: Vec<Sample>,
    right: Vec<Sample>,
) -> Result<Vec<Sample>, EvalError> {
    let card = modifier.map(|modifier| &modifier.card);
    let (swapped, include) = match card {
        Some(VectorMatchCardinality::OneToMany(labels)) => (true, Some(labels)),
        Some(VectorMatchCardinality::ManyToOne(labels)) => (false, Some(labels)),
        _ => (false, None),
    };
    let (many, one) = if swapped { (right, left) } else { (left, right) };
    let mut ones: BTreeMap<Labels, Sample> = BTreeMap::new();
    for sample in one {
        if ones.insert(signature(&sample.labels, modifier), sample).is_some() {
            let side = if swapped { "left" } else { "right" };
            return Err(EvalError::Matching(format!(
                "found duplicate series for the match group on the {side} hand-side of the operation; many-to-many matching not allowed: matching labels must be unique on one side"
            )));
        }
    }
    let (mut result, mut seen) = (Vec::new(), BTreeSet::new());
    for sample in many {
        let signature = signature(&sample.labels, modifier);
        let Some(other) = ones.get(&signature) else { continue };
        let (a, b) = if swapped { (other.value, sample.value) } else { (sample.value, other.value) };
        let computed = compute(operator, a, b)?;
        if filters && computed != 1.0 {
            continue;
        }
        // Of a comparison the left side stays.
        let value = if filters { a } else { computed };
        let mut labels = if filters { sample.labels } else { without_name(sample.labels) };
        if let Some(names) = include {
            for name in &names.labels {
                match other.labels.get(name).filter(|value| !value.is_empty()) {
                    Some(value) => labels.insert(name.clone(), value.clone()),
                    None => labels.remove(name),
                };
            }
        } else {
            if modifier.is_some_and(|modifier| modifier.matching.is_some()) {
                labels.retain(|name, _| signature.contains_key(name));
            }
            if !seen.insert(signature) {
                return Err(EvalError::Matching(
                    "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
                        .to_owned(),
                ));
            }
        }
        result.push(Sample { labels, value });
    }
    Ok(result)
}
