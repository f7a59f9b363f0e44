//! Attributes that become labels: found in one walk over a span, and written as text.

use std::fmt::Write;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

use crate::otlp::{SpanRef, ValueRef};

/// Keys of attributes that are looked for in spans; each has a number.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    keys: Vec<Box<str>>,
    /// Those that were added since it was last asked.
    added: Asked,
}

/// Some of the wanted keys, by their lengths: bit for each, to pass over most attributes at once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked(u64);

impl Asked {
    const fn of(key: &[u8]) -> Self {
        Self(1 << (key.len() & 63))
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn may_have(self, key: &[u8]) -> bool {
        self.0 & Self::of(key).0 != 0
    }
}

impl Wanted {
    /// Number of a key.
    pub(super) fn add(&mut self, key: &str) -> usize {
        self.added = self.added.and(Asked::of(key.as_bytes()));
        if let Some(number) = self.keys.iter().position(|known| **known == *key) {
            return number;
        }
        self.keys.push(key.into());
        self.keys.len() - 1
    }

    /// Those that were added since this was last called.
    pub(super) fn added(&mut self) -> Asked {
        std::mem::take(&mut self.added)
    }

    /// The values that a span has of those that are asked for, and maybe of others, by number. `found` is reused.
    pub(super) fn find<'a>(&self, span: &SpanRef<'a>, asked: Asked, found: &mut Vec<Option<ValueRef<'a>>>) {
        found.clear();
        if asked.0 == 0 {
            return;
        }
        found.resize(self.keys.len(), None);
        for attribute in span.attributes().of_keys(|key| asked.may_have(key.as_bytes())) {
            let key = attribute.key.as_bytes();
            let number = self.keys.iter().position(|known| known.as_bytes() == key);
            // Of two with the same key the first counts.
            if let Some(slot) = number.and_then(|number| found.get_mut(number)).filter(|slot| slot.is_none()) {
                *slot = attribute.value;
            }
        }
    }
}

/// A found value that says something.
pub(super) fn found<'a>(values: &[Option<ValueRef<'a>>], number: usize) -> Option<ValueRef<'a>> {
    let value = (*values.get(number)?)?;
    match value {
        ValueRef::Empty => None,
        ValueRef::String(text) if text.is_empty() => None,
        value => Some(value),
    }
}

/// Appends a value as text.
pub(super) fn write_value(value: ValueRef<'_>, text: &mut Vec<u8>) {
    match value {
        ValueRef::Empty => {}
        ValueRef::String(string) => text.extend_from_slice(string.as_bytes()),
        ValueRef::Bool(truth) => write_any(&Value::BoolValue(truth), text),
        ValueRef::Int(int) => write_any(&Value::IntValue(int), text),
        ValueRef::Double(double) => write_any(&Value::DoubleValue(double), text),
        ValueRef::Array(encoded) | ValueRef::Other(encoded) => {
            if let Some(value) = encoded.decode().value {
                write_any(&value, text);
            }
        }
    }
}

/// A value as text.
pub(super) fn text_of(value: ValueRef<'_>) -> String {
    let mut text = Vec::new();
    write_value(value, &mut text);
    String::from_utf8(text).unwrap_or_default()
}

/// An attribute of a resource as text; none if it says nothing.
pub(super) fn of_resource(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    let mut text = Vec::new();
    write_any(attribute.value.as_ref()?.value.as_ref()?, &mut text);
    String::from_utf8(text).ok().filter(|text| !text.is_empty())
}

fn write_any(value: &Value, text: &mut Vec<u8>) {
    let shown = match value {
        Value::StringValue(string) => {
            text.extend_from_slice(string.as_bytes());
            return;
        }
        Value::BoolValue(truth) => truth.to_string(),
        Value::IntValue(int) => int.to_string(),
        Value::DoubleValue(double) => double.to_string(),
        value => json(value),
    };
    text.extend_from_slice(shown.as_bytes());
}

/// Lists and maps, and what is in them.
fn json(value: &Value) -> String {
    let inner = |value: &Option<AnyValue>| {
        value.as_ref().and_then(|any| any.value.as_ref()).map_or_else(|| "null".to_owned(), json)
    };
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = match value {
        Value::StringValue(string) => write!(text, "{}", serde_json::Value::from(string.as_str())),
        Value::BoolValue(truth) => write!(text, "{truth}"),
        Value::IntValue(int) => write!(text, "{int}"),
        Value::DoubleValue(double) => write!(text, "{double}"),
        Value::ArrayValue(array) => {
            let elements: Vec<_> = array.values.iter().map(|any| inner(&Some(any.clone()))).collect();
            write!(text, "[{}]", elements.join(","))
        }
        Value::KvlistValue(pairs) => {
            let pair =
                |pair: &KeyValue| format!("{}:{}", serde_json::Value::from(pair.key.as_str()), inner(&pair.value));
            write!(text, "{{{}}}", pairs.values.iter().map(pair).collect::<Vec<_>>().join(","))
        }
        Value::BytesValue(bytes) => bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")),
        Value::StringValueStrindex(_) => Ok(()),
    };
    text
}

/// An attribute's key as the name of a label: what no name may have is `_`. `taken` are names that mean something else.
pub(super) fn label_name(key: &str, taken: &[&str]) -> String {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut name: String = key.chars().map(|letter| if allowed(letter) { letter } else { '_' }).collect();
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    if taken.contains(&name.as_str()) {
        name.insert_str(0, "__");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message;
    use rstest::rstest;

    #[rstest]
    #[case("service.name", "service_name")]
    #[case("http.response.status-code", "http_response_status_code")]
    #[case("1st", "_1st")]
    #[case("é", "_")]
    #[case("span.kind", "__span_kind")]
    fn names_of_labels(#[case] key: &str, #[case] name: &str) {
        assert_eq!(label_name(key, &["span_kind", "service"]), name);
    }

    #[test]
    fn wanted_attributes_are_found_by_their_numbers() {
        let attribute = |key: &str, value: Value| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        };
        let attributes = vec![
            attribute("other", Value::BoolValue(true)),
            attribute("b", Value::IntValue(7)),
            attribute("b", Value::IntValue(8)),
            attribute("c", Value::StringValue(String::new())),
        ];
        let bytes = Span { attributes, ..Span::default() }.encode_to_vec();
        let mut wanted = Wanted::default();
        assert_eq!(["a", "b", "a", "c"].map(|key| wanted.add(key)), [0, 1, 0, 2]);
        let mut values = Vec::new();
        wanted.find(&SpanRef::parse(&bytes), wanted.clone().added(), &mut values);
        assert_eq!(
            [0, 1, 2, 3].map(|number| found(&values, number).map(text_of)),
            [None, Some("7".to_owned()), None, None]
        );
        wanted.find(&SpanRef::parse(&bytes), Asked::default(), &mut values);
        assert!(values.is_empty());
    }

    #[test]
    fn who_asks_for_nothing_is_told_so() {
        let mut wanted = Wanted::default();
        wanted.add("of.one");
        assert!(wanted.added().may_have(b"of.one"));
        assert_eq!(wanted.added().0, 0);
        wanted.add("of.another");
        let asked = wanted.added();
        assert!(asked.may_have(b"of.another") && !asked.may_have(b"of.one"));
    }
}
