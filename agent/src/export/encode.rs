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

use crate::span::{AttributeFilter, Kept, RequestSpan, Sink};

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

    /// Of `ScopeSpans`.
    pub(super) const SPANS: u32 = 2;
}

/// How what follows is written: the lowest bits in front of a field.
mod wire {
    pub(super) const VARINT: u32 = 0;
    pub(super) const EIGHT_BYTES: u32 = 1;
    pub(super) const LENGTH: u32 = 2;
}

/// What stands in front of the flags: 16 << 3 | 5 as a number of two bytes, and four follow.
const FLAGS: [u8; 2] = [0x85, 1];

/// Bytes in front of a field with a number below 16, as all of these have.
const FIELD: usize = 1;

/// Adds the span of a request, `opentelemetry.proto.trace.v1.Span`, with the attributes that `filter` leaves; without one all.
pub(super) fn add_request(span: &RequestSpan<'_>, mut filter: Option<&mut AttributeFilter>, bytes: &mut Vec<u8>) {
    let ids = &span.ids;
    add_id(tag::TRACE_ID, ids.trace_id, bytes);
    add_id(tag::SPAN_ID, ids.span_id, bytes);
    if !ids.trace_state.is_empty() {
        add_bytes(tag::TRACE_STATE, ids.trace_state.as_bytes(), bytes);
    }
    if let Some(parent) = ids.parent_span_id {
        add_id(tag::PARENT_SPAN_ID, parent, bytes);
    }
    add_bytes(tag::NAME, span.name().as_bytes(), bytes);
    add_kind_and_times(span.kind().into(), span.unix_ns(), bytes);
    let from = bytes.len();
    match (span.encoded(), filter.as_deref_mut()) {
        (Some(encoded), _) => bytes.extend_from_slice(encoded),
        (None, None) => span.of_request(&mut Attributes(bytes)),
        (None, Some(filter)) => span.of_request(&mut Kept(&mut Attributes(bytes), filter)),
    }
    span.keep_encoded(bytes.get(from..).unwrap_or_default());
    match filter {
        None => {
            span.of_exchange(&mut Attributes(bytes));
            for header in span.headers() {
                add_attribute(header, bytes);
            }
        }
        Some(filter) => {
            span.of_exchange(&mut Kept(&mut Attributes(bytes), filter));
            for header in span.headers().iter().filter(|header| filter.keeps(&header.key)) {
                add_attribute(header, bytes);
            }
        }
    }
    let (events, status, flags) = (span.events(), span.status(), span.flags());
    if events.is_empty() && status.is_none() {
        if flags != 0 {
            bytes.extend_from_slice(&FLAGS);
            bytes.extend_from_slice(&flags.to_le_bytes());
        }
    } else {
        Span { events, status, flags, ..Span::default() }.encode_raw(bytes);
    }
}

/// Adds a span.
pub(super) fn add_span(mut span: Span, bytes: &mut Vec<u8>) {
    let attributes = std::mem::take(&mut span.attributes);
    let name = std::mem::take(&mut span.name);
    let trace_state = std::mem::take(&mut span.trace_state);
    let (trace_id, span_id) = (std::mem::take(&mut span.trace_id), std::mem::take(&mut span.span_id));
    let parent = std::mem::take(&mut span.parent_span_id);
    let kind = std::mem::take(&mut span.kind);
    let times = [std::mem::take(&mut span.start_time_unix_nano), std::mem::take(&mut span.end_time_unix_nano)];
    let head = Head {
        trace_id: &trace_id,
        span_id: &span_id,
        trace_state: &trace_state,
        parent: &parent,
        name: &name,
        kind,
        times,
    };
    head.add(bytes);
    for attribute in &attributes {
        add_attribute(attribute, bytes);
    }
    // What is left: mostly only the flags, which have the highest number.
    span.encode_raw(bytes);
}

/// What comes before the attributes.
struct Head<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    trace_state: &'a str,
    parent: &'a [u8],
    name: &'a str,
    kind: i32,
    times: [u64; 2],
}

impl Head<'_> {
    fn add(&self, bytes: &mut Vec<u8>) {
        for (tag, field) in [
            (tag::TRACE_ID, self.trace_id),
            (tag::SPAN_ID, self.span_id),
            (tag::TRACE_STATE, self.trace_state.as_bytes()),
            (tag::PARENT_SPAN_ID, self.parent),
            (tag::NAME, self.name.as_bytes()),
        ] {
            if !field.is_empty() {
                add_bytes(tag, field, bytes);
            }
        }
        add_kind_and_times(self.kind, self.times, bytes);
    }
}

fn add_kind_and_times(kind: i32, times: [u64; 2], bytes: &mut Vec<u8>) {
    if kind != 0 {
        add_key(tag::KIND, wire::VARINT, bytes);
        add_varint(i64::from(kind) as u64, bytes);
    }
    for (tag, time) in [tag::START, tag::END].into_iter().zip(times) {
        if time != 0 {
            add_key(tag, wire::EIGHT_BYTES, bytes);
            bytes.extend_from_slice(&time.to_le_bytes());
        }
    }
}

fn add_id<const N: usize>(tag: u32, id: [u8; N], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&[(tag << 3 | wire::LENGTH) as u8, N as u8]);
    bytes.extend_from_slice(&id);
}

/// Adds a span that is encoded, as one of `ScopeSpans`.
pub(super) fn add_to_scope(span: &[u8], bytes: &mut Vec<u8>) {
    add_bytes(tag::SPANS, span, bytes);
}

/// From here on a length takes more than a byte.
const LONG: usize = 0x80;

