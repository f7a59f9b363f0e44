//! From the tree of a metrics query to something that can be run.

use super::compare;
use crate::query::expr::Expr;
use crate::query::parent::is_of_parent;
use crate::query::plan::{Plan, PlanError, is_nested};
use crate::query::scan::Wanted;
use crate::query::value::Value;
use crate::traceql::{
    BinaryOp, Field, Hint, Literal, MetricsExpr, MetricsFunction, MetricsQuery, Query, QueryBody, SecondStage,
};

/// Most fields in `by(…)`.
const MAX_BY: usize = 5;

/// A metrics query, compiled.
#[derive(Clone, Debug)]
pub struct MetricsPlan {
    pub(super) leaves: Vec<LeafPlan>,
    pub(super) root: Node,
    pub(super) needs_nested: bool,
    /// Whether parents are looked at.
    pub(super) needs_parents: bool,
    /// Whether rates and counts are of traces, as the hint `traces` asks for, not of spans.
    pub(super) counts_traces: bool,
    /// What the hint `exemplars` asks for.
    pub(super) exemplars: Option<usize>,
}

/// Spans turned into series: `{ … } | rate() by(…)`.
#[derive(Clone, Debug)]
pub(super) struct LeafPlan {
    pub(super) spans: Plan,
    pub(super) measure: Measure,
    pub(super) by: Vec<Field>,
    /// `rate`.
    pub(super) name: &'static str,
    pub(super) compare: Option<ComparePlan>,
}

/// What is measured on spans.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Measure {
    /// How many there are; per second for a rate.
    Count {
        rate: bool,
    },
    Min(Field),
    Max(Field),
    Sum(Field),
    Average(Field),
    Histogram(Field),
    Quantiles(Field, Vec<f64>),
}

/// `compare(…)`.
#[derive(Clone, Debug)]
pub(super) struct ComparePlan {
    pub(super) filter: Expr,
    pub(super) top: usize,
    /// Start and end of the selection, nanoseconds since the epoch; the end is excluded.
    pub(super) range: Option<(u64, u64)>,
}

/// What is done with the series.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Index into the leaves.
    Leaf(usize),
    /// A constant; durations are in seconds.
    Number(f64),
    Binary {
        op: BinaryOp,
        left: Box<Node>,
        right: Box<Node>,
    },
    /// Of every interval only the largest values, or only the smallest ones.
    Top {
        most: usize,
        largest: bool,
        of: Box<Node>,
    },
    Filter {
        op: BinaryOp,
        bound: f64,
        of: Box<Node>,
    },
}

impl MetricsPlan {
    /// Plans a metrics query; none if the query asks for spans.
    pub fn new(query: &Query) -> Result<Option<Self>, PlanError> {
        let QueryBody::Metrics(expr) = &query.body else { return Ok(None) };
        let mut plan = Self {
            leaves: Vec::new(),
            root: Node::Number(f64::NAN),
            needs_nested: false,
            needs_parents: false,
            counts_traces: query.hints.iter().any(|hint| hint.name == "traces" && hint.value == Literal::Bool(true)),
            exemplars: exemplars_hint(&query.hints),
        };
        plan.root = plan.node(expr)?;
        if plan.leaves.iter().any(|leaf| leaf.compare.is_some()) && !matches!(plan.root, Node::Leaf(_)) {
            return Err(PlanError::Unsupported("a second stage, or arithmetic, on compare()".to_owned()));
        }
        let counts = |leaf: &LeafPlan| leaf.compare.is_none() && matches!(leaf.measure, Measure::Count { .. });
        if plan.counts_traces && !plan.leaves.iter().all(counts) {
            let what = "the hint traces for anything but rate() and count_over_time()";
            return Err(PlanError::Unsupported(what.to_owned()));
        }
        plan.needs_parents = plan.wanted().fields.iter().any(is_of_parent);
        Ok(Some(plan))
    }

