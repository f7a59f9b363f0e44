//! What senders see of the receivers, from the request's bytes to the answer's.

mod backpressure;
mod stitching;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use rstest::rstest;
use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_types::StatusExt;
use tower::ServiceExt;

use super::{GrpcReceiver, Ingest, IngestConfig, router};
use crate::catalog::{Catalog, IndexLimits, MemoryCatalog, Scope, TagIndex, Watermark};
use crate::live::{Limits, LiveSet, TraceId, TraceSpan, group_message};
use crate::query::traces_data;
use crate::telemetry::{Metrics, WalMetrics};
use crate::tenant::{SINGLE_TENANT, Tenancy};
use crate::wal::{Disk, Log, RealDisk, Unpacker, Wal, WalConfig};

const NOW_NS: u64 = 1_795_237_020_000_000_000;

/// All stages behind the receivers, on a directory of its own.
struct Stages {
    dir: TempDir,
    wal: Arc<Wal>,
    live: Arc<LiveSet>,
    catalog: Arc<dyn Catalog>,
    applied: Arc<Watermark>,
    indexed: Arc<Watermark>,
    ingest: Arc<Ingest>,
    metrics: Metrics,
}

impl Stages {
    fn new() -> Self {
        Self::with(IngestConfig::default(), Limits::default(), Arc::new(RealDisk))
    }

    fn with(config: IngestConfig, limits: Limits, disk: Arc<dyn Disk>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let log = Log::open(&dir.path().join("wal"), disk, metrics.wal.clone()).unwrap();
        let wal = Arc::new(Wal::start(log, WalConfig { segment_bytes: 1 << 20, max_bytes: u64::MAX }).unwrap());
        let live = Arc::new(LiveSet::with_metrics(limits, metrics.live.clone()));
        let catalog: Arc<dyn Catalog> = Arc::new(MemoryCatalog::default());
        let tags = TagIndex::open(Arc::clone(&catalog), IndexLimits::default(), metrics.catalog.clone()).unwrap();
        let (applied, indexed) = (Arc::new(Watermark::new(1)), Arc::new(Watermark::new(1)));
        let stages = super::Stages {
            wal: Arc::clone(&wal),
            live: Arc::clone(&live),
            tags: Arc::new(tags),
            applied: Arc::clone(&applied),
            indexed: Arc::clone(&indexed),
        };
        let ingest = Arc::new(Ingest::new(config, stages, metrics.receive.clone(), || NOW_NS));
        Self { dir, wal, live, catalog, applied, indexed, ingest, metrics }
    }

    fn http(&self, tenancy: Tenancy) -> Router {
        router(Arc::clone(&self.ingest), tenancy, self.metrics.request_duration.clone())
    }

    async fn post(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::post("/v1/traces");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.into())).unwrap();
        answer(self.http(Tenancy::new(false)), request).await
    }

    /// A client of the gRPC receiver, connected through memory.
    async fn grpc(&self, tenancy: Tenancy) -> TraceServiceClient<tonic::transport::Channel> {
        let receiver = GrpcReceiver::new(Arc::clone(&self.ingest), tenancy, self.metrics.request_duration.clone());
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut near = Some(near);
        tokio::spawn(
            tonic::transport::Server::builder().add_service(receiver).serve_with_incoming(tokio_stream::once(Ok::<
                _,
                std::io::Error,
            >(
                far
            ))),
        );
        let endpoint = tonic::transport::Endpoint::from_static("http://memory");
        let channel = endpoint.connect_with_connector(tower::service_fn(move |_| {
            let near = near.take().map(hyper_util::rt::TokioIo::new);
            async move { near.ok_or_else(|| std::io::Error::other("connected once")) }
        }));
        TraceServiceClient::new(channel.await.unwrap())
    }

    /// Spans in the live set.
    fn stored(&self, tenant: &str) -> Vec<Span> {
        let traces = self.live.snapshot(tenant);
        traces.iter().flat_map(|trace| &trace.spans).map(TraceSpan::decode).collect()
    }

    fn metric(&self, line: &str) -> String {
        let text = self.metrics.encode().unwrap();
        text.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_default().trim().to_owned()
    }
}

