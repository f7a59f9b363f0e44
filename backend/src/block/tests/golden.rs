//! The fixtures were written by the first version of the format; they must be readable for ever.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use super::super::*;
use super::samples::{attribute, span, trace};
use super::{content, written};
use crate::live::{Batch, Trace};

const START: u64 = 1_795_237_020_000_000_000;

/// 22 traces with something in every column.
fn golden_traces() -> Vec<Arc<Trace>> {
    let plain = |id: u8| {
        let service = if id.is_multiple_of(2) { "cart" } else { "checkout" };
        let spans = (1..=4).map(|number| Span {
            attributes: vec![
                attribute("http.request.method", text("GET")),
                attribute("http.response.status_code", Value::IntValue(if number == 3 { 500 } else { 200 })),
                attribute("url.path", text(&format!("/{service}/{id}/{number}"))),
            ],
            kind: 2,
            status: (number == 3).then(|| Status { message: "no stock".to_owned(), code: 2 }),
            ..span(id, number, number - 1, START + u64::from(id) * 1_000_000 + u64::from(number) * 1_000)
        });
        trace(id, vec![of(service, spans.collect())])
    };
    (1..=20).map(plain).chain([odd(21), rich(22)]).collect()
}

/// Two roots, an orphan, a circle, a parent of zeros, an id twice, ends before starts.
fn odd(id: u8) -> Arc<Trace> {
    let mut spans: Vec<_> = [(1, 0), (2, 0), (3, 99), (4, 5), (5, 4), (6, 0), (7, 1), (7, 2)]
        .into_iter()
        .map(|(number, parent)| span(id, number, parent, START + u64::from(number)))
        .collect();
    spans[5].parent_span_id = vec![0; 8];
    spans[6].end_time_unix_nano = 0;
    spans[7].end_time_unix_nano = u64::MAX;
    trace(id, vec![of("odd", spans)])
}

/// Every field of OTLP, in two requests, one of which has two scopes.
fn rich(id: u8) -> Arc<Trace> {
    let any = |value| AnyValue { value: Some(value) };
    let pair = |key: &str, value| KeyValue { key: key.to_owned(), value, key_strindex: 0 };
    let values = vec![
        attribute("array", Value::ArrayValue(ArrayValue { values: vec![any(text("a")), any(Value::IntValue(2))] })),
        attribute("bool", Value::BoolValue(true)),
        attribute("bytes", Value::BytesValue(vec![0, 255])),
        attribute("double", Value::DoubleValue(-0.0)),
        attribute("double", Value::DoubleValue(2.5)),
        pair("empty", Some(AnyValue { value: None })),
        attribute("int", Value::IntValue(i64::MIN)),
        attribute("map", Value::KvlistValue(KeyValueList { values: vec![pair("k", Some(any(text("v"))))] })),
        pair("nothing", None),
        attribute("url.path", Value::IntValue(7)),
        attribute("http.request.method", text("")),
    ];
    let full = Span {
        trace_state: "vendor=1".to_owned(),
        flags: 0x301,
        kind: 3,
        attributes: values.clone(),
        dropped_attributes_count: 1,
        events: vec![
            Event {
                time_unix_nano: START + 5,
                name: "exception".to_owned(),
                attributes: values.clone(),
                dropped_attributes_count: 2,
            },
            Event { time_unix_nano: 0, ..Event::default() },
        ],
        dropped_events_count: 3,
        links: vec![
            Link {
                trace_id: vec![1; 16],
                span_id: vec![2; 8],
                trace_state: "linked=1".to_owned(),
                attributes: values.clone(),
                dropped_attributes_count: 4,
                flags: 1,
            },
            Link { trace_id: vec![3; 5], ..Link::default() },
        ],
        dropped_links_count: 5,
        status: Some(Status { message: "fine".to_owned(), code: 1 }),
        ..span(id, 1, 0, START)
    };
    let resource = Resource {
        attributes: [vec![attribute("service.name", text("rich"))], values.clone()].concat(),
        dropped_attributes_count: 6,
        entity_refs: vec![EntityRef {
            schema_url: "https://example.com/entity".to_owned(),
            r#type: "host".to_owned(),
            id_keys: vec!["host.id".to_owned()],
            description_keys: vec!["host.name".to_owned()],
        }],
    };
    let scope = InstrumentationScope {
        name: "io.example".to_owned(),
        version: "1.2".to_owned(),
        attributes: values,
        dropped_attributes_count: 7,
    };
    let first = Batch {
        resource: Arc::new(resource.clone()),
        resource_schema_url: "https://opentelemetry.io/schemas/1.37.0".into(),
        scope: Arc::new(scope),
        scope_schema_url: "https://opentelemetry.io/schemas/1.36.0".into(),
    };
    let second = Batch { scope: Arc::default(), ..first.clone() };
    // Equal, but sent in another request.
    let third = Batch { resource: Arc::new(resource), ..second.clone() };
    let spans = [full, span(id, 2, 1, START + 1), span(id, 3, 2, START + 2)];
    let sent = [first, second, third].into_iter().zip(spans).map(|(batch, span)| (Arc::new(batch), vec![span]));
    trace(id, sent.collect())
}

