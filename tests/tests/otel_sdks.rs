//! Guarantee: what an OpenTelemetry SDK exports comes back equal, whatever the protocol and whatever is in it.
//!
//! Python's and Node's SDKs make spans with every type of attribute, events, links, kinds, statuses, scopes, trace
//! state and dropped counts; each script prints what its spans were. Trace by id must say the same in protobuf, in
//! JSON, and in both versions of the API.

#![expect(clippy::indexing_slicing, reason = "indexing JSON gives null, it never panics")]

mod otlp;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::seen::from_base64;
use coati_tests::tools::{system, tool, tools, workspace};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, TracesData};
use prost::Message;
use rstest::rstest;
use serde_json::{Value, json};

use crate::otlp::hex;

/// Spans in the scripts' words, by span id.
type Spans = BTreeMap<String, Value>;

#[rstest]
#[case::python_grpc("sdk.py", "grpc")]
#[case::python_http_protobuf("sdk.py", "http/protobuf")]
#[case::node_grpc("sdk.js", "grpc")]
#[case::node_http_protobuf("sdk.js", "http/protobuf")]
#[case::node_http_json("sdk.js", "http/json")]
fn what_an_sdk_sent_comes_back_equal(#[case] script: &str, #[case] protocol: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(folder.path(), &[])?;
    let endpoint = if protocol == "grpc" { backend.grpc } else { backend.otlp_http };
    let sent = export(script, protocol, &format!("http://{endpoint}"))?;
    ensure!(sent.len() == 6, "the script made {} spans", sent.len());

    let traces: BTreeSet<&str> = sent.values().filter_map(|span| span["trace_id"].as_str()).collect();
    ensure!(traces.len() == 2, "the script made traces {traces:?}");
    let read = |path: &str, accept: &str, decode: fn(&[u8]) -> Result<Spans>| -> Result<Spans> {
        let mut spans = Spans::new();
        for trace in &traces {
            let answer = http::get_with(&format!("http://{}{path}{trace}", backend.api), &[("accept", accept)])?;
            ensure!(answer.status == 200, "{path}{trace}: {}", answer.text());
            spans.extend(decode(&answer.body).with_context(|| format!("{path}{trace} as {accept}"))?);
        }
        Ok(spans)
    };
    equal("/api/v2, protobuf", &sent, &read("/api/v2/traces/", "application/protobuf", from_v2_protobuf)?)?;
    equal("/api/v2, JSON", &sent, &read("/api/v2/traces/", "application/json", from_v2_json)?)?;
    equal("/api, protobuf", &sent, &read("/api/traces/", "application/protobuf", from_v1_protobuf)?)?;
    equal("/api, JSON", &sent, &read("/api/traces/", "application/json", from_v1_json)?)
}

