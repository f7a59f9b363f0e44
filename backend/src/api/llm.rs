//! `application/vnd.grafana.llm`: traces and values as JSON with little around them. Ids are hexadecimal, attributes plain
//! maps.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use serde_json::{Map, Value, json};

use super::tempopb::{SearchTagValuesV2Response, TraceByIdMetrics};
use crate::query::hex;

/// `{"trace":{"traceId","services":[…]}}`; `{}` for a trace that is not there.
pub(super) fn trace(data: &TracesData, metrics: TraceByIdMetrics) -> Value {
    let scopes = data.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    let Some(first) = scopes.flat_map(|scope| &scope.spans).next() else { return json!({}) };
    let services: Vec<Value> = data.resource_spans.iter().map(service).collect();
    let mut answer = Map::new();
    answer.insert("trace".to_owned(), json!({ "traceId": hex(&first.trace_id), "services": services }));
    if metrics.inspected_bytes > 0 {
        answer.insert("metrics".to_owned(), json!({ "inspectedBytes": metrics.inspected_bytes }));
    }
    answer.into()
}

/// `{"tagValues":{"string":["a","b"],"int":["1"]}}`.
pub(super) fn tag_values(found: &SearchTagValuesV2Response) -> Value {
    let mut by_type: Map<String, Value> = Map::new();
    for value in &found.tag_values {
        let values = by_type.entry(value.r#type.clone()).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(value.value.clone().into());
        }
    }
    let bytes = found.metrics.map_or(0, |metrics| metrics.inspected_bytes);
    let mut answer = Map::from_iter([("tagValues".to_owned(), by_type.into())]);
    if bytes > 0 {
        answer.insert("metrics".to_owned(), json!({ "inspectedBytes": bytes }));
    }
    answer.into()
}

fn service(resource: &ResourceSpans) -> Value {
    let mut attributes = attributes(resource.resource.iter().flat_map(|resource| &resource.attributes));
    let mut object = Map::new();
    put(&mut object, "serviceName", attributes.remove("service.name").unwrap_or_default());
    put(&mut object, "resource", attributes.into());
    put(&mut object, "scopes", resource.scope_spans.iter().map(scope).collect());
    object.into()
}

fn scope(scope: &ScopeSpans) -> Value {
    let mut object = Map::new();
    if let Some(scope) = &scope.scope {
        put(&mut object, "name", scope.name.clone().into());
        put(&mut object, "version", scope.version.clone().into());
    }
    put(&mut object, "spans", scope.spans.iter().map(span).collect());
    object.into()
}

fn span(span: &Span) -> Value {
    let mut object = Map::new();
    object.insert("spanId".to_owned(), hex(&span.span_id).into());
    object.insert("name".to_owned(), span.name.clone().into());
    put(&mut object, "parentSpanId", hex(&span.parent_span_id).into());
    if span.kind() != SpanKind::Unspecified {
        object.insert("kind".to_owned(), span.kind().as_str_name().into());
    }
    put(&mut object, "startTimeUnixNano", nanos(span.start_time_unix_nano));
    put(&mut object, "endTimeUnixNano", nanos(span.end_time_unix_nano));
    let duration_ns = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
    if duration_ns > 0 && span.start_time_unix_nano > 0 {
        object.insert("durationMs".to_owned(), (duration_ns as f64 / 1e6).into());
    }
    put(&mut object, "attributes", attributes(&span.attributes).into());
    let events = span.events.iter().map(|event| {
        let mut object = Map::from_iter([("name".to_owned(), event.name.clone().into())]);
        put(&mut object, "timeUnixNano", nanos(event.time_unix_nano));
        put(&mut object, "attributes", attributes(&event.attributes).into());
        Value::from(object)
    });
    put(&mut object, "events", events.collect());
    let links = span.links.iter().map(|link| {
        let ids = [("traceId", &link.trace_id), ("spanId", &link.span_id)];
        let mut object: Map<_, _> = ids.into_iter().map(|(name, id)| (name.to_owned(), hex(id).into())).collect();
        put(&mut object, "attributes", attributes(&link.attributes).into());
        Value::from(object)
    });
    put(&mut object, "links", links.collect());
    let status = span.status.clone().unwrap_or_default();
    object.insert("status".to_owned(), json!({ "code": status.code().as_str_name(), "message": status.message }));
    object.into()
}

/// What is empty is left away.
fn put(object: &mut Map<String, Value>, name: &str, value: Value) {
    let empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    if !empty {
        object.insert(name.to_owned(), value);
    }
}

/// A text: JavaScript's numbers do not hold nanoseconds. Nothing for 0.
fn nanos(nanos: u64) -> Value {
    if nanos == 0 { Value::Null } else { nanos.to_string().into() }
}

fn attributes<'a>(list: impl IntoIterator<Item = &'a KeyValue>) -> Map<String, Value> {
    let value = |kv: &KeyValue| kv.value.as_ref().map(plain);
    list.into_iter().filter_map(|kv| Some((kv.key.clone(), value(kv)?))).collect()
}

fn plain(any: &AnyValue) -> Value {
    match &any.value {
        None | Some(Any::StringValueStrindex(_)) => Value::Null,
        Some(Any::StringValue(text)) => text.clone().into(),
        Some(Any::BoolValue(truth)) => (*truth).into(),
        Some(Any::IntValue(int)) => (*int).into(),
        // What JSON has no number for is null.
        Some(Any::DoubleValue(float)) => (*float).into(),
        Some(Any::BytesValue(bytes)) => hex(bytes).into(),
        Some(Any::ArrayValue(array)) => array.values.iter().map(plain).collect(),
        Some(Any::KvlistValue(list)) => attributes(&list.values).into(),
    }
}
