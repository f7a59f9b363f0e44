//! From the tree of a query to something that can be run.

use std::collections::HashSet;

use thiserror::Error;

use super::expr::Expr;
use super::parent::is_of_parent;
use crate::traceql::{
    Aggregate, AggregateFunction, BinaryOp, Field, FieldExpr, Intrinsic, Literal, MetricsExpr, Query, QueryBody,
    ScalarExpr, ScalarFilter, SpansetExpr, SpansetOp, Stage,
};

/// Why a query that can be read cannot be run. The asker's fault, or rather ours.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PlanError {
    /// A part of the language that is not evaluated.
    #[error("{0} not yet supported")]
    Unsupported(String),
}

/// A search, compiled: regular expressions, what it needs of a trace, what it shows of a span.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) stages: Vec<PlannedStage>,
    /// Fields that conditions look at, in order, each once: shown where they are set.
    pub(super) referenced: Vec<Field>,
    /// Fields of `select()`: always shown.
    pub(super) selected: Vec<Field>,
    pub(super) needs_nested: bool,
    /// Whether it looks at parents: then it must be run on [`WithParent`](super::parent::WithParent)s.
    pub(super) needs_parents: bool,
}

#[derive(Clone, Debug)]
pub(super) enum PlannedStage {
    Spansets(PlannedSpansets),
    Scalar { aggregate: PlannedAggregate, op: BinaryOp, bound: Literal },
    By { key: String, expr: Expr },
    Coalesce,
}

#[derive(Clone, Debug)]
pub(super) enum PlannedSpansets {
    Filter(Expr),
    Binary { op: SpansetOp, left: Box<PlannedSpansets>, right: Box<PlannedSpansets> },
    Pipeline(Vec<PlannedStage>),
}

#[derive(Clone, Debug)]
pub(super) struct PlannedAggregate {
    /// As the answer names it: `count()`.
    pub(super) key: String,
    pub(super) function: AggregateFunction,
    /// None for `count()` only.
    pub(super) argument: Option<Expr>,
}

impl Plan {
    /// Plans a search. Of a metrics query, the spans that it would count are searched, as Tempo does.
    ///
    /// Hints need no planning: results are always the newest and always complete.
    pub fn new(query: &Query) -> Result<Self, PlanError> {
        let stages = match &query.body {
            QueryBody::Spans(stages) => stages,
            QueryBody::Metrics(MetricsExpr::Query(metrics)) => &metrics.stages,
            QueryBody::Metrics(metrics) => return Err(PlanError::Unsupported(format!("a search for ({metrics})"))),
        };
        Self::of_stages(stages)
    }

    /// Plans `{ filter }`.
    pub fn of_filter(filter: &FieldExpr) -> Result<Self, PlanError> {
        Self::of_stages(&[Stage::Spansets(SpansetExpr::Filter(filter.clone()))])
    }

    /// Plans one expression between spansets.
    pub fn of_spansets(expr: SpansetExpr) -> Result<Self, PlanError> {
        Self::of_stages(&[Stage::Spansets(expr)])
    }

    /// Whether it judges each span without looking at the others.
    pub(super) fn is_of_spans(&self) -> bool {
        !self.needs_parents
            && self.stages.iter().all(|stage| matches!(stage, PlannedStage::Spansets(PlannedSpansets::Filter(_))))
    }

    pub(super) fn of_stages(stages: &[Stage]) -> Result<Self, PlanError> {
        let mut planner = Planner::default();
        let stages = planner.stages(stages)?;
        let (referenced, selected) = (planner.referenced.list, planner.selected.list);
        let needs_parents = referenced.iter().chain(&selected).any(is_of_parent);
        Ok(Self { stages, referenced, selected, needs_nested: planner.needs_nested, needs_parents })
    }
}

#[derive(Default)]
struct Planner {
    referenced: Fields,
    selected: Fields,
    needs_nested: bool,
}

impl Planner {
    fn stages(&mut self, stages: &[Stage]) -> Result<Vec<PlannedStage>, PlanError> {
        let mut planned = Vec::with_capacity(stages.len());
        for stage in stages {
            planned.push(match stage {
                Stage::Spansets(expr) => PlannedStage::Spansets(self.spansets(expr)?),
                Stage::Scalar(filter) => self.scalar(filter)?,
                Stage::By(expr) => PlannedStage::By { key: stage.to_string(), expr: self.expr(expr)? },
                Stage::Coalesce => PlannedStage::Coalesce,
                Stage::Select(fields) => {
                    for field in fields {
                        self.look_at(field);
                        self.selected.add(field);
                    }
                    continue;
                }
            });
        }
        Ok(planned)
    }

    fn spansets(&mut self, expr: &SpansetExpr) -> Result<PlannedSpansets, PlanError> {
        Ok(match expr {
            SpansetExpr::Filter(filter) => PlannedSpansets::Filter(self.expr(filter)?),
            SpansetExpr::Binary { op, left, right } => {
                self.needs_nested |= !matches!(op, SpansetOp::And | SpansetOp::Or);
                let (left, right) = (Box::new(self.spansets(left)?), Box::new(self.spansets(right)?));
                PlannedSpansets::Binary { op: *op, left, right }
            }
            SpansetExpr::Pipeline(stages) => PlannedSpansets::Pipeline(self.stages(stages)?),
        })
    }

    fn scalar(&mut self, filter: &ScalarFilter) -> Result<PlannedStage, PlanError> {
        let (ScalarExpr::Aggregate(aggregate), ScalarExpr::Literal(bound)) = (&filter.left, &filter.right) else {
            return Err(PlanError::Unsupported(format!("scalar filter ({filter})")));
        };
        let Aggregate { function, argument } = aggregate;
        let argument = argument.as_ref().map(|argument| self.expr(argument)).transpose()?;
        let key = aggregate.to_string();
        let aggregate = PlannedAggregate { key, function: *function, argument };
        Ok(PlannedStage::Scalar { aggregate, op: filter.op, bound: bound.clone() })
    }

    fn expr(&mut self, expr: &FieldExpr) -> Result<Expr, PlanError> {
        self.reference(expr);
        Expr::compile(expr)
    }

    fn reference(&mut self, expr: &FieldExpr) {
        match expr {
            FieldExpr::Literal(_) => {}
            FieldExpr::Field(field) => {
                self.look_at(field);
                self.referenced.add(field);
            }
            FieldExpr::All(list) | FieldExpr::Any(list) => list.iter().for_each(|item| self.reference(item)),
            FieldExpr::Binary { left, right, .. } => {
                self.reference(left);
                self.reference(right);
            }
            FieldExpr::Not(inner) | FieldExpr::Negate(inner) | FieldExpr::Exists(inner) | FieldExpr::Missing(inner) => {
                self.reference(inner);
            }
        }
    }

    fn look_at(&mut self, field: &Field) {
        self.needs_nested |= is_nested(field);
    }
}

/// Whether a field is known only when the spans of a trace are numbered.
pub(super) fn is_nested(field: &Field) -> bool {
    is_of_parent(field)
        || matches!(
            field,
            Field::Intrinsic(
                Intrinsic::NestedSetLeft
                    | Intrinsic::NestedSetRight
                    | Intrinsic::NestedSetParent
                    | Intrinsic::ChildCount
            )
        )
}

/// Fields in order, each once.
#[derive(Default)]
struct Fields {
    list: Vec<Field>,
    known: HashSet<Field>,
}

impl Fields {
    fn add(&mut self, field: &Field) {
        if self.known.insert(field.clone()) {
            self.list.push(field.clone());
        }
    }
}
