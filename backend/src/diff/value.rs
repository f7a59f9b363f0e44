//! Values of attributes, compared and shown.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use serde_json::Value;

/// How far apart two magnitudes may be, of the larger one, and still count as the same.
const MAGNITUDE: f64 = 0.05;

/// Attributes that are magnitudes in OpenTelemetry's semantic conventions: sizes, numbers of tokens and times, in their
/// present and their former names. Small differences of them mean nothing.
const MAGNITUDES: [&str; 24] = [
    "app.jank.period",
    "file.size",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.completion_tokens",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.prompt_tokens",
    "gen_ai.usage.reasoning.output_tokens",
    "http.request.body.size",
    "http.request.size",
    "http.request_content_length",
    "http.request_content_length_uncompressed",
    "http.response.body.size",
    "http.response.size",
    "http.response_content_length",
    "http.response_content_length_uncompressed",
    "message.compressed_size",
    "message.uncompressed_size",
    "messaging.message.body.size",
    "messaging.message.envelope.size",
    "rpc.message.compressed_size",
    "rpc.message.uncompressed_size",
];

pub(super) type Attributes<'t> = BTreeMap<&'t str, Option<&'t Any>>;

/// Of a key that comes several times the last value, as a map has it.
pub(super) fn attributes(list: &[KeyValue]) -> Attributes<'_> {
    list.iter().map(|attribute| (attribute.key.as_str(), inner(attribute.value.as_ref()))).collect()
}

fn inner(value: Option<&AnyValue>) -> Option<&Any> {
    value?.value.as_ref()
}

/// Whether two numbers are as near as `relative`, a part of the larger one, and `absolute` together allow.
pub(super) fn near(a: f64, b: f64, relative: f64, absolute: f64) -> bool {
    (a - b).abs() <= absolute + relative * a.abs().max(b.abs())
}

/// Whether an attribute has changed so that it is worth a word.
pub(super) fn differs(key: &str, before: Option<&Any>, after: Option<&Any>) -> bool {
    match (number(before), number(after)) {
        (Some(a), Some(b)) if MAGNITUDES.contains(&key) => !near(a, b, MAGNITUDE, 0.0) && !same(before, after),
        _ => !same(before, after),
    }
}

fn number(value: Option<&Any>) -> Option<f64> {
    match value? {
        Any::IntValue(int) => Some(*int as f64),
        Any::DoubleValue(double) => Some(*double),
        _ => None,
    }
}

/// A whole and a fractional number are the same if they are equal, and what is no number is the same as itself.
fn same(a: Option<&Any>, b: Option<&Any>) -> bool {
    match (a, b) {
        (Some(Any::ArrayValue(a)), Some(Any::ArrayValue(b))) => {
            a.values.len() == b.values.len()
                && a.values.iter().zip(&b.values).all(|(a, b)| same(a.value.as_ref(), b.value.as_ref()))
        }
        (Some(Any::KvlistValue(a)), Some(Any::KvlistValue(b))) => {
            let (a, b) = (attributes(&a.values), attributes(&b.values));
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(*a, *b)))
        }
        (Some(Any::IntValue(a)), Some(Any::IntValue(b))) => a == b,
        (a, b) => match (number(a), number(b)) {
            (Some(a), Some(b)) => a.partial_cmp(&b).map_or(a.is_nan() && b.is_nan(), Ordering::is_eq),
            _ => a == b,
        },
    }
}

/// As JSON; bytes are base64, and of numbers those that JSON does not have are text.
pub(super) fn shown(value: Option<&Any>) -> Value {
    match value {
        None | Some(Any::StringValueStrindex(_)) => Value::Null,
        Some(Any::StringValue(text)) => text.as_str().into(),
        Some(Any::BoolValue(truth)) => (*truth).into(),
        Some(Any::IntValue(int)) => (*int).into(),
        Some(Any::DoubleValue(double)) if double.is_nan() => "NaN".into(),
        Some(Any::DoubleValue(double)) if double.is_infinite() => if *double > 0.0 { "+Inf" } else { "-Inf" }.into(),
        Some(Any::DoubleValue(double)) => (*double).into(),
        Some(Any::BytesValue(bytes)) => BASE64_STANDARD.encode(bytes).into(),
        Some(Any::ArrayValue(array)) => array.values.iter().map(|value| shown(value.value.as_ref())).collect(),
        Some(Any::KvlistValue(list)) => {
            let fields = attributes(&list.values).into_iter();
            Value::Object(fields.map(|(key, value)| (key.to_owned(), shown(value))).collect())
        }
    }
}
