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
use coati_tests::prometheus::{Prometheus, query_at, value_of};
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
         storage:\n    remote_write:\n    - url: https://{}/api/v1/write\n      tls_config: {{ca_file: {}}}\n      \
         write_relabel_configs:\n      - {{action: drop, source_labels: [service], regex: hidden}}\n      \
         - {{source_labels: [service], regex: '(mark)ed', target_label: team, replacement: 'of-$1'}}\n",
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
    let own = format!("http://{}/prometheus", backend.api);
    let at = format!("&time={:.3}", otlp::now_ns() as f64 / 1e9);
    let samples = |base: &str| query_at(base, "sum(count_over_time(traces_spanmetrics_calls_total[10m]))", &at);
    let before = samples(&own)?;
    backend.stop()?;
    backend.restart()?;
    let after = samples(&format!("http://{}/prometheus", backend.api))?;
    ensure!(before == after && value_of(&before)? > 1.0, "own samples before a restart {before}, after it {after}");
    senders.send(&backend, 5)?;
    all_counted(&prometheus, &backend, senders.sent)?;
    let increase = prometheus.value(
        "sum(max_over_time(traces_spanmetrics_calls_total[10m]) - min_over_time(traces_spanmetrics_calls_total[10m]))",
    )?;
    ensure!((increase - 2.0 * senders.sent as f64).abs() < 1e-9, "from zero on: {increase}");
    let resets = prometheus.value("sum(resets(traces_spanmetrics_calls_total[10m]))")?;
    ensure!(resets == 0.0, "counters went back {resets} times");
    // What the rules of relabelling say is so in Prometheus, not here.
    for (number, service) in (1..).zip(["hidden", "marked"]) {
        otlp::store(&backend, &otlp::request(service, vec![otlp::span(0xbeef, number, "GET /")]))?;
    }
    wait_for(&prometheus, &backend, "count(traces_spanmetrics_calls_total{service=\"marked\",team=\"of-mark\"})", 1.0)?;
    let hidden = "count(traces_spanmetrics_calls_total{service=\"hidden\"})";
    let theirs = prometheus.value(hidden)?;
    let ours = value_of(&query_at(&format!("http://{}/prometheus", backend.api), hidden, "")?)?;
    ensure!((theirs, ours) == (0.0, 1.0), "hidden from Prometheus: {theirs}, from Coati's own: {ours}");
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
    "sum(traces_spanmetrics_nothing) or vector(0)",
    "label_replace(traces_spanmetrics_calls_total, \"route\", \"$1\", \"span_name\", \"[A-Z]* ?/(.*)\")",
    "label_join(traces_spanmetrics_size_total, \"edge\", \"/\", \"service\", \"span_kind\")",
    "absent(traces_spanmetrics_nothing{service=\"a\",span_name=~\"b\"})",
    "absent_over_time(traces_spanmetrics_nothing{service=\"a\"}[1m])",
    "max_over_time(rate(traces_spanmetrics_calls_total[10s])[20s:1s])",
    "avg_over_time(sum by (service) (traces_spanmetrics_size_total)[10s:2s] offset 1s)",
    "count_values(\"n\", traces_spanmetrics_calls_total)",
    "deriv(traces_spanmetrics_latency_sum[20s])",
    "predict_linear(traces_spanmetrics_calls_total[20s], 60)",
    "holt_winters(traces_spanmetrics_calls_total[20s], 0.5, 0.3)",
    "stddev_over_time(traces_spanmetrics_calls_total[10m]) + stdvar_over_time(traces_spanmetrics_size_total[10m])",
    "timestamp(traces_spanmetrics_calls_total)",
    "clamp(traces_spanmetrics_calls_total, 1, 20) + sgn(traces_spanmetrics_calls_total - 100)",
    "hour() * 60 + minute() + day_of_week() + day_of_month() + day_of_year() + days_in_month() + month() + year()",
    "sort_desc(sum by (span_name) (traces_spanmetrics_calls_total))",
    "sum by (service) (rate(traces_spanmetrics_calls_total[30s])) > 0 and topk(1, sum by (service) (traces_spanmetrics_size_total))",
    "histogram_quantile(0.5, sum by (service, le) (increase(traces_spanmetrics_latency_bucket[600s])))",
    "traces_spanmetrics_calls_total @ end() - traces_spanmetrics_calls_total offset 1s",
];

