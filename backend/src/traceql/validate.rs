//! Rules that the grammar does not know: types, regular expressions, what must come from a span. Texts are Tempo's.

use std::fmt::Display;

use regex::{Regex, RegexBuilder};

use super::ast::{
    Aggregate, BinaryOp, FieldExpr, Literal, MetricsExpr, MetricsFunction, MetricsQuery, Query, QueryBody, ScalarExpr,
    ScalarFilter, SecondStage, SpansetExpr, Stage,
};
use super::error::TraceQlError;
use super::names::{Attribute, Field, Intrinsic, Scope};

/// What is known of a value before a span is seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Type {
    /// An attribute: anything.
    Unknown,
    /// Integer, float or duration: they compare with each other.
    Number,
    String,
    Bool,
    Status,
    Kind,
}

type Checked<T = ()> = Result<T, TraceQlError>;

fn invalid(rule: &str, what: &impl Display) -> TraceQlError {
    let part = what.to_string();
    TraceQlError::Invalid { message: format!("{rule}: {part}"), part }
}

/// `message` says all; `part` is what it is about.
fn invalid_part(message: String, part: &impl Display) -> TraceQlError {
    TraceQlError::Invalid { message, part: part.to_string() }
}

pub(super) fn query(query: &Query) -> Checked {
    match &query.body {
        QueryBody::Spans(list) => stages(list),
        QueryBody::Metrics(expr) => metrics(expr),
    }
}

fn stages(list: &[Stage]) -> Checked {
    list.iter().try_for_each(|stage| match stage {
        Stage::Spansets(expr) => spansets(expr),
        Stage::Scalar(filter) => scalar_filter(filter),
        Stage::By(expr) => {
            if !references_span(expr) {
                return Err(invalid("grouping field expressions must reference the span", stage));
            }
            field(expr).map(|_| ())
        }
        Stage::Coalesce => Ok(()),
        Stage::Select(fields) => fields.iter().try_for_each(|f| field_type(f).map(|_| ())),
    })
}

fn spansets(expr: &SpansetExpr) -> Checked {
    match expr {
        SpansetExpr::Filter(filter) => spanset_filter(filter),
        SpansetExpr::Binary { left, right, .. } => {
            spansets(left)?;
            spansets(right)
        }
        SpansetExpr::Pipeline(list) => stages(list),
    }
}

fn spanset_filter(filter: &FieldExpr) -> Checked {
    match field(filter)? {
        Type::Unknown | Type::Bool => Ok(()),
        _ => Err(invalid("span filter field expressions must resolve to a boolean", &format_args!("{{ {filter} }}"))),
    }
}

fn scalar_filter(filter: &ScalarFilter) -> Checked {
    scalar(&filter.left)?;
    scalar(&filter.right)
}

fn scalar(expr: &ScalarExpr) -> Checked {
    match expr {
        ScalarExpr::Literal(_) => Ok(()),
        ScalarExpr::Aggregate(aggregate) => self::aggregate(aggregate),
        ScalarExpr::Binary { left, right, .. } => {
            scalar(left)?;
            scalar(right)
        }
        ScalarExpr::Pipeline(list, aggregate) => {
            stages(list)?;
            self::aggregate(aggregate)
        }
    }
}

fn aggregate(aggregate: &Aggregate) -> Checked {
    let Some(argument) = &aggregate.argument else { return Ok(()) };
    if !matches!(field(argument)?, Type::Unknown | Type::Number) {
        return Err(invalid("aggregate field expressions must resolve to a number type", aggregate));
    }
    if !references_span(argument) {
        return Err(invalid("aggregate field expressions must reference the span", aggregate));
    }
    Ok(())
}

fn metrics(expr: &MetricsExpr) -> Checked {
    match expr {
        MetricsExpr::Query(query) => metrics_query(query),
        MetricsExpr::Literal(_) => Ok(()),
        MetricsExpr::Binary { left, right, .. } => {
            metrics(left)?;
            metrics(right)
        }
        MetricsExpr::Second(inner, stage) => {
            if matches!(stage, SecondStage::TopK(..=0) | SecondStage::BottomK(..=0)) {
                return Err(invalid_part(format!("limit must be greater than 0:{stage}"), stage));
            }
            metrics(inner)
        }
    }
}

fn metrics_query(query: &MetricsQuery) -> Checked {
    stages(&query.stages)?;
    query.by.iter().try_for_each(|f| field_type(f).map(|_| ()))?;
    match &query.function {
        MetricsFunction::Rate | MetricsFunction::CountOverTime => Ok(()),
        MetricsFunction::MinOverTime(of)
        | MetricsFunction::MaxOverTime(of)
        | MetricsFunction::AvgOverTime(of)
        | MetricsFunction::SumOverTime(of)
        | MetricsFunction::HistogramOverTime(of) => numeric(of, &query.function),
        MetricsFunction::QuantileOverTime(of, quantiles) => {
            if quantiles.iter().any(|quantile| !(0.0..=1.0).contains(quantile)) {
                return Err(invalid("quantile must be between 0 and 1", &query.function));
            }
            numeric(of, &query.function)
        }
        MetricsFunction::Compare { filter, top, range } => {
            if !(1..=1000).contains(top) {
                let message = format!("compare() top number of values must be from 1 to 1000. received {top}");
                return Err(invalid_part(message, top));
            }
            if range.is_some_and(|(start, end)| start < 0 || end < start) {
                return Err(invalid_part("compare() start must be before end".to_owned(), &query.function));
            }
            spanset_filter(filter)
        }
    }
}

