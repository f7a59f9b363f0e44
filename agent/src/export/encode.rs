//! A span as the bytes that it is sent as.
//!
//! Every request comes through here. prost asks each part of a message for its length at every level, and again at those
//! above; here the length of an attribute, which is most of a span, is computed once, and what is written in front of its
//! texts is written at once.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message;

use crate::span::{RequestAttributes, RequestValue};

/// Numbers of the fields of `opentelemetry/proto/trace/v1/trace.proto` and `…/common/v1/common.proto`.
mod tag {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const TRACE_STATE: u32 = 3;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START: u32 = 7;
    pub(super) const END: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;

    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;

    pub(super) const TEXT: u32 = 1;
    pub(super) const BOOL: u32 = 2;
    pub(super) const INT: u32 = 3;
    pub(super) const DOUBLE: u32 = 4;
}

/// How what follows is written: the lowest bits in front of a field.
mod wire {
    pub(super) const VARINT: u32 = 0;
    pub(super) const EIGHT_BYTES: u32 = 1;
    pub(super) const LENGTH: u32 = 2;
}

/// Bytes in front of a field with a number below 16, as all of these have.
const FIELD: usize = 1;
/// What a span takes beside its texts and attributes: ids, times and flags.
const SPAN: usize = 80;
/// What an attribute takes beside its texts, if they are short: kinds of fields, and lengths.
const ATTRIBUTE: usize = 10;

/// `opentelemetry.proto.trace.v1.Span`, encoded; the attributes of the request come first.
pub(super) fn encode(request: &RequestAttributes, mut span: Span) -> Vec<u8> {
    let attributes = std::mem::take(&mut span.attributes);
    let name = std::mem::take(&mut span.name);
    let trace_state = std::mem::take(&mut span.trace_state);
    let (trace_id, span_id) = (std::mem::take(&mut span.trace_id), std::mem::take(&mut span.span_id));
    let parent = std::mem::take(&mut span.parent_span_id);
    let kind = std::mem::take(&mut span.kind);
    let times = [std::mem::take(&mut span.start_time_unix_nano), std::mem::take(&mut span.end_time_unix_nano)];

    // About as much as it takes: it waits in the queue.
    let of_request = |(key, value): (&str, &RequestValue)| {
        let len = if let RequestValue::Text(text) = value { text.len() } else { size_of::<f64>() };
        ATTRIBUTE + key.len() + len
    };
    let len: usize = attributes.iter().map(|it| ATTRIBUTE + it.key.len() + value_len(it)).sum();
    let len = len + request.iter().map(of_request).sum::<usize>();
    let mut bytes = Vec::with_capacity(SPAN + name.len() + trace_state.len() + len);
    for (tag, field) in [
        (tag::TRACE_ID, &*trace_id),
        (tag::SPAN_ID, &*span_id),
        (tag::TRACE_STATE, trace_state.as_bytes()),
        (tag::PARENT_SPAN_ID, &*parent),
        (tag::NAME, name.as_bytes()),
    ] {
        if !field.is_empty() {
            add_bytes(tag, field, &mut bytes);
        }
    }
    if kind != 0 {
        add_key(tag::KIND, wire::VARINT, &mut bytes);
        add_varint(i64::from(kind) as u64, &mut bytes);
    }
    for (tag, time) in [tag::START, tag::END].into_iter().zip(times) {
        if time != 0 {
            add_key(tag, wire::EIGHT_BYTES, &mut bytes);
            bytes.extend_from_slice(&time.to_le_bytes());
        }
    }
    for (key, value) in request.iter() {
        add_of_request(key, value, &mut bytes);
    }
    for attribute in attributes {
        add_attribute(attribute, &mut bytes);
    }
    // What is left: mostly only the flags, which have the highest number.
    span.encode_raw(&mut bytes);
    bytes
}

/// From here on a length takes more than a byte.
const LONG: usize = 0x80;

