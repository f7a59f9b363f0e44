//! Guarantee: every panel of the dashboards finds data, every alert names metrics that are there, and the service map has
//! the right edges and rates, from a real Prometheus and from the backend's own answers.

#![expect(clippy::indexing_slicing, reason = "indexing JSON gives null, it never panics")]

mod otlp;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::dashboards::{self, Dashboard, Kind, Panel, Source};
use coati_tests::http;
use coati_tests::inference::{Inference, simulated_gpu};
use coati_tests::metrics_page;
use coati_tests::process::{self, Running};
use coati_tests::prometheus::{Prometheus, query_at, value_of};
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::system;
use promql_parser::label::MatchOp;
use promql_parser::parser::{Expr, VectorSelector, parse};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::{Value, json};

/// Requests through all services, and requests that fail, that the test sends.
const ORDERS: u32 = 25;
const BROKEN: u32 = 10;

/// Metrics that have series only once something has happened that this test does not bring about. Their names are checked
/// all the same.
const QUIET: [&str; 9] = [
    "coati_agent_anomalies_total",
    "coati_backend_remote_write_lost_samples_total",
    "coati_backend_remote_write_newest_sample_timestamp_seconds",
    "coati_backend_remote_write_queue_bytes",
    "tempo_metrics_generator_registry_entities_limited_total",
    "tempo_metrics_generator_registry_label_values_limited_total",
    "tempo_metrics_generator_registry_series_limited_total",
    "tempodb_compaction_bytes_written_total",
    "tempodb_compaction_outstanding_blocks",
];

/// Everything that runs.
struct System {
    backend: Backend,
    agent: Agent,
    prometheus: Prometheus,
    sample: Sample,
    models: Inference,
    _other: Running,
    _folder: tempfile::TempDir,
}

impl System {
    fn start() -> Result<Self> {
        let folder = process::folder()?;
        let path = folder.path();
        let config = path.join("backend.yaml");
        let text = "metrics_generator:\n  registry: {collection_interval: 1s, max_cardinality_per_label: 1000}\n  \
                    span_name_sanitization: dry_run\n  processor: {service_graphs: {wait: 1s}}\n";
        fs::write(&config, text)?;
        let flags = ["--config", &config.to_string_lossy(), "--cut-idle=1s", "--cut-max-wait=1s"];
        let backend = Backend::start(path, &flags)?;
        let models = Inference::start(path)?;
        let other = Running::start("sleep", path, Command::new("sleep").arg("120"))?;

        let built = std::env::current_exe()?.with_file_name("libcoati_fake_nvml.so");
        let timeline = timeline(models.process.id(), other.id()).to_string();
        let library = simulated_gpu(path, &built, &timeline)?;
        let config = path.join("agent.yaml");
        fs::write(&config, format!("gpu:\n  library: {}\n", library.display()))?;
        let flags = ["--config", &config.to_string_lossy()];
        let agent = Agent::start(path, &format!("http://{}", backend.grpc), &flags)?;
        let prometheus = prometheus(path, &backend, &agent)?;
        let sample = Sample::start(&path.join("sample"))?;
        // It begins to fetch some seconds after its start.
        within(WITHIN, || {
            let up = prometheus.query("up == 1")?;
            ensure!(up.as_array().is_some_and(|targets| targets.len() == 3), "not all targets are up: {up}");
            Ok(())
        })?;
        Ok(Self { backend, agent, prometheus, sample, models, _other: other, _folder: folder })
    }

    /// Requests of every kind that a panel shows.
    fn traffic(&self) -> Result<()> {
        let nginx = self.sample.url(Server::Nginx);
        // A caller that sends no spans.
        otlp::store(&self.backend, &otlp::request("edge", vec![otlp::span(0xedce, 1, "GET /")]))?;
        for round in 0..ORDERS {
            http::get(&format!("{nginx}/orders/{round}"))?;
            if round % 5 == 0 {
                http::get(&format!("{nginx}/slow"))?;
                let headers = [("x-load-ms", "20"), ("x-prompt-ms", "20"), ("x-tokens", "20"), ("x-gap-us", "5000")];
                let body = br#"{"model":"llama3.2","messages":[]}"#;
                let answer = http::post_with(&format!("{}/api/chat", self.models.url()), &headers, body)?;
                ensure!(answer.status == 200, "inference: {}", answer.text());
            }
            thread::sleep(Duration::from_millis(50));
        }
        for _ in 0..BROKEN {
            http::get(&format!("{nginx}/broken"))?;
        }
        // A span that cannot be stored, a request that is no OTLP.
        let wrong = otlp::request("edge", vec![otlp::span(0, 0, "GET /")]);
        otlp::send_request(&self.backend, &wrong)?;
        otlp::send(&self.backend, &[("content-type", otlp::PROTOBUF)], b"no protobuf")?;
        Ok(())
    }

