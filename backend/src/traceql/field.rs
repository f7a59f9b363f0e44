//! Expressions over one span: what stands between `{` and `}`.

use super::ast::{BinaryOp, FieldExpr, Kind, Literal, Status};
use super::error::TraceQlError;
use super::lexer::TokenKind;
use super::names::{Attribute, Field, Intrinsic, IntrinsicScope, Scope};
use super::operators::{arithmetic, comparison, power};
use super::parser::{Deep, Parser};
use super::suggest::nearest;

/// What an operator between two fields does.
#[derive(Clone, Copy)]
enum Operator {
    Binary(BinaryOp),
    And,
    Or,
}

impl Parser {
    pub(super) fn field_expr(&mut self) -> Result<FieldExpr, TraceQlError> {
        self.field_tree(power::LOGIC).map(|(expr, _)| expr)
    }

    /// An expression whose operators bind at least as tightly as `min`.
    pub(super) fn field_tree(&mut self, min: u8) -> Result<Deep<FieldExpr>, TraceQlError> {
        let (mut left, mut height) = self.field_prefix()?;
        while let Some((operator, power)) = self.sign().and_then(operator) {
            if power < min {
                break;
            }
            self.advance();
            if let Operator::Binary(op @ (BinaryOp::Eq | BinaryOp::NotEq)) = operator
                && self.word() == Some("nil")
            {
                self.advance();
                left = nil_comparison(op, left);
                height += 1;
            } else {
                let right_associative = matches!(operator, Operator::Binary(BinaryOp::Pow));
                self.enter()?;
                let (right, deep) = self.field_tree(if right_associative { power } else { power + 1 })?;
                self.leave();
                // A chain of `&&` is a list: it gets longer, not deeper.
                let longer =
                    matches!((operator, &left), (Operator::And, FieldExpr::All(_)) | (Operator::Or, FieldExpr::Any(_)));
                height = if longer { height.max(deep + 1) } else { height.max(deep) + 1 };
                left = join(left, operator, right);
            }
            self.check_height(height)?;
        }
        Ok((left, height))
    }

    fn field_prefix(&mut self) -> Result<Deep<FieldExpr>, TraceQlError> {
        let wrap = match self.sign() {
            Some("(") => {
                self.advance();
                self.enter()?;
                let (inner, height) = self.field_tree(power::LOGIC)?;
                self.expect(")")?;
                self.leave();
                return Ok((inner, height));
            }
            Some("-") => negate,
            Some("!") => |inner| FieldExpr::Not(Box::new(inner)),
            _ => return self.field_atom().map(|atom| (atom, 1)),
        };
        // A minus binds like the binary one: -a * b is -(a * b), and -a + b is (-a) + b.
        let min = if self.sign() == Some("-") { power::ADD + 1 } else { power::NOT + 1 };
        self.advance();
        self.enter()?;
        let (inner, height) = self.field_tree(min)?;
        self.leave();
        self.check_height(height + 1)?;
        Ok((wrap(inner), height + 1))
    }

    fn field_atom(&mut self) -> Result<FieldExpr, TraceQlError> {
        if self.word() == Some("nil") {
            return self.nil_first();
        }
        if let Some(literal) = self.literal() {
            return Ok(FieldExpr::Literal(literal));
        }
        self.field().map(FieldExpr::Field)
    }

    /// `nil = a`, `nil != a`, `nil = nil`. Nothing else can be done with `nil`.
    fn nil_first(&mut self) -> Result<FieldExpr, TraceQlError> {
        self.advance();
        let op = match self.sign() {
            Some("=") => BinaryOp::Eq,
            Some("!=") => BinaryOp::NotEq,
            _ => return Err(self.unexpected("\"=\" or \"!=\" after nil")),
        };
        self.advance();
        if self.word() == Some("nil") {
            self.advance();
            return Ok(FieldExpr::Literal(Literal::Bool(false)));
        }
        let (right, height) = self.field_tree(power::COMPARE + 1)?;
        self.check_height(height + 1)?;
        Ok(nil_comparison(op, right))
    }

    /// A constant of any type, without a sign before it.
    pub(super) fn literal(&mut self) -> Option<Literal> {
        let literal = match self.peek() {
            TokenKind::String(text) => Literal::String(text.clone()),
            TokenKind::Int(i) => Literal::Int(*i),
            TokenKind::Float(f) => Literal::Float(*f),
            TokenKind::Duration(d) => Literal::Duration(*d),
            TokenKind::Word(word) => keyword(word)?,
            _ => return None,
        };
        self.advance();
        Some(literal)
    }

