//! Expressions, ready to be evaluated on one span after another.

use regex::Regex;

use super::plan::PlanError;
use super::span::SpanView;
use super::value::Value;
use crate::traceql::{BinaryOp, Field, FieldExpr, Intrinsic, Literal, regex_of};

/// A [`FieldExpr`] whose regular expressions are compiled.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    Constant(Literal),
    Field(Field),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Compare { op: BinaryOp, left: Box<Expr>, right: Box<Expr> },
    Match { value: Box<Expr>, regex: Regex, negated: bool },
    Arithmetic { op: BinaryOp, left: Box<Expr>, right: Box<Expr> },
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Exists(Box<Expr>),
    Missing(Box<Expr>),
}

impl Expr {
    pub(super) fn compile(expr: &FieldExpr) -> Result<Self, PlanError> {
        let boxed = |expr: &FieldExpr| Self::compile(expr).map(Box::new);
        let list = |list: &[FieldExpr]| list.iter().map(Self::compile).collect::<Result<Vec<_>, _>>();
        Ok(match expr {
            FieldExpr::Literal(literal) => Self::Constant(literal.clone()),
            FieldExpr::Field(field) => Self::Field(field.clone()),
            FieldExpr::All(items) => Self::All(list(items)?),
            FieldExpr::Any(items) => Self::Any(list(items)?),
            FieldExpr::Binary { op: op @ (BinaryOp::Match | BinaryOp::NotMatch), left, right } => {
                let FieldExpr::Literal(Literal::String(pattern)) = &**right else {
                    return Err(PlanError::Unsupported(format!("a pattern that is no text ({expr})")));
                };
                let regex = regex_of(pattern).map_err(|_| PlanError::Unsupported(format!("the pattern {pattern}")))?;
                Self::Match { value: boxed(left)?, regex, negated: *op == BinaryOp::NotMatch }
            }
            FieldExpr::Binary { op, left, right } if op.is_comparison() => {
                Self::Compare { op: *op, left: Box::new(operand(left, right)?), right: Box::new(operand(right, left)?) }
            }
            FieldExpr::Binary { op, left, right } => {
                Self::Arithmetic { op: *op, left: boxed(left)?, right: boxed(right)? }
            }
            FieldExpr::Not(inner) => Self::Not(boxed(inner)?),
            FieldExpr::Negate(inner) => Self::Negate(boxed(inner)?),
            FieldExpr::Exists(inner) => Self::Exists(boxed(inner)?),
            FieldExpr::Missing(inner) => Self::Missing(boxed(inner)?),
        })
    }

    /// The value on one span. What cannot be computed (a missing attribute, a division by zero) is nil.
    pub(super) fn evaluate<'s>(&'s self, span: &'s impl SpanView) -> Value<'s> {
        match self {
            Self::Constant(literal) => Value::constant(literal),
            Self::Field(field) => span.field(field),
            Self::All(list) => Value::Bool(list.iter().all(|item| item.holds(span))),
            Self::Any(list) => Value::Bool(list.iter().any(|item| item.holds(span))),
            Self::Compare { op, left, right } => Value::Bool(left.evaluate(span).compare(*op, &right.evaluate(span))),
            Self::Match { value, regex, negated } => Value::Bool(value.evaluate(span).matches(regex, *negated)),
            Self::Arithmetic { op, left, right } => left.evaluate(span).arithmetic(*op, &right.evaluate(span)),
            Self::Not(inner) => match inner.evaluate(span) {
                Value::Bool(truth) => Value::Bool(!truth),
                _ => Value::Nil,
            },
            Self::Negate(inner) => inner.evaluate(span).negate(),
            Self::Exists(inner) => Value::Bool(inner.evaluate(span).exists()),
            Self::Missing(inner) => Value::Bool(!inner.evaluate(span).exists()),
        }
    }

    /// Every field that is mentioned, as often as it is.
    pub(super) fn fields<'e>(&'e self, fields: &mut Vec<&'e Field>) {
        match self {
            Self::Constant(_) => {}
            Self::Field(field) => fields.push(field),
            Self::All(list) | Self::Any(list) => list.iter().for_each(|item| item.fields(fields)),
            Self::Compare { left, right, .. } | Self::Arithmetic { left, right, .. } => {
                left.fields(fields);
                right.fields(fields);
            }
            Self::Match { value: inner, .. }
            | Self::Not(inner)
            | Self::Negate(inner)
            | Self::Exists(inner)
            | Self::Missing(inner) => inner.fields(fields),
        }
    }

    /// Whether it is true on one span.
    pub(super) fn holds(&self, span: &impl SpanView) -> bool {
        self.evaluate(span).is_true()
    }
}

/// One side of a comparison. Ids may be written without leading zeros and in capitals.
fn operand(side: &FieldExpr, other: &FieldExpr) -> Result<Expr, PlanError> {
    let digits = match other {
        FieldExpr::Field(Field::Intrinsic(Intrinsic::TraceId | Intrinsic::LinkTraceId)) => 32,
        FieldExpr::Field(Field::Intrinsic(Intrinsic::SpanId | Intrinsic::ParentId | Intrinsic::LinkSpanId)) => 16,
        _ => return Expr::compile(side),
    };
    match side {
        // The empty parent of a root stays empty.
        FieldExpr::Literal(Literal::String(id)) if !id.is_empty() => {
            Ok(Expr::Constant(Literal::String(format!("{:0>digits$}", id.to_ascii_lowercase()))))
        }
        _ => Expr::compile(side),
    }
}
