//! Guarantee: the metrics that a real Prometheus has are the spans that were acknowledged, each counted once, also after
//! Prometheus was away and after the backend was killed.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]
#![expect(clippy::indexing_slicing, reason = "indexing JSON gives null, it never panics")]

mod otlp;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::front::Front;
use coati_tests::http;
use coati_tests::prometheus::{Prometheus, query_at};
use opentelemetry_proto::tonic::trace::v1::Span;

const WITHIN: Duration = Duration::from_mins(1);

/// Sends requests of `front` to `cart`, one trace each: a client's and a server's span, in requests of their own.
struct Senders {
    sent: u64,
}

impl Senders {
    fn send(&mut self, backend: &Backend, count: u64) -> Result<()> {
        for _ in 0..count {
            self.sent += 1;
            let trace = u128::from(self.sent) << 32 | 0xabc;
            let client = Span { kind: 3, ..otlp::span(trace, 2 * self.sent, "GET /cart") };
            let parent_span_id = client.span_id.clone();
            let server = Span { parent_span_id, ..otlp::span(trace, 2 * self.sent + 1, "/cart") };
            otlp::store(backend, &otlp::request("front", vec![client]))?;
            otlp::store(backend, &otlp::request("cart", vec![server]))?;
        }
        Ok(())
    }
}

fn wait_for(prometheus: &Prometheus, backend: &Backend, query: &str, wanted: f64) -> Result<()> {
    let begin = Instant::now();
    loop {
        let found = prometheus.value(query)?;
        if (found - wanted).abs() < 1e-9 {
            return Ok(());
        }
        ensure!(begin.elapsed() < WITHIN, "{query}: {found} instead of {wanted}\n{}", backend.process.output());
        thread::sleep(Duration::from_millis(100));
    }
}

fn all_counted(prometheus: &Prometheus, backend: &Backend, requests: u64) -> Result<()> {
    let requests = requests as f64;
    wait_for(prometheus, backend, "sum(traces_spanmetrics_calls_total)", 2.0 * requests)?;
    wait_for(prometheus, backend, "sum(traces_spanmetrics_latency_count)", 2.0 * requests)?;
    wait_for(
        prometheus,
        backend,
        "traces_spanmetrics_calls_total{service=\"cart\",span_kind=\"SPAN_KIND_SERVER\"}",
        requests,
    )?;
    wait_for(prometheus, backend, "traces_service_graph_request_total{client=\"front\",server=\"cart\"}", requests)?;
    wait_for(prometheus, backend, "sum(histogram_count(traces_spanmetrics_latency))", 2.0 * requests)
}

#[test]
fn prometheus_has_every_acknowledged_span_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut prometheus = Prometheus::start(folder.path())?;
    // With TLS of an authority of its own.
    let front = Front::start(folder.path(), prometheus.address)?;
    let config = folder.path().join("backend.yaml");
    let text = format!(
        "metrics_generator:\n  generate_native_histograms: both\n  registry: {{collection_interval: 1s, external_labels: {{source: coati}}}}\n  \
         storage:\n    remote_write:\n    - url: https://{}/api/v1/write\n      tls_config: {{ca_file: {}}}\n",
        front.tls,
        front.authority.display()
    );
    fs::write(&config, text)?;
    let mut backend = Backend::start(folder.path(), &["--config", &config.to_string_lossy()])?;
    let mut senders = Senders { sent: 0 };
    senders.send(&backend, 25)?;
    all_counted(&prometheus, &backend, senders.sent)?;
    the_data_is_as_grafana_wants_it(&prometheus)?;
    coati_answers_as_prometheus_does(&prometheus, &backend)?;

    // Prometheus is away; the backend is killed when it has acknowledged what it has not collected yet.
    prometheus.process.kill()?;
    for _ in 0..4 {
        senders.send(&backend, 15)?;
        thread::sleep(Duration::from_millis(700));
        senders.send(&backend, 1)?;
        backend.process.kill()?;
        backend.restart()?;
    }
    prometheus.restart()?;
    all_counted(&prometheus, &backend, senders.sent)?;

    // A stop loses nothing either, nor do traces that are in blocks.
    senders.send(&backend, 5)?;
    backend.stop()?;
    backend.restart()?;
    senders.send(&backend, 5)?;
    all_counted(&prometheus, &backend, senders.sent)?;
    let increase = prometheus.value(
        "sum(max_over_time(traces_spanmetrics_calls_total[10m]) - min_over_time(traces_spanmetrics_calls_total[10m]))",
    )?;
    ensure!((increase - 2.0 * senders.sent as f64).abs() < 1e-9, "from zero on: {increase}");
    let resets = prometheus.value("sum(resets(traces_spanmetrics_calls_total[10m]))")?;
    ensure!(resets == 0.0, "counters went back {resets} times");
    let metrics = backend.get("/metrics")?.text();
    ensure!(!metrics.contains("coati_backend_remote_write_lost_samples_total{"), "samples were lost:\n{metrics}");
    Ok(())
}

