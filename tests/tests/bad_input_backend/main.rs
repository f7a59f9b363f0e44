//! Guarantee: no input and no state of the disk crashes the backend or takes anything that it acknowledged.
//!
//! Each test stores a span, does something bad, and then finds that span, stores another, and finds that too.

mod disk;
#[path = "../otlp/mod.rs"]
mod otlp;
mod start;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coati_tests::backend::Backend;
use coati_tests::http::Answer;
use coati_tests::process::free_port;
use coati_tests::tools::{binaries, binary};
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::otlp::hex;

/// Trace of the span that is stored first.
const KNOWN: u128 = 0xfeed;

/// More than any request may have.
const TOO_MUCH: usize = 64 << 20;

/// A backend with one span, and its folder.
fn start() -> Result<(TempDir, Backend)> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(folder.path(), &[])?;
    store(&backend, KNOWN)?;
    Ok((folder, backend))
}

/// Stores one span in a trace of its own.
fn store(backend: &Backend, trace: u128) -> Result<()> {
    otlp::store(backend, &otlp::request("sound", vec![otlp::span(trace, 1, "sound")]))
}

/// Fails unless a trace has exactly one span.
fn find(backend: &Backend, trace: u128) -> Result<()> {
    let found = otlp::spans(backend, trace)?.len();
    ensure!(found == 1, "trace {trace:x} has {found} spans:\n{}", backend.process.output());
    Ok(())
}

/// The backend runs, has what it had, takes and gives more.
fn unharmed(backend: &mut Backend) -> Result<()> {
    ensure!(backend.process.is_running(), "it ended:\n{}", backend.process.output());
    ensure!(!backend.process.output().contains("panicked"), "it panicked:\n{}", backend.process.output());
    find(backend, KNOWN)?;
    store(backend, KNOWN + 1)?;
    find(backend, KNOWN + 1)
}

/// A client that gets one of these sends the same request again, for ever.
fn is_retryable(answer: &Answer) -> bool {
    matches!(answer.status, 429 | 502 | 503 | 504)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn sound_request() -> Vec<u8> {
    otlp::request("other", vec![otlp::span(7, 7, "other")]).encode_to_vec()
}

#[rstest]
#[case::truncated_protobuf(&[("content-type", otlp::PROTOBUF)], cut(&sound_request()), &[400])]
#[case::random_bytes(&[("content-type", otlp::PROTOBUF)], noise(4096), &[400])]
#[case::truncated_json(&[("content-type", otlp::JSON)], b"{\"resourceSpans\":[{\"scopeSpans\":[{\"sp".to_vec(), &[400])]
#[case::json_of_another_shape(&[("content-type", otlp::JSON)], b"{\"resourceSpans\":{\"a\":[1]}}".to_vec(), &[400])]
#[case::deep_json(&[("content-type", otlp::JSON)], vec![b'['; 200_000], &[400])]
#[case::empty_json(&[("content-type", otlp::JSON)], Vec::new(), &[400])]
#[case::wrong_content_type(&[("content-type", "text/plain")], sound_request(), &[415])]
#[case::no_content_type(&[], sound_request(), &[400, 415])]
#[case::unknown_encoding(&[("content-type", otlp::PROTOBUF), ("content-encoding", "br")], sound_request(), &[400, 415])]
#[case::not_gzip(&[("content-type", otlp::PROTOBUF), ("content-encoding", "gzip")], sound_request(), &[400])]
#[case::truncated_gzip(&[("content-type", otlp::PROTOBUF), ("content-encoding", "gzip")], cut(&gzip(&noise(4096)).unwrap_or_default()), &[400])]
#[case::not_zstd(&[("content-type", otlp::PROTOBUF), ("content-encoding", "zstd")], sound_request(), &[400])]
#[case::gzip_bomb(&[("content-type", otlp::PROTOBUF), ("content-encoding", "gzip")], gzip(&vec![0; TOO_MUCH]).unwrap_or_default(), &[413])]
#[case::zstd_bomb(&[("content-type", otlp::PROTOBUF), ("content-encoding", "zstd")], zstd::encode_all(&*vec![0; TOO_MUCH], 1).unwrap_or_default(), &[413])]
fn a_bad_export_request_is_refused(
    #[case] headers: &[(&str, &str)],
    #[case] body: Vec<u8>,
    #[case] statuses: &[u16],
) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let answer = otlp::send(&backend, headers, &body)?;
    ensure!(statuses.contains(&answer.status), "status {}: {}", answer.status, answer.text());
    ensure!(!is_retryable(&answer) && !answer.body.is_empty(), "no reason was given");
    ensure!(backend.count("{ name = \"other\" }")? == 0, "something of it was stored");
    unharmed(&mut backend)
}

