//! Tokens to tree: pipelines and what stands in them. Expressions over one span are in `field.rs`, metrics in `metrics.rs`.
//!
//! Both are Pratt parsers with Tempo's precedences (PIPE < AND, OR < comparison, structure < ADD, SUB < NOT < MUL, DIV,
//! MOD < POW). What is left of an operator decides what it means: `>` after a spanset is "child", after a number it is
//! "greater".

use super::ast::{
    Aggregate, AggregateFunction, FieldExpr, Literal, MetricsExpr, MetricsQuery, Query, QueryBody, ScalarExpr,
    ScalarFilter, SpansetExpr, Stage,
};
use super::error::TraceQlError;
use super::lexer::{Position, Token, TokenKind, lex};
use super::names::Field;
use super::operators::{Operand, binding, combine, comparison, is_order, power};
use super::{MAX_QUERY_BYTES, suggest::nearest};

/// Deepest tree that is built: everything that walks one recurses, on threads with small stacks.
pub(super) const MAX_DEPTH: usize = 100;

const STAGES: [&str; 18] = [
    "by",
    "coalesce",
    "select",
    "count",
    "avg",
    "max",
    "min",
    "sum",
    "rate",
    "count_over_time",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
    "sum_over_time",
    "quantile_over_time",
    "histogram_over_time",
    "compare",
    "with",
];

pub(super) fn parse(text: &str) -> Result<Query, TraceQlError> {
    let mut parser = Parser::new(text)?;
    let sequence = parser.sequence()?;
    let body = match sequence.end {
        SequenceEnd::Stage => QueryBody::Spans(sequence.stages),
        SequenceEnd::Metrics(metrics) => QueryBody::Metrics(metrics),
        SequenceEnd::Scalar(_) => return Err(parser.unexpected("a comparison")),
    };
    let mut hints = Vec::new();
    while parser.eat_word("with") {
        parser.list(|parser| {
            hints.push(parser.hint()?);
            Ok(())
        })?;
    }
    parser.end()?;
    Ok(Query { body, hints })
}

pub(super) fn parse_field(text: &str) -> Result<Field, TraceQlError> {
    let mut parser = Parser::new(text)?;
    let field = parser.field()?;
    parser.end()?;
    Ok(field)
}

/// A tree and how deep it is.
pub(super) type Deep<T> = (T, usize);

pub(super) struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
}

/// What stands between two brackets, or is the whole query.
struct Sequence {
    stages: Vec<Stage>,
    end: SequenceEnd,
    height: usize,
}

enum SequenceEnd {
    /// The last stage gives spansets.
    Stage,
    /// The last stage is a number without a comparison.
    Scalar(ScalarExpr),
    /// The stages were taken into a metrics expression.
    Metrics(MetricsExpr),
}

impl Parser {
    pub(super) fn new(text: &str) -> Result<Self, TraceQlError> {
        if text.len() > MAX_QUERY_BYTES {
            return Err(TraceQlError::TooLong { bytes: text.len(), max: MAX_QUERY_BYTES });
        }
        Ok(Self { tokens: lex(text)?, next: 0, depth: 0 })
    }

    // Tokens.

    pub(super) fn peek(&self) -> &TokenKind {
        self.tokens.get(self.next).map_or(&TokenKind::End, |token| &token.kind)
    }

    pub(super) fn peek_second(&self) -> &TokenKind {
        self.tokens.get(self.next + 1).map_or(&TokenKind::End, |token| &token.kind)
    }

    pub(super) fn at(&self) -> Position {
        // The last token, `End`, is never passed.
        self.tokens.get(self.next).map_or(Position { offset: 0, line: 1, column: 1 }, |token| token.at)
    }

    pub(super) fn advance(&mut self) {
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
    }