/// Requests in the log, oldest first.
fn logged(dir: &Path) -> Vec<Vec<u8>> {
    let log = Log::open(&dir.join("wal"), Arc::new(RealDisk), WalMetrics::default()).unwrap();
    let (mut requests, mut unpacker) = (Vec::new(), Unpacker::default());
    let _end = log.oldest_first(0, |frame| {
        requests.push(unpacker.request(frame).unwrap().to_vec());
        ControlFlow::<()>::Continue(())
    });
    requests
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    content_type: String,
    retry_after: Option<String>,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn answer(router: Router, request: Request<Body>) -> Answer {
    let response = router.oneshot(request).await.unwrap();
    let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (content_type, retry_after) = (header("content-type").unwrap_or_default(), header("retry-after"));
    let status = response.status();
    Answer { status, content_type, retry_after, body: response.into_body().collect().await.unwrap().to_bytes() }
}

fn span(trace: u8, id: u8) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        name: format!("span {id}"),
        start_time_unix_nano: NOW_NS,
        end_time_unix_nano: NOW_NS + 5,
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let name = AnyValue { value: Some(Value::StringValue("shop".to_owned())) };
    let attribute = KeyValue { key: "service.name".to_owned(), value: Some(name), key_strindex: 0 };
    let scope = InstrumentationScope { name: "lib".to_owned(), ..InstrumentationScope::default() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![attribute], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
            schema_url: "https://opentelemetry.io/schemas/1.36.0".to_owned(),
        }],
    }
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::default());
    std::io::Read::read_to_end(&mut encoder, &mut packed).unwrap();
    packed
}

#[rstest]
#[case::plain("identity", <[u8]>::to_vec)]
#[case::gzip("gzip", gzip)]
#[case::zstd("zstd", |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap())]
#[tokio::test]
async fn protobuf_is_durable_and_visible_when_it_is_acknowledged(
    #[case] encoding: &str,
    #[case] compress: impl Fn(&[u8]) -> Vec<u8>,
) {
    let stages = Stages::new();
    // A field that this program does not know must survive in the log.
    let mut body = request(vec![span(1, 1), span(2, 2)]).encode_to_vec();
    body.extend_from_slice(&[0xfa, 0x3e, 0x03, b'n', b'e', b'w']);
    let answer = stages.post(&[PROTOBUF, ("content-encoding", encoding)], compress(&body)).await;
    assert_eq!((answer.status, answer.content_type.as_str()), (StatusCode::OK, "application/x-protobuf"));
    let response = ExportTraceServiceResponse::decode(answer.body).unwrap();
    assert_eq!(response.partial_success, Some(ExportTracePartialSuccess::default()));
    let trace = stages.live.trace(SINGLE_TENANT, &TraceId([1; 16])).unwrap();
    let found = ExportTraceServiceRequest { resource_spans: traces_data(&trace).resource_spans };
    assert_eq!(found, request(vec![span(1, 1)]), "what was sent comes back equal");
    let services = stages.catalog.tag_values(SINGLE_TENANT, Scope::Resource, "service.name", None, 9).unwrap();
    assert_eq!(services.len(), 1);
    assert_eq!((stages.applied.below(), stages.indexed.below()), (2, 2));
    stages.wal.close();
    assert_eq!(logged(stages.dir.path()), [body]);
    assert_eq!(stages.metric("tempo_distributor_spans_received_total{tenant=\"single-tenant\"}"), "2");
}

#[tokio::test]
async fn json_is_stored_as_protobuf_and_answered_in_json() {
    let stages = Stages::new();
    let body = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"01010101010101010101010101010101","spanId":"0101010101010101","name":"span 1","startTimeUnixNano":"1795237020000000000","endTimeUnixNano":1795237020000000005}]}]}]}"#;
    let answer = stages.post(&[("content-type", "Application/JSON; charset=utf-8")], body).await;
    assert_eq!((answer.status, answer.content_type.as_str()), (StatusCode::OK, "application/json"));
    assert_eq!(answer.text(), r#"{"partialSuccess":{}}"#);
    assert_eq!(stages.stored(SINGLE_TENANT), [span(1, 1)]);
    stages.wal.close();
    let [logged] = logged(stages.dir.path()).try_into().unwrap();
    let logged = ExportTraceServiceRequest::decode(logged.as_slice()).unwrap();
    assert_eq!(logged.resource_spans[0].scope_spans[0].spans, [span(1, 1)]);
}