    /// Prometheus with metrics of spans, and the backend that answers the same.
    fn bases(&self) -> [(&'static str, String); 2] {
        [("Prometheus", self.prometheus.base()), ("Coati", format!("http://{}/prometheus", self.backend.api))]
    }
}

/// A GPU that two processes share.
fn timeline(pid: u32, other: u32) -> Value {
    let process = |pid: u32, sm: u32| json!({"pid": pid, "memory": 1_u64 << 30, "sm": sm});
    let step = json!({"at_ms": 0, "utilization": 80, "memory_used": 6_u64 << 30, "memory_total": 24_u64 << 30,
        "power_mw": 250_000, "temperature": 61, "sm_clock": 1500, "memory_clock": 9000, "throttle": 0,
        "ecc_corrected": 0, "ecc_uncorrected": 0, "processes": [process(pid, 60), process(other, 20)]});
    json!({"origin_ns": 0, "driver_version": "simulated",
        "devices": [{"uuid": "GPU-simulated", "name": "SIMULATED GPU", "steps": [step]}]})
}

/// Prometheus with the scrape configuration and the rules of `deploy/`, on the addresses of this test.
fn prometheus(folder: &std::path::Path, backend: &Backend, agent: &Agent) -> Result<Prometheus> {
    let deploy = dashboards::deploy().join("prometheus");
    let config = fs::read_to_string(deploy.join("prometheus.yml"))?;
    let config = config.replace("127.0.0.1:9400", &agent.listen.to_string());
    let config = config.replace("127.0.0.1:3200", &backend.api.to_string());
    let config = config.replace("_interval: 15s", "_interval: 1s");
    let rules = fs::read_to_string(deploy.join("rules.yml"))?;
    Prometheus::start_with(folder, &[("prometheus.yml", &config), ("rules.yml", &rules)])
}

/// Tries until it is well; gives the last error when the time is over.
fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) if begin.elapsed() > limit => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

const WITHIN: Duration = Duration::from_secs(15);

#[test]
fn every_panel_finds_data_and_every_alert_is_about_something() -> Result<()> {
    let system = System::start()?;
    system.traffic()?;
    the_service_map_is_right(&system)?;

    let mut wrong = Vec::new();
    let known = metrics_page::documented()?;
    for (file, dashboard) in dashboards::dashboards()? {
        for variable in &dashboard.variables {
            let (metric, label) = variable.metric_and_label().context("a variable that is no label_values(…, …)")?;
            for (server, base) in bases(&system, variable.source) {
                let found = within(WITHIN, || {
                    let answer = http::get(&format!("{base}/api/v1/label/{label}/values?match[]={metric}"))?.json()?;
                    ensure!(answer["data"].as_array().is_some_and(|values| !values.is_empty()), "no values: {answer}");
                    Ok(())
                });
                wrong.extend(found.err().map(|error| format!("{file}, ${} of {server}: {error}", variable.name)));
            }
        }
        for panel in dashboard.panels() {
            for query in &panel.queries {
                let expr = filled(&dashboard, &query.expr);
                let result = within(WITHIN, || ask(&system, panel, &expr, &known));
                wrong.extend(result.err().map(|error| format!("{file}, {}: {expr}\n    {error:#}", panel.title)));
            }
        }
    }
    wrong.extend(of_rules(&system, &known).err().map(|error| format!("{error:#}")));
    wrong.extend(undocumented(&system, &known)?);
    ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Each alert has series for which it fires and others for which it does not; Prometheus' own tool runs them.
#[test]
fn alerts_fire_for_what_they_are_about() -> Result<()> {
    let folder = dashboards::deploy().join("prometheus");
    let promtool = |arguments: &[&str]| -> Result<()> {
        let output = Command::new(system("promtool")?).args(arguments).current_dir(&folder).output()?;
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).join("\n");
        ensure!(output.status.success(), "promtool {arguments:?}: {said}");
        Ok(())
    };
    promtool(&["check", "config", "prometheus.yml"])?;
    promtool(&["test", "rules", "rules_test.yml"])?;
    let tests = fs::read_to_string(folder.join("rules_test.yml"))?;
    for rule in dashboards::rules()?.groups.iter().flat_map(|group| &group.rules) {
        let fires = format!("alertname: {}\n    exp_alerts:", rule.alert);
        ensure!(tests.contains(&fires), "no test in which {} fires", rule.alert);
    }
    Ok(())
}

