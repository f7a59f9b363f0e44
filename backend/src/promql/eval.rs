//! From an expression to its values.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use promql_parser::label::{Matcher, Matchers};
use promql_parser::parser::{AtModifier, Expr, MatrixSelector, Offset, VectorSelector, parse};

use super::history::{History, Labels, STALE, Samples};
use super::{NAME, Sample, Value, aggregate, binary, functions};

/// How old a sample may be that still counts, milliseconds.
const LOOKBACK_MS: i64 = 5 * 60_000;

/// Longest query.
pub const MAX_QUERY_BYTES: usize = 16 << 10;

/// Deepest expression.
const MAX_DEPTH: usize = 100;

/// Samples that one query may load.
const MAX_SAMPLES: usize = 20_000_000;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// It is no PromQL.
    #[error("invalid parameter \"query\": {0}")]
    Parse(String),
    /// It is longer than is read.
    #[error("invalid parameter \"query\": longer than {MAX_QUERY_BYTES} bytes")]
    TooLong,
    /// It is nested too deep.
    #[error("expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// It would take too much memory.
    #[error("query processing would load too many samples into memory in query execution")]
    TooManySamples,
    /// Prometheus knows it, Coati does not.
    #[error("not supported by Coati: {0}; send the metrics to Prometheus for this")]
    Unsupported(String),
    /// The series do not fit together.
    #[error("{0}")]
    Matching(String),
}

/// Moments at which an expression is evaluated, milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first.
    pub start: i64,
    /// None is later.
    pub end: i64,
    /// Time between two, at least 1.
    pub step: i64,
}

impl Range {
    /// One moment.
    pub const fn instant(time: i64) -> Self {
        Self { start: time, end: time, step: 1 }
    }

    fn times(self) -> impl Iterator<Item = i64> {
        let Self { start, end, step } = self;
        std::iter::successors(Some(start), move |time| time.checked_add(step)).take_while(move |time| *time <= end)
    }
}

/// The values of a query at each moment.
pub fn evaluate(history: &History, tenant: &str, query: &str, range: Range) -> Result<Vec<(i64, Value)>, EvalError> {
    if query.len() > MAX_QUERY_BYTES {
        return Err(EvalError::TooLong);
    }
    let expression = parse(query).map_err(EvalError::Parse)?;
    let mut evaluator = Evaluator { history, tenant, range, fetched: HashMap::new(), samples: 0 };
    range.times().map(|time| Ok((time, evaluator.value(&expression, time, 0)?))).collect()
}

/// Whether labels pass the matchers of a selector.
pub(super) fn passes(name: Option<&str>, matchers: &Matchers, labels: &Labels) -> bool {
    let of = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    let pass = |matchers: &[Matcher]| matchers.iter().all(|matcher| matcher.is_match(of(&matcher.name)));
    let or = &matchers.or_matchers;
    name.is_none_or(|name| of(NAME) == name)
        && pass(&matchers.matchers)
        && (or.is_empty() || or.iter().any(|matchers| pass(matchers)))
}

type Fetched = Arc<Vec<(Labels, Samples)>>;

/// Samples from one time to another.
pub(super) struct Matrix {
    pub(super) series: Vec<(Labels, Samples)>,
    pub(super) from: i64,
    pub(super) to: i64,
}

pub(super) struct Evaluator<'a> {
    history: &'a History,
    tenant: &'a str,
    range: Range,
    /// By the place of the selector in the expression.
    fetched: HashMap<*const VectorSelector, Fetched>,
    samples: usize,
}

