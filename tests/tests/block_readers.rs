//! Guarantee: blocks are Parquet files that others read: `DuckDB` and pyarrow find in them what was sent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use coati_backend::block::{BlockId, NewBlock, write_block};
use coati_backend::live::{Limits, LiveSet, group_message};
use coati_backend::store::MemoryStore;
use coati_backend::store::Store;
use coati_tests::tools::{tool, workspace};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use serde_json::{Value, json};

const START: u64 = 1_795_237_020_000_000_000;
const TRACES: u64 = 3_000;
const SPANS: u64 = 7;

/// Large enough for several pages of each column, and for every encoding that the writer chooses.
#[test]
fn others_find_what_was_sent() -> Result<()> {
    let requests: Vec<_> = (0..TRACES).map(request).collect();
    let spans = || requests.iter().flat_map(|request| &request.resource_spans).flat_map(spans_of);
    let attributes = || spans().flat_map(|(_, span)| &span.attributes);
    let mut services: BTreeMap<&str, u64> = BTreeMap::new();
    spans().for_each(|(service, _)| *services.entry(service).or_default() += 1);
    let mut rare: Vec<_> = attributes().filter(|attribute| attribute.key == "rare").map(text_of).collect();
    rare.sort_unstable();
    let expected = json!({
        "rows": spans().count(),
        "traces": TRACES,
        "duration": spans().map(|(_, span)| span.end_time_unix_nano - span.start_time_unix_nano).sum::<u64>(),
        "events": spans().map(|(_, span)| span.events.len()).sum::<usize>(),
        "services": services,
        "errors": spans().filter(|(_, span)| span.status.is_some()).count(),
        "first": spans().map(|(_, span)| span.start_time_unix_nano).min(),
        "rare": rare,
        "exceptions": spans().map(|(_, span)| span.events.len()).sum::<usize>(),
        "children": spans().filter(|(_, span)| !span.parent_span_id.is_empty()).count(),
    });
    ensure!(rare.len() > 3, "{rare:?}");

    let live = LiveSet::new(Limits { total_bytes: 1 << 30, ..Limits::default() });
    for request in &requests {
        live.insert("t", group_message(request), START, 1);
    }
    let mut traces = live.snapshot("t");
    traces.sort_unstable_by_key(|trace| trace.id);
    let new = NewBlock {
        id: BlockId::random(START),
        tenant: "t".into(),
        level: 0,
        received_first_ns: START,
        received_last_ns: START,
    };
    let store = Arc::new(MemoryStore::new());
    let (summary, _) = write_block(&*store, new, &traces)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("block.parquet");
    fs::write(&path, store.get(&summary.data_path())?)?;
    let found = read(&path)?;
    ensure!(found == json!({ "duckdb": expected, "pyarrow": expected }), "{found:#} is not {expected:#}");
    Ok(())
}

/// The file that every later version reads, others read too.
#[test]
fn others_read_the_golden_block() -> Result<()> {
    let found = read(&workspace().join("backend/tests/fixtures/block-v1.parquet"))?;
    let services = json!({ "cart": 40, "checkout": 40, "odd": 8, "rich": 3 });
    for reader in ["duckdb", "pyarrow"] {
        let found = found.get(reader).context("both readers answer")?;
        ensure!(found.get("rows") == Some(&json!(91)) && found.get("traces") == Some(&json!(22)), "{found}");
        ensure!(found.get("services") == Some(&services), "{found}");
        ensure!(found.get("errors") == Some(&json!(20)) && found.get("events") == Some(&json!(2)), "{found}");
    }
    Ok(())
}

fn read(block: &Path) -> Result<Value> {
    let mut command = Command::new(tool("python/bin/python")?);
    command.arg(workspace().join("tests/clients/read_block.py")).arg(block);
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A trace of one service.
fn request(number: u64) -> ExportTraceServiceRequest {
    let service = format!("service-{}", number % 5);
    let spans = (0..SPANS).map(|index| {
        let is_error = (number + index).is_multiple_of(40);
        let start = START + number * 1_000_000 + index * 1_000;
        let mut attributes = vec![
            attribute("http.request.method", Any::StringValue("GET".to_owned())),
            attribute("http.response.status_code", Any::IntValue(if is_error { 503 } else { 200 })),
            // Different in every span: a column without a dictionary.
            attribute("url.path", Any::StringValue(format!("/{}", hash(number * SPANS + index)))),
            attribute("http.response.body.size", Any::IntValue(hash(number + index) as i64)),
            attribute("ratio", Any::DoubleValue(index as f64 / 7.0)),
            attribute("cached", Any::BoolValue(index.is_multiple_of(2))),
        ];
        if number.is_multiple_of(500) && index == 0 {
            attributes.push(attribute("rare", Any::StringValue(format!("value {number}"))));
        }
        let exception = Event {
            time_unix_nano: start + 5,
            name: "exception".to_owned(),
            attributes: vec![attribute("exception.type", Any::StringValue("Timeout".to_owned()))],
            ..Event::default()
        };
        Span {
            trace_id: [hash(number).to_be_bytes(), number.to_be_bytes()].concat(),
            span_id: (hash(number * SPANS + index) | 1).to_be_bytes().to_vec(),
            parent_span_id: match index {
                0 => Vec::new(),
                _ => (hash(number * SPANS + (index - 1) / 2) | 1).to_be_bytes().to_vec(),
            },
            name: format!("operation {index}"),
            kind: 2,
            start_time_unix_nano: start,
            end_time_unix_nano: start + 1 + hash(index + number) % 1_000_000_000,
            attributes,
            events: if is_error { vec![exception] } else { Vec::new() },
            status: is_error.then(|| Status { message: "unavailable".to_owned(), code: 2 }),
            ..Span::default()
        }
    });
    let resource =
        Resource { attributes: vec![attribute("service.name", Any::StringValue(service))], ..Resource::default() };
    let scope_spans = vec![ScopeSpans { spans: spans.collect(), ..ScopeSpans::default() }];
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }],
    }
}

/// Spans with the names of their services.
fn spans_of(resource: &ResourceSpans) -> impl Iterator<Item = (&str, &Span)> {
    let service = resource.resource.iter().flat_map(|resource| &resource.attributes).map(text_of).next();
    let spans = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
    spans.map(move |span| (service.unwrap_or_default(), span))
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

fn text_of(attribute: &KeyValue) -> &str {
    match &attribute.value {
        Some(AnyValue { value: Some(Any::StringValue(text)) }) => text,
        _ => "",
    }
}

/// Looks random, and is the same in every run.
fn hash(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 1
}