/// With every variable at "all", and times that fit the test.
fn filled(dashboard: &Dashboard, expr: &str) -> String {
    let expr = expr.replace("$__rate_interval", "30s").replace("$__range", "5m");
    dashboard.variables.iter().fold(expr, |expr, variable| expr.replace(&format!("${}", variable.name), ".*"))
}

fn bases(system: &System, source: Source) -> Vec<(&'static str, String)> {
    let [prometheus, coati] = system.bases();
    if source == Source::Spans { vec![prometheus, coati] } else { vec![prometheus] }
}

/// Fails unless a panel's query finds something.
fn ask(system: &System, panel: &Panel, expr: &str, known: &BTreeSet<String>) -> Result<()> {
    match (panel.source, panel.kind) {
        // Grafana asks for it: `the_service_map_is_right`.
        (Source::Tempo, Kind::ServiceMap) => Ok(()),
        (Source::Tempo, _) => ask_traceql(&system.backend, expr),
        (source, _) => {
            for (server, base) in bases(system, source) {
                ask_promql(&base, panel, expr).with_context(|| server)?;
            }
            selectors(expr)?.iter().try_for_each(|selector| is_there(&system.prometheus, selector, known))
        }
    }
}

/// As Grafana tells the two apart.
fn ask_traceql(backend: &Backend, query: &str) -> Result<()> {
    let now = otlp::now_ns() / 1_000_000_000;
    let window = format!("&start={}&end={}", now - 300, now + 1);
    let is_metrics =
        ["rate", "histogram_over_time", "avg_over_time"].iter().any(|it| query.contains(&format!("| {it}(")));
    if !is_metrics {
        let found = backend.search(query, &format!("{window}&limit=20&spss=3"))?;
        ensure!(found["traces"].as_array().is_some_and(|traces| !traces.is_empty()), "no traces");
        return Ok(());
    }
    let answer = backend.get(&format!("/api/metrics/query_range?q={}{window}&step=5s", http::encode(query)))?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    let answer = answer.json()?;
    let series = answer["series"].as_array().cloned().unwrap_or_default();
    let has_value = |series: &Value| {
        let samples = series["samples"].as_array().cloned().unwrap_or_default();
        samples.iter().any(|sample| sample["value"].as_f64().is_some_and(|value| value > 0.0))
    };
    ensure!(series.iter().any(has_value), "no values: {answer}");
    let nil = |series: &Value| series["labels"].to_string().contains("\"nil\"");
    ensure!(!series.iter().all(nil), "grouped by an attribute that no span has: {answer}");
    Ok(())
}

fn ask_promql(base: &str, panel: &Panel, expr: &str) -> Result<()> {
    if panel.is_instant() {
        let found = query_at(base, expr, "")?;
        ensure!(found.as_array().is_some_and(|series| !series.is_empty()), "nothing");
        return Ok(());
    }
    let now = otlp::now_ns() / 1_000_000_000;
    let url = format!("{base}/api/v1/query_range?query={}&start={}&end={now}&step=1", http::encode(expr), now - 20);
    let answer = http::get(&url)?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    let answer = answer.json()?;
    let series = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    let values = series.iter().flat_map(|series| series["values"].as_array().cloned().unwrap_or_default());
    let is_number = |value: &Value| value[1].as_str().and_then(|it| it.parse().ok()).is_some_and(f64::is_finite);
    ensure!(values.collect::<Vec<_>>().iter().any(is_number), "nothing");
    Ok(())
}

