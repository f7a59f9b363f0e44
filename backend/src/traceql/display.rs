//! Trees printed as TraceQL, with as few brackets as keep their shape.

use std::fmt::{self, Display, Formatter};

use super::ast::{
    Aggregate, AggregateFunction, BinaryOp, FieldExpr, Hint, Kind, Literal, MetricsExpr, MetricsFunction, MetricsQuery,
    Query, QueryBody, ScalarExpr, ScalarFilter, SecondStage, SpansetExpr, SpansetOp, Stage, Status,
};
use super::lexer::is_attribute_char;
use super::names::{Attribute, Field, Intrinsic, Scope};
use super::operators::power;
use super::values::{print_duration, quote};

/// Writes items with something between them.
fn join<T: Display>(f: &mut Formatter<'_>, items: &[T], between: &str) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(between)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

/// Writes an operand, in brackets if they are needed.
fn operand(f: &mut Formatter<'_>, inner: &impl Display, brackets: bool) -> fmt::Result {
    if brackets { write!(f, "({inner})") } else { inner.fmt(f) }
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.body {
            QueryBody::Spans(stages) => join(f, stages, " | ")?,
            QueryBody::Metrics(metrics) => metrics.fmt(f)?,
        }
        if !self.hints.is_empty() {
            f.write_str(" with(")?;
            join(f, &self.hints, ", ")?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl Display for Stage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spansets(expr) => expr.fmt(f),
            Self::Scalar(filter) => filter.fmt(f),
            Self::By(expr) => write!(f, "by({expr})"),
            Self::Coalesce => f.write_str("coalesce()"),
            Self::Select(fields) => {
                f.write_str("select(")?;
                join(f, fields, ", ")?;
                f.write_str(")")
            }
        }
    }
}

impl Display for SpansetExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(expr) => write!(f, "{{ {expr} }}"),
            Self::Binary { op, left, right } => {
                operand(f, left, matches!(**left, Self::Binary { .. }))?;
                write!(f, " {} ", op.sign())?;
                operand(f, right, matches!(**right, Self::Binary { .. }))
            }
            Self::Pipeline(stages) => {
                f.write_str("(")?;
                join(f, stages, " | ")?;
                f.write_str(")")
            }
        }
    }
}

impl SpansetOp {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::And,
        Self::Or,
        Self::Child,
        Self::Parent,
        Self::Descendant,
        Self::Ancestor,
        Self::Sibling,
        Self::NotChild,
        Self::NotParent,
        Self::NotDescendant,
        Self::NotAncestor,
        Self::NotSibling,
        Self::UnionChild,
        Self::UnionParent,
        Self::UnionDescendant,
        Self::UnionAncestor,
        Self::UnionSibling,
    ];

    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::And => "&&",
            Self::Or => "||",
            Self::Child => ">",
            Self::Parent => "<",
            Self::Descendant => ">>",
            Self::Ancestor => "<<",
            Self::Sibling => "~",
            Self::NotChild => "!>",
            Self::NotParent => "!<",
            Self::NotDescendant => "!>>",
            Self::NotAncestor => "!<<",
            Self::NotSibling => "!~",
            Self::UnionChild => "&>",
            Self::UnionParent => "&<",
            Self::UnionDescendant => "&>>",
            Self::UnionAncestor => "&<<",
            Self::UnionSibling => "&~",
        }
    }
}

impl BinaryOp {
    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Mod => "%",
            Self::Pow => "^",
            Self::Eq => "=",
            Self::NotEq => "!=",
            Self::Less => "<",
            Self::LessEq => "<=",
            Self::Greater => ">",
            Self::GreaterEq => ">=",
            Self::Match => "=~",
            Self::NotMatch => "!~",
        }
    }

    fn power(self) -> u8 {
        match self {
            Self::Add | Self::Sub => power::ADD,
            Self::Mul | Self::Div | Self::Mod => power::MUL,
            Self::Pow => power::POW,
            _ => power::COMPARE,
        }
    }

    /// Whether operands of these binding powers need brackets, left and right.
    fn brackets(self, left: u8, right: u8) -> (bool, bool) {
        let power = self.power();
        if self == Self::Pow { (left <= power, right < power) } else { (left < power, right <= power) }
    }
}

impl Display for ScalarFilter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.left, self.op.sign(), self.right)
    }
}

impl ScalarExpr {
    fn power(&self) -> u8 {
        match self {
            Self::Binary { op, .. } => op.power(),
            _ => power::ATOM,
        }
    }
}

impl Display for ScalarExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(literal) => literal.fmt(f),
            Self::Aggregate(aggregate) => aggregate.fmt(f),
            Self::Binary { op, left, right } => {
                let (left_brackets, right_brackets) = op.brackets(left.power(), right.power());
                operand(f, left, left_brackets)?;
                write!(f, " {} ", op.sign())?;
                operand(f, right, right_brackets)
            }
            Self::Pipeline(stages, aggregate) => {
                f.write_str("(")?;
                join(f, stages, " | ")?;
                write!(f, " | {aggregate})")
            }
        }
    }
}

impl Display for Aggregate {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match self.function {
            AggregateFunction::Count => "count",
            AggregateFunction::Avg => "avg",
            AggregateFunction::Max => "max",
            AggregateFunction::Min => "min",
            AggregateFunction::Sum => "sum",
        };
        match &self.argument {
            Some(argument) => write!(f, "{name}({argument})"),
            None => write!(f, "{name}()"),
        }
    }
}

