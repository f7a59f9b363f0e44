//! What tells one series from another.

use std::cmp::Ordering;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue};

use crate::query::value::{Value, go_duration};

/// Name and value.
pub type Label = (String, LabelValue);

/// The value of a label. It keeps its type: clients show `200` and `"200"` as two series.
#[derive(Clone, Debug)]
pub enum LabelValue {
    /// The spans do not have it.
    Nil,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any number.
    Float(f64),
    /// A text; also keywords and durations.
    Text(String),
    /// An array.
    List(Vec<LabelValue>),
}

impl LabelValue {
    /// The value of a field as a label. Bytes and maps are not told apart, so they are none.
    pub(super) fn of(value: &Value<'_>) -> Self {
        match value {
            Value::Nil | Value::Opaque(_) => Self::Nil,
            Value::Bool(truth) => Self::Bool(*truth),
            Value::Int(int) => Self::Int(*int),
            Value::Float(float) => Self::Float(*float),
            Value::Duration(nanos) => Self::Text(go_duration(*nanos)),
            Value::String(text) => Self::Text(text.clone().into_owned()),
            Value::Status(status) => Self::Text(status.name().to_owned()),
            Value::Kind(kind) => Self::Text(kind.name().to_owned()),
            Value::List(values) => Self::List(values.iter().map(Self::of).collect()),
        }
    }

    /// A text.
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// As answers carry it; what is missing is the text `nil`.
    pub fn to_any(&self) -> AnyValue {
        let value = match self {
            Self::Nil => Any::StringValue("nil".to_owned()),
            Self::Bool(truth) => Any::BoolValue(*truth),
            Self::Int(int) => Any::IntValue(*int),
            Self::Float(float) => Any::DoubleValue(*float),
            Self::Text(text) => Any::StringValue(text.clone()),
            Self::List(values) => Any::ArrayValue(ArrayValue { values: values.iter().map(Self::to_any).collect() }),
        };
        AnyValue { value: Some(value) }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Nil => 0,
            Self::Bool(_) => 1,
            Self::Int(_) => 2,
            Self::Float(_) => 3,
            Self::Text(_) => 4,
            Self::List(_) => 5,
        }
    }
}

impl Ord for LabelValue {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::List(a), Self::List(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for LabelValue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for LabelValue {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for LabelValue {}

/// Appends bytes that are the same for the same label only, so that a span finds its series without owning its values.
pub(super) fn write_key(value: &Value<'_>, key: &mut Vec<u8>) {
    let mut write = |tag: u8, bytes: &[u8]| {
        key.push(tag);
        key.extend(bytes.len().to_le_bytes());
        key.extend(bytes);
    };
    match value {
        Value::Nil | Value::Opaque(_) => write(0, &[]),
        Value::Bool(truth) => write(1, &[u8::from(*truth)]),
        Value::Int(int) => write(2, &int.to_le_bytes()),
        Value::Float(float) => write(3, &float.to_le_bytes()),
        Value::Duration(nanos) => write(4, go_duration(*nanos).as_bytes()),
        Value::String(text) => write(4, text.as_bytes()),
        Value::Status(status) => write(4, status.name().as_bytes()),
        Value::Kind(kind) => write(4, kind.name().as_bytes()),
        Value::List(values) => {
            write(5, &values.len().to_le_bytes());
            for value in values {
                write_key(value, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value<'static>> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::Bool),
            (0i64..3).prop_map(Value::Int),
            prop_oneof![Just(0.0), Just(-0.0), Just(1.0), Just(f64::NAN)].prop_map(Value::Float),
            "[ab]{0,2}".prop_map(Value::text),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Value::List))
    }

    proptest! {
        #[test]
        fn keys_are_the_same_for_the_same_labels_only(a in prop::collection::vec(value(), 2), b in prop::collection::vec(value(), 2)) {
            let key = |values: &[Value<'_>]| {
                let mut key = Vec::new();
                for value in values {
                    write_key(value, &mut key);
                }
                key
            };
            let labels = |values: &[Value<'_>]| values.iter().map(LabelValue::of).collect::<Vec<_>>();
            prop_assert_eq!(key(&a) == key(&b), labels(&a) == labels(&b));
        }
    }
}
