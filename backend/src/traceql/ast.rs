//! The tree of a query. What it names of spans is in `names.rs`, its printed form in `display.rs`.

use super::names::Field;

/// A whole query.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// What is asked.
    pub body: QueryBody,
    /// `with(name=value, …)`.
    pub hints: Vec<Hint>,
}

/// Spans or numbers over time.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryBody {
    /// Stages joined by `|`; never empty.
    Spans(Vec<Stage>),
    /// A metrics query.
    Metrics(MetricsExpr),
}

/// One `name=value` of `with(…)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hint {
    /// Its name, `most_recent` for example.
    pub name: String,
    /// Its value.
    pub value: Literal,
}

/// One step of a pipeline: takes sets of spans, gives sets of spans.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// `{ … }` and what combines them.
    Spansets(SpansetExpr),
    /// `count() > 2`: keeps the sets for which it is true.
    Scalar(ScalarFilter),
    /// `by(…)`: splits every set by a value.
    By(FieldExpr),
    /// `coalesce()`: joins the sets of a trace again.
    Coalesce,
    /// `select(…)`: adds attributes to the answer.
    Select(Vec<Field>),
}

/// Filters, and operators between them.
#[derive(Clone, Debug, PartialEq)]
pub enum SpansetExpr {
    /// `{ … }`; `{}` is `{ true }`.
    Filter(FieldExpr),
    /// `left op right`.
    Binary {
        /// Operator.
        op: SpansetOp,
        /// Left side.
        left: Box<SpansetExpr>,
        /// Right side; most operators answer with its spans.
        right: Box<SpansetExpr>,
    },
    /// `( … | … )`: a pipeline as an operand; has more than one stage, or one that is not `Spansets`.
    Pipeline(Vec<Stage>),
}

/// Operators between spansets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "named as the operators are")]
pub enum SpansetOp {
    And,
    Or,
    Child,
    Parent,
    Descendant,
    Ancestor,
    Sibling,
    NotChild,
    NotParent,
    NotDescendant,
    NotAncestor,
    NotSibling,
    UnionChild,
    UnionParent,
    UnionDescendant,
    UnionAncestor,
    UnionSibling,
}

/// `left op right` over whole sets.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarFilter {
    /// A comparison.
    pub op: BinaryOp,
    /// Left side.
    pub left: ScalarExpr,
    /// Right side.
    pub right: ScalarExpr,
}

/// A number per set.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarExpr {
    /// An integer, a float or a duration.
    Literal(Literal),
    /// `count()`, `avg(duration)`.
    Aggregate(Aggregate),
    /// Arithmetic.
    Binary {
        /// `+ - * / % ^`.
        op: BinaryOp,
        /// Left side.
        left: Box<ScalarExpr>,
        /// Right side.
        right: Box<ScalarExpr>,
    },
    /// `({ … } | count())`.
    Pipeline(Vec<Stage>, Aggregate),
}

/// One number from the spans of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// Which number.
    pub function: AggregateFunction,
    /// What is aggregated; none for `count()` only.
    pub argument: Option<FieldExpr>,
}

/// Names of the aggregates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "named as the functions are")]
pub enum AggregateFunction {
    Count,
    Avg,
    Max,
    Min,
    Sum,
}

/// An expression over one span.
#[derive(Clone, Debug, PartialEq)]
pub enum FieldExpr {
    /// A constant.
    Literal(Literal),
    /// A value of the span.
    Field(Field),
    /// Comparison or arithmetic.
    Binary {
        /// Operator.
        op: BinaryOp,
        /// Left side.
        left: Box<FieldExpr>,
        /// Right side.
        right: Box<FieldExpr>,
    },
    /// `a && b && …`, at least two.
    All(Vec<FieldExpr>),
    /// `a || b || …`, at least two. A list, so that a long chain is not a deep tree.
    Any(Vec<FieldExpr>),
    /// `!a`.
    Not(Box<FieldExpr>),
    /// `-a`; never of a literal.
    Negate(Box<FieldExpr>),
    /// `a != nil`.
    Exists(Box<FieldExpr>),
    /// `a = nil`.
    Missing(Box<FieldExpr>),
}

/// Operators between fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "named as the operators are")]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Eq,
    NotEq,
    Less,
    LessEq,
    Greater,
    GreaterEq,
    /// `=~`.
    Match,
    /// `!~`.
    NotMatch,
}

impl BinaryOp {
    /// Whether the result is true or false.
    pub fn is_comparison(self) -> bool {
        !matches!(self, Self::Add | Self::Sub | Self::Mul | Self::Div | Self::Mod | Self::Pow)
    }
}

/// A constant. `nil` is none: it occurs only in [`FieldExpr::Exists`] and [`FieldExpr::Missing`].
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `"a"` or `` `a` ``.
    String(String),
    /// `1`, `minInt`, `maxInt`.
    Int(i64),
    /// `1.5`; finite.
    Float(f64),
    /// `1h30m`, in nanoseconds.
    Duration(i64),
    /// `true`, `false`.
    Bool(bool),
    /// `ok`, `error`, `unset`.
    Status(Status),
    /// `server` and others.
    Kind(Kind),
}

/// Outcome of a span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "named as the keywords are")]
pub enum Status {
    Error,
    Ok,
    Unset,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Error, Self::Ok, Self::Unset];

    /// Keyword.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Ok => "ok",
            Self::Unset => "unset",
        }
    }
}

/// Side of a span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "named as the keywords are")]
pub enum Kind {
    Unspecified,
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Unspecified, Self::Internal, Self::Server, Self::Client, Self::Producer, Self::Consumer];

    /// Keyword.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// Series over time.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricsExpr {
    /// `{ … } | rate() by(…)`.
    Query(MetricsQuery),
    /// A number in arithmetic.
    Literal(Literal),
    /// Arithmetic between series, or a series and a number.
    Binary {
        /// `+ - * /`; between two constants `% ^` too.
        op: BinaryOp,
        /// Left side.
        left: Box<MetricsExpr>,
        /// Right side.
        right: Box<MetricsExpr>,
    },
    /// Something that thins series out.
    Second(Box<MetricsExpr>, SecondStage),
}

/// Spans turned into series.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsQuery {
    /// Which spans; never empty.
    pub stages: Vec<Stage>,
    /// What of them.
    pub function: MetricsFunction,
    /// One series per combination of these.
    pub by: Vec<Field>,
}

/// First stage of a metrics query.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "named as the functions are")]
pub enum MetricsFunction {
    Rate,
    CountOverTime,
    MinOverTime(Field),
    MaxOverTime(Field),
    AvgOverTime(Field),
    SumOverTime(Field),
    HistogramOverTime(Field),
    /// With the quantiles, 0 to 1.
    QuantileOverTime(Field, Vec<f64>),
    Compare {
        /// Selects the spans that are compared with the others.
        filter: FieldExpr,
        /// Values per attribute.
        top: i64,
        /// Start and end of the selection, nanoseconds.
        range: Option<(i64, i64)>,
    },
}

/// Second stage of a metrics query.
#[derive(Clone, Debug, PartialEq)]
pub enum SecondStage {
    /// `| topk(n)`.
    TopK(i64),
    /// `| bottomk(n)`.
    BottomK(i64),
    /// `> 5`.
    Filter(BinaryOp, Literal),
}
