//! OTLP in JSON, read as the specification wants it.
//!
//! Own types stand between the JSON and the generated ones, because the `serde` code of those refuses what the rules of
//! protobuf JSON allow: fields that are missing or `null` in values, names of enum members, numbers as text, `NaN`,
//! base64 in either alphabet, fields that are not known yet.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::prelude::rust_2024::*;
use std::str::FromStr;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1 as resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The request in `body`.
pub fn decode(body: &[u8]) -> Result<ExportTraceServiceRequest, serde_json::Error> {
    let request: Request = serde_json::from_slice(body)?;
    Ok(ExportTraceServiceRequest { resource_spans: convert(request.resource_spans) })
}

fn convert<From, To: std::convert::From<From>>(list: Vec<From>) -> Vec<To> {
    list.into_iter().map(To::from).collect()
}

/// Defines types with the fields of messages, all of which may be missing or `null`.
macro_rules! messages {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(clippy::struct_field_names, reason = "the names are those of the protocol")]
        struct $name {
            $(#[serde(deserialize_with = "or_default")] $field: $type,)*
        }
    )*};
}

messages! {
    Request { resource_spans: Vec<ResourceSpans> }
    ResourceSpans { resource: Option<Resource>, scope_spans: Vec<ScopeSpans>, schema_url: String }
    Resource { attributes: Vec<KeyValue>, dropped_attributes_count: Number<u32>, entity_refs: Vec<EntityRef> }
    EntityRef { schema_url: String, r#type: String, id_keys: Vec<String>, description_keys: Vec<String> }
    ScopeSpans { scope: Option<Scope>, spans: Vec<Span>, schema_url: String }
    Scope {
        name: String,
        version: String,
        attributes: Vec<KeyValue>,
        dropped_attributes_count: Number<u32>,
    }
    Span {
        trace_id: Hex,
        span_id: Hex,
        trace_state: String,
        parent_span_id: Hex,
        flags: Number<u32>,
        name: String,
        kind: Member<SpanKind>,
        start_time_unix_nano: Number<u64>,
        end_time_unix_nano: Number<u64>,
        attributes: Vec<KeyValue>,
        dropped_attributes_count: Number<u32>,
        events: Vec<Event>,
        dropped_events_count: Number<u32>,
        links: Vec<Link>,
        dropped_links_count: Number<u32>,
        status: Option<Status>,
    }
    Event {
        time_unix_nano: Number<u64>,
        name: String,
        attributes: Vec<KeyValue>,
        dropped_attributes_count: Number<u32>,
    }
    Link {
        trace_id: Hex,
        span_id: Hex,
        trace_state: String,
        attributes: Vec<KeyValue>,
        dropped_attributes_count: Number<u32>,
        flags: Number<u32>,
    }
    Status { message: String, code: Member<StatusCode> }
    KeyValue { key: String, value: Option<AnyValue> }
    ArrayValue { values: Vec<AnyValue> }
    KeyValueList { values: Vec<KeyValue> }
}

impl From<ResourceSpans> for trace::ResourceSpans {
    fn from(ResourceSpans { resource, scope_spans, schema_url }: ResourceSpans) -> Self {
        Self { resource: resource.map(Into::into), scope_spans: convert(scope_spans), schema_url }
    }
}

impl From<Resource> for resource::Resource {
    fn from(Resource { attributes, dropped_attributes_count, entity_refs }: Resource) -> Self {
        Self {
            attributes: convert(attributes),
            dropped_attributes_count: dropped_attributes_count.0,
            entity_refs: convert(entity_refs),
        }
    }
}

impl From<EntityRef> for common::EntityRef {
    fn from(EntityRef { schema_url, r#type, id_keys, description_keys }: EntityRef) -> Self {
        Self { schema_url, r#type, id_keys, description_keys }
    }
}

impl From<ScopeSpans> for trace::ScopeSpans {
    fn from(ScopeSpans { scope, spans, schema_url }: ScopeSpans) -> Self {
        Self { scope: scope.map(Into::into), spans: convert(spans), schema_url }
    }
}

impl From<Scope> for common::InstrumentationScope {
    fn from(Scope { name, version, attributes, dropped_attributes_count }: Scope) -> Self {
        Self { name, version, attributes: convert(attributes), dropped_attributes_count: dropped_attributes_count.0 }
    }
}

impl From<Span> for trace::Span {
    fn from(span: Span) -> Self {
        Self {
            trace_id: span.trace_id.0,
            span_id: span.span_id.0,
            trace_state: span.trace_state,
            parent_span_id: span.parent_span_id.0,
            flags: span.flags.0,
            name: span.name,
            kind: span.kind.0,
            start_time_unix_nano: span.start_time_unix_nano.0,
            end_time_unix_nano: span.end_time_unix_nano.0,
            attributes: convert(span.attributes),
            dropped_attributes_count: span.dropped_attributes_count.0,
            events: convert(span.events),
            dropped_events_count: span.dropped_events_count.0,
            links: convert(span.links),
            dropped_links_count: span.dropped_links_count.0,
            status: span.status.map(|Status { message, code }| trace::Status { message, code: code.0 }),
        }
    }
}

impl From<Event> for trace::span::Event {
    fn from(event: Event) -> Self {
        Self {
            time_unix_nano: event.time_unix_nano.0,
            name: event.name,
            attributes: convert(event.attributes),
            dropped_attributes_count: event.dropped_attributes_count.0,
        }
    }
}

impl From<Link> for trace::span::Link {
    fn from(link: Link) -> Self {
        Self {
            trace_id: link.trace_id.0,
            span_id: link.span_id.0,
            trace_state: link.trace_state,
            attributes: convert(link.attributes),
            dropped_attributes_count: link.dropped_attributes_count.0,
            flags: link.flags.0,
        }
    }
}

impl From<KeyValue> for common::KeyValue {
    fn from(KeyValue { key, value }: KeyValue) -> Self {
        Self { key, value: value.map(|AnyValue(value)| common::AnyValue { value }), key_strindex: 0 }
    }
}

/// The value of an attribute: an object with one of several fields, or with none.
#[derive(Default)]
struct AnyValue(Option<Value>);

impl<'de> Deserialize<'de> for AnyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = AnyValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one of stringValue, boolValue, intValue, doubleValue, arrayValue, kvlistValue, bytesValue")
            }

            /// An element of a list may be null too.
            fn visit_unit<E>(self) -> Result<AnyValue, E> {
                Ok(AnyValue(None))
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<AnyValue, M::Error> {
                let mut value = None;
                while let Some(field) = map.next_key::<Field>()? {
                    let found = match field {
                        Field::StringValue => map.next_value::<Option<String>>()?.map(Value::StringValue),
                        Field::BoolValue => map.next_value::<Option<bool>>()?.map(Value::BoolValue),
                        Field::IntValue => map.next_value::<Option<Number<i64>>>()?.map(|n| Value::IntValue(n.0)),
                        Field::DoubleValue => map.next_value::<Option<Number<f64>>>()?.map(|n| Value::DoubleValue(n.0)),
                        Field::ArrayValue => map
                            .next_value::<Option<ArrayValue>>()?
                            .map(|list| Value::ArrayValue(common::ArrayValue { values: any_values(list.values) })),
                        Field::KvlistValue => map
                            .next_value::<Option<KeyValueList>>()?
                            .map(|list| Value::KvlistValue(common::KeyValueList { values: convert(list.values) })),
                        Field::BytesValue => {
                            map.next_value::<Option<Base64>>()?.map(|bytes| Value::BytesValue(bytes.0))
                        }
                        Field::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                            None
                        }
                    };
                    value = found.or(value);
                }
                Ok(AnyValue(value))
            }
        }

        deserializer.deserialize_any(Fields)
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    StringValue,
    BoolValue,
    IntValue,
    DoubleValue,
    ArrayValue,
    KvlistValue,
    BytesValue,
    #[serde(other)]
    Unknown,
}