fn numeric(of: &Field, function: &MetricsFunction) -> Checked {
    match field_type(of)? {
        Type::Unknown | Type::Number => Ok(()),
        _ => Err(invalid("aggregate field expressions must resolve to a number type", function)),
    }
}

fn field(expr: &FieldExpr) -> Checked<Type> {
    match expr {
        FieldExpr::Literal(literal) => Ok(literal_type(literal)),
        FieldExpr::Field(field) => field_type(field),
        FieldExpr::All(list) | FieldExpr::Any(list) => {
            for item in list {
                if !matches!(field(item)?, Type::Unknown | Type::Bool) {
                    return Err(invalid("illegal operation for the given types", expr));
                }
            }
            Ok(Type::Bool)
        }
        FieldExpr::Binary { op, left, right } => binary(expr, *op, left, right),
        FieldExpr::Not(inner) => unary(expr, inner, Type::Bool),
        FieldExpr::Negate(inner) => unary(expr, inner, Type::Number),
        FieldExpr::Exists(inner) => field(inner).map(|_| Type::Bool),
        FieldExpr::Missing(inner) => {
            field(inner)?;
            match &**inner {
                FieldExpr::Field(Field::Intrinsic(intrinsic)) => {
                    Err(invalid_part(format!("{intrinsic} = nil is never true: every span has intrinsics"), expr))
                }
                FieldExpr::Field(Field::Attribute(Attribute { scope: Scope::Resource, name, parent: false }))
                    if name == "service.name" =>
                {
                    let message = "resource.service.name = nil is never true: every resource has a service name";
                    Err(invalid_part(message.to_owned(), expr))
                }
                _ => Ok(Type::Bool),
            }
        }
    }
}

fn unary(expr: &FieldExpr, inner: &FieldExpr, wanted: Type) -> Checked<Type> {
    match field(inner)? {
        Type::Unknown => Ok(Type::Unknown),
        found if found == wanted => Ok(wanted),
        _ => Err(invalid("illegal operation for the given type", expr)),
    }
}

fn binary(expr: &FieldExpr, op: BinaryOp, left: &FieldExpr, right: &FieldExpr) -> Checked<Type> {
    let (left_type, right_type) = (field(left)?, field(right)?);
    if left_type != right_type && left_type != Type::Unknown && right_type != Type::Unknown {
        return Err(invalid("binary operations must operate on the same type", expr));
    }
    if !allows(op, left_type) || !allows(op, right_type) {
        return Err(invalid("illegal operation for the given types", expr));
    }
    if matches!(op, BinaryOp::Match | BinaryOp::NotMatch) {
        let FieldExpr::Literal(Literal::String(pattern)) = right else {
            return Err(invalid("the right side of a regular expression match must be a string", expr));
        };
        regex_of(pattern).map_err(|error| invalid_part(format!("invalid regex: {pattern}: {error}"), right))?;
    }
    if op.is_comparison() {
        return Ok(Type::Bool);
    }
    Ok(if left_type == Type::Unknown { right_type } else { left_type })
}

/// Memory of one compiled expression; a query may have many.
const REGEX_BYTES: usize = 1 << 20;

/// Compiles the right side of `=~`. The whole value must match.
pub fn regex_of(pattern: &str) -> Result<Regex, String> {
    // RE2's `\z` and `\C` are rare; the rest of its syntax is the same. Compiled alone first, so that
    // `a)(b` does not become valid by the brackets around it.
    let last_line = |error: regex::Error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    };
    let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(REGEX_BYTES).build().map_err(last_line);
    compile(pattern)?;
    compile(&format!("^(?s:{pattern})$"))
}

/// Whether an operator can be applied to a type.
fn allows(op: BinaryOp, to: Type) -> bool {
    match to {
        Type::Unknown => true,
        Type::Number => !matches!(op, BinaryOp::Match | BinaryOp::NotMatch),
        Type::String => op.is_comparison(),
        Type::Bool | Type::Status | Type::Kind => matches!(op, BinaryOp::Eq | BinaryOp::NotEq),
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::String(_) => Type::String,
        Literal::Int(_) | Literal::Float(_) | Literal::Duration(_) => Type::Number,
        Literal::Bool(_) => Type::Bool,
        Literal::Status(_) => Type::Status,
        Literal::Kind(_) => Type::Kind,
    }
}

fn field_type(field: &Field) -> Checked<Type> {
    let intrinsic = match field {
        Field::Intrinsic(Intrinsic::Parent) => return Err(TraceQlError::Unsupported("parent".to_owned())),
        Field::Attribute(_) => return Ok(Type::Unknown),
        Field::Intrinsic(intrinsic) => intrinsic,
    };
    Ok(match intrinsic {
        Intrinsic::Duration
        | Intrinsic::TraceDuration
        | Intrinsic::EventTimeSinceStart
        | Intrinsic::ChildCount
        | Intrinsic::NestedSetLeft
        | Intrinsic::NestedSetRight
        | Intrinsic::NestedSetParent => Type::Number,
        Intrinsic::Status => Type::Status,
        Intrinsic::Kind => Type::Kind,
        _ => Type::String,
    })
}

fn references_span(expr: &FieldExpr) -> bool {
    match expr {
        FieldExpr::Literal(_) => false,
        FieldExpr::Field(_) => true,
        FieldExpr::All(list) | FieldExpr::Any(list) => list.iter().any(references_span),
        FieldExpr::Binary { left, right, .. } => references_span(left) || references_span(right),
        FieldExpr::Not(inner) | FieldExpr::Negate(inner) | FieldExpr::Exists(inner) | FieldExpr::Missing(inner) => {
            references_span(inner)
        }
    }
}