/// Adds an attribute whose value takes `len` bytes behind its kind, but for that value.
#[expect(clippy::inline_always, reason = "as below")]
#[inline(always)]
fn begin_attribute(key: &str, kind: u8, len: usize, bytes: &mut Vec<u8>) {
    let value_len = FIELD + len;
    let all = FIELD + 1 + key.len() + FIELD + 1 + value_len;
    if all >= LONG {
        return begin_long_attribute(key, kind, value_len, bytes);
    }
    // As it nearly always is: each length is one byte.
    let tag = |tag: u32| (tag << 3 | wire::LENGTH) as u8;
    bytes.extend_from_slice(&[tag(tag::ATTRIBUTES), all as u8, tag(tag::KEY), key.len() as u8]);
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(&[tag(tag::VALUE), value_len as u8, kind]);
}

fn begin_long_attribute(key: &str, kind: u8, value_len: usize, bytes: &mut Vec<u8>) {
    let key_len = FIELD + varint_len(key.len()) + key.len();
    add_key(tag::ATTRIBUTES, wire::LENGTH, bytes);
    add_varint((key_len + FIELD + varint_len(value_len) + value_len) as u64, bytes);
    add_bytes(tag::KEY, key.as_bytes(), bytes);
    add_key(tag::VALUE, wire::LENGTH, bytes);
    add_varint(value_len as u64, bytes);
    bytes.push(kind);
}

/// Adds the attributes of a request. Their keys are not empty.
struct Attributes<'a>(&'a mut Vec<u8>);

#[expect(
    clippy::inline_always,
    reason = "who calls knows the key: it is written as a few words, and not copied by a call"
)]
impl Sink for Attributes<'_> {
    #[inline(always)]
    fn text(&mut self, key: &'static str, text: &str) {
        let Self(bytes) = self;
        if text.len() < LONG {
            begin_attribute(key, (tag::TEXT << 3 | wire::LENGTH) as u8, 1 + text.len(), bytes);
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        } else {
            self.joined(key, &[text]);
        }
    }

    fn joined(&mut self, key: &'static str, parts: &[&str]) {
        let Self(bytes) = self;
        let len = parts.iter().map(|part| part.len()).sum();
        begin_attribute(key, (tag::TEXT << 3 | wire::LENGTH) as u8, varint_len(len) + len, bytes);
        add_varint(len as u64, bytes);
        for part in parts {
            bytes.extend_from_slice(part.as_bytes());
        }
    }

    #[inline(always)]
    fn int(&mut self, key: &'static str, number: i64) {
        let Self(bytes) = self;
        let len = varint_len(usize::try_from(number).unwrap_or(usize::MAX));
        begin_attribute(key, (tag::INT << 3 | wire::VARINT) as u8, len, bytes);
        add_varint(number as u64, bytes);
    }

    #[inline(always)]
    fn double(&mut self, key: &'static str, number: f64) {
        let Self(bytes) = self;
        let number = number.to_le_bytes();
        begin_attribute(key, (tag::DOUBLE << 3 | wire::EIGHT_BYTES) as u8, number.len(), bytes);
        bytes.extend_from_slice(&number);
    }
}

fn add_attribute(attribute: &KeyValue, bytes: &mut Vec<u8>) {
    let len = match &attribute.value {
        Some(AnyValue { value: Some(value) }) if attribute.key_strindex == 0 => simple_len(value),
        _ => None,
    };
    let (Some(value_len), Some(AnyValue { value: Some(value) })) = (len, &attribute.value) else {
        // Seldom, and of many parts.
        let rest = Span { attributes: vec![attribute.clone()], ..Span::default() };
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
            let mut bytes = Vec::new();
            add_span(span.clone(), &mut bytes);
            prop_assert_eq!(bytes.len(), len);
            prop_assert_eq!(Span::decode(&*bytes).unwrap(), span);
        }

        /// The attributes of a request too.
        #[test]
        fn requests_are_what_prost_reads(told in vec(told(), 0..12)) {
            let (mut bytes, mut expected) = (Vec::new(), crate::span::Attributes(Vec::new()));
            for told in &told {
                told.to(&mut Attributes(&mut bytes));
                told.to(&mut expected);
            }
            let span = Span { attributes: expected.0, ..Span::default() };
            prop_assert_eq!(bytes.len(), span.encoded_len());
            prop_assert_eq!(Span::decode(&*bytes).unwrap(), span);
        }
    }

    /// An attribute of a request, with its key's place in `KEYS`.
    #[derive(Clone, Debug)]
    enum Told {
        Text(usize, String),
        Joined(usize, String, String),
        Int(usize, i64),
        Count(usize, u64),
        Seconds(usize, u64),
    }

    impl Told {
        fn to(&self, sink: &mut impl Sink) {
            match self {
                Self::Text(key, text) => sink.text(KEYS[*key], text),
                Self::Joined(key, one, other) => sink.joined(KEYS[*key], &[one, "", other]),
                Self::Int(key, number) => sink.int(KEYS[*key], *number),
                Self::Count(key, number) => sink.count(KEYS[*key], *number),
                Self::Seconds(key, ns) => sink.seconds(KEYS[*key], *ns),
            }
        }
    }

    fn told() -> impl Strategy<Value = Told> {
        let key = || 0..KEYS.len();
        prop_oneof![
            (key(), ".{0,40}|[a-z]{60,300}").prop_map(|(key, text)| Told::Text(key, text)),
            (key(), ".{0,40}", "[a-z]{0,90}").prop_map(|(key, one, other)| Told::Joined(key, one, other)),
            (key(), any::<i64>()).prop_map(|(key, number)| Told::Int(key, number)),
            (key(), 0_u64..70_000).prop_map(|(key, number)| Told::Count(key, number)),
            (key(), any::<u64>()).prop_map(|(key, ns)| Told::Seconds(key, ns)),
        ]
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