fn any_values(values: Vec<AnyValue>) -> Vec<common::AnyValue> {
    values.into_iter().map(|AnyValue(value)| common::AnyValue { value }).collect()
}

/// `null` stands for the default everywhere.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A type that JSON writes as a number, or as text because JavaScript's numbers end at 2^53.
trait Numeric: Copy + Default + FromStr {
    const NAME: &str;

    fn from_u64(number: u64) -> Option<Self>;
    fn from_i64(number: i64) -> Option<Self>;
    fn from_f64(number: f64) -> Option<Self>;
}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl Numeric for $integer {
            const NAME: &str = stringify!($integer);

            fn from_u64(number: u64) -> Option<Self> {
                number.try_into().ok()
            }

            fn from_i64(number: i64) -> Option<Self> {
                number.try_into().ok()
            }

            /// `1.0` and `1e3` are integers too.
            fn from_f64(number: f64) -> Option<Self> {
                let integer = number as i128;
                #[expect(clippy::float_cmp, reason = "only a number without a fraction is unchanged")]
                let whole = integer as f64 == number;
                integer.try_into().ok().filter(|_| whole)
            }
        }
    )*};
}

integers!(i32, u32, i64, u64);

impl Numeric for f64 {
    const NAME: &str = "f64";

    fn from_u64(number: u64) -> Option<Self> {
        Some(number as Self)
    }

