//! A small system for tests: a shop, and a job that knows nothing of it.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::live::{Limits, LiveSet, Trace, TraceId, group_message};

/// 2026-01-01T00:00:00Z, nanoseconds.
pub(crate) const EPOCH: u64 = 1_767_225_600_000_000_000;
/// The id of the shop's trace begins with zeros.
pub(crate) const SHOP: TraceId = TraceId([0, 0x0a, 0x1b, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
/// The job's trace started later.
pub(crate) const JOB: TraceId = TraceId([0xff; 16]);

pub(crate) fn int(value: i64) -> Any {
    Any::IntValue(value)
}

pub(crate) fn text(value: &str) -> Any {
    Any::StringValue(value.to_owned())
}

pub(crate) fn array(values: &[Any]) -> Any {
    Any::ArrayValue(ArrayValue { values: values.iter().map(|value| AnyValue { value: Some(value.clone()) }).collect() })
}

pub(crate) fn attributes(list: &[(&str, Any)]) -> Vec<KeyValue> {
    let key_value = |(key, value): &(&str, Any)| KeyValue {
        key: (*key).to_owned(),
        value: Some(AnyValue { value: Some(value.clone()) }),
        key_strindex: 0,
    };
    list.iter().map(key_value).collect()
}

/// A span of `id`, below `parent` (0 for none), that starts at a millisecond and lasts some.
pub(crate) fn span(trace: TraceId, id: u8, parent: u8, name: &str, start_ms: u64, length_ms: u64) -> Span {
    let long = |id: u8| if id == 0 { Vec::new() } else { vec![0, 0, 0, 0, 0, 0, 0, id] };
    Span {
        trace_id: trace.0.to_vec(),
        span_id: long(id),
        parent_span_id: long(parent),
        name: name.to_owned(),
        start_time_unix_nano: EPOCH + start_ms * 1_000_000,
        end_time_unix_nano: EPOCH + (start_ms + length_ms) * 1_000_000,
        ..Span::default()
    }
}

/// Spans of one service, from one library.
pub(crate) fn service(name: &str, more: &[(&str, Any)], library: &str, spans: Vec<Span>) -> ResourceSpans {
    let mut all = attributes(&[("service.name", text(name))]);
    all.extend(attributes(more));
    ResourceSpans {
        resource: Some(Resource { attributes: all, ..Resource::default() }),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: library.to_owned(),
                version: "1.2".to_owned(),
                attributes: attributes(&[("library.kind", text("http"))]),
                ..InstrumentationScope::default()
            }),
            spans,
            schema_url: String::new(),
        }],
        schema_url: String::new(),
    }
}

/// ```text
/// 1 frontend GET /cart            server  0..500 ms, 200
/// ├─ 2 frontend GET               client 10..400 ms
/// │  └─ 3 cart GET /items         server 20..390 ms, 500, error
/// │     ├─ 4 cart SELECT          client 30..130 ms, exception, link
/// │     └─ 5 cart SELECT          client 140..240 ms
/// └─ 6 frontend render            internal 410..490 ms
/// ```
pub(crate) fn shop() -> Vec<ResourceSpans> {
    let kind = |span: Span, kind: i32| Span { kind, ..span };
    let with = |span: Span, list: &[(&str, Any)]| Span { attributes: attributes(list), ..span };
    let mut failed = with(
        kind(span(SHOP, 3, 2, "GET /items", 20, 370), 2),
        &[
            ("http.status_code", int(500)),
            ("http.route", text("/items")),
            ("retries", array(&[int(1), int(3)])),
            ("tags", array(&[text("a"), text("b")])),
        ],
    );
    failed.status = Some(Status { message: "no stock".to_owned(), code: 2 });
    let mut select =
        with(kind(span(SHOP, 4, 3, "SELECT", 30, 100), 3), &[("db.rows", int(7)), ("cached", Any::BoolValue(true))]);
    select.events = vec![
        Event {
            name: "exception".to_owned(),
            time_unix_nano: select.start_time_unix_nano + 5_000_000,
            attributes: attributes(&[("exception.message", text("locked")), ("code", int(40))]),
            dropped_attributes_count: 0,
        },
        Event {
            name: "retry".to_owned(),
            time_unix_nano: select.start_time_unix_nano + 50_000_000,
            ..Event::default()
        },
    ];
    select.links = vec![Link {
        trace_id: JOB.0.to_vec(),
        span_id: vec![9; 8],
        attributes: attributes(&[("why", text("batch"))]),
        ..Link::default()
    }];
    let second = with(
        kind(span(SHOP, 5, 3, "SELECT", 140, 100), 3),
        &[
            ("db.rows", int(3)),
            ("ratio", Any::DoubleValue(0.5)),
            ("raw", Any::BytesValue(vec![1, 2])),
            ("map", Any::KvlistValue(KeyValueList { values: attributes(&[("x", int(1))]) })),
        ],
    );
    let mut root =
        with(kind(span(SHOP, 1, 0, "GET /cart", 0, 500), 2), &[("http.status_code", int(200)), ("a", text("span"))]);
    root.status = Some(Status { message: String::new(), code: 1 });
    vec![
        service(
            "frontend",
            &[("region", text("eu")), ("a", text("resource"))],
            "net/http",
            vec![root, kind(span(SHOP, 2, 1, "GET", 10, 390), 3), kind(span(SHOP, 6, 1, "render", 410, 80), 1)],
        ),
        service("cart", &[("region", text("us"))], "sql", vec![failed, select, second]),
    ]
}

/// Two spans whose parent never came, an hour and more after the shop's, under one second apart.
pub(crate) fn job() -> Vec<ResourceSpans> {
    let spans = vec![span(JOB, 7, 99, "step", 3_600_000, 20), span(JOB, 8, 7, "inner", 3_600_005, 10)];
    vec![service("job", &[], "cron", spans)]
}

/// The shop and the job, of the tenant `single-tenant`.
pub(crate) fn live() -> LiveSet {
    let live = LiveSet::new(Limits::default());
    for resource_spans in [shop(), job()] {
        live.insert("single-tenant", group_message(&ExportTraceServiceRequest { resource_spans }), EPOCH, 0);
    }
    live
}

/// A trace alone.
pub(crate) fn trace(resource_spans: Vec<ResourceSpans>) -> Arc<Trace> {
    let live = LiveSet::new(Limits::default());
    live.insert("t", group_message(&ExportTraceServiceRequest { resource_spans }), EPOCH, 0);
    live.snapshot("t").remove(0)
}