impl FieldExpr {
    fn power(&self) -> u8 {
        match self {
            Self::All(_) | Self::Any(_) => power::LOGIC,
            Self::Binary { op, .. } => op.power(),
            Self::Exists(_) | Self::Missing(_) => power::COMPARE,
            Self::Not(_) => power::NOT,
            Self::Negate(_) => power::ADD,
            Self::Literal(literal) if literal.is_negative() => power::ADD,
            Self::Literal(_) | Self::Field(_) => power::ATOM,
        }
    }

    /// What stands under a sign: another sign needs no brackets, being read from right to left.
    fn is_signed(&self) -> bool {
        self.power() == power::ADD && !matches!(self, Self::Binary { .. }) || matches!(self, Self::Not(_))
    }
}

impl Literal {
    fn is_negative(&self) -> bool {
        match self {
            Self::Int(i) => *i < 0 && *i != i64::MIN,
            Self::Float(f) => f.is_sign_negative(),
            Self::Duration(d) => *d < 0,
            _ => false,
        }
    }
}

impl Display for FieldExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(literal) => literal.fmt(f),
            Self::Field(field) => field.fmt(f),
            Self::Binary { op, left, right } => {
                let (left_brackets, right_brackets) = op.brackets(left.power(), right.power());
                operand(f, left, left_brackets)?;
                write!(f, " {} ", op.sign())?;
                operand(f, right, right_brackets)
            }
            Self::All(list) | Self::Any(list) => {
                let sign = if matches!(self, Self::All(_)) { " && " } else { " || " };
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        f.write_str(sign)?;
                    }
                    // The first is left of an operator of its own power and needs none.
                    operand(f, item, index > 0 && item.power() == power::LOGIC)?;
                }
                Ok(())
            }
            Self::Not(inner) => {
                f.write_str("!")?;
                operand(f, inner, inner.power() <= power::NOT && !inner.is_signed())
            }
            Self::Negate(inner) => {
                f.write_str("-")?;
                operand(f, inner, inner.power() <= power::ADD && !inner.is_signed())
            }
            Self::Exists(inner) => {
                operand(f, inner, inner.power() < power::COMPARE)?;
                f.write_str(" != nil")
            }
            Self::Missing(inner) => {
                operand(f, inner, inner.power() < power::COMPARE)?;
                f.write_str(" = nil")
            }
        }
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attribute(attribute) => attribute.fmt(f),
            Self::Intrinsic(intrinsic) => intrinsic.fmt(f),
        }
    }
}

impl Display for Attribute {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.parent {
            f.write_str("parent.")?;
        }
        match self.scope {
            Scope::Any if self.parent => {}
            scope => write!(f, "{}.", scope.name())?,
        }
        let plain = self.name.chars().all(|c| is_attribute_char(c) && !"\"\\".contains(c));
        // `.1` is a number, `parent.span.a` has another scope.
        let first_digit = self.scope == Scope::Any && self.name.starts_with(|c: char| c.is_ascii_digit());
        let like_scope = self.parent && (self.name.starts_with("span.") || self.name.starts_with("resource."));
        if plain && !first_digit && !like_scope {
            return f.write_str(&self.name);
        }
        write!(f, "\"{}\"", self.name.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

impl Display for Intrinsic {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.plain_name(), self.scoped_name()) {
            (Some(name), _) => f.write_str(name),
            (None, Some((scope, name))) => write!(f, "{}:{name}", scope.name()),
            (None, None) => Ok(()),
        }
    }
}

impl Display for Literal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(&quote(text)),
            Self::Int(i64::MIN) => f.write_str("minInt"),
            Self::Int(i) => i.fmt(f),
            // With a point or an exponent, so that it stays a float.
            Self::Float(float) => write!(f, "{float:?}"),
            Self::Duration(nanos) => f.write_str(&print_duration(*nanos)),
            Self::Bool(truth) => truth.fmt(f),
            Self::Status(status) => status.fmt(f),
            Self::Kind(kind) => kind.fmt(f),
        }
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Display for MetricsExpr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(query) => query.fmt(f),
            Self::Literal(literal) => literal.fmt(f),
            Self::Binary { left, op, right } => {
                operand(f, left, !matches!(**left, Self::Literal(_)))?;
                write!(f, " {} ", op.sign())?;
                operand(f, right, !matches!(**right, Self::Literal(_)))
            }
            Self::Second(inner, stage) => write!(f, "{inner}{stage}"),
        }
    }
}

impl Display for SecondStage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopK(count) => write!(f, " | topk({count})"),
            Self::BottomK(count) => write!(f, " | bottomk({count})"),
            Self::Filter(op, literal) => write!(f, " {} {literal}", op.sign()),
        }
    }
}

impl Display for MetricsQuery {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        join(f, &self.stages, " | ")?;
        write!(f, " | {}", self.function)?;
        if !self.by.is_empty() {
            f.write_str(" by(")?;
            join(f, &self.by, ", ")?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl Display for MetricsFunction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate => f.write_str("rate()"),
            Self::CountOverTime => f.write_str("count_over_time()"),
            Self::MinOverTime(field) => write!(f, "min_over_time({field})"),
            Self::MaxOverTime(field) => write!(f, "max_over_time({field})"),
            Self::AvgOverTime(field) => write!(f, "avg_over_time({field})"),
            Self::SumOverTime(field) => write!(f, "sum_over_time({field})"),
            Self::HistogramOverTime(field) => write!(f, "histogram_over_time({field})"),
            Self::QuantileOverTime(field, quantiles) => {
                write!(f, "quantile_over_time({field}")?;
                quantiles.iter().try_for_each(|quantile| write!(f, ", {quantile:?}"))?;
                f.write_str(")")
            }
            Self::Compare { filter, top, range } => {
                write!(f, "compare({{ {filter} }}, {top}")?;
                if let Some((start, end)) = range {
                    write!(f, ", {start}, {end}")?;
                }
                f.write_str(")")
            }
        }
    }
}
