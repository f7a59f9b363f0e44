//! The same by OTLP, to a receiver over a socket.

use std::{collections::BTreeMap, time::Duration};

use axum::{Router, body::Bytes, http::StatusCode as HttpStatus, routing::post};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::{AggregationTemporality, Metric as OtlpMetric, metric::Data, number_data_point},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::config::Config;

/// Takes requests, but for the first `refused`.
#[derive(Clone)]
struct Receiver {
    requests: mpsc::UnboundedSender<ExportMetricsServiceRequest>,
    refused: Arc<std::sync::atomic::AtomicUsize>,
}

impl Receiver {
    fn take(&self, request: ExportMetricsServiceRequest) -> bool {
        let refuses = |left: usize| left.checked_sub(1);
        if self.refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, refuses).is_ok() {
            return false;
        }
        self.requests.send(request).unwrap();
        true
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        let is_taken = self.take(request.into_inner());
        if is_taken {
            Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
        } else {
            Err(tonic::Status::unavailable("later"))
        }
    }
}

/// Starts a receiver; gives its address and what it takes.
async fn receive(protocol: &str, refused: usize) -> (String, mpsc::UnboundedReceiver<ExportMetricsServiceRequest>) {
    let (requests, received) = mpsc::unbounded_channel();
    let taker = Receiver { requests, refused: Arc::new(refused.into()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    if protocol == "grpc" {
        let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(taker));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        return (format!("http://{address}"), received);
    }
    let take = move |body: Bytes| async move {
        let request = ExportMetricsServiceRequest::decode(body).unwrap();
        if taker.take(request) { HttpStatus::OK } else { HttpStatus::SERVICE_UNAVAILABLE }
    };
    let router = Router::new().route("/v1/metrics", post(take));
    tokio::spawn(async { axum::serve(listener, router).await });
    (format!("http://{address}/v1/metrics"), received)
}

fn export(endpoint: &str, protocol: &str, temporality: &str, metrics: &RequestMetrics) -> MetricsExport {
    let variables: BTreeMap<&str, &str> = BTreeMap::from([
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality),
    ]);
    let config = Config::read(None, &|name| variables.get(name).map(|value| (*value).to_owned())).unwrap();
    let metrics = metrics.clone();
    MetricsExport::new(config.otlp_metrics().unwrap(), vec![Box::new(move || metrics.points())]).unwrap()
}

/// Everything of one name in a request.
fn metrics_of<'r>(request: &'r ExportMetricsServiceRequest, name: &str) -> Vec<&'r OtlpMetric> {
    let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics).filter(|metric| metric.name == name).collect()
}

