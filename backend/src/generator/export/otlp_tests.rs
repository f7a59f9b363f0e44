//! What a server of OTLP sees: over gRPC that of tonic, over HTTP one that reads what it gets with other types than ours.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use flate2::read::GzDecoder;
use http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use prost::Message;
use rstest::rstest;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::queue::Queue;
use super::send::Sender;
use super::tests::{SPANS, lost};
use crate::config::OtlpConfig;
use crate::generator::Generator;
use crate::generator::tests::{NOW_MS, counting, of, span};
use crate::telemetry::GeneratorMetrics;

fn config(yaml: &str) -> OtlpConfig {
    serde_saphyr::from_str(&format!("endpoint: http://127.0.0.1:9\n{yaml}")).unwrap()
}

fn queue(folder: &std::path::Path, config: &OtlpConfig) -> Queue {
    Queue::otlp(folder, config, 1 << 20, GeneratorMetrics::default()).unwrap()
}

fn two_spans(yaml: &str) -> Generator {
    counting(&format!("{SPANS}\n{yaml}"), [of("shop", vec![span(2, 1, 0, 50, &[]), span(2, 2, 0, 500, &[])])])
}

/// All that waits.
fn waiting(queue: &Queue) -> Vec<Metric> {
    let mut found = Vec::new();
    while let Some((number, queued)) = queue.oldest().unwrap() {
        let message = snap::raw::Decoder::new().decompress_vec(&queued.body).unwrap();
        found.extend(metrics(&message));
        queue.done(number);
    }
    found
}

fn metrics(message: &[u8]) -> Vec<Metric> {
    let request = ExportMetricsServiceRequest::decode(message).unwrap();
    let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    scopes.flat_map(|scope| scope.metrics).collect()
}

fn milliseconds(nanos: u64) -> i64 {
    (nanos / 1_000_000) as i64 - NOW_MS as i64
}

fn shown(metric: &Metric) -> String {
    let points = match metric.data.as_ref().unwrap() {
        Data::Sum(sum) => {
            assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
            let shown = sum.data_points.iter().map(|point| {
                let value = point.value.map_or("none".to_owned(), |value| match value {
                    Number::AsDouble(value) => value.to_string(),
                    Number::AsInt(value) => value.to_string(),
                });
                let times = (milliseconds(point.start_time_unix_nano), milliseconds(point.time_unix_nano));
                format!("{times:?} {value} flags {}", point.flags)
            });
            shown.collect::<Vec<_>>()
        }
        Data::Histogram(histogram) => {
            assert_eq!(histogram.aggregation_temporality, 2);
            let shown = histogram.data_points.iter().map(|point| {
                let times = (milliseconds(point.start_time_unix_nano), milliseconds(point.time_unix_nano));
                let exemplars: Vec<_> = point.exemplars.iter().map(|exemplar| exemplar.trace_id[15]).collect();
                format!(
                    "{times:?} {} {:?} {:?} {:?} exemplars {exemplars:x?} flags {}",
                    point.count, point.sum, point.explicit_bounds, point.bucket_counts, point.flags
                )
            });
            shown.collect()
        }
        Data::ExponentialHistogram(histogram) => {
            assert_eq!(histogram.aggregation_temporality, 2);
            let shown = histogram.data_points.iter().map(|point| {
                let buckets = point.positive.clone().unwrap_or_default();
                let counts: Vec<_> =
                    (buckets.offset..).zip(buckets.bucket_counts).filter(|(_, count)| *count > 0).collect();
                let exemplars = point.exemplars.len();
                format!("{} {:?} scale {} {counts:?} exemplars {exemplars}", point.count, point.sum, point.scale)
            });
            shown.collect()
        }
        other => panic!("{other:?}"),
    };
    format!("{} ({}): {}", metric.name, metric.description, points.join("; "))
}

