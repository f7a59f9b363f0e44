//! OTLP/JSON as the specification, and the SDKs, write it.

use coati_common::otlp_json::decode;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::common::v1::AnyValue as Any;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message;
use rstest::rstest;

/// The one span of a request with these fields.
fn span(fields: &str) -> Result<trace::Span, serde_json::Error> {
    let body = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#);
    Ok(decode(body.as_bytes())?.resource_spans.remove(0).scope_spans.remove(0).spans.remove(0))
}

/// The value of an attribute.
fn value(json: &str) -> Result<Option<Value>, serde_json::Error> {
    let mut span = span(&format!(r#""attributes":[{{"key":"k","value":{json}}}]"#))?;
    Ok(span.attributes.remove(0).value.and_then(|value| value.value))
}

#[rstest]
#[case::text(r#"{"stringValue":"a\u00e9"}"#, Value::StringValue("aé".to_owned()))]
#[case::bool(r#"{"boolValue":false}"#, Value::BoolValue(false))]
#[case::int_as_text(r#"{"intValue":"-9223372036854775808"}"#, Value::IntValue(i64::MIN))]
#[case::int_as_number(r#"{"intValue":42}"#, Value::IntValue(42))]
#[case::int_with_an_exponent(r#"{"intValue":1e3}"#, Value::IntValue(1000))]
#[case::double(r#"{"doubleValue":0.5}"#, Value::DoubleValue(0.5))]
#[case::double_without_a_fraction(r#"{"doubleValue":3}"#, Value::DoubleValue(3.0))]
#[case::infinity(r#"{"doubleValue":"-Infinity"}"#, Value::DoubleValue(f64::NEG_INFINITY))]
#[case::bytes(r#"{"bytesValue":"+/8="}"#, Value::BytesValue(vec![0xfb, 0xff]))]
#[case::bytes_for_urls_unpadded(r#"{"bytesValue":"-_8"}"#, Value::BytesValue(vec![0xfb, 0xff]))]
#[case::empty_array(r#"{"arrayValue":{}}"#, Value::ArrayValue(common::ArrayValue { values: vec![] }))]
#[case::array(
    r#"{"arrayValue":{"values":[{"intValue":"1"},{},null]}}"#,
    Value::ArrayValue(common::ArrayValue {
        values: vec![Any { value: Some(Value::IntValue(1)) }, Any { value: None }, Any { value: None }],
    }),
)]
#[case::pairs(
    r#"{"kvlistValue":{"values":[{"key":"a","value":{"boolValue":true}},{"key":"b"}]}}"#,
    Value::KvlistValue(common::KeyValueList {
        values: vec![
            common::KeyValue { key: "a".to_owned(), value: Some(Any { value: Some(Value::BoolValue(true)) }), key_strindex: 0 },
            common::KeyValue { key: "b".to_owned(), ..common::KeyValue::default() },
        ],
    }),
)]
#[case::beside_an_unknown_field(r#"{"newValue":{"x":[1]},"stringValue":"a"}"#, Value::StringValue("a".to_owned()))]
fn values(#[case] json: &str, #[case] expected: Value) {
    assert_eq!(value(json).unwrap(), Some(expected));
}

#[rstest]
#[case::empty("{}")]
#[case::null("null")]
#[case::null_inside(r#"{"stringValue":null}"#)]
#[case::unknown(r#"{"newValue":[{}]}"#)]
fn values_that_say_nothing(#[case] json: &str) {
    assert_eq!(value(json).unwrap(), None);
}

