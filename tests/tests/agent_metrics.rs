//! Guarantee: the agent's metrics count every request once, on `/metrics` and by OTLP, also when no span is kept; and
//! Prometheus' own tool can read the page.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coati_tests::agent::{Agent, sum};
use coati_tests::http;
use coati_tests::load::{self, Plan};
use coati_tests::process::{self, free_port};
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::system;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    metrics_service_server::{MetricsService, MetricsServiceServer},
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point};

const REQUESTS: usize = 400;

struct Collector(Sender<ExportMetricsServiceRequest>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).map_err(|_| tonic::Status::unavailable("the test is over"))?;
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// Takes metrics by gRPC as long as the runtime lives.
fn collect(runtime: &tokio::runtime::Runtime) -> Result<(String, Receiver<ExportMetricsServiceRequest>)> {
    let (sender, received) = channel();
    let address = format!("127.0.0.1:{}", free_port()?);
    let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(Collector(sender)));
    runtime.spawn(server.serve(address.parse()?));
    Ok((format!("http://{address}"), received))
}

/// Requests that were counted for a service in a metric, by all points of all requests.
fn counted(requests: &[ExportMetricsServiceRequest], service: &str, metric: &str) -> u64 {
    let is_of_service = |attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue]| {
        attributes.iter().any(|it| {
            it.key == "service.name"
                && it.value.as_ref().and_then(|it| it.value.as_ref()) == Some(&Value::StringValue(service.to_owned()))
        })
    };
    let count = |metric: &Metric| match &metric.data {
        Some(Data::ExponentialHistogram(histogram)) => histogram.data_points.iter().map(|it| it.count).sum(),
        Some(Data::Histogram(histogram)) => histogram.data_points.iter().map(|it| it.count).sum(),
        Some(Data::Sum(sum)) => {
            let values = sum.data_points.iter().map(|it| match it.value {
                Some(number_data_point::Value::AsDouble(value)) => value as u64,
                _ => 0,
            });
            values.sum::<u64>()
        }
        _ => 0,
    };
    let of_service = requests
        .iter()
        .flat_map(|request| &request.resource_metrics)
        .filter(|it| it.resource.as_ref().is_some_and(|resource| is_of_service(&resource.attributes)));
    let metrics = of_service.flat_map(|it| &it.scope_metrics).flat_map(|it| &it.metrics);
    metrics.filter(|it| it.name == metric).map(count).sum()
}

#[test]
fn every_request_is_counted_once_although_no_span_is_kept() -> Result<()> {
    let folder = process::folder()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (endpoint, received) = collect(&runtime)?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let variables = [
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta".to_owned()),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "300".to_owned()),
        ("OTEL_TRACES_SAMPLER", "always_off".to_owned()),
        // Other tests have servers of the same name.
        ("BEYLA_OPEN_PORT", sample.address(Server::Go).port().to_string()),
        (
            "BEYLA_METRICS_FEATURES",
            "application,application_span,application_service_graph,application_process".to_owned(),
        ),
    ];
    let nowhere = format!("http://127.0.0.1:{}", free_port()?);
    let mut agent = Agent::start_with(folder.path(), &nowhere, &[], &variables)?;
    let address = sample.address(Server::Go);
    load::run(&Plan {
        address,
        paths: vec!["/stock/1".to_owned()],
        requests: REQUESTS,
        rate: 1000.0,
        connections: 4,
        keep_alive: true,
    })?;

    let service = Server::Go.service_name();
    let label = format!("service_name=\"{service}\"");
    let until = Instant::now() + Duration::from_secs(10);
    let count = |page: &str, name: &str, labels: &[&str]| sum(page, name, labels) as usize;
    let page = loop {
        let page = agent.metrics()?;
        let seen = count(&page, "http_server_request_duration_seconds_count", &[&label]);
        let has_looked = page.contains("process_memory_usage_bytes{");
        if (seen >= REQUESTS && has_looked) || Instant::now() > until {
            break page;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let server = format!("client=\"user\",server=\"{service}\"");
    for (name, labels) in [
        ("http_server_request_duration_seconds_count", &*label),
        ("traces_spanmetrics_calls_total", &label),
        ("traces_spanmetrics_latency_count", &label),
        // The load comes from a program that is not observed.
        ("traces_service_graph_request_total", &server),
        ("traces_service_graph_request_server_seconds_count", &server),
    ] {
        let seen = count(&page, name, &[labels]);
        ensure!(seen == REQUESTS, "{name}{{{labels}}} is {seen}, not {REQUESTS}:\n{page}");
    }
    ensure!(sum(&page, "process_memory_usage_bytes", &[&label]) > 0.0, "no memory of {service}:\n{page}");
    // No span that it names can be found.
    ensure!(!page.contains(" # {trace_id="), "an exemplar of a span that is not kept:\n{page}");

    let plain = http::get_with(&format!("http://{}/metrics", agent.listen), &[("Accept", "text/plain")])?.text();
    ensure!(count(&plain, "traces_spanmetrics_calls_total", &[&label]) == REQUESTS, "{plain}");
    let mut promtool = Command::new(system("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool.stdin.take().context("no input")?.write_all(plain.as_bytes())?;
    let checked = promtool.wait_with_output()?;
    // 3 is a matter of taste: names that are Beyla's or the conventions', and not to be chosen here.
    let is_read = matches!(checked.status.code(), Some(0 | 3));
    ensure!(is_read, "promtool: {}\n{plain}", String::from_utf8_lossy(&checked.stderr));

    let status = agent.stop()?;
    ensure!(status.code() == Some(0), "it ended with {status}:\n{}", agent.process.output());
    let requests: Vec<_> = received.try_iter().collect();
    ensure!(requests.len() > 1, "{} requests", requests.len());
    for metric in ["http.server.request.duration", "traces_spanmetrics_calls_total", "traces_spanmetrics_latency"] {
        let sent = counted(&requests, service, metric);
        ensure!(sent == REQUESTS as u64, "{metric} by OTLP is {sent}, not {REQUESTS}");
    }
    Ok(())
}