/// Adds an attribute whose value takes `len` bytes behind its kind, but for that value.
fn begin_attribute(key: &str, kind: u8, len: usize, bytes: &mut Vec<u8>) {
    let value_len = FIELD + len;
    let all = FIELD + 1 + key.len() + FIELD + 1 + value_len;
    if all < LONG {
        // As it nearly always is: each length is one byte.
        let attributes = (tag::ATTRIBUTES << 3 | wire::LENGTH) as u8;
        bytes.extend_from_slice(&[attributes, all as u8, (tag::KEY << 3 | wire::LENGTH) as u8, key.len() as u8]);
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(&[(tag::VALUE << 3 | wire::LENGTH) as u8, value_len as u8, kind]);
        return;
    }
    let key_len = FIELD + varint_len(key.len()) + key.len();
    add_key(tag::ATTRIBUTES, wire::LENGTH, bytes);
    add_varint((key_len + FIELD + varint_len(value_len) + value_len) as u64, bytes);
    add_bytes(tag::KEY, key.as_bytes(), bytes);
    add_key(tag::VALUE, wire::LENGTH, bytes);
    add_varint(value_len as u64, bytes);
    bytes.push(kind);
}

/// Adds an attribute of a request, whose key is not empty.
fn add_of_request(key: &str, value: &RequestValue, bytes: &mut Vec<u8>) {
    match value {
        RequestValue::Text(text) => {
            let kind = (tag::TEXT << 3 | wire::LENGTH) as u8;
            begin_attribute(key, kind, varint_len(text.len()) + text.len(), bytes);
            add_varint(text.len() as u64, bytes);
            bytes.extend_from_slice(text.as_bytes());
        }
        RequestValue::Int(number) => {
            let len = varint_len(usize::try_from(*number).unwrap_or(usize::MAX));
            begin_attribute(key, (tag::INT << 3 | wire::VARINT) as u8, len, bytes);
            add_varint(*number as u64, bytes);
        }
        RequestValue::Double(number) => {
            let number = number.to_le_bytes();
            begin_attribute(key, (tag::DOUBLE << 3 | wire::EIGHT_BYTES) as u8, number.len(), bytes);
            bytes.extend_from_slice(&number);
        }
    }
}

fn value_len(attribute: &KeyValue) -> usize {
    match &attribute.value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text.len(),
        _ => size_of::<f64>(),
    }
}