#[tokio::test]
async fn rejected_spans_are_counted_and_named_and_the_others_stored() {
    let stages = Stages::new();
    let bad = Span { trace_id: vec![1; 8], ..span(1, 2) };
    let body = request(vec![span(1, 1), bad]).encode_to_vec();
    let answer = stages.post(&[PROTOBUF], body).await;
    let partial = ExportTraceServiceResponse::decode(answer.body).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 1);
    assert_eq!(partial.error_message, "1 rejected as invalid_trace_id (a trace id is 16 bytes, not all zero)");
    assert_eq!(stages.stored(SINGLE_TENANT), [span(1, 1)]);
    let counted = stages.metric("tempo_discarded_spans_total{reason=\"invalid_trace_id\",tenant=\"single-tenant\"}");
    assert_eq!(counted, "1");
    stages.wal.close();
    assert_eq!(logged(stages.dir.path()), [request(vec![span(1, 1)]).encode_to_vec()]);
}

#[tokio::test]
async fn a_request_of_which_nothing_can_be_stored_is_answered_without_the_log() {
    let stages = Stages::new();
    let body = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"","spanId":""}]}]}]}"#;
    let answer = stages.post(&[JSON], body).await;
    assert_eq!(
        answer.text(),
        r#"{"partialSuccess":{"errorMessage":"1 rejected as invalid_trace_id (a trace id is 16 bytes, not all zero)","rejectedSpans":"1"}}"#
    );
    assert_eq!(stages.post(&[JSON], "{}").await.text(), r#"{"partialSuccess":{}}"#);
    assert_eq!(stages.post(&[PROTOBUF], "").await.status, StatusCode::OK);
    stages.wal.close();
    assert!(logged(stages.dir.path()).is_empty());
}

#[tokio::test]
async fn a_trace_that_is_too_large_is_rejected_and_others_are_not() {
    let one = group_message(&request(vec![span(1, 1)]))[0].bytes;
    let limits = Limits { trace_bytes: 2 * one, ..Limits::default() };
    let stages = Stages::with(IngestConfig::default(), limits, Arc::new(RealDisk));
    let large = (1..=40).map(|id| span(1, id)).chain([span(2, 1)]).collect();
    let answer = stages.post(&[PROTOBUF], request(large).encode_to_vec()).await;
    let partial = ExportTraceServiceResponse::decode(answer.body).unwrap().partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 40);
    assert!(partial.error_message.starts_with("40 rejected as trace_too_large"), "{}", partial.error_message);
    assert_eq!(stages.stored(SINGLE_TENANT), [span(2, 1)]);
    let mut taken = 0;
    while stages.stored(SINGLE_TENANT).len() == taken + 1 {
        stages.post(&[PROTOBUF], request(vec![span(3, 1)]).encode_to_vec()).await;
        taken += 1;
    }
    assert!((2..5).contains(&taken), "{taken} requests fit");
}

#[rstest]
#[case::none(&[])]
#[case::text(&[("content-type", "text/plain")])]
#[case::protobuf_by_another_name(&[("content-type", "application/protobuf")])]
#[tokio::test]
async fn other_content_types_are_refused(#[case] headers: &[(&str, &str)]) {
    let answer = Stages::new().post(headers, "{}").await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(answer.text(), "415 unsupported media type, supported: [application/json, application/x-protobuf]");
}

#[tokio::test]
async fn other_content_encodings_are_refused() {
    let answer = Stages::new().post(&[JSON, ("content-encoding", "br")], "{}").await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(
        answer.text(),
        r#"{"code":3,"message":"unsupported content encoding \"br\", supported: [gzip, zstd, identity]"}"#
    );
}