/// Series, labels, exemplars and the queries of Grafana's service graph.
fn the_data_is_as_grafana_wants_it(prometheus: &Prometheus) -> Result<()> {
    let base = format!("http://{}/api/v1", prometheus.address);
    let now = otlp::now_ns() / 1_000_000_000;
    let url =
        format!("{base}/query_exemplars?query=traces_spanmetrics_latency_bucket&start={}&end={}", now - 600, now + 60);
    let exemplars = http::get(&url)?.json()?;
    let trace = exemplars["data"][0]["exemplars"][0]["labels"]["traceID"].as_str().unwrap_or_default();
    ensure!(trace.ends_with("00000abc"), "exemplars: {exemplars}");

    let zeros = prometheus.value("count(min_over_time(traces_spanmetrics_calls_total[10m]) == 0)")?;
    ensure!(zeros == 2.0, "{zeros} series begin with zero");
    for metric in ["server_seconds_sum", "total", "failed_total", "server_seconds_bucket"] {
        let metric = format!("traces_service_graph_request_{metric}");
        let rates = prometheus.query(&format!("sum by (client, server) (rate({metric}{{}}[600s]))"))?;
        ensure!(rates[0]["metric"] == serde_json::json!({"client": "front", "server": "cart"}), "{metric}: {rates}");
        let groups = prometheus.query(&format!("group by (client, connection_type, server) ({metric}{{}})"))?;
        ensure!(groups.as_array().is_some_and(|groups| groups.len() == 1), "{metric}: {groups}");
    }
    let top = prometheus.query(
        "topk(5, sum(rate(traces_spanmetrics_calls_total{span_kind=\"SPAN_KIND_SERVER\"}[600s])) by (span_name))",
    )?;
    ensure!(top[0]["metric"]["span_name"] == "/cart", "{top}");
    let p90 = prometheus.value(
        "histogram_quantile(.9, sum(rate(traces_spanmetrics_latency_bucket{span_name=~\"/cart\"}[600s])) by (le))",
    )?;
    ensure!((0.004..=0.008).contains(&p90), "p90 of 5 ms: {p90}");
    let labels = prometheus.query("traces_spanmetrics_calls_total{service=\"front\"}")?;
    ensure!(
        labels[0]["metric"]["source"] == "coati" && labels[0]["metric"]["status_code"] == "STATUS_CODE_UNSET",
        "{labels}"
    );
    Ok(())
}

