//! Functions that change labels, or say that there are none.

use std::collections::BTreeSet;

use promql_parser::label::{MatchOp, Matchers};
use promql_parser::parser::Expr;
use regex::Regex;

use super::eval::EvalError;
use super::{Labels, NAME, Sample};

/// `label_replace`: what the expression matches of one label makes another one.
pub(super) fn label_replace(
    samples: Vec<Sample>,
    to: &str,
    replacement: &str,
    from: &str,
    regex: &str,
) -> Result<Vec<Sample>, EvalError> {
    let compiled = Regex::new(&format!("^(?s:{regex})$"));
    let compiled =
        compiled.map_err(|_| EvalError::Matching(format!("invalid regular expression in label_replace(): {regex}")))?;
    if !is_label(to) {
        return Err(EvalError::Matching(format!("invalid destination label name in label_replace(): {to}")));
    }
    let replaced = samples.into_iter().map(|mut sample| {
        let value = sample.labels.get(from).map(String::as_str).unwrap_or_default();
        if let Some(found) = compiled.captures(value) {
            let mut text = String::new();
            found.expand(replacement, &mut text);
            set(&mut sample.labels, to, text);
        }
        sample
    });
    Ok(replaced.collect())
}

/// `label_join`: the values of labels, joined.
pub(super) fn label_join(
    samples: Vec<Sample>,
    to: &str,
    separator: &str,
    from: &[String],
) -> Result<Vec<Sample>, EvalError> {
    if let Some(name) = from.iter().find(|name| !is_label(name)) {
        return Err(EvalError::Matching(format!("invalid source label name in label_join(): {name}")));
    }
    if !is_label(to) {
        return Err(EvalError::Matching(format!("invalid destination label name in label_join(): {to}")));
    }
    let joined = samples.into_iter().map(|mut sample| {
        let value = |name: &String| sample.labels.get(name).map(String::as_str).unwrap_or_default();
        let text = from.iter().map(value).collect::<Vec<_>>().join(separator);
        set(&mut sample.labels, to, text);
        sample
    });
    Ok(joined.collect())
}

/// The sample that stands for series that are not there: with the labels that they would have.
pub(super) fn absence(expression: &Expr) -> Sample {
    let matchers = match expression {
        Expr::VectorSelector(selector) => &selector.matchers,
        Expr::MatrixSelector(selector) => &selector.vs.matchers,
        Expr::Paren(inner) => return absence(&inner.expr),
        _ => &Matchers::empty(),
    };
    let mut labels = Labels::new();
    let mut twice = BTreeSet::new();
    for matcher in matchers.matchers.iter().filter(|matcher| matcher.name != NAME) {
        let is_new = matcher.op == MatchOp::Equal && !labels.contains_key(&matcher.name);
        if is_new && !twice.contains(&matcher.name) {
            labels.insert(matcher.name.clone(), matcher.value.clone());
        } else {
            labels.remove(&matcher.name);
            twice.insert(matcher.name.clone());
        }
    }
    Sample { labels, value: 1.0 }
}

/// A label without a value is one that is not there.
fn set(labels: &mut Labels, name: &str, value: String) {
    if value.is_empty() {
        labels.remove(name);
    } else {
        labels.insert(name.to_owned(), value);
    }
}

/// Whether it can be the name of a label.
pub(super) fn is_label(name: &str) -> bool {
    let letter = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    name.starts_with(letter) && name.chars().all(|each| letter(each) || each.is_ascii_digit())
}