/// Over a time: what a dashboard's graphs ask, with forms that `$__rate_interval` takes.
const RANGES: &[&str] = &[
    "sum by (client, server) (rate(traces_service_graph_request_total{}[15s]))",
    "sum by (service) (rate(traces_spanmetrics_calls_total{span_kind=\"SPAN_KIND_SERVER\"}[1m0s]))",
    "histogram_quantile(0.95, sum by (le, service) (rate(traces_spanmetrics_latency_bucket[30s])))",
    "topk(1, sum by (service) (increase(traces_spanmetrics_size_total[20s])))",
    "sum(rate(traces_spanmetrics_calls_total{status_code=\"STATUS_CODE_ERROR\"}[1m])) or vector(0)",
    "traces_service_graph_request_total offset 3s",
    "label_replace(sum by (span_name) (traces_spanmetrics_size_total), \"name\", \"$1\", \"span_name\", \"(.*)\")",
    "max_over_time(sum(rate(traces_spanmetrics_calls_total[5s]))[10s:1s])",
    "traces_spanmetrics_calls_total @ end()",
    "time() % 10",
];

/// What both refuse, and with what kind of error: the status, and `errorType`.
const REFUSED: &[(&str, u16, &str)] = &[
    ("query?query=sum(", 400, "bad_data"),
    ("query?query=nothing_like_that(up)", 400, "bad_data"),
    ("query?query=label_replace(traces_spanmetrics_calls_total,%22a%20b%22,%22%22,%22%22,%22%22)", 422, "execution"),
    ("query?query=rate(%7B__name__=~%22traces_spanmetrics_(calls%7Csize)_total%22%7D[5m])", 422, "execution"),
    ("query?query=traces_spanmetrics_calls_total%20/%20on(x)%20traces_spanmetrics_size_total", 422, "execution"),
    ("query_range?query=up[5m]&start=0&end=10&step=1", 400, "bad_data"),
    ("query_range?query=up&start=0&end=100000&step=1", 400, "bad_data"),
    ("query_range?query=up&start=10&end=0&step=1", 400, "bad_data"),
    ("series", 400, "bad_data"),
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
    ensure!(answered >= 3 * (QUERIES.len() - 6), "only {answered} answers have series");
    for query in RANGES {
        let (start, end) = ((end - 25.0).round(), end.round() - 1.0);
        let path = format!("/api/v1/query_range?query={}&start={start}&end={end}&step=1.5", http::encode(query));
        let ask = |base: &str| -> Result<serde_json::Value> { http::get(&format!("{base}{path}"))?.json() };
        let (theirs, ours) = (points(&ask(&prometheus.base())?), points(&ask(&own)?));
        ensure!(!theirs.is_empty(), "{query}: Prometheus finds nothing");
        let same = theirs.len() == ours.len()
            && theirs
                .iter()
                .zip(&ours)
                .all(|(a, b)| (&a.0, a.1) == (&b.0, b.1) && (close(a.2, b.2) || a.2.is_nan() && b.2.is_nan()));
        ensure!(same, "{query} from {start} to {end}\nPrometheus: {theirs:?}\nCoati:      {ours:?}");
    }
    for (path, status, kind) in REFUSED {
        for base in [prometheus.base(), own.clone()] {
            let answer = http::get(&format!("{base}/api/v1/{path}"))?;
            let (found, text) = (answer.status, answer.text());
            let answer = answer.json()?;
            let is_as_told = found == *status && answer["status"] == "error" && answer["errorType"] == *kind;
            ensure!(is_as_told, "{base}: {path}: {found} {text}");
        }
    }
    let keys = |base: &str| -> Result<serde_json::Value> {
        let series = http::get(&format!(
            "{base}/api/v1/series?match[]=traces_service_graph_request_total&match[]=%7B__name__=~%22.*size_total%22,service!=%22front%22%7D"
        ))?;
        let series = series.json()?["data"].clone();
        let values =
            http::get(&format!("{base}/api/v1/label/service/values?match[]=traces_spanmetrics_calls_total"))?.json()?;
        let names = http::get(&format!("{base}/api/v1/label/__name__/values"))?.json()?;
        let sum = "traces_service_graph_request_server_seconds_sum";
        let labels = http::get(&format!("{base}/api/v1/labels?match[]={sum}"))?.json()?;
        let names = names["data"].as_array().into_iter().flatten();
        // Native histograms have their bare names, which Coati does not keep.
        let names = names
            .filter(|name| !["latency", "seconds"].iter().any(|end| name.as_str().unwrap_or_default().ends_with(end)));
        Ok(serde_json::json!([names.collect::<Vec<_>>(), labels["data"], series, values["data"]]))
    };
    let (theirs, ours) = (keys(&prometheus.base())?, keys(&own)?);
    ensure!(theirs == ours, "Prometheus: {theirs}\nCoati: {ours}");
    Ok(())
}

/// Labels, time and value of each point of a range, sorted.
fn points(answer: &serde_json::Value) -> Vec<(String, i64, f64)> {
    let series = answer["data"]["result"].as_array().into_iter().flatten();
    let mut points = Vec::new();
    for series in series {
        for point in series["values"].as_array().into_iter().flatten() {
            let time = (point[0].as_f64().unwrap_or_default() * 1e3).round() as i64;
            let value = point[1].as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN);
            points.push((series["metric"].to_string(), time, value));
        }
    }
    points.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    points
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