    fn from_i64(number: i64) -> Option<Self> {
        Some(number as Self)
    }

    fn from_f64(number: f64) -> Option<Self> {
        Some(number)
    }
}

#[derive(Default)]
struct Number<T>(T);

impl<'de, T: Numeric> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Forms<T>(PhantomData<T>);

        impl<T: Numeric> Visitor<'_> for Forms<T> {
            type Value = Number<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number of type {}, or text with one", T::NAME)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number<T>, E> {
                T::from_u64(number).map(Number).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number<T>, E> {
                T::from_i64(number).map(Number).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Number<T>, E> {
                T::from_f64(number).map(Number).ok_or_else(|| E::invalid_value(de::Unexpected::Float(number), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number<T>, E> {
                // `f64` reads `NaN`, `Infinity` and `-Infinity` as protobuf writes them.
                let number = text.parse().ok().or_else(|| text.parse().ok().and_then(T::from_f64));
                number.map(Number).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Forms(PhantomData))
    }
}

/// The number of a member of an enum. OTLP wants numbers; names, as protobuf's own JSON has them, are understood too.
struct Member<E>(i32, PhantomData<E>);

impl<E> Default for Member<E> {
    fn default() -> Self {
        Self(0, PhantomData)
    }
}

trait Named {
    fn number(name: &str) -> Option<i32>;
}

impl Named for SpanKind {
    fn number(name: &str) -> Option<i32> {
        Self::from_str_name(name).map(i32::from)
    }
}

impl Named for StatusCode {
    fn number(name: &str) -> Option<i32> {
        Self::from_str_name(name).map(i32::from)
    }
}

impl<'de, E: Named> Deserialize<'de> for Member<E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(name) => E::number(&name)
                .or_else(|| name.parse().ok())
                .ok_or_else(|| de::Error::custom(format_args!("unknown enum member {name:?}")))?,
            other => Number::<i32>::deserialize(other).map_err(de::Error::custom)?.0,
        };
        Ok(Self(number, PhantomData))
    }
}

/// Ids are hexadecimal, unlike all other bytes. Other text becomes one byte, which is no id: that span alone is rejected.
#[derive(Default)]
struct Hex(Vec<u8>);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Ok(Self(parse_hex(&text).unwrap_or_else(|| vec![0])))
    }
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8)).collect()
}

struct Base64(Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const CONFIG: GeneralPurposeConfig =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
        const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(&text).or_else(|_| URL_SAFE.decode(&text));
        bytes.map(Self).map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&text), &"base64"))
    }
}
