//! From an expression to its values.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use promql_parser::label::{Matcher, Matchers};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{
    AtModifier, Expr, Function, MatrixSelector, Offset, SubqueryExpr, VectorSelector, parse, register_extra_functions,
};

use super::history::{History, Labels, STALE, Samples};
use super::{NAME, Sample, Value, aggregate, binary, functions};

/// How old a sample may be that still counts, milliseconds.
const LOOKBACK_MS: i64 = 5 * 60_000;

/// Time between two moments of a subquery that does not say it, milliseconds: Prometheus' own.
const DEFAULT_STEP_MS: i64 = 60_000;

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

/// Whether the parser knows the name.
static HOLT_WINTERS: Once = Once::new();

/// The parser knows it as later versions call it.
fn know_holt_winters() {
    let arguments = vec![ValueType::Matrix, ValueType::Scalar, ValueType::Scalar];
    let function = Function::new("holt_winters", arguments, 0, ValueType::Vector, false);
    // It fails only for a name that is known.
    let _known = register_extra_functions(vec![function]);
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
    HOLT_WINTERS.call_once(know_holt_winters);
    let expression = parse(query).map_err(EvalError::Parse)?;
    let (fetched, subqueries) = (HashMap::new(), HashMap::new());
    let mut evaluator = Evaluator { history, tenant, query: range, range, fetched, subqueries, samples: 0 };
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
    /// The moments of the whole query,
    query: Range,
    /// and those of the subquery that is evaluated.
    range: Range,
    /// By the place of the selector in the expression.
    fetched: HashMap<*const VectorSelector, Fetched>,
    subqueries: HashMap<*const SubqueryExpr, Fetched>,
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
                other @ (Value::Text(_) | Value::Matrix(_)) => other,
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
            Expr::Call(call) => {
                let value = functions::call(self, call.func.name, &call.args.args, time, depth)?;
                if let Value::Vector(samples) = &value {
                    all_different(samples)?;
                }
                Ok(value)
            }
            Expr::MatrixSelector(_) | Expr::Subquery(_) => {
                let series = self.range(expression, time, depth)?.map(|matrix| matrix.series);
                Ok(Value::Matrix(series.unwrap_or_default()))
            }
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

    /// The samples of an expression that is a range; none if it is not.
    pub(super) fn range(&mut self, expression: &Expr, time: i64, depth: usize) -> Result<Option<Matrix>, EvalError> {
        match expression {
            Expr::MatrixSelector(selector) => self.matrix(selector, time).map(Some),
            Expr::Subquery(subquery) => self.subquery(subquery, time, depth).map(Some),
            Expr::Paren(inner) => self.range(&inner.expr, time, depth),
            _ => Ok(None),
        }
    }

    /// The values of an expression at the moments within a range.
    fn subquery(&mut self, subquery: &SubqueryExpr, time: i64, depth: usize) -> Result<Matrix, EvalError> {
        let moved = |time| shifted(subquery.at.as_ref(), subquery.offset.as_ref(), time, self.query);
        let (range, to) = (millis(subquery.range), moved(time)?);
        let from = to.saturating_sub(range);
        let place: *const SubqueryExpr = subquery;
        if !self.subqueries.contains_key(&place) {
            // At multiples of the step, whatever the moments of the query are.
            let step = subquery.step.map_or(DEFAULT_STEP_MS, millis).max(1);
            let first = moved(self.range.start)?.saturating_sub(range);
            let start = first.div_euclid(step) * step;
            let start = if start < first { start.saturating_add(step) } else { start };
            let inner = Range { start, end: moved(self.range.end)?, step };
            let outer = std::mem::replace(&mut self.range, inner);
            // What was fetched is for the moments outside.
            let fetched = std::mem::take(&mut self.fetched);
            let values = self.series(&subquery.expr, inner, depth);
            (self.range, self.fetched) = (outer, fetched);
            self.subqueries.insert(place, Arc::new(values?));
        }
        let series = self.subqueries.get(&place).map(Arc::clone).unwrap_or_default();
        Ok(Matrix { series: within(&series, from, to), from, to })
    }

    /// The values of an expression as series.
    fn series(&mut self, expression: &Expr, range: Range, depth: usize) -> Result<Vec<(Labels, Samples)>, EvalError> {
        let mut series: BTreeMap<Labels, Samples> = BTreeMap::new();
        for time in range.times() {
            let samples = match self.value(expression, time, depth)? {
                Value::Scalar(value) => vec![Sample { labels: Labels::new(), value }],
                Value::Vector(samples) => samples,
                _ => return Err(EvalError::Matching("expected an instant vector in a subquery".to_owned())),
            };
            self.samples += samples.len();
            if self.samples > MAX_SAMPLES {
                return Err(EvalError::TooManySamples);
            }
            for sample in samples {
                series.entry(sample.labels).or_default().push((time, sample.value));
            }
        }
        Ok(series.into_iter().collect())
    }

    /// Of each series when its sample is of.
    pub(super) fn timestamps(&mut self, selector: &VectorSelector, time: i64) -> Result<Vec<Sample>, EvalError> {
        let found = self.newest(selector, time)?.into_iter();
        let times = found.map(|(labels, sampled, _)| Sample { labels, value: sampled as f64 / 1e3 });
        Ok(times.map(|sample| without_name(sample, |time| time)).collect())
    }

    fn instant(&mut self, selector: &VectorSelector, time: i64) -> Result<Vec<Sample>, EvalError> {
        let found = self.newest(selector, time)?.into_iter();
        Ok(found.map(|(labels, _, value)| Sample { labels, value }).collect())
    }

    /// The sample of each series that counts at a time, and its own time.
    fn newest(&mut self, selector: &VectorSelector, time: i64) -> Result<Vec<(Labels, i64, f64)>, EvalError> {
        let at = self.moved(selector, time)?;
        let fetched = self.fetch(selector, LOOKBACK_MS)?;
        let found = fetched.iter().filter_map(|(labels, samples)| {
            let (sampled, value) = last_until(samples, at)?;
            let fresh = sampled > at - LOOKBACK_MS && value.to_bits() != STALE.to_bits();
            fresh.then(|| (labels.clone(), sampled, value))
        });
        Ok(found.collect())
    }

    /// The moment that a selector means.
    fn moved(&self, selector: &VectorSelector, time: i64) -> Result<i64, EvalError> {
        shifted(selector.at.as_ref(), selector.offset.as_ref(), time, self.query)
    }

    /// The samples of each series within a range, and from when to when it is.
    pub(super) fn matrix(&mut self, selector: &MatrixSelector, time: i64) -> Result<Matrix, EvalError> {
        let to = self.moved(&selector.vs, time)?;
        let range = millis(selector.range);
        let fetched = self.fetch(&selector.vs, range)?;
        let from = to.saturating_sub(range);
        Ok(Matrix { series: within(&fetched, from, to), from, to })
    }

    /// All samples that a selector may need at any of the moments.
    fn fetch(&mut self, selector: &VectorSelector, back: i64) -> Result<Fetched, EvalError> {
        let place: *const VectorSelector = selector;
        if let Some(fetched) = self.fetched.get(&place) {
            return Ok(Arc::clone(fetched));
        }
        let from = self.moved(selector, self.range.start)?.saturating_sub(back);
        let to = self.moved(selector, self.range.end)?;
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

/// The samples from one time to another, of the series that have some.
fn within(series: &[(Labels, Samples)], from: i64, to: i64) -> Vec<(Labels, Samples)> {
    let found = series.iter().filter_map(|(labels, samples)| {
        let begin = samples.partition_point(|(time, _)| *time < from);
        let end = samples.partition_point(|(time, _)| *time <= to);
        let samples = samples.get(begin..end)?.iter().copied();
        let samples: Samples = samples.filter(|(_, value)| value.to_bits() != STALE.to_bits()).collect();
        (!samples.is_empty()).then(|| (labels.clone(), samples))
    });
    found.collect()
}

/// Fails if two samples have the same labels.
fn all_different(samples: &[Sample]) -> Result<(), EvalError> {
    let mut labels: Vec<_> = samples.iter().map(|sample| &sample.labels).collect();
    labels.sort_unstable();
    if labels.array_windows().any(|[one, next]| one == next) {
        let same = "vector cannot contain metrics with the same labelset";
        return Err(EvalError::Matching(same.to_owned()));
    }
    Ok(())
}

/// The moment that is meant by a time, with `@` and `offset` behind the expression.
fn shifted(at: Option<&AtModifier>, offset: Option<&Offset>, time: i64, query: Range) -> Result<i64, EvalError> {
    let at = match at {
        None => time,
        Some(AtModifier::Start) => query.start,
        Some(AtModifier::End) => query.end,
        Some(AtModifier::At(at)) => {
            since_epoch(*at).ok_or_else(|| EvalError::Unsupported("times before 1970".to_owned()))?
        }
    };
    Ok(match offset {
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
