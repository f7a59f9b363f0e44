//! Guarantee: a span whose export request was acknowledged is found after `kill -9`, whole and once.
//!
//! Writers export without a pause, over HTTP and gRPC, while the backend is killed 200 times at random moments: while it
//! takes spans, cuts traces into blocks, merges blocks, deletes old ones, and while it starts and replays its log. A request
//! that got no answer is not sent again: it may be there or not, but not twice. The spans of one tenant are kept and looked
//! for; those of another one are deleted after a second, so that there is always something to delete.

mod otlp;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::tools::{binaries, binary};
use fastrand::Rng;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;
use tonic::metadata::MetadataValue;

const KILLS: u32 = 200;
const HTTP_WRITERS: u64 = 4;

/// Whose spans are looked for.
const KEPT: &str = "kept";

/// Whose spans are deleted after a second.
const PASSING: &str = "passing";

const TENANT: &str = "x-scope-orgid";

/// Everything happens within a second. Retention of the kept tenant is the default, a week.
const CONFIG: &str = "multitenancy: true
cut: {idle: 1s, max_age: 2s, max_wait: 1s, block_bytes: 16KiB}
retention: {tenants: {passing: {age: 1s}}}
";

/// Threads that read back what was written.
const READERS: usize = 4;

/// Trace and span id.
type Key = (u128, u64);

/// What a writer sent: the spans by their ids, and whether they were acknowledged.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeMap<Key, Span>,
    unanswered: BTreeSet<Key>,
    failed_requests: u64,
}

/// Makes requests: a few traces of their own each, and one span for the writer's trace that never ends.
struct Writer {
    number: u64,
    tenant: &'static str,
    rng: Rng,
    spans: u64,
    sent: Sent,
}

impl Writer {
    fn new(number: u64, tenant: &'static str, seed: u64) -> Self {
        Self { number, tenant, rng: Rng::with_seed(seed + number), spans: 0, sent: Sent::default() }
    }

    fn endless_trace(&self) -> u128 {
        u128::from(self.number + 1) << 64
    }

    fn next(&mut self) -> Vec<(Key, Span)> {
        let mut spans = Vec::new();
        for _ in 0..self.rng.u32(1..4) {
            let trace = self.rng.u128(1..);
            for _ in 0..self.rng.u32(1..6) {
                spans.push(self.span(trace));
            }
        }
        spans.push(self.span(self.endless_trace()));
        spans
    }

    fn span(&mut self, trace: u128) -> (Key, Span) {
        self.spans += 1;
        let id = (self.number << 48) + self.spans;
        let mut span = otlp::span(trace, id, "GET /items/{id}");
        let mut random = vec![0; self.rng.usize(0..200)];
        self.rng.fill(&mut random);
        span.attributes.push(otlp::attribute("random", Any::BytesValue(random)));
        ((trace, id), span)
    }

    fn note(&mut self, spans: Vec<(Key, Span)>, acknowledged: bool) {
        if acknowledged {
            self.sent.acknowledged.extend(spans);
        } else {
            self.sent.unanswered.extend(spans.into_iter().map(|(key, _)| key));
            self.sent.failed_requests += 1;
        }
    }

    fn write_http(mut self, address: SocketAddr, stop: &AtomicBool, acknowledged: &AtomicU64) -> Sent {
        while !stop.load(Ordering::Relaxed) {
            let spans = self.next();
            let body = request(&spans).encode_to_vec();
            let headers = [("content-type", otlp::PROTOBUF), (TENANT, self.tenant)];
            let answer = http::post_with(&format!("http://{address}/v1/traces"), &headers, &body);
            let stored = answer.is_ok_and(|answer| {
                answer.status == 200 && otlp::rejection(&answer).is_ok_and(|rejected| rejected.is_none())
            });
            acknowledged.fetch_add(u64::from(stored), Ordering::Relaxed);
            self.note(spans, stored);
            thread::sleep(Duration::from_millis(self.rng.u64(5..50)));
        }
        self.sent
    }

    async fn write_grpc(mut self, address: SocketAddr, stop: &AtomicBool, acknowledged: &AtomicU64) -> Sent {
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut client) = TraceServiceClient::connect(format!("http://{address}")).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            loop {
                let spans = self.next();
                let mut request = tonic::Request::new(request(&spans));
                request.metadata_mut().insert(TENANT, MetadataValue::from_static(self.tenant));
                let stored = client.export(request).await.is_ok_and(|answer| {
                    answer.into_inner().partial_success.is_none_or(|part| part.rejected_spans == 0)
                });
                acknowledged.fetch_add(u64::from(stored), Ordering::Relaxed);
                self.note(spans, stored);
                if !stored || stop.load(Ordering::Relaxed) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(self.rng.u64(5..50))).await;
            }
        }
        self.sent
    }
}