#[rstest]
#[case::json(&[JSON], b"{\"resourceSpans\":", "body is not valid OTLP/JSON: EOF while parsing a value at line 1 column 17")]
#[case::gzip(&[JSON, ("content-encoding", "gzip")], b"{\"resourceSpans\":[]}", "body cannot be decompressed: invalid gzip header")]
#[case::zstd(&[JSON, ("content-encoding", "zstd")], b"{}{}{}", "body cannot be decompressed: Unknown frame descriptor")]
#[tokio::test]
async fn malformed_json_bodies_are_refused_in_json(
    #[case] headers: &[(&str, &str)],
    #[case] body: &'static [u8],
    #[case] message: &str,
) {
    let stages = Stages::new();
    let answer = stages.post(headers, body).await;
    assert_eq!((answer.status, answer.content_type.as_str()), (StatusCode::BAD_REQUEST, "application/json"));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap(),
        serde_json::json!({"code": 3, "message": message})
    );
    assert_eq!(stages.metric("coati_backend_refused_requests_total{reason=\"malformed\"}"), "1");
}

#[tokio::test]
async fn every_prefix_of_a_request_is_answered() {
    let stages = Stages::new();
    let body = request(vec![span(1, 1)]).encode_to_vec();
    for len in 1..body.len() {
        let answer = stages.post(&[PROTOBUF], body[..len].to_vec()).await;
        // Protobuf has no end mark, but a message inside a message has a length.
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (StatusCode::BAD_REQUEST, "application/x-protobuf"),
            "{len}"
        );
        let status = tonic_types::Status::decode(answer.body).unwrap();
        assert_eq!(status.code, 3);
        assert!(status.message.starts_with("body is not a valid ExportTraceServiceRequest: "), "{}", status.message);
    }
    assert!(stages.stored(SINGLE_TENANT).is_empty());
}

const SMALL: IngestConfig =
    IngestConfig { max_request_bytes: 4096, max_in_flight_bytes: 16_384, read_timeout: Duration::from_secs(30) };

#[rstest]
#[case::announced(&[JSON, ("content-length", "5000")], vec![b' '; 5000], "request of 5000 bytes exceeds the limit of 4096 bytes")]
#[case::not_announced(&[JSON], vec![b' '; 5000], "request exceeds the limit of 4096 bytes")]
#[case::bomb(&[JSON, ("content-encoding", "gzip")], gzip(&vec![b' '; 1 << 20]), "request larger than 4096 bytes when decompressed from 1052 bytes")]
#[tokio::test]
async fn requests_that_are_too_large_are_refused_with_the_sizes(
    #[case] headers: &[(&str, &str)],
    #[case] body: Vec<u8>,
    #[case] message: &str,
) {
    let stages = Stages::with(SMALL, Limits::default(), Arc::new(RealDisk));
    let answer = stages.post(headers, body).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap(),
        serde_json::json!({"code": 8, "message": message})
    );
    assert_eq!(
        stages.post(&[JSON], vec![b' '; 4090].into_iter().chain(*b"{}").collect::<Vec<_>>()).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn an_id_that_is_no_hex_costs_only_its_span() {
    let stages = Stages::new();
    let (good, bad) = ("5b8efff798038103d269b633813fc60c", "W47/95gDgQPSabYzgT/GDA==");
    let span = |trace| format!(r#"{{"traceId":"{trace}","spanId":"eee19b7ec3c1b174"}}"#);
    let spans = format!("{},{}", span(bad), span(good));
    let answer =
        stages.post(&[JSON], format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}]}}]}}]}}"#)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text().contains(r#""rejectedSpans":"1""#), "{}", answer.text());
    assert_eq!(stages.stored(SINGLE_TENANT).len(), 1);
}

#[tokio::test]
async fn what_is_large_only_when_decoded_is_refused_for_good() {
    let stages = Stages::new();
    let request = request(vec![Span::default(); 1 << 20]);
    let headers = [("content-type", "application/x-protobuf"), ("content-encoding", "gzip")];
    let answer = stages.post(&headers, gzip(&request.encode_to_vec())).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);

    let refused = stages.grpc(Tenancy::new(false)).await.export(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_none());
}