fn add_attribute(attribute: KeyValue, bytes: &mut Vec<u8>) {
    let len = match &attribute.value {
        Some(AnyValue { value: Some(value) }) if attribute.key_strindex == 0 => simple_len(value),
        _ => None,
    };
    let (Some(value_len), Some(AnyValue { value: Some(value) })) = (len, &attribute.value) else {
        // Seldom, and of many parts.
        let rest = Span { attributes: vec![attribute], ..Span::default() };
        return rest.encode_raw(bytes);
    };
    let key = attribute.key.as_bytes();
    // A field without a value is not written.
    let key_len = if key.is_empty() { 0 } else { FIELD + varint_len(key.len()) + key.len() };
    add_key(tag::ATTRIBUTES, wire::LENGTH, bytes);
    add_varint((key_len + FIELD + varint_len(value_len) + value_len) as u64, bytes);
    if !key.is_empty() {
        add_bytes(tag::KEY, key, bytes);
    }
    add_key(tag::VALUE, wire::LENGTH, bytes);
    add_varint(value_len as u64, bytes);
    match value {
        Value::StringValue(text) => add_bytes(tag::TEXT, text.as_bytes(), bytes),
        Value::BoolValue(is_true) => {
            add_key(tag::BOOL, wire::VARINT, bytes);
            bytes.push(u8::from(*is_true));
        }
        Value::IntValue(number) => {
            add_key(tag::INT, wire::VARINT, bytes);
            add_varint(*number as u64, bytes);
        }
        Value::DoubleValue(number) => {
            add_key(tag::DOUBLE, wire::EIGHT_BYTES, bytes);
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        _ => {}
    }
}

/// Bytes of an `AnyValue` of one part. It is a choice, so it is written even if it is 0 or empty.
fn simple_len(value: &Value) -> Option<usize> {
    Some(match value {
        Value::StringValue(text) => FIELD + varint_len(text.len()) + text.len(),
        Value::BoolValue(_) => FIELD + 1,
        Value::IntValue(number) => FIELD + varint_len(usize::try_from(*number).unwrap_or(usize::MAX)),
        Value::DoubleValue(_) => FIELD + size_of::<f64>(),
        _ => return None,
    })
}

/// Adds a field that is a text or a message.
fn add_bytes(tag: u32, field: &[u8], bytes: &mut Vec<u8>) {
    add_key(tag, wire::LENGTH, bytes);
    add_varint(field.len() as u64, bytes);
    bytes.extend_from_slice(field);
}

fn add_key(tag: u32, wire: u32, bytes: &mut Vec<u8>) {
    bytes.push((tag << 3 | wire) as u8);
}

fn add_varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

const fn varint_len(number: usize) -> usize {
    // Seven bits a byte, and one byte for 0.
    let bits = usize::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::ArrayValue,
        trace::v1::{
            Status,
            span::{Event, Link},
        },
    };
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    const KEYS: [&str; 3] = [
        "url.path",
        "http.response.status_code",
        "a.key.that.is.long.enough.for.a.length.of.two.bytes.to.be\
        .needed.when.the.whole.attribute.has.a.length.above.one.hundred.and.twenty.seven.bytes.with.its.value",
    ];

    fn value() -> impl Strategy<Value = AnyValue> {
        let simple = prop_oneof![
            ".{0,200}".prop_map(Value::StringValue),
            any::<bool>().prop_map(Value::BoolValue),
            any::<i64>().prop_map(Value::IntValue),
            (0_i64..300).prop_map(Value::IntValue),
            (-1e9..1e9).prop_map(Value::DoubleValue),
            vec(any::<u8>(), 0..9).prop_map(Value::BytesValue),
        ];
        let simple = option::of(simple).prop_map(|value| AnyValue { value });
        prop_oneof![
            9 => simple.clone(),
            1 => vec(simple, 0..3)
                .prop_map(|values| AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) }),
        ]
    }

    prop_compose! {
        fn attribute()(key in ".{0,40}", value in option::weighted(0.9, value()), key_strindex in 0..3_i32) -> KeyValue {
            KeyValue { key, value, key_strindex: key_strindex / 2 }
        }
    }

    prop_compose! {
        fn span()(
            ids in (vec(any::<u8>(), 0..17), vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..9)),
            texts in (".{0,200}", ".{0,40}"),
            numbers in (any::<i32>(), any::<u32>(), 0..3_u32),
            times in (0..3_u64, any::<u64>()),
            attributes in vec(attribute(), 0..6),
            more in (vec(attribute(), 0..2), vec(any::<u64>(), 0..2), option::of(".{0,9}")),
        ) -> Span {
            let (trace_id, span_id, parent_span_id) = ids;
            let (name, trace_state) = texts;
            let (kind, flags, dropped_attributes_count) = numbers;
            let (of_links, of_events, message) = more;
            Span {
                trace_id,
                span_id,
                parent_span_id,
                name,
                trace_state,
                kind,
                flags,
                start_time_unix_nano: times.0,
                end_time_unix_nano: times.1,
                attributes,
                dropped_attributes_count,
                events: of_events.into_iter().map(|time_unix_nano| Event { time_unix_nano, ..Event::default() }).collect(),
                links: vec![Link { attributes: of_links, ..Link::default() }],
                status: message.map(|message| Status { message, code: 2 }),
                ..Span::default()
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_what_prost_reads(span in span()) {
            let len = span.encoded_len();
            let bytes = encode(&RequestAttributes::default(), span.clone());
            prop_assert_eq!(bytes.len(), len);
            prop_assert_eq!(Span::decode(&*bytes).unwrap(), span);
        }

        /// Of a request too, whose attributes come before the others.
        #[test]
        fn requests_are_what_prost_reads(
            mut span in span(),
            texts in vec((0..KEYS.len(), ".{0,40}|[a-z]{60,300}"), 0..9),
            numbers in vec((0..KEYS.len(), any::<i64>()), 0..4),
            small in vec((0..KEYS.len(), 0_u64..70_000), 0..4),
            nanoseconds in vec((0..KEYS.len(), any::<u64>()), 0..4),
        ) {
            let mut request = RequestAttributes::default();
            for (key, text) in texts {
                request.text(KEYS[key], text);
            }
            for (key, number) in numbers {
                request.int(KEYS[key], number);
            }
            for (key, number) in small {
                request.count(KEYS[key], number);
            }
            for (key, ns) in nanoseconds {
                request.seconds(KEYS[key], ns);
            }
            let bytes = encode(&request, span.clone());
            span.attributes = request.otlp().chain(span.attributes).collect();
            prop_assert_eq!(bytes.len(), span.encoded_len());
            prop_assert_eq!(Span::decode(&*bytes).unwrap(), span);
        }
    }

    #[test]
    fn lengths_of_numbers() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, usize::MAX] {
            let mut bytes = Vec::new();
            add_varint(number as u64, &mut bytes);
            assert_eq!(bytes.len(), varint_len(number), "{number}");
        }
    }
}
