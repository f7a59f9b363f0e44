//! What operators mean, which depends on what is left of them, and how tightly they bind.

use super::ast::{BinaryOp, MetricsExpr, ScalarExpr, SpansetExpr, SpansetOp};

/// Binding powers, see the comment of `parser.rs`.
pub(super) mod power {
    pub(in super::super) const LOGIC: u8 = 1;
    pub(in super::super) const COMPARE: u8 = 2;
    pub(in super::super) const ADD: u8 = 3;
    pub(in super::super) const NOT: u8 = 4;
    pub(in super::super) const MUL: u8 = 5;
    pub(in super::super) const POW: u8 = 6;
    pub(in super::super) const ATOM: u8 = 7;
}

/// What an operator can stand after.
pub(super) enum Operand {
    Spanset(SpansetExpr),
    Scalar(ScalarExpr),
    Metrics(MetricsExpr),
}

/// The comparison that a sign stands for.
pub(super) fn comparison(sign: &str) -> Option<BinaryOp> {
    Some(match sign {
        "=" => BinaryOp::Eq,
        "!=" => BinaryOp::NotEq,
        "<" => BinaryOp::Less,
        "<=" => BinaryOp::LessEq,
        ">" => BinaryOp::Greater,
        ">=" => BinaryOp::GreaterEq,
        "=~" => BinaryOp::Match,
        "!~" => BinaryOp::NotMatch,
        _ => return None,
    })
}

/// Whether a comparison is one between numbers.
pub(super) fn is_order(op: BinaryOp) -> bool {
    !matches!(op, BinaryOp::Match | BinaryOp::NotMatch)
}

/// The arithmetic that a sign stands for, and its binding power.
pub(super) fn arithmetic(sign: &str) -> Option<(BinaryOp, u8)> {
    Some(match sign {
        "+" => (BinaryOp::Add, power::ADD),
        "-" => (BinaryOp::Sub, power::ADD),
        "*" => (BinaryOp::Mul, power::MUL),
        "/" => (BinaryOp::Div, power::MUL),
        "%" => (BinaryOp::Mod, power::MUL),
        "^" => (BinaryOp::Pow, power::POW),
        _ => return None,
    })
}

fn spanset_op(sign: &str) -> Option<SpansetOp> {
    SpansetOp::ALL.into_iter().find(|op| op.sign() == sign)
}

/// How tightly an operator after `left` binds, and how tightly what comes after it must.
pub(super) fn binding(sign: &str, left: &Operand) -> Option<(u8, u8)> {
    let (power, right_associative) = match left {
        Operand::Spanset(_) => match spanset_op(sign)? {
            SpansetOp::And | SpansetOp::Or => (power::LOGIC, false),
            _ => (power::COMPARE, false),
        },
        Operand::Scalar(_) => arithmetic(sign).map(|(op, power)| (power, op == BinaryOp::Pow))?,
        Operand::Metrics(_) => {
            let (op, power) = arithmetic(sign)?;
            if matches!(op, BinaryOp::Mod | BinaryOp::Pow) {
                return None;
            }
            (power, false)
        }
    };
    Some((power, if right_associative { power } else { power + 1 }))
}

/// `left sign right`, if that means anything.
pub(super) fn combine(left: Operand, sign: &'static str, right: Operand) -> Option<Operand> {
    Some(match (left, right) {
        (Operand::Spanset(left), Operand::Spanset(right)) => {
            let op = spanset_op(sign)?;
            Operand::Spanset(SpansetExpr::Binary { op, left: Box::new(left), right: Box::new(right) })
        }
        (Operand::Scalar(left), Operand::Scalar(right)) => {
            let (op, _) = arithmetic(sign)?;
            Operand::Scalar(ScalarExpr::Binary { op, left: Box::new(left), right: Box::new(right) })
        }
        (left, right) => {
            let (op, _) = arithmetic(sign)?;
            if matches!(op, BinaryOp::Mod | BinaryOp::Pow) {
                return None;
            }
            let (left, right) = (Box::new(metrics_of(left)?), Box::new(metrics_of(right)?));
            Operand::Metrics(MetricsExpr::Binary { op, left, right })
        }
    })
}

fn metrics_of(operand: Operand) -> Option<MetricsExpr> {
    match operand {
        Operand::Metrics(metrics) => Some(metrics),
        Operand::Scalar(scalar) => constant_of(scalar),
        Operand::Spanset(_) => None,
    }
}

/// A number, or arithmetic between numbers.
fn constant_of(scalar: ScalarExpr) -> Option<MetricsExpr> {
    match scalar {
        ScalarExpr::Literal(literal) => Some(MetricsExpr::Literal(literal)),
        ScalarExpr::Binary { op, left, right } => {
            let (left, right) = (Box::new(constant_of(*left)?), Box::new(constant_of(*right)?));
            Some(MetricsExpr::Binary { op, left, right })
        }
        ScalarExpr::Aggregate(_) | ScalarExpr::Pipeline(..) => None,
    }
}