#[test]
fn series_begin_with_zero_and_end_with_a_flag() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path(), &config(""));
    let generator = two_spans("");
    let mut all = Vec::new();
    for after in [15_000, 30_000, 75_000, 90_000] {
        queue.push(&generator.collect(NOW_MS + after)).unwrap();
        all.extend(waiting(&queue));
    }
    let Some(Data::Sum(sum)) = &all[0].data else { panic!("{all:?}") };
    let labels = sum.data_points[0].attributes.iter().map(|attribute| {
        let Some(Value::StringValue(text)) = attribute.value.clone().unwrap().value else { panic!("{attribute:?}") };
        format!("{}={text}", attribute.key)
    });
    assert_eq!(
        labels.collect::<Vec<_>>().join(" "),
        "service=shop span_kind=SPAN_KIND_SERVER span_name=span 2 status_code=STATUS_CODE_UNSET"
    );
    let shown: Vec<_> = all.iter().filter(|metric| !metric.name.contains("size")).map(shown).collect();
    insta::assert_snapshot!(shown.join("\n"), @"
    traces_spanmetrics_calls_total (Spans): (0, 1) 0 flags 0; (0, 15000) 2 flags 0
    traces_spanmetrics_latency (Time from the start of a span to its end, in seconds): (0, 1) 0 Some(0.0) [0.1] [0, 0] exemplars [] flags 0; (0, 15000) 2 Some(0.55) [0.1] [1, 1] exemplars [1a, 1a] flags 0
    traces_spanmetrics_calls_total (Spans): (0, 30000) 2 flags 0
    traces_spanmetrics_latency (Time from the start of a span to its end, in seconds): (0, 30000) 2 Some(0.55) [0.1] [1, 1] exemplars [] flags 0
    traces_spanmetrics_calls_total (Spans): (0, 75000) none flags 1
    traces_spanmetrics_latency (Time from the start of a span to its end, in seconds): (0, 75000) 0 None [] [] exemplars [] flags 1
    ");
}

/// A second is the upper bound of Prometheus' bucket 0, and of OTLP's bucket -1.
#[test]
fn native_histograms_are_exponential_ones() {
    let folder = tempfile::tempdir().unwrap();
    let spans = [1, 1000, 1000, 1001, 4000, 0].map(|millis| span(2, 1, 0, millis, &[])).to_vec();
    let generator = counting(&format!("{SPANS}\ngenerate_native_histograms: both"), [of("shop", spans)]);
    let collected = generator.collect(NOW_MS + 15_000);
    for (yaml, expected) in [
        ("", "6 Some(7.002) scale 3 [(-80, 1), (-1, 2), (0, 1), (15, 1)] exemplars 2"),
        ("send_native_histograms: false", "6 Some(7.002) [0.1] [2, 4]"),
    ] {
        let queue = queue(folder.path(), &config(yaml));
        queue.push(&collected).unwrap();
        let found = waiting(&queue);
        let latency: Vec<_> = found.iter().filter(|metric| metric.name == "traces_spanmetrics_latency").collect();
        assert_eq!(latency.len(), 1);
        assert!(shown(latency[0]).contains(expected), "{}", shown(latency[0]));
    }
}

#[test]
fn requests_are_small_and_have_all() {
    let folder = tempfile::tempdir().unwrap();
    let queue = queue(folder.path(), &config(""));
    let named = |number: u32| opentelemetry_proto::tonic::trace::v1::Span {
        name: number.to_string(),
        ..span(2, 1, 0, 50, &[])
    };
    queue.push(&counting(SPANS, [of("shop", (0..1_000).map(named).collect())]).collect(NOW_MS + 15_000)).unwrap();
    let mut samples = Vec::new();
    while let Some((number, queued)) = queue.oldest().unwrap() {
        samples.push(queued.samples);
        queue.done(number);
    }
    // Two counters and a histogram, each with its zero.
    assert_eq!(samples, [2_000, 2_000, 2_000]);
}

/// What a server got: headers, and the names of the metrics of each request.
type Seen = Arc<Mutex<Vec<(HeaderMap, Vec<Metric>)>>>;

/// What it answers, one after the other; then it takes everything.
type Answers = Arc<Mutex<Vec<u16>>>;

#[derive(Clone)]
struct Server {
    seen: Seen,
    answers: Answers,
}

impl Server {
    fn next(&self) -> u16 {
        let mut answers = self.answers.lock().unwrap();
        if answers.is_empty() { 0 } else { answers.remove(0) }
    }
}