#[test]
fn nan_is_understood() {
    assert!(matches!(value(r#"{"doubleValue":"NaN"}"#).unwrap(), Some(Value::DoubleValue(number)) if number.is_nan()));
}

#[rstest]
#[case::number(r#""kind":2,"status":{"code":1}"#, 2, 1)]
#[case::name(r#""kind":"SPAN_KIND_SERVER","status":{"code":"STATUS_CODE_OK"}"#, 2, 1)]
#[case::number_as_text(r#""kind":"2","status":{"code":"1"}"#, 2, 1)]
#[case::null(r#""kind":null,"status":{}"#, 0, 0)]
#[case::one_that_is_not_known_yet(r#""kind":77,"status":{"code":78}"#, 77, 78)]
fn enums(#[case] fields: &str, #[case] kind: i32, #[case] code: i32) {
    let span = span(fields).unwrap();
    assert_eq!((span.kind, span.status.unwrap().code), (kind, code));
}

#[rstest]
#[case::id_that_is_no_text(r#""traceId":17"#)]
#[case::number_too_large(r#""flags":4294967296"#)]
#[case::negative_time(r#""startTimeUnixNano":-1"#)]
#[case::fraction(r#""droppedEventsCount":1.5"#)]
#[case::enum_name(r#""kind":"SERVER""#)]
#[case::list_for_text(r#""name":[]"#)]
#[case::bad_base64(r#""attributes":[{"key":"k","value":{"bytesValue":"*"}}]"#)]
fn refused(#[case] fields: &str) {
    assert!(span(fields).is_err());
}

#[rstest]
#[case::base64("W47/95gDgQPSabYzgT/GDA==")]
#[case::odd("abc")]
#[case::no_hex("5b8efff798038103d269b633813fc60x")]
fn text_that_is_no_id_has_the_length_of_none(#[case] id: &str) {
    let span = span(&format!(r#""traceId":"{id}","spanId":"{id}","parentSpanId":"{id}""#)).unwrap();
    assert_eq!([span.trace_id.len(), span.span_id.len(), span.parent_span_id.len()], [1; 3]);
}

#[rstest]
#[case::nothing("{}")]
#[case::null_list(r#"{"resourceSpans":null}"#)]
fn requests_without_spans(#[case] body: &str) {
    assert_eq!(decode(body.as_bytes()).unwrap(), ExportTraceServiceRequest::default());
}

/// What `@opentelemetry/exporter-trace-otlp-http` of Node sends, numbers and all, and every field that it leaves out.
const NODE: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}},
    {"key":"process.pid","value":{"intValue":4711}},
    {"key":"process.command_args","value":{"arrayValue":{"values":[{"stringValue":"/usr/bin/node"}]}}}],
    "droppedAttributesCount":0},"scopeSpans":[{"scope":{"name":"demo","version":""},"spans":[{
    "traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174","parentSpanId":"eee19b7ec3c1b173",
    "name":"GET /","kind":3,"startTimeUnixNano":"1795237020000000001","endTimeUnixNano":"1795237020500000000",
    "attributes":[{"key":"ratio","value":{"doubleValue":0.25}}],"droppedAttributesCount":0,
    "events":[{"attributes":[],"name":"cache miss","timeUnixNano":"1795237020100000000","droppedAttributesCount":0}],
    "droppedEventsCount":0,"status":{"code":0},"links":[{"attributes":[],"spanId":"eee19b7ec3c1b175",
    "traceId":"5b8efff798038103d269b633813fc60d","droppedAttributesCount":0}],"droppedLinksCount":0,
    "flags":257}]}]}]}"#;

#[test]
fn the_json_of_the_node_sdk_is_read_whole() {
    let mut request = decode(NODE.as_bytes()).unwrap();
    let mut resource_spans = request.resource_spans.remove(0);
    assert_eq!(resource_spans.resource.unwrap().attributes.len(), 3);
    let mut scope_spans = resource_spans.scope_spans.remove(0);
    assert_eq!(scope_spans.scope.unwrap().name, "demo");
    let span = scope_spans.spans.remove(0);
    assert_eq!(span.trace_id, 0x5b8e_fff7_9803_8103_d269_b633_813f_c60c_u128.to_be_bytes());
    assert_eq!(
        (span.start_time_unix_nano, span.end_time_unix_nano),
        (1_795_237_020_000_000_001, 1_795_237_020_500_000_000)
    );
    assert_eq!((span.kind, span.flags), (3, 257));
    assert_eq!(span.events[0].name, "cache miss");
    assert_eq!(span.links[0].span_id, 0xeee1_9b7e_c3c1_b175_u64.to_be_bytes());
}

#[test]
fn every_prefix_is_refused_and_none_panics() {
    for len in 0..NODE.len() {
        assert!(decode(&NODE.as_bytes()[..len]).is_err(), "{len} bytes");
    }
}

/// What is stored is protobuf, whose reader stops at 100 levels; what JSON's reader lets through must be below.
#[test]
fn what_is_nested_as_deep_as_json_may_be_is_readable_as_protobuf() {
    for (open, close) in
        [(r#"{"arrayValue":{"values":["#, "]}}"), (r#"{"kvlistValue":{"values":[{"key":"k","value":"#, "}]}}")]
    {
        let deepest =
            (1..200).take_while(|depth| value(&(open.repeat(*depth) + "{}" + &close.repeat(*depth))).is_ok()).last();
        let depth = deepest.unwrap();
        let json = open.repeat(depth) + "{}" + &close.repeat(depth);
        let body = format!(
            r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{"events":[{{"attributes":[{{"key":"k","value":{json}}}]}}]}}]}}]}}]}}"#
        );
        let Ok(request) = decode(body.as_bytes()) else { continue };
        assert_eq!(
            ExportTraceServiceRequest::decode(request.encode_to_vec().as_slice()).unwrap(),
            request,
            "depth {depth}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _result = decode(text.as_bytes());
    }

    #[test]
    fn any_change_of_a_byte_is_read_or_refused(position in 0..NODE.len(), byte: u8) {
        let mut body = NODE.as_bytes().to_vec();
        body[position] = byte;
        let _result = decode(&body);
    }
}