fn request(spans: &[(Key, Span)]) -> ExportTraceServiceRequest {
    otlp::request("killed", spans.iter().map(|(_, span)| span.clone()).collect())
}

#[test]
fn acknowledged_spans_survive_two_hundred_kills() -> Result<()> {
    let seed = std::env::var("COATI_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(otlp::now_ns);
    println!("seed {seed}: set COATI_TEST_SEED to repeat it");
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("backend.yaml");
    fs::write(&config, CONFIG)?;
    let mut backend = Backend::start(folder.path(), &["--config", &config.to_string_lossy()])?;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));

    let mut writers: Vec<thread::JoinHandle<Sent>> = Vec::new();
    for number in 0..HTTP_WRITERS {
        let (stop, acknowledged, address) = (Arc::clone(&stop), Arc::clone(&acknowledged), backend.otlp_http);
        let writer = Writer::new(number, KEPT, seed);
        writers.push(thread::spawn(move || writer.write_http(address, &stop, &acknowledged)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    writers.push(thread::spawn({
        let (stop, acknowledged, address) = (Arc::clone(&stop), Arc::clone(&acknowledged), backend.grpc);
        let writer = Writer::new(HTTP_WRITERS, KEPT, seed);
        move || runtime.block_on(writer.write_grpc(address, &stop, &acknowledged))
    }));
    let passing = thread::spawn({
        let (stop, acknowledged, address) = (Arc::clone(&stop), Arc::new(AtomicU64::new(0)), backend.otlp_http);
        let writer = Writer::new(HTTP_WRITERS + 1, PASSING, seed);
        move || writer.write_http(address, &stop, &acknowledged)
    });

    let mut rng = Rng::with_seed(seed);
    let mut kills_under_ingest = 0;
    for kill in 0..KILLS {
        let before = acknowledged.load(Ordering::Relaxed);
        thread::sleep(Duration::from_micros(rng.u64(0..life_micros(kill))));
        ensure!(backend.process.is_running(), "the backend ended by itself:\n{}", backend.process.output());
        kills_under_ingest += u32::from(acknowledged.load(Ordering::Relaxed) > before);
        backend.process.kill()?;
        if kill % 4 == 2 {
            backend.launch()?;
        } else {
            backend.restart().with_context(|| format!("start after kill {kill}"))?;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Sent::default();
    for writer in writers {
        let sent = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
        all.acknowledged.extend(sent.acknowledged);
        all.unanswered.extend(sent.unanswered);
        all.failed_requests += sent.failed_requests;
    }
    let passing = passing.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
    // Nothing is answered from memory that was there before.
    backend.process.kill()?;
    backend.restart()?;

    let spans = all.acknowledged.len();
    let commits = fs::read_dir(backend.data().join("store/manifest"))?.count();
    let log = backend.process.output();
    let times = |what: &str| log.matches(what).count();
    println!(
        "{KILLS} kills, {kills_under_ingest} of them with acknowledgements just before; {} requests and {spans} spans \
         acknowledged, {} requests without an answer; {commits} commits, blocks merged {} times, deleted {} times",
        acknowledged.load(Ordering::Relaxed),
        all.failed_requests,
        times("blocks compacted"),
        times("old blocks deleted"),
    );
    ensure!(kills_under_ingest >= KILLS / 3, "only {kills_under_ingest} kills came under ingest");
    ensure!(all.failed_requests >= u64::from(KILLS / 3), "hardly a request was under way at a kill");
    ensure!(times("blocks compacted") >= 3, "blocks were merged {} times only", times("blocks compacted"));
    ensure!(times("old blocks deleted") >= 10, "blocks were deleted {} times only", times("old blocks deleted"));
    all.check(&backend)?;
    // Once all are in blocks, one more time; and with nothing of the other tenant left.
    wait_until_cut(&backend)?;
    all.check(&backend)?;
    ensure!(!passing.acknowledged.is_empty(), "nothing was stored that could pass");
    ensure!(count(&backend, PASSING)? == 0, "deleted spans are found");
    verify(&backend)?;
    backend.stop()?;
    verify(&backend)
}

/// How long the backend may live before a kill. Every fourth time it is killed while it starts; every tenth time it may
/// live for longer, to get through more than the first cut.
fn life_micros(kill: u32) -> u64 {
    match kill {
        kill if kill % 4 == 3 => 60_000,
        kill if kill % 10 == 0 => 3_000_000,
        _ => 400_000,
    }
}

/// Waits until nothing is in memory only.
fn wait_until_cut(backend: &Backend) -> Result<()> {
    let begin = Instant::now();
    loop {
        let metrics = backend.get("/metrics")?.text();
        let live = metrics.lines().find_map(|line| line.strip_prefix("tempo_live_store_live_traces "));
        let live = live.context("no tempo_live_store_live_traces")?.to_owned();
        if live == "0" {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(20),
            "{live} traces stay in memory:\n{}",
            backend.process.output()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// Spans of a tenant that are found by a search.
fn count(backend: &Backend, tenant: &str) -> Result<u64> {
    let query = http::encode("{ resource.service.name = \"killed\" }");
    let url = format!("http://{}/api/search?q={query}&limit=262144&spss=1", backend.api);
    let answer = http::get_with(&url, &[(TENANT, tenant)])?;
    ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let sets = list(&answer.json()?, "traces").into_iter().flat_map(|trace| list(&trace, "spanSets"));
    Ok(sets.filter_map(|set| set.get("matched")?.as_u64()).sum())
}

/// The store is as it must be: `coati-backend blocks verify`.
fn verify(backend: &Backend) -> Result<()> {
    let mut command = Command::new(binary(&binaries(), "coati-backend")?);
    let output = command.args(["blocks", "verify", "--data-dir"]).arg(backend.data()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "blocks verify: {}\n{text}\n{}", output.status, backend.process.output());
    Ok(())
}

/// What is wrong with the spans that are found.
#[derive(Debug, Default, PartialEq)]
struct Wrong {
    lost: u64,
    changed: u64,
    twice: u64,
    never_sent: u64,
}

impl Sent {
    /// Reads every trace back and compares each span with what was sent.
    fn check(&self, backend: &Backend) -> Result<()> {
        let traces: BTreeSet<u128> = self.acknowledged.keys().map(|(trace, _)| *trace).collect();
        let traces: Vec<u128> = traces.into_iter().collect();
        let parts = traces.chunks(traces.len().div_ceil(READERS).max(1));
        let (mut wrong, mut of_unanswered) = (Wrong::default(), 0);
        thread::scope(|scope| {
            let readers: Vec<_> = parts.map(|part| scope.spawn(|| self.check_traces(backend, part))).collect();
            for reader in readers {
                let (found, more) = reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
                wrong.lost += found.lost;
                wrong.changed += found.changed;
                wrong.twice += found.twice;
                wrong.never_sent += found.never_sent;
                of_unanswered += more;
            }
            anyhow::Ok(())
        })?;
        ensure!(wrong == Wrong::default(), "of the acknowledged spans: {wrong:?}\n{}", backend.process.output());
        // Search sees the same spans, and the whole traces of unanswered requests besides.
        let (least, most) =
            (self.acknowledged.len() as u64 + of_unanswered, (self.acknowledged.len() + self.unanswered.len()) as u64);
        let counted = count(backend, KEPT)?;
        ensure!((least..=most).contains(&counted), "search counts {counted} spans, not {least} to {most}");
        Ok(())
    }

    /// What is wrong with these traces, and how many spans of unanswered requests are in them.
    fn check_traces(&self, backend: &Backend, traces: &[u128]) -> Result<(Wrong, u64)> {
        let (mut wrong, mut of_unanswered) = (Wrong::default(), 0);
        for &trace in traces {
            let mut found = BTreeMap::<u64, Span>::new();
            for span in otlp::spans_of(backend, KEPT, trace)? {
                let id = u64::from_be_bytes(span.span_id.as_slice().try_into()?);
                wrong.twice += u64::from(found.insert(id, span).is_some());
            }
            for ((_, id), span) in self.acknowledged.range((trace, 0)..=(trace, u64::MAX)) {
                match found.remove(id) {
                    None => wrong.lost += 1,
                    Some(stored) => wrong.changed += u64::from(stored.encode_to_vec() != span.encode_to_vec()),
                }
            }
            let (expected, others): (Vec<_>, Vec<_>) =
                found.into_keys().partition(|&id| self.unanswered.contains(&(trace, id)));
            of_unanswered += expected.len() as u64;
            wrong.never_sent += others.len() as u64;
        }
        Ok((wrong, of_unanswered))
    }
}
