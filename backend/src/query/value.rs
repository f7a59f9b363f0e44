//! What an expression gives, and how two of them compare.

use std::borrow::Cow;
use std::cmp::Ordering;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue};

use crate::otlp::ValueRef;
use crate::traceql::{BinaryOp, Kind, Literal, Status};

/// A value of a span, a constant, or the result of an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Not there.
    Nil,
    /// `boolValue`.
    Bool(bool),
    /// `intValue`.
    Int(i64),
    /// `doubleValue`.
    Float(f64),
    /// Nanoseconds.
    Duration(i64),
    /// `stringValue`.
    String(Cow<'a, str>),
    /// Outcome of a span.
    Status(Status),
    /// Side of a span.
    Kind(Kind),
    /// `arrayValue`, or one value for each event or link of a span.
    List(Vec<Value<'a>>),
    /// Bytes or a map: there, but equal to nothing.
    Opaque(Cow<'a, AnyValue>),
}

impl<'a> Value<'a> {
    /// The value of an attribute.
    pub fn of(any: Option<&'a AnyValue>) -> Self {
        let Some(any) = any else { return Self::Nil };
        match &any.value {
            None => Self::Nil,
            Some(Any::StringValue(text)) => Self::String(Cow::Borrowed(text)),
            Some(Any::BoolValue(truth)) => Self::Bool(*truth),
            Some(Any::IntValue(int)) => Self::Int(*int),
            Some(Any::DoubleValue(float)) => Self::Float(*float),
            Some(Any::ArrayValue(array)) => Self::List(array.values.iter().map(|v| Self::of(Some(v))).collect()),
            Some(Any::KvlistValue(_) | Any::BytesValue(_) | Any::StringValueStrindex(_)) => {
                Self::Opaque(Cow::Borrowed(any))
            }
        }
    }

    /// The value of an attribute of an encoded span.
    pub fn of_encoded(value: Option<ValueRef<'a>>) -> Self {
        match value {
            None | Some(ValueRef::Empty) => Self::Nil,
            Some(ValueRef::String(text)) => Self::text_of(text.as_str()),
            Some(ValueRef::Bool(truth)) => Self::Bool(truth),
            Some(ValueRef::Int(int)) => Self::Int(int),
            Some(ValueRef::Double(float)) => Self::Float(float),
            Some(ValueRef::Array(array)) => {
                Self::List(array.elements().map(|element| Self::of_encoded(Some(element))).collect())
            }
            Some(ValueRef::Other(other)) => Self::Opaque(Cow::Owned(other.decode())),
        }
    }

    /// One value for many: nothing, the only one, or a list.
    pub fn of_many(mut values: Vec<Self>) -> Self {
        if values.len() > 1 { Self::List(values) } else { values.pop().unwrap_or(Self::Nil) }
    }

    /// A constant.
    pub fn constant(literal: &'a Literal) -> Self {
        match literal {
            Literal::String(text) => Self::String(Cow::Borrowed(text)),
            Literal::Int(int) => Self::Int(*int),
            Literal::Float(float) => Self::Float(*float),
            Literal::Duration(nanos) => Self::Duration(*nanos),
            Literal::Bool(truth) => Self::Bool(*truth),
            Literal::Status(status) => Self::Status(*status),
            Literal::Kind(kind) => Self::Kind(*kind),
        }
    }

    /// The same value, of which nothing is owned.
    #[must_use]
    pub fn borrowed(&self) -> Value<'_> {
        match self {
            Self::Nil => Value::Nil,
            Self::Bool(truth) => Value::Bool(*truth),
            Self::Int(int) => Value::Int(*int),
            Self::Float(float) => Value::Float(*float),
            Self::Duration(nanos) => Value::Duration(*nanos),
            Self::String(text) => Value::String(Cow::Borrowed(text)),
            Self::Status(status) => Value::Status(*status),
            Self::Kind(kind) => Value::Kind(*kind),
            Self::List(values) => Value::List(values.iter().map(Value::borrowed).collect()),
            Self::Opaque(any) => Value::Opaque(Cow::Borrowed(any)),
        }
    }

    /// A text that somebody else owns.
    pub fn text_of(text: &'a str) -> Self {
        Self::String(Cow::Borrowed(text))
    }

    /// A text that the value owns.
    pub fn text(text: String) -> Self {
        Self::String(Cow::Owned(text))
    }

    /// True only for true itself: a filter lets nothing else pass.
    pub fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    /// Whether there is something.
    pub fn exists(&self) -> bool {
        !matches!(self, Self::Nil)
    }

    /// As a number; durations in nanoseconds.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(int) | Self::Duration(int) => Some(*int as f64),
            Self::Float(float) => Some(*float),
            _ => None,
        }
    }

    /// As a whole number; durations in nanoseconds.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Int(int) | Self::Duration(int) => Some(*int),
            _ => None,
        }
    }

    /// As the answer to a search shows it: what is not there is the text `nil`.
    pub fn to_any(&self) -> AnyValue {
        let value = match self {
            Self::Nil => Any::StringValue("nil".to_owned()),
            Self::Bool(truth) => Any::BoolValue(*truth),
            Self::Int(int) => Any::IntValue(*int),
            Self::Float(float) => Any::DoubleValue(*float),
            Self::Duration(nanos) => Any::StringValue(go_duration(*nanos)),
            Self::String(text) => Any::StringValue(text.clone().into_owned()),
            Self::Status(status) => Any::StringValue(status.name().to_owned()),
            Self::Kind(kind) => Any::StringValue(kind.name().to_owned()),
            Self::List(values) => Any::ArrayValue(ArrayValue { values: values.iter().map(Value::to_any).collect() }),
            Self::Opaque(any) => return any.clone().into_owned(),
        };
        AnyValue { value: Some(value) }
    }

    /// Whether `self op other`. False whenever the two are of different types, or one is missing: also for `!=`.
    ///
    /// A list fulfils a comparison if one of its elements does, and `!=` if it has elements of the type and none is equal.
    pub fn compare(&self, op: BinaryOp, other: &Self) -> bool {
        match (self, other) {
            (Self::List(_), Self::List(_)) => false,
            (Self::List(values), one) => compare_list(values, op, |value, op| value.compare(op, one)),
            (one, Self::List(values)) => compare_list(values, op, |value, op| one.compare(op, value)),
            _ => match op {
                BinaryOp::Eq => self.equals(other).unwrap_or(false),
                BinaryOp::NotEq => self.equals(other).is_some_and(|equal| !equal),
                BinaryOp::Less => self.order(other) == Some(Ordering::Less),
                BinaryOp::LessEq => matches!(self.order(other), Some(Ordering::Less | Ordering::Equal)),
                BinaryOp::Greater => self.order(other) == Some(Ordering::Greater),
                BinaryOp::GreaterEq => matches!(self.order(other), Some(Ordering::Greater | Ordering::Equal)),
                _ => false,
            },
        }
    }

    /// `None` if the types do not match.
    fn equals(&self, other: &Self) -> Option<bool> {
        match (self, other) {
            (Self::String(a), Self::String(b)) => Some(a == b),
            (Self::Bool(a), Self::Bool(b)) => Some(a == b),
            (Self::Status(a), Self::Status(b)) => Some(a == b),
            (Self::Kind(a), Self::Kind(b)) => Some(a == b),
            _ => match (self.integer(), other.integer()) {
                (Some(a), Some(b)) => Some(a == b),
                _ => self.number().zip(other.number()).map(|(a, b)| a.partial_cmp(&b) == Some(Ordering::Equal)),
            },
        }
    }

    /// `None` if the types do not match, or have no order.
    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::String(a), Self::String(b)) => Some(a.cmp(b)),
            _ => match (self.integer(), other.integer()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => self.number().zip(other.number()).and_then(|(a, b)| a.partial_cmp(&b)),
            },
        }
    }

    /// Whether the text, or one text of a list, matches; negated: whether there are texts and none does.
    pub fn matches(&self, regex: &regex::Regex, negated: bool) -> bool {
        match self {
            Self::String(text) => regex.is_match(text) != negated,
            Self::List(values) => {
                let mut texts = values.iter().filter(|value| matches!(value, Self::String(_))).peekable();
                let some = texts.peek().is_some();
                some && texts.any(|text| text.matches(regex, false)) != negated
            }
            _ => false,
        }
    }

    /// `self op other` for numbers; nothing else has arithmetic.
    ///
    /// Two integers give an integer, unless it does not fit; anything else a float. Division by zero gives nothing.
    #[must_use]
    pub fn arithmetic(&self, op: BinaryOp, other: &Self) -> Self {
        if let (Self::Int(a), Self::Int(b)) = (self, other) {
            let exact = match op {
                BinaryOp::Add => a.checked_add(*b),
                BinaryOp::Sub => a.checked_sub(*b),
                BinaryOp::Mul => a.checked_mul(*b),
                BinaryOp::Div | BinaryOp::Mod if *b == 0 => return Self::Nil,
                BinaryOp::Div => a.checked_div(*b),
                BinaryOp::Mod => a.checked_rem(*b),
                BinaryOp::Pow => u32::try_from(*b).ok().and_then(|exponent| a.checked_pow(exponent)),
                _ => None,
            };
            if let Some(int) = exact {
                return Self::Int(int);
            }
        }
        let (Some(a), Some(b)) = (self.number(), other.number()) else { return Self::Nil };
        Self::Float(match op {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div | BinaryOp::Mod if b == 0.0 => return Self::Nil,
            BinaryOp::Div => a / b,
            BinaryOp::Mod => a % b,
            BinaryOp::Pow => a.powf(b),
            _ => return Self::Nil,
        })
    }

    /// `-self`.
    #[must_use]
    pub fn negate(&self) -> Self {
        match self {
            Self::Int(int) => Self::Int(int.wrapping_neg()),
            Self::Duration(nanos) => Self::Duration(nanos.wrapping_neg()),
            Self::Float(float) => Self::Float(-float),
            _ => Self::Nil,
        }
    }
}

