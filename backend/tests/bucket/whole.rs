//! A backend whose blocks are in a bucket.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coati_backend::live::{TraceId, group_message};
use coati_backend::store::Store;
use coati_tests::backend::Backend;
use coati_tests::{http, process};
use prost::Message;
use rstest::rstest;
use serde_json::Value;

use crate::buckets::{Server, moto, rgw};
use crate::corpus::Corpus;
use crate::settings;

#[rstest]
#[case::moto(moto)]
#[case::ceph(rgw)]
fn every_span_is_found_with_the_bucket_alone(#[case] server: fn() -> Server) {
    let (server, folder) = (server(), process::folder().unwrap());
    let settings = settings(folder.path(), &server.config("traces"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_coati-backend")).parent().unwrap();
    let arguments = ["--config", settings.to_str().unwrap(), "--cut-idle", "100ms", "--cut-max-wait", "200ms"];
    let mut backend = Backend::start_from(binaries, folder.path(), &arguments).unwrap();

    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut expected: BTreeMap<TraceId, usize> = BTreeMap::new();
    for request in Corpus::starting_at(now_ns - 60_000_000_000, 3, 400) {
        let body = request.encode_to_vec();
        let url = format!("http://{}/v1/traces", backend.otlp_http);
        assert_eq!(http::post(&url, "application/x-protobuf", &body).unwrap().status, 200);
        for trace in group_message(&request) {
            *expected.entry(trace.id).or_default() += trace.spans.len();
        }
    }
    let begun = Instant::now();
    let metric = |backend: &Backend, name: &str| {
        let text = backend.get("/metrics").unwrap().text();
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap_or_default();
        line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok())
    };
    let live = |backend: &Backend| {
        let text = backend.get("/metrics").unwrap().text();
        let of_tenants = text.lines().filter(|line| line.starts_with("tempo_live_store_live_traces"));
        of_tenants.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    while live(&backend) > 0.0 {
        assert!(begun.elapsed() < Duration::from_mins(1), "{}", backend.process.output());
        std::thread::sleep(Duration::from_millis(100));
    }
    let uploads = "coati_backend_store_requests_total{operation=\"upload\",outcome=\"ok\"}";
    assert!(metric(&backend, uploads).unwrap_or_default() >= 1.0);
    let spans: usize = expected.values().sum();
    assert_eq!(backend.count("{}").unwrap(), spans as u64);

    // Everything here goes.
    backend.stop().unwrap();
    assert!(!backend.data().join("store").exists(), "blocks are in the bucket only");
    fs::remove_dir_all(backend.data()).unwrap();
    assert!(!server.store("traces").list("blocks/").unwrap().is_empty());
    backend.restart().unwrap();
    assert_eq!(backend.count("{}").unwrap(), spans as u64);
    for (id, spans) in &expected {
        let answer = backend.get(&format!("/api/traces/{id}")).unwrap();
        assert_eq!(answer.status, 200, "{id}: {}", answer.text());
        assert_eq!(count_spans(&answer.json().unwrap()), *spans, "{id}");
    }
    // So do the names of tags, which are read from the blocks.
    let begun = Instant::now();
    let has_tags = |backend: &Backend| {
        let values = backend.get("/api/v2/search/tag/resource.service.name/values").unwrap().text();
        values.contains("checkout") && values.contains("gateway")
    };
    while !has_tags(&backend) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", backend.process.output());
        std::thread::sleep(Duration::from_millis(100));
    }
    backend.stop().unwrap();
}

/// Spans of a trace as the API gives it.
fn count_spans(trace: &Value) -> usize {
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let scopes = list(trace, "batches").into_iter().flat_map(|batch| list(&batch, "scopeSpans"));
    scopes.map(|scope| list(&scope, "spans").len()).sum()
}