/// The first half.
fn cut(bytes: &[u8]) -> Vec<u8> {
    bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec()
}

/// Bytes without a pattern, the same every time.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
}

/// A body that is too large is refused, before the client has sent it all or after; the client may see a reset.
#[test]
fn an_oversized_export_request_is_refused() -> Result<()> {
    let (_folder, mut backend) = start()?;
    match otlp::send(&backend, &[("content-type", otlp::PROTOBUF)], &vec![0; TOO_MUCH]) {
        Ok(answer) => ensure!(answer.status == 413, "status {}: {}", answer.status, answer.text()),
        Err(error) => println!("the backend closed the connection: {error:#}"),
    }
    unharmed(&mut backend)
}

#[test]
fn grpc_refuses_what_is_too_large_and_what_is_no_grpc() -> Result<()> {
    let (_folder, mut backend) = start()?;
    let mut span = otlp::span(7, 7, "other");
    span.attributes.push(otlp::text("large", &"x".repeat(TOO_MUCH)));
    let status = grpc(&backend, vec![span])?.context("64 MiB were accepted")?;
    ensure!(
        matches!(
            status,
            tonic::Code::OutOfRange
                | tonic::Code::ResourceExhausted
                | tonic::Code::InvalidArgument
                | tonic::Code::Unknown
                | tonic::Code::Internal
        ),
        "code {status:?}"
    );
    // HTTP/1.1 and noise on the gRPC port.
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), noise(100_000)] {
        let mut stream = std::net::TcpStream::connect(backend.grpc)?;
        let _refused = stream.write_all(&bytes);
    }
    unharmed(&mut backend)
}

/// Exports spans over gRPC; the code of the error, none if they were acknowledged.
fn grpc(backend: &Backend, spans: Vec<Span>) -> Result<Option<tonic::Code>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = TraceServiceClient::connect(format!("http://{}", backend.grpc)).await?;
        Ok(client.export(otlp::request("grpc", spans)).await.err().map(|status| status.code()))
    })
}

/// Noise, half requests and connections that say nothing, on every port.
#[test]
fn noise_on_every_port_harms_nothing() -> Result<()> {
    let (_folder, mut backend) = start()?;
    let mut silent = Vec::new();
    for address in [backend.api, backend.grpc, backend.otlp_http] {
        for bytes in [
            noise(10_000),
            b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc".to_vec(),
            b"POST /v1/traces HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_vec(),
            b"POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            b"GET / HTTP/9.9\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            vec![b'a'; 1 << 20],
        ] {
            let mut stream = std::net::TcpStream::connect(address)?;
            let _refused = stream.write_all(&bytes);
            silent.push(stream);
        }
        silent.push(std::net::TcpStream::connect(address)?);
    }
    unharmed(&mut backend)
}

/// Queries that are wrong get a text that says why, with a status that says whose fault it is.
#[rstest]
#[case::syntax("/api/search?q=%7B%20name%20%3D", "line 1")]
#[case::not_traceql("/api/search?q=%ff%fe", "")]
#[case::deep("/api/search?q=DEEP", "")]
#[case::limit("/api/search?q=%7B%7D&limit=0", "limit")]
#[case::limit_too_large("/api/search?q=%7B%7D&limit=300000", "limit")]
#[case::times("/api/search?q=%7B%7D&start=5&end=4", "start")]
#[case::not_a_time("/api/search?q=%7B%7D&start=monday&end=4", "")]
#[case::tags_and_q("/api/search?q=%7B%7D&tags=a%3Db", "tags and q")]
#[case::trace_id("/api/v2/traces/xyz", "hex")]
#[case::long_trace_id("/api/v2/traces/00000000000000000000000000000000001", "128 bits")]
#[case::scope("/api/v2/search/tags?scope=bogus", "invalid scope")]
#[case::tag_name("/api/v2/search/tag/nope%20nope/values", "tagName")]
fn a_bad_query_is_refused(#[case] path: &str, #[case] says: &str) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let path = path.replace("DEEP", &"(".repeat(20_000));
    let answer = backend.get(&path)?;
    ensure!(answer.status == 400, "status {}: {}", answer.status, answer.text());
    ensure!(!answer.body.is_empty() && answer.text().contains(says), "{:?} does not say {says:?}", answer.text());
    unharmed(&mut backend)
}