/// What a query selects, each without its range.
fn selectors(expr: &str) -> Result<Vec<VectorSelector>> {
    struct Found(Vec<VectorSelector>);
    impl ExprVisitor for Found {
        type Error = anyhow::Error;

        fn pre_visit(&mut self, expr: &Expr) -> Result<bool> {
            match expr {
                Expr::VectorSelector(selector) => self.0.push(selector.clone()),
                Expr::MatrixSelector(selector) => self.0.push(selector.vs.clone()),
                _ => {}
            }
            Ok(true)
        }
    }
    let mut found = Found(Vec::new());
    walk_expr(&mut found, &parse(expr).map_err(anyhow::Error::msg)?)?;
    ensure!(!found.0.is_empty(), "{expr} selects nothing");
    Ok(found.0)
}

/// Fails unless somebody exports what is selected.
fn is_there(prometheus: &Prometheus, selector: &VectorSelector, known: &BTreeSet<String>) -> Result<()> {
    let name = selector.name.as_deref().context("a selector without a name")?;
    ensure!(name == "up" || known.contains(name), "docs/metrics.md has no {name}");
    if !QUIET.contains(&name) {
        let value = prometheus.value(&format!("count({selector})"))?;
        ensure!(value > 0.0, "no series of {selector}");
    }
    Ok(())
}

/// Every alert is evaluated without an error, is about metrics that are there, and the one whose cause the test brought
/// about fires.
fn of_rules(system: &System, known: &BTreeSet<String>) -> Result<()> {
    for rule in dashboards::rules()?.groups.iter().flat_map(|group| &group.rules) {
        for mut selector in selectors(&rule.expr)? {
            // Neither the time nor the outcome that it is about may have come yet.
            selector.offset = None;
            selector.matchers.matchers.retain(|matcher| matcher.op == MatchOp::Equal && matcher.name == "job");
            is_there(&system.prometheus, &selector, known).with_context(|| rule.alert.clone())?;
        }
    }
    within(WITHIN, || {
        let answer = http::get(&format!("{}/api/v1/rules", system.prometheus.base()))?.json()?;
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        let rules: Vec<Value> =
            groups.iter().filter_map(|group| group["rules"].as_array().cloned()).flatten().collect();
        ensure!(rules.len() >= 15 && rules.iter().all(|rule| rule["health"] == "ok"), "not evaluated: {answer}");
        let firing = |name: &str| rules.iter().any(|rule| rule["name"] == name && rule["state"] == "firing");
        ensure!(firing("CoatiRejectsSpans"), "CoatiRejectsSpans does not fire: {answer}");
        ensure!(!firing("CoatiAgentDropsSpans"), "CoatiAgentDropsSpans fires: {answer}");
        Ok(())
    })
}

/// What agent and backend show and `docs/metrics.md` does not have.
fn undocumented(system: &System, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for page in [system.agent.metrics()?, system.backend.get("/metrics")?.text()] {
        for (name, metric) in metrics_page::metrics(&page)? {
            let name = metrics_page::exposed(&name, &metric.kind);
            let has = known.contains(&name) || known.contains(&format!("{name}_bucket"));
            wrong.extend((!has).then(|| format!("docs/metrics.md has no {name}: {}", metrics_page::HOW)));
        }
    }
    Ok(wrong)
}

/// Edges by client and server, and their values.
fn edges(base: &str, query: &str) -> Result<BTreeMap<(String, String), f64>> {
    let found = query_at(base, query, "")?;
    let edge = |series: &Value| {
        let label = |name: &str| series["metric"][name].as_str().unwrap_or_default().to_owned();
        ((label("client"), label("server")), value_of(&json!([series])).unwrap_or(f64::NAN))
    };
    Ok(found.as_array().into_iter().flatten().map(edge).collect())
}

