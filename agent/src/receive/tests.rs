use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
};

use ::http::{HeaderMap, StatusCode, Uri};
use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
        trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse, trace_service_client::TraceServiceClient},
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;
use rstest::rstest;
use tonic::{Code, codec::CompressionEncoding};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    discover::{ProcTree, Selection},
    export::{
        Room, SpanQueue,
        queue::{self, Next, Spans, Under},
    },
    telemetry::Telemetry,
};

/// A receiver in front of a queue for so many spans.
struct Bench {
    address: SocketAddr,
    /// The way of the node's own spans.
    queue: Option<SpanQueue>,
    spans: Spans,
    telemetry: Telemetry,
}

const MAX_BYTES: usize = 20_000;

impl Bench {
    async fn start(capacity: usize, senders: Senders) -> Self {
        Self::start_with(capacity, senders, None).await
    }

    async fn start_with(capacity: usize, senders: Senders, gpus: Option<Gpus>) -> Self {
        let telemetry = Telemetry::default();
        let (queue, spans) = queue::bounded(capacity, 10, 1, telemetry.clone());
        let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        let settings = ReceiveSettings { listen, max_request_bytes: MAX_BYTES, enrich: true };
        let receiver = Receiver::bind(&settings).await.unwrap();
        let address = receiver.addresses()[0];
        receiver.start(queue.relay(Room::default()), senders, gpus, telemetry.clone());
        Self { address, queue: Some(queue), spans, telemetry }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let uri: Uri = format!("http://{}{path}", self.address).parse().unwrap();
        let mut request = ::http::Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let body = axum::body::Body::from(body);
        let (head, body) = client.request(request.body(body).unwrap()).await.unwrap().into_parts();
        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        (head.status, head.headers, body.to_vec())
    }

    async fn grpc(&self) -> TraceServiceClient<tonic::transport::Channel> {
        TraceServiceClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    /// What is in the queue, as it would be sent.
    fn queued(&mut self) -> Vec<(Resource, Vec<Span>)> {
        let mut queued = Vec::new();
        while let Next::Spans(spans) = self.spans.next_if(|_| true) {
            let Under::Relayed(under) = spans.under else { panic!("a span of the node's own") };
            let of = ResourceSpans::decode(&under.resource[..]).unwrap();
            let scope = ScopeSpans::decode(&under.scope[..]).unwrap();
            assert_eq!((of.schema_url.as_str(), scope.schema_url.as_str()), ("s1", "s2"));
            assert_eq!(scope.scope.unwrap().name, "lib");
            let resource = of.resource.unwrap();
            let of_spans = ScopeSpans::decode(&spans.fields[..]).unwrap().spans;
            queued.extend(of_spans.into_iter().map(|span| (resource.clone(), vec![span])));
        }
        queued
    }
}

fn span(number: u8) -> Span {
    Span { trace_id: vec![number; 16], span_id: vec![number; 8], name: number.to_string(), ..Span::default() }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let value = Some(AnyValue { value: Some(Value::StringValue("shop".to_owned())) });
    let name = KeyValue { key: "service.name".to_owned(), value, ..KeyValue::default() };
    let scope = Some(InstrumentationScope { name: "lib".to_owned(), ..InstrumentationScope::default() });
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: vec![name], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope, spans, schema_url: "s2".to_owned() }],
            schema_url: "s1".to_owned(),
        }],
    }
}

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn json() -> Vec<u8> {
    br#"{"resourceSpans":[{"schemaUrl":"s1","resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
        "scopeSpans":[{"schemaUrl":"s2","scope":{"name":"lib"},"spans":[{"traceId":"01010101010101010101010101010101",
        "spanId":"0101010101010101","name":"1"}]}]}]}"#
        .to_vec()
}

#[rstest]
#[case::protobuf(&[PROTOBUF], request(vec![span(1)]).encode_to_vec(), b"")]
#[case::gzip(&[PROTOBUF, GZIP], gzip(&request(vec![span(1)]).encode_to_vec()), b"")]
#[case::json(&[JSON], json(), br#"{"partialSuccess":{}}"#)]
#[case::json_gzip(&[JSON, GZIP], gzip(&json()), br#"{"partialSuccess":{}}"#)]
#[tokio::test]
async fn http_is_taken(#[case] headers: &[(&str, &str)], #[case] body: Vec<u8>, #[case] answer: &[u8]) {
    let mut bench = Bench::start(100, Senders::none()).await;
    let (status, _, body) = bench.post("/v1/traces", headers, body).await;
    assert_eq!((status, &body[..]), (StatusCode::OK, answer));
    let [(resource, spans)] = &bench.queued()[..] else { panic!() };
    assert_eq!((spans, resource.attributes.len()), (&vec![span(1)], 1));
    assert_eq!((bench.telemetry.relay.spans.get(), bench.telemetry.queue_length.get()), (1, 1));
}