    /// What is looked at on a span, besides its start.
    pub(super) fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for leaf in &self.leaves {
            leaf.spans.referenced.iter().chain(&leaf.by).for_each(|field| wanted.add(field));
            match &leaf.measure {
                Measure::Count { .. } => {}
                Measure::Min(of)
                | Measure::Max(of)
                | Measure::Sum(of)
                | Measure::Average(of)
                | Measure::Histogram(of)
                | Measure::Quantiles(of, _) => wanted.add(of),
            }
            if let Some(compare) = &leaf.compare {
                let mut fields = Vec::new();
                compare.filter.fields(&mut fields);
                for field in fields {
                    wanted.add(field);
                }
                compare::INTRINSICS.map(Field::Intrinsic).iter().for_each(|field| wanted.add(field));
                wanted.every_attribute = true;
            }
        }
        wanted
    }

    fn node(&mut self, expr: &MetricsExpr) -> Result<Node, PlanError> {
        if let Some(constant) = constant(expr) {
            return Ok(Node::Number(constant.number().unwrap_or(f64::NAN)));
        }
        Ok(match expr {
            MetricsExpr::Query(query) => self.leaf(query)?,
            MetricsExpr::Literal(literal) => Node::Number(number(literal)),
            MetricsExpr::Binary { op, left, right } => {
                Node::Binary { op: *op, left: Box::new(self.node(left)?), right: Box::new(self.node(right)?) }
            }
            MetricsExpr::Second(inner, stage) => {
                let of = Box::new(self.node(inner)?);
                let most = |count: i64| usize::try_from(count).unwrap_or_default();
                match stage {
                    SecondStage::TopK(count) => Node::Top { most: most(*count), largest: true, of },
                    SecondStage::BottomK(count) => Node::Top { most: most(*count), largest: false, of },
                    SecondStage::Filter(op, bound) => Node::Filter { op: *op, bound: number(bound), of },
                }
            }
        })
    }

    fn leaf(&mut self, query: &MetricsQuery) -> Result<Node, PlanError> {
        let spans = Plan::of_stages(&query.stages)?;
        let (name, measure, of) = match &query.function {
            MetricsFunction::Rate => ("rate", Measure::Count { rate: true }, None),
            MetricsFunction::CountOverTime => ("count_over_time", Measure::Count { rate: false }, None),
            MetricsFunction::MinOverTime(of) => ("min_over_time", Measure::Min(of.clone()), Some(of)),
            MetricsFunction::MaxOverTime(of) => ("max_over_time", Measure::Max(of.clone()), Some(of)),
            MetricsFunction::AvgOverTime(of) => ("avg_over_time", Measure::Average(of.clone()), Some(of)),
            MetricsFunction::SumOverTime(of) => ("sum_over_time", Measure::Sum(of.clone()), Some(of)),
            MetricsFunction::HistogramOverTime(of) => ("histogram_over_time", Measure::Histogram(of.clone()), Some(of)),
            MetricsFunction::QuantileOverTime(of, parts) => {
                ("quantile_over_time", Measure::Quantiles(of.clone(), parts.clone()), Some(of))
            }
            MetricsFunction::Compare { .. } => ("compare", Measure::Count { rate: false }, None),
        };
        // The bucket takes the place of one.
        let bucketed = matches!(measure, Measure::Histogram(_) | Measure::Quantiles(..));
        if query.by.len() > MAX_BY - usize::from(bucketed) {
            return Err(PlanError::Unsupported(format!("metrics group by {} values", query.by.len())));
        }
        self.needs_nested |= spans.needs_nested || query.by.iter().chain(of).any(is_nested);
        let compare = match &query.function {
            MetricsFunction::Compare { filter, top, range } => {
                self.needs_nested |= Plan::of_filter(filter)?.needs_nested;
                let nanos = |time: i64| u64::try_from(time).unwrap_or_default();
                let range = range.map(|(start, end)| (nanos(start), nanos(end))).filter(|(_, end)| *end > 0);
                let top = usize::try_from(*top).unwrap_or_default();
                Some(ComparePlan { filter: Expr::compile(filter)?, top, range })
            }
            _ => None,
        };
        self.leaves.push(LeafPlan { spans, measure, by: query.by.clone(), name, compare });
        Ok(Node::Leaf(self.leaves.len() - 1))
    }
}

/// Arithmetic between constants only: integers stay integers, as in `2 / 4`, which is 0.
fn constant(expr: &MetricsExpr) -> Option<Value<'_>> {
    match expr {
        MetricsExpr::Literal(literal @ Literal::Duration(_)) => Some(Value::Float(number(literal))),
        MetricsExpr::Literal(literal) => Some(Value::constant(literal)),
        MetricsExpr::Binary { op, left, right } => Some(constant(left)?.arithmetic(*op, &constant(right)?)),
        MetricsExpr::Query(_) | MetricsExpr::Second(..) => None,
    }
}

/// A constant in the units of series: durations are in seconds.
fn number(literal: &Literal) -> f64 {
    match literal {
        Literal::Duration(nanos) => *nanos as f64 / 1e9,
        literal => Value::constant(literal).number().unwrap_or(f64::NAN),
    }
}

/// `exemplars=50`, `exemplars=false`. Other values say nothing, other hints change nothing: results are exact already.
fn exemplars_hint(hints: &[Hint]) -> Option<usize> {
    hints.iter().filter(|hint| hint.name == "exemplars").find_map(|hint| match hint.value {
        Literal::Int(count) => usize::try_from(count).ok(),
        Literal::Bool(false) => Some(0),
        _ => None,
    })
}