    /// An attribute or an intrinsic.
    pub(super) fn field(&mut self) -> Result<Field, TraceQlError> {
        let field = match self.peek() {
            TokenKind::Attribute(attribute) => Field::Attribute(attribute.clone()),
            TokenKind::IntrinsicScope(scope) => {
                let scope = *scope;
                self.advance();
                return self.scoped_intrinsic(scope);
            }
            TokenKind::Word(word) => {
                let known = Intrinsic::ALL.into_iter().find(|i| i.plain_name() == Some(word));
                Field::Intrinsic(known.ok_or_else(|| self.unknown_word(word))?)
            }
            _ => return Err(self.unexpected("an attribute, an intrinsic or a value")),
        };
        self.advance();
        Ok(field)
    }

    fn scoped_intrinsic(&mut self, scope: IntrinsicScope) -> Result<Field, TraceQlError> {
        let names = || Intrinsic::ALL.into_iter().filter_map(|i| Some((i, i.scoped_name()?)));
        let names = || names().filter(|(_, (s, _))| *s == scope).map(|(i, (_, name))| (i, name));
        let word = self.word().unwrap_or_default();
        if let Some((intrinsic, _)) = names().find(|(_, name)| *name == word) {
            self.advance();
            return Ok(Field::Intrinsic(intrinsic));
        }
        let all: Vec<_> = names().map(|(_, name)| name).collect();
        let expected = match nearest(word, all.iter().copied()) {
            Some(name) => format!("an intrinsic of \"{0}:\"; did you mean \"{0}:{name}\"?", scope.name()),
            None => format!("one of {} after \"{}:\"", all.join(", "), scope.name()),
        };
        Err(self.unexpected(&expected))
    }

    fn unknown_word(&self, word: &str) -> TraceQlError {
        let keywords = ["true", "false", "nil", "minInt", "maxInt"].into_iter();
        let keywords = keywords.chain(Status::ALL.map(Status::name)).chain(Kind::ALL.map(Kind::name));
        let known = Intrinsic::ALL.into_iter().filter_map(Intrinsic::plain_name).chain(keywords);
        // A scope that is misspelt: `resorce.service.name`.
        let attribute = match self.peek_second() {
            TokenKind::Attribute(Attribute { name, .. }) => Some(name),
            _ => None,
        };
        if let Some(name) = attribute {
            return self.unexpected(&match nearest(word, Scope::NAMED.map(Scope::name)) {
                Some(scope) => format!("a scope; did you mean \"{scope}.{name}\"?"),
                None => format!("a scope: one of {}", Scope::NAMED.map(Scope::name).join(", ")),
            });
        }
        let expected = match nearest(word, known) {
            Some(name) => format!("an intrinsic or a value; did you mean \"{name}\"?"),
            None => format!("an intrinsic or a value; attributes have a scope: \".{word}\", \"span.{word}\""),
        };
        self.unexpected(&expected)
    }
}

fn operator(sign: &str) -> Option<(Operator, u8)> {
    Some(match sign {
        "&&" => (Operator::And, power::LOGIC),
        "||" => (Operator::Or, power::LOGIC),
        _ => match comparison(sign) {
            Some(op) => (Operator::Binary(op), power::COMPARE),
            None => arithmetic(sign).map(|(op, power)| (Operator::Binary(op), power))?,
        },
    })
}

fn join(left: FieldExpr, operator: Operator, right: FieldExpr) -> FieldExpr {
    match (operator, left) {
        (Operator::And, FieldExpr::All(mut list)) => {
            list.push(right);
            FieldExpr::All(list)
        }
        (Operator::Or, FieldExpr::Any(mut list)) => {
            list.push(right);
            FieldExpr::Any(list)
        }
        (Operator::And, left) => FieldExpr::All(vec![left, right]),
        (Operator::Or, left) => FieldExpr::Any(vec![left, right]),
        (Operator::Binary(op), left) => FieldExpr::Binary { op, left: Box::new(left), right: Box::new(right) },
    }
}

fn nil_comparison(op: BinaryOp, expr: FieldExpr) -> FieldExpr {
    if op == BinaryOp::Eq { FieldExpr::Missing(Box::new(expr)) } else { FieldExpr::Exists(Box::new(expr)) }
}

fn negate(inner: FieldExpr) -> FieldExpr {
    match inner {
        FieldExpr::Literal(Literal::Int(i)) => FieldExpr::Literal(Literal::Int(i.wrapping_neg())),
        FieldExpr::Literal(Literal::Float(f)) => FieldExpr::Literal(Literal::Float(-f)),
        FieldExpr::Literal(Literal::Duration(d)) => FieldExpr::Literal(Literal::Duration(d.wrapping_neg())),
        inner => FieldExpr::Negate(Box::new(inner)),
    }
}

fn keyword(word: &str) -> Option<Literal> {
    Some(match word {
        "true" => Literal::Bool(true),
        "false" => Literal::Bool(false),
        "minInt" => Literal::Int(i64::MIN),
        "maxInt" => Literal::Int(i64::MAX),
        _ => match Status::ALL.into_iter().find(|s| s.name() == word) {
            Some(status) => Literal::Status(status),
            None => Literal::Kind(Kind::ALL.into_iter().find(|k| k.name() == word)?),
        },
    })
}
