//! OTLP as the tests speak it: requests that are built in place, sent with what a client would send, read back whole.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::http::{self, Answer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};
use prost::Message;

/// Content type of OTLP over HTTP in protobuf.
pub(crate) const PROTOBUF: &str = "application/x-protobuf";

/// Content type of OTLP over HTTP in JSON.
pub(crate) const JSON: &str = "application/json";

/// Answer of `/api/v2/traces/{id}` in protobuf.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TraceByIdResponse {
    /// The trace; present even when it is unknown.
    #[prost(message, optional, tag = "1")]
    pub(crate) trace: Option<TracesData>,
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// One attribute.
pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// One attribute that is text.
pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

/// A server span that ends now and took 5 ms, with attributes that depend on its id.
pub(crate) fn span(trace: u128, id: u64, name: &str) -> Span {
    let end = now_ns();
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        name: name.to_owned(),
        kind: 2,
        start_time_unix_nano: end - 5_000_000,
        end_time_unix_nano: end,
        attributes: vec![
            text("http.request.method", "GET"),
            text("url.path", &format!("/items/{id}")),
            attribute("http.response.status_code", Value::IntValue(200)),
            attribute("number", Value::IntValue(id.cast_signed())),
        ],
        status: Some(Status::default()),
        ..Span::default()
    }
}

/// A request with spans of one service.
pub(crate) fn request(service: &str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope { name: "coati-tests".to_owned(), ..InstrumentationScope::default() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![text("service.name", service)], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Sends encoded bytes to `/v1/traces`.
pub(crate) fn send(backend: &Backend, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    http::post_with(&format!("http://{}/v1/traces", backend.otlp_http), headers, body)
}

/// Sends a request as protobuf, whatever comes of it.
pub(crate) fn send_request(backend: &Backend, request: &ExportTraceServiceRequest) -> Result<Answer> {
    send(backend, &[("content-type", PROTOBUF)], &request.encode_to_vec())
}

/// Sends a request; fails unless every span of it was acknowledged.
pub(crate) fn store(backend: &Backend, request: &ExportTraceServiceRequest) -> Result<()> {
    let answer = send_request(backend, request)?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    let rejected = rejection(&answer)?;
    ensure!(rejected.is_none(), "rejected: {rejected:?}");
    Ok(())
}

/// How many spans an acknowledgement in protobuf says were rejected, and why; none if all were stored.
pub(crate) fn rejection(answer: &Answer) -> Result<Option<(i64, String)>> {
    let response = ExportTraceServiceResponse::decode(answer.body.as_slice()).context("not an OTLP answer")?;
    let partial = response.partial_success.unwrap_or_default();
    Ok((partial.rejected_spans != 0).then_some((partial.rejected_spans, partial.error_message)))
}

/// A whole trace by its id, in protobuf.
pub(crate) fn trace(backend: &Backend, id: u128) -> Result<TracesData> {
    trace_with(backend, id, &[])
}

fn trace_with(backend: &Backend, id: u128, headers: &[(&str, &str)]) -> Result<TracesData> {
    let url = format!("http://{}/api/v2/traces/{id:032x}", backend.api);
    let answer = http::get_with(&url, &[&[("accept", "application/protobuf")], headers].concat())?;
    ensure!(answer.status == 200, "trace {id:032x}: status {}: {}", answer.status, answer.text());
    let response = TraceByIdResponse::decode(answer.body.as_slice()).context("not a TraceByIDResponse")?;
    response.trace.context("an answer without the field `trace`")
}

/// The spans of a trace, sorted by their ids.
pub(crate) fn spans(backend: &Backend, id: u128) -> Result<Vec<Span>> {
    Ok(sorted_spans(trace(backend, id)?))
}

/// The spans of a trace of one tenant, sorted by their ids.
pub(crate) fn spans_of(backend: &Backend, tenant: &str, id: u128) -> Result<Vec<Span>> {
    Ok(sorted_spans(trace_with(backend, id, &[("x-scope-orgid", tenant)])?))
}

fn sorted_spans(data: TracesData) -> Vec<Span> {
    let scopes = data.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let mut spans: Vec<_> = scopes.flat_map(|scope| scope.spans).collect();
    spans.sort_by(|a, b| a.span_id.cmp(&b.span_id));
    spans
}
