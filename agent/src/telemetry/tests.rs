use std::net::SocketAddr;

use coati_common::{event::Kind, loss::Loss};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;

use super::*;
use crate::metrics::Value;

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

#[test]
fn the_same_numbers_go_by_otlp() {
    let telemetry = Telemetry::default();
    telemetry.spans.inc_by(7);
    telemetry.losses(Loss::RingFullBegin.name()).inc_by(2);
    telemetry.processes.set(4);
    let points: Vec<_> = telemetry
        .points()
        .into_iter()
        .map(|point| {
            let (Value::Counter(value) | Value::Gauge(value)) = point.value else { panic!("{point:?}") };
            format!("{}{{{}}} {value}", point.metric.otlp, point.labels.text)
        })
        .collect();
    for expected in [
        "coati.agent.spans{} 7",
        "coati.agent.losses{cause=\"ring_full_begin\"} 2",
        "coati.agent.losses{cause=\"connections_full\"} 0",
        "coati.agent.processes{} 4",
    ] {
        assert!(points.iter().any(|point| point == expected), "{expected} is not in {points:?}");
    }
    assert!(points.iter().any(|point| point.starts_with("process.memory.usage{} ")), "{points:?}");
}