/// Spans with ids that cannot be are counted and explained; the others of the same request are stored.
#[rstest]
#[case::no_trace_id(|span: &mut Span| span.trace_id.clear())]
#[case::zero_trace_id(|span: &mut Span| span.trace_id = vec![0; 16])]
#[case::short_trace_id(|span: &mut Span| span.trace_id.truncate(8))]
#[case::long_trace_id(|span: &mut Span| span.trace_id.push(1))]
#[case::no_span_id(|span: &mut Span| span.span_id.clear())]
#[case::zero_span_id(|span: &mut Span| span.span_id = vec![0; 8])]
#[case::short_span_id(|span: &mut Span| span.span_id.truncate(3))]
#[case::long_span_id(|span: &mut Span| span.span_id.push(1))]
#[case::short_parent_id(|span: &mut Span| span.parent_span_id = vec![1; 3])]
fn an_invalid_id_rejects_only_its_span(#[case] spoil: fn(&mut Span)) -> Result<()> {
    let (_folder, mut backend) = start()?;
    let spans = |trace: u128| {
        let mut spans: Vec<_> = (1..=5).map(|id| otlp::span(trace, id, "mixed")).collect();
        spans.iter_mut().skip(1).step_by(2).for_each(spoil);
        spans
    };

    let answer = otlp::send_request(&backend, &otlp::request("mixed", spans(0xa)))?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    let (rejected, reason) = otlp::rejection(&answer)?.context("no partial_success")?;
    ensure!(rejected == 2 && reason.contains("id"), "{rejected} rejected: {reason:?}");
    ensure!(otlp::spans(&backend, 0xa)?.len() == 3, "{} of 3 sound spans", otlp::spans(&backend, 0xa)?.len());

    let answer = otlp::send(&backend, &[("content-type", otlp::JSON)], &otlp_json(&spans(0xb)))?;
    ensure!(answer.status == 200, "JSON: status {}: {}", answer.status, answer.text());
    let partial = answer.json()?.get("partialSuccess").cloned().unwrap_or_default();
    let rejected = partial.get("rejectedSpans").cloned().unwrap_or_default();
    ensure!(rejected == "2" || rejected == 2, "JSON: {partial}");
    ensure!(partial.get("errorMessage").and_then(Value::as_str).is_some_and(|text| text.contains("id")), "{partial}");
    ensure!(otlp::spans(&backend, 0xb)?.len() == 3, "JSON: {} of 3 sound spans", otlp::spans(&backend, 0xb)?.len());
    ensure!(metric(&backend, "tempo_discarded_spans_total")? >= 4.0, "discarded spans are not counted");
    unharmed(&mut backend)
}

/// OTLP's JSON: ids in hexadecimal.
fn otlp_json(spans: &[Span]) -> Vec<u8> {
    let spans: Vec<_> = spans
        .iter()
        .map(|span| {
            json!({
                "traceId": hex(&span.trace_id),
                "spanId": hex(&span.span_id),
                "parentSpanId": hex(&span.parent_span_id),
                "name": span.name,
                "kind": span.kind,
                "startTimeUnixNano": span.start_time_unix_nano.to_string(),
                "endTimeUnixNano": span.end_time_unix_nano.to_string(),
            })
        })
        .collect();
    json!({ "resourceSpans": [{ "resource": {}, "scopeSpans": [{ "scope": {}, "spans": spans }] }] })
        .to_string()
        .into_bytes()
}

/// Sum of the samples of a metric of the backend.
fn metric(backend: &Backend, name: &str) -> Result<f64> {
    Ok(coati_tests::agent::sum(&backend.get("/metrics")?.text(), name, &[]))
}
