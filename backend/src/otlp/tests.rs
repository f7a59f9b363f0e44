//! What is read in place is what prost decodes.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prop::collection::vec;
use prop::option;
use proptest::prelude::*;
use prost::Message;
use rstest::rstest;

use super::*;

/// The message that the views show.
fn message_of(checked: &Checked<'_>) -> ExportTraceServiceRequest {
    let scope_spans = |scope: &ScopeSpansRef<'_>| ScopeSpans {
        scope: Some(scope.scope.clone()),
        spans: scope.spans.iter().map(span_of_both).collect(),
        schema_url: scope.schema_url.as_str().to_owned(),
    };
    let resource_spans = checked.resource_spans.iter().map(|resource| ResourceSpans {
        resource: Some(resource.resource.clone()),
        scope_spans: resource.scope_spans.iter().map(scope_spans).collect(),
        schema_url: resource.schema_url.as_str().to_owned(),
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

/// What a span's view shows, which is made while it is checked; that which is made later must show the same.
fn span_of_both(checked: &SpanRef<'_>) -> Span {
    let (span, later) = (span_of(checked), span_of(&SpanRef::parse(checked.as_bytes())));
    // As bytes, because of numbers that are none.
    assert_eq!(later.encode_to_vec(), span.encode_to_vec());
    span
}

fn span_of(span: &SpanRef<'_>) -> Span {
    Span {
        trace_id: span.trace_id.to_vec(),
        span_id: span.span_id.to_vec(),
        trace_state: span.trace_state.as_str().to_owned(),
        parent_span_id: span.parent_span_id.to_vec(),
        flags: span.flags,
        name: span.name.as_str().to_owned(),
        kind: span.kind,
        start_time_unix_nano: span.start_time_unix_nano,
        end_time_unix_nano: span.end_time_unix_nano,
        attributes: attributes_of(span.attributes()),
        dropped_attributes_count: span.dropped_attributes_count,
        events: span
            .events()
            .map(|event| Event {
                time_unix_nano: event.time_unix_nano,
                name: event.name.as_str().to_owned(),
                attributes: attributes_of(event.attributes()),
                dropped_attributes_count: event.dropped_attributes_count,
            })
            .collect(),
        dropped_events_count: span.dropped_events_count,
        links: span
            .links()
            .map(|link| Link {
                trace_id: link.trace_id.to_vec(),
                span_id: link.span_id.to_vec(),
                trace_state: link.trace_state.as_str().to_owned(),
                attributes: attributes_of(link.attributes()),
                dropped_attributes_count: link.dropped_attributes_count,
                flags: link.flags,
            })
            .collect(),
        dropped_links_count: span.dropped_links_count,
        status: span.status.map(|status| Status { message: status.message.as_str().to_owned(), code: status.code }),
    }
}

fn attributes_of(attributes: Attributes<'_>) -> Vec<KeyValue> {
    let key_value = |attribute: AttributeRef<'_>| KeyValue {
        key: attribute.key.as_str().to_owned(),
        value: attribute.value.map(value_of),
        key_strindex: 0,
    };
    attributes.map(key_value).collect()
}

fn value_of(value: ValueRef<'_>) -> AnyValue {
    let some = |value| AnyValue { value: Some(value) };
    match value {
        ValueRef::Empty => AnyValue { value: None },
        ValueRef::String(text) => some(Value::StringValue(text.as_str().to_owned())),
        ValueRef::Bool(truth) => some(Value::BoolValue(truth)),
        ValueRef::Int(int) => some(Value::IntValue(int)),
        ValueRef::Double(double) => some(Value::DoubleValue(double)),
        ValueRef::Array(array) => {
            some(Value::ArrayValue(ArrayValue { values: array.elements().map(value_of).collect() }))
        }
        ValueRef::Other(other) => other.decode(),
    }
}

/// Missing messages that are the same as empty ones.
fn normal(mut request: ExportTraceServiceRequest) -> Vec<u8> {
    for resource in &mut request.resource_spans {
        resource.resource.get_or_insert_default();
        for scope in &mut resource.scope_spans {
            scope.scope.get_or_insert_default();
            for attribute in scope.spans.iter_mut().flat_map(|span| {
                let events = span.events.iter_mut().flat_map(|event| &mut event.attributes);
                let links = span.links.iter_mut().flat_map(|link| &mut link.attributes);
                span.attributes.iter_mut().chain(events).chain(links)
            }) {
                // Of profiles; traces have keys.
                attribute.key_strindex = 0;
            }
        }
    }
    request.encode_to_vec()
}

/// What passes is what prost decodes; what does not prost may decode nevertheless.
fn assert_same(bytes: &[u8]) {
    if let Ok(checked) = check(bytes) {
        let decoded = ExportTraceServiceRequest::decode(bytes).expect("it passed");
        assert_eq!(normal(message_of(&checked)), normal(decoded));
    }
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,8}"
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        text().prop_map(Value::StringValue),
        any::<bool>().prop_map(Value::BoolValue),
        any::<i64>().prop_map(Value::IntValue),
        any::<f64>().prop_map(Value::DoubleValue),
        vec(any::<u8>(), 0..4).prop_map(Value::BytesValue),
        any::<i32>().prop_map(Value::StringValueStrindex),
    ];
    let some = |value| AnyValue { value: Some(value) };
    let leaf = prop_oneof![9 => leaf.prop_map(some), 1 => Just(AnyValue { value: None })];
    leaf.prop_recursive(3, 12, 3, move |inner| {
        let pair =
            (text(), option::of(inner.clone())).prop_map(|(key, value)| KeyValue { key, value, key_strindex: 0 });
        prop_oneof![
            vec(inner, 0..3).prop_map(|values| Value::ArrayValue(ArrayValue { values })),
            vec(pair, 0..3).prop_map(|values| Value::KvlistValue(KeyValueList { values })),
        ]
        .prop_map(some)
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec((text(), option::of(any_value())).prop_map(|(key, value)| KeyValue { key, value, key_strindex: 0 }), 0..4)
}

fn any_span() -> impl Strategy<Value = Span> {
    let id = || vec(any::<u8>(), 0..10);
    let event =
        (any::<u64>(), text(), attributes(), any::<u32>()).prop_map(|(time_unix_nano, name, attributes, dropped)| {
            Event { time_unix_nano, name, attributes, dropped_attributes_count: dropped }
        });
    let link =
        (id(), id(), text(), attributes(), any::<u32>()).prop_map(|(trace_id, span_id, trace_state, attributes, n)| {
            Link { trace_id, span_id, trace_state, attributes, dropped_attributes_count: n, flags: n }
        });
    let status = (text(), any::<i32>()).prop_map(|(message, code)| Status { message, code });
    let lists = (attributes(), vec(event, 0..3), vec(link, 0..3), option::of(status));
    (id(), id(), id(), text(), text(), any::<i32>(), any::<(u64, u64, u32)>(), lists).prop_map(
        |(trace_id, span_id, parent_span_id, trace_state, name, kind, (start, end, count), lists)| Span {
            trace_id,
            span_id,
            parent_span_id,
            trace_state,
            name,
            kind,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            flags: count,
            dropped_attributes_count: count,
            dropped_events_count: count / 3,
            dropped_links_count: count % 3,
            attributes: lists.0,
            events: lists.1,
            links: lists.2,
            status: lists.3,
        },
    )
}

fn any_request() -> impl Strategy<Value = ExportTraceServiceRequest> {
    let entity = (text(), vec(text(), 0..2)).prop_map(|(schema_url, id_keys)| EntityRef {
        schema_url,
        id_keys,
        ..EntityRef::default()
    });
    let resource = (attributes(), vec(entity, 0..2), any::<u32>()).prop_map(|(attributes, entity_refs, dropped)| {
        Resource { attributes, entity_refs, dropped_attributes_count: dropped }
    });
    let scope = (text(), text(), attributes()).prop_map(|(name, version, attributes)| InstrumentationScope {
        name,
        version,
        attributes,
        ..InstrumentationScope::default()
    });
    let scope_spans = (option::of(scope), vec(any_span(), 0..3), text())
        .prop_map(|(scope, spans, schema_url)| ScopeSpans { scope, spans, schema_url });
    let resource_spans = (option::of(resource), vec(scope_spans, 0..3), text())
        .prop_map(|(resource, scope_spans, schema_url)| ResourceSpans { resource, scope_spans, schema_url });
    vec(resource_spans, 0..3).prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

proptest! {
    #[test]
    fn what_prost_encodes_is_read_in_place(request in any_request()) {
        let encoded = request.encode_to_vec();
        let checked = check(&encoded);
        prop_assert!(checked.is_ok());
        assert_same(&encoded);
    }

    #[test]
    fn whatever_was_changed_is_read_as_prost_reads_it(
        request in any_request(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut encoded = request.encode_to_vec();
        if !encoded.is_empty() {
            for (place, byte) in changes {
                let place = place.index(encoded.len());
                encoded[place] = byte;
            }
            assert_same(&encoded);
        }
    }

    #[test]
    fn two_requests_in_one_are_read_as_prost_reads_them(first in any_request(), second in any_request()) {
        let both = [first.encode_to_vec(), second.encode_to_vec()].concat();
        prop_assert!(check(&both).is_ok());
        assert_same(&both);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        assert_same(&bytes);
    }

    #[test]
    fn every_prefix_is_read_or_refused(request in any_request()) {
        let encoded = request.encode_to_vec();
        (0..encoded.len()).for_each(|length| assert_same(&encoded[..length]));
    }

    #[test]
    fn views_of_what_was_not_checked_do_not_panic(bytes: Vec<u8>) {
        span_of(&SpanRef::parse(&bytes));
        AttributeRef::parse(&bytes);
    }

    #[test]
    fn what_is_written_field_by_field_is_what_prost_writes(span in any_span(), length in 0_usize..300) {
        let name = "n".repeat(length);
        let mut writer = MessageWriter::default();
        writer.bytes(field::TRACE_ID, &span.trace_id);
        writer.text(field::NAME, Some(&name));
        writer.number(field::KIND, span.kind);
        writer.fixed64(field::START, span.start_time_unix_nano);
        let key = name.clone();
        writer.message(field::ATTRIBUTES, |attribute| {
            attribute.text(field::attribute::KEY, Some(&key));
            attribute.message(field::attribute::VALUE, |any| {
                any.varint(field::any::INT, span.end_time_unix_nano);
                Ok::<_, ()>(())
            })
        }).unwrap();
        writer.fixed32(field::FLAGS, span.flags);
        writer.count(field::DROPPED_LINKS_COUNT, Some(span.flags));
        let value = AnyValue { value: Some(Value::IntValue(span.end_time_unix_nano as i64)) };
        let expected = Span {
            trace_id: span.trace_id,
            name,
            kind: span.kind,
            start_time_unix_nano: span.start_time_unix_nano,
            attributes: vec![KeyValue { key, value: Some(value), key_strindex: 0 }],
            flags: span.flags,
            dropped_links_count: span.flags,
            ..Span::default()
        };
        prop_assert_eq!(Span::decode(writer.into_bytes().as_slice()).unwrap(), expected);
    }
}

/// A field that holds a message, or bytes.
fn nested(number: u32, content: &[u8]) -> Vec<u8> {
    let mut writer = MessageWriter::default();
    writer.bytes(number, content);
    writer.into_bytes()
}

fn in_span(fields: &[u8]) -> Vec<u8> {
    nested(1, &nested(2, &nested(2, fields)))
}

fn deep(levels: usize) -> Vec<u8> {
    let value = (0..levels).fold(nested(1, b"x"), |value, _| nested(5, &nested(1, &value)));
    in_span(&nested(9, &nested(2, &value)))
}

#[rstest]
#[case::a_status_in_two_parts(in_span(&[nested(15, &[0x18, 2]), nested(15, &nested(2, b"x"))].concat()))]
#[case::a_resource_in_two_parts(nested(1, &[nested(1, &[0x10, 1]), nested(1, &[0x10, 2])].concat()))]
#[case::two_values(in_span(&nested(9, &nested(2, &[nested(1, b"x"), nested(1, b"y")].concat()))))]
#[case::a_value_in_two_parts(in_span(&nested(9, &[nested(2, &nested(1, b"x")), nested(2, &[0x18, 1])].concat())))]
#[case::no_utf8(in_span(&nested(5, &[0xff])))]
#[case::a_group(in_span(&[0xf3, 0x01, 0xf4, 0x01]))]
#[case::another_type(in_span(&[0x28, 1]))]
#[case::number_zero(in_span(&[0x00, 1]))]
#[case::a_length_beyond_the_end(in_span(&[0x2a, 200, 1]))]
#[case::a_number_without_end(in_span(&[0x30, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]))]
#[case::deeper_than_prost_decodes(deep(60))]
fn odd_ones_are_left_to_prost(#[case] bytes: Vec<u8>) {
    assert_eq!(check(&bytes).map(drop), Err(Odd));
}

#[rstest]
#[case::unknown_fields(in_span(&[nested(5, b"a"), nested(100, b"?")].concat()))]
#[case::two_names(in_span(&[nested(5, b"a"), nested(5, b"b")].concat()))]
#[case::ids_behind_the_name(in_span(&[nested(5, b"a"), nested(2, &[1; 8]), nested(1, &[2; 16])].concat()))]
#[case::ids_twice(in_span(&[nested(1, &[1; 16]), nested(2, &[1; 8]), nested(1, &[2; 16])].concat()))]
#[case::a_long_name(in_span(&[nested(1, &[1; 16]), nested(5, &[b'n'; 200]), nested(4, &[3; 8])].concat()))]
#[case::a_value_before_its_key(in_span(&nested(9, &[nested(2, &nested(1, b"v")), nested(1, b"k")].concat())))]
#[case::two_keys(in_span(&nested(9, &[nested(1, b"k"), nested(2, &nested(1, b"v")), nested(1, b"l")].concat())))]
#[case::as_deep_as_prost_decodes(deep(47))]
fn unusual_ones_are_read_in_place(#[case] bytes: Vec<u8>) {
    assert!(check(&bytes).is_ok());
    assert_same(&bytes);
}

/// The limit is where prost has it.
#[test]
fn depth_is_bounded_as_prost_bounds_it() {
    for levels in 40..60 {
        let bytes = deep(levels);
        assert_eq!(check(&bytes).is_ok(), ExportTraceServiceRequest::decode(bytes.as_slice()).is_ok(), "{levels}");
    }
}

/// Whatever the order of the fields.
#[rstest]
#[case::client(3, true)]
#[case::server(2, false)]
#[case::none(0, false)]
fn a_client_tells_its_id(#[case] kind: i32, #[case] expected: bool) {
    let span = Span { kind, span_id: vec![7; 8], name: "GET".to_owned(), ..Span::default() };
    let bytes = span.encode_to_vec();
    assert_eq!(SpanRef::client_id(&bytes), expected.then_some([7; 8]));
    let (id, rest) = bytes.split_at(10);
    assert_eq!(SpanRef::client_id(&[rest, id].concat()), expected.then_some([7; 8]));
    assert_eq!(SpanRef::client_id(rest), None);
}