fn compare_list<'a>(values: &[Value<'a>], op: BinaryOp, holds: impl Fn(&Value<'a>, BinaryOp) -> bool) -> bool {
    if op == BinaryOp::NotEq {
        return values.iter().any(|value| holds(value, BinaryOp::NotEq))
            && !values.iter().any(|value| holds(value, BinaryOp::Eq));
    }
    values.iter().any(|value| holds(value, op))
}

/// A duration as Go prints it: `1m30s`, `446.979497ms`, `0s`.
pub fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let fraction = |unit: u64, digits: usize| {
        let rest = format!("{:0digits$}", nanos % unit);
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { String::new() } else { format!(".{rest}") }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{nanos}ns"),
        1_000..1_000_000 => format!("{sign}{}{}µs", nanos / 1_000, fraction(1_000, 3)),
        1_000_000..1_000_000_000 => format!("{sign}{}{}ms", nanos / 1_000_000, fraction(1_000_000, 6)),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let hours = if seconds >= 3_600 { format!("{}h", seconds / 3_600) } else { String::new() };
            let minutes = if seconds >= 60 { format!("{}m", seconds / 60 % 60) } else { String::new() };
            format!("{sign}{hours}{minutes}{}{}s", seconds % 60, fraction(1_000_000_000, 9))
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn text(text: &str) -> Value<'_> {
        Value::String(Cow::Borrowed(text))
    }

    fn list(values: &[Value<'static>]) -> Value<'static> {
        Value::List(values.to_vec())
    }

    /// Which of `= != < <= > >=` hold.
    fn holds(a: &Value<'_>, b: &Value<'_>) -> String {
        let ops =
            [BinaryOp::Eq, BinaryOp::NotEq, BinaryOp::Less, BinaryOp::LessEq, BinaryOp::Greater, BinaryOp::GreaterEq];
        let held: Vec<_> = ops.into_iter().filter(|op| a.compare(*op, b)).map(BinaryOp::sign).collect();
        held.join(" ")
    }

    #[rstest]
    #[case::ints(Value::Int(1), Value::Int(2), "!= < <=")]
    #[case::same_ints(Value::Int(2), Value::Int(2), "= <= >=")]
    #[case::big_ints(Value::Int(i64::MAX), Value::Int(i64::MAX - 1), "!= > >=")]
    #[case::int_and_float(Value::Int(2), Value::Float(1.5), "!= > >=")]
    #[case::duration_and_int(Value::Duration(5), Value::Int(5), "= <= >=")]
    #[case::duration_and_float(Value::Duration(5), Value::Float(5.5), "!= < <=")]
    #[case::not_a_number(Value::Float(f64::NAN), Value::Int(1), "!=")]
    #[case::strings(text("a"), text("b"), "!= < <=")]
    #[case::same_strings(text("a"), text("a"), "= <= >=")]
    #[case::bools(Value::Bool(true), Value::Bool(false), "!=")]
    #[case::same_bools(Value::Bool(true), Value::Bool(true), "=")]
    #[case::statuses(Value::Status(Status::Ok), Value::Status(Status::Error), "!=")]
    #[case::kinds(Value::Kind(Kind::Server), Value::Kind(Kind::Server), "=")]
    #[case::string_and_int(text("1"), Value::Int(1), "")]
    #[case::bool_and_string(Value::Bool(true), text("true"), "")]
    #[case::status_and_kind(Value::Status(Status::Ok), Value::Kind(Kind::Server), "")]
    #[case::missing(Value::Nil, Value::Int(1), "")]
    #[case::both_missing(Value::Nil, Value::Nil, "")]
    #[case::list_has_it(list(&[Value::Int(1), Value::Int(3)]), Value::Int(3), "= < <= >=")]
    #[case::list_has_it_not(list(&[Value::Int(1), Value::Int(3)]), Value::Int(2), "!= < <= > >=")]
    #[case::list_on_the_right(Value::Int(1), list(&[Value::Int(1), Value::Int(3)]), "= < <= >=")]
    #[case::list_of_other_type(list(&[Value::Bool(true)]), Value::Int(2), "")]
    #[case::empty_list(list(&[]), Value::Int(2), "")]
    #[case::two_lists(list(&[Value::Int(1)]), list(&[Value::Int(1)]), "")]
    fn compares(#[case] a: Value<'_>, #[case] b: Value<'_>, #[case] held: &str) {
        assert_eq!(holds(&a, &b), held);
    }

    #[rstest]
    #[case::text(text("abc"), true, false)]
    #[case::other_text(text("abcd"), false, true)]
    #[case::one_of_a_list(list(&[Value::text("x".into()), Value::text("abc".into())]), true, false)]
    #[case::none_of_a_list(list(&[Value::text("x".into())]), false, true)]
    #[case::list_without_text(list(&[Value::Int(1)]), false, false)]
    #[case::number(Value::Int(1), false, false)]
    #[case::missing(Value::Nil, false, false)]
    fn matches_whole_texts(#[case] value: Value<'_>, #[case] matches: bool, #[case] not_matches: bool) {
        let regex = crate::traceql::regex_of("a.c").unwrap();
        assert_eq!((value.matches(&regex, false), value.matches(&regex, true)), (matches, not_matches));
    }

    #[rstest]
    #[case::ints(Value::Int(7), BinaryOp::Div, Value::Int(2), Value::Int(3))]
    #[case::by_zero(Value::Int(7), BinaryOp::Div, Value::Int(0), Value::Nil)]
    #[case::rest_by_zero(Value::Int(7), BinaryOp::Mod, Value::Int(0), Value::Nil)]
    #[case::float_by_zero(Value::Float(7.0), BinaryOp::Div, Value::Int(0), Value::Nil)]
    #[case::power(Value::Int(2), BinaryOp::Pow, Value::Int(10), Value::Int(1024))]
    #[case::negative_power(Value::Int(2), BinaryOp::Pow, Value::Int(-1), Value::Float(0.5))]
    #[case::mixed(Value::Int(1), BinaryOp::Add, Value::Float(0.5), Value::Float(1.5))]
    #[case::too_big(Value::Int(i64::MAX), BinaryOp::Add, Value::Int(1), Value::Float(9_223_372_036_854_775_807.0))]
    #[case::durations(Value::Duration(3), BinaryOp::Sub, Value::Duration(1), Value::Float(2.0))]
    #[case::text(text("a"), BinaryOp::Add, text("b"), Value::Nil)]
    #[case::missing(Value::Nil, BinaryOp::Add, Value::Int(1), Value::Nil)]
    fn calculates(#[case] a: Value<'_>, #[case] op: BinaryOp, #[case] b: Value<'_>, #[case] result: Value<'_>) {
        assert_eq!(a.arithmetic(op, &b), result);
    }

    #[rstest]
    #[case(0, "0s")]
    #[case(100, "100ns")]
    #[case(1_500, "1.5µs")]
    #[case(446_979_497, "446.979497ms")]
    #[case(1_500_000_000, "1.5s")]
    #[case(90_000_000_000, "1m30s")]
    #[case(3_600_000_000_000, "1h0m0s")]
    #[case(-2_000_000, "-2ms")]
    fn prints_durations_like_go(#[case] nanos: i64, #[case] printed: &str) {
        assert_eq!(go_duration(nanos), printed);
    }
}
