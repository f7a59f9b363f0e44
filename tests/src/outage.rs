//! The backend is away for a while, and the agent is killed in the middle of it: what comes of the spans that it had taken.
//!
//! A sender such as an SDK gives the agent spans by OTLP and sends again what is not acknowledged; meanwhile the agent sees
//! requests to a server. Both are counted at the end in a real backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::backend::Backend;
use crate::http;
use crate::process::free_port;
use crate::sample::{Sample, Server};

/// How it goes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long the backend is away; the agent is killed in the middle.
    pub outage: Duration,
    /// Spans of the sender per second.
    pub rate: u64,
    /// Requests per second that the agent sees.
    pub requests: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Spans of the sender that the agent acknowledged.
    pub acknowledged: u64,
    /// Of them, those that the backend has.
    pub arrived: u64,
    /// Those that it has not: how many, and how long before the kill they were acknowledged.
    pub missing: Vec<(u64, Duration)>,
    /// Requests that must have been seen.
    pub seen: u64,
    /// Of them, those of which there is no span: how long before the kill they ended, or behind the restart they began,
    /// milliseconds.
    pub not_seen: Vec<i64>,
    /// Spans that came to the backend more than once.
    pub twice: i64,
    /// What waited on disk when the backend came back, bytes.
    pub queued_bytes: f64,
    /// From the kill until the agent captured again.
    pub restarted_in: Duration,
    /// From the backend's return until nothing waited.
    pub drained_in: Duration,
}

/// Time between two requests of the sender.
const TICK: Duration = Duration::from_millis(100);
/// Most that may be between a span's coming to the queue and its being on disk: the agent's `batch_delay`, and what a busy
/// machine adds.
const ON_DISK_WITHIN: Duration = Duration::from_secs(1);
/// Most that may be between the end of a request and its span's coming to the queue: what is still told of it is waited for.
const QUEUED_WITHIN: Duration = Duration::from_secs(2);
/// How long it may take until all is there.
const DRAINED_WITHIN: Duration = Duration::from_mins(2);
const SERVICE: &str = "outage";

/// A request of the sender that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Sent {
    spans: u64,
    at: Instant,
}

impl Outcome {
    /// Fails unless all that the agent had queued has come.
    pub fn check(&self) -> Result<()> {
        let lost: Vec<_> = self.missing.iter().filter(|(_, before)| *before > ON_DISK_WITHIN).collect();
        ensure!(lost.is_empty(), "acknowledged and lost, and how long before the kill: {lost:?}");
        let Self { seen, not_seen, .. } = self;
        ensure!(
            not_seen.is_empty(),
            "of {seen} requests some have no span, ms before the kill or behind the restart: {not_seen:?}"
        );
        Ok(())
    }
}