fn of(service: &str, spans: Vec<Span>) -> super::samples::Sent {
    super::batch(service, spans)
}

fn text(text: &str) -> Value {
    Value::StringValue(text.to_owned())
}

#[test]
fn the_golden_block_is_read() {
    let golden = Bytes::from_static(include_bytes!("../../../tests/fixtures/block-v1.parquet"));
    let filter = include_bytes!("../../../tests/fixtures/block-v1.filter");
    let block = Block::of_bytes("block-v1.parquet", golden).unwrap();
    block.verify().unwrap();
    let found: Vec<Trace> = block.traces().collect::<Result<_, _>>().unwrap();
    let traces = golden_traces();
    assert_eq!(found.len(), traces.len());
    let filter = Filter::decode("block-v1.filter", &filter.to_vec().into()).unwrap();
    for (found, trace) in found.iter().zip(&traces) {
        assert_eq!(content(found), content(trace), "{}", trace.id);
        assert!(filter.contains(&trace.id));
    }
    insta::assert_snapshot!(serde_json::to_string(block.summary()).unwrap(), @r#"{"id":"01a1fc77016000000000000000000007","tenant":"single-tenant","level":0,"start_ns":1795237020000000000,"end_ns":18446744073709551615,"received_first_ns":1795237020000000000,"received_last_ns":1795237025000000000,"spans":91,"traces":22,"bytes":13961,"filter_bytes":0,"services":["cart","checkout","odd","rich"]}"#);
    let message = block.parquet().file_metadata().schema_descr().root_schema();
    let mut columns = Vec::new();
    parquet::schema::printer::print_schema(&mut columns, message);
    insta::assert_snapshot!(String::from_utf8(columns).unwrap());
}

#[test]
fn what_is_written_now_has_the_same_columns() {
    let golden =
        Block::of_bytes("golden", include_bytes!("../../../tests/fixtures/block-v1.parquet").as_slice().into());
    let (store, summary, _) = written(&golden_traces());
    let now = Block::open(store as _, &summary).unwrap();
    let (golden, now) = (golden.unwrap(), now);
    assert_eq!(golden.parquet().file_metadata().schema_descr(), now.parquet().file_metadata().schema_descr());
    assert_eq!(golden.promoted(), now.promoted());
    assert_eq!(golden.attribute_counts(), now.attribute_counts());
    assert_eq!(
        (golden.resources().unwrap(), golden.scopes().unwrap()),
        (now.resources().unwrap(), now.scopes().unwrap())
    );
}

/// For a new version of the format: writes its fixtures.
#[test]
#[ignore = "writes the fixtures that the others read"]
fn write_the_golden_block() {
    let (store, summary, _) = written(&golden_traces());
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let name = format!("block-v{FORMAT_VERSION}");
    std::fs::write(fixtures.join(format!("{name}.parquet")), store.object(&summary.data_path())).unwrap();
    std::fs::write(fixtures.join(format!("{name}.filter")), store.object(&summary.filter_path())).unwrap();
}