/// Runs a script; gives what it says that it sent.
fn export(script: &str, protocol: &str, endpoint: &str) -> Result<Spans> {
    let program = if script == "sdk.py" { tool("python/bin/python")? } else { system("node")? };
    let output = Command::new(program)
        .arg(workspace().join("tests/clients").join(script))
        .args([protocol, endpoint])
        .env("NODE_PATH", tools().join("node/node_modules"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output()
        .with_context(|| script.to_owned())?;
    ensure!(output.status.success(), "{script}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    let spans: Vec<Value> = serde_json::from_slice(&output.stdout).context("what the script printed")?;
    Ok(spans.into_iter().filter_map(|span| Some((span["span_id"].as_str()?.to_owned(), span))).collect())
}

/// Compares field by field, so that a failure names the field.
fn equal(source: &str, sent: &Spans, found: &Spans) -> Result<()> {
    let ids = |spans: &Spans| spans.keys().cloned().collect::<Vec<_>>();
    ensure!(ids(sent) == ids(found), "{source}: sent spans {:?}, found {:?}", ids(sent), ids(found));
    let mut differences = Vec::new();
    for (id, span) in sent {
        differ(&format!("{source}: {} {id}", span["name"]), span, &found[id], &mut differences);
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

fn differ(place: &str, sent: &Value, found: &Value, differences: &mut Vec<String>) {
    match (sent, found) {
        (Value::Object(left), Value::Object(right)) => {
            for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
                differ(&format!("{place}.{key}"), &sent[key], &found[key], differences);
            }
        }
        _ if sent == found => {}
        _ => differences.push(format!("{place}: sent {sent}, found {found}")),
    }
}

// Protobuf into the scripts' words.

fn from_v2_protobuf(body: &[u8]) -> Result<Spans> {
    Ok(from_protobuf(&otlp::TraceByIdResponse::decode(body)?.trace.context("no field `trace`")?))
}

fn from_v1_protobuf(body: &[u8]) -> Result<Spans> {
    Ok(from_protobuf(&TracesData::decode(body)?))
}

fn from_protobuf(data: &TracesData) -> Spans {
    let mut spans = Spans::new();
    for resource in &data.resource_spans {
        for scope in &resource.scope_spans {
            spans.extend(scope.spans.iter().map(|span| (hex(&span.span_id), plain(resource, scope, span))));
        }
    }
    spans
}

fn plain(resource: &ResourceSpans, scope: &ScopeSpans, span: &Span) -> Value {
    let status = span.status.clone().unwrap_or_default();
    let of_scope = scope.scope.clone().unwrap_or_default();
    json!({
        "resource": attributes(&resource.resource.clone().unwrap_or_default().attributes),
        "resource_schema_url": resource.schema_url,
        "scope": {
            "name": of_scope.name, "version": of_scope.version, "attributes": attributes(&of_scope.attributes),
        },
        "scope_schema_url": scope.schema_url,
        "trace_id": hex(&span.trace_id),
        "span_id": hex(&span.span_id),
        "parent_span_id": hex(&span.parent_span_id),
        "trace_state": span.trace_state,
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "start": span.start_time_unix_nano.to_string(),
        "end": span.end_time_unix_nano.to_string(),
        "attributes": attributes(&span.attributes),
        "dropped_attributes": span.dropped_attributes_count,
        "events": span.events.iter().map(|event| json!({
            "name": event.name,
            "time": event.time_unix_nano.to_string(),
            "attributes": attributes(&event.attributes),
            "dropped_attributes": event.dropped_attributes_count,
        })).collect::<Vec<_>>(),
        "dropped_events": span.dropped_events_count,
        "links": span.links.iter().map(|link| json!({
            "trace_id": hex(&link.trace_id),
            "span_id": hex(&link.span_id),
            "trace_state": link.trace_state,
            "flags": link.flags,
            "attributes": attributes(&link.attributes),
            "dropped_attributes": link.dropped_attributes_count,
        })).collect::<Vec<_>>(),
        "dropped_links": span.dropped_links_count,
        "status": { "code": status.code, "message": status.message },
    })
}

fn attributes(of: &[KeyValue]) -> Value {
    of.iter().map(|pair| (pair.key.clone(), any(pair.value.as_ref()))).collect::<serde_json::Map<_, _>>().into()
}

fn any(value: Option<&AnyValue>) -> Value {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => json!({ "string": text }),
        Some(Any::BoolValue(value)) => json!({ "bool": value }),
        Some(Any::IntValue(value)) => json!({ "int": value.to_string() }),
        Some(Any::DoubleValue(value)) => double(*value),
        Some(Any::BytesValue(bytes)) => json!({ "bytes": hex(bytes) }),
        Some(Any::ArrayValue(array)) => {
            json!({ "array": array.values.iter().map(|value| any(Some(value))).collect::<Vec<_>>() })
        }
        Some(Any::KvlistValue(list)) => json!({ "map": attributes(&list.values) }),
        other => json!(format!("{other:?}")),
    }
}

fn double(value: f64) -> Value {
    json!({ "double": format!("{:016x}", value.to_bits()) })
}

// Tempo's JSON into the scripts' words: ids and bytes in base64, 64-bit integers as texts, enums by name, and no
// field that has its default value.

fn from_v2_json(body: &[u8]) -> Result<Spans> {
    from_json(&serde_json::from_slice::<Value>(body)?["trace"]["resourceSpans"])
}

fn from_v1_json(body: &[u8]) -> Result<Spans> {
    from_json(&serde_json::from_slice::<Value>(body)?["batches"])
}

fn from_json(resources: &Value) -> Result<Spans> {
    let mut spans = Spans::new();
    for resource in list(resources) {
        for scope in list(&resource["scopeSpans"]) {
            for span in list(&scope["spans"]) {
                let plain = plain_of_json(resource, scope, span)?;
                spans.insert(text(&plain["span_id"]), plain);
            }
        }
    }
    Ok(spans)
}

fn plain_of_json(resource: &Value, scope: &Value, span: &Value) -> Result<Value> {
    let kinds =
        ["SPAN_KIND_INTERNAL", "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_PRODUCER", "SPAN_KIND_CONSUMER"];
    let codes = ["STATUS_CODE_OK", "STATUS_CODE_ERROR"];
    let mut events = Vec::new();
    for event in list(&span["events"]) {
        events.push(json!({
            "name": text(&event["name"]),
            "time": whole(&event["timeUnixNano"])?,
            "attributes": attributes_of_json(&event["attributes"])?,
            "dropped_attributes": count(&event["droppedAttributesCount"])?,
        }));
    }
    let mut links = Vec::new();
    for link in list(&span["links"]) {
        links.push(json!({
            "trace_id": id(&link["traceId"])?,
            "span_id": id(&link["spanId"])?,
            "trace_state": text(&link["traceState"]),
            "flags": count(&link["flags"])?,
            "attributes": attributes_of_json(&link["attributes"])?,
            "dropped_attributes": count(&link["droppedAttributesCount"])?,
        }));
    }
    Ok(json!({
        "resource": attributes_of_json(&resource["resource"]["attributes"])?,
        "resource_schema_url": text(&resource["schemaUrl"]),
        "scope": {
            "name": text(&scope["scope"]["name"]),
            "version": text(&scope["scope"]["version"]),
            "attributes": attributes_of_json(&scope["scope"]["attributes"])?,
        },
        "scope_schema_url": text(&scope["schemaUrl"]),
        "trace_id": id(&span["traceId"])?,
        "span_id": id(&span["spanId"])?,
        "parent_span_id": id(&span["parentSpanId"])?,
        "trace_state": text(&span["traceState"]),
        "flags": count(&span["flags"])?,
        "name": text(&span["name"]),
        "kind": name(&span["kind"], &kinds)?,
        "start": whole(&span["startTimeUnixNano"])?,
        "end": whole(&span["endTimeUnixNano"])?,
        "attributes": attributes_of_json(&span["attributes"])?,
        "dropped_attributes": count(&span["droppedAttributesCount"])?,
        "events": events,
        "dropped_events": count(&span["droppedEventsCount"])?,
        "links": links,
        "dropped_links": count(&span["droppedLinksCount"])?,
        "status": { "code": name(&span["status"]["code"], &codes)?, "message": text(&span["status"]["message"]) },
    }))
}

fn attributes_of_json(of: &Value) -> Result<Value> {
    let pairs = list(of).iter().map(|pair| Ok((text(&pair["key"]), any_of_json(&pair["value"])?)));
    Ok(Value::Object(pairs.collect::<Result<_>>()?))
}

fn any_of_json(value: &Value) -> Result<Value> {
    let (field, content) =
        value.as_object().and_then(|object| object.iter().next()).context("a value without a type")?;
    Ok(match field.as_str() {
        "stringValue" => json!({ "string": content.as_str().context("not a text")? }),
        "boolValue" => json!({ "bool": content.as_bool().context("not a boolean")? }),
        "intValue" => json!({ "int": content.as_str().context("a 64-bit integer must be a text")? }),
        "doubleValue" => double(match content {
            Value::String(text) => text.parse()?,
            number => number.as_f64().context("not a number")?,
        }),
        "bytesValue" => json!({ "bytes": id(content)? }),
        "arrayValue" => {
            json!({ "array": list(&content["values"]).iter().map(any_of_json).collect::<Result<Vec<_>>>()? })
        }
        "kvlistValue" => json!({ "map": attributes_of_json(&content["values"])? }),
        other => bail!("unknown type {other}"),
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn count(value: &Value) -> Result<u64> {
    if value.is_null() { Ok(0) } else { value.as_u64().with_context(|| format!("{value} is not a 32-bit number")) }
}

fn whole(value: &Value) -> Result<String> {
    if value.is_null() {
        Ok("0".to_owned())
    } else {
        Ok(value.as_str().context("a 64-bit number must be a text")?.to_owned())
    }
}

/// Number of an enum's value: 0 when it is absent, else its place among `names` from 1.
fn name(value: &Value, names: &[&str]) -> Result<usize> {
    if value.is_null() {
        return Ok(0);
    }
    Ok(1 + names.iter().position(|name| value == name).with_context(|| format!("unknown name {value}"))?)
}

fn id(value: &Value) -> Result<String> {
    from_base64(value.as_str().unwrap_or_default())
}
