//! What a request would take in memory, known before it is decoded.
//!
//! An empty span is 2 bytes in protobuf and some hundred in memory, and packs to almost nothing: a limit on the bytes of
//! the request alone lets a few kilobytes fill the memory.

use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::ExportError;
use super::prepare::Format;

/// Bytes of decoded messages for each byte of a request. The smallest span that can be stored needs about 9.
const MAX_EXPANSION: usize = 16;

/// Requests below this size count as this: what they can do is little.
const SMALL_BYTES: usize = 1 << 10;

/// Bytes of JSON for each object in it. The shortest that says something, `{"intValue":1},`, has 15.
const MIN_OBJECT_BYTES: usize = 12;

/// Levels of messages that prost reads.
const MAX_DEPTH: usize = 100;

/// Refuses a request that is small only as long as it is not decoded.
pub(super) fn check(body: &[u8], format: Format) -> Result<(), ExportError> {
    match format {
        Format::Protobuf => {
            let mut bytes = 0;
            // What is malformed is refused by the decoder, which gets no further than this.
            _ = walk(Kind::Request, body, MAX_DEPTH, &mut bytes);
            check_decoded(body, bytes)
        }
        Format::Json => {
            #[expect(clippy::naive_bytecount, reason = "no crate for one line that the compiler vectorises")]
            let objects = body.iter().filter(|byte| **byte == b'{').count();
            let limit = body.len().max(SMALL_BYTES) / MIN_OBJECT_BYTES;
            refuse_above(limit * size_of::<trace::Span>(), body, objects * size_of::<trace::Span>())
        }
    }
}

/// The same for a request in protobuf of which it is known how much its messages would take.
pub(super) fn check_decoded(body: &[u8], decoded: usize) -> Result<(), ExportError> {
    refuse_above(body.len().max(SMALL_BYTES) * MAX_EXPANSION, body, decoded)
}

fn refuse_above(limit: usize, body: &[u8], decoded: usize) -> Result<(), ExportError> {
    if decoded > limit {
        return Err(ExportError::TooLarge { bytes: body.len(), decoded, limit });
    }
    Ok(())
}

/// The messages of a request that hold others, or are held.
#[derive(Clone, Copy)]
enum Kind {
    Request,
    ResourceSpans,
    Resource,
    EntityRef,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    Status,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
    Text,
}

impl Kind {
    /// What the field of this number holds, if it is a message or a repeated text.
    const fn field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::Request, 1) => Self::ResourceSpans,
            (Self::ResourceSpans, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::Resource, 3) => Self::EntityRef,
            (Self::EntityRef, 3 | 4) => Self::Text,
            (Self::ScopeSpans, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Span, 15) => Self::Status,
            (Self::Resource | Self::KeyValueList, 1)
            | (Self::Scope | Self::Event, 3)
            | (Self::Link, 4)
            | (Self::Span, 9) => Self::KeyValue,
            (Self::KeyValue, 2) | (Self::ArrayValue, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::ArrayValue,
            (Self::AnyValue, 6) => Self::KeyValueList,
            _ => return None,
        })
    }

    /// Bytes in memory besides what the parent has room for anyway.
    const fn size(self) -> usize {
        match self {
            Self::ResourceSpans => size_of::<trace::ResourceSpans>(),
            Self::EntityRef => size_of::<common::EntityRef>(),
            Self::ScopeSpans => size_of::<trace::ScopeSpans>(),
            Self::Span => size_of::<trace::Span>(),
            Self::Event => size_of::<trace::span::Event>(),
            Self::Link => size_of::<trace::span::Link>(),
            Self::KeyValue => size_of::<common::KeyValue>(),
            Self::AnyValue => size_of::<common::AnyValue>(),
            Self::Text => size_of::<String>(),
            Self::Request | Self::Resource | Self::Scope | Self::Status | Self::ArrayValue | Self::KeyValueList => 0,
        }
    }
}

const _: () = assert!(size_of::<Resource>() < size_of::<trace::ResourceSpans>(), "it lies inside");

/// Adds the sizes of all messages inside one to `bytes`.
fn walk(kind: Kind, mut message: &[u8], depth: usize, bytes: &mut usize) -> Result<(), DecodeError> {
    while !message.is_empty() {
        let (number, wire) = decode_key(&mut message)?;
        let (Some(inner), WireType::LengthDelimited) = (kind.field(number), wire) else {
            skip_field(wire, number, &mut message, DecodeContext::default())?;
            continue;
        };
        let len = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        // A value stays in its pair; only those of a list have a place of their own.
        let in_parent = matches!((kind, inner), (Kind::KeyValue, Kind::AnyValue));
        *bytes += if in_parent { 0 } else { inner.size() };
        // What is cut off is walked too: the decoder allocates it before it finds the end.
        let (field, rest) = message.split_at_checked(len).unwrap_or((message, &[]));
        if depth > 0 && !matches!(inner, Kind::Text) {
            walk(inner, field, depth - 1, bytes)?;
        }
        message = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    use rstest::rstest;

    /// The message `number` with this content.
    fn nested(number: u8, content: &[u8]) -> Vec<u8> {
        let mut message = vec![number << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut message);
        message.extend_from_slice(content);
        message
    }

    fn scope(content: &[u8]) -> Vec<u8> {
        nested(1, &nested(2, content))
    }

    #[rstest]
    #[case::spans(scope(&[0x12, 0].repeat(1 << 20)))]
    #[case::attributes(scope(&nested(2, &[0x4a, 0].repeat(1 << 20))))]
    #[case::events(scope(&nested(2, &[0x5a, 0].repeat(1 << 20))))]
    #[case::links(scope(&nested(2, &[0x6a, 0].repeat(1 << 20))))]
    #[case::cut_off(scope(&[0x12, 0].repeat(1 << 20))[..1 << 20].to_vec())]
    #[case::resources([0x0a, 0].repeat(1 << 20))]
    fn protobuf_that_grows_is_refused(#[case] body: Vec<u8>) {
        assert!(matches!(check(&body, Format::Protobuf), Err(ExportError::TooLarge { .. })));
    }

    #[test]
    fn json_that_grows_is_refused() {
        let body = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{}{{}}]}}]}}]}}"#, "{},".repeat(1 << 18));
        assert!(matches!(check(body.as_bytes(), Format::Json), Err(ExportError::TooLarge { .. })));
        let list = r#"{"intValue":1},"#.repeat(1 << 12);
        check(list.as_bytes(), Format::Json).unwrap();
    }

    #[test]
    fn the_smallest_spans_that_can_be_stored_pass() {
        let span = trace::Span { trace_id: vec![1; 16], span_id: vec![2; 8], ..trace::Span::default() };
        let scope = trace::ScopeSpans { spans: vec![span; 10_000], ..trace::ScopeSpans::default() };
        let resource = trace::ResourceSpans { scope_spans: vec![scope], ..trace::ResourceSpans::default() };
        let body = ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec();
        check(&body, Format::Protobuf).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_weighed(body: Vec<u8>) {
            let mut bytes = 0;
            _ = walk(Kind::Request, &body, MAX_DEPTH, &mut bytes);
        }
    }
}