#[rstest]
#[case::plain(None)]
#[case::gzip(Some(CompressionEncoding::Gzip))]
#[tokio::test]
async fn grpc_is_taken(#[case] compression: Option<CompressionEncoding>) {
    let mut bench = Bench::start(100, Senders::none()).await;
    let mut client = bench.grpc().await;
    if let Some(compression) = compression {
        client = client.send_compressed(compression);
    }
    let answer = client.export(request(vec![span(1), span(2)])).await.unwrap().into_inner();
    assert_eq!(answer.partial_success, None);
    assert_eq!(bench.queued().len(), 2);
}

#[tokio::test]
async fn what_the_sdk_did_not_say_is_added() {
    let mut bench = Bench::start(100, Senders::new(ProcTree::new("/proc"), Selection::default(), None)).await;
    bench.grpc().await.export(request(vec![span(1)])).await.unwrap();
    let [(resource, _)] = &bench.queued()[..] else { panic!() };
    let text = |key: &str| {
        let attribute = resource.attributes.iter().find(|attribute| attribute.key == key)?;
        match attribute.value.clone()?.value? {
            Value::StringValue(text) => Some(text),
            Value::IntValue(number) => Some(number.to_string()),
            _ => None,
        }
    };
    assert_eq!(text("service.name").as_deref(), Some("shop"));
    assert_eq!(text("process.pid"), Some(std::process::id().to_string()));
    assert_eq!(text("process.executable.path"), std::env::current_exe().unwrap().to_str().map(str::to_owned));
    assert_eq!(text("telemetry.sdk.name"), None);
}

/// A device plays a second, of which the process of this test has all; the spans are of that second.
#[tokio::test]
async fn a_process_with_a_gpu_gets_its_state() {
    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    let senders = || Senders::new(ProcTree::new("/proc"), Selection::default(), None);
    let gpus = |pid| Gpus::new(crate::gpu::tests::reader(pid), || (crate::span::Clock::new(0, 0), u64::MAX));
    let timed = |number, kind: SpanKind| Span {
        start_time_unix_nano: 200_000_000,
        end_time_unix_nano: 400_000_000,
        kind: kind.into(),
        ..span(number)
    };
    let said = KeyValue { key: "hw.id".to_owned(), ..KeyValue::default() };
    let told = Span { attributes: vec![said.clone()], ..timed(4, SpanKind::Client) };
    let sent = [timed(1, SpanKind::Server), timed(2, SpanKind::Internal), timed(3, SpanKind::Producer), told];
    for (pid, expected) in [(std::process::id(), true), (u32::MAX, false)] {
        let mut bench = Bench::start_with(100, senders(), Some(gpus(pid))).await;
        bench.grpc().await.export(request(sent.to_vec())).await.unwrap();
        let queued: Vec<Span> = bench.queued().into_iter().flat_map(|(_, spans)| spans).collect();
        let energy = |span: &Span| {
            let attribute = span.attributes.iter().find(|it| it.key == "hw.energy")?;
            match attribute.value.clone()?.value? {
                Value::DoubleValue(joules) => Some(joules),
                _ => None,
            }
        };
        // 100 W for 200 ms.
        let joules = expected.then_some(20.0);
        assert_eq!(queued.iter().map(energy).collect::<Vec<_>>(), [joules, joules, None, joules]);
        let ids: Vec<_> = queued[3].attributes.iter().filter(|attribute| attribute.key == "hw.id").collect();
        assert_eq!(ids, [&said], "what the SDK said stays");
    }
}

#[rstest]
#[case::trace_id(Span { trace_id: vec![0; 16], ..span(1) })]
#[case::span_id(Span { span_id: vec![1; 7], ..span(1) })]
#[case::parent(Span { parent_span_id: vec![1], ..span(1) })]
#[tokio::test]
async fn spans_that_nobody_can_store_are_left_out_and_the_others_kept(#[case] bad: Span) {
    let mut bench = Bench::start(100, Senders::none()).await;
    let answer = bench.grpc().await.export(request(vec![span(1), bad.clone(), span(2)])).await.unwrap().into_inner();
    assert_eq!(answer.partial_success.unwrap().rejected_spans, 1);
    assert_eq!(bench.queued().len(), 2);
    let body = request(vec![bad]).encode_to_vec();
    let (status, _, body) = bench.post("/v1/traces", &[PROTOBUF], body).await;
    let answer = ExportTraceServiceResponse::decode(&body[..]).unwrap();
    assert_eq!((status, answer.partial_success.unwrap().rejected_spans), (StatusCode::OK, 1));
    assert_eq!(bench.telemetry.relay.rejected.get(), 2);
}