/// It takes a request, but for one data point.
const IN_PART: u16 = 1_000;

fn answer(in_part: bool) -> ExportMetricsServiceResponse {
    let partial = ExportMetricsPartialSuccess { rejected_data_points: 1, error_message: "one is bad".to_owned() };
    ExportMetricsServiceResponse { partial_success: in_part.then_some(partial) }
}

#[tonic::async_trait]
impl MetricsService for Server {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.seen.lock().unwrap().push((headers, metrics(&request.into_inner().encode_to_vec())));
        match self.next() {
            0 => Ok(Response::new(answer(false))),
            IN_PART => Ok(Response::new(answer(true))),
            code => Err(Status::new(i32::from(code).into(), "no")),
        }
    }
}

async fn grpc(server: Server) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = MetricsServiceServer::new(server);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)),
    );
    url
}

async fn http(server: Server) -> String {
    let take = async |State(server): State<Server>, headers: HeaderMap, body: Bytes| {
        assert_eq!(
            (&headers["content-type"], &headers["content-encoding"]),
            (&"application/x-protobuf".parse().unwrap(), &"gzip".parse().unwrap())
        );
        let mut message = Vec::new();
        GzDecoder::new(body.as_ref()).read_to_end(&mut message).unwrap();
        server.seen.lock().unwrap().push((headers, metrics(&message)));
        match server.next() {
            0 => (StatusCode::OK, answer(false).encode_to_vec()),
            IN_PART => (StatusCode::OK, answer(true).encode_to_vec()),
            status => (StatusCode::from_u16(status).unwrap(), b"no".to_vec()),
        }
    };
    let router = Router::new().route("/otlp/v1/metrics", post(take)).with_state(server);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/otlp/", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router).into_future());
    url
}

#[rstest]
#[case::grpc("grpc", vec![], 2, 0)]
#[case::grpc_refused("grpc", vec![3], 2, 6)]
#[case::grpc_in_part("grpc", vec![IN_PART], 2, 1)]
#[case::grpc_later("grpc", vec![14], 3, 0)]
#[case::http("http/protobuf", vec![], 2, 0)]
#[case::http_refused("http/protobuf", vec![400], 2, 6)]
#[case::http_in_part("http/protobuf", vec![IN_PART], 2, 1)]
#[case::http_later("http/protobuf", vec![503], 3, 0)]
#[tokio::test]
async fn a_server_gets_everything_in_order(
    #[case] protocol: &str,
    #[case] answers: Vec<u16>,
    #[case] requests: usize,
    #[case] refused: u64,
) {
    let server = Server { seen: Seen::default(), answers: Arc::new(Mutex::new(answers)) };
    let url = if protocol == "grpc" { grpc(server.clone()).await } else { http(server.clone()).await };
    let yaml = format!("protocol: {protocol}\nheaders: {{X-Extra: secret}}\nbasic_auth: {{username: u, password: p}}");
    let config = OtlpConfig { endpoint: url, ..config(&yaml) };
    let folder = tempfile::tempdir().unwrap();
    let queue = Arc::new(queue(folder.path(), &config));
    let generator = two_spans("");
    for after in [15_000, 30_000] {
        queue.push(&generator.collect(NOW_MS + after)).unwrap();
    }
    let sender = tokio::spawn(Sender::otlp(Arc::clone(&queue), &config, true).unwrap().run());
    while queue.oldest().unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sender.abort();
    let seen = server.seen.lock().unwrap();
    let ends: Vec<_> = seen
        .iter()
        .map(|(_, metrics)| match metrics[0].data.as_ref().unwrap() {
            Data::Sum(sum) => milliseconds(sum.data_points.last().unwrap().time_unix_nano),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((ends.len(), ends.is_sorted(), ends.last()), (requests, true, Some(&30_000)));
    assert_eq!(lost(&queue, "refused"), refused);
    let header = |name: &str| seen[0].0.get(name).unwrap().to_str().unwrap();
    assert_eq!(["x-scope-orgid", "x-extra", "authorization"].map(header), ["single-tenant", "secret", "Basic dTpw"]);
}