#[rstest]
#[case::get("GET", "/v1/traces", StatusCode::METHOD_NOT_ALLOWED)]
#[case::other_signal("POST", "/v1/metrics", StatusCode::NOT_FOUND)]
#[tokio::test]
async fn other_routes(#[case] method: &str, #[case] path: &str, #[case] expected: StatusCode) {
    let stages = Stages::new();
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    assert_eq!(answer(stages.http(Tenancy::new(false)), request).await.status, expected);
}

#[tokio::test]
async fn with_multitenancy_the_header_says_where_spans_go() {
    let stages = Stages::new();
    let post = |tenant: Option<&'static str>| {
        let post = Request::post("/v1/traces").header(PROTOBUF.0, PROTOBUF.1);
        let post = match tenant {
            Some(tenant) => post.header("X-Scope-OrgID", tenant),
            None => post,
        };
        let body = Body::from(request(vec![span(1, 1)]).encode_to_vec());
        answer(stages.http(Tenancy::new(true)), post.body(body).unwrap())
    };
    assert_eq!(post(None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(post(Some("a|b")).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(post(Some("a")).await.status, StatusCode::OK);
    assert_eq!(stages.stored("a"), [span(1, 1)]);
    assert!(stages.stored(SINGLE_TENANT).is_empty());
    let mut client = stages.grpc(Tenancy::new(true)).await;
    let missing = client.export(request(vec![span(1, 1)])).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::Unauthenticated, "no org id"));
    let mut named = tonic::Request::new(request(vec![span(1, 2)]));
    named.metadata_mut().insert("x-scope-orgid", "b".parse().unwrap());
    client.export(named).await.unwrap();
    assert_eq!(stages.stored("b"), [span(1, 2)]);
}

#[rstest]
#[case::plain(None)]
#[case::gzip(Some(CompressionEncoding::Gzip))]
#[case::zstd(Some(CompressionEncoding::Zstd))]
#[tokio::test]
async fn grpc_stores_and_answers(#[case] compression: Option<CompressionEncoding>) {
    let stages = Stages::new();
    let mut client = stages.grpc(Tenancy::new(false)).await;
    if let Some(compression) = compression {
        client = client.send_compressed(compression);
    }
    let bad = Span { span_id: vec![0; 8], ..span(1, 2) };
    let answer = client.export(request(vec![span(1, 1), bad])).await.unwrap().into_inner();
    assert_eq!(answer.partial_success.unwrap().rejected_spans, 1);
    assert_eq!(stages.stored(SINGLE_TENANT), [span(1, 1)]);
    let route = "route=\"opentelemetry_proto_collector_trace_v1_traceservice_export\"";
    let line = format!("tempo_request_duration_seconds_count{{method=\"gRPC\",{route},status_code=\"Ok\"}}");
    assert_eq!(stages.metric(&line), "1");
    for (name, spans) in [("accepted", "1"), ("refused", "1")] {
        assert_eq!(stages.metric(&format!("tempo_receiver_{name}_spans{{receiver=\"otlp\"}}")), spans);
    }
}

#[rstest]
#[case::plain(None, "4096")]
#[case::bomb(Some(CompressionEncoding::Gzip), "4096")]
#[tokio::test]
async fn grpc_refuses_what_is_too_large_with_the_limit(
    #[case] compression: Option<CompressionEncoding>,
    #[case] limit: &str,
) {
    let stages = Stages::with(SMALL, Limits::default(), Arc::new(RealDisk));
    let mut client = stages.grpc(Tenancy::new(false)).await;
    if let Some(compression) = compression {
        client = client.send_compressed(compression);
    }
    let mut large = span(1, 1);
    large.name = "x".repeat(100_000);
    let error = client.export(request(vec![large])).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert!(error.message().contains(limit), "{error}");
    assert!(error.get_details_retry_info().is_none(), "trying again cannot help");
    client.export(request(vec![span(1, 1)])).await.unwrap();
}