/// What Grafana's service graph, its table and its links ask, and what else is known of PromQL.
const QUERIES: &[&str] = &[
    "sum by (client, server) (rate(traces_service_graph_request_server_seconds_sum{}[600s]))",
    "sum by (client, server) (rate(traces_service_graph_request_total{}[600s]))",
    "sum by (client, server) (rate(traces_service_graph_request_failed_total{}[600s]))",
    "sum by (client, server) (rate(traces_service_graph_request_server_seconds_bucket{}[600s]))",
    "group by (client, connection_type, server) (traces_service_graph_request_server_seconds_sum{})",
    "group by (client, connection_type, server) (traces_service_graph_request_total{client=\"front\"})",
    "group by (client, connection_type, server) (traces_service_graph_request_failed_total{})",
    "group by (client, connection_type, server) (traces_service_graph_request_server_seconds_bucket{})",
    "topk(5, sum(rate(traces_spanmetrics_calls_total{span_kind=\"SPAN_KIND_SERVER\"}[600s])) by (span_name))",
    "topk(5, sum(rate(traces_spanmetrics_calls_total{status_code=\"STATUS_CODE_ERROR\",span_name=~\"a|b\"}[600s])) by (span_name))",
    "histogram_quantile(.9, sum(rate(traces_spanmetrics_latency_bucket{span_name=~\"/cart\"}[600s])) by (le))",
    "histogram_quantile(0.9, sum(rate(traces_service_graph_request_server_seconds_bucket{client=\"front\"}[1m])) by (le, client, server))",
    "sum by (client, server)(rate(traces_service_graph_request_total{client=\"front\",server=\"cart\"}[15s]))",
    "sum by (client) (rate(traces_service_graph_request_total{client=\"front\"}[30s])) OR sum by (client) (rate(traces_service_graph_request_total{server=\"x\"}[30s]))",
    "traces_spanmetrics_calls_total",
    "increase(traces_spanmetrics_calls_total[1m])",
    "irate(traces_spanmetrics_size_total[1m])",
    "traces_service_graph_request_failed_total / traces_service_graph_request_total * 100",
    "sum(traces_spanmetrics_latency_sum) / sum(traces_spanmetrics_latency_count)",
    "traces_spanmetrics_calls_total / on (service) group_left (span_name) traces_spanmetrics_size_total",
    "traces_spanmetrics_calls_total > bool 3 and on (service) traces_spanmetrics_size_total",
    "avg without (span_name) (traces_spanmetrics_latency_bucket{le=~\"0.00.*|.Inf\"})",
    "min_over_time(traces_spanmetrics_calls_total[10m]) + resets(traces_spanmetrics_calls_total[10m])",
    "quantile(0.3, traces_spanmetrics_latency_bucket) - stddev(traces_spanmetrics_latency_bucket)",
    "count(quantile_over_time(0.7, traces_spanmetrics_latency_bucket[20s]))",
    "delta(traces_spanmetrics_latency_sum[10s]) unless traces_spanmetrics_latency_sum > 1e9",
    "round(rate(traces_spanmetrics_latency_sum[20s]), 0.001) or vector(1)",
    "bottomk(1, traces_spanmetrics_size_total)",
    "time() - scalar(count(traces_spanmetrics_calls_total offset 2s))",
];

fn coati_answers_as_prometheus_does(prometheus: &Prometheus, backend: &Backend) -> Result<()> {
    let own = format!("http://{}/prometheus", backend.api);
    // Every sample until then has arrived.
    thread::sleep(Duration::from_secs(6));
    let end = otlp::now_ns() as f64 / 1e9 - 2.0;
    let mut answered = 0;
    for query in QUERIES {
        for back in [0.0, 0.7, 2.1] {
            let time = format!("&time={:.3}", end - back);
            let [theirs, ours] = [prometheus.base(), own.clone()].map(|base| query_at(&base, query, &time));
            let (theirs, ours) = (comparable(&theirs?), comparable(&ours?));
            let same = theirs.len() == ours.len()
                && theirs
                    .iter()
                    .zip(&ours)
                    .all(|(a, b)| a.0 == b.0 && (close(a.1, b.1) || a.1.is_nan() && b.1.is_nan()));
            answered += usize::from(!theirs.is_empty());
            ensure!(same, "{query} at {time}\nPrometheus: {theirs:?}\nCoati:      {ours:?}");
        }
    }
    ensure!(answered >= 3 * (QUERIES.len() - 4), "only {answered} answers have series");
    let keys = |base: &str| -> Result<serde_json::Value> {
        let names = http::get(&format!("{base}/api/v1/label/__name__/values"))?.json()?;
        let series = "traces_service_graph_request_server_seconds_sum";
        let labels = http::get(&format!("{base}/api/v1/labels?match[]={series}"))?.json()?;
        let names = names["data"].as_array().into_iter().flatten();
        // Native histograms have their bare names, which Coati does not keep.
        let names = names
            .filter(|name| !["latency", "seconds"].iter().any(|end| name.as_str().unwrap_or_default().ends_with(end)));
        Ok(serde_json::json!([names.collect::<Vec<_>>(), labels["data"]]))
    };
    let (theirs, ours) = (keys(&prometheus.base())?, keys(&own)?);
    ensure!(theirs == ours, "Prometheus: {theirs}\nCoati: {ours}");
    Ok(())
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Labels and values, sorted.
fn comparable(result: &serde_json::Value) -> Vec<(String, f64)> {
    let value = |value: &serde_json::Value| value.as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN);
    if let Some([_, scalar]) = result.as_array().map(Vec::as_slice).filter(|_| result[1].is_string()) {
        return vec![(String::new(), value(scalar))];
    }
    let series = result.as_array().into_iter().flatten();
    let mut series: Vec<_> = series.map(|series| (series["metric"].to_string(), value(&series["value"][1]))).collect();
    series.sort_by(|a, b| a.0.cmp(&b.0));
    series
}