#[tokio::test]
async fn without_room_the_sender_is_to_try_again() {
    let mut bench = Bench::start(8, Senders::none()).await;
    let mut client = bench.grpc().await;
    client.export(request(vec![span(1), span(2), span(3)])).await.unwrap();
    let two = || request(vec![span(4), span(5)]);
    let status = client.export(two()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(RETRY_AFTER));
    let (status, headers, _) = bench.post("/v1/traces", &[PROTOBUF], two().encode_to_vec()).await;
    assert_eq!((status, &headers["retry-after"]), (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap()));
    // None of the two was taken; what was acknowledged is there, and then there is room again.
    assert_eq!(bench.queued().len(), 3);
    client.export(two()).await.unwrap();
    // So many will never fit.
    let many = (1..=5).map(span).collect();
    let status = client.export(request(many)).await.unwrap_err();
    assert_eq!((status.code(), status.get_details_retry_info().is_none()), (Code::ResourceExhausted, true));
    assert_eq!(bench.telemetry.relay.refused("queue_full").get(), 2);
    assert_eq!(bench.telemetry.relay.refused("too_large").get(), 1);
}

#[tokio::test]
async fn an_agent_that_ends_takes_nothing_more() {
    let mut bench = Bench::start(8, Senders::none()).await;
    let mut client = bench.grpc().await;
    bench.queue = None;
    assert_eq!(client.export(request(vec![span(1)])).await.unwrap_err().code(), Code::Unavailable);
    let (status, headers, _) = bench.post("/v1/traces", &[PROTOBUF], request(vec![span(1)]).encode_to_vec()).await;
    assert_eq!((status, headers.contains_key("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, true));
}

#[rstest]
#[case::no_protobuf("/v1/traces", &[PROTOBUF], b"\xff".to_vec(), StatusCode::BAD_REQUEST)]
#[case::no_json("/v1/traces", &[JSON], b"{".to_vec(), StatusCode::BAD_REQUEST)]
#[case::no_gzip("/v1/traces", &[PROTOBUF, GZIP], b"abc".to_vec(), StatusCode::BAD_REQUEST)]
#[case::media_type("/v1/traces", &[("content-type", "text/plain")], vec![], StatusCode::UNSUPPORTED_MEDIA_TYPE)]
#[case::encoding("/v1/traces", &[PROTOBUF, ("content-encoding", "br")], vec![], StatusCode::UNSUPPORTED_MEDIA_TYPE)]
#[case::large("/v1/traces", &[PROTOBUF], vec![0; MAX_BYTES + 1], StatusCode::PAYLOAD_TOO_LARGE)]
#[case::bomb("/v1/traces", &[PROTOBUF, GZIP], gzip(&vec![0; 10_000_000]), StatusCode::PAYLOAD_TOO_LARGE)]
#[case::metrics("/v1/metrics", &[PROTOBUF], vec![], StatusCode::NOT_FOUND)]
#[case::logs("/v1/logs", &[JSON], vec![], StatusCode::NOT_FOUND)]
#[case::elsewhere("/", &[], vec![], StatusCode::NOT_FOUND)]
#[tokio::test]
async fn what_is_not_taken_over_http(
    #[case] path: &str,
    #[case] headers: &[(&str, &str)],
    #[case] body: Vec<u8>,
    #[case] expected: StatusCode,
) {
    let mut bench = Bench::start(100, Senders::none()).await;
    let (status, _, body) = bench.post(path, headers, body).await;
    assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body));
    if path == "/v1/metrics" {
        let said = tonic_types::Status::decode(&body[..]).unwrap();
        assert_eq!((said.code, said.message.as_str()), (Code::Unimplemented as i32, TRACES_ONLY));
    }
    assert_eq!(bench.queued().len(), 0);
}

#[tokio::test]
async fn what_is_not_taken_over_grpc() {
    let bench = Bench::start(100, Senders::none()).await;
    let mut metrics = MetricsServiceClient::connect(format!("http://{}", bench.address)).await.unwrap();
    let status = metrics.export(ExportMetricsServiceRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, TRACES_ONLY));
    let long = Span { name: "x".repeat(MAX_BYTES), ..span(1) };
    for compression in [None, Some(CompressionEncoding::Gzip)] {
        let mut client = bench.grpc().await;
        if let Some(compression) = compression {
            client = client.send_compressed(compression);
        }
        let status = client.export(request(vec![long.clone()])).await.unwrap_err();
        assert_eq!(
            (status.code(), status.get_details_retry_info().is_none()),
            (Code::ResourceExhausted, true),
            "{status:?}"
        );
    }
    // What turns out only when it is unpacked tonic refuses so by itself.
    assert_eq!(bench.telemetry.relay.refused("too_large").get(), 1);
}