/// Goes through an outage with these binaries; what was written stays in the folder.
pub fn run(binaries: &Path, folder: &Path, plan: &Plan) -> Result<Outcome> {
    let sample = Sample::start_only(&folder.join("sample"), &[Server::Go])?;
    let addresses = [free_port()?, free_port()?, free_port()?].map(local);
    let otlp = local(free_port()?);
    let variables = [
        ("COATI_AGENT_RECEIVE_LISTEN", otlp.to_string()),
        ("COATI_AGENT_EXPORT_QUEUE_DIRECTORY", folder.join("queue").display().to_string()),
        // What else runs here is not counted.
        ("BEYLA_OPEN_PORT", sample.address(Server::Go).port().to_string()),
    ];
    let [_, grpc, _] = addresses;
    let start = || Agent::start_from_with(binaries, folder, &format!("http://{grpc}"), &[], &variables);
    let mut agent = start()?;
    let stop = Arc::new(AtomicBool::new(false));
    let sender = {
        let (stop, plan, url) = (Arc::clone(&stop), *plan, format!("http://{otlp}/v1/traces"));
        thread::spawn(move || send(&url, &plan, &stop))
    };
    let client = {
        let (stop, plan, url) = (Arc::clone(&stop), *plan, sample.url(Server::Go));
        thread::spawn(move || ask(&url, &plan, &stop))
    };

    thread::sleep(plan.outage / 2);
    agent.process.kill()?;
    let killed = Instant::now();
    agent = start()?;
    let restarted = Instant::now();
    thread::sleep((plan.outage / 2).saturating_sub(killed.elapsed()));
    let queued_bytes = agent.metric("coati_agent_export_disk_bytes", &[])?;
    let mut backend = Backend::start_at(binaries, folder, &[], addresses)?;
    let back = Instant::now();
    thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let asked = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    thread::sleep(QUEUED_WITHIN + ON_DISK_WITHIN);
    while agent.metric("coati_agent_export_queue_length", &[])? > 0.0 {
        ensure!(back.elapsed() < DRAINED_WITHIN, "not sent within {DRAINED_WITHIN:?}:\n{}", agent.process.output());
        thread::sleep(Duration::from_millis(100));
    }
    let drained_in = back.elapsed();

    let has = arrived(&backend)?;
    let mut outcome = Outcome { queued_bytes, drained_in, restarted_in: restarted - killed, ..Outcome::default() };
    for (trace, Sent { spans, at }) in &sent {
        let there = has.get(trace).copied().unwrap_or_default();
        outcome.acknowledged += spans;
        outcome.arrived += there.min(*spans);
        if there < *spans {
            outcome.missing.push((spans - there, killed.saturating_duration_since(*at)));
        }
    }
    let paths = paths(&backend)?;
    for (path, (begin, end)) in &asked {
        let before_ms = killed.saturating_duration_since(*end).as_millis() as i64;
        let behind_ms = begin.saturating_duration_since(restarted).as_millis() as i64;
        if before_ms > (QUEUED_WITHIN + ON_DISK_WITHIN).as_millis() as i64 || behind_ms > 0 {
            outcome.seen += 1;
            if !paths.contains(path) {
                outcome.not_seen.push(if behind_ms > 0 { -behind_ms } else { before_ms });
            }
        }
    }
    let page = backend.get("/metrics")?.text();
    let came = crate::agent::sum(&page, "tempo_distributor_spans_received_total", &[]) as i64;
    // What is not acknowledged may be there too: a batch whose answer was lost was sent again with the same ids.
    outcome.twice = came - has.values().sum::<u64>().cast_signed() - paths.len() as i64;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    ensure!(backend.stop()?.success(), "the backend did not end well:\n{}", backend.process.output());
    Ok(outcome)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Sends a trace of spans at every tick, each until it is acknowledged.
fn send(url: &str, plan: &Plan, stop: &AtomicBool) -> Result<BTreeMap<String, Sent>> {
    let spans = plan.rate * TICK.as_millis() as u64 / 1000;
    let begin = Instant::now();
    let mut sent = BTreeMap::new();
    for tick in 1.. {
        thread::sleep((begin + TICK * tick).saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let trace = format!("{:032x}", (0xfeed_u128 << 64) | u128::from(tick));
        let body = request(&trace, spans);
        while !http::post(url, "application/json", &body).is_ok_and(|answer| answer.status == 200) {
            ensure!(!stop.load(Ordering::Relaxed), "{trace} is not taken");
            thread::sleep(TICK);
        }
        sent.insert(trace, Sent { spans, at: Instant::now() });
    }
    Ok(sent)
}

fn request(trace: &str, spans: u64) -> Vec<u8> {
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let span = |number: u64| {
        json!({
            "traceId": trace, "spanId": format!("{number:016x}"), "name": "work", "kind": 1,
            "startTimeUnixNano": (now_ns - 1_000_000).to_string(), "endTimeUnixNano": now_ns.to_string(),
            "attributes": [{"key": "number", "value": {"intValue": number.to_string()}}],
        })
    };
    let resource = json!({"attributes": [{"key": "service.name", "value": {"stringValue": SERVICE}}]});
    let spans: Vec<_> = (1..=spans).map(span).collect();
    json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}).to_string().into_bytes()
}

/// Asks for a path of its own each time; gives when.
fn ask(url: &str, plan: &Plan, stop: &AtomicBool) -> Result<BTreeMap<String, (Instant, Instant)>> {
    let mut asked = BTreeMap::new();
    let begin = Instant::now();
    for number in 0.. {
        thread::sleep(
            (begin + Duration::from_secs(number) / plan.requests as u32).saturating_duration_since(Instant::now()),
        );
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let path = format!("/stock/{}", 1_000_000 + number);
        let begin = Instant::now();
        let answer = http::get(&format!("{url}{path}"))?;
        ensure!(answer.status == 200, "{path}: status {}", answer.status);
        asked.insert(path, (begin, Instant::now()));
    }
    Ok(asked)
}

/// Spans of each trace of the sender that the backend has.
fn arrived(backend: &Backend) -> Result<BTreeMap<String, u64>> {
    let found = backend.search(&format!("{{ resource.service.name = \"{SERVICE}\" }}"), "&limit=262144&spss=1")?;
    let count = |trace: &Value| {
        let id = trace.get("traceID")?.as_str()?;
        Some((format!("{id:0>32}"), trace.pointer("/spanSets/0/matched")?.as_u64()?))
    };
    let traces = found.get("traces").and_then(Value::as_array).context("no traces")?;
    traces.iter().map(|trace| count(trace).with_context(|| trace.to_string())).collect()
}

/// Paths of the requests to the server of which there is a span.
fn paths(backend: &Backend) -> Result<BTreeSet<String>> {
    let query = "{ kind = server && span.url.path =~ \"/stock/1[0-9]+\" } | select(span.url.path)";
    let found = backend.search(query, "&limit=262144&spss=100")?;
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let traces = list(&found, "traces").into_iter();
    let spans = traces.flat_map(|trace| list(&trace, "spanSets")).flat_map(|set| list(&set, "spans"));
    let path = |span: Value| {
        let is_path = |attribute: &&Value| attribute.get("key").is_some_and(|key| key == "url.path");
        let value = list(&span, "attributes").iter().find(is_path)?.pointer("/value/stringValue")?.as_str()?.to_owned();
        Some(value)
    };
    Ok(spans.filter_map(path).collect())
}