impl Evaluator<'_> {
    pub(super) fn value(&mut self, expression: &Expr, time: i64, depth: usize) -> Result<Value, EvalError> {
        if depth > MAX_DEPTH {
            return Err(EvalError::TooDeep);
        }
        let depth = depth + 1;
        match expression {
            Expr::NumberLiteral(number) => Ok(Value::Scalar(number.val)),
            Expr::StringLiteral(text) => Ok(Value::Text(text.val.clone())),
            Expr::Paren(inner) => self.value(&inner.expr, time, depth),
            Expr::Unary(inner) => Ok(match self.value(&inner.expr, time, depth)? {
                Value::Scalar(value) => Value::Scalar(-value),
                Value::Vector(samples) => {
                    Value::Vector(samples.into_iter().map(|sample| without_name(sample, |v| -v)).collect())
                }
                text @ Value::Text(_) => text,
            }),
            Expr::VectorSelector(selector) => self.instant(selector, time).map(Value::Vector),
            Expr::Aggregate(inner) => {
                let samples = self.vector(&inner.expr, time, depth)?;
                let parameter = inner.param.as_ref().map(|parameter| self.value(parameter, time, depth)).transpose()?;
                aggregate::aggregate(&inner.op.to_string(), inner.modifier.as_ref(), parameter.as_ref(), samples)
                    .map(Value::Vector)
            }
            Expr::Binary(inner) => {
                let left = self.value(&inner.lhs, time, depth)?;
                let right = self.value(&inner.rhs, time, depth)?;
                binary::binary(&inner.op.to_string(), inner.modifier.as_ref(), left, right)
            }
            Expr::Call(call) => functions::call(self, call.func.name, &call.args.args, time, depth),
            Expr::MatrixSelector(_) => Err(EvalError::Unsupported("a range without a function".to_owned())),
            Expr::Subquery(_) => Err(EvalError::Unsupported("subqueries".to_owned())),
            Expr::Extension(_) => Err(EvalError::Unsupported("extensions".to_owned())),
        }
    }

    /// The value of an expression that must be a vector.
    pub(super) fn vector(&mut self, expression: &Expr, time: i64, depth: usize) -> Result<Vec<Sample>, EvalError> {
        match self.value(expression, time, depth)? {
            Value::Vector(samples) => Ok(samples),
            _ => Err(EvalError::Matching("expected an instant vector".to_owned())),
        }
    }

    /// The value of an expression that must be a scalar.
    pub(super) fn scalar(&mut self, expression: &Expr, time: i64, depth: usize) -> Result<f64, EvalError> {
        match self.value(expression, time, depth)? {
            Value::Scalar(value) => Ok(value),
            _ => Err(EvalError::Matching("expected a scalar".to_owned())),
        }
    }

    fn instant(&mut self, selector: &VectorSelector, time: i64) -> Result<Vec<Sample>, EvalError> {
        let at = shifted(selector, time, self.range)?;
        let fetched = self.fetch(selector, LOOKBACK_MS)?;
        let found = fetched.iter().filter_map(|(labels, samples)| {
            let (sampled, value) = last_until(samples, at)?;
            let fresh = sampled > at - LOOKBACK_MS && value.to_bits() != STALE.to_bits();
            fresh.then(|| Sample { labels: labels.clone(), value })
        });
        Ok(found.collect())
    }

    /// The samples of each series within a range, and from when to when it is.
    pub(super) fn matrix(&mut self, selector: &MatrixSelector, time: i64) -> Result<Matrix, EvalError> {
        let end = shifted(&selector.vs, time, self.range)?;
        let range = millis(selector.range);
        let fetched = self.fetch(&selector.vs, range)?;
        let found = fetched.iter().filter_map(|(labels, samples)| {
            let from = samples.partition_point(|(time, _)| *time < end - range);
            let to = samples.partition_point(|(time, _)| *time <= end);
            let samples = samples.get(from..to)?.iter().copied();
            let samples: Samples = samples.filter(|(_, value)| value.to_bits() != STALE.to_bits()).collect();
            (!samples.is_empty()).then(|| (labels.clone(), samples))
        });
        Ok(Matrix { series: found.collect(), from: end - range, to: end })
    }

    /// All samples that a selector may need at any of the moments.
    fn fetch(&mut self, selector: &VectorSelector, back: i64) -> Result<Fetched, EvalError> {
        let place: *const VectorSelector = selector;
        if let Some(fetched) = self.fetched.get(&place) {
            return Ok(Arc::clone(fetched));
        }
        let from = shifted(selector, self.range.start, self.range)?.saturating_sub(back);
        let to = shifted(selector, self.range.end, self.range)?;
        let pass = |labels: &Labels| passes(selector.name.as_deref(), &selector.matchers, labels);
        let fetched = Arc::new(self.history.select(self.tenant, from, to, pass));
        self.samples += fetched.iter().map(|(_, samples)| samples.len()).sum::<usize>();
        if self.samples > MAX_SAMPLES {
            return Err(EvalError::TooManySamples);
        }
        self.fetched.insert(place, Arc::clone(&fetched));
        Ok(fetched)
    }
}

fn last_until(samples: &[(i64, f64)], time: i64) -> Option<(i64, f64)> {
    let end = samples.partition_point(|(sampled, _)| *sampled <= time);
    samples.get(end.checked_sub(1)?).copied()
}

/// The moment that a selector means.
fn shifted(selector: &VectorSelector, time: i64, range: Range) -> Result<i64, EvalError> {
    let at = match &selector.at {
        None => time,
        Some(AtModifier::Start) => range.start,
        Some(AtModifier::End) => range.end,
        Some(AtModifier::At(at)) => {
            since_epoch(*at).ok_or_else(|| EvalError::Unsupported("times before 1970".to_owned()))?
        }
    };
    Ok(match &selector.offset {
        None => at,
        Some(Offset::Pos(offset)) => at.saturating_sub(millis(*offset)),
        Some(Offset::Neg(offset)) => at.saturating_add(millis(*offset)),
    })
}

fn since_epoch(time: SystemTime) -> Option<i64> {
    time.duration_since(UNIX_EPOCH).ok().map(millis)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

/// A sample of which something was computed: it is not the metric any more.
pub(super) fn without_name(mut sample: Sample, compute: impl FnOnce(f64) -> f64) -> Sample {
    sample.labels.remove(NAME);
    sample.value = compute(sample.value);
    sample
}