/// How many requests were counted, by a histogram and by a counter; and of which temporality they are.
fn counts(request: &ExportMetricsServiceRequest) -> (u64, u64, Vec<i32>) {
    let (mut durations, mut calls, mut temporalities) = (0, 0, Vec::new());
    for metric in metrics_of(request, "http.server.request.duration") {
        match metric.data.as_ref().unwrap() {
            Data::Histogram(histogram) => {
                temporalities.push(histogram.aggregation_temporality);
                for point in &histogram.data_points {
                    assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
                    durations += point.count;
                }
            }
            Data::ExponentialHistogram(histogram) => {
                temporalities.push(histogram.aggregation_temporality);
                for point in &histogram.data_points {
                    let positive = point.positive.as_ref().unwrap();
                    assert_eq!(positive.bucket_counts.iter().sum::<u64>() + point.zero_count, point.count);
                    durations += point.count;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    for metric in metrics_of(request, "traces_spanmetrics_calls_total") {
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
        assert!(sum.is_monotonic);
        temporalities.push(sum.aggregation_temporality);
        for point in &sum.data_points {
            let Some(number_data_point::Value::AsDouble(value)) = point.value else { panic!("{point:?}") };
            calls += value as u64;
        }
    }
    (durations, calls, temporalities)
}

#[rstest]
#[case::grpc("grpc", "cumulative", Aggregation::Explicit, 0, &[3, 5])]
#[case::http("http/protobuf", "cumulative", Aggregation::Explicit, 0, &[3, 5])]
#[case::delta("grpc", "delta", Aggregation::Explicit, 0, &[3, 2])]
#[case::exponential("grpc", "cumulative", Aggregation::Exponential, 0, &[3, 5])]
#[case::exponential_delta("http/protobuf", "delta", Aggregation::Exponential, 0, &[3, 2])]
#[case::what_was_not_taken_comes_later("grpc", "cumulative", Aggregation::Explicit, 1, &[5])]
#[case::deltas_that_were_not_taken_too("http/protobuf", "delta", Aggregation::Explicit, 1, &[5])]
#[tokio::test]
async fn sums_are_what_was_counted(
    #[case] protocol: &str,
    #[case] temporality: &str,
    #[case] aggregation: Aggregation,
    #[case] refused: usize,
    #[case] expected: &[u64],
) {
    let (endpoint, mut received) = receive(protocol, refused).await;
    let features = Feature::ALL.into_iter().collect();
    let metrics = RequestMetrics::new(MetricsSettings { features, aggregation, ..MetricsSettings::default() });
    let mut export = export(&endpoint, protocol, temporality, &metrics);
    for (round, requests) in [3, 2].into_iter().enumerate() {
        for request in 0..requests {
            metrics.count_span(&span("shop", SpanKind::Server, 30 + request, &GET), 1, true, None);
        }
        export.send(1000 + round as u64).await;
    }
    drop(export);
    let mut seen = Vec::new();
    let wanted =
        if temporality == "delta" { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative };
    while let Ok(request) = received.try_recv() {
        let (durations, calls, temporalities) = counts(&request);
        assert_eq!(durations, calls);
        assert!(temporalities.iter().all(|it| *it == wanted as i32), "{temporalities:?}");
        seen.push(durations);
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_point_says_what_the_page_says() {
    let (endpoint, mut received) = receive("grpc", 0).await;
    let metrics = RequestMetrics::default();
    for (service, milliseconds) in [("shop", 30), ("shop", 60), ("cart", 1)] {
        metrics.count_span(&span(service, SpanKind::Server, milliseconds, &GET), 1, true, None);
    }
    export(&endpoint, "grpc", "cumulative", &metrics).send(7).await;
    let request = received.recv().await.unwrap();
    let text = |attributes: &[KeyValue], key: &str| {
        let found = attributes.iter().find(|it| it.key == key)?.value.clone()?.value?;
        Some(match found {
            any_value::Value::StringValue(text) => text,
            any_value::Value::IntValue(number) => format!("{number} as a number"),
            other => panic!("{other:?}"),
        })
    };
    let services: Vec<_> = request
        .resource_metrics
        .iter()
        .map(|it| text(&it.resource.as_ref().unwrap().attributes, resource::SERVICE_NAME).unwrap())
        .collect();
    assert_eq!(services, ["cart", "shop"]);
    let of_shop = &request.resource_metrics[1];
    // What only `/metrics` needs is not sent.
    assert!(metrics_of(&request, "").is_empty());
    let metric = &of_shop.scope_metrics[0].metrics[0];
    assert_eq!((metric.name.as_str(), metric.unit.as_str()), ("http.server.request.duration", "s"));
    let Some(Data::Histogram(histogram)) = &metric.data else { panic!("{metric:?}") };
    let [point] = &histogram.data_points[..] else { panic!("{histogram:?}") };
    assert_eq!((point.count, point.explicit_bounds.len(), point.bucket_counts.len()), (2, 15, 16));
    assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1_000_000_000, 7));
    assert!((point.sum.unwrap() - 0.09).abs() < 1e-9);
    assert_eq!(text(&point.attributes, key::SERVER_PORT).as_deref(), Some("80 as a number"));
    assert_eq!(text(&point.attributes, key::HTTP_ROUTE).as_deref(), Some("/api/{id}"));
    assert_eq!(text(&point.attributes, key::URL_PATH), None);
    let [first, second] = &point.exemplars[..] else { panic!("{point:?}") };
    assert_eq!(first.trace_id, vec![0xab; 16]);
    assert_ne!(first.value, second.value);
}

#[tokio::test]
async fn the_last_counts_are_sent_at_the_end() {
    let (endpoint, mut received) = receive("grpc", 0).await;
    let metrics = RequestMetrics::default();
    let export = export(&endpoint, "grpc", "cumulative", &metrics);
    let (end, ends) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(export.run(ends));
    metrics.count_span(&span("shop", SpanKind::Server, 1, &GET), 1, true, None);
    // The interval is a minute: what arrives is what the end sends.
    end.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
    assert_eq!(counts(&received.recv().await.unwrap()).0, 1);
    assert!(received.try_recv().is_err());
}
