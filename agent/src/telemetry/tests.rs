use std::{net::SocketAddr, time::Duration};

use coati_common::{event::Kind, loss::Loss};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::{metric::Data, number_data_point::Value},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, async_trait, transport};

use super::*;
use crate::config::Config;

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<axum::body::Bytes>>();
    let answer = client.get(format!("http://{address}{path}").parse().unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn serve(telemetry: &Telemetry) -> SocketAddr {
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), telemetry.clone()).await.unwrap();
    let address = server.address();
    tokio::spawn(server.run(std::future::pending()));
    address
}

#[tokio::test]
async fn metrics_show_every_counter() {
    let telemetry = Telemetry::default();
    telemetry.records(Kind::Begin).inc_by(3);
    mirror(&telemetry.losses(Loss::ConnectionsFull.name()), 2);
    telemetry.spans_dropped(DropCause::QueueFull).inc();
    telemetry.export_requests(RequestOutcome::Accepted).inc();
    telemetry.export_duration.observe(0.004);
    telemetry.queue_length.set(5);
    let (status, text) = get(serve(&telemetry).await, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "coati_agent_records_total{kind=\"begin\"} 3",
        "coati_agent_records_total{kind=\"exit\"} 0",
        "coati_agent_losses_total{cause=\"connections_full\"} 2",
        "coati_agent_losses_total{cause=\"ring_full_begin\"} 0",
        "coati_agent_ring_sequence_gaps_total 0",
        "coati_agent_parse_failures_total 0",
        "coati_agent_exchanges_total 0",
        "coati_agent_spans_dropped_total{cause=\"queue_full\"} 1",
        "coati_agent_export_requests_total{outcome=\"accepted\"} 1",
        "coati_agent_export_duration_seconds_bucket{le=\"0.005\"} 1",
        "coati_agent_export_queue_length 5",
    ] {
        assert!(text.lines().any(|actual| actual == line), "{line} is not in\n{text}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.contains(&format!("coati_build_info{{component=\"agent\",version=\"{version}\"}} 1")), "{text}");
    for name in ["process_resident_memory_bytes", "process_cpu_seconds_total", "coati_agent_uptime_seconds"] {
        let sample = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
        assert!(sample.parse::<f64>().unwrap() >= 0.0, "{name} {sample}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn ready_only_when_attached_and_exporting() {
    let telemetry = Telemetry::default();
    let address = serve(&telemetry).await;
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/readyz").await, (503, "the kernel programs are not attached yet\n".to_owned()));
    telemetry.set_attached();
    assert_eq!(get(address, "/readyz").await, (503, "the exporter does not run\n".to_owned()));
    telemetry.set_exporting(true);
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".to_owned()));
    telemetry.set_exporting(false);
    assert_eq!(get(address, "/readyz").await.0, 503);
    assert_eq!(get(address, "/").await.0, 404);
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = Server::bind(address, Telemetry::default()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {address} for metrics and health"));
}

struct Receiver(mpsc::UnboundedSender<ExportMetricsServiceRequest>);

#[async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.send(request.into_inner()).map_err(|_| Status::unavailable("test is over"))?;
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_numbers_go_by_otlp() {
    let (sender, mut received) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = MetricsServiceServer::new(Receiver(sender));
    tokio::spawn(
        transport::Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let telemetry = Telemetry::default();
    telemetry.spans.inc_by(7);
    telemetry.losses(Loss::RingFullBegin.name()).inc_by(2);
    telemetry.processes.set(4);
    let variable = |name: &str| (name == "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT").then(|| endpoint.clone());
    let settings = Config::read(None, &variable).unwrap().otlp_metrics(Some("node-1".to_owned())).unwrap();
    let settings = OtlpMetricsSettings { interval: Duration::from_hours(1), ..settings };
    let metrics = OtlpMetrics::start(&settings, &telemetry).unwrap();
    // The interval never passes: what arrives is what the end of the agent flushes.
    tokio::task::spawn_blocking(|| metrics.stop()).await.unwrap().unwrap();

    let request = received.recv().await.unwrap();
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    assert!(resource.attributes.iter().any(|attribute| attribute.key == "host.name"));
    let sums: Vec<_> = request.resource_metrics[0].scope_metrics[0]
        .metrics
        .iter()
        .flat_map(|metric| {
            let points = match metric.data.as_ref().unwrap() {
                Data::Sum(sum) => sum.data_points.clone(),
                Data::Gauge(gauge) => gauge.data_points.clone(),
                other => panic!("{other:?}"),
            };
            let name = metric.name.clone();
            points.into_iter().map(move |point| (name.clone(), point.attributes.len(), point.value))
        })
        .collect();
    assert!(sums.contains(&("coati.agent.spans".to_owned(), 0, Some(Value::AsInt(7)))), "{sums:?}");
    assert!(sums.contains(&("coati.agent.losses".to_owned(), 1, Some(Value::AsInt(2)))), "{sums:?}");
    assert!(sums.contains(&("coati.agent.processes".to_owned(), 0, Some(Value::AsInt(4)))), "{sums:?}");
    assert!(sums.iter().any(|(name, ..)| name == "process.memory.usage"), "{sums:?}");
}