/// The eight queries of Grafana's service map and those of its table, asked of both.
fn the_service_map_is_right(system: &System) -> Result<()> {
    let edge = |client: Server, server: Server| (client.service_name().to_owned(), server.service_name().to_owned());
    let orders = f64::from(ORDERS);
    // `/slow` and `/broken` end at the second service.
    let expected = BTreeMap::from([
        (edge(Server::Nginx, Server::FastApi), orders + orders / 5.0 + f64::from(BROKEN)),
        (edge(Server::FastApi, Server::Node), orders),
        (edge(Server::Node, Server::Go), orders),
    ]);
    for (server, base) in system.bases() {
        within(WITHIN, || {
            let counted = edges(&base, "traces_service_graph_request_total")?;
            for (edge, count) in &expected {
                let found = counted.get(edge).copied().unwrap_or_default();
                ensure!((found - count).abs() < 0.1, "{edge:?}: {found} requests, not {count}: {counted:?}");
            }
            let outside = ("user".to_owned(), "edge".to_owned());
            ensure!(counted.contains_key(&outside), "no {outside:?}: {counted:?}");
            Ok(())
        })
        .context(server)?;
        // A rate takes two samples.
        within(WITHIN, || map(&base, &expected)).context(server)?;
        within(WITHIN, || table(&base)).context(server)?;
    }
    Ok(())
}

fn map(base: &str, expected: &BTreeMap<(String, String), f64>) -> Result<()> {
    for metric in ["server_seconds_sum", "total", "failed_total", "server_seconds_bucket"] {
        let metric = format!("traces_service_graph_request_{metric}");
        let rates = edges(base, &format!("sum by (client, server) (rate({metric}{{}}[60s]))"))?;
        let groups = edges(base, &format!("group by (client, connection_type, server) ({metric}{{}})"))?;
        ensure!(rates.keys().eq(groups.keys()), "{metric}: {rates:?} and {groups:?}");
        for (edge, count) in expected {
            let rate = rates.get(edge).copied().with_context(|| format!("{metric}: no {edge:?}"))?;
            // All of them came within the last minute, from a sample of zero on; a rate is extrapolated by a sample or two.
            let range = match metric.rsplit('_').next() {
                Some("total") if metric.contains("failed") && edge.0 == "nginx" => f64::from(BROKEN) / 60.0..20.0,
                Some("total") if metric.contains("failed") => -1e-9..1e-9,
                Some("total") => 0.99 * count / 60.0..1.7 * count / 60.0,
                _ => 1e-6..1e3,
            };
            ensure!(range.contains(&rate), "{metric} of {edge:?}: {rate} is not in {range:?}");
        }
    }
    let filter = "client=\"nginx\",server=\"shop\"";
    let rate =
        edges(base, &format!("sum by (client, server)(rate(traces_service_graph_request_total{{{filter}}}[60s]))"))?;
    ensure!(rate.len() == 1, "links of an edge: {rate:?}");
    let slow = format!(
        "histogram_quantile(0.9, sum(rate(traces_service_graph_request_server_seconds_bucket{{{filter}}}[60s])) by (le, client, server))"
    );
    let slow = edges(base, &slow)?;
    ensure!(slow.values().all(|seconds| (0.0..1.0).contains(seconds)) && slow.len() == 1, "p90: {slow:?}");
    Ok(())
}

fn table(base: &str) -> Result<()> {
    let names = |query: &str| -> Result<BTreeSet<String>> {
        let found = query_at(base, query, "")?;
        let name = |series: &Value| series["metric"]["span_name"].as_str().map(str::to_owned);
        Ok(found.as_array().into_iter().flatten().filter_map(name).collect())
    };
    let top = "topk(5, sum(rate(traces_spanmetrics_calls_total{service=\"shop\",span_kind=\"SPAN_KIND_SERVER\"}[60s])) by (span_name))";
    let top = names(top)?;
    let all = ["GET /broken", "GET /orders/{id}", "GET /slow"].map(str::to_owned);
    ensure!(top == BTreeSet::from(all), "routes: {top:?}");
    let failed = "topk(5, sum(rate(traces_spanmetrics_calls_total{status_code=\"STATUS_CODE_ERROR\",service=\"shop\",\
                  span_name=~\"GET /broken|GET /slow\"}[60s])) by (span_name))";
    ensure!(names(failed)?.contains("GET /broken"), "failed routes");
    let slow = "histogram_quantile(.9, sum(rate(traces_spanmetrics_latency_bucket{service=\"shop\",span_name=~\"GET /slow\"}[60s])) by (le))";
    let seconds = value_of(&query_at(base, slow, "")?)?;
    if !(0.128..=0.256).contains(&seconds) {
        bail!("p90 of 150 ms: {seconds}");
    }
    Ok(())
}