    pub(super) fn sign(&self) -> Option<&'static str> {
        match self.peek() {
            TokenKind::Sign(sign) => Some(sign),
            _ => None,
        }
    }

    pub(super) fn word(&self) -> Option<&str> {
        match self.peek() {
            TokenKind::Word(word) => Some(word),
            _ => None,
        }
    }

    pub(super) fn eat(&mut self, sign: &str) -> bool {
        let eaten = self.sign() == Some(sign);
        if eaten {
            self.advance();
        }
        eaten
    }

    pub(super) fn eat_word(&mut self, word: &str) -> bool {
        let eaten = self.word() == Some(word);
        if eaten {
            self.advance();
        }
        eaten
    }

    pub(super) fn expect(&mut self, sign: &str) -> Result<(), TraceQlError> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected(&format!("\"{sign}\""))) }
    }

    pub(super) fn end(&self) -> Result<(), TraceQlError> {
        match self.peek() {
            TokenKind::End => Ok(()),
            _ => Err(self.unexpected("$end")),
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> TraceQlError {
        self.at().error(format!("unexpected {}, expecting {expected}", self.peek().describe()))
    }

    /// Takes one level of nesting; give it back by [`Self::leave`].
    pub(super) fn enter(&mut self) -> Result<(), TraceQlError> {
        self.depth += 1;
        self.check_height(self.depth)
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    pub(super) fn check_height(&self, height: usize) -> Result<(), TraceQlError> {
        if height > MAX_DEPTH {
            return Err(self.at().error(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    /// `( item, item, … )`, at least one.
    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), TraceQlError>) -> Result<(), TraceQlError> {
        self.expect("(")?;
        loop {
            item(self)?;
            if !self.eat(",") {
                return self.expect(")");
            }
        }
    }

    // Pipelines.

    fn sequence(&mut self) -> Result<Sequence, TraceQlError> {
        let mut stages = Vec::new();
        let mut height = 0;
        loop {
            if let Some(function) = self.metrics_function(stages.is_empty())? {
                let by = if self.eat_word("by") { self.fields()? } else { Vec::new() };
                let query = MetricsExpr::Query(MetricsQuery { stages, function, by });
                let (metrics, height) = self.second_stages(query, height + 1)?;
                return Ok(Sequence { stages: Vec::new(), end: SequenceEnd::Metrics(metrics), height });
            }
            if let Some(stage) = self.keyword_stage(stages.is_empty())? {
                stages.push(stage);
            } else {
                let (operand, deep) = self.operand(power::LOGIC)?;
                height = height.max(deep);
                match operand {
                    Operand::Spanset(expr) => stages.push(Stage::Spansets(expr)),
                    Operand::Scalar(left) => {
                        let Some(op) = self.sign().and_then(comparison).filter(|op| is_order(*op)) else {
                            return Ok(Sequence { stages, end: SequenceEnd::Scalar(left), height });
                        };
                        self.advance();
                        let right = self.at();
                        let (Operand::Scalar(right), deep) = self.operand(power::ADD)? else {
                            return Err(right.error("expecting a number or an aggregate"));
                        };
                        height = height.max(deep);
                        stages.push(Stage::Scalar(ScalarFilter { op, left, right }));
                    }
                    Operand::Metrics(metrics) => {
                        let (metrics, height) = self.second_stages(metrics, height)?;
                        return Ok(Sequence { stages, end: SequenceEnd::Metrics(metrics), height });
                    }
                }
            }
            if !self.eat("|") {
                return Ok(Sequence { stages, end: SequenceEnd::Stage, height });
            }
        }
    }

    fn keyword_stage(&mut self, first: bool) -> Result<Option<Stage>, TraceQlError> {
        let stage = match self.word() {
            Some("coalesce") if first => return Err(self.unexpected("a spanset before it")),
            Some("by") => {
                self.advance();
                self.expect("(")?;
                let expr = self.field_expr()?;
                self.expect(")")?;
                Stage::By(expr)
            }
            Some("coalesce") => {
                self.advance();
                self.expect("(")?;
                self.expect(")")?;
                Stage::Coalesce
            }
            Some("select") => {
                self.advance();
                Stage::Select(self.fields()?)
            }
            _ => return Ok(None),
        };
        Ok(Some(stage))
    }

    /// `(field, field, …)`.
    fn fields(&mut self) -> Result<Vec<Field>, TraceQlError> {
        let mut fields = Vec::new();
        self.list(|parser| {
            fields.push(parser.field()?);
            Ok(())
        })?;
        Ok(fields)
    }

    /// Spansets, numbers, metrics, and operators between them that bind at least as tightly as `min`.
    fn operand(&mut self, min: u8) -> Result<Deep<Operand>, TraceQlError> {
        let (mut left, mut height) = self.primary()?;
        while let Some((power, right_power)) = self.sign().and_then(|sign| binding(sign, &left)) {
            if power < min {
                break;
            }
            let Some(sign) = self.sign() else { break };
            self.advance();
            let at = self.at();
            self.enter()?;
            let (right, deep) = self.operand(right_power)?;
            self.leave();
            height = height.max(deep) + 1;
            self.check_height(height)?;
            left = combine(left, sign, right)
                .ok_or_else(|| at.error(format!("unexpected operand of another kind after \"{sign}\"")))?;
        }
        Ok((left, height))
    }

    fn primary(&mut self) -> Result<Deep<Operand>, TraceQlError> {
        if self.sign() == Some("{") {
            let (filter, height) = self.spanset_filter()?;
            return Ok((Operand::Spanset(SpansetExpr::Filter(filter)), height));
        }
        if self.eat("(") {
            return self.group();
        }
        if let Some(literal) = self.number() {
            return Ok((Operand::Scalar(ScalarExpr::Literal(literal)), 1));
        }
        if let Some((aggregate, height)) = self.aggregate()? {
            return Ok((Operand::Scalar(ScalarExpr::Aggregate(aggregate)), height));
        }
        Err(self.unexpected_stage())
    }

    fn unexpected_stage(&self) -> TraceQlError {
        match self.word() {
            Some(word) => self.unexpected(&match nearest(word, STAGES) {
                Some(name) => format!("a stage like {{ … }}; did you mean \"{name}\"?"),
                None => "\"{\", \"(\" or a function".to_owned(),
            }),
            None => self.unexpected("\"{\", \"(\" or a function"),
        }
    }

    /// After `(`: whatever a query can be.
    fn group(&mut self) -> Result<Deep<Operand>, TraceQlError> {
        self.enter()?;
        let start = self.at();
        let mut sequence = self.sequence()?;
        self.expect(")")?;
        self.leave();
        let height = sequence.height + 1;
        self.check_height(height)?;
        let operand = match sequence.end {
            SequenceEnd::Metrics(metrics) => Operand::Metrics(metrics),
            SequenceEnd::Scalar(scalar) if sequence.stages.is_empty() => Operand::Scalar(scalar),
            SequenceEnd::Scalar(ScalarExpr::Aggregate(aggregate)) => {
                Operand::Scalar(ScalarExpr::Pipeline(sequence.stages, aggregate))
            }
            SequenceEnd::Scalar(_) => return Err(start.error("a pipeline in brackets must end in one aggregate")),
            SequenceEnd::Stage if sequence.stages.len() == 1 => match sequence.stages.pop() {
                Some(Stage::Spansets(expr)) => Operand::Spanset(expr),
                stage => Operand::Spanset(SpansetExpr::Pipeline(stage.into_iter().collect())),
            },
            SequenceEnd::Stage => Operand::Spanset(SpansetExpr::Pipeline(sequence.stages)),
        };
        Ok((operand, height))
    }

    pub(super) fn spanset_filter(&mut self) -> Result<Deep<FieldExpr>, TraceQlError> {
        self.expect("{")?;
        if self.eat("}") {
            return Ok((FieldExpr::Literal(Literal::Bool(true)), 1));
        }
        let filter = self.field_tree(power::LOGIC)?;
        self.expect("}")?;
        Ok(filter)
    }

    /// A number, a float or a duration, perhaps negative.
    pub(super) fn number(&mut self) -> Option<Literal> {
        let negative = self.sign() == Some("-");
        let token = if negative { self.peek_second() } else { self.peek() };
        let literal = match (token, negative) {
            (TokenKind::Int(i), false) => Literal::Int(*i),
            (TokenKind::Int(i), true) => Literal::Int(-i),
            (TokenKind::Float(f), false) => Literal::Float(*f),
            (TokenKind::Float(f), true) => Literal::Float(-f),
            (TokenKind::Duration(d), false) => Literal::Duration(*d),
            (TokenKind::Duration(d), true) => Literal::Duration(-d),
            _ => return None,
        };
        if negative {
            self.advance();
        }
        self.advance();
        Some(literal)
    }

    fn aggregate(&mut self) -> Result<Option<Deep<Aggregate>>, TraceQlError> {
        let function = match self.word() {
            Some("count") => AggregateFunction::Count,
            Some("avg") => AggregateFunction::Avg,
            Some("max") => AggregateFunction::Max,
            Some("min") => AggregateFunction::Min,
            Some("sum") => AggregateFunction::Sum,
            _ => return Ok(None),
        };
        self.advance();
        self.expect("(")?;
        let (argument, height) = if function == AggregateFunction::Count {
            (None, 1)
        } else {
            let (expr, height) = self.field_tree(power::LOGIC)?;
            (Some(expr), height + 1)
        };
        self.expect(")")?;
        Ok(Some((Aggregate { function, argument }, height)))
    }
}
